//! The keeper's side of a zygote: started beside what it waits for, asked for children, given up at the first doubt.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::{retry_on_intr, Errno};
use rustix::net::RecvFlags;
use rustix::process::{
    getpgid, kill_process, pidfd_open, waitid, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions,
};

use super::message::{self, Reply, Request};
use super::server::OwnZygote;
use super::surroundings::Surroundings;
use super::{is_enabled, ZYGOTE_FLAG};
use crate::process::adopted::children;
use crate::process::child::ChildState;
use crate::process::fds::{borrowed, region_socket_pair};
use crate::process::spawn::spawn;
use crate::process::ChildSpec;

/// How long a zygote may take to come up, an interpreter's start, before those that wait for it are executed.
const START_BOUND: Duration = Duration::from_secs(10);
/// How long a fork may take, about a millisecond, before the child is executed.
const FORK_BOUND: Duration = Duration::from_secs(3);
/// How long a zygote that was sent SIGKILL, and what it was forking, may take to be gone.
const END_BOUND: Duration = Duration::from_secs(1);

/// How a child is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::process) enum Way {
    /// By the zygote, now.
    Fork,
    /// By the zygote, as soon as it is up.
    Wait,
    /// By itself.
    Execute,
}

/// The zygote of one keeper, if it has one now.
pub(in crate::process) struct Nursery {
    is_enabled: bool,
    zygote: Option<Zygote>,
}

struct Zygote {
    program: PathBuf,
    args: Vec<OsString>,
    around: Surroundings,
    socket: OwnedFd,
    leader: Arc<ChildState>,
    /// While it comes up: until when it must have.
    ready_by: Option<Instant>,
    /// While it is asked for a child: until when it must have answered.
    answer_by: Option<Instant>,
    children: u64,
}

impl Nursery {
    /// Takes over the zygote that this process forked off at its start, if it did; its leader is to be watched as a child.
    pub(in crate::process) fn new(own: Option<OwnZygote>) -> (Self, Option<Arc<ChildState>>) {
        let is_enabled = is_enabled();
        let zygote = own.filter(|_| is_enabled).and_then(Zygote::adopt);
        let leader = zygote.as_ref().map(|zygote| Arc::clone(&zygote.leader));
        (Self { is_enabled, zygote }, leader)
    }

    /// How this child is to be started. A zygote is started if one is wanted; its leader is to be watched as a child.
    pub(in crate::process) fn way(&mut self, spec: &ChildSpec) -> (Way, Option<Arc<ChildState>>) {
        let Some(count) = spec.by_zygote.filter(|_| self.is_enabled) else {
            return (Way::Execute, None);
        };
        let (Some(prefix), true, None) = (spec.args.get(..count), spec.new_session, &spec.cwd)
        else {
            return (Way::Execute, None);
        };
        let Some(around) = Surroundings::take(&spec.env, spec.clear_env) else {
            return (Way::Execute, None);
        };
        let Some(zygote) = &self.zygote else {
            return match Zygote::start(spec, prefix, around) {
                Ok(zygote) => {
                    let leader = Arc::clone(&zygote.leader);
                    self.zygote = Some(zygote);
                    (Way::Wait, Some(leader))
                }
                Err(error) => {
                    self.give_up(&error);
                    (Way::Execute, None)
                }
            };
        };
        if zygote.program != spec.program || zygote.args != prefix {
            return (Way::Execute, None);
        }
        if let Some(changed) = zygote.around.difference(&around) {
            tracing::info!(
                changed,
                "this process has changed since its zygote was started; a fresh one takes its place"
            );
            let has_served = zygote.children > 0;
            if let Some(zygote) = self.zygote.take() {
                zygote.end();
            }
            // One that was started ahead of the first child costs that child nothing. Later the next one has the fresh zygote.
            return if has_served {
                (Way::Execute, None)
            } else {
                self.way(spec)
            };
        }
        let is_starting = zygote.ready_by.is_some();
        (if is_starting { Way::Wait } else { Way::Fork }, None)
    }

    /// While a zygote comes up or owes an answer: what becomes readable then, and until when.
    pub(in crate::process) fn awaited(&self) -> Option<(BorrowedFd<'_>, Instant)> {
        let zygote = self.zygote.as_ref()?;
        let until = zygote.ready_by.or(zygote.answer_by)?;
        Some((zygote.socket.as_fd(), until))
    }

