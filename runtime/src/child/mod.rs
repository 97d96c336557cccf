//! The child's side of a mailbox: attach, say READY, serve records until told to end or the parent is gone.
//!
//! A child is exec'ed with descriptors and nothing else: it depends on nothing that was in its parent's memory (design §3). A
//! small thread ends the process as soon as the parent's end of the socket is closed, also while user code runs.

mod args;
pub(crate) mod records;
pub(crate) mod regions;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::callable::{CallableKind, Digest};
use echelon_wire::codec::Reader;
use echelon_wire::task::{Carrier, TaskPayload};

pub(crate) use args::command_line;
pub use args::{ChildArgs, ChildArgsError};

use crate::callable::{Callable, CallableHost, HostedCallable};
use crate::chip::ChipCode;
use crate::error::Error;
use crate::mailbox::{Bell, ChildSide, MailboxError, RecordHead};
use crate::process::{watch_parent, ProcessError};
use crate::tensor::{Lease, Tag, TaskView, Tensor};
use crate::trace::now_ns;
use crate::worker::{CallableHandle, LevelPlan, RegisterOptions, RunEnd, Worker, WorkerBuilder};
use records::{parts, Answer, Done, Install, Parts, Remove};
use regions::RegionTable;

/// How long a child waits for room in the completion ring, or for a descriptor that must be there: the parent is stopped or mad.
const PARENT_PATIENCE: Duration = Duration::from_secs(60);

/// Longest sleep without a record; the doorbell wakes it at once.
const IDLE: Duration = Duration::from_secs(60);

/// How often a child looks whether the last view of ended tasks has gone, while there are any.
const VIEW_RECHECK: Duration = Duration::from_millis(200);

/// Why a child ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// Its command line.
    #[error(transparent)]
    Args(#[from] ChildArgsError),
    /// The mailbox.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// Memory handed over at start.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    /// Descriptors and threads.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A record that cannot be decoded.
    #[error("record of kind {kind}: {message}")]
    Record {
        /// Its kind.
        kind: u32,
        /// What is wrong.
        message: String,
    },
    /// The plan of a local child, or its runtime.
    #[error("the inner runtime did not start: {0}")]
    Inner(String),
    /// The parent does not take completions any more.
    #[error("the parent took no completion for {PARENT_PATIENCE:?}")]
    ParentStalled,
}

/// What a child calls: leaves, or orchestration functions with a runtime of their own below.
enum Level {
    Leaf,
    Orchestration(Worker),
}

/// One child, serving.
pub struct Child {
    side: ChildSide,
    regions: RegionTable,
    host: Arc<dyn CallableHost>,
    callables: HashMap<Digest, Arc<dyn HostedCallable>>,
    level: Level,
    /// What the parent registered for the workers below; what this level registered itself is not the parent's to remove.
    of_parent: HashMap<Digest, CallableHandle>,
    incoming: Parts,
    /// Tasks that have ended while views of their arguments live on, by ticket (design §15.6).
    retained: Vec<(u64, Lease)>,
}

impl Child {
    /// Attaches to what was inherited, starts the inner runtime if there is a plan, and says READY. `inner` brings what a runtime
    /// in this process needs: how its children are started.
    ///
    /// # Errors
    /// [`ChildError`]; the process is to end with a non-zero status then, and the parent reports it.
    pub fn attach(
        args: ChildArgs,
        host: Arc<dyn CallableHost>,
        inner: WorkerBuilder,
    ) -> Result<Self, ChildError> {
        injected("child.attach")?;
        let bell = Bell::attach(args.bell)?;
        let side = ChildSide::attach(args.mailbox, bell)?;
        let socket: Arc<OwnedFd> = Arc::new(args.socket);
        watch_parent(&socket)?;
        let regions = RegionTable::new(&args.regions, socket);
        let mut of_parent = HashMap::new();
        let level = match args.plan {
            None => Level::Leaf,
            Some(json) => {
                let builder = inner.inherited_regions(regions.inherited());
                let (worker, handles) = start_inner(&json, builder)?;
                of_parent = handles;
                Level::Orchestration(worker)
            }
        };
        let mut child = Self {
            side,
            regions,
            host,
            callables: HashMap::new(),
            level,
            of_parent,
            incoming: Parts::default(),
            retained: Vec::new(),
        };
        injected("child.ready")?;
        let pid = std::process::id().to_le_bytes();
        child.send(records::READY, 0, &pid)?;
        Ok(child)
    }

    /// The inner runtime of a child that has one.
    #[must_use]
    pub fn inner(&self) -> Option<&Worker> {
        match &self.level {
            Level::Leaf => None,
            Level::Orchestration(worker) => Some(worker),
        }
    }

