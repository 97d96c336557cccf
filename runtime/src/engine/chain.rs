//! Chains in the engine: which tasks may have a part in one, what a chained task is sent with, and what comes of one that its
//! worker skipped (design §15.18).

use smallvec::SmallVec;

use super::record::{MemberRecord, Sent, Stage, Work};
use super::story::StepKind;
use super::{Core, GroupKind};
use crate::args::{ArgSource, TensorArg};
use crate::endpoint::Ticket;
use crate::graph::{Chaining, EndpointId, Event, TaskId};
use crate::worker::TaskOptions;

/// Tasks that a chained task reads from, as its endpoint knows them: ascending, each once.
pub(super) type Conditions = SmallVec<[Ticket; 2]>;

/// Set to `0`, every task is sent when what it waits for has ended: to measure what chains are worth.
const SWITCH: &str = "ECHELON_CHAINS";

/// Whether this process chains at all.
pub(super) fn switched_on() -> bool {
    std::env::var_os(SWITCH).is_none_or(|value| value != "0")
}

/// The part that a call may have in a chain. Groups have none.
pub(super) fn part_of(
    group: GroupKind,
    members: &[MemberRecord],
    options: &TaskOptions,
) -> Chaining {
    // Its results are in the caller's array only when they were copied back, after its end was reported (decision 0004).
    let copied_back = |stage: Option<&Stage>| stage.is_some_and(|stage| stage.copy_out);
    // What it wrote to a buffer on another host may still be on its way when it has failed, until its owner was told.
    let fetched = |arg: &TensorArg| match &arg.source {
        ArgSource::Remote { buffer, .. } => buffer.facts().fetched,
        _ => false,
    };
    let ends_there = |member: &MemberRecord| {
        let mut tensors = member.tensors();
        !tensors.any(|(arg, stage)| copied_back(stage) || fetched(arg))
    };
    let single = group == GroupKind::Single;
    // It is sent when its arrays have been copied, and until then nothing may be sent behind it.
    let sent_at_once = |member: &MemberRecord| !member.is_to_be_staged();
    Chaining {
        follows: single,
        leads: single && members.iter().all(|m| ends_there(m) && sent_at_once(m)),
        repeats: options.idempotent,
    }
}

impl Core {
    /// Tells the scheduler whether an endpoint takes chains.
    pub(super) fn allow_chains(&mut self, endpoint: EndpointId) {
        let takes = |slot: &super::EndpointSlot| slot.endpoint.takes_conditions();
        let allowed = self.chains && self.slot(endpoint).is_some_and(takes);
        self.scheduler.chain_on(endpoint, allowed);
    }

    /// Carries out `Action::Chain`.
    pub(super) fn dispatch_behind(&mut self, task: TaskId, endpoint: EndpointId) -> Option<Event> {
        let Some(conditions) = self.conditions_of(task) else {
            return Some(Event::MemberReturned {
                task,
                member: 0,
                endpoint,
                hold: false,
            });
        };
        self.dispatch(task, 0, endpoint, &conditions)
    }

    /// `None` when it is not to be sent after all.
    pub(super) fn conditions_of(&self, task: TaskId) -> Option<Conditions> {
        let ticket = |id: &TaskId| match &self.records.get(id)?.work {
            Work::Call { members, .. } => members.first()?.ticket,
            Work::Copy(_) => None,
        };
        let conditions = self.scheduler.conditions(task)?;
        let mut conditions: Conditions = conditions.iter().map(ticket).collect::<Option<_>>()?;
        // Producers are known in the order of their submits, and tickets follow the order in which tasks were sent.
        conditions.sort_unstable();
        conditions.dedup();
        Some(conditions)
    }

    /// An endpoint skipped a task because something that it reads from did not complete there.
    pub(super) fn on_skipped(&mut self, endpoint: EndpointId, ticket: Ticket) {
        let Some(Sent { task, member, .. }) = self.leave_queue(endpoint, ticket) else {
            tracing::warn!(
                ticket = ticket.0,
                "a skip that nobody waits for was dropped"
            );
            return;
        };
        self.not_begun(task, member, endpoint);
    }

    /// A member that was sent has not been begun: it is where it was before.
    pub(super) fn not_begun(&mut self, task: TaskId, member: u32, endpoint: EndpointId) {
        if let Some(record) = self.records.get_mut(&task) {
            record.steps.note(member, StepKind::Returned(endpoint));
            if let Work::Call { members, .. } = &mut record.work {
                if let Some(member) = members.get_mut(member as usize) {
                    member.attempts = member.attempts.saturating_sub(1);
                }
            }
        }
        self.feed(Event::MemberReturned {
            task,
            member,
            endpoint,
            hold: false,
        });
    }
}
