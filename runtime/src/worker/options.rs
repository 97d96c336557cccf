//! How a task is to be carried out, besides what it calls and on what.

use std::time::Duration;

use super::Orchestrator;
use crate::error::Error;

/// Longest time limit of a task.
const TIMEOUT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a task is to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskOptions {
    /// Longest time from its begin, more than 0 and at most 30 days. When it passes, the child that runs it is killed, or
    /// the session fails (design §15.15), and the task ends as `EndpointLost`.
    pub timeout: Option<Duration>,
    /// It may be carried out more than once: after the loss of its worker it is tried again elsewhere, at most `max_attempts`
    /// times in all. Its arguments must not be INOUT or NO_DEP: a lost attempt may have half written them.
    pub idempotent: bool,
}

impl Orchestrator {
    /// The same orchestrator, whose submits are carried out in this way.
    ///
    /// # Errors
    /// [`Error::Argument`] for a time limit outside its range.
    pub fn with(&self, options: TaskOptions) -> Result<Self, Error> {
        if let Some(timeout) = options.timeout {
            if timeout.is_zero() || timeout > TIMEOUT_MAX {
                return Err(Error::argument(
                    "timeout_s",
                    format!(
                        "{} s is outside 0 (exclusive) to {}",
                        timeout.as_secs_f64(),
                        TIMEOUT_MAX.as_secs()
                    ),
                ));
            }
        }
        let mut with = self.clone();
        with.options = options;
        Ok(with)
    }
}
