//! What a waiter looks at beside the bell: the sockets of sessions, which ring nothing by themselves.
//!
//! A session's answer would wake the thread of its lane, and that one the waiter: two sleeps in the kernel. So the waiter itself
//! reads (leader and followers): one at a time leads, spins at the sockets and at the bell, and sleeps in one `poll` over the
//! sockets where something is awaited and a descriptor for whoever rings in this process. The others sleep at the bell; whatever
//! the leader reads, it rings for them.
//!
//! Another process, a child, rings with a futex, which no `poll` sees. While a child owes an answer (or may be the next to say
//! something), nobody sleeps in `poll`: everybody sleeps at the bell, and the threads of the lanes read, as they do when nobody waits.
//! Whoever gives a child something to do [kicks](Beside::kick), so that a leader in its sleep learns of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use smallvec::SmallVec;

use super::spin::{SpinHistory, SpinSlots, PREEMPTED, SPIN_LIMIT};

/// Spins at something else than a bell, e.g. a socket: with the slots of the same tree of workers, and a history of its own.
#[derive(Debug)]
pub struct Spinner {
    slots: SpinSlots,
    history: SpinHistory,
}

impl Spinner {
    pub(super) fn new(slots: SpinSlots) -> Self {
        Self {
            slots,
            history: SpinHistory::new(),
        }
    }

    /// Calls `look` over and over, for as long as that is promising. True as soon as it says so.
    pub fn spin(&self, mut look: impl FnMut() -> bool) -> bool {
        if self.slots.is_empty() || !self.history.is_worth_it() {
            return false;
        }
        let Some(_slot) = self.slots.take() else {
            return false;
        };
        let start = Instant::now();
        loop {
            let found = look();
            let spent = start.elapsed();
            if found || spent >= SPIN_LIMIT {
                self.history.note(found && spent < PREEMPTED);
                return found;
            }
        }
    }
}

/// How often a bell was rung, and kicked, before its waiter looked for events.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub(super) rung: u32,
    pub(super) kicked: u32,
}

impl Seen {
    /// The bell's value then.
    #[must_use]
    pub fn rung(self) -> u32 {
        self.rung
    }
}

/// Something that a waiter reads itself.
pub trait Source: Send + Sync {
    /// A waiter comes to read. False when nothing is awaited here; then it does not stay.
    fn enter(&self) -> bool;
    /// It goes away.
    fn leave(&self);
    /// Reads what is there. True when there may be an event.
    fn look(&self) -> bool;
    /// As `look`, by somebody who only passes by, and lets go of what waits to be written.
    fn glance(&self) -> bool;
    /// What to poll, and for what.
    fn interest(&self) -> (BorrowedFd<'_>, PollFlags);
}

/// Time between two glances of threads that pass by.
const GLANCE_PERIOD: Duration = Duration::from_micros(50);

type Sources = SmallVec<[Arc<dyn Source>; 4]>;

/// The part of a bell that belongs to one process.
#[derive(Default)]
pub(super) struct Beside {
    sources: RwLock<Vec<Weak<dyn Source>>>,
    any: AtomicBool,
    leader: Mutex<()>,
    /// When somebody last glanced; only ever tried for.
    glanced: Mutex<Option<Instant>>,
    /// Leaders asleep in `poll`.
    polling: AtomicU32,
    /// Grows with each ring and kick of this process.
    kicks: AtomicU32,
    event: OnceLock<OwnedFd>,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beside").finish_non_exhaustive()
    }
}

/// The sources where a leader is.
struct Inside(Sources);

impl Drop for Inside {
    fn drop(&mut self) {
        for source in &self.0 {
            source.leave();
        }
    }
}

impl Beside {
    /// Adds a source. One that is gone is forgotten.
    pub(super) fn add(&self, source: Weak<dyn Source>) -> std::io::Result<()> {
        if self.event.get().is_none() {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            // Somebody else may have been quicker.
            let _ = self.event.set(event);
        }
        let mut sources = self.sources.write();
        sources.retain(|source| source.strong_count() > 0);
        sources.push(source);
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    /// True once there was a source.
    pub(super) fn has_sources(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Wakes a leader that sleeps in `poll`.
    pub(super) fn kick(&self) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        self.kicks.fetch_add(1, Ordering::SeqCst);
        if self.polling.load(Ordering::SeqCst) > 0 {
            if let Some(event) = self.event.get() {
                // A full counter means that it is readable already.
                let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
            }
        }
    }

    /// For a thread that submits and does not wait: reads what is there, now and then, so that no other thread has to wake up for
    /// it. True when there may be events.
    pub(super) fn glance(&self) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let Some(mut glanced) = self.glanced.try_lock() else {
            return false;
        };
        let now = Instant::now();
        if glanced.is_some_and(|last| now.saturating_duration_since(last) < GLANCE_PERIOD) {
            return false;
        }
        *glanced = Some(now);
        let sources = self.sources.read();
        let sources = sources.iter().filter_map(Weak::upgrade);
        sources.fold(false, |any, source| source.glance() | any)
    }

    /// Present number of kicks: take it before looking for events.
    pub(super) fn kicks(&self) -> u32 {
        self.kicks.load(Ordering::SeqCst)
    }

