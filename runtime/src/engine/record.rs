//! What the engine remembers of tasks, endpoints and work in flight, beside the scheduler's ids.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::Digest;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::copies::CopyJob;
use super::story::Steps;
use super::submit::SubmitSpec;
use super::succession::Succession;
use crate::args::{TaskArgs, TensorArg};
use crate::buffer::RemoteBuffer;
use crate::callable::Callable;
use crate::endpoint::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, EndpointInfo, Ticket,
};
use crate::error::TaskFailureInfo;
use crate::graph::{EndpointId, Event, RunId, TaskId};
use crate::memory::{ArenaBlock, HostMemory};
use crate::registration::{Key, Pairs};
use crate::tensor::Tag;
use crate::worker::TaskOptions;

/// What an endpoint is to its `Worker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndpointRole {
    /// Runs sub callables.
    Sub,
    /// The process that owns a device.
    Chip {
        /// Its stable NEXT_LEVEL id.
        worker: i32,
        /// The device.
        device: i64,
    },
    /// A local child.
    LocalNextLevel {
        /// Its stable NEXT_LEVEL id.
        worker: i32,
    },
    /// A remote session.
    RemoteNextLevel {
        /// Its stable NEXT_LEVEL id.
        worker: i32,
        /// `host:port` of its daemon.
        host: String,
    },
}

impl EndpointRole {
    /// The NEXT_LEVEL id, if it has one.
    pub(crate) fn worker_id(&self) -> Option<i32> {
        match self {
            Self::Sub => None,
            Self::Chip { worker, .. }
            | Self::LocalNextLevel { worker }
            | Self::RemoteNextLevel { worker, .. } => Some(*worker),
        }
    }

    /// What to do when it is lost: only sessions can be reopened, and only processes without a runtime of their own are replaced.
    pub(crate) fn after_loss(&self) -> &'static str {
        match self {
            Self::Sub | Self::Chip { .. } => "a fresh process takes its place; try again",
            Self::LocalNextLevel { .. } => {
                "it stays lost; use other workers, or close this Worker and make a new one"
            }
            Self::RemoteNextLevel { .. } => {
                "its buffers are gone with it; a lost session is started anew with worker.reopen(worker_id)"
            }
        }
    }
}

/// One endpoint in service.
pub(crate) struct EndpointSlot {
    pub(crate) endpoint: Box<dyn Endpoint>,
    pub(crate) info: EndpointInfo,
    /// Its name in timelines.
    pub(crate) traced_as: Arc<str>,
    pub(crate) role: EndpointRole,
    /// Set with the reason while nothing can be done there any more.
    pub(crate) lost: Option<String>,
    /// What is registered there, as far as it is proven.
    pub(crate) pairs: Pairs,
    /// Tasks it has completed or failed.
    pub(crate) served: u64,
    /// Controls on their way there that threads asked for.
    pub(crate) controls_in_flight: usize,
    /// Copy steps on their way there.
    pub(crate) copies_in_flight: usize,
    /// Copies whose next step goes there, in the order of their turns.
    pub(crate) copies_waiting: VecDeque<TaskId>,
    /// Members that were sent there, in order: the first is the one that runs.
    pub(crate) queue: VecDeque<Sent>,
    /// Those of them that were not known to be short.
    pub(crate) unhurried: VecDeque<Ticket>,
    /// Members that it gets when their arrays are there, or was to get when it was gone already: its loss settles them too.
    pub(crate) untaken: Vec<Sent>,
    /// How a fresh endpoint takes this position, where that can be.
    pub(crate) succession: Option<Succession>,
}

impl RunState {
    /// A member has run at an endpoint.
    pub(super) fn count_at(&mut self, endpoint: EndpointId) {
        let at = endpoint.0 as usize;
        if at >= self.per_endpoint.len() {
            self.per_endpoint.resize(at + 1, 0);
        }
        self.per_endpoint[at] += 1;
    }
}

impl EndpointSlot {
    pub(crate) fn new(endpoint: Box<dyn Endpoint>, role: EndpointRole) -> Self {
        let info = endpoint.info();
        Self {
            endpoint,
            traced_as: info.name.as_str().into(),
            info,
            role,
            lost: None,
            pairs: Pairs::default(),
            served: 0,
            controls_in_flight: 0,
            copies_in_flight: 0,
            copies_waiting: VecDeque::new(),
            queue: VecDeque::new(),
            unhurried: VecDeque::new(),
            untaken: Vec::new(),
            succession: None,
        }
    }

