//! What happened to a task: kept as a few words while it lives, told when it did not complete.

use smallvec::SmallVec;

use super::record::{EndpointRole, EndpointSlot, TaskRecord, Work, MAX_FAILURES_KEPT};
use super::Core;
use crate::error::{FailureKind, StoryStep, TaskFailureInfo};
use crate::graph::{EndpointId, TaskId};
use crate::trace::now_ns;

/// Steps kept a task; a group of many members, or many attempts, keeps its last words by its end.
const MAX_STEPS: usize = 64;

/// Tasks that did not complete which a run can name as the cause of others.
const MAX_ROOTS: usize = 1 << 16;

#[derive(Clone, Copy, Debug)]
pub(super) enum StepKind {
    /// Ready, and no place was free.
    Waits,
    Sent(EndpointId),
    /// Begun there, as the worker says.
    Began(EndpointId),
    /// It had not been begun and waits again.
    Returned(EndpointId),
    /// Lost there, and to be tried again.
    Lost(EndpointId),
    /// The worker's answer, or its end, came.
    Ended(EndpointId),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    at_ns: u64,
    member: u32,
    kind: StepKind,
}

/// The steps of one task.
#[derive(Debug, Default)]
pub(super) struct Steps {
    list: SmallVec<[Step; 4]>,
    /// Why attempts were lost that were followed by another.
    pub(super) lost: Vec<String>,
}

impl Steps {
    pub(super) fn note(&mut self, member: u32, kind: StepKind) {
        self.note_at(now_ns(), member, kind);
    }

    pub(super) fn note_at(&mut self, at_ns: u64, member: u32, kind: StepKind) {
        if self.list.len() < MAX_STEPS {
            self.list.push(Step {
                at_ns,
                member,
                kind,
            });
        }
    }
}

impl TaskRecord {
    /// Keeps the first failure of the worst kind.
    pub(crate) fn fail(&mut self, kind: FailureKind, slot: Option<&EndpointSlot>, message: String) {
        if self.failure.as_ref().is_none_or(|known| known.kind < kind) {
            self.failure = Some(Box::new(self.failed_as(kind, slot, message)));
        }
    }

    fn failed_as(
        &self,
        kind: FailureKind,
        slot: Option<&EndpointSlot>,
        message: String,
    ) -> TaskFailureInfo {
        TaskFailureInfo {
            kind,
            callable: self.work.name().to_string(),
            worker_id: slot.and_then(|slot| slot.role.worker_id()),
            worker: slot.map_or_else(|| "no worker".into(), |slot| slot.info.name.clone()),
            host: slot.and_then(|slot| match &slot.role {
                EndpointRole::RemoteNextLevel { host, .. } => Some(host.clone()),
                _ => None,
            }),
            sequence: self.sequence,
            message,
            hint: hint(kind, slot),
            cause: None,
            attempts: self.attempts(),
            story: Vec::new(),
        }
    }

    /// Most times that one of its members was begun.
    pub(super) fn attempts(&self) -> u32 {
        match &self.work {
            Work::Call { members, .. } => members.iter().map(|m| m.attempts).max().unwrap_or(0),
            Work::Copy(_) => 0,
        }
    }