    /// Serves until the parent asks for the end: then what is running is finished and nothing more is begun.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn serve(mut self) -> Result<(), ChildError> {
        let mut payload = Vec::new();
        loop {
            let seen = self.side.doorbell_value();
            if self.side.is_shutdown_requested() {
                break;
            }
            match self.side.receive(&mut payload)? {
                Some(head) => {
                    self.take(head, &mut payload)?;
                    self.report_released()?;
                }
                None => {
                    self.report_released()?;
                    let idle = if self.retained.is_empty() {
                        IDLE
                    } else {
                        VIEW_RECHECK
                    };
                    let _rung = self.side.wait(seen, Instant::now() + idle);
                }
            }
        }
        if let Level::Orchestration(worker) = &self.level {
            worker
                .close()
                .map_err(|error| ChildError::Inner(error.to_string()))?;
        }
        Ok(())
    }

    /// Takes one record from the ring, which may be a part of one.
    fn take(&mut self, head: RecordHead, payload: &mut Vec<u8>) -> Result<(), ChildError> {
        if head.kind == records::PART_DOWN {
            return self
                .incoming
                .push(payload)
                .map_err(|message| ChildError::Record {
                    kind: head.kind,
                    message,
                });
        }
        self.incoming.complete(payload);
        self.handle(head, payload)
    }

    fn handle(&mut self, head: RecordHead, payload: &[u8]) -> Result<(), ChildError> {
        let bad = |error: &dyn std::fmt::Display| ChildError::Record {
            kind: head.kind,
            message: error.to_string(),
        };
        if head.kind == records::TASK {
            return self.task(head, payload);
        }
        let mut result = Vec::new();
        let answer: Result<(), String> = match head.kind {
            records::INSTALL => {
                let install = Install::decode(payload).map_err(|error| bad(&error))?;
                self.install(&install)
            }
            records::REMOVE => {
                let remove = Remove::decode(payload).map_err(|error| bad(&error))?;
                self.remove(&remove)
            }
            records::DROP_REGION => {
                let id = Reader::new(payload)
                    .u64("DROP_REGION.id")
                    .map_err(|error| bad(&error))?;
                self.regions
                    .drop_region(id)
                    .map_err(|error| error.to_string())
            }
            records::COLLECT_TRACE => match self.inner().map(Worker::trace_json) {
                Some(Ok(json)) => {
                    result = json;
                    Ok(())
                }
                Some(Err(error)) => Err(error.to_string()),
                None => Err("a leaf has no inner workers".into()),
            },
            kind => {
                return Err(ChildError::Record {
                    kind,
                    message: "unknown kind".into(),
                })
            }
        };
        let answer = match &answer {
            Ok(()) => Answer(Ok(&result)),
            Err(text) => Answer(Err(text)),
        };
        // A trace beyond every limit is an answer that says so, not the end of the child.
        let bytes = answer
            .encode()
            .or_else(|error| Answer(Err(&error.to_string())).encode());
        let bytes = bytes.map_err(|error| bad(&error))?;
        self.send(records::ANSWER, head.ticket, &bytes)
    }

    fn install(&mut self, install: &Install<'_>) -> Result<(), String> {
        if !install.inner {
            let callable = self.host.resolve(install.kind, install.payload)?;
            self.callables.insert(install.digest, callable);
            return Ok(());
        }
        let worker = self.inner().ok_or("a leaf has no inner workers")?;
        if self.of_parent.contains_key(&install.digest) {
            return Ok(());
        }
        let callable = Callable::from_payload(install.kind, install.name, install.payload)?;
        let handle = worker
            .register(callable, RegisterOptions::default())
            .map_err(|error| error.to_string())?;
        self.of_parent.insert(install.digest, handle);
        Ok(())
    }

    fn remove(&mut self, remove: &Remove) -> Result<(), String> {
        if !remove.inner {
            self.callables.remove(&remove.digest);
            return Ok(());
        }
        let worker = self.inner().ok_or("a leaf has no inner workers")?;
        // Not there is what was asked for. Kept until it is gone everywhere below.
        if let Some(handle) = self.of_parent.get(&remove.digest) {
            worker
                .unregister(handle)
                .map_err(|error| error.to_string())?;
            self.of_parent.remove(&remove.digest);
        }
        Ok(())
    }

    fn task(&mut self, head: RecordHead, payload: &[u8]) -> Result<(), ChildError> {
        let start_ns = now_ns();
        // Every tensor of the task holds it: who else holds it afterwards has kept a view.
        let lease: Lease = Arc::new(());
        let failure = self.perform(payload, &lease).err();
        let retained = Arc::strong_count(&lease) > 1;
        let done = Done {
            start_ns,
            end_ns: now_ns(),
            failure: failure.as_deref(),
            retained,
        };
        if retained {
            self.retained.push((head.ticket, lease));
        }
        let bytes = done.encode().map_err(|error| ChildError::Record {
            kind: head.kind,
            message: error.to_string(),
        })?;
        self.send(records::DONE, head.ticket, &bytes)
    }

    /// Tells the parent which tasks' last views have gone.
    fn report_released(&mut self) -> Result<(), ChildError> {
        if self.retained.is_empty() {
            return Ok(());
        }
        let (gone, kept) = std::mem::take(&mut self.retained)
            .into_iter()
            .partition(|(_, lease)| Arc::strong_count(lease) == 1);
        self.retained = kept;
        let gone: Vec<(u64, Lease)> = gone;
        for (ticket, _) in gone {
            self.send(records::RELEASED, ticket, &[])?;
        }
        Ok(())
    }

    fn perform(&mut self, payload: &[u8], lease: &Lease) -> Result<(), String> {
        let task =
            TaskPayload::decode(payload, Carrier::Mailbox).map_err(|error| error.to_string())?;
        let callable = self.callables.get(&task.digest).cloned();
        let callable = callable
            .ok_or_else(|| format!("callable {} is not installed in this child", task.digest))?;
        let view = self.view(&task, lease)?;
        match &self.level {
            Level::Leaf => callable.call_leaf(view),
            Level::Orchestration(worker) => {
                let ran =
                    worker.run(|orchestrator| callable.call_orchestration(orchestrator, view));
                ran.map(drop).map_err(|end| match end {
                    RunEnd::Function(text) => text,
                    RunEnd::Engine(error) => error.to_string(),
                })
            }
        }
    }

    fn view(&mut self, task: &TaskPayload<'_>, lease: &Lease) -> Result<TaskView, String> {
        let mut view = TaskView {
            tensors: Vec::with_capacity(task.args.tensors.len()),
            tags: Vec::with_capacity(task.args.tensors.len()),
            scalars: task.args.scalars.clone(),
            config: task.config.clone(),
        };
        let deadline = Instant::now() + PARENT_PATIENCE;
        for (meta, desc) in task.args.tensors.iter().zip(&task.args.sidecars) {
            let desc = desc
                .as_ref()
                .ok_or("a tensor without a place in shared memory")?;
            let flags = desc.tensor_flags().map_err(|error| error.to_string())?;
            let region = self
                .regions
                .get(desc.buffer_id.0, deadline)
                .map_err(|error| error.to_string())?;
            let lease = Some(Arc::clone(lease));
            let tensor = Tensor::new(*meta, region, desc.offset, lease, flags.read_only);
            view.tensors
                .push(tensor.map_err(|error| error.to_string())?);
            view.tags.push(flags.tag.and_then(Tag::from_code));
        }
        Ok(view)
    }

    /// Sends one record, in parts if it is large.
    fn send(&mut self, kind: u32, ticket: u64, payload: &[u8]) -> Result<(), ChildError> {
        let (first, last) = parts(payload);
        for part in first {
            self.send_one(records::PART_UP, ticket, part)?;
        }
        self.send_one(kind, ticket, last)
    }

    fn send_one(&mut self, kind: u32, ticket: u64, payload: &[u8]) -> Result<(), ChildError> {
        let (head, deadline) = (
            RecordHead { kind, ticket },
            Instant::now() + PARENT_PATIENCE,
        );
        if self.side.send(head, payload, deadline)? {
            return Ok(());
        }
        Err(ChildError::ParentStalled)
    }
}

