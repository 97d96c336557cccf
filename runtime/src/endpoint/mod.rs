//! Endpoints: where tasks run. The scheduler knows no transport; a transport knows no scheduler.
//!
//! An endpoint never blocks the caller: [`Endpoint::submit`] and [`Endpoint::control`] hand work over, and what became of it
//! comes out of [`Endpoint::poll_event`]. Whoever makes an event available rings the worker's bell. One conformance suite
//! (`testing::conformance`) runs over every implementation.

pub mod local;
pub mod thread;

use std::sync::Arc;
use std::time::Instant;

use echelon_wire::buffer::{AccessFlags, RemoteTensorDesc};
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::{Digest, RegistryTarget};
use echelon_wire::frame::control::transfer::{ExportResult, ImportResult};
use echelon_wire::id::{BufferId, Generation, ImportId, WorkerId};
use echelon_wire::tensor::TensorMeta;

use crate::callable::Callable;
use crate::memory::{HostMemory, SharedRegion};
use crate::tensor::{Lease, Tag};

/// One piece of work in flight at an endpoint; unique within a `Worker`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Where the bytes of an outgoing tensor are, as the endpoint must name them.
#[derive(Clone)]
pub enum Place {
    /// No bytes at all (a zero-size tensor without backing).
    Empty,
    /// Shared memory of this host: local endpoints and worker threads.
    Shared {
        /// The region.
        region: Arc<SharedRegion>,
        /// First byte in it.
        offset: u64,
        /// Kept until the task ends.
        lease: Option<Lease>,
    },
    /// Bytes that travel with the task (HOST_INLINE): remote endpoints.
    Inline(HostMemory),
    /// A buffer or an import of the session that runs the task.
    Remote(RemoteTensorDesc),
}

/// One tensor argument on its way to an endpoint.
#[derive(Clone)]
pub struct OutboundTensor {
    /// Shape and element type.
    pub meta: TensorMeta,
    /// How the task uses it.
    pub tag: Tag,
    /// Where it is.
    pub place: Place,
}

/// A task on its way to an endpoint.
pub struct OutboundTask<'a> {
    /// What to call.
    pub callable: &'a Callable,
    /// The configuration.
    pub config: &'a CallConfig,
    /// Tensor arguments.
    pub tensors: &'a [OutboundTensor],
    /// Scalar arguments.
    pub scalars: &'a [u64],
    /// Tasks in flight at the endpoint that must have completed there, or this one is skipped ([`EndpointEvent::Skipped`]). Empty
    /// towards an endpoint that takes no conditions.
    pub after: &'a [Ticket],
}

/// Identity of a buffer in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferKey {
    /// Id given by the session.
    pub buffer: BufferId,
    /// Its generation.
    pub generation: Generation,
}

/// Step of a registration transaction (slr3-v1 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterStep {
    /// Check, import, keep aside.
    Prepare,
    /// Make it callable.
    Commit,
    /// Forget what was prepared.
    Abort,
}

