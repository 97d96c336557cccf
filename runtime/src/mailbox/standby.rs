//! Who wakes up for a bell while nobody waits at it: one thread that stands by, the driver of a `Worker`.
//!
//! It is woken when something is rung and nobody is present to see it, and when somebody who was present goes without having seen
//! all of it. So as long as threads wait, whatever is rung costs one wake at most, theirs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Instant;

use super::futex::{sleep_while, wake_all};
use super::layout::{BELL_ASLEEP, BELL_PRESENT, BELL_SEQUENCE, BELL_STANDBY};
use super::wake::{ring, BellWords, WaitPoint};
use super::{MailboxError, Word32};
use crate::memory::SharedRegion;

/// The words of a bell beside those: who is there to see what is rung, and one that stands by for when nobody is. Sequentially
/// consistent, too.
pub trait StandbyWords: BellWords {
    /// How many are there: each sees what is rung while it stays, asleep or not.
    fn present(&self) -> u32;
    /// One more has come.
    fn come(&self);
    /// One has gone; true when it was the last.
    fn go(&self) -> bool;
    /// How often whoever stands by was called, whoever was present.
    fn alarms(&self) -> u32;
    /// One more call.
    fn add_alarm(&self);
    /// Whether somebody stands by.
    fn stands_by(&self) -> bool;
    /// Declares the caller to stand by, or not any more. There is one that does.
    fn set_standby(&self, stands_by: bool);
    /// Has whoever stands by not do so any more; true for the one that ended it.
    fn end_standby(&self) -> bool;
    /// Sleeps while the caller stands by, which is compared while wakers are locked out; may return early.
    fn sleep_standing_by(&self, deadline: Instant);
    /// Wakes whoever stood by.
    fn wake_standby(&self);
}

/// As [`ring`]. When nobody is present, also whoever stands by wakes up.
pub fn ring_bell<W: StandbyWords>(words: &W) {
    ring(words);
    if words.stands_by() && words.present() == 0 {
        end_standby(words);
    }
}

/// Announces something that concerns whoever stands by, whoever is present.
pub fn alarm<W: StandbyWords>(words: &W) {
    words.add_alarm();
    ring(words);
    end_standby(words);
}

fn end_standby<W: StandbyWords>(words: &W) {
    if words.end_standby() {
        words.wake_standby();
    }
}

/// One that was present goes. It has seen all that was rung before the sequence was `seen`; if that is not all and nobody else is
/// there, whoever stands by wakes up.
pub fn leave_present<W: StandbyWords>(words: &W, seen: u32) {
    if words.go() && words.stands_by() && words.sequence() != seen {
        end_standby(words);
    }
}

/// Sleeps until something is rung after `seen` while nobody is present, until there is an alarm more than `alarms`, or `deadline`.
pub fn stand_by<W: StandbyWords>(words: &W, seen: u32, alarms: u32, deadline: Instant) {
    words.set_standby(true);
    while words.stands_by()
        && words.alarms() == alarms
        && (words.sequence() == seen || words.present() > 0)
        && Instant::now() < deadline
    {
        words.sleep_standing_by(deadline);
    }
    words.set_standby(false);
}

/// The words of a bell in shared memory.
#[derive(Debug)]
pub(super) struct BellPoint {
    pub(super) point: WaitPoint,
    present: Word32,
    standby: Word32,
    /// They come from this process only.
    alarms: AtomicU32,
    /// As `present`, where no child can write: only threads of this process are ever present.
    here: AtomicU32,
}

impl BellPoint {
    pub(super) fn new(region: &Arc<SharedRegion>) -> Result<Self, MailboxError> {
        Ok(Self {
            point: WaitPoint::new(region, BELL_SEQUENCE, BELL_ASLEEP)?,
            present: Word32::new(region, BELL_PRESENT)?,
            standby: Word32::new(region, BELL_STANDBY)?,
            alarms: AtomicU32::new(0),
            here: AtomicU32::new(0),
        })
    }

    /// Sets the shared count right when nobody is here: a child can have written anything there, and whatever is rung would wake
    /// nobody any more.
    fn mend_present(&self) {
        // In this order, and the other one in `come` and `go`: whoever comes meanwhile is in the shared count or still seen here.
        let shared = self.present.load(Ordering::SeqCst);
        if shared != 0 && self.here.load(Ordering::SeqCst) == 0 {
            let _ = self
                .present
                .compare_exchange(shared, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}

impl BellWords for BellPoint {
    fn sequence(&self) -> u32 {
        self.point.sequence()
    }

    fn increment(&self) -> u32 {
        self.point.increment()
    }

    fn asleep(&self) -> u64 {
        self.point.asleep()
    }

    fn exchange_asleep(&self, old: u64, new: u64) -> Result<(), u64> {
        self.point.exchange_asleep(old, new)
    }

    fn sleep_while(&self, seen: u32, deadline: Instant) {
        self.point.sleep_while(seen, deadline);
    }

    fn wake_all(&self) {
        self.point.wake_all();
    }
}

impl StandbyWords for BellPoint {
    fn present(&self) -> u32 {
        self.present.load(Ordering::SeqCst)
    }

    fn come(&self) {
        self.here.fetch_add(1, Ordering::SeqCst);
        self.present.fetch_add(1, Ordering::SeqCst);
    }

    fn go(&self) -> bool {
        let last = self.present.fetch_sub(1, Ordering::SeqCst) == 1;
        self.here.fetch_sub(1, Ordering::SeqCst);
        last
    }

    fn alarms(&self) -> u32 {
        self.alarms.load(Ordering::SeqCst)
    }

    fn add_alarm(&self) {
        self.alarms.fetch_add(1, Ordering::SeqCst);
    }

    fn stands_by(&self) -> bool {
        self.standby.load(Ordering::SeqCst) != 0
    }

    fn set_standby(&self, stands_by: bool) {
        if stands_by {
            self.mend_present();
        }
        self.standby.store(u32::from(stands_by), Ordering::SeqCst);
    }

    fn end_standby(&self) -> bool {
        self.standby.swap(0, Ordering::SeqCst) != 0
    }

    fn sleep_standing_by(&self, deadline: Instant) {
        self.point.count_sleep();
        sleep_while(&self.standby, 1, deadline);
    }

    fn wake_standby(&self) {
        self.point.count_wake();
        wake_all(&self.standby);
    }
}