fn injected(point: &str) -> Result<(), ChildError> {
    crate::failpoint::hit(point).map_err(|injected| ChildError::Inner(injected.to_string()))
}

/// The runtime below, with the handles of what the parent registered for it.
fn start_inner(
    json: &[u8],
    builder: WorkerBuilder,
) -> Result<(Worker, HashMap<Digest, CallableHandle>), ChildError> {
    let inner = |error: Error| ChildError::Inner(error.to_string());
    let mut plan: LevelPlan =
        serde_json::from_slice(json).map_err(|error| ChildError::Inner(error.to_string()))?;
    let entries = std::mem::take(&mut plan.inner);
    let worker = plan.into_worker(builder.inner()).map_err(inner)?;
    let mut of_parent = HashMap::new();
    for entry in entries {
        let callable = entry.callable().map_err(inner)?;
        let digest = callable.digest;
        if of_parent.contains_key(&digest) {
            continue;
        }
        let handle = worker.register(callable, entry.options).map_err(inner)?;
        of_parent.insert(digest, handle);
    }
    injected("child.inner")?;
    worker.init().map_err(inner)?;
    Ok((worker, of_parent))
}

impl Callable {
    /// The callable of a kind and payload that came from a parent, for registering it further down.
    ///
    /// # Errors
    /// The text of what is wrong with it.
    pub fn from_payload(kind: CallableKind, name: &str, payload: &[u8]) -> Result<Self, String> {
        match kind {
            CallableKind::PythonImport => {
                let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
                let target = echelon_wire::callable::ImportTarget::parse(text)
                    .map_err(|error| error.to_string())?;
                Ok(Self::import(target))
            }
            CallableKind::PythonSerialized => Ok(Self::serialized(name, payload.to_vec().into())),
            CallableKind::ChipCallable => {
                Ok(Self::chip(name, ChipCode::from_local_payload(payload)?))
            }
        }
    }
}
