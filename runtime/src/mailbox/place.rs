//! Which cores the two sides of a hand-over are on.
//!
//! The kernel likes to wake somebody where its waker runs: on a virtual machine always, when the other core's processor is not
//! scheduled by the host (it counts a halted one as preempted). Waker and woken are on one core then, and a waiter that spins there
//! keeps the one that it waits for from running. So each side says in shared memory where it waits, and
//!
//! * a waiter whose other side was last seen on its own core sleeps at once: two switches, about 5 µs, and no other core is woken;
//! * a child that has found its parent on its own core for a while, in quick succession, moves away ([`Company`]). Apart, both spin
//!   and a hand-over costs no call into the kernel.
//!
//! All of it is advice: a wrong word costs microseconds and nothing else.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sched::sched_getcpu;
use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};

use super::Word32;

/// In a word: a core is not known yet.
const UNKNOWN: u32 = 0;
/// In a word: its thread is on its way to another core, which has to be woken for it: tens of microseconds.
const MOVING: u32 = u32::MAX;

/// Waits in a row on one core after which a child moves. A move costs what some twenty of them gain.
const STREAK: u32 = 16;
/// With each move that did not last, more of them are asked for, up to this.
const STREAK_MAX: u32 = 1 << 14;
/// Between two waits of a row at most. Whoever waits less often has nothing to gain from a core of its own.
const ROW_GAP: Duration = Duration::from_micros(200);
/// A move that is followed by the next one this soon has not paid off.
const LASTING: Duration = Duration::from_millis(5);

/// Where the side is whose move ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Near {
    /// On another core, as far as is known.
    Apart,
    /// On this core.
    Here,
    /// On its way to another core.
    Moving,
}

/// The word in which one side says where it waits.
#[derive(Clone, Debug)]
pub(super) struct Spot(Word32);

impl Spot {
    pub(super) fn new(word: Word32) -> Self {
        Self(word)
    }

    /// Says that its thread is here. Only that thread writes it.
    pub(super) fn note(&self) {
        let here = core();
        if self.0.load(Ordering::Relaxed) != here {
            self.0.store(here, Ordering::Relaxed);
        }
    }

    /// Where the thread of this word is, seen from the caller's core.
    pub(super) fn seen(&self) -> Near {
        match self.0.load(Ordering::Relaxed) {
            UNKNOWN => Near::Apart,
            MOVING => Near::Moving,
            word if word == core() => Near::Here,
            _ => Near::Apart,
        }
    }

    /// Nobody is there any more.
    pub(super) fn clear(&self) {
        self.0.store(UNKNOWN, Ordering::Relaxed);
    }
}

/// The caller's core, as it stands in a word.
fn core() -> u32 {
    // Through the C library, which reads it from its own memory. Cores are far fewer than u32 has numbers.
    sched_getcpu().map_or(UNKNOWN, |core| (core as u32).wrapping_add(1))
}

/// How a child gets along with its parent on one core, and when it goes.
#[derive(Debug)]
pub(super) struct Company {
    spot: Spot,
    row: Row,
}

impl Company {
    pub(super) fn new(spot: Spot) -> Self {
        Self {
            spot,
            row: Row::new(Instant::now()),
        }
    }

    /// The child is about to wait for `parent`. Says where that is, after the child has moved if it is time to. `is_room` says whether there
    /// is a core for it.
    pub(super) fn arrive(&mut self, parent: &Spot, is_room: impl FnOnce() -> bool) -> Near {
        self.spot.note();
        if parent.seen() != Near::Here {
            self.row.apart();
            return Near::Apart;
        }
        if !self.row.together(Instant::now()) || !is_room() {
            return Near::Here;
        }
        self.spot.0.store(MOVING, Ordering::Relaxed);
        step_aside();
        self.spot.note();
        parent.seen()
    }

    /// The child is awake, perhaps elsewhere.
    pub(super) fn woke(&self) {
        self.spot.note();
    }
}

