//! Waiting without losing a wake-up: the sequence-and-sleepers protocol, the adaptive spin, and the bell of a `Worker`.
//!
//! A waiter notes the sequence, looks for work, and if there is none waits until the sequence is another one. It first
//! spins, if spinning has paid off lately and a spinner's slot is free, and then sleeps in a shared futex.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::futex::{sleep_while, wake_all};
use super::layout::{BELL_BYTES, BELL_MAGIC, BELL_SEQUENCE, BELL_SLEEPERS, BELL_SPINNERS, MAGIC};
use super::{MailboxError, Word32, Word64};
use crate::memory::SharedRegion;

/// The longest spin. A wake through the kernel costs about 7 µs on each side; three times that is worth waiting for.
pub const SPIN_LIMIT: Duration = Duration::from_micros(20);
/// Without a slot a waiter may spin so long: the slot of the other side, which is just waking up, is often free a moment later.
const SPIN_GRACE: Duration = Duration::from_micros(2);
/// Looks at the sequence between two looks at the clock.
const SPIN_BURST: u32 = 16;
/// Spinning that paid off is remembered up to this many times.
const CREDIT_MAX: u32 = 8;
/// A spin that takes longer than this was preempted: the core has something better to do.
const PREEMPTED: Duration = Duration::from_micros(100);
/// With no credit left, one wait of so many spins all the same, to find out whether times have changed.
const PROBE_EVERY: u32 = 16;

/// The words of the protocol; generic so that loom can run it.
pub trait BellWords {
    /// The sequence, sequentially consistent.
    fn sequence(&self) -> u32;
    /// Adds one to the sequence, sequentially consistent.
    fn increment(&self);
    /// How many have declared themselves asleep, sequentially consistent.
    fn sleepers(&self) -> u32;
    /// Declares the caller asleep, sequentially consistent.
    fn enter(&self);
    /// Takes that back.
    fn leave(&self);
    /// Sleeps if the sequence is `seen`, which is compared while wakers are locked out; may return early.
    fn sleep_while(&self, seen: u32, deadline: Instant);
    /// Wakes all sleepers.
    fn wake_all(&self);
}

/// Announces something: whoever waits with an older sequence wakes up. A system call only when somebody sleeps.
pub fn ring<W: BellWords>(words: &W) {
    words.increment();
    if words.sleepers() > 0 {
        words.wake_all();
    }
}

/// Sleeps until the sequence is no longer `seen`, or `deadline`. True when it is another one.
pub fn sleep<W: BellWords>(words: &W, seen: u32, deadline: Instant) -> bool {
    words.enter();
    while words.sequence() == seen {
        words.sleep_while(seen, deadline);
        if Instant::now() >= deadline {
            break;
        }
    }
    words.leave();
    words.sequence() != seen
}

/// A sequence and its sleepers in shared memory.
#[derive(Debug)]
pub(super) struct WaitPoint {
    pub(super) sequence: Word32,
    pub(super) sleepers: Word32,
}

impl BellWords for WaitPoint {
    fn sequence(&self) -> u32 {
        self.sequence.load(Ordering::SeqCst)
    }

    fn increment(&self) {
        self.sequence.fetch_add(1, Ordering::SeqCst);
    }

    fn sleepers(&self) -> u32 {
        self.sleepers.load(Ordering::SeqCst)
    }

    fn enter(&self) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn sleep_while(&self, seen: u32, deadline: Instant) {
        sleep_while(&self.sequence, seen, deadline);
    }

    fn wake_all(&self) {
        wake_all(&self.sequence);
    }
}

/// The spinners of a tree of workers: at most one less than there are cores (design §15.13).
#[derive(Clone, Debug)]
pub(super) struct SpinSlots {
    spinners: Word32,
    most: u32,
    /// A child's own record that it holds a slot, so that its parent can give it back after a crash.
    pub(super) mark: Option<Word32>,
}

struct SpinSlot<'a>(&'a SpinSlots);

