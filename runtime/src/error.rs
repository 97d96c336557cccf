//! The errors of the runtime. Each says what, where, the value with its limit, and what to do next.

use std::time::Duration;

pub use crate::failure::{FailureKind, RunError, StoryStep, TaskFailureInfo};
use crate::memory::MemoryError;
use crate::process::ProcessError;

/// Why everything that was under way ended when `close()` was called.
pub(crate) const CLOSED: &str = "the worker was closed";

/// Errors of the public API.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that is out of range or does not fit.
    #[error("{what}: {message}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A value of a kind that cannot be used there.
    #[error("{what}: {message}")]
    Type {
        /// Which argument.
        what: &'static str,
        /// What is wrong and what to use instead.
        message: String,
    },
    /// The worker is not in a state that allows the call.
    #[error("cannot {action} a worker that is {state}: {hint}")]
    Lifecycle {
        /// The state it is in.
        state: String,
        /// What was asked.
        action: &'static str,
        /// What to do.
        hint: String,
    },
    /// No worker can take the task.
    #[error("no worker can run {callable}: {}", reasons.join("; "))]
    NotEligible {
        /// Name of the callable.
        callable: String,
        /// Per worker, what is missing.
        reasons: Vec<String>,
    },
    /// A limit was reached and waiting cannot help.
    #[error("{what}: {requested} asked for, limit {limit}; {hint}")]
    Resource {
        /// Which resource.
        what: String,
        /// How much was asked for.
        requested: u64,
        /// How much there may be.
        limit: u64,
        /// What to do.
        hint: &'static str,
    },
    /// A buffer handle, export or callable handle that cannot be used.
    #[error("{what}: {message}")]
    Handle {
        /// Which.
        what: &'static str,
        /// Why: released, of another worker, of an earlier session, access missing.
        message: String,
    },
    /// A callable could not be registered.
    #[error("{callable} was not registered: {message}")]
    Registration {
        /// Name of the callable.
        callable: String,
        /// Per worker, what happened.
        message: String,
    },
    /// A callable could not be removed everywhere.
    #[error("{callable} was not unregistered everywhere: {message}; no task goes there, and another unregister(), or the next register(), tries it again")]
    Removal {
        /// Name of the callable.
        callable: String,
        /// Per worker, what happened.
        message: String,
    },
    /// `init()` failed; everything was rolled back.
    #[error("worker {worker} did not start: {message}")]
    Startup {
        /// Name of the worker.
        worker: String,
        /// The first cause.
        message: String,
    },
    /// A control on a remote worker was refused by it.
    #[error("{worker} refused {what}: {message}")]
    Remote {
        /// Name of the worker.
        worker: String,
        /// What was asked.
        what: &'static str,
        /// Its text.
        message: String,
    },
    /// A worker is lost.
    #[error("{worker} is lost: {message}; {hint}")]
    EndpointLost {
        /// Name of the worker.
        worker: String,
        /// Why.
        message: String,
        /// What to do next, by the kind of worker.
        hint: &'static str,
    },
    /// A run ended with failed tasks.
    #[error("{0}")]
    Run(Box<RunError>),
    /// A deadline passed.
    #[error("{what} did not end within {limit:?}; {hint}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What to do.
        hint: &'static str,
    },
    /// The caller's interrupt check said stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
    /// Something could not be ended; a later `close()` tries again.
    #[error("close left over: {}; call close() again to finish", survivors.join("; "))]
    Close {
        /// What is left, by name.
        survivors: Vec<String>,
    },
    /// One task of a batch was not submitted.
    #[error("args_list[{index}]: {error} (what stands before it is submitted, nothing after it)")]
    InBatch {
        /// Which, from 0.
        index: usize,
        /// Why.
        error: Box<Self>,
    },
    /// Shared memory.
    #[error(transparent)]
    Memory(std::sync::Arc<MemoryError>),
    /// Processes.
    #[error(transparent)]
    Process(std::sync::Arc<ProcessError>),
}

impl Error {
    /// A value error.
    pub fn argument(what: &'static str, message: impl Into<String>) -> Self {
        Self::Argument {
            what,
            message: message.into(),
        }
    }

    /// A type error.
    pub fn wrong_type(what: &'static str, message: impl Into<String>) -> Self {
        Self::Type {
            what,
            message: message.into(),
        }
    }

    /// A handle error.
    pub fn handle(what: &'static str, message: impl Into<String>) -> Self {
        Self::Handle {
            what,
            message: message.into(),
        }
    }
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        Self::Memory(std::sync::Arc::new(error))
    }
}

impl From<ProcessError> for Error {
    fn from(error: ProcessError) -> Self {
        Self::Process(std::sync::Arc::new(error))
    }
}

/// Told to stop by the interrupt check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

/// The caller's say in a blocking call: asked at least every 100 ms, with no lock held.
pub trait Interrupt: Send + Sync {
    /// Whether to go on.
    ///
    /// # Errors
    /// [`Interrupted`] to stop.
    fn check(&self) -> Result<(), Interrupted>;
}

/// Never interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn check(&self) -> Result<(), Interrupted> {
        Ok(())
    }
}
