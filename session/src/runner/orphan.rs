//! What a session prints when the daemon is gone.
//!
//! The daemon reads the pipe behind stdout and stderr. Were it the only reader, a `print` in a task would fail from its death on,
//! in the session and in its sub workers alike. So the session holds the reading end too, touches nothing while the daemon lives,
//! and throws away what arrives afterwards.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::PollFlags;
use rustix::process::{getppid, pidfd_open, PidfdFlags};

use super::lifeline::{Lifeline, Verdict, Woken};

/// The thread that reads for a daemon that is gone. Dropped last: that is the end of the session, if nothing else was.
#[derive(Debug)]
pub(crate) struct OrphanOutput {
    lifeline: Arc<Lifeline>,
    thread: Option<JoinHandle<()>>,
}

impl OrphanOutput {
    /// Watches the parent process; `pipe` is the reading end, not blocking.
    pub(crate) fn watch(pipe: OwnedFd, lifeline: Arc<Lifeline>) -> std::io::Result<Self> {
        let parent = getppid().map(|parent| pidfd_open(parent, PidfdFlags::empty()));
        let parent = parent.transpose()?;
        let watched = Arc::clone(&lifeline);
        let thread = std::thread::Builder::new()
            .name("orphan".to_owned())
            .spawn(move || {
                if let Err(error) = drain(&pipe, parent.as_ref(), &watched) {
                    tracing::warn!(%error, "output is not read when the daemon is gone");
                }
            })?;
        Ok(Self {
            lifeline,
            thread: Some(thread),
        })
    }
}

impl Drop for OrphanOutput {
    fn drop(&mut self) {
        // A session that could not start has no verdict yet, and the thread waits for one.
        self.lifeline
            .end(Verdict::Broken("it could not start".to_owned()));
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn drain(pipe: &OwnedFd, parent: Option<&OwnedFd>, lifeline: &Lifeline) -> std::io::Result<()> {
    if let Some(parent) = parent {
        if lifeline.wait(parent.as_fd(), PollFlags::IN, None)? != Woken::Ready {
            return Ok(());
        }
    }
    let mut buffer = [0_u8; 8192];
    while lifeline.wait(pipe.as_fd(), PollFlags::IN, None)? == Woken::Ready {
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
