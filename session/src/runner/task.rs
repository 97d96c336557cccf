//! TASK: arguments materialised, the callable called in a run of the inner worker (contract §4.5, §11).

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use echelon_runtime::buffer::access_name;
use echelon_runtime::{trace, Error, Orchestrator, RunEnd, Tag, TaskView, Tensor};
use echelon_wire::buffer::{AccessFlags, AddressSpace, RemoteTensorDesc};
use echelon_wire::codec::Reader;
use echelon_wire::error::EncodeError;
use echelon_wire::frame::{Completion, FailureKind, Features, FrameType, TimedCompletion};
use echelon_wire::id::Sequence;
use echelon_wire::order::{behind_conditions, Conditions};
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};
use echelon_wire::tensor::TensorMeta;

use parking_lot::Mutex;

use super::command::{Reply, Session};
use crate::buffers::Buffers;
use crate::peer::{Transfers, Use};
use echelon_runtime::text::{cut, panic_text};

impl Session {
    pub(super) fn task(
        &mut self,
        sequence: Sequence,
        payload: &[u8],
    ) -> Result<Reply, EncodeError> {
        let start_ns = trace::now_ns();
        let outcome = self.perform_if_met(sequence, payload);
        let failure_kind = outcome.as_ref().err().map_or(FailureKind::None, |f| f.kind);
        let text = outcome.err().map(|failure| {
            let digest: String = behind_conditions(payload, self.features)
                .iter()
                .take(32)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            cut(format!(
                "remote worker_id={} hashid={digest} sequence={sequence}: {}",
                self.memory.worker_id, failure.text
            ))
        });
        self.completion(sequence, failure_kind, text, start_ns)
    }

    /// The completion that was negotiated; `text` says why it failed.
    pub(super) fn completion(
        &self,
        sequence: Sequence,
        failure_kind: FailureKind,
        text: Option<String>,
        start_ns: u64,
    ) -> Result<Reply, EncodeError> {
        if !self.features.contains(Features::TIMED_COMPLETION) {
            let done = match &text {
                None => Completion::success(sequence),
                Some(text) => Completion::failure(sequence, text),
            };
            return Reply::of(FrameType::Completion, &done);
        }
        let done = TimedCompletion {
            sequence,
            error_code: i32::from(text.is_some()),
            failure_kind,
            start_ns,
            end_ns: trace::now_ns(),
            error_message: text.unwrap_or_default().into(),
            result: Vec::new().into(),
        };
        Reply::of(FrameType::TimedCompletion, &done)
    }

    /// Carries a task out if what it names completed.
    fn perform_if_met(&mut self, sequence: Sequence, payload: &[u8]) -> Result<(), Failure> {
        if !self.features.contains(Features::CONDITIONS) {
            return self.perform(payload);
        }
        let mut reader = Reader::new(payload);
        // Both were checked when it came.
        let conditions = Conditions::read(&mut reader).map_err(|error| error.to_string())?;
        let met = self.outcomes.met(conditions).unwrap_or(false);
        let outcome = if met {
            self.perform(reader.rest()).map_err(Failure::of_itself)
        } else {
            Err(Failure {
                kind: FailureKind::Skipped,
                text: "a task that it names as a condition did not complete".to_owned(),
            })
        };
        self.outcomes.note(sequence.0, outcome.is_ok());
        outcome
    }

    fn perform(&self, payload: &[u8]) -> Result<(), Failure> {
        let carrier = Carrier::Wire(self.features);
        let task = TaskPayload::decode(payload, carrier).map_err(|error| error.to_string())?;
        let callable = self
            .dispatcher
            .live(&task.digest)
            .map(|hosted| &hosted.callable);
        let callable = callable.ok_or_else(|| {
            format!(
                "remote TASK dispatcher has no callable hashid {}",
                task.digest
            )
        })?;
        let mut transfers = Transfers::default();
        let mut unreached = None;
        // A callable that panics has failed, like one that raises: the session goes on (S-4).
        let ran = catch_unwind(AssertUnwindSafe(|| {
            self.worker.run(|orchestrator| {
                let buffers = &self.memory.buffers;
                let view = materialise(buffers, orchestrator, &task, &mut transfers)?;
                if let Err(text) = transfers.fetch(&self.memory.peers) {
                    unreached = Some(text);
                    return Err(String::new());
                }
                callable.call_orchestration(orchestrator, view)
            })
        }));
        if let Some(text) = unreached {
            return Err(Failure::of_peer(text));
        }
        match ran {
            // Only now has every inner task ended; dependants are released by the completion, which comes after this.
            Ok(Ok(_)) => transfers
                .write_back(&self.memory.peers)
                .map_err(Failure::of_peer),
            Ok(Err(RunEnd::Function(text))) => Err(text.into()),
            Ok(Err(RunEnd::Engine(error))) => Err(Failure::of_run(&error)),
            Err(panic) => {
                let text = panic_text(panic.as_ref());
                Err(format!("the callable panicked: {text}").into())
            }
        }
    }
}

/// Why a task did not complete, and whose fault it is.
struct Failure {
    kind: FailureKind,
    text: String,
}

