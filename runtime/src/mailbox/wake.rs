//! Sleeping without losing a wake-up, and waking without a call too many: a sequence, and who sleeps on which value of it.
//!
//! A waiter notes the sequence, looks for work, and if there is none sleeps until the sequence is another one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use super::futex::{sleep_while, wake_all};
use super::{MailboxError, Word32, Word64};
use crate::memory::SharedRegion;

/// The words of the protocol; generic so that loom can run it. All accesses are sequentially consistent.
pub trait BellWords {
    /// The sequence.
    fn sequence(&self) -> u32;
    /// Adds one to the sequence and returns what it was.
    fn increment(&self) -> u32;
    /// Who sleeps, packed as [`Asleep`] says.
    fn asleep(&self) -> u64;
    /// Puts `new` in the place of `old`, or returns what is there instead.
    ///
    /// # Errors
    /// What is there.
    fn exchange_asleep(&self, old: u64, new: u64) -> Result<(), u64>;
    /// Sleeps if the sequence is `seen`, which is compared while wakers are locked out; may return early.
    fn sleep_while(&self, seen: u32, deadline: Instant);
    /// Wakes all sleepers.
    fn wake_all(&self);
}

/// How many sleep, and on which sequence. Only the ring that ends this sequence has to wake them: those that follow it know that
/// somebody has done so already, although the sleepers need microseconds to say so themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asleep {
    on: u32,
    count: u32,
}

impl Asleep {
    fn of(word: u64) -> Self {
        Self {
            on: (word >> 32) as u32,
            count: word as u32,
        }
    }

    fn word(self) -> u64 {
        u64::from(self.on) << 32 | u64::from(self.count)
    }
}

/// Announces something: whoever waits with an older sequence wakes up. A system call only when somebody sleeps who has not been
/// woken yet.
pub fn ring<W: BellWords>(words: &W) {
    let before = words.increment();
    let asleep = Asleep::of(words.asleep());
    if asleep.count > 0 && asleep.on == before {
        words.wake_all();
    }
}

/// Sleeps until the sequence is no longer `seen`, or `deadline`. True when it is another one.
pub fn sleep<W: BellWords>(words: &W, seen: u32, deadline: Instant) -> bool {
    if enter(words, seen) {
        while words.sequence() == seen {
            words.sleep_while(seen, deadline);
            if Instant::now() >= deadline {
                break;
            }
        }
        leave(words, seen);
    }
    words.sequence() != seen
}

/// Declares the caller asleep on `seen`; false when that is over already.
fn enter<W: BellWords>(words: &W, seen: u32) -> bool {
    let mut word = words.asleep();
    loop {
        let Asleep { on, count } = Asleep::of(word);
        let others = count > 0 && on != seen;
        if others && words.sequence() != seen {
            return false;
        }
        let count = if on == seen {
            count.saturating_add(1)
        } else {
            1
        };
        match words.exchange_asleep(word, Asleep { on: seen, count }.word()) {
            Ok(()) => {
                if others {
                    // They sleep on a sequence that is over, and the ring that ended it cannot see them any more.
                    words.wake_all();
                }
                return true;
            }
            Err(found) => word = found,
        }
    }
}

/// Takes the declaration back, unless others have declared themselves asleep on a later sequence.
fn leave<W: BellWords>(words: &W, seen: u32) {
    let mut word = words.asleep();
    loop {
        let Asleep { on, count } = Asleep::of(word);
        if on != seen || count == 0 {
            return;
        }
        let count = count - 1;
        match words.exchange_asleep(word, Asleep { on, count }.word()) {
            Ok(()) => return,
            Err(found) => word = found,
        }
    }
}

/// A sequence and its sleepers in shared memory, and what they cost this side.
#[derive(Debug)]
pub(super) struct WaitPoint {
    sequence: Word32,
    asleep: Word64,
    calls: Calls,
}

/// Calls into the kernel.
#[derive(Debug, Default)]
struct Calls {
    sleeps: AtomicU64,
    wakes: AtomicU64,
}

