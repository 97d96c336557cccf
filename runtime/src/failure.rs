//! What a run says of tasks that did not complete: which, where, why, what was tried, and what to do next (design §4, R-085).

/// How a task that did not complete ended (design §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// User code raised.
    Failed,
    /// Infrastructure: the worker was lost while the task was there, no eligible worker was left, or what the task needs was out of
    /// the worker's reach.
    EndpointLost,
    /// It was never started: a task that it reads from did not complete.
    Skipped,
    /// It was never started: its run was ending.
    Cancelled,
}

impl FailureKind {
    /// Its name in reports: `failed`, `endpoint_lost`, `skipped`, `cancelled`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::EndpointLost => "endpoint_lost",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One step in the life of a task.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StoryStep {
    /// `submitted`, `ready`, `dispatched`, `started`, `returned`, `lost`, `ended`.
    pub state: &'static str,
    /// CLOCK_MONOTONIC in ns.
    pub at_ns: u64,
    /// Where, which attempt, why.
    pub detail: String,
}

/// One task that did not complete, as the run reports it.
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
    /// What to do next.
    pub hint: &'static str,
    /// Number of the task whose end it comes from; for skipped tasks of this run.
    pub cause: Option<u64>,
    /// Times that it was begun: more than one for an idempotent task whose worker was lost.
    pub attempts: u32,
    /// What happened to it, in order of time.
    pub story: Vec<StoryStep>,
}

impl TaskFailureInfo {
    /// The task's story, one line a step with its time since the submit.
    #[must_use]
    pub fn tell(&self) -> String {
        tell(self.sequence, &self.callable, &self.story)
    }
}

/// A story as text, one line a step with its time since the first.
pub(crate) fn tell(sequence: u64, callable: &str, story: &[StoryStep]) -> String {
    let begun = story.first().map_or(0, |step| step.at_ns);
    let mut text = format!("task {sequence} ({callable})");
    for step in story {
        let ms = step.at_ns.saturating_sub(begun) as f64 / 1e6;
        text.push_str(&format!("\n  {ms:>11.3} ms  {:<10}", step.state));
        // A traceback of many lines is told once, in the message.
        let line = step.detail.lines().next_back().unwrap_or_default();
        if !line.is_empty() {
            text.push_str(&format!(" {line}"));
        }
    }
    text
}

impl std::fmt::Display for TaskFailureInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = match self.kind {
            FailureKind::Failed => "failed",
            FailureKind::EndpointLost => "was lost",
            FailureKind::Skipped => "was skipped",
            FailureKind::Cancelled => "was cancelled",
        };
        write!(f, "task {} ({}) {verb}", self.sequence, self.callable)?;
        if !matches!(self.kind, FailureKind::Skipped | FailureKind::Cancelled) {
            write!(f, " on {}", self.worker)?;
        }
        if let Some(id) = self.worker_id {
            write!(f, " [worker {id}]")?;
        }
        if let Some(host) = &self.host {
            write!(f, " at {host}")?;
        }
        if self.attempts > 1 {
            write!(f, " in attempt {}", self.attempts)?;
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
    /// Skipped and cancelled tasks in submit order; at most 100 are kept, `skipped` and `cancelled` count all.
    pub affected: Vec<TaskFailureInfo>,
    /// Tasks skipped because a producer that they read from did not complete.
    pub skipped: u64,
    /// Tasks cancelled before they started.
    pub cancelled: u64,
    /// Memory left undefined, in words (design §15.4).
    pub undefined_ranges: Vec<String>,
}

impl RunError {
    /// What the run is reported as: the kind of its root, else of the first task that did not run.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        let first = self.failures.first().or_else(|| self.affected.first());
        first.map_or(FailureKind::Cancelled, |task| task.kind)
    }
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(root) = self.failures.first() else {
            write!(
                f,
                "{} tasks were cancelled and {} skipped",
                self.cancelled, self.skipped
            )?;
            return match self.affected.first() {
                Some(first) => write!(f, "; the first:\n{first}\n{}", first.hint),
                None => Ok(()),
            };
        };
        write!(f, "{root}")?;
        let others = self.failures.len() as u64 - 1 + self.failures_dropped;
        if others > 0 || self.skipped > 0 || self.cancelled > 0 {
            write!(f, "\n({others} more tasks failed")?;
            if self.failures_dropped > 0 {
                write!(f, ", {} of them not listed", self.failures_dropped)?;
            }
            write!(
                f,
                ", {} were skipped, {} were cancelled)",
                self.skipped, self.cancelled
            )?;
        }
        if !self.undefined_ranges.is_empty() {
            write!(f, "\nundefined now: {}", self.undefined_ranges.join(", "))?;
        }
        write!(f, "\n{}", root.hint)
    }
}