    /// Leads, if there is something to read and nobody else does. `rung` looks at the bell, `spin` calls what it is given for as
    /// long as spinning is promising. `None` when there is nothing to lead: wait at the bell.
    pub(super) fn lead(
        &self,
        kicks: u32,
        deadline: Instant,
        rung: impl Fn() -> bool,
        spin: impl FnOnce(&mut dyn FnMut() -> bool) -> bool,
    ) -> Option<bool> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let _leader = self.leader.try_lock()?;
        let inside = Inside(self.awaited());
        let sources = &inside.0;
        if sources.is_empty() {
            return None;
        }
        let mut look = || {
            rung()
                | sources
                    .iter()
                    .fold(false, |any, source| source.look() | any)
        };
        if rung() || spin(&mut look) {
            return Some(true);
        }
        self.polling.fetch_add(1, Ordering::SeqCst);
        if self.kicks() == kicks && !rung() {
            self.sleep(sources, deadline);
        }
        self.polling.fetch_sub(1, Ordering::SeqCst);
        Some(look() || self.kicks() != kicks)
    }

    fn awaited(&self) -> Sources {
        let sources = self.sources.read();
        let sources = sources.iter().filter_map(Weak::upgrade);
        sources.filter(|source| source.enter()).collect()
    }

    fn sleep(&self, sources: &Sources, deadline: Instant) {
        let Some(event) = self.event.get() else {
            return;
        };
        let mut fds: SmallVec<[PollFd<'_>; 5]> = sources
            .iter()
            .map(|source| {
                let (fd, flags) = source.interest();
                PollFd::from_borrowed_fd(fd, flags)
            })
            .collect();
        fds.push(PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN));
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left.min(Duration::from_secs(3600))).ok();
        // An interrupted poll is a spurious wake: the caller looks at everything again.
        let _ = poll(&mut fds, left.as_ref());
        if fds.last().is_some_and(|event| !event.revents().is_empty()) {
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// A pipe whose bytes are events.
    struct Pipe {
        reader: OwnedFd,
        writer: OwnedFd,
        inside: AtomicUsize,
        awaited: AtomicBool,
    }

    impl Source for Pipe {
        fn enter(&self) -> bool {
            let awaited = self.awaited.load(Ordering::SeqCst);
            self.inside
                .fetch_add(usize::from(awaited), Ordering::SeqCst);
            awaited
        }

        fn leave(&self) {
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }

        fn look(&self) -> bool {
            rustix::io::read(&self.reader, &mut [0; 8]).is_ok_and(|count| count > 0)
        }

        fn glance(&self) -> bool {
            self.look()
        }

        fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
            (self.reader.as_fd(), PollFlags::IN)
        }
    }

    fn pipe(awaited: bool) -> Arc<Pipe> {
        let flags = rustix::pipe::PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
        Arc::new(Pipe {
            reader,
            writer,
            inside: AtomicUsize::new(0),
            awaited: AtomicBool::new(awaited),
        })
    }

    fn beside(pipes: &[&Arc<Pipe>]) -> Arc<Beside> {
        let beside = Beside::default();
        for pipe in pipes {
            let source: Arc<dyn Source> = Arc::clone(*pipe) as Arc<dyn Source>;
            beside.add(Arc::downgrade(&source)).unwrap();
        }
        Arc::new(beside)
    }

    fn lead(beside: &Beside, kicks: u32, deadline: Instant) -> Option<bool> {
        beside.lead(kicks, deadline, || false, |_| false)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn only_what_is_awaited_is_looked_at() {
        let none = Beside::default();
        assert_eq!(lead(&none, 0, soon()), None);
        let (quiet, busy) = (pipe(false), pipe(true));
        let beside = beside(&[&quiet, &busy]);
        for pipe in [&quiet, &busy] {
            rustix::io::write(&pipe.writer, b"x").unwrap();
        }
        assert_eq!(lead(&beside, 0, soon()), Some(true));
        assert!(quiet.look() && !busy.look());
        assert_eq!(lead(&beside, 0, Instant::now()), Some(false));
        assert_eq!(busy.inside.load(Ordering::SeqCst), 0);
        busy.awaited.store(false, Ordering::SeqCst);
        assert_eq!(lead(&beside, 0, soon()), None);
    }

    /// A kick between the look for events and the sleep, and one in the sleep.
    #[test]
    fn r_092_no_kick_is_missed() {
        let busy = pipe(true);
        let beside = beside(&[&busy]);
        let kicks = beside.kicks();
        beside.kick();
        assert_eq!(lead(&beside, kicks, soon()), Some(true));
        let kicks = beside.kicks();
        let far = Arc::clone(&beside);
        let kicker = std::thread::spawn(move || {
            while far.polling.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            far.kick();
        });
        assert_eq!(lead(&beside, kicks, soon()), Some(true));
        kicker.join().unwrap();
    }

    #[test]
    fn one_leads_and_a_source_that_is_gone_is_forgotten() {
        let busy = pipe(true);
        let beside = beside(&[&busy]);
        let leading = beside.leader.lock();
        assert_eq!(lead(&beside, 0, soon()), None);
        drop(leading);
        drop(busy);
        assert_eq!(lead(&beside, 0, soon()), None);
    }
}