    /// Its life so far, for a report.
    pub(super) fn story(&self, slots: &[EndpointSlot], outcome: FailureKind) -> Vec<StoryStep> {
        let name = |id: EndpointId| {
            let slot = slots.get(id.0 as usize);
            slot.map_or_else(|| id.to_string(), |slot| slot.info.name.clone())
        };
        let group = matches!(&self.work, Work::Call { members, .. } if members.len() > 1);
        let mut lost = self.steps.lost.iter();
        let mut story = vec![StoryStep {
            state: "submitted",
            at_ns: self.submit_ns,
            detail: match self.deps.as_slice() {
                [] => String::new(),
                deps => format!("waits for tasks {deps:?}"),
            },
        }];
        for step in &self.steps.list {
            let (state, detail) = match step.kind {
                StepKind::Waits => ("ready", "no place is free".to_owned()),
                StepKind::Sent(id) => ("dispatched", format!("to {}", name(id))),
                StepKind::Began(id) => ("started", format!("on {}", name(id))),
                StepKind::Returned(id) => {
                    ("returned", format!("{} ended before it began", name(id)))
                }
                StepKind::Lost(id) => {
                    let why = lost.next().map_or("", String::as_str);
                    ("lost", format!("on {}, to be tried again: {why}", name(id)))
                }
                StepKind::Ended(id) => ("answered", format!("by {}", name(id))),
            };
            let member = if group && !matches!(step.kind, StepKind::Waits) {
                format!("member {} ", step.member)
            } else {
                String::new()
            };
            story.push(StoryStep {
                state,
                at_ns: step.at_ns,
                detail: member + &detail,
            });
        }
        story.push(StoryStep {
            state: "ended",
            at_ns: now_ns(),
            detail: format!("as {}", outcome.name()),
        });
        story
    }
}

/// What to do next.
fn hint(kind: FailureKind, slot: Option<&EndpointSlot>) -> &'static str {
    match (kind, slot.map(|slot| &slot.role)) {
        (FailureKind::Failed, _) => {
            "mend the callable or its arguments; tasks that do not read its outputs were not affected"
        }
        (FailureKind::EndpointLost, Some(EndpointRole::Sub | EndpointRole::Chip { .. })) => {
            "a fresh process takes its place and other tasks go on: mend the callable if it ended the process, then submit this work again; \
             idempotent=True lets Echelon do that"
        }
        (FailureKind::EndpointLost, Some(EndpointRole::LocalNextLevel { .. })) => {
            "it stays lost: look at its log, then submit the work again to another worker, or make a new Worker"
        }
        (FailureKind::EndpointLost, _) => {
            "look at its log and at what the message names, then submit the work again, idempotent=True lets Echelon do that; a lost session is started anew by \
             worker.reopen(worker_id)"
        }
        (FailureKind::Skipped, _) => "mend what its cause names, then submit both again",
        (FailureKind::Cancelled, _) => "it was not begun: submit it again in a new run",
    }
}

impl Core {
    /// Puts a task that did not complete into its run's report, within the bounds.
    pub(super) fn report_failure(
        &mut self,
        task: TaskId,
        mut record: TaskRecord,
        kind: FailureKind,
        cause: Option<TaskId>,
    ) {
        let Some(state) = self.runs.get_mut(record.run) else {
            return;
        };
        if state.roots.len() < MAX_ROOTS {
            state.roots.insert(task, record.sequence);
        }
        let cause = cause.and_then(|id| state.roots.get(&id).copied());
        if matches!(kind, FailureKind::Failed | FailureKind::EndpointLost) {
            let Some(mut info) = record.failure.take() else {
                return;
            };
            if state.failures.len() >= MAX_FAILURES_KEPT {
                state.failures_dropped += 1;
                return;
            }
            info.attempts = record.attempts();
            if self.closed && info.kind == FailureKind::EndpointLost {
                info.hint = "another thread called close() while this run was under way: let run() return before, or submit the work again to a new Worker";
            }
            info.story = record.story(&self.endpoints, info.kind);
            state.failures.push(*info);
        } else if state.affected.len() < MAX_FAILURES_KEPT {
            let message = match (kind, cause) {
                (FailureKind::Skipped, Some(cause)) => {
                    format!("it reads what task {cause} did not produce")
                }
                (FailureKind::Skipped, None) => {
                    "it reads what a task of another run did not produce".into()
                }
                _ => "its run was ending before it was begun".into(),
            };
            let mut info = record.failed_as(kind, None, message);
            info.cause = cause;
            info.story = record.story(&self.endpoints, kind);
            state.affected.push(info);
        }
    }
}
