//! Spinning before sleeping: as long as it pays off, and only while a core is left for the others.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layout::BELL_SPINNERS;
use super::wake::{sleep, BellWords, WaitPoint};
use super::{MailboxError, Word32};
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
pub(super) const PREEMPTED: Duration = Duration::from_micros(100);
/// With no credit left, one wait of so many spins all the same, to find out whether times have changed.
const PROBE_EVERY: u32 = 16;

/// The spinners of a tree of workers: at most one less than there are cores (design §15.13).
#[derive(Clone, Debug)]
pub(super) struct SpinSlots {
    spinners: Word32,
    pub(super) most: u32,
    /// A child's own record that it holds a slot, so that its parent can give it back after a crash.
    pub(super) mark: Option<Word32>,
}

pub(super) struct SpinSlot<'a>(&'a SpinSlots);

impl SpinSlots {
    pub(super) fn new(region: &Arc<SharedRegion>) -> Result<Self, MailboxError> {
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

    #[cfg(test)]
    pub(super) fn taken(&self) -> u32 {
        self.spinners.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> Option<SpinSlot<'_>> {
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

    pub(super) fn is_worth_it(&self) -> bool {
        let probe = self.waits.fetch_add(1, Ordering::Relaxed) % PROBE_EVERY == 0;
        probe || self.credit.load(Ordering::Relaxed) > 0
    }

    pub(super) fn note(&self, paid_off: bool) {
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
            if point.sequence() != seen {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Bell;

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
            ..bell.slots().clone()
        };
        let first = slots.take();
        assert!(first.is_some() && slots.take().is_none());
        std::mem::forget(first);
        slots.recover();
        slots.recover();
        assert!(slots.take().is_some());
    }
}