impl Failure {
    /// A peer could not be reached, which is not the callable's fault.
    fn of_peer(text: String) -> Self {
        Self {
            kind: FailureKind::Endpoint,
            text,
        }
    }
}

impl Failure {
    /// With conditions "skipped" speaks of them alone: what an inner run skipped is as lost as what it lost.
    fn of_itself(mut self) -> Self {
        if self.kind == FailureKind::Skipped {
            self.kind = FailureKind::Endpoint;
        }
        self
    }

    /// The inner run did not complete: the kind of its root is that of the task, at every storey.
    fn of_run(error: &Error) -> Self {
        use echelon_runtime::FailureKind as Ended;
        let kind = match error {
            Error::Run(run) => match run.kind() {
                Ended::Failed => FailureKind::Task,
                Ended::EndpointLost => FailureKind::Endpoint,
                Ended::Skipped => FailureKind::Skipped,
                Ended::Cancelled => FailureKind::Cancelled,
            },
            Error::EndpointLost { .. } => FailureKind::Endpoint,
            _ => FailureKind::Task,
        };
        Self {
            kind,
            text: error.to_string(),
        }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self {
            kind: FailureKind::Task,
            text,
        }
    }
}

fn materialise(
    buffers: &Mutex<Buffers>,
    orchestrator: &Orchestrator,
    task: &TaskPayload<'_>,
    transfers: &mut Transfers,
) -> Result<TaskView, String> {
    let args = &task.args;
    let mut view = TaskView {
        tensors: Vec::with_capacity(args.tensors.len()),
        tags: Vec::with_capacity(args.tensors.len()),
        scalars: args.scalars.clone(),
        config: task.config.clone(),
    };
    for (index, (meta, desc)) in args.tensors.iter().zip(&args.sidecars).enumerate() {
        let at = |text: String| format!("argument {index}: {text}");
        let tag = tag_of(desc.as_ref()).map_err(at)?;
        let named = (*meta, desc.as_ref(), tag);
        let tensor = tensor(buffers, orchestrator, args, named, transfers).map_err(at)?;
        view.tensors.push(if tag == Some(Tag::Input) {
            tensor.as_read_only()
        } else {
            tensor
        });
        view.tags.push(tag);
    }
    Ok(view)
}

/// The tag of an argument; `None` without `task_tags`, and for an empty tensor, which has no descriptor to carry it.
fn tag_of(desc: Option<&RemoteTensorDesc>) -> Result<Option<Tag>, String> {
    let Some(desc) = desc else { return Ok(None) };
    let flags = desc.tensor_flags().map_err(|error| error.to_string())?;
    Ok(flags.tag.and_then(Tag::from_code))
}

/// Refuses a tag that asks for more than the memory allows. The parent checked it at submit; it is not believed.
fn check_tag(tag: Option<Tag>, allowed: AccessFlags, what: &str) -> Result<(), String> {
    let Some(tag) = tag.filter(|tag| !allowed.contains(tag.needs())) else {
        return Ok(());
    };
    Err(format!(
        "{} needs {} access and {what} allows only {}",
        tag.name(),
        access_name(tag.needs()),
        access_name(allowed)
    ))
}

fn tensor(
    buffers: &Mutex<Buffers>,
    orchestrator: &Orchestrator,
    args: &TaskArgsWire<'_>,
    (meta, desc, tag): (TensorMeta, Option<&RemoteTensorDesc>, Option<Tag>),
    transfers: &mut Transfers,
) -> Result<Tensor, String> {
    let text = |error: Error| error.to_string();
    let nbytes = meta.nbytes().ok_or("its size in bytes overflows 64 bits")?;
    let Some(desc) = desc else {
        if nbytes != 0 {
            return Err(format!(
                "{nbytes} bytes: remote TASK tensor without a descriptor must be empty"
            ));
        }
        return orchestrator.alloc(meta).map_err(text);
    };
    if desc.nbytes != nbytes {
        return Err(format!(
            "{} bytes described and {nbytes} by shape: remote TASK descriptor nbytes does not match tensor metadata",
            desc.nbytes
        ));
    }
    if desc.address_space == AddressSpace::HostInline {
        check_tag(tag, AccessFlags::READ, "what travels with the task")?;
        // A private copy in the arena, so that it can be forwarded to sub workers (design §15.1).
        let bytes = args
            .inline_bytes(desc)
            .ok_or("remote TASK inline range is outside the arena")?;
        let tensor = orchestrator.alloc(meta).map_err(text)?;
        tensor
            .memory()
            .map_err(text)?
            .copy_in(0, bytes)
            .map_err(|error| error.to_string())?;
        return Ok(tensor);
    }
    let place = buffers
        .lock()
        .locate(desc)
        .map_err(|error| error.to_string())?;
    check_tag(tag, place.access, place.what)?;
    if let Some(fetched) = &place.fetched {
        transfers.add(fetched, desc.offset, nbytes, Use::of(tag, place.access)?);
    }
    Tensor::new(meta, Arc::clone(&place.region), place.offset, None, false).map_err(text)
}
