//! What the relay is built from, in one place: `tests/loom_relay.rs` puts loom's own there, and runs all interleavings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) use parking_lot::{Condvar, Mutex};
use rustix::event::{eventfd, EventfdFlags};
pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Something to poll for beside a socket.
pub(super) type Recall<'a> = BorrowedFd<'a>;

/// A signal that stays until it is taken away.
#[derive(Debug)]
pub(super) struct Signal(OwnedFd);

impl Signal {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    pub(super) fn set(&self) {
        // A full counter means that it is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Readable while it is set.
    pub(super) fn borrow(&self) -> Recall<'_> {
        self.0.as_fd()
    }
}
