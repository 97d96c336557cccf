//! The bell of a `Worker`: what all its endpoints ring, and what its threads wait at.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::beside::{Beside, Seen, Source, Spinner};
use super::layout::{BELL_BYTES, BELL_MAGIC, BELL_SEATS, BELL_SPOT, MAGIC, SEATS_MAX, SEAT_STRIDE};
use super::place::{Near, Spot};
use super::spin::{wait, SpinHistory, SpinSlots};
use super::standby::{alarm, leave_present, ring_bell, stand_by, BellPoint, StandbyWords};
use super::wake::{BellWords, KernelCalls};
use super::{MailboxError, Word32, Word64};
use crate::memory::SharedRegion;

/// Where the spinners of a tree of workers have their leases.
#[derive(Clone, Debug)]
pub struct SpinnersAbove(Arc<SharedRegion>);

/// What all endpoints of a `Worker` ring when they have an event, from this process or from a child.
#[derive(Debug)]
pub struct Bell {
    region: Arc<SharedRegion>,
    words: BellPoint,
    /// Where the leases of spinners are: in the bell of the first worker of the tree.
    leases: Arc<SharedRegion>,
    slots: SpinSlots,
    history: SpinHistory,
    beside: Beside,
    spinner: Spinner,
    /// Where a thread waited last.
    spot: Spot,
    seats: Mutex<Seats>,
    /// The child that was given something to do last, by its seat.
    awaited: AtomicU32,
}

/// Places for children in the segment: numbers from one on, zero is none.
#[derive(Debug, Default)]
struct Seats {
    most: u32,
    free: Vec<u32>,
}

/// A child's place in the segment of its parent's bell. It is free again when this is dropped, which must be after the child's end.
#[derive(Debug)]
pub struct Seat {
    bell: Arc<Bell>,
    number: u32,
}

impl Seat {
    /// Its number, 0 for none.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The child was given something to do: it is the one that is waited for next.
    pub fn await_it(&self) {
        self.bell.awaited.store(self.number, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Ok(Some(spot)) = self.bell.spot_at(self.number) {
            spot.clear();
            self.bell.seats.lock().free.push(self.number);
        }
    }
}

impl Bell {
    /// A new bell in a segment of its own.
    ///
    /// # Errors
    /// [`MailboxError::Memory`] when the segment cannot be made.
    pub fn create() -> Result<Arc<Self>, MailboxError> {
        Self::create_below(None)
    }

    /// As [`Bell::create`], for a worker below another one: its spinners count among those of the tree whose leases `above` has.
    ///
    /// # Errors
    /// As [`Bell::create`].
    pub fn create_below(above: Option<&SpinnersAbove>) -> Result<Arc<Self>, MailboxError> {
        let region = SharedRegion::create_memfd(BELL_BYTES, true)?;
        Word64::new(&region, MAGIC)?.store(BELL_MAGIC, Ordering::Release);
        Self::over(region, above.map(|above| Arc::clone(&above.0)))
    }

    /// The bell that a parent made, from the inherited descriptor, and from that of the first bell of the tree if it is another.
    ///
    /// # Errors
    /// [`MailboxError::Memory`] when a descriptor is no segment of the right size, [`MailboxError::Corrupt`] when it is
    /// no bell of this build.
    pub fn attach(fd: OwnedFd, leases: Option<OwnedFd>) -> Result<Arc<Self>, MailboxError> {
        let leases = leases.map(Self::inherited).transpose()?;
        Self::over(Self::inherited(fd)?, leases)
    }

    fn inherited(fd: OwnedFd) -> Result<Arc<SharedRegion>, MailboxError> {
        let region = SharedRegion::from_fd(crate::memory::random_id()?, fd, BELL_BYTES, true)?;
        let magic = Word64::new(&region, MAGIC)?.load(Ordering::Acquire);
        if magic != BELL_MAGIC {
            return Err(MailboxError::Corrupt {
                what: "the bell's magic",
                value: magic,
                must: "this build's",
            });
        }
        Ok(region)
    }

    fn over(
        region: Arc<SharedRegion>,
        leases: Option<Arc<SharedRegion>>,
    ) -> Result<Arc<Self>, MailboxError> {
        let leases = leases.unwrap_or_else(|| Arc::clone(&region));
        let slots = SpinSlots::new(&leases)?;
        let spinner = Spinner::new(slots.clone());
        Ok(Arc::new(Self {
            words: BellPoint::new(&region)?,
            spot: Spot::new(Word32::new(&region, BELL_SPOT)?),
            region,
            leases,
            slots,
            history: SpinHistory::new(),
            beside: Beside::default(),
            spinner,
            seats: Mutex::default(),
            awaited: AtomicU32::new(0),
        }))
    }

