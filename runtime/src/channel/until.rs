//! One deadline for all hops of a start, and a flag that calls it off.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// How long a poll sleeps before it asks whether the start was called off.
const CANCEL_PERIOD: Duration = Duration::from_millis(50);

/// Until when a step of a start may take, and whether it was called off.
#[derive(Clone, Debug)]
pub struct Until {
    deadline: Instant,
    cancel: Option<Arc<AtomicBool>>,
}

/// Why waiting ended without the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The deadline passed.
    Late,
    /// The flag was set.
    Cancelled,
}

impl Until {
    /// At the latest at `deadline`.
    #[must_use]
    pub fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            cancel: None,
        }
    }

    /// Also as soon as `flag` is set (within 50 ms).
    #[must_use]
    pub fn or_cancelled(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// The instant.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What is left of it, or why nothing is.
    pub(crate) fn remaining(&self) -> Result<Duration, Stop> {
        if self
            .cancel
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
        {
            return Err(Stop::Cancelled);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Stop::Late);
        }
        Ok(left)
    }

    /// Waits until `fd` is ready for `flags`, or broken.
    pub(crate) fn wait(&self, fd: BorrowedFd<'_>, flags: PollFlags) -> Result<(), Stop> {
        loop {
            let mut left = self.remaining()?;
            if self.cancel.is_some() {
                left = left.min(CANCEL_PERIOD);
            }
            let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) | Err(_) => {}
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// A duration as the kernel wants it, saturated at what it can express.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
