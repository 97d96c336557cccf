//! Sending a member to its endpoint: the last place where it is decided how the bytes are named.

use echelon_wire::call_config::CallConfig;

use super::record::{EndpointSlot, MemberRecord, Sent, Stage, Staged, TaskRecord, Work};
use super::story::StepKind;
use super::Core;
use crate::args::{ArgSource, TensorArg};
use crate::callable::Callable;
use crate::endpoint::{OutboundTask, OutboundTensor, Place, SubmitError, Ticket};
use crate::error::FailureKind;
use crate::graph::{EndpointId, Event, MemberResult, TaskId};
use crate::memory::HostMemory;
impl Core {
    /// Sends a member, to be carried out only if the tasks `after` completed. An event comes back when that fails at once.
    pub(crate) fn dispatch(
        &mut self,
        task: TaskId,
        member: u32,
        endpoint: EndpointId,
        after: &[Ticket],
    ) -> Option<Event> {
        let ticket = self.new_ticket();
        // A session may have been followed by another since the task was submitted, with other buffers under the same numbers.
        let record = self.records.get(&task)?;
        let gone = self.ended_session(record, member);
        let slot = self.endpoints.at_work(endpoint)?;
        let record = self.records.get_mut(&task)?;
        let Work::Call {
            callable,
            config,
            members,
        } = &mut record.work
        else {
            return None;
        };
        let part = members.get_mut(member as usize)?;
        part.note_dispatch(endpoint, ticket, self.now_ns);
        let ended = |result| Event::MemberDone {
            task,
            member,
            endpoint,
            result,
        };
        if let Some(reason) = unusable(slot, callable).or(gone) {
            record.fail(FailureKind::EndpointLost, Some(slot), reason);
            return Some(ended(MemberResult::Lost));
        }
        let handed = Sent::new(ticket, task, member);
        if slot.info.shares_memory && part.is_to_be_staged() {
            slot.untaken.push(handed);
            self.staging.send(task, member, part);
            return None;
        }
        let config = match config {
            Some(config) => config,
            None => CallConfig::usual(),
        };
        match send(slot, ticket, (callable, config, &*part), after) {
            // A lost endpoint says so by its event, and what is in flight there is settled then. Until it comes the member keeps
            // its place: a place that came free at once would draw every ready task into the dead endpoint.
            sent @ (Ok(()) | Err(SubmitError::Gone(_))) => {
                let (sent, step) = (sent.is_ok(), StepKind::Sent(endpoint));
                part.attempts += u32::from(sent);
                record.steps.note_at(self.now_ns, member, step);
                if !sent {
                    slot.untaken.push(handed);
                    return None;
                }
                part.staged = Staged::No;
                slot.queue.push_back(handed);
                // Alone there, its time begins.
                let alone = slot.queue.len() == 1;
                self.note_pace(task, endpoint, ticket);
                if alone {
                    self.watch_time(endpoint);
                }
                None
            }
            Err(SubmitError::Refused(message)) => {
                record.fail(FailureKind::Failed, Some(slot), message);
                Some(ended(MemberResult::Failed))
            }
        }
    }
}

impl Core {
    /// Why an argument of the member is not there any more.
    fn ended_session(&self, record: &TaskRecord, member: u32) -> Option<String> {
        let Work::Call { members, .. } = &record.work else {
            return None;
        };
        let args = &members.get(member as usize)?.args;
        args.tensors().iter().find_map(|arg| match &arg.source {
            ArgSource::Remote { buffer, .. } => buffer.ended(|id| self.session_at(id)),
            _ => None,
        })
    }
}

/// Hands a member over, its tensors named as the endpoint sees them.
fn send(
    slot: &mut EndpointSlot,
    ticket: Ticket,
    (callable, config, member): (&Callable, &CallConfig, &MemberRecord),
    after: &[Ticket],
) -> Result<(), SubmitError> {
    let tensors = match member.args.tensors() {
        [] => Vec::new(),
        _ => outbound(member, slot).map_err(SubmitError::Refused)?,
    };
    let task = OutboundTask {
        callable,
        config,
        tensors: &tensors,
        scalars: member.args.scalars(),
        after,
    };
    slot.endpoint.submit(ticket, &task)
}

/// Why the callable cannot be called there after all.
fn unusable(slot: &EndpointSlot, callable: &Callable) -> Option<String> {
    let refused = slot.refused(&callable.digest);
    slot.lost.as_ref().or(refused).cloned()
}

fn outbound(member: &MemberRecord, slot: &EndpointSlot) -> Result<Vec<OutboundTensor>, String> {
    member
        .tensors()
        .map(|(arg, stage)| {
            let place = if slot.info.shares_memory {
                shared(arg, stage.map(|stage| (stage, member.staged)))?
            } else {
                remote(arg)?
            };
            Ok(OutboundTensor {
                meta: arg.meta,
                tag: arg.tag,
                place,
            })
        })
        .collect()
}

fn shared(arg: &TensorArg, stage: Option<(&Stage, Staged)>) -> Result<Place, String> {
    if let Some((stage, staged)) = stage {
        if stage.copy_in && staged != Staged::Yes {
            stage
                .block
                .fill(&stage.host)
                .map_err(|error| error.to_string())?;
        }
        return Ok(Place::Shared {
            region: std::sync::Arc::clone(stage.block.region()),
            offset: stage.block.offset(),
            lease: Some(std::sync::Arc::clone(&stage.block) as crate::tensor::Lease),
        });
    }
    match &arg.source {
        ArgSource::Tensor(tensor) => Ok(Place::Shared {
            region: std::sync::Arc::clone(tensor.region()),
            offset: tensor.offset(),
            lease: tensor.lease().cloned(),
        }),
        _ => Err("the argument is not in shared memory; this is a fault of the runtime, please report it".into()),
    }
}

fn remote(arg: &TensorArg) -> Result<Place, String> {
    Ok(match &arg.source {
        ArgSource::Remote { buffer, offset } => {
            Place::Remote(buffer.descriptor(*offset, arg.nbytes()))
        }
        _ if arg.nbytes() == 0 => Place::Empty,
        ArgSource::Inline(bytes) => Place::Inline(HostMemory::from_bytes(bytes.clone())),
        ArgSource::Host(memory) => Place::Inline(memory.clone()),
        ArgSource::Tensor(tensor) => {
            Place::Inline(tensor.memory().map_err(|error| error.to_string())?)
        }
    })
}
