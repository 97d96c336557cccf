//! How a session comes to its end: one verdict, seen by every thread at once, with a bound on how long the end takes.
//!
//! Threads wait in `poll` on [`Lifeline::bell`] beside their own descriptor: it becomes readable when the end begins and
//! stays so. A watchdog then gives the running task time to finish, interrupts it, and at last ends the process by force
//! (design §15.17: a session ends although its task does not).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_runtime::error::{Interrupt, Interrupted};
use parking_lot::{Condvar, Mutex};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use smallvec::SmallVec;

use crate::segments;

/// How long queued commands may still run after the parent is gone.
const GRACE: Duration = Duration::from_secs(2);
/// How long an interrupted task may take to come back, before the process ends by force.
const INTERRUPT_GRACE: Duration = Duration::from_secs(2);
/// How long the inner worker may take to close, before the process ends by force.
const CLOSE_GRACE: Duration = Duration::from_secs(10);
/// How long the exit handlers of the process may take, before it kills itself.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The parent sent SHUTDOWN.
    Shutdown,
    /// The daemon, or an operator, sent SIGTERM or SIGINT.
    Signal,
    /// The command lane ended without SHUTDOWN.
    Closed,
    /// Nobody connected in time.
    NotConnected,
    /// The command lane broke: a frame that cannot be decoded, of another session, or a connection error.
    Broken(String),
    /// The parent answered no HEALTH frame for so long (`health_echo`): it has stalled, or cannot be reached.
    Silent(Duration),
    /// The parent sent something else than answers on the health lane.
    HealthBroken(String),
}

