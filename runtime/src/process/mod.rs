//! Child processes: started by exec or by a zygote, watched by pidfd, ended as a group, reaped by their owner.
//!
//! * A process that may have threads never forks without exec; between the two only async-signal-safe calls are made. A
//!   [`zygote`] has none, and forks children that are ready at once.
//! * All children of a `Worker` or daemon are started by one thread, the [`Keeper`], because `PR_SET_PDEATHSIG` fires when the
//!   *thread* that started a child ends (design §15.8).
//! * When a child ends, its process group is killed before it is reaped: nothing that it left in its group outlives it.
//! * A process is signalled through its pidfd only while it is ours and not yet reaped.

mod adopted;
mod child;
mod exit;
mod fds;
mod forked;
mod keeper;
mod spawn;
mod watch;
pub mod zygote;

use std::io;

pub use adopted::adopt_orphans;
pub use child::ChildHandle;
pub use exit::ExitInfo;
pub use fds::{recv_fd, region_socket_pair, send_fd, take_inherited_fd};
pub use forked::ForkMark;
pub use keeper::{Keeper, OnExit};
pub use spawn::ChildSpec;
pub use watch::watch_parent;

/// Why a process, or a descriptor on its way to one, could not be handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The program could not be executed.
    #[error(
        "{program} could not be started: {source}; check that the file exists and is executable"
    )]
    Spawn {
        /// The program.
        program: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// A system call.
    #[error("{call}: {source}")]
    Os {
        /// Which.
        call: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// The keeper has ended, or was told to.
    #[error("no child can be started any more: the worker is closing")]
    Stopped,
    /// A descriptor number that was not inherited.
    #[error("descriptor {0} was not inherited; this program is started by an Echelon worker, not by hand")]
    NotInherited(i32),
    /// Children that outlived every signal.
    #[error("still there although they were sent SIGKILL: {}", .0.join(", "))]
    Survivors(Vec<String>),
}

impl ProcessError {
    pub(crate) fn os(call: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::Os {
            call,
            source: errno.into(),
        }
    }
}