    /// A fresh endpoint takes this position.
    pub(super) fn take_over(&mut self, fresh: Box<dyn Endpoint>) {
        self.info = fresh.info();
        self.traced_as = self.info.name.as_str().into();
        self.endpoint = fresh;
    }

    /// What the scheduler is told when it comes into service.
    pub(super) fn added(&self, endpoint: EndpointId) -> Event {
        Event::EndpointAdded {
            endpoint,
            capacity: self.info.capacity,
            depth: self.info.depth,
        }
    }

    /// A member was answered, or came back: it is not there any more.
    pub(super) fn take_member(&mut self, ticket: Ticket) -> Option<Sent> {
        self.forget_pace(ticket);
        if self.queue.front().is_some_and(|sent| sent.ticket == ticket) {
            return self.queue.pop_front();
        }
        let at = self.queue.iter().position(|sent| sent.ticket == ticket)?;
        self.queue.remove(at)
    }

    /// A member that waited here to be sent is sent now, or comes back.
    pub(super) fn take_untaken(&mut self, ticket: Ticket) -> Option<Sent> {
        let at = self.untaken.iter().position(|sent| sent.ticket == ticket)?;
        Some(self.untaken.remove(at))
    }

    /// Why a callable could not be installed on the fresh endpoint of this position.
    pub(super) fn refused(&self, digest: &Digest) -> Option<&String> {
        self.succession.as_ref()?.refused.get(digest)
    }
}

/// Where a plain array is while its task runs (decision 0004).
pub(crate) struct Stage {
    pub(crate) host: HostMemory,
    pub(crate) block: Arc<ArenaBlock>,
    pub(crate) copy_in: bool,
    pub(crate) copy_out: bool,
}

/// How far the arrays that a member reads are, where they are too large to be copied with the engine's lock held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Staged {
    /// To be copied before it is sent.
    #[default]
    No,
    /// On their way into shared memory.
    OnTheWay,
    /// There, and no worker has seen them.
    Yes,
}

/// One member of a task.
pub(crate) struct MemberRecord {
    pub(crate) args: TaskArgs,
    /// By tensor, up to the last that has one: the stages of those whose bytes are not in shared memory, if an endpoint that shares
    /// memory may run the task.
    pub(crate) stages: SmallVec<[Option<Stage>; 1]>,
    pub(crate) endpoint: Option<EndpointId>,
    /// Of its last dispatch.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) dispatched_ns: u64,
    /// Times that it was begun.
    pub(crate) attempts: u32,
    pub(crate) staged: Staged,
}

impl MemberRecord {
    /// Not dispatched yet.
    pub(super) fn new(args: TaskArgs, stages: SmallVec<[Option<Stage>; 1]>) -> Self {
        Self {
            args,
            stages,
            endpoint: None,
            ticket: None,
            dispatched_ns: 0,
            attempts: 0,
            staged: Staged::No,
        }
    }

    /// The tensors, with their stages.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&TensorArg, Option<&Stage>)> {
        let stages = self.stages.iter().map(Option::as_ref);
        self.args
            .tensors()
            .iter()
            .zip(stages.chain(std::iter::repeat(None)))
    }

    /// It is about to be handed over.
    pub(crate) fn note_dispatch(&mut self, endpoint: EndpointId, ticket: Ticket, now_ns: u64) {
        (self.endpoint, self.ticket) = (Some(endpoint), Some(ticket));
        self.dispatched_ns = now_ns;
    }
}

/// What a task is to do.
pub(crate) enum Work {
    /// Call something on one or more endpoints.
    Call {
        callable: Arc<Callable>,
        /// `None` for the usual ones.
        config: Option<Box<CallConfig>>,
        members: SmallVec<[MemberRecord; 1]>,
    },
    /// Move bytes.
    Copy(Box<CopyJob>),
}

impl Work {
    pub(super) fn call(spec: &SubmitSpec<'_>, members: SmallVec<[MemberRecord; 1]>) -> Self {
        let usual = spec.config == CallConfig::usual();
        Self::Call {
            callable: Arc::clone(spec.callable),
            config: (!usual).then(|| Box::new(spec.config.clone())),
            members,
        }
    }

    /// For messages and timelines.
    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::Call { callable, .. } => Arc::clone(&callable.name),
            Self::Copy(_) => "copy".into(),
        }
    }
}

/// One task that has not ended.
pub(crate) struct TaskRecord {
    pub(crate) run: RunId,
    /// Number of its plan: tasks planned before a callable was retired may still call it.
    pub(crate) plan: u64,
    /// Number in its run, from 1.
    pub(crate) sequence: u64,
    pub(crate) work: Work,
    /// Handles that the task pins.
    pub(crate) pins: Vec<RemoteBuffer>,
    pub(crate) options: TaskOptions,
    pub(crate) submit_ns: u64,
    pub(crate) deps: SmallVec<[u64; 2]>,
    pub(super) steps: Steps,
    pub(crate) failure: Option<Box<TaskFailureInfo>>,
}

