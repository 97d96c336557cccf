//! The child's watch on its parent.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{poll, PollFd, PollFlags};

use super::spawn::exit_now;
use super::ProcessError;

/// Exit status of a child whose parent is gone.
const ORPHANED: i32 = 111;

/// Starts a thread that ends this process at once when the other side of `socket` is closed, whatever other threads do.
/// The thread is never joined: it lives exactly as long as the process.
///
/// # Errors
/// [`ProcessError::Os`] when no thread can be started.
pub fn watch_parent(socket: &Arc<OwnedFd>) -> Result<(), ProcessError> {
    let socket = Arc::clone(socket);
    std::thread::Builder::new()
        .name("echelon-watch".into())
        .spawn(move || {
            loop {
                // Only the hang-up: messages on the socket are for others to read.
                let mut fds = [PollFd::new(&*socket, PollFlags::RDHUP)];
                match poll(&mut fds, None) {
                    Ok(_) if !fds[0].revents().is_empty() => break,
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            // Not `exit`: handlers of a process whose parent is gone must not run user code for however long.
            exit_now(ORPHANED)
        })
        .map(drop)
        .map_err(|source| ProcessError::Os {
            call: "thread",
            source,
        })
}
