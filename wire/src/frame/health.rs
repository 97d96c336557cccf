//! HEALTH: sent by the session on the health lane, with an empty payload and a sequence that counts from 1.

use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::frame::header::{FrameHeader, FrameType};
use crate::id::{Sequence, SessionId, WorkerId};
use crate::limits::HEADER_BYTES;

/// A HEALTH frame.
///
/// # Errors
/// None for these arguments; the signature is that of all encoders.
pub fn health_frame(
    session_id: SessionId,
    worker_id: WorkerId,
    sequence: Sequence,
) -> Result<[u8; HEADER_BYTES], EncodeError> {
    FrameHeader::new(FrameType::Health, session_id, worker_id, sequence, 0)?.to_array()
}

/// What a parent demands of every frame on the health lane: the type, and its own session and worker. Sequence and
/// payload are not looked at.
///
/// # Errors
/// [`DecodeError::Rule`] for another type, [`DecodeError::Mismatch`] for another session or worker.
pub fn check_health(
    header: &FrameHeader,
    session_id: SessionId,
    worker_id: WorkerId,
) -> Result<(), DecodeError> {
    if header.frame_type != FrameType::Health {
        return Err(RuleViolation::new(
            "frame.frame_type",
            header.frame_type.code(),
            "only HEALTH (6) belongs on the health lane",
        )
        .into());
    }
    header.expect_identity(session_id, worker_id)
}
