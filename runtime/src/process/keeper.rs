//! The thread that starts, watches and reaps all children of a `Worker` or of a daemon.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Sender};
use parking_lot::Mutex;
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::{retry_on_intr, Errno};
use rustix::process::{pidfd_open, waitid, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::adopted::end_orphans;
use super::child::ChildState;
use super::fds::occupy_standard_numbers;
use super::spawn::spawn;
use super::zygote::{Nursery, OwnZygote, Way};
use super::{ChildHandle, ChildSpec, ExitInfo, ProcessError};
use crate::failpoint::{hit, Injected};

/// Called once, on the keeper's thread, when a child has ended: must be brief.
pub type OnExit = Box<dyn FnOnce(ExitInfo) + Send>;

/// The keeper looks around at least so often, even if nobody rings.
const RECHECK: Duration = Duration::from_secs(60);
/// Of the time that stopping may take, children have at most this much to end after SIGTERM.
const TERM_GRACE_MAX: Duration = Duration::from_secs(2);
/// A keeper that is dropped without `stop` gives its children this long.
const DROP_BOUND: Duration = Duration::from_secs(2);

struct Wanted {
    spec: ChildSpec,
    on_exit: OnExit,
    reply: Sender<Result<ChildHandle, ProcessError>>,
}

enum Request {
    /// A child like this will be wanted soon.
    Prepare(Box<ChildSpec>),
    Spawn(Box<Wanted>),
    Stop {
        deadline: Instant,
        reply: Sender<Vec<String>>,
    },
}

struct Shared {
    requests: Mutex<VecDeque<Request>>,
    bell: OwnedFd,
}

impl Shared {
    fn post(&self, request: Request) -> Result<(), ProcessError> {
        self.requests.lock().push_back(request);
        retry_on_intr(|| rustix::io::write(&self.bell, &1_u64.to_ne_bytes()))
            .map(drop)
            .or_else(|errno| {
                if errno == Errno::AGAIN {
                    Ok(())
                } else {
                    Err(errno)
                }
            })
            .map_err(ProcessError::os("write(eventfd)"))
    }
}

/// Starts children and watches them, in one thread that lives as long as this value.
pub struct Keeper {
    shared: Arc<Shared>,
    /// `None` once it was stopped.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ProcessError::Os`].
    pub fn start() -> Result<Self, ProcessError> {
        Self::start_with(None)
    }

    /// Starts the thread, with the zygote that this process forked off when it had no threads yet.
    ///
    /// # Errors
    /// [`ProcessError::Os`].
    pub fn start_with(own: Option<OwnZygote>) -> Result<Self, ProcessError> {
        Self::start_as(false, own)
    }

    pub(super) fn start_as(adopts: bool, own: Option<OwnZygote>) -> Result<Self, ProcessError> {
        occupy_standard_numbers();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(ProcessError::os("eventfd"))?;
        let shared = Arc::new(Shared {
            requests: Mutex::new(VecDeque::new()),
            bell,
        });
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("echelon-keeper".into())
            .spawn(move || {
                let (nursery, leader) = Nursery::new(own);
                Watch {
                    shared: watched,
                    children: leader.into_iter().map(|leader| (leader, None)).collect(),
                    nursery,
                    waiting: VecDeque::new(),
                    adopts,
                    has_orphans: false,
                }
                .run()
            })
            .map_err(|source| ProcessError::Os {
                call: "thread",
                source,
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Says that children like this will be wanted soon: if a zygote forks such, it comes up meanwhile. Nothing is waited for.
    pub fn prepare(&self, spec: ChildSpec) {
        if self.thread.lock().is_some() {
            // A bell that cannot be rung is noticed by whoever wants the child.
            let _ = self.shared.post(Request::Prepare(Box::new(spec)));
        }
    }

    /// Starts a child. `on_exit` is called once, when it has ended and was reaped.
    ///
    /// # Errors
    /// [`ProcessError::Spawn`] with what the system says of the program, [`ProcessError::Stopped`] after
    /// [`Keeper::stop`], [`ProcessError::Os`].
    pub fn spawn(&self, spec: ChildSpec, on_exit: OnExit) -> Result<ChildHandle, ProcessError> {
        let (reply, answer) = bounded(1);
        {
            // Held so that the thread cannot be stopped between the look and the request.
            let thread = self.thread.lock();
            if thread.is_none() {
                return Err(ProcessError::Stopped);
            }
            self.shared.post(Request::Spawn(Box::new(Wanted {
                spec,
                on_exit,
                reply,
            })))?;
        }
        // fork and exec are not ours to bound; the thread answers or ends, and both wake us.
        answer.recv().unwrap_or(Err(ProcessError::Stopped))
    }

    /// Ends all children: SIGTERM to each, a bounded wait, SIGKILL to the groups, and reaps them. Ends the thread. Idempotent.
    ///
    /// # Errors
    /// [`ProcessError::Survivors`] naming those that were not gone at `deadline`; a later call tries again.
    pub fn stop(&self, deadline: Instant) -> Result<(), ProcessError> {
        // Held throughout: who wants to start a child meanwhile waits, and is then told.
        let mut thread = self.thread.lock();
        if thread.is_none() {
            return Ok(());
        }
        let (reply, answer) = bounded(1);
        self.shared.post(Request::Stop { deadline, reply })?;
        let names = answer.recv().unwrap_or_default();
        if !names.is_empty() {
            return Err(ProcessError::Survivors(names));
        }
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the keeper's thread panicked");
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Instant::now() + DROP_BOUND) {
            tracing::error!(%error, "children could not be ended");
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

fn injected(injected: Injected) -> ProcessError {
    ProcessError::Os {
        call: "fork",
        source: injected.into(),
    }
}

fn pid_of(raw: u32) -> Result<Pid, ProcessError> {
    let pid = i32::try_from(raw).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| ProcessError::os("fork")(Errno::RANGE))
}

/// The thread's own side.
struct Watch {
    shared: Arc<Shared>,
    children: Vec<(Arc<ChildState>, Option<OnExit>)>,
    nursery: Nursery,
    /// Children that are forked when the zygote is up, in order.
    waiting: VecDeque<Box<Wanted>>,
    /// Children that it does not know are orphans.
    adopts: bool,
    /// There may be some.
    has_orphans: bool,
}

impl Watch {
    fn run(mut self) {
        loop {
            // While a child was asked for, the bell of a request may have been heard already.
            let is_idle = self.shared.requests.lock().is_empty();
            if is_idle {
                self.wait(Instant::now() + RECHECK);
            }
            self.reap();
            self.nursery.look();
            if self.nursery.awaited().is_none() {
                for wanted in std::mem::take(&mut self.waiting) {
                    self.serve(wanted);
                }
            }
            let requests = std::mem::take(&mut *self.shared.requests.lock());
            for request in requests {
                match request {
                    Request::Prepare(spec) => drop(self.way(&spec)),
                    Request::Spawn(wanted) => self.serve(wanted),
                    Request::Stop { deadline, reply } => {
                        let survivors = self.end_all(deadline);
                        let is_done = survivors.is_empty();
                        let _ = reply.send(survivors);
                        if is_done {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn way(&mut self, spec: &ChildSpec) -> Way {
        let (way, leader) = self.nursery.way(spec);
        self.children.extend(leader.map(|leader| (leader, None)));
        way
    }

    fn serve(&mut self, wanted: Box<Wanted>) {
        let way = self.way(&wanted.spec);
        if way == Way::Wait {
            return self.waiting.push_back(wanted);
        }
        let Wanted {
            spec,
            on_exit,
            reply,
        } = *wanted;
        let started = self.spawn(spec, on_exit, way);
        self.end_orphans();
        // Whoever asked waits for it, or has gone and does not care.
        let _ = reply.send(started);
    }

    fn spawn(
        &mut self,
        spec: ChildSpec,
        on_exit: OnExit,
        way: Way,
    ) -> Result<ChildHandle, ProcessError> {
        let (name, is_group) = (spec.name.clone(), spec.new_session);
        hit("keeper.spawn").map_err(injected)?;
        let forked = match way {
            Way::Fork => self.fork(&spec),
            Way::Wait | Way::Execute => None,
        };
        let pid = match forked {
            Some(pid) => pid,
            None => pid_of(spawn(spec)?)?,
        };
        // Nobody but this thread reaps it, so the number is still its own.
        let watched = hit("keeper.pidfd").map_err(|_| Errno::MFILE);
        let pidfd = match watched.and_then(|()| pidfd_open(pid, PidfdFlags::empty())) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                // Without a pidfd it cannot be watched: it is ended and reaped here, while the number is still its own.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
                return Err(ProcessError::os("pidfd_open")(errno));
            }
        };
        let state = Arc::new(ChildState::new(name, pid, pidfd, is_group));
        self.children.push((Arc::clone(&state), Some(on_exit)));
        Ok(ChildHandle(state))
    }

    /// Has the child forked by the zygote; `None` when it is to be executed. The ends of others are noticed meanwhile.
    fn fork(&mut self, spec: &ChildSpec) -> Option<Pid> {
        if !self.nursery.ask(spec) {
            return None;
        }
        loop {
            if let Some(pid) = self.nursery.answer() {
                return pid;
            }
            self.wait(Instant::now() + RECHECK);
            self.reap();
        }
    }

    /// Sleeps until a child ends, somebody rings, or `until`.
    fn wait(&self, until: Instant) {
        let awaited = self.nursery.awaited();
        let until = awaited.map_or(until, |(_, ready_by)| until.min(ready_by));
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(60),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::new(&self.shared.bell, PollFlags::IN)];
        fds.extend(awaited.map(|(socket, _)| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        fds.extend(
            self.children
                .iter()
                .map(|(child, _)| PollFd::new(&child.pidfd, PollFlags::IN)),
        );
        // An interrupted poll is a reason to look around.
        let _ = poll(&mut fds, Some(&timeout));
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.shared.bell, &mut count);
    }

    fn reap(&mut self) {
        let mut ended = Vec::new();
        self.children.retain_mut(|(child, on_exit)| {
            let Some(info) = child.reap() else {
                return true;
            };
            ended.push(child.pid);
            if let Some(on_exit) = on_exit.take() {
                if catch_unwind(AssertUnwindSafe(|| on_exit(info))).is_err() {
                    tracing::error!(child = %child.name, "what was to be done at its end panicked");
                }
            }
            false
        });
        for pid in &ended {
            self.nursery.ended(*pid);
        }
        self.has_orphans |= self.adopts && !ended.is_empty();
        self.end_orphans();
    }

    /// What is being forked is no orphan, although it is not known yet: while that may be, none are looked for.
    fn end_orphans(&mut self) {
        if self.has_orphans && !self.nursery.is_asked() {
            self.has_orphans = false;
            end_orphans(|pid| self.children.iter().any(|(child, _)| child.pid == pid));
        }
    }

    /// All are told first, then all are waited for under one deadline. Returns who is left.
    fn end_all(&mut self, deadline: Instant) -> Vec<String> {
        self.nursery.close();
        for wanted in self.waiting.drain(..) {
            let _ = wanted.reply.send(Err(ProcessError::Stopped));
        }
        for (child, _) in &self.children {
            child.signal_group(Signal::TERM);
        }
        let now = Instant::now();
        let grace = (deadline.saturating_duration_since(now) / 2).min(TERM_GRACE_MAX);
        self.drain(now + grace);
        for (child, _) in &self.children {
            child.signal_group(Signal::KILL);
        }
        self.drain(deadline);
        self.children
            .iter()
            .map(|(child, _)| format!("{} (pid {})", child.name, child.pid.as_raw_nonzero()))
            .collect()
    }

    fn drain(&mut self, until: Instant) {
        loop {
            self.reap();
            if self.children.is_empty() || Instant::now() >= until {
                return;
            }
            self.wait(until);
        }
    }
}

#[cfg(test)]
mod tests;