impl Verdict {
    /// Exit status of the session (contract §10).
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::Shutdown | Self::Signal => 0,
            Self::Closed
            | Self::NotConnected
            | Self::Broken(_)
            | Self::Silent(_)
            | Self::HealthBroken(_) => 1,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the parent ended it"),
            Self::Signal => f.write_str("a signal ended it"),
            Self::Closed => f.write_str("the parent closed the command lane"),
            Self::NotConnected => f.write_str("no parent connected in time"),
            Self::Broken(reason) => write!(f, "the command lane broke: {reason}"),
            Self::Silent(limit) => write!(
                f,
                "the parent answered no HEALTH frame for {limit:?}; it has stalled or cannot be reached"
            ),
            Self::HealthBroken(reason) => write!(f, "the health lane broke: {reason}"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    verdict: Option<Verdict>,
    /// The last command was handled; only the inner worker's close is left.
    closing: bool,
    finished: bool,
}

/// The session's end, shared by its threads.
#[derive(Debug)]
pub(crate) struct Lifeline {
    state: Mutex<State>,
    changed: Condvar,
    interrupted: AtomicBool,
    bell: OwnedFd,
    /// Dropped to ring the bell.
    clapper: Mutex<Option<OwnedFd>>,
}

impl Lifeline {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let (bell, clapper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            interrupted: AtomicBool::new(false),
            bell,
            clapper: Mutex::new(Some(clapper)),
        }))
    }

    /// Begins the end. The first verdict stays.
    pub(crate) fn end(&self, verdict: Verdict) {
        {
            let mut state = self.state.lock();
            if state.verdict.is_some() {
                return;
            }
            state.verdict = Some(verdict.clone());
        }
        drop(self.clapper.lock().take());
        self.changed.notify_all();
        // Here and not when all is closed: a session with a stuck task ends by force before that.
        match &verdict {
            // Nobody else knows of these: the parent is silent, or is the one to blame.
            Verdict::Silent(_) | Verdict::HealthBroken(_) => {
                tracing::error!(%verdict, "the session ends");
            }
            // A parent that breaks the contract, or a connection: somebody has to look.
            Verdict::Broken(_) => tracing::warn!(%verdict, "the session ends"),
            _ => tracing::info!(%verdict, "the session ends"),
        }
    }

    /// The verdict, once there is one.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.state.lock().verdict.clone()
    }

    /// Readable (hung up) from the beginning of the end on.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Waits until `fd` has one of `events`, the end begins, or `deadline` passes.
    pub(crate) fn wait(
        &self,
        fd: BorrowedFd<'_>,
        events: PollFlags,
        deadline: Option<Instant>,
    ) -> std::io::Result<Woken> {
        self.wait_any([fd], events, deadline)
    }

    /// As [`Self::wait`], for any of some descriptors.
    pub(crate) fn wait_any<'a>(
        &'a self,
        fds: impl IntoIterator<Item = BorrowedFd<'a>>,
        events: PollFlags,
        deadline: Option<Instant>,
    ) -> std::io::Result<Woken> {
        let bell = PollFd::from_borrowed_fd(self.bell(), PollFlags::IN);
        let own = fds.into_iter();
        let own = own.map(|fd| PollFd::from_borrowed_fd(fd, events));
        let mut all: SmallVec<[PollFd<'_>; 3]> = std::iter::once(bell).chain(own).collect();
        loop {
            let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            // A duration below 2^63 seconds always converts.
            let timeout = timeout.and_then(|rest| Timespec::try_from(rest).ok());
            match poll(&mut all, timeout.as_ref()) {
                Ok(0) => return Ok(Woken::Deadline),
                Ok(_) => {
                    // The descriptors first: what arrived before the end is still handled.
                    if all[1..].iter().any(|own| !own.revents().is_empty()) {
                        return Ok(Woken::Ready);
                    }
                    if !all[0].revents().is_empty() {
                        return Ok(Woken::Ending);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for the end, at most until `deadline`. True when it has begun.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        self.changed
            .wait_while_until(&mut state, |state| state.verdict.is_none(), deadline);
        state.verdict.is_some()
    }

    /// Called by the main thread when no command runs any more.
    pub(crate) fn closing(&self) {
        self.state.lock().closing = true;
        self.changed.notify_all();
    }

    /// Called by the main thread when everything is closed: lets the watchdog go.
    fn finished(&self) {
        self.state.lock().finished = true;
        self.changed.notify_all();
    }

    /// Waits until `reached`, at most `limit`. True when it was reached.
    fn wait_until(&self, limit: Duration, reached: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state.lock();
        !self
            .changed
            .wait_while_for(&mut state, |state| !reached(state), limit)
            .timed_out()
    }
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The descriptor has the event, or an error.
    Ready,
    /// The session ends.
    Ending,
    /// The deadline passed.
    Deadline,
}

impl Interrupt for Lifeline {
    fn check(&self) -> Result<(), Interrupted> {
        if self.interrupted.load(Ordering::Acquire) {
            return Err(Interrupted);
        }
        Ok(())
    }
}

/// The thread that bounds the end. Joined when it is dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    lifeline: Arc<Lifeline>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn start(lifeline: &Arc<Lifeline>) -> std::io::Result<Self> {
        let watched = Arc::clone(lifeline);
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watch(&watched))?;
        Ok(Self {
            lifeline: Arc::clone(lifeline),
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.lifeline.finished();
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook; the session is over either way.
            let _ = thread.join();
        }
    }
}

fn watch(lifeline: &Lifeline) {
    {
        let mut state = lifeline.state.lock();
        lifeline.changed.wait_while(&mut state, |state| {
            state.verdict.is_none() && !state.finished
        });
    }
    if !lifeline.wait_until(GRACE, |state| state.closing || state.finished) {
        tracing::warn!(grace = ?GRACE, "a task still runs although the session ends; interrupting it");
        lifeline.interrupted.store(true, Ordering::Release);
        if !lifeline.wait_until(INTERRUPT_GRACE, |state| state.closing || state.finished) {
            die(lifeline, "a task did not stop when the session ended");
        }
    }
    if !lifeline.wait_until(CLOSE_GRACE, |state| state.finished) {
        die(lifeline, "the inner worker did not close");
    }
}

/// Ends the process although a thread of it is stuck. Its children end with it: they watch it.
fn die(lifeline: &Lifeline, reason: &str) -> ! {
    tracing::error!(reason, "ending the session by force");
    if let Some(owner) = segments::Owner::this_process() {
        segments::sweep(&owner);
    }
    // Exit handlers may wait for the thread that is stuck. Without the second thread they get no bound; better than none.
    let _ = std::thread::Builder::new()
        .name("last".to_owned())
        .spawn(|| {
            // Nothing is waited for: the process ends under this thread, or it ends the process.
            std::thread::park_timeout(EXIT_GRACE);
            // Cannot fail: the signal is valid and the target is this process.
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        });
    std::process::exit(
        lifeline
            .verdict()
            .map_or(1, |verdict| verdict.exit_code().max(1)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_verdict_stays_and_rings_every_waiter() {
        let lifeline = Lifeline::new().expect("pipe");
        let (idle, _writer) = rustix::pipe::pipe().expect("pipe");
        let now = Instant::now();
        assert_eq!(
            lifeline
                .wait(idle.as_fd(), PollFlags::IN, Some(now))
                .expect("poll"),
            Woken::Deadline
        );
        lifeline.end(Verdict::Shutdown);
        lifeline.end(Verdict::Closed);
        assert_eq!(lifeline.verdict(), Some(Verdict::Shutdown));
        for _ in 0..2 {
            assert_eq!(
                lifeline
                    .wait(idle.as_fd(), PollFlags::IN, None)
                    .expect("poll"),
                Woken::Ending
            );
        }
        assert!(lifeline.wait_for_end(now));
    }

    #[test]
    fn what_arrived_is_seen_before_the_end() {
        let lifeline = Lifeline::new().expect("pipe");
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        rustix::io::write(&writer, b"x").expect("write");
        lifeline.end(Verdict::Closed);
        assert_eq!(
            lifeline
                .wait(reader.as_fd(), PollFlags::IN, None)
                .expect("poll"),
            Woken::Ready
        );
    }

    #[test]
    fn only_a_wanted_end_is_a_success() {
        let codes = [
            Verdict::Shutdown,
            Verdict::Signal,
            Verdict::Closed,
            Verdict::NotConnected,
        ]
        .map(|v| v.exit_code());
        assert_eq!(codes, [0, 0, 1, 1]);
        assert_eq!(Verdict::Broken(String::new()).exit_code(), 1);
        assert_eq!(Verdict::Silent(Duration::ZERO).exit_code(), 1);
    }

    #[test]
    fn a_session_that_closes_in_time_is_left_alone() {
        let lifeline = Lifeline::new().expect("pipe");
        let watchdog = Watchdog::start(&lifeline).expect("thread");
        lifeline.end(Verdict::Closed);
        lifeline.closing();
        drop(watchdog);
        assert!(lifeline.check().is_ok());
    }
}
