//! What can go wrong with a mailbox.

use crate::memory::MemoryError;

/// A failed operation on a mailbox or a bell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// The segment could not be made or mapped.
    #[error("mailbox segment: {0}")]
    Memory(#[from] MemoryError),
    /// The other side wrote something that cannot be; the mailbox is of no use any more.
    #[error("mailbox is corrupt: {what} is {value}, which must be {must}; the other process misbehaved or crashed")]
    Corrupt {
        /// The word or field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// What it could have held.
        must: &'static str,
    },
    /// A record is larger than a ring takes.
    #[error("a record of {len} bytes does not fit; the limit is {limit} bytes: pass large data as tensors")]
    RecordTooLarge {
        /// Payload bytes of the record.
        len: u64,
        /// The most that the ring takes.
        limit: u64,
    },
    /// A ring size that is zero, too large or no multiple of the alignment.
    #[error(
        "a ring of {bytes} bytes cannot be; sizes are multiples of 4096 between 4096 and {max}"
    )]
    BadRingSize {
        /// The size asked for.
        bytes: u64,
        /// The largest.
        max: u64,
    },
    /// A system call failed.
    #[error("{call} failed: {errno}")]
    Os {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        errno: rustix::io::Errno,
    },
}
