//! Channels: ordered streams of bytes to one peer, whoever dialled and whoever speaks first (design §15.20).
//!
//! A lane is written against [`Channel`] alone. That the bytes are plain TCP, or later encrypted, or that a worker dialled
//! us instead of being dialled, is not its business.

mod frames;
mod plain;
mod relay;
#[cfg(test)]
mod relay_tests;
mod sync;
mod until;

pub use frames::FrameReader;
pub use plain::{connect, ConnectError, PlainChannel};
pub use relay::{Relay, Turn, NAP};
pub use until::Until;
pub(crate) use until::{timespec, Stop};

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

/// What one attempt to read or write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes moved, at least 1.
    Moved(usize),
    /// Nothing can move now; poll [`Channel::as_fd`].
    Blocked,
    /// The peer ended its side in order. Never the outcome of a write.
    Ended,
}

/// A byte stream to one peer that never blocks.
///
/// One thread may read while another one writes. Two threads that write at once must agree on who goes first, or their
/// bytes mix.
pub trait Channel: Send + Sync {
    /// Reads at most `into.len()` bytes, straight into `into`, which is not empty.
    ///
    /// # Errors
    /// What the transport reports, e.g. `ECONNRESET`, or `ETIMEDOUT` when the peer has acknowledged nothing for the time
    /// that the channel allows. The channel is of no use afterwards.
    fn try_read(&self, into: &mut [u8]) -> io::Result<Step>;

    /// Writes a beginning of the concatenated `parts`. Never raises SIGPIPE.
    ///
    /// # Errors
    /// What the transport reports, e.g. `EPIPE`. The channel is of no use afterwards.
    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<Step>;

    /// The descriptor to poll: readable or writable whenever the matching attempt may succeed.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Says that nothing more will be written; reading goes on.
    fn finish_writing(&self);

    /// Ends both directions at once; a thread that polls the descriptor wakes up.
    fn shutdown(&self);
}
