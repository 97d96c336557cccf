//! The bell of a `Worker`: what all its endpoints ring, and what its threads wait at.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::layout::{BELL_ASLEEP, BELL_BYTES, BELL_MAGIC, BELL_SEQUENCE, MAGIC};
use super::spin::{wait, SpinHistory, SpinSlots};
use super::wake::{ring, BellWords, KernelCalls, WaitPoint};
use super::{MailboxError, Word64};
use crate::memory::SharedRegion;

/// What all endpoints of a `Worker` ring when they have an event, from this process or from a child.
#[derive(Debug)]
pub struct Bell {
    region: Arc<SharedRegion>,
    point: WaitPoint,
    slots: SpinSlots,
    history: SpinHistory,
}

impl Bell {
    /// A new bell in a segment of its own.
    ///
    /// # Errors
    /// [`MailboxError::Memory`] when the segment cannot be made.
    pub fn create() -> Result<Arc<Self>, MailboxError> {
        let region = SharedRegion::create_memfd(BELL_BYTES, true)?;
        Word64::new(&region, MAGIC)?.store(BELL_MAGIC, Ordering::Release);
        Self::over(region)
    }

    /// The bell that a parent made, from the inherited descriptor.
    ///
    /// # Errors
    /// [`MailboxError::Memory`] when the descriptor is no segment of the right size, [`MailboxError::Corrupt`] when it is
    /// no bell of this build.
    pub fn attach(fd: OwnedFd) -> Result<Arc<Self>, MailboxError> {
        let region = SharedRegion::from_fd(crate::memory::random_id()?, fd, BELL_BYTES, true)?;
        let magic = Word64::new(&region, MAGIC)?.load(Ordering::Acquire);
        if magic != BELL_MAGIC {
            return Err(MailboxError::Corrupt {
                what: "the bell's magic",
                value: magic,
                must: "this build's",
            });
        }
        Self::over(region)
    }

    fn over(region: Arc<SharedRegion>) -> Result<Arc<Self>, MailboxError> {
        let slots = SpinSlots::new(&region)?;
        let point = WaitPoint::new(&region, BELL_SEQUENCE, BELL_ASLEEP)?;
        Ok(Arc::new(Self {
            region,
            point,
            slots,
            history: SpinHistory::new(),
        }))
    }

    /// The descriptor that children inherit.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.region.fd()
    }

    /// Announces an event: whoever waits with an older value wakes up. No system call unless somebody sleeps.
    pub fn ring(&self) {
        ring(&self.point);
    }

    /// The present value. Take it before looking for events, then pass it to [`Bell::wait`].
    #[must_use]
    pub fn value(&self) -> u32 {
        self.point.sequence()
    }

    /// Waits until the value is no longer `seen`. True when it is another one, false at `deadline`.
    #[must_use]
    pub fn wait(&self, seen: u32, deadline: Instant) -> bool {
        wait(&self.point, &self.slots, &self.history, seen, deadline)
    }

    /// How often this process has called the kernel for this bell.
    #[must_use]
    pub fn kernel_calls(&self) -> KernelCalls {
        self.point.calls()
    }

    #[cfg(test)]
    pub(super) fn region(&self) -> &Arc<SharedRegion> {
        &self.region
    }

    pub(super) fn slots(&self) -> &SpinSlots {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn a_ring_before_the_wait_counts() {
        let bell = Bell::create().unwrap();
        let seen = bell.value();
        bell.ring();
        assert!(bell.wait(seen, soon()));
        assert!(!bell.wait(bell.value(), Instant::now()));
        assert_eq!(bell.point.asleep() as u32, 0);
        assert_eq!(bell.slots.taken(), 0);
    }

    #[test]
    fn r_092_two_processes_worth_of_mappings_never_miss_a_ring() {
        let ping = Bell::create().unwrap();
        let pong = Bell::create().unwrap();
        let their_ping = Bell::attach(ping.fd().try_clone_to_owned().unwrap()).unwrap();
        let their_pong = Bell::attach(pong.fd().try_clone_to_owned().unwrap()).unwrap();
        let rounds = 5000_u32;
        let other = std::thread::spawn(move || {
            for round in 0..rounds {
                if !their_ping.wait(round, soon()) {
                    return false;
                }
                their_pong.ring();
            }
            true
        });
        for round in 0..rounds {
            ping.ring();
            assert!(pong.wait(round, soon()), "round {round}");
        }
        assert!(other.join().unwrap());
    }

    #[test]
    fn a_wrong_descriptor_is_refused() {
        let region = SharedRegion::create_memfd(BELL_BYTES, true).unwrap();
        let fd = region.fd().try_clone_to_owned().unwrap();
        assert!(matches!(
            Bell::attach(fd),
            Err(MailboxError::Corrupt {
                what: "the bell's magic",
                ..
            })
        ));
        let small = SharedRegion::create_memfd(10, true).unwrap();
        let fd = small.fd().try_clone_to_owned().unwrap();
        assert!(matches!(Bell::attach(fd), Err(MailboxError::Memory(_))));
    }
}
