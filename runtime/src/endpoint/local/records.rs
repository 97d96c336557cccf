//! Tasks and controls into records for the child, and its records into events.

use echelon_wire::buffer::{RemoteTensorDesc, TensorFlags};
use echelon_wire::callable::RegistryTarget;
use echelon_wire::codec::Writer;
use echelon_wire::order::Conditions;
use echelon_wire::task::TaskArgsWire;

use smallvec::SmallVec;

use super::outbox::OutboxError;
use super::LocalEndpoint;
use crate::callable::Callable;
use crate::child::records::{self, Answer, Done, Install, Remove, Task};
use crate::endpoint::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, EndpointEvent, OutboundTask,
    OutboundTensor, Place, RegisterStep, TaskFailure, TaskReport, Ticket,
};
use crate::mailbox::RecordHead;
use crate::tensor::Tag;

/// Memory that one encoding after the other uses.
#[derive(Default)]
pub(super) struct TaskEncoder {
    args: TaskArgsWire<'static>,
    bytes: Vec<u8>,
}

impl TaskEncoder {
    /// Takes back what [`LocalEndpoint::encode`] gave out.
    pub(super) fn reuse(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }
}

impl LocalEndpoint {
    fn describe(&mut self, tensor: &OutboundTensor) -> Result<RemoteTensorDesc, String> {
        let Place::Shared { region, offset, .. } = &tensor.place else {
            return Err(format!(
                "{} sees shared memory only; use orch.copy",
                self.name
            ));
        };
        let sent = self.outbox.region(region);
        sent.map_err(|error| format!("memory could not be shared with {}: {error}", self.name))?;
        let flags = TensorFlags {
            tag: Some(tensor.tag as u8),
            read_only: tensor.tag == Tag::Input,
        };
        let nbytes = tensor.meta.nbytes().unwrap_or(0);
        RemoteTensorDesc::local_shared(region.id(), *offset, nbytes, flags)
            .map_err(|error| error.to_string())
    }

    pub(super) fn encode(&mut self, task: &OutboundTask<'_>) -> Result<Vec<u8>, String> {
        let mut args = std::mem::take(&mut self.encoder.args);
        args.tensors.clear();
        args.sidecars.clear();
        args.scalars.clear();
        args.scalars.extend_from_slice(task.scalars);
        for tensor in task.tensors {
            args.tensors.push(tensor.meta);
            args.sidecars.push(Some(self.describe(tensor)?));
        }
        let after: SmallVec<[u64; 2]> = task.after.iter().map(|ticket| ticket.0).collect();
        let mut writer = Writer::from_vec(std::mem::take(&mut self.encoder.bytes));
        writer.clear();
        let encoded = Conditions::write(&after, &mut writer)
            .and_then(|()| Task::encode(&task.callable.digest, task.config, &args, &mut writer));
        self.encoder.args = args;
        encoded.map_err(|error| error.to_string())?;
        Ok(writer.into_bytes())
    }

    fn install(
        &mut self,
        ticket: Ticket,
        callable: &Callable,
        inner: bool,
    ) -> Result<(), ControlFailure> {
        let refused = |text: String| ControlFailure::Refused(text);
        let (kind, payload) = callable
            .payload()
            .map_err(|error| refused(error.to_string()))?;
        let install = Install {
            inner,
            digest: callable.digest,
            kind,
            name: &callable.name,
            payload: &payload,
        };
        let bytes = install
            .encode()
            .map_err(|error| refused(error.to_string()))?;
        self.request(ticket, records::INSTALL, &bytes)
    }

    fn request(&mut self, ticket: Ticket, kind: u32, payload: &[u8]) -> Result<(), ControlFailure> {
        let sent = self.outbox.record(kind, ticket.0, payload);
        sent.map_err(|error| ControlFailure::Refused(self.fault(&error)))
    }

    /// The text of what could not be sent; a fault of the mailbox also ends the child.
    pub(super) fn fault(&mut self, error: &OutboxError) -> String {
        if !error.is_refusal() {
            self.kill(&format!("it cannot be reached: {error}"));
        }
        error.to_string()
    }

    /// Sends what a control needs; `Ok(true)` when there is nothing to ask the child.
    pub(super) fn send_control(
        &mut self,
        ticket: Ticket,
        request: ControlRequest,
    ) -> Result<bool, ControlFailure> {
        let inner = |registry: RegistryTarget| registry == RegistryTarget::InnerL3Worker;
        match request {
            ControlRequest::Register {
                step: RegisterStep::Prepare,
                callable,
                registry,
            } => {
                self.install(ticket, &callable, inner(registry))?;
            }
            ControlRequest::Register {
                step: RegisterStep::Commit,
                ..
            } => return Ok(true),
            ControlRequest::Register {
                step: RegisterStep::Abort,
                callable,
                registry,
            } => {
                let remove = Remove {
                    inner: inner(registry),
                    digest: callable.digest,
                };
                self.request(ticket, records::REMOVE, &remove.encode())?;
            }
            ControlRequest::Unregister {
                digest, registry, ..
            } => {
                let remove = Remove {
                    inner: inner(registry),
                    digest,
                };
                self.request(ticket, records::REMOVE, &remove.encode())?;
            }
            ControlRequest::DropRegion { region } => {
                self.outbox.forget(region);
                self.request(ticket, records::DROP_REGION, &region.to_le_bytes())?;
            }
            ControlRequest::CollectTrace if self.runtime_below => {
                self.request(ticket, records::COLLECT_TRACE, &[])?;
            }
            _ => {
                return Err(ControlFailure::Unsupported {
                    what: "a remote buffer",
                    worker: self.name.clone(),
                    hint: "memory is shared with local workers: use orch.alloc",
                });
            }
        }
        Ok(false)
    }

    pub(super) fn event_of(&mut self, head: RecordHead) -> Result<Option<EndpointEvent>, String> {
        let ticket = Ticket(head.ticket);
        let text = |error: echelon_wire::error::DecodeError| error.to_string();
        match head.kind {
            records::READY => {
                self.ready = true;
                Ok(None)
            }
            records::PART_UP => {
                self.incoming.push(&self.payload)?;
                Ok(None)
            }
            records::RELEASED => {
                self.retained.remove(&head.ticket);
                Ok(None)
            }
            records::DONE => {
                let done = Done::decode(&self.payload).map_err(text)?;
                let leases = self.outbox.task_done(head.ticket);
                if let Some(leases) = leases.filter(|leases| done.retained && !leases.is_empty()) {
                    self.retained.insert(head.ticket, leases);
                }
                if done.skipped {
                    return Ok(Some(EndpointEvent::Skipped { ticket }));
                }
                let failure = done.failure.map(TaskFailure::raised);
                let report = TaskReport {
                    failure,
                    start_ns: Some(done.start_ns),
                    end_ns: Some(done.end_ns),
                };
                Ok(Some(EndpointEvent::Done { ticket, report }))
            }
            records::ANSWER => {
                let answer = Answer::decode(&self.payload).map_err(text)?;
                let result = match answer.0 {
                    Ok([]) => Ok(ControlReply::Done),
                    Ok(json) => Ok(ControlReply::Trace(json.to_vec())),
                    Err(message) => Err(ControlFailure::Refused(message.to_owned())),
                };
                Ok(Some(EndpointEvent::ControlDone { ticket, result }))
            }
            kind => Err(format!("record of unknown kind {kind}")),
        }
    }
}
