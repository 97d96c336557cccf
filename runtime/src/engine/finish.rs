//! The end of a task: counted once, its buffers let go, its failure kept for the run.

use super::record::{ControlCell, Flight, RunState};
use super::Core;
use crate::buffer::RemoteBuffer;
use crate::endpoint::{ControlFailure, ControlReply, ControlRequest};
use crate::error::{FailureKind, RunError};
use crate::graph::{EndpointId, Outcome, RunId, TaskId};
use crate::trace::TraceEvent;

use echelon_wire::frame::control::transfer::ReleaseImport;

/// Events a run keeps for its report.
const MAX_RUN_EVENTS: usize = 1 << 17;

impl RunState {
    pub(crate) fn push_event(&mut self, event: TraceEvent) {
        if self.events.len() < MAX_RUN_EVENTS {
            self.events.push(event);
        }
    }

    /// The run's error, if anything of it did not complete.
    pub(crate) fn error(&mut self, undefined_ranges: Vec<String>) -> Option<RunError> {
        if self.failed + self.lost + self.skipped + self.cancelled == 0 {
            return None;
        }
        self.failures.sort_by_key(|failure| failure.sequence);
        self.affected.sort_by_key(|task| task.sequence);
        Some(RunError {
            failures: std::mem::take(&mut self.failures),
            failures_dropped: self.failures_dropped,
            affected: std::mem::take(&mut self.affected),
            skipped: self.skipped,
            cancelled: self.cancelled,
            undefined_ranges,
        })
    }
}

impl Core {
    /// Carries out `Action::Finished`.
    pub(crate) fn finish(
        &mut self,
        task: TaskId,
        run: RunId,
        outcome: Outcome,
        cause: Option<TaskId>,
    ) {
        let Some(record) = self.records.get_mut(&task) else {
            tracing::error!(%task, ?cause, "a task ended that nobody submitted");
            return;
        };
        self.finished += 1;
        if outcome == Outcome::EndpointLost {
            let last = self.last_loss.as_deref().unwrap_or("none is known");
            let message = format!(
                "every worker that could run it was lost before it was started; the last loss was {last}"
            );
            record.fail(FailureKind::EndpointLost, None, message);
        }
        for buffer in std::mem::take(&mut record.pins) {
            self.unpin(buffer);
        }
        let Some(state) = self.runs.get_mut(run) else {
            return self.records.discard(&task);
        };
        let (counter, kind) = match outcome {
            Outcome::Completed => (&mut state.completed, None),
            Outcome::Failed => (&mut state.failed, Some(FailureKind::Failed)),
            Outcome::EndpointLost => (&mut state.lost, Some(FailureKind::EndpointLost)),
            Outcome::Skipped => (&mut state.skipped, Some(FailureKind::Skipped)),
            Outcome::Cancelled => (&mut state.cancelled, Some(FailureKind::Cancelled)),
        };
        *counter += 1;
        match kind {
            None => self.records.discard(&task),
            Some(kind) => {
                if let Some(record) = self.records.remove(&task) {
                    self.report_failure(task, record, kind, cause);
                }
            }
        }
    }

    /// Lets go of a pin, and sends the free that was waiting for it.
    pub(crate) fn unpin(&mut self, buffer: RemoteBuffer) {
        if buffer.unpin() {
            self.send_release(buffer, None);
        }
        for undo in std::mem::take(&mut self.pending_undos) {
            self.send_undo(undo);
        }
    }

    /// Sends FREE or RELEASE_IMPORT for a buffer whose last pin is gone; a failure is kept and retried. `cell` gets the
    /// answer too: the thread that waits for it may go away, the buffer's state may not.
    pub(crate) fn send_release(&mut self, buffer: RemoteBuffer, cell: Option<ControlCell>) {
        let (endpoint, request) = release_request(&buffer);
        let ticket = self.new_ticket();
        let Some(slot) = self.endpoints.get_mut(endpoint.0 as usize) else {
            return;
        };
        // What belonged to an earlier session went with it; its number may be another buffer's now.
        let ended = slot.info.session != Some(buffer.facts().session);
        let gone = match &slot.lost {
            Some(reason) => Some(reason.clone()),
            None if ended => Some("its session has ended".to_owned()),
            None => slot
                .endpoint
                .control(ticket, request)
                .err()
                .map(|gone| gone.reason),
        };
        if let Some(reason) = gone {
            self.release_done(&buffer, cell, Err(ControlFailure::Lost(reason)));
            return;
        }
        let flight = Flight::Release {
            buffer,
            endpoint,
            cell,
        };
        self.flights.insert(ticket, flight);
    }

    pub(crate) fn release_done(
        &mut self,
        buffer: &RemoteBuffer,
        cell: Option<ControlCell>,
        result: Result<ControlReply, ControlFailure>,
    ) {
        match &result {
            // With a session that is gone, its buffers are gone; only the owner of an import is still to be let go.
            Ok(_) | Err(ControlFailure::Lost(_)) => self.released(buffer),
            Err(failure) if buffer.release_was_refused() && knows_no_import(failure) => {
                self.released(buffer);
            }
            Err(failure) => {
                tracing::warn!(%failure, "a release was refused; it is tried again");
                buffer.release_failed();
                self.pending_releases.push(buffer.clone());
            }
        }
        if let Some(cell) = cell {
            *cell.lock() = Some(result);
        }
    }

    /// Sends again what could not be released before.
    pub(crate) fn flush_releases(&mut self) {
        for buffer in std::mem::take(&mut self.pending_releases) {
            self.send_release(buffer, None);
        }
    }

    /// An import is gone: its owner's handle is not pinned by it any more.
    pub(crate) fn released(&mut self, buffer: &RemoteBuffer) {
        if let Some((_, owner)) = &buffer.facts().import {
            self.unpin(owner.clone());
        }
    }
}

/// A session of version 1 that carried a release out and refused it all the same answers so to the repeated one: there is nothing left
/// to release.
pub(super) fn knows_no_import(failure: &ControlFailure) -> bool {
    matches!(failure, ControlFailure::Refused(text) if text.contains(ReleaseImport::UNKNOWN))
}

/// The control that ends a buffer or an import, and the endpoint it goes to.
fn release_request(buffer: &RemoteBuffer) -> (EndpointId, ControlRequest) {
    let facts = buffer.facts();
    let request = match &facts.import {
        None => ControlRequest::Free { buffer: facts.key },
        Some((import, _)) => ControlRequest::ReleaseImport {
            owner: facts.owner_worker,
            buffer: facts.key,
            import: *import,
        },
    };
    (facts.endpoint, request)
}
