//! The errors of the runtime. Each says what, where, the value with its limit, and what to do next.

use std::time::Duration;

use crate::memory::MemoryError;
use crate::process::ProcessError;

/// Why everything that was under way ended when `close()` was called.
pub(crate) const CLOSED: &str = "the worker was closed";

/// What kind of end a failed task had (design §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum FailureKind {
    /// User code raised.
    Failed,
    /// The worker was lost while the task was there, or no eligible worker was left.
    EndpointLost,
}

/// One failed task, as the run reports it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TaskFailureInfo {
    /// How it ended.
    pub kind: FailureKind,
    /// Name of the callable.
    pub callable: String,
    /// NEXT_LEVEL worker id; `None` for sub workers and copies.
    pub worker_id: Option<i32>,
    /// Name of the worker, e.g. `remote0`.
    pub worker: String,
    /// `host:port` of a remote worker's daemon.
    pub host: Option<String>,
    /// Number of the task in its run, from 1 in submit order.
    pub sequence: u64,
    /// The text that came back: the remote traceback, or the reason of the loss.
    pub message: String,
}

impl TaskFailureInfo {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self.kind {
            FailureKind::Failed => "mend the callable or its arguments; tasks that do not read its outputs were not affected",
            FailureKind::EndpointLost if self.message == CLOSED => {
                "another thread called close() while this run was under way: let run() return before, or submit the work again to a new Worker"
            }
            FailureKind::EndpointLost if self.worker_id.is_none() => {
                "a fresh process takes its place and other tasks go on: mend the callable if it ended the process, then submit this work again"
            }
            FailureKind::EndpointLost => {
                "the worker is out for good: look at its log, then submit the work again to another worker"
            }
        }
    }
}

impl std::fmt::Display for TaskFailureInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = match self.kind {
            FailureKind::Failed => "failed",
            FailureKind::EndpointLost => "was lost",
        };
        write!(
            f,
            "task {} ({}) {verb} on {}",
            self.sequence, self.callable, self.worker
        )?;
        if let Some(id) = self.worker_id {
            write!(f, " [worker {id}]")?;
        }
        if let Some(host) = &self.host {
            write!(f, " at {host}")?;
        }
        write!(f, ":\n{}", self.message.trim_end())
    }
}

/// Why a run did not complete: all failures, the root first.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RunError {
    /// Failed and lost tasks in submit order; the first is the root. At most 100 are kept.
    pub failures: Vec<TaskFailureInfo>,
    /// Failures beyond those kept.
    pub failures_dropped: u64,
    /// Tasks skipped because a producer that they read from did not complete.
    pub skipped: u64,
    /// Tasks cancelled before they started.
    pub cancelled: u64,
    /// Memory left undefined, in words.
    pub undefined_ranges: Vec<String>,
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(root) = self.failures.first() else {
            return write!(
                f,
                "{} tasks were cancelled and {} skipped",
                self.cancelled, self.skipped
            );
        };
        write!(f, "{root}")?;
        let others = self.failures.len() as u64 - 1 + self.failures_dropped;
        if others > 0 || self.skipped > 0 || self.cancelled > 0 {
            write!(
                f,
                "\n({others} more tasks failed, {} were skipped, {} were cancelled)",
                self.skipped, self.cancelled
            )?;
        }
        if !self.undefined_ranges.is_empty() {
            write!(f, "\nundefined now: {}", self.undefined_ranges.join(", "))?;
        }
        write!(f, "\n{}", root.hint())
    }
}

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
    #[error("{worker} is lost: {message}; {hint}", hint = FailureHint::LOST)]
    EndpointLost {
        /// Name of the worker.
        worker: String,
        /// Why.
        message: String,
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
    /// Shared memory.
    #[error(transparent)]
    Memory(std::sync::Arc<MemoryError>),
    /// Processes.
    #[error(transparent)]
    Process(std::sync::Arc<ProcessError>),
}

struct FailureHint;

impl FailureHint {
    const LOST: &'static str = "it takes no more work; its buffers are gone with it";
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
