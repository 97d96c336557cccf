//! A write-back that failed may still be on its way: the owner is told before anything else touches its buffer.
//!
//! The order on the owner's lane does the waiting: the fence uses the buffer alone, so that whatever is sent afterwards and names it is
//! carried out after the fence was answered. So a fence has to be sent before dependants of the failed task are released.

use super::record::{Flight, Work};
use super::Core;
use crate::args::ArgSource;
use crate::endpoint::{BufferKey, ControlRequest};
use crate::graph::{EndpointId, TaskId};
use echelon_wire::buffer::AccessFlags;

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
                let flight = Flight::Forget { endpoint: owner };
                self.flights.insert(ticket, flight);
            }
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