/// Has the caller go on on another core, if it may use one, and then gives it back the cores that it had: what user code or a
/// thread of it inherits is never narrowed, because this thread runs nothing else in between.
fn step_aside() {
    let (Ok(allowed), Ok(here)) = (sched_getaffinity(None), sched_getcpu()) else {
        return;
    };
    let mut others = allowed;
    if here < CpuSet::MAX_CPU {
        others.unset(here);
    }
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        // It was allowed a moment ago. Should somebody have narrowed it meanwhile, the kernel keeps to what is possible.
        let _ = sched_setaffinity(None, &allowed);
    }
}

/// True when child and parent can have a core each: of the threads that want to run now, `known` are theirs.
pub(super) fn is_room(cores: u32, known: u32) -> bool {
    let Ok(text) = std::fs::read_to_string("/proc/loadavg") else {
        return true;
    };
    let running = text.split_ascii_whitespace().nth(3);
    let running = running.and_then(|field| field.split('/').next()?.parse::<u32>().ok());
    running.is_none_or(|running| running.saturating_sub(known).saturating_add(2) <= cores)
}

/// Waits in a row on one core, and how many are enough.
#[derive(Debug)]
struct Row {
    count: u32,
    enough: u32,
    began: Instant,
    last: Instant,
    moved: Instant,
}

impl Row {
    fn new(now: Instant) -> Self {
        Self {
            count: 0,
            enough: STREAK,
            began: now,
            last: now,
            moved: now,
        }
    }

    fn apart(&mut self) {
        self.count = 0;
    }

    /// One more wait on one core; true when it is time to go.
    fn together(&mut self, now: Instant) -> bool {
        if self.count == 0 || now.saturating_duration_since(self.last) >= ROW_GAP {
            self.count = 0;
            self.began = now;
        }
        self.last = now;
        self.count += 1;
        if self.count < self.enough {
            return false;
        }
        let lasted = self.began.saturating_duration_since(self.moved) >= LASTING;
        self.enough = if lasted {
            STREAK
        } else {
            (self.enough * 2).min(STREAK_MAX)
        };
        self.count = 0;
        self.moved = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// How many waits, `gap` apart, it takes until it is time to go.
    fn until_it_goes(row: &mut Row, now: &mut Instant, gap: Duration, most: u32) -> Option<u32> {
        (1..=most).find(|_| {
            *now += gap;
            row.together(*now)
        })
    }

    #[test]
    fn a_quick_row_on_one_core_ends_in_a_move_and_a_slow_one_never() {
        let start = Instant::now();
        let (mut row, mut now) = (Row::new(start), start + LASTING);
        assert_eq!(until_it_goes(&mut row, &mut now, ROW_GAP, 10_000), None);
        now += ROW_GAP;
        for _ in 0..STREAK - 1 {
            assert!(!row.together(now));
            now += MICRO;
        }
        row.apart();
        now += LASTING;
        assert_eq!(
            until_it_goes(&mut row, &mut now, MICRO, 10_000),
            Some(STREAK)
        );
    }

    #[test]
    fn moves_that_do_not_last_become_rare_and_one_that_does_ends_that() {
        let start = Instant::now();
        let (mut row, mut now) = (Row::new(start), start + LASTING);
        let mut needed = Vec::new();
        for _ in 0..14 {
            needed.extend(until_it_goes(&mut row, &mut now, MICRO, 2 * STREAK_MAX));
        }
        assert_eq!(needed[..4], [STREAK, STREAK, 2 * STREAK, 4 * STREAK]);
        assert_eq!(needed[12..], [STREAK_MAX, STREAK_MAX]);
        now += LASTING;
        needed.clear();
        for _ in 0..2 {
            needed.extend(until_it_goes(&mut row, &mut now, MICRO, 2 * STREAK_MAX));
        }
        assert_eq!(needed, [STREAK_MAX, STREAK]);
    }

    #[test]
    fn whoever_steps_aside_keeps_all_its_cores() {
        let before = sched_getaffinity(None).unwrap();
        step_aside();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
