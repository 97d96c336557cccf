//! The keeper: one thread that starts children, waits for their end and reaps them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, Sender};
use parking_lot::{Condvar, Mutex};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};
use rustix::process::{
    pidfd_open, pidfd_send_signal, waitid, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions,
};

use super::spawn::{spawn, ChildSpec};
use super::ProcessError;

/// How long the keeper itself may take to answer a request: it only ever spawns and polls.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitInfo {
    /// Its process id.
    pub pid: u32,
    /// Its exit status, when it exited.
    pub code: Option<i32>,
    /// The signal that ended it, otherwise.
    pub signal: Option<i32>,
}

impl std::fmt::Display for ExitInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(0), _) => f.write_str("ended with status 0"),
            (Some(code), _) => write!(f, "exited with status {code}"),
            (None, Some(9)) => f.write_str("was killed by signal 9 (SIGKILL; out of memory?)"),
            (None, Some(11)) => {
                f.write_str("was killed by signal 11 (SIGSEGV: a fault in native code)")
            }
            (None, Some(signal)) => write!(f, "was killed by signal {signal}"),
            (None, None) => f.write_str("ended in an unknown way"),
        }
    }
}

/// What the keeper and the handles of one child share.
#[derive(Debug)]
struct Shared {
    pid: u32,
    pidfd: OwnedFd,
    leads_group: bool,
    /// Set once, when it was reaped; from then on nothing is signalled.
    exit: Mutex<Option<ExitInfo>>,
    ended: Condvar,
}

