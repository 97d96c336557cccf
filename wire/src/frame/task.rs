//! TASK: its payload is [`TaskPayload`], the same bytes as in a mailbox slot.

pub use crate::task::{Carrier, TaskArgsWire, TaskPayload};

use crate::callable::Digest;
use crate::codec::Reader;
use crate::error::DecodeError;
use crate::id::{Sequence, WorkerId};

/// Digest of the callable of a TASK payload, without looking at the rest: enough to name a task that cannot be decoded.
///
/// # Errors
/// [`DecodeError::Truncated`] when the payload has fewer than 32 bytes.
pub fn peek_digest(payload: &[u8]) -> Result<Digest, DecodeError> {
    Ok(Digest(Reader::new(payload).array("TASK.callable_digest")?))
}

/// How the message of a failed task begins. `payload` is that of the TASK frame, however broken; its first 32 bytes, or
/// what there is of them, stand for the callable.
pub fn failure_prefix(worker_id: WorkerId, payload: &[u8], sequence: Sequence) -> String {
    use std::fmt::Write as _;
    let mut text = format!("remote worker_id={worker_id} hashid=");
    for byte in payload.iter().take(crate::limits::DIGEST_BYTES) {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(text, " sequence={sequence}: ");
    text
}