/// A request that is not a task.
#[derive(Clone)]
pub enum ControlRequest {
    /// One step of registering a callable. A child installs at `Prepare` and takes the other steps as no-ops.
    Register {
        /// Which step.
        step: RegisterStep,
        /// What.
        callable: Callable,
        /// Into which registry.
        registry: RegistryTarget,
    },
    /// Remove a callable.
    Unregister {
        /// Its digest.
        digest: Digest,
        /// Its kind, needed on the wire.
        kind: echelon_wire::callable::CallableKind,
        /// From which registry.
        registry: RegistryTarget,
    },
    /// Allocate a remote buffer of so many bytes.
    Alloc {
        /// Size, non-zero.
        nbytes: u64,
    },
    /// Free a remote buffer; idempotent.
    Free {
        /// Which.
        buffer: BufferKey,
    },
    /// Copy host bytes into a remote buffer. At most `limits::MAX_COPY_TO_BYTES`.
    CopyTo {
        /// Which.
        buffer: BufferKey,
        /// First byte.
        offset: u64,
        /// The bytes; pinned by the request.
        source: HostMemory,
    },
    /// Copy from a remote buffer into host memory. At most `limits::MAX_COPY_FROM_BYTES`.
    CopyFrom {
        /// Which.
        buffer: BufferKey,
        /// First byte.
        offset: u64,
        /// Where to; pinned by the request.
        destination: HostMemory,
    },
    /// Export a range of a buffer.
    Export {
        /// Which.
        buffer: BufferKey,
        /// First byte.
        offset: u64,
        /// Size, non-zero.
        nbytes: u64,
        /// What importers may do.
        access: AccessFlags,
    },
    /// Import what another session exported.
    Import {
        /// The description the owner gave.
        export: Box<ExportResult<'static>>,
        /// What is asked for; a subset of the export's.
        access: AccessFlags,
    },
    /// Release an import.
    ReleaseImport {
        /// Worker that owns the buffer.
        owner: WorkerId,
        /// The owner's buffer.
        buffer: BufferKey,
        /// The importer's id of the import.
        import: ImportId,
    },
    /// Have the owner of a buffer stop writing what a failed importer sent. Answered when nothing of it is written any more; what
    /// names the buffer afterwards comes after that (extension `peer_fence`).
    Fence {
        /// The owner's buffer.
        buffer: BufferKey,
        /// Session of the importer.
        importer: u64,
        /// It is lost, and nothing of it is to be served again.
        lasting: bool,
    },
    /// Drop the mapping of a region in a child.
    DropRegion {
        /// Region id.
        region: u64,
    },
    /// Ask for the events of the session's inner workers (extension `timed_completion`; a local L3 child answers too).
    CollectTrace,
}

/// The successful answer to a [`ControlRequest`].
#[derive(Clone, Debug)]
pub enum ControlReply {
    /// Done; nothing to say.
    Done,
    /// Answer to `Alloc`.
    Allocated {
        /// Identity of the new buffer.
        buffer: BufferKey,
        /// What the session sent as its address; opaque.
        remote_addr: u64,
        /// What the session sent as its key; opaque.
        rkey: u64,
    },
    /// Answer to `Export`.
    Exported(Box<ExportResult<'static>>),
    /// Answer to `Import`.
    Imported(Box<ImportResult<'static>>),
    /// Answer to `CollectTrace`: JSON, see `trace`.
    Trace(Vec<u8>),
    /// A session's name of machine code that comes in parts; it stays inside the remote endpoint.
    Staged(Vec<u8>),
}

/// Why a control failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlFailure {
    /// The other side refused it; the endpoint lives.
    #[error("{0}")]
    Refused(String),
    /// This kind of endpoint, or this peer, cannot do it.
    #[error("{what} is not supported by {worker}; {hint}")]
    Unsupported {
        /// The request.
        what: &'static str,
        /// Who.
        worker: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// The endpoint was lost before the answer came: whether it took effect is not known.
    #[error("the worker was lost before it answered: {0}")]
    Lost(String),
}

/// Why a task did not complete at an endpoint that goes on.
#[derive(Clone, Debug, Default)]
pub struct TaskFailure {
    /// The text that came back, traceback included, at most 4,096 bytes.
    pub message: String,
    /// Not the callable's doing: what the task needs there was gone, or it was not carried out. The task ends as lost, not as
    /// failed, and is tried again if it is idempotent.
    pub infrastructure: bool,
}

impl TaskFailure {
    /// The callable raised, or its arguments were wrong.
    #[must_use]
    pub fn raised(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            infrastructure: false,
        }
    }

    /// Something else than the callable was at fault.
    #[must_use]
    pub fn infrastructure(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            infrastructure: true,
        }
    }
}

/// What became of a task.
#[derive(Clone, Debug, Default)]
pub struct TaskReport {
    /// `None` when it completed.
    pub failure: Option<TaskFailure>,
    /// Start on CLOCK_MONOTONIC in ns, where the peer reports it.
    pub start_ns: Option<u64>,
    /// End, likewise.
    pub end_ns: Option<u64>,
}

