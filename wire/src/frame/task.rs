//! TASK: its payload is [`TaskPayload`], the same bytes as in a mailbox slot.

pub use crate::task::{Carrier, TaskArgsWire, TaskPayload};

use crate::id::{Sequence, WorkerId};

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
