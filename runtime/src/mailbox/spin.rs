//! Spinning before sleeping: as long as it pays off, and only while a core is left for the others.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layout::{BELL_LEASES, LEASES_MAX, LEASE_STRIDE};
use super::place::Near;
use super::wake::{sleep, BellWords};
use super::{MailboxError, Word64};
use crate::memory::SharedRegion;
use crate::trace::now_ns;

/// The longest spin. A wake through the kernel costs about 7 µs on each side; three times that is worth waiting for.
pub const SPIN_LIMIT: Duration = Duration::from_micros(20);
/// The longest spin while the other side comes to a core that sleeps. On a virtual machine waking one takes 30 to 60 µs.
const MOVE_LIMIT: Duration = Duration::from_micros(150);
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

/// A lease that was taken this long ago has lost its holder, which was killed or stopped. A spin is over long before.
const LEASE_NS: u64 = 10_000_000;

/// The spinners of a tree of workers: at most one less than there are cores (design §15.13).
///
/// Each holds a lease, a word with the time since which it is held. Nothing is counted, so nothing drifts: whoever dies with a
/// lease keeps it from the others for as long as a lease may last, and nobody has to give it back for the dead.
#[derive(Clone, Debug)]
pub(super) struct SpinSlots {
    leases: Arc<[Word64]>,
    /// Cores that this process may use.
    pub(super) cores: u32,
}

pub(super) struct SpinSlot<'a> {
    lease: &'a Word64,
    taken: u64,
}

impl SpinSlots {
    pub(super) fn new(region: &Arc<SharedRegion>) -> Result<Self, MailboxError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::for_cores(region, u32::try_from(cores).unwrap_or(u32::MAX))
    }

    pub(super) fn for_cores(region: &Arc<SharedRegion>, cores: u32) -> Result<Self, MailboxError> {
        let most = cores.saturating_sub(1).min(LEASES_MAX);
        let leases =
            (0..u64::from(most)).map(|n| Word64::new(region, BELL_LEASES + n * LEASE_STRIDE));
        Ok(Self {
            leases: leases.collect::<Result<_, _>>()?,
            cores,
        })
    }

    /// True where nobody ever spins.
    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        let taken = |lease: &&Word64| lease.load(Ordering::Relaxed) != 0;
        self.leases.iter().filter(taken).count()
    }

    pub(super) fn take(&self) -> Option<SpinSlot<'_>> {
        self.take_at(now_ns())
    }

    fn take_at(&self, now: u64) -> Option<SpinSlot<'_>> {
        // Zero says that it is free.
        let now = now.max(1);
        self.leases.iter().find_map(|lease| {
            let since = lease.load(Ordering::Relaxed);
            // A time to come was not written by a clock of this host.
            let is_held = since != 0 && since <= now && now - since < LEASE_NS;
            if is_held {
                return None;
            }
            lease
                .compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed)
                .ok()
                .map(|_| SpinSlot { lease, taken: now })
        })
    }
}

impl Drop for SpinSlot<'_> {
    fn drop(&mut self) {
        // Another's, if this one was stopped for so long that it was taken for dead.
        let _ = self
            .lease
            .compare_exchange(self.taken, 0, Ordering::Relaxed, Ordering::Relaxed);
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

/// Waits until the sequence is no longer `seen`: spins if that is promising, then sleeps. False at `deadline`. `near` is where the
/// side is that is waited for.
pub(super) fn wait<W: BellWords>(
    point: &W,
    slots: &SpinSlots,
    history: &SpinHistory,
    seen: u32,
    deadline: Instant,
    near: Near,
) -> bool {
    if point.sequence() != seen {
        return true;
    }
    let limit = match near {
        // Spinning would keep it from running.
        Near::Here => Duration::ZERO,
        Near::Apart => SPIN_LIMIT,
        Near::Moving => MOVE_LIMIT,
    };
    let spins = !slots.is_empty() && !limit.is_zero();
    if spins && (near == Near::Moving || history.is_worth_it()) {
        let start = Instant::now();
        let rung = spin(point, slots, seen, start, deadline.min(start + limit));
        if near == Near::Apart {
            history.note(rung && start.elapsed() < PREEMPTED);
        }
        if rung {
            return true;
        }
    }
    sleep(point, seen, deadline)
}

fn spin<W: BellWords>(
    point: &W,
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
        if now >= deadline {
            return false;
        }
        if slot.is_none() {
            slot = slots.take();
            if slot.is_none() && now - start >= SPIN_GRACE {
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
    fn spinners_are_fewer_than_cores_and_a_dead_ones_lease_ends() {
        let bell = Bell::create().unwrap();
        let slots = SpinSlots::for_cores(bell.region(), 2).unwrap();
        let start = 5_000_000_000;
        let first = slots.take_at(start);
        assert!(first.is_some() && slots.take_at(start + LEASE_NS - 1).is_none());
        // Its holder is gone.
        std::mem::forget(first);
        let late = start + LEASE_NS;
        let second = slots.take_at(late);
        assert!(second.is_some() && slots.take_at(late).is_none());
        // It was stopped, another one spins, and now it gives back what it has no more.
        let stopped = SpinSlot {
            lease: &slots.leases[0],
            taken: start,
        };
        drop(stopped);
        assert_eq!(slots.taken(), 1);
        drop(second);
        assert_eq!(slots.taken(), 0);
        // What a faulty child writes there does no harm either.
        slots.leases[0].store(u64::MAX, Ordering::Relaxed);
        assert!(slots.take_at(late).is_some());
        assert!(SpinSlots::for_cores(bell.region(), 1).unwrap().is_empty());
        let many = SpinSlots::for_cores(bell.region(), u32::MAX).unwrap();
        assert_eq!(many.leases.len(), LEASES_MAX as usize);
    }
}
