//! Who reads a lane: the thread that wants its bytes, or the one that stands by for it (leader and followers).
//!
//! Each hand-over from a thread that reads to one that waits costs a wake-up, and that is most of what a small task costs. So the
//! *first hand*, the thread that can use what comes (a waiter of the parent, the main thread of a session), reads the lane itself
//! while it has nothing else to do. The *second hand*, a thread of the lane, reads while the first one is away: while a task
//! runs, or while the parent's script computes. It costs no wake-up at all in between:
//!
//! * while the first hand comes and goes, the second one naps for [`NAP`] at a time and sees that it was there;
//! * when nobody was there for a whole nap, it takes the lane over and sleeps in the kernel until something arrives;
//! * when the first hand comes back, it recalls the second one, once;
//! * when the first hand itself sleeps at the lane for longer than a nap, the second one sleeps too, until it is called.
//!
//! So the lane is read at the latest one nap after it was left, an idle process does nothing, and a stream of short tasks costs
//! the second hand a look at a counter now and then. Who may read is not decided here: whoever has the reader's lock may, and two
//! that wait for one socket only wake up in vain.

use std::time::{Duration, Instant};

use super::sync::{AtomicBool, AtomicU32, Condvar, Mutex, Ordering, Recall, Signal};

/// How long a lane may be left alone before the second hand takes it over.
pub const NAP: Duration = Duration::from_micros(500);

/// The relay of one lane.
#[derive(Debug)]
pub struct Relay {
    /// First hands at the lane.
    inside: AtomicU32,
    /// Grows whenever a first hand has been there.
    visits: AtomicU32,
    /// The second hand has the lane.
    taken: AtomicBool,
    /// The second hand sleeps until it is called.
    asleep: AtomicBool,
    news: Mutex<News>,
    bed: Condvar,
    recall: Signal,
    /// `recall` was written to and perhaps not read. Set after each write, cleared before each read, so that a descriptor which is
    /// readable is always found to be so.
    rung: AtomicBool,
}

/// What the second hand is told in bed.
#[derive(Debug, Default)]
struct News {
    /// It is to look at the world again.
    called: bool,
    /// The first hand, at whose side it slept, has left the lane, perhaps only for a moment.
    left: bool,
}

/// What the second hand is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Read, until it [is wanted back](Relay::is_recalled).
    Read,
    /// It was called, or its time has come: look at the world and stand by again.
    Look,
}

impl Relay {
    /// A relay with nobody at the lane.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            inside: AtomicU32::new(0),
            visits: AtomicU32::new(0),
            taken: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            news: Mutex::new(News::default()),
            bed: Condvar::new(),
            recall: Signal::new()?,
            rung: AtomicBool::new(false),
        })
    }

    // --- the first hand ---

    /// Comes to the lane. The second hand goes away, if it is there.
    pub fn enter(&self) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        if self.taken.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Leaves the lane.
    pub fn leave(&self) {
        self.visit();
        self.inside.fetch_sub(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.news.lock().left = true;
            self.bed.notify_one();
        }
    }

    /// The lane was looked at in passing, and will be again. The second hand goes back to its naps.
    pub fn pass_by(&self) {
        self.visit();
        self.leave_behind();
    }

    /// Something was left to be written by whoever is at the lane next: the second hand, if it is there, goes back to its naps
    /// and comes again.
    pub fn leave_behind(&self) {
        if self.taken.load(Ordering::SeqCst) {
            self.call();
        }
    }

    fn visit(&self) {
        self.visits.fetch_add(1, Ordering::Relaxed);
    }

    /// True when somebody will be at the lane within a nap: nobody is there now, and the second hand only naps. What can wait so
    /// long can be left to them.
    #[must_use]
    pub fn is_soon(&self) -> bool {
        !self.taken.load(Ordering::SeqCst) && self.inside.load(Ordering::SeqCst) == 0
    }

    /// Makes the second hand look at the world: the lane is to end, or there is something to write.
    pub fn call(&self) {
        self.news.lock().called = true;
        self.bed.notify_one();
        if self.taken.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    pub(super) fn ring(&self) {
        self.recall.set();
        self.rung.store(true, Ordering::SeqCst);
    }

    // --- the second hand ---

    /// Sleeps until the lane was left alone for a nap, a [`Self::call`], or `until`.
    pub fn stand_by(&self, until: Instant) -> Turn {
        let mut news = self.news.lock();
        loop {
            let before = self.visits.load(Ordering::Relaxed);
            if !news.called {
                let nap = until.min(Instant::now() + NAP);
                self.bed.wait_until(&mut news, nap);
            }
            if std::mem::take(&mut news.called) || Instant::now() >= until {
                return Turn::Look;
            }
            if self.visits.load(Ordering::Relaxed) != before {
                continue;
            }
            if self.take() {
                return Turn::Read;
            }
            news.left = false;
            self.asleep.store(true, Ordering::SeqCst);
            // Whoever leaves from now on says so; whoever came and went since is seen to have been here.
            while self.inside.load(Ordering::SeqCst) > 0
                && !(news.left || news.called || Instant::now() >= until)
            {
                self.bed.wait_until(&mut news, until);
            }
            self.asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Takes the lane, unless a first hand is there.
    fn take(&self) -> bool {
        self.taken.store(true, Ordering::SeqCst);
        if self.inside.load(Ordering::SeqCst) > 0 {
            self.give_back();
            return false;
        }
        true
    }

    /// True when a first hand has come, or somebody called: [`Self::give_back`] what was taken. Otherwise [`Self::recall`] is
    /// not readable any more on behalf of one that came and went meanwhile.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        // Whoever rings has come before, so it is looked for again after its ring was taken away.
        self.is_wanted() || (self.forget_rings() && self.is_wanted())
    }

    fn is_wanted(&self) -> bool {
        self.inside.load(Ordering::SeqCst) > 0 || self.news.lock().called
    }

    /// Makes [`Self::recall`] unreadable; true when it was readable.
    fn forget_rings(&self) -> bool {
        let rung = self.rung.swap(false, Ordering::SeqCst);
        if rung {
            self.recall.clear();
        }
        rung
    }

    /// Readable when [`Self::is_recalled`] may have become true.
    #[must_use]
    pub fn recall(&self) -> Recall<'_> {
        self.recall.borrow()
    }

    /// Does not read any more.
    pub fn give_back(&self) {
        self.taken.store(false, Ordering::SeqCst);
        self.forget_rings();
    }
}