/// How often one side of a bell has called the kernel: for tests and diagnosis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCalls {
    /// Sleeps in a futex.
    pub sleeps: u64,
    /// Wakes of a futex.
    pub wakes: u64,
}

impl WaitPoint {
    pub(super) fn new(
        region: &Arc<SharedRegion>,
        sequence: u64,
        asleep: u64,
    ) -> Result<Self, MailboxError> {
        Ok(Self {
            sequence: Word32::new(region, sequence)?,
            asleep: Word64::new(region, asleep)?,
            calls: Calls::default(),
        })
    }

    pub(super) fn count_sleep(&self) {
        self.calls.sleeps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_wake(&self) {
        self.calls.wakes.fetch_add(1, Ordering::Relaxed);
    }

    /// The calls that were made through this value.
    pub(super) fn calls(&self) -> KernelCalls {
        KernelCalls {
            sleeps: self.calls.sleeps.load(Ordering::Relaxed),
            wakes: self.calls.wakes.load(Ordering::Relaxed),
        }
    }
}

impl BellWords for WaitPoint {
    fn sequence(&self) -> u32 {
        self.sequence.load(Ordering::SeqCst)
    }

    fn increment(&self) -> u32 {
        self.sequence.fetch_add(1, Ordering::SeqCst)
    }

    fn asleep(&self) -> u64 {
        self.asleep.load(Ordering::SeqCst)
    }

    fn exchange_asleep(&self, old: u64, new: u64) -> Result<(), u64> {
        self.asleep
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .map(drop)
    }

    fn sleep_while(&self, seen: u32, deadline: Instant) {
        self.count_sleep();
        sleep_while(&self.sequence, seen, deadline);
    }

    fn wake_all(&self) {
        self.count_wake();
        wake_all(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Words of one thread, which counts what would be calls into the kernel.
    #[derive(Default)]
    struct Counted {
        sequence: Cell<u32>,
        asleep: Cell<u64>,
        wakes: Cell<u32>,
    }

    impl BellWords for Counted {
        fn sequence(&self) -> u32 {
            self.sequence.get()
        }

        fn increment(&self) -> u32 {
            self.sequence.replace(self.sequence.get().wrapping_add(1))
        }

        fn asleep(&self) -> u64 {
            self.asleep.get()
        }

        fn exchange_asleep(&self, old: u64, new: u64) -> Result<(), u64> {
            assert_eq!(self.asleep.replace(new), old, "there is one thread");
            Ok(())
        }

        fn sleep_while(&self, _seen: u32, _deadline: Instant) {}

        fn wake_all(&self) {
            self.wakes.set(self.wakes.get() + 1);
        }
    }

    #[test]
    fn one_sleep_costs_one_wake_and_no_sleep_none() {
        let words = Counted::default();
        words.sequence.set(u32::MAX - 2);
        for _ in 0..10 {
            ring(&words);
        }
        assert_eq!(words.wakes.get(), 0, "nobody sleeps");
        for round in 1..=3 {
            assert!(enter(&words, words.sequence()));
            assert!(enter(&words, words.sequence()), "a second thread");
            // The sleepers are woken by the first and have not come so far as to say so.
            for _ in 0..10 {
                ring(&words);
            }
            assert_eq!(words.wakes.get(), round);
            let slept_on = words.sequence().wrapping_sub(10);
            leave(&words, slept_on);
            leave(&words, slept_on);
            assert_eq!(Asleep::of(words.asleep()).count, 0);
        }
    }

    #[test]
    fn a_sleeper_that_takes_the_place_of_an_earlier_one_wakes_it() {
        let words = Counted::default();
        let earlier = words.sequence();
        assert!(enter(&words, earlier));
        // The ring is half done: the sequence is another one, and the ringer has not looked for sleepers.
        words.increment();
        assert!(enter(&words, words.sequence()));
        assert_eq!(words.wakes.get(), 1);
        leave(&words, earlier);
        let left = Asleep { on: 1, count: 1 };
        assert_eq!(Asleep::of(words.asleep()), left);
        assert!(!enter(&words, earlier), "what it waits for has happened");
        assert_eq!(Asleep::of(words.asleep()), left);
    }
}
