//! Orphans of children that have ended: a process that adopts them ends and reaps them.
//!
//! A runner that is killed cannot end what is below it. The kernel kills its own children with it, but what those had started in
//! their own groups goes on, as a child of the nearest ancestor that adopts. The daemon does, so nothing of a session escapes it.

use std::fs;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::retry_on_intr;
use rustix::process::{
    getpid, pidfd_open, pidfd_send_signal, set_child_subreaper, waitid, Pid, PidfdFlags, Signal,
    WaitId, WaitIdOptions,
};

use super::{Keeper, ProcessError};

/// How long all orphans found at once may take to end after SIGKILL; who is stuck in the kernel is tried again later.
const END_BOUND: Duration = Duration::from_secs(1);
/// An orphan's own children become ours when it ends, so there are generations of them; nobody needs so many.
const GENERATIONS_MAX: usize = 64;

/// From now on orphans below this process become its children and not init's. What is not started by this process's keeper and
/// not adopted must not be its child.
///
/// # Errors
/// [`ProcessError::Os`].
pub fn adopt_orphans() -> Result<(), ProcessError> {
    set_child_subreaper(Some(getpid())).map_err(ProcessError::os("prctl(PR_SET_CHILD_SUBREAPER)"))
}

impl Keeper {
    /// As [`Keeper::start`], and from now on this process adopts: when a child has ended, its orphans are ended too.
    ///
    /// # Errors
    /// [`ProcessError::Os`].
    pub fn start_adopting() -> Result<Self, ProcessError> {
        adopt_orphans()?;
        Self::start_as(true, None)
    }
}

/// Kills and reaps every child of this process that `is_ours` does not know, generation after generation. To be called by the one
/// thread that starts children: between its look and its signal no child of ours can appear.
pub(super) fn end_orphans(is_ours: impl Fn(Pid) -> bool) {
    for _ in 0..GENERATIONS_MAX {
        let orphans: Vec<Pid> = children().filter(|pid| !is_ours(*pid)).collect();
        if orphans.is_empty() {
            return;
        }
        let until = Instant::now() + END_BOUND;
        for pid in orphans {
            end(pid, until);
        }
        if Instant::now() >= until {
            tracing::warn!("orphans of an ended child do not end although they were killed");
            return;
        }
    }
}

fn end(pid: Pid, until: Instant) {
    // It is our child and nobody else reaps it: the number is its own.
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(0),
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let _ = retry_on_intr(|| poll(&mut fds, Some(&timeout)));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    if let Ok(Some(_)) = retry_on_intr(|| waitid(WaitId::Pid(pid), options)) {
        tracing::info!(pid = %pid.as_raw_nonzero(), "ended an orphan of a child that had ended");
    }
}

/// All children of this process, zombies included.
pub(super) fn children() -> impl Iterator<Item = Pid> {
    let own = getpid();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // pid (name) state ppid …; the name may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let parent = rest.split(' ').nth(1)?.parse().ok()?;
        (Pid::from_raw(parent)? == own).then_some(pid)
    })
}
