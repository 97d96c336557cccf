//! SHUTDOWN: ends the session, without an answer. A session accepts any sequence and any payload, also as the very first
//! frame; we send an empty payload.

use crate::error::EncodeError;
use crate::frame::header::{FrameHeader, FrameType};
use crate::id::{Sequence, SessionId, WorkerId};
use crate::limits::HEADER_BYTES;

/// A SHUTDOWN frame.
///
/// # Errors
/// None for these arguments; the signature is that of all encoders.
pub fn shutdown_frame(
    session_id: SessionId,
    worker_id: WorkerId,
    sequence: Sequence,
) -> Result<[u8; HEADER_BYTES], EncodeError> {
    FrameHeader::new(FrameType::Shutdown, session_id, worker_id, sequence, 0)?.to_array()
}
