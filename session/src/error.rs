//! The errors of this crate, by who has to act on them.

use std::time::Duration;

/// Why the daemon or the runner cannot start at all. The text goes to stderr, the code becomes the exit status.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The command line asks for something that is refused.
    #[error("{0}")]
    Usage(String),
    /// An operating system call failed.
    #[error("cannot {action}: {source}")]
    Os {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl StartError {
    /// Exit status: 2 for a refused command line, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Usage(_) => 2,
            Self::Os { .. } => 1,
        }
    }

    pub(crate) fn os(action: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Os {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// Why the daemon did not start a session; the text is the `error` of its reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The request did not arrive in time.
    #[error("{what} did not arrive within {limit:?}; send the manifest at once after connecting")]
    Slow {
        /// Which part of the request.
        what: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// The connection failed or ended while the request was read.
    #[error("the request ended early: {0}")]
    Io(#[from] std::io::Error),
    /// The length in front of the manifest is out of range; nothing was allocated.
    #[error("the request announces {got} bytes, allowed are 1 to {limit}; send a u32 length and a JSON object")]
    Length {
        /// Announced bytes.
        got: u32,
        /// Largest allowed.
        limit: u32,
    },
    /// The manifest is not what the contract says.
    #[error("the manifest is refused: {0}")]
    Manifest(String),
    /// A limit of the daemon.
    #[error("RESOURCE_EXHAUSTED: {what} is {requested}, limit {limit}; {hint}")]
    Resource {
        /// What there is too much of.
        what: &'static str,
        /// The value asked for.
        requested: u64,
        /// The limit.
        limit: u64,
        /// What to do.
        hint: &'static str,
    },
    /// The runner could not be started.
    #[error("cannot start the session runner {program:?}: {reason}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        reason: String,
    },
    /// The runner ended before it was ready.
    #[error("the session runner {end} before it was ready{}", tail_text(tail))]
    Exited {
        /// How it ended, e.g. "exited with status 3".
        end: String,
        /// Last lines of its output, bounded.
        tail: String,
    },
    /// The runner did not become ready in time.
    #[error("the session runner was not ready within {limit:?} and was killed{}; raise {setting} if it only needs longer", tail_text(tail))]
    NotReady {
        /// What was left of the parent's start, or session_timeout_s of one that sends no budget.
        limit: Duration,
        /// The parent's setting that bounds it.
        setting: &'static str,
        /// Last lines of its output, bounded.
        tail: String,
    },
    /// The runner wrote something else than a ready line.
    #[error(
        "the session runner sent a ready line that cannot be read ({reason}) and was killed{}",
        tail_text(tail)
    )]
    BadReady {
        /// What is wrong.
        reason: String,
        /// Last lines of its output, bounded.
        tail: String,
    },
    /// The runner itself reported why it cannot serve.
    #[error("{message}")]
    Refused {
        /// The runner's text.
        message: String,
        /// Its process id, part of the reply (contract §8).
        pid: u32,
    },
    /// The parent closed the connection before the session was ready.
    #[error("the parent gave up before the session was ready")]
    GivenUp,
    /// The daemon is ending.
    #[error("the daemon is shutting down; start the session elsewhere")]
    Stopping,
}

fn tail_text(tail: &str) -> String {
    if tail.is_empty() {
        "; it wrote nothing to stderr".to_owned()
    } else {
        format!("; its last output:\n{tail}")
    }
}
