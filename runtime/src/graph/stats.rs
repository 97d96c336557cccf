//! Counters of the scheduler.

use super::node::Outcome;

/// What has happened so far, and sizes now. `submitted` equals `unfinished` and the five outcomes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tasks accepted.
    pub submitted: u64,
    /// Tasks that ended `Completed`.
    pub completed: u64,
    /// Tasks that ended `Failed`.
    pub failed: u64,
    /// Tasks that ended `EndpointLost`.
    pub endpoint_lost: u64,
    /// Tasks that ended `Skipped`.
    pub skipped: u64,
    /// Tasks that ended `Cancelled`.
    pub cancelled: u64,
    /// Members dispatched and copies started.
    pub dispatched: u64,
    /// Reports that were ignored because the first verdict stands.
    pub late_reports: u64,
    /// Tasks without an outcome now.
    pub unfinished: usize,
    /// Slots of the task table ever used: never above the limit given to `Scheduler::new`, apart from slots whose
    /// generations are used up.
    pub slots: usize,
    /// Byte intervals in the dependency map now.
    pub intervals: usize,
    /// Eligible sets kept now.
    pub eligible_sets: usize,
    /// Entries of blocked tasks at lanes where they could follow what they wait for.
    pub followers: usize,
}

impl Stats {
    pub(super) fn count(&mut self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Completed => &mut self.completed,
            Outcome::Failed => &mut self.failed,
            Outcome::EndpointLost => &mut self.endpoint_lost,
            Outcome::Skipped => &mut self.skipped,
            Outcome::Cancelled => &mut self.cancelled,
        };
        *counter += 1;
    }

    /// Tasks with an outcome.
    pub fn finished(&self) -> u64 {
        self.completed + self.failed + self.endpoint_lost + self.skipped + self.cancelled
    }
}