impl Shared {
    fn signal(&self, signal: Signal, group: bool) {
        let exit = self.exit.lock();
        if exit.is_some() {
            return;
        }
        // Not reaped while the lock is held: neither the pid nor the group can have been given to others.
        if group && self.leads_group {
            if let Some(pid) = Pid::from_raw(self.pid.cast_signed()) {
                let _ = rustix::process::kill_process_group(pid, signal);
            }
        }
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

/// One child. Clones are the same child; dropping a handle does nothing to it, the keeper owns it.
#[derive(Clone, Debug)]
pub struct ChildHandle(Arc<Shared>);

impl ChildHandle {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Asks it to end: SIGTERM to it and, when it leads one, its group.
    pub fn terminate(&self) {
        self.0.signal(Signal::TERM, true);
    }

    /// Ends it by force, with its group.
    pub fn kill_group(&self) {
        self.0.signal(Signal::KILL, true);
    }

    /// Waits for its end; `None` when `deadline` passes first.
    #[must_use]
    pub fn wait_exit(&self, deadline: Instant) -> Option<ExitInfo> {
        let mut exit = self.0.exit.lock();
        while exit.is_none() {
            if self.0.ended.wait_until(&mut exit, deadline).timed_out() {
                break;
            }
        }
        exit.clone()
    }
}

type OnExit = Box<dyn FnOnce(ExitInfo) + Send>;

enum Request {
    Spawn(
        Box<ChildSpec>,
        OnExit,
        Sender<Result<ChildHandle, ProcessError>>,
    ),
    Stop,
}

/// Owns children and the one thread that starts and reaps them.
#[derive(Debug)]
pub struct Keeper {
    requests: Sender<Request>,
    wake: Arc<OwnedFd>,
    children: Arc<Mutex<HashMap<u32, ChildHandle>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ProcessError::Os`].
    pub fn start() -> Result<Self, ProcessError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(ProcessError::os("eventfd"))?;
        let wake = Arc::new(wake);
        let (requests, incoming) = unbounded();
        let children = Arc::new(Mutex::new(HashMap::new()));
        let mut work = Loop {
            incoming,
            wake: Arc::clone(&wake),
            children: Arc::clone(&children),
            on_exit: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("echelon-keeper".into())
            .spawn(move || work.run())
            .map_err(|source| ProcessError::Os {
                call: "thread",
                source,
            })?;
        Ok(Self {
            requests,
            wake,
            children,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Starts a child. `on_exit` runs on the keeper's thread after it was reaped; it must not block.
    ///
    /// # Errors
    /// [`ProcessError::Spawn`], [`ProcessError::Stopped`].
    pub fn spawn(&self, spec: ChildSpec, on_exit: OnExit) -> Result<ChildHandle, ProcessError> {
        let (answer, answered) = bounded(1);
        self.requests
            .send(Request::Spawn(Box::new(spec), on_exit, answer))
            .map_err(|_| ProcessError::Stopped)?;
        self.ring();
        answered
            .recv_timeout(ANSWER_WITHIN)
            .map_err(|_| ProcessError::Stopped)?
    }

    fn ring(&self) {
        // A full counter means that it is readable already.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }

    /// Ends every child that is left (SIGTERM, then SIGKILL to its group when half of the time has passed), reaps them all and
    /// joins the thread. Idempotent.
    ///
    /// # Errors
    /// [`ProcessError::Survivors`]; the thread goes on then, and a later call tries again.
    pub fn stop(&self, deadline: Instant) -> Result<(), ProcessError> {
        let left: Vec<ChildHandle> = self.children.lock().values().cloned().collect();
        for child in &left {
            child.terminate();
        }
        let now = Instant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        let mut survivors = Vec::new();
        for child in &left {
            if child.wait_exit(half).is_none() {
                child.kill_group();
            }
        }
        for child in &left {
            if child
                .wait_exit(deadline.max(Instant::now() + Duration::from_secs(1)))
                .is_none()
            {
                survivors.push(format!("pid {}", child.pid()));
            }
        }
        if !survivors.is_empty() {
            return Err(ProcessError::Survivors(survivors));
        }
        let _ = self.requests.send(Request::Stop);
        self.ring();
        if let Some(thread) = self.thread.lock().take() {
            if thread.join().is_err() {
                tracing::error!("the keeper's thread panicked");
            }
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Instant::now() + Duration::from_secs(2)) {
            tracing::error!(%error, "children are left");
        }
    }
}

/// The thread's own state.
struct Loop {
    incoming: Receiver<Request>,
    wake: Arc<OwnedFd>,
    children: Arc<Mutex<HashMap<u32, ChildHandle>>>,
    on_exit: HashMap<u32, OnExit>,
}

impl Loop {
    fn run(&mut self) {
        loop {
            while let Ok(request) = self.incoming.try_recv() {
                match request {
                    Request::Stop => return,
                    Request::Spawn(spec, on_exit, answer) => {
                        // The asker may have given up; the child is owned by us either way.
                        let _ = answer.send(self.start(*spec, on_exit));
                    }
                }
            }
            self.wait();
        }
    }

    fn start(&mut self, spec: ChildSpec, on_exit: OnExit) -> Result<ChildHandle, ProcessError> {
        let leads_group = spec.new_session;
        let pid = spawn(spec)?;
        let raw = Pid::from_raw(pid.cast_signed()).ok_or(ProcessError::Stopped)?;
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                // Without a pidfd it cannot be watched: end it and reap it here; it is our child, so the pid is still its own.
                let _ = rustix::process::kill_process(raw, Signal::KILL);
                let _ = waitid(WaitId::Pid(raw), WaitIdOptions::EXITED);
                return Err(ProcessError::os("pidfd_open")(errno));
            }
        };
        let shared = Shared {
            pid,
            pidfd,
            leads_group,
            exit: Mutex::new(None),
            ended: Condvar::new(),
        };
        let handle = ChildHandle(Arc::new(shared));
        self.children.lock().insert(pid, handle.clone());
        self.on_exit.insert(pid, on_exit);
        Ok(handle)
    }

    /// Sleeps until a request comes or a child ends, and reaps those that have.
    fn wait(&mut self) {
        let handles: Vec<ChildHandle> = self.children.lock().values().cloned().collect();
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(
            handles
                .iter()
                .map(|handle| PollFd::from_borrowed_fd(handle.0.pidfd.as_fd(), PollFlags::IN)),
        );
        if let Err(errno) = poll(&mut fds, None) {
            if errno != rustix::io::Errno::INTR {
                tracing::error!(%errno, "poll for children failed");
            }
            return;
        }
        if !fds[0].revents().is_empty() {
            let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        }
        let ended: Vec<ChildHandle> = handles
            .iter()
            .zip(&fds[1..])
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(handle, _)| handle.clone())
            .collect();
        for handle in ended {
            self.reap(&handle);
        }
    }

    fn reap(&mut self, handle: &ChildHandle) {
        let shared = &handle.0;
        let mut exit = shared.exit.lock();
        // The rest of its group goes with it; the leader is still a zombie, so the number is still the group's.
        if shared.leads_group {
            if let Some(pid) = Pid::from_raw(shared.pid.cast_signed()) {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
        }
        let status = loop {
            match waitid(
                WaitId::PidFd(shared.pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other,
            }
        };
        let info = match status {
            Ok(Some(status)) => ExitInfo {
                pid: shared.pid,
                code: status.exit_status(),
                signal: status.terminating_signal(),
            },
            // Reaped elsewhere (ECHILD): it is gone, how is not known.
            Err(rustix::io::Errno::CHILD) => ExitInfo {
                pid: shared.pid,
                code: None,
                signal: None,
            },
            // No information is no death: looked at again at the next wake.
            Ok(None) | Err(_) => return,
        };
        *exit = Some(info.clone());
        shared.ended.notify_all();
        drop(exit);
        self.children.lock().remove(&shared.pid);
        if let Some(on_exit) = self.on_exit.remove(&shared.pid) {
            on_exit(info);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> ChildSpec {
        ChildSpec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            new_session: true,
            ..ChildSpec::default()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn an_exit_status_and_a_signal_are_told_apart() {
        let keeper = Keeper::start().unwrap();
        let (told, exits) = unbounded();
        for script in ["exit 3", "kill -9 $$"] {
            let told = told.clone();
            let child = keeper
                .spawn(sh(script), Box::new(move |info| told.send(info).unwrap()))
                .unwrap();
            let info = child.wait_exit(soon()).unwrap();
            assert_eq!(exits.recv_timeout(Duration::from_secs(20)).unwrap(), info);
            match script {
                "exit 3" => assert_eq!((info.code, info.signal), (Some(3), None)),
                _ => assert!(info.to_string().contains("signal 9")),
            }
            // a reaped child is not signalled any more.
            child.kill_group();
        }
        keeper.stop(soon()).unwrap();
        keeper.stop(soon()).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_with_its_name() {
        let keeper = Keeper::start().unwrap();
        let spec = ChildSpec {
            program: "/nowhere/echelon".into(),
            ..ChildSpec::default()
        };
        let error = keeper.spawn(spec, Box::new(|_| ())).unwrap_err();
        assert!(error.to_string().contains("/nowhere/echelon"), "{error}");
    }

    #[test]
    fn r_038_stop_ends_a_child_that_ignores_sigterm_and_its_children() {
        let keeper = Keeper::start().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut spec = sh("trap '' TERM; (trap '' TERM; sleep 1000) & echo ready; wait");
        spec.stdout = Some(writer);
        let child = keeper.spawn(spec, Box::new(|_| ())).unwrap();
        let mut buffer = [0; 8];
        assert!(rustix::io::read(&reader, &mut buffer).unwrap() > 0);
        keeper
            .stop(Instant::now() + Duration::from_millis(200))
            .unwrap();
        assert!(child.wait_exit(Instant::now()).is_some());
        // The pipe's writers are all gone: so is the grandchild.
        while rustix::io::read(&reader, &mut buffer).unwrap() > 0 {}
    }

    #[test]
    fn children_started_from_a_thread_that_ends_live_on() {
        let keeper = Arc::new(Keeper::start().unwrap());
        let of_thread = Arc::clone(&keeper);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let child = std::thread::spawn(move || {
            let mut spec = sh("read line < /dev/null; echo alive; sleep 1000");
            spec.stdout = Some(writer);
            of_thread.spawn(spec, Box::new(|_| ())).unwrap()
        })
        .join()
        .unwrap();
        let mut buffer = [0; 8];
        assert!(rustix::io::read(&reader, &mut buffer).unwrap() > 0);
        assert!(child
            .wait_exit(Instant::now() + Duration::from_millis(50))
            .is_none());
        keeper.stop(soon()).unwrap();
    }
}