    /// A place for one more child, without a number when there are too many.
    #[must_use]
    pub fn seat(self: &Arc<Self>) -> Seat {
        let mut seats = self.seats.lock();
        let number = seats.free.pop().or_else(|| {
            let next = seats.most + 1;
            (next <= SEATS_MAX).then(|| {
                seats.most = next;
                next
            })
        });
        Seat {
            bell: Arc::clone(self),
            number: number.unwrap_or(0),
        }
    }

    /// The word of the child with a seat.
    pub(super) fn spot_at(&self, seat: u32) -> Result<Option<Spot>, MailboxError> {
        if seat == 0 || seat > SEATS_MAX {
            return Ok(None);
        }
        let at = BELL_SEATS + u64::from(seat - 1) * SEAT_STRIDE;
        Word32::new(&self.region, at).map(|word| Some(Spot::new(word)))
    }

    /// For a worker below this one: where the leases of spinners are.
    #[must_use]
    pub fn spinners(&self) -> SpinnersAbove {
        SpinnersAbove(Arc::clone(&self.leases))
    }

    /// The descriptor of the first bell of the tree, if that is another one: children inherit it, too.
    #[must_use]
    pub fn leases_fd(&self) -> Option<BorrowedFd<'_>> {
        let others = !Arc::ptr_eq(&self.leases, &self.region);
        others.then(|| self.leases.fd())
    }

    /// The descriptor that children inherit.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.region.fd()
    }

    /// Announces an event: whoever waits with an older value wakes up. No system call unless somebody sleeps.
    pub fn ring(&self) {
        ring_bell(&self.words);
        self.beside.kick();
    }

    /// As [`Bell::ring`], and whoever stands by wakes up in any case.
    pub fn alarm(&self) {
        alarm(&self.words);
        self.beside.kick();
    }

    /// A thread comes that sees to whatever is rung until it [goes](Bell::go).
    pub fn come(&self) {
        self.words.come();
    }

    /// Whether a thread [stands by](Bell::stand_by) now.
    #[must_use]
    pub fn stands_by(&self) -> bool {
        self.words.stands_by()
    }

    /// It goes, and has seen what was rung before the bell's value was `seen`.
    pub fn go(&self, seen: u32) {
        leave_present(&self.words, seen);
    }

    /// Sleeps until something is rung after `seen` that nobody is there for, an [`alarm`](Bell::alarm) more than
    /// `alarms`, or `deadline`. For one thread.
    pub fn stand_by(&self, seen: u32, alarms: u32, deadline: Instant) {
        stand_by(&self.words, seen, alarms, deadline);
    }

    /// How many alarms there were. Take it before looking for what they are about, then pass it to [`Bell::stand_by`].
    #[must_use]
    pub fn alarms(&self) -> u32 {
        self.words.alarms()
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
        self.words.sequence()
    }

    /// Waits until the value is no longer `seen`. True when it is another one, false at `deadline`.
    #[must_use]
    pub fn wait(&self, seen: u32, deadline: Instant) -> bool {
        self.spot.note();
        let awaited = self.spot_at(self.awaited.load(Ordering::Relaxed));
        let near = awaited
            .ok()
            .flatten()
            .map_or(Near::Apart, |spot| spot.seen());
        let (point, slots) = (&self.words, &self.slots);
        let rung = wait(point, slots, &self.history, seen, deadline, near);
        self.spot.note();
        rung
    }

    /// Where a thread of the bell's owner waited last, and whether one sleeps there.
    pub(super) fn owner(&self) -> (&Spot, bool) {
        (&self.spot, self.words.asleep() as u32 > 0)
    }

    /// How often this process has called the kernel for this bell.
    #[must_use]
    pub fn kernel_calls(&self) -> KernelCalls {
        self.words.point.calls()
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
        assert_eq!(bell.words.asleep() as u32, 0);
        assert_eq!(bell.slots.taken(), 0);
    }

    #[test]
    fn r_092_two_processes_worth_of_mappings_never_miss_a_ring() {
        let ping = Bell::create().unwrap();
        let pong = Bell::create().unwrap();
        let their_ping = Bell::attach(ping.fd().try_clone_to_owned().unwrap(), None).unwrap();
        let their_pong = Bell::attach(pong.fd().try_clone_to_owned().unwrap(), None).unwrap();
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
            Bell::attach(fd, None),
            Err(MailboxError::Corrupt {
                what: "the bell's magic",
                ..
            })
        ));
        let small = SharedRegion::create_memfd(10, true).unwrap();
        let fd = small.fd().try_clone_to_owned().unwrap();
        assert!(matches!(
            Bell::attach(fd, None),
            Err(MailboxError::Memory(_))
        ));
    }
}