impl TaskRecord {
    /// One of its members; a copy has none.
    pub(super) fn member(&self, member: u32) -> Option<&MemberRecord> {
        match &self.work {
            Work::Call { members, .. } => members.get(member as usize),
            Work::Copy(_) => None,
        }
    }

    /// It has one member, or is a copy.
    pub(super) fn is_alone(&self) -> bool {
        !matches!(&self.work, Work::Call { members, .. } if members.len() > 1)
    }
}

/// The answer to a blocking control, put there by whoever drives.
pub(crate) type ControlCell = Arc<Mutex<Option<Result<ControlReply, ControlFailure>>>>;

/// A member of a task at an endpoint that has not answered it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) ticket: Ticket,
    pub(crate) task: TaskId,
    pub(crate) member: u32,
}

impl Sent {
    pub(super) fn new(ticket: Ticket, task: TaskId, member: u32) -> Self {
        Self {
            ticket,
            task,
            member,
        }
    }
}

/// What a ticket stands for that is not a member's.
pub(crate) enum Flight {
    /// A step of a copy.
    Copy { task: TaskId, endpoint: EndpointId },
    /// A control that a thread waits for.
    Control {
        cell: ControlCell,
        endpoint: EndpointId,
        /// Pinned until the answer, whether or not the thread still waits for it.
        pin: Option<RemoteBuffer>,
    },
    /// A step of a registration; a thread may wait for it.
    Registration {
        key: Key,
        endpoint: EndpointId,
        cell: ControlCell,
    },
    /// A free or release; a thread may wait for it.
    Release {
        buffer: RemoteBuffer,
        endpoint: EndpointId,
        cell: Option<ControlCell>,
    },
    /// The undoing of what was made for a thread that has gone away.
    Undo(Undo),
    /// A step of installing a callable on a fresh endpoint.
    Install {
        digest: Digest,
        endpoint: EndpointId,
    },
    /// A control whose answer does not matter.
    Forget { endpoint: EndpointId },
    /// The owner of what a member may have been writing back keeps it away.
    Fence {
        endpoint: EndpointId,
        task: TaskId,
        member: u32,
    },
}

/// A free or release of what no handle was made for.
pub(crate) struct Undo {
    pub(crate) endpoint: EndpointId,
    /// Where it was made.
    pub(crate) session: Option<u64>,
    pub(crate) request: ControlRequest,
    /// Pinned until it has worked: the owner of an import.
    pub(crate) pin: Option<RemoteBuffer>,
    /// It was refused before.
    pub(crate) refused: bool,
}

impl Flight {
    pub(crate) fn endpoint(&self) -> EndpointId {
        match self {
            Self::Copy { endpoint, .. }
            | Self::Control { endpoint, .. }
            | Self::Registration { endpoint, .. }
            | Self::Release { endpoint, .. }
            | Self::Undo(Undo { endpoint, .. })
            | Self::Install { endpoint, .. }
            | Self::Forget { endpoint }
            | Self::Fence { endpoint, .. } => *endpoint,
        }
    }
}

/// Failures kept a run; further ones are counted.
pub(crate) const MAX_FAILURES_KEPT: usize = 100;

/// One `run()` that has not ended.
#[derive(Default)]
pub(crate) struct RunState {
    pub(crate) submitted: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) lost: u64,
    pub(crate) skipped: u64,
    pub(crate) cancelled: u64,
    pub(crate) failures: Vec<TaskFailureInfo>,
    pub(crate) failures_dropped: u64,
    /// Skipped and cancelled tasks.
    pub(crate) affected: Vec<TaskFailureInfo>,
    /// Numbers of tasks that did not complete, to be named as causes.
    pub(crate) roots: HashMap<TaskId, u64>,
    pub(crate) retried: u64,
    /// Members that each endpoint has run, by position.
    pub(crate) per_endpoint: Vec<u64>,
    pub(crate) events: Vec<crate::trace::TraceEvent>,
    /// No further submits: the orchestration function has returned.
    pub(crate) closed: bool,
    /// Ended by an interrupt: nothing is copied back into the caller's arrays any more (design §15.2).
    pub(crate) interrupted: bool,
}

/// True when the tag's bytes must be copied into the shadow before the task starts.
pub(crate) fn copies_in(tag: Tag) -> bool {
    tag != Tag::Output
}
