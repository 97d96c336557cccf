//! A write-back that failed may still be on its way: the owner is told before anything else touches its buffer.
//!
//! The member has not ended, and is not tried again, before all fences were answered: others may reach the bytes by ways of their
//! own, through imports of other sessions. An owner that does not carry a fence out is lost, and its buffers with it.

use super::record::{Flight, Work};
use super::Core;
use crate::args::ArgSource;
use crate::endpoint::{BufferKey, ControlFailure, ControlReply, ControlRequest};
use crate::graph::{EndpointId, Event, MemberResult, TaskId};
use echelon_wire::buffer::AccessFlags;

/// Fences of one member that were not answered yet.
#[derive(Default)]
pub(super) struct Fencing {
    open: usize,
    /// What the scheduler is told then.
    then: Option<Event>,
}

/// What a member may have been writing back.
struct Fence {
    owner: EndpointId,
    session: u64,
    buffer: BufferKey,
    importer: u64,
}

impl Core {
    /// Keeps what a failed member wrote to imports from other hosts away from their owners. `lasting` when its session is lost.
    pub(super) fn fence_off(&mut self, task: TaskId, member: u32, lasting: bool) {
        for fence in self.fences_of(task, member) {
            let Fence {
                owner,
                session,
                buffer,
                importer,
            } = fence;
            let ticket = self.new_ticket();
            let Some(slot) = self.slot_mut(owner) else {
                continue;
            };
            // With the owner's session its buffers are gone too.
            if slot.lost.is_some() || slot.info.session != Some(session) {
                continue;
            }
            let request = ControlRequest::Fence {
                buffer,
                importer,
                lasting,
            };
            if slot.endpoint.control(ticket, request).is_ok() {
                let flight = Flight::Fence {
                    endpoint: owner,
                    task,
                    member,
                };
                self.flights.insert(ticket, flight);
                self.fencing.entry((task, member)).or_default().open += 1;
            }
        }
    }

    /// An owner has answered, or is lost.
    pub(super) fn fenced(
        &mut self,
        owner: EndpointId,
        (task, member): (TaskId, u32),
        result: &Result<ControlReply, ControlFailure>,
    ) {
        if let Err(ControlFailure::Refused(why)) = result {
            let reason = format!("it could not keep a failed importer's bytes away: {why}");
            self.kill(owner, &reason);
        }
        let Some(fencing) = self.fencing.get_mut(&(task, member)) else {
            return;
        };
        fencing.open -= 1;
        if fencing.open == 0 {
            let then = self.fencing.remove(&(task, member)).and_then(|f| f.then);
            if let Some(event) = then {
                self.feed(event);
            }
        }
    }

    /// Tells the scheduler that a member is lost, when nothing of it is on its way any more; its place is free at once.
    pub(super) fn end_lost(&mut self, task: TaskId, member: u32, endpoint: EndpointId) {
        let result = MemberResult::Lost;
        match self.fencing.get_mut(&(task, member)) {
            None => self.feed(Event::MemberDone {
                task,
                member,
                endpoint,
                result,
            }),
            Some(fencing) => {
                fencing.then = Some(Event::MemberSettled { task, result });
                self.feed(Event::MemberRan {
                    task,
                    member,
                    endpoint,
                });
            }
        }
    }

    /// The time for another attempt has come.
    pub(super) fn release_attempt(&mut self, task: TaskId, member: u32) {
        let event = Event::MemberReleased { task, member };
        match self.fencing.get_mut(&(task, member)) {
            None => self.feed(event),
            Some(fencing) => fencing.then = Some(event),
        }
    }

    fn fences_of(&self, task: TaskId, member: u32) -> Vec<Fence> {
        let Some(Work::Call { members, .. }) = self.records.get(&task).map(|record| &record.work)
        else {
            return Vec::new();
        };
        let Some(member) = members.get(member as usize) else {
            return Vec::new();
        };
        let mut fences: Vec<Fence> = Vec::new();
        for arg in member.args.tensors() {
            let ArgSource::Remote { buffer, .. } = &arg.source else {
                continue;
            };
            let facts = buffer.facts();
            // Without `task_tags` a session writes back all that it may.
            let written = facts.fetched && facts.access.contains(AccessFlags::WRITE);
            let Some((_, owner)) = facts.import.as_ref().filter(|_| written) else {
                continue;
            };
            let owner = owner.facts();
            let known = |fence: &Fence| (fence.owner, fence.buffer) == (owner.endpoint, owner.key);
            if !fences.iter().any(known) {
                fences.push(Fence {
                    owner: owner.endpoint,
                    session: owner.session,
                    buffer: owner.key,
                    importer: facts.session,
                });
            }
        }
        fences
    }
}