impl SpinSlots {
    fn new(region: &Arc<SharedRegion>) -> Result<Self, MailboxError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let most = u32::try_from(cores).unwrap_or(u32::MAX) - 1;
        Ok(Self {
            spinners: Word32::new(region, BELL_SPINNERS)?,
            most,
            mark: None,
        })
    }

    /// The same slots for a child that marks in `mark` that it holds one.
    pub(super) fn marked(&self, mark: Word32) -> Self {
        Self {
            mark: Some(mark),
            ..self.clone()
        }
    }

    fn take(&self) -> Option<SpinSlot<'_>> {
        if self.spinners.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        if self.spinners.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.spinners.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if let Some(mark) = &self.mark {
            mark.store(1, Ordering::Relaxed);
        }
        Some(SpinSlot(self))
    }

    /// Gives back the slot of a child that died while it held one.
    pub(super) fn recover(&self) {
        let _ = self
            .spinners
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                count.checked_sub(1)
            });
    }
}

impl Drop for SpinSlot<'_> {
    fn drop(&mut self) {
        if let Some(mark) = &self.0.mark {
            mark.store(0, Ordering::Relaxed);
        }
        self.0.spinners.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether spinning has paid off lately. Shared by the threads that wait at one point; races only blur it.
#[derive(Debug)]
pub(super) struct SpinHistory {
    credit: AtomicU32,
    waits: AtomicU32,
}

impl SpinHistory {
    pub(super) fn new() -> Self {
        Self {
            credit: AtomicU32::new(CREDIT_MAX),
            waits: AtomicU32::new(0),
        }
    }

    fn is_worth_it(&self) -> bool {
        let probe = self.waits.fetch_add(1, Ordering::Relaxed) % PROBE_EVERY == 0;
        probe || self.credit.load(Ordering::Relaxed) > 0
    }

    fn note(&self, paid_off: bool) {
        let credit = self.credit.load(Ordering::Relaxed);
        let credit = if paid_off {
            (credit + 2).min(CREDIT_MAX)
        } else {
            credit.saturating_sub(1)
        };
        self.credit.store(credit, Ordering::Relaxed);
    }
}

/// Waits until the sequence is no longer `seen`: spins if that is promising, then sleeps. False at `deadline`.
pub(super) fn wait(
    point: &WaitPoint,
    slots: &SpinSlots,
    history: &SpinHistory,
    seen: u32,
    deadline: Instant,
) -> bool {
    if point.sequence() != seen {
        return true;
    }
    if slots.most > 0 && history.is_worth_it() {
        let start = Instant::now();
        let rung = spin(point, slots, seen, start, deadline);
        history.note(rung && start.elapsed() < PREEMPTED);
        if rung {
            return true;
        }
    }
    sleep(point, seen, deadline)
}

fn spin(
    point: &WaitPoint,
    slots: &SpinSlots,
    seen: u32,
    start: Instant,
    deadline: Instant,
) -> bool {
    let mut slot = None;
    loop {
        for _ in 0..SPIN_BURST {
            if point.sequence.load(Ordering::Acquire) != seen {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        let spent = now - start;
        if spent >= SPIN_LIMIT || now >= deadline {
            return false;
        }
        if slot.is_none() {
            slot = slots.take();
            if slot.is_none() && spent >= SPIN_GRACE {
                return false;
            }
        }
    }
}

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
        let sequence = Word32::new(&region, BELL_SEQUENCE)?;
        let sleepers = Word32::new(&region, BELL_SLEEPERS)?;
        let slots = SpinSlots::new(&region)?;
        let point = WaitPoint { sequence, sleepers };
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
        assert_eq!(bell.point.sleepers(), 0);
        assert_eq!(bell.slots.spinners.load(Ordering::Relaxed), 0);
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
    fn spinning_that_never_pays_off_is_given_up_and_tried_again_now_and_then() {
        let history = SpinHistory::new();
        let mut tried = 0;
        for _ in 0..320 {
            if history.is_worth_it() {
                tried += 1;
                history.note(false);
            }
        }
        assert!((20..=30).contains(&tried), "{tried}");
        history.note(true);
        assert!(history.is_worth_it());
    }

    #[test]
    fn spinners_are_fewer_than_cores_and_a_dead_ones_slot_comes_back() {
        let bell = Bell::create().unwrap();
        let slots = SpinSlots {
            most: 1,
            ..bell.slots.clone()
        };
        let first = slots.take();
        assert!(first.is_some() && slots.take().is_none());
        std::mem::forget(first);
        slots.recover();
        slots.recover();
        assert!(slots.take().is_some());
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