    /// Whether there may be a child that nobody knows yet.
    pub(in crate::process) fn is_asked(&self) -> bool {
        let zygote = self.zygote.as_ref();
        zygote.is_some_and(|zygote| zygote.answer_by.is_some())
    }

    /// Looks whether the zygote is up.
    pub(in crate::process) fn look(&mut self) {
        let Some(zygote) = &mut self.zygote else {
            return;
        };
        let Some(ready_by) = zygote.ready_by else {
            return;
        };
        let mut word = [0; 64];
        match message::receive(&zygote.socket, &mut word, RecvFlags::DONTWAIT) {
            Ok(Some((count, _))) if word.get(..count) == Some(&message::ready()) => {
                zygote.ready_by = None;
            }
            Err(Errno::AGAIN) if Instant::now() < ready_by => {}
            Err(Errno::AGAIN) => self.lose(&format!("it was not up within {START_BOUND:?}")),
            Ok(None) => self.lose(&"it ended before it was up"),
            Ok(Some(_)) | Err(_) => self.lose(&"its first word is not that of this release"),
        }
    }

    /// A child has ended and was reaped; it may have been the zygote.
    pub(in crate::process) fn ended(&mut self, pid: Pid) {
        if self.zygote.as_ref().is_some_and(|z| z.leader.pid == pid) {
            self.lose(&"it has ended");
        }
    }

    /// Asks for the child. False when it is to be executed; otherwise [`Nursery::answer`] says what came of it.
    pub(in crate::process) fn ask(&mut self, spec: &ChildSpec) -> bool {
        let Some(zygote) = &mut self.zygote else {
            return false;
        };
        // Too large for a message: executed, and the zygote is as good as before.
        let Some(request) = zygote.request(spec) else {
            return false;
        };
        if let Err(error) = zygote.ask(spec, &request) {
            self.lose(&error);
            return false;
        }
        zygote.answer_by = Some(Instant::now() + FORK_BOUND);
        true
    }

    /// What came of the question, if that is known: the process id of the child, or `None` when it is to be executed.
    pub(in crate::process) fn answer(&mut self) -> Option<Option<Pid>> {
        let Some(zygote) = &mut self.zygote else {
            return Some(None);
        };
        let answer_by = zygote.answer_by?;
        let reply = match zygote.hear() {
            Err(Errno::AGAIN) if Instant::now() < answer_by => return None,
            heard => heard,
        };
        zygote.answer_by = None;
        match reply {
            Ok(Some(Reply { pid, errno: 0 })) => match own_child(pid) {
                Some(pid) if getpgid(Some(pid)) == Ok(pid) => {
                    zygote.children += 1;
                    return Some(Some(pid));
                }
                _ => self.lose(&"it answered with what is not a child of this process"),
            },
            Ok(Some(Reply { pid, errno })) => {
                if let Some(pid) = own_child(pid) {
                    reap(pid);
                }
                self.lose(&std::io::Error::from_raw_os_error(errno));
            }
            Ok(None) => self.lose(&"it has ended"),
            Err(Errno::AGAIN) => self.lose(&format!(
                "it gave no answer within {FORK_BOUND:?}; is it stopped?"
            )),
            Err(_) => self.lose(&"its answer is none"),
        }
        Some(None)
    }

    /// Ends the zygote: it sees the end of its socket. Its leader stays among the children that are waited for.
    pub(in crate::process) fn close(&mut self) {
        self.is_enabled = false;
        self.zygote = None;
    }

    /// Ends a zygote that cannot be relied on. One that has served is replaced when the next child is wanted.
    fn lose(&mut self, why: &dyn std::fmt::Display) {
        let Some(zygote) = self.zygote.take() else {
            return;
        };
        let has_served = zygote.children > 0;
        zygote.end();
        if has_served {
            tracing::warn!(%why, "the zygote is lost; the next children are executed, and a fresh one is started");
        } else {
            self.give_up(why);
        }
    }

    fn give_up(&mut self, why: &dyn std::fmt::Display) {
        self.is_enabled = false;
        tracing::warn!(%why, "there is no zygote: children are executed from now on, which is slower");
    }
}