/// What comes out of an endpoint.
#[derive(Debug)]
pub enum EndpointEvent {
    /// A task ended.
    Done {
        /// Which.
        ticket: Ticket,
        /// How.
        report: TaskReport,
    },
    /// A task was not carried out, because one of those that it was to come after did not complete.
    Skipped {
        /// Which.
        ticket: Ticket,
    },
    /// A control was answered.
    ControlDone {
        /// Which.
        ticket: Ticket,
        /// How.
        result: Result<ControlReply, ControlFailure>,
    },
    /// The endpoint is gone for good. Emitted once, as the last event; everything in flight is lost.
    Lost {
        /// What happened and what to do, e.g. "child pid 12 was killed by signal 9".
        reason: String,
        /// Tasks in flight that were certainly not begun.
        unstarted: Vec<Ticket>,
    },
}

/// What an endpoint reports of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Name in messages and timelines: `local/sub0`, `remote1`.
    pub name: String,
    /// Process id, 0 for threads of this process and where it is not known.
    pub pid: u32,
    /// Tasks that may be in flight however long they take.
    pub capacity: u32,
    /// Tasks that may be in flight while they are short, at least `capacity`. What waits there cannot be called back, so the
    /// scheduler keeps about a millisecond of work there.
    pub depth: u32,
    /// True when arguments in shared memory of this host can be named.
    pub shares_memory: bool,
    /// Session id of a remote endpoint.
    pub session: Option<u64>,
    /// Payload bytes of one frame to or from a remote endpoint: what a step of a copy may move.
    pub frame_bytes: u32,
    /// Bytes of one copy request, where copies do not travel in frames.
    pub copy_step: Option<u64>,
}

/// The endpoint is lost; `poll_event` says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("worker {name} is lost: {reason}")]
pub struct EndpointGone {
    /// Which.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Where tasks run.
pub trait Endpoint: Send {
    /// What it is.
    fn info(&self) -> EndpointInfo;

    /// Hands a task over. The caller keeps at most `depth` in flight.
    ///
    /// # Errors
    /// [`EndpointGone`] when it is lost, [`SubmitError::Refused`] when the task cannot be expressed for it.
    fn submit(&mut self, ticket: Ticket, task: &OutboundTask<'_>) -> Result<(), SubmitError>;

    /// Whether it carries tasks out strictly in the order of their submits, and takes [`OutboundTask::after`].
    fn takes_conditions(&self) -> bool {
        false
    }

    /// Hands a control over; answered by [`EndpointEvent::ControlDone`].
    ///
    /// # Errors
    /// [`EndpointGone`] when it is lost.
    fn control(&mut self, ticket: Ticket, request: ControlRequest) -> Result<(), EndpointGone>;

    /// Reads what has arrived, where events come from what somebody has to read. Never blocks.
    fn read(&mut self) {}

    /// The next event, `None` when there is none now. Never blocks.
    fn poll_event(&mut self) -> Option<EndpointEvent>;

    /// True when [`Endpoint::poll_event`] has certainly nothing to do or to give, told by a look at a few words: most endpoints of
    /// many have nothing to say most of the time. False where that cannot be told so cheaply.
    fn is_quiet(&self) -> bool {
        false
    }

    /// True while another process may ring the worker's bell for it; while none may, a waiter need not listen to the bell.
    fn may_ring(&self) -> bool {
        true
    }

    /// Ends the running work by force: kills a child. It takes nothing from now on and becomes lost. Only what cannot be
    /// ended by force, a thread of this process, goes on.
    fn kill(&mut self, reason: &str);

    /// Tells it to end; does not wait.
    fn begin_close(&mut self);

    /// Waits until it has ended, and uses force when `deadline` passes.
    ///
    /// # Errors
    /// What could not be ended, by name.
    fn finish_close(&mut self, deadline: Instant) -> Result<(), String>;
}

/// Why a task was not handed over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The endpoint is lost.
    #[error(transparent)]
    Gone(#[from] EndpointGone),
    /// The task cannot be sent: too large for the carrier, memory it cannot name.
    #[error("{0}")]
    Refused(String),
}
