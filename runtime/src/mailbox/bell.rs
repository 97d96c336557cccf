//! The bell of a `Worker`: what all its endpoints ring, and what its threads wait at.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::beside::{Beside, Seen, Source, Spinner};
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
    beside: Beside,
    spinner: Spinner,
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
        let spinner = Spinner::new(slots.clone());
        Ok(Arc::new(Self {
            region,
            point,
            slots,
            history: SpinHistory::new(),
            beside: Beside::default(),
            spinner,
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
        self.beside.kick();
    }

    /// Wakes whoever sleeps beside the bell: a child was given something to do, and will ring only the bell.
    pub fn kick(&self) {
        self.beside.kick();
    }

    /// A waiter leaves while others stay: if it read what is beside the bell, another one has to.
    pub fn pass_lead(&self) {
        if self.beside.has_sources() {
            self.ring();
        }
    }

    /// Adds something that waiters read themselves.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn add_source(&self, source: Weak<dyn Source>) -> std::io::Result<()> {
        self.beside.add(source)
    }

    /// For a thread that submits: looks, now and then, at what is beside the bell. True when there may be events.
    #[must_use]
    pub fn glance(&self) -> bool {
        self.beside.glance()
    }

    /// What to take before looking for events, for [`Bell::wait_beside`].
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen {
            rung: self.value(),
            kicked: self.beside.kicks(),
        }
    }

    /// As [`Bell::wait`], for a waiter that reads what is beside the bell, if nobody else does and no other process will ring.
    #[must_use]
    pub fn wait_beside(&self, seen: Seen, deadline: Instant, others_ring: bool) -> bool {
        if !others_ring {
            let rung = || self.value() != seen.rung;
            let spin = |look: &mut dyn FnMut() -> bool| self.spinner.spin(look);
            if let Some(rung) = self.beside.lead(seen.kicked, deadline, rung, spin) {
                return rung;
            }
        }
        self.wait(seen.rung, deadline)
    }

    /// A spinner for something that is waited for beside this bell.
    #[must_use]
    pub fn spinner(&self) -> Spinner {
        Spinner::new(self.slots.clone())
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