impl Zygote {
    fn start(
        spec: &ChildSpec,
        prefix: &[OsString],
        around: Surroundings,
    ) -> Result<Self, super::super::ProcessError> {
        use std::os::fd::AsRawFd as _;
        let (socket, of_zygote) = region_socket_pair()?;
        let number = of_zygote.as_raw_fd();
        let flag = [ZYGOTE_FLAG.into(), number.to_string().into()];
        let raw = spawn(ChildSpec {
            name: "zygote".into(),
            program: spec.program.clone(),
            args: prefix.iter().cloned().chain(flag).collect(),
            env: spec.env.clone(),
            clear_env: spec.clear_env,
            fds: vec![number],
            new_session: true,
            ..ChildSpec::default()
        })?;
        let lost = |errno| super::super::ProcessError::os("pidfd_open")(errno);
        let pid = i32::try_from(raw).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| lost(Errno::RANGE))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
            reap(pid);
            lost(errno)
        })?;
        Ok(Self {
            program: spec.program.clone(),
            args: prefix.to_vec(),
            around,
            socket,
            leader: Arc::new(ChildState::new("zygote".into(), pid, pidfd, true)),
            ready_by: Some(Instant::now() + START_BOUND),
            answer_by: None,
            children: 0,
        })
    }

    fn adopt(own: OwnZygote) -> Option<Self> {
        let Ok(pidfd) = pidfd_open(own.pid, PidfdFlags::empty()) else {
            reap(own.pid);
            return None;
        };
        Some(Self {
            program: own.program,
            args: own.args,
            around: own.around,
            socket: own.socket,
            leader: Arc::new(ChildState::new("zygote".into(), own.pid, pidfd, true)),
            ready_by: Some(Instant::now() + START_BOUND),
            answer_by: None,
            children: 0,
        })
    }

    /// `None` when it is beyond a limit.
    fn request(&self, spec: &ChildSpec) -> Option<Vec<u8>> {
        let request = Request {
            outlives_parent: spec.outlives_parent,
            no_new_privileges: spec.no_new_privileges,
            umask: spec.umask,
            args: spec.args.get(self.args.len()..)?.to_vec(),
            numbers: spec.fds.clone(),
        };
        request.encode()
    }

    /// Sends the request.
    fn ask(&self, spec: &ChildSpec, request: &[u8]) -> std::io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(".", flags, Mode::empty())?;
        let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
        let mut fds = vec![
            folder.as_fd(),
            spec.stdout
                .as_ref()
                .map_or_else(|| stdout.as_fd(), AsFd::as_fd),
            spec.stderr
                .as_ref()
                .map_or_else(|| stderr.as_fd(), AsFd::as_fd),
        ];
        fds.extend(spec.fds.iter().map(|raw| borrowed(spec, *raw)));
        Ok(message::send(&self.socket, request, &fds)?)
    }

    /// The next answer, of a child or of the zygote, if it is there; `None` when nobody is left who could give one.
    fn hear(&self) -> Result<Option<Reply>, Errno> {
        let mut bytes = [0; 64];
        let received = message::receive(&self.socket, &mut bytes, RecvFlags::DONTWAIT)?;
        let Some((count, _)) = received else {
            return Ok(None);
        };
        let reply = bytes.get(..count).and_then(Reply::decode);
        reply.map(Some).ok_or(Errno::BADMSG)
    }

    /// Ends it and whatever it was about to make, and reaps both.
    fn end(self) {
        // Both: one that was forked off may not lead its group yet.
        let _ = self.leader.signal(Signal::KILL);
        self.leader.signal_group(Signal::KILL);
        let until = Instant::now() + END_BOUND;
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&self.leader.pidfd, PollFlags::IN)];
        let _ = retry_on_intr(|| poll(&mut fds, left.try_into().ok().as_ref()));
        // A child is in the zygote's group, and was killed with it, until it is ready to answer. Its leader is not reaped yet, so
        // the number is still that group's.
        let group = self.leader.pid;
        children()
            .filter(|pid| *pid != group && getpgid(Some(*pid)) == Ok(group))
            .for_each(reap);
        // One that was past that answers, and nobody wants it any more.
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            let _ = retry_on_intr(|| poll(&mut fds, left.try_into().ok().as_ref()));
            let Ok(Some(reply)) = self.hear() else { break };
            if let Some(pid) = own_child(reply.pid) {
                reap(pid);
            }
        }
        let _ = self.leader.reap();
    }
}

/// A child of this process that was not reaped.
fn own_child(raw: i32) -> Option<Pid> {
    let pid = Pid::from_raw(raw).filter(|_| raw > 0)?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid), look).ok().map(|_| pid)
}

/// Ends and reaps a child of this process that nobody else knows of.
fn reap(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
    let _ = retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
}
