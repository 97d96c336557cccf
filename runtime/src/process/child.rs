//! One child: signalled through its pidfd, reaped once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::{retry_on_intr, Errno};
use rustix::process::{
    kill_process_group, pidfd_send_signal, waitid, Pid, Signal, WaitId, WaitIdOptions,
};

use super::{ExitInfo, ProcessError};

/// What the keeper and the handles of one child share.
pub(super) struct ChildState {
    pub(super) name: String,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    is_group: bool,
    /// Set when it was reaped; while it is `None` the pid is ours.
    exit: Mutex<Option<ExitInfo>>,
    ended: Condvar,
}

impl ChildState {
    pub(super) fn new(name: String, pid: Pid, pidfd: OwnedFd, is_group: bool) -> Self {
        let exit = Mutex::new(None);
        Self {
            name,
            pid,
            pidfd,
            is_group,
            exit,
            ended: Condvar::new(),
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        match pidfd_send_signal(&self.pidfd, signal) {
            // SRCH: it has ended, which is what most signals are for.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(ProcessError::os("pidfd_send_signal")(errno)),
        }
    }

    /// Signals the group. The lock keeps the leader from being reaped meanwhile, so the number is still its own.
    pub(super) fn signal_group(&self, signal: Signal) {
        let exit = self.exit.lock();
        if exit.is_none() {
            self.signal_group_locked(signal);
        }
    }

    fn signal_group_locked(&self, signal: Signal) {
        let sent = if self.is_group {
            kill_process_group(self.pid, signal)
        } else {
            pidfd_send_signal(&self.pidfd, signal)
        };
        if let Err(errno) = sent {
            if errno != Errno::SRCH {
                tracing::warn!(child = %self.name, %errno, "signal could not be sent");
            }
        }
    }

    /// Reaps it if it has ended; the information is set once. True when it has ended.
    pub(super) fn reap(&self) -> Option<ExitInfo> {
        let mut exit = self.exit.lock();
        let look = || {
            waitid(
                WaitId::PidFd(self.pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
            )
        };
        let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
        let info = match retry_on_intr(look) {
            Ok(None) => return None,
            Ok(Some(status)) => {
                // It is a zombie still, so the group's number is ours: end what it left in its group, then reap.
                self.signal_group_locked(Signal::KILL);
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let _ = retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options));
                ExitInfo {
                    pid,
                    code: status.exit_status(),
                    signal: status.terminating_signal(),
                }
            }
            // CHILD: somebody else in this process reaped it. That it has ended is certain only if the pidfd says so.
            Err(_) if self.has_ended() => ExitInfo {
                pid,
                code: None,
                signal: None,
            },
            Err(_) => return None,
        };
        *exit = Some(info);
        self.ended.notify_all();
        Some(info)
    }

    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        retry_on_intr(|| {
            poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            )
        })
        .is_ok_and(|ready| ready > 0)
    }
}

/// A child that was started. Dropping it changes nothing: the keeper watches on.
#[derive(Clone)]
pub struct ChildHandle(pub(super) Arc<ChildState>);

impl ChildHandle {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Sends a signal to it, through its pidfd: never to another process. No error when it has ended.
    ///
    /// # Errors
    /// [`ProcessError::Os`].
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        self.0.signal(signal)
    }

    /// Sends SIGKILL to it and to its group, unless it has ended.
    pub fn kill_group(&self) {
        self.0.signal_group(Signal::KILL);
    }

    /// Asks it to end: SIGTERM to it and to its group, unless it has ended.
    pub fn terminate(&self) {
        self.0.signal_group(Signal::TERM);
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<ExitInfo> {
        *self.0.exit.lock()
    }

    /// Waits until it has ended and was reaped; `None` at `deadline`.
    #[must_use]
    pub fn wait_exit(&self, deadline: Instant) -> Option<ExitInfo> {
        let mut exit = self.0.exit.lock();
        while exit.is_none() {
            if self.0.ended.wait_until(&mut exit, deadline).timed_out() {
                return *exit;
            }
        }
        *exit
    }
}

impl std::fmt::Debug for ChildHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChildHandle")
            .field("name", &self.0.name)
            .field("pid", &self.pid())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{getppid, pidfd_open, PidfdFlags};

    fn state_of(pid: Pid) -> ChildState {
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        ChildState::new("watched".into(), pid, pidfd, false)
    }

    #[test]
    fn r_042_a_process_that_cannot_be_asked_is_not_taken_for_dead() {
        // Not our child, so waitid refuses to say anything (ECHILD); it lives all the same.
        let parent = state_of(getppid().unwrap());
        assert!(parent.reap().is_none());
    }

    #[test]
    fn r_042_a_child_that_somebody_else_reaped_has_ended_with_an_unknown_status() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read line; exit 3"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let watched = state_of(Pid::from_child(&child));
        assert!(watched.reap().is_none(), "it waits for its input");
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(3));
        let info = watched.reap().unwrap();
        assert_eq!((info.code, info.signal), (None, None));
    }
}
