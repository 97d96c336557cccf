//! The runtime of Echelon: a task graph inferred from tensors, run on local and remote workers.
//!
//! A [`Worker`] is one level of the hierarchy. Its [`Orchestrator`] submits tasks whose arguments name memory; the pure core in
//! [`graph`] derives the order from the bytes they touch and says what to send where; [`endpoint`]s carry it out: child processes
//! behind shared-memory mailboxes, threads of this process, remote sessions over SLR3.
//!
//! Invariants, quoted by the tests that prove them:
//!
//! * **R-1** A task ends exactly once, with one of five outcomes.
//! * **R-2** Whatever order tasks run in, results are those of running them one by one in submit order (`NO_DEP` apart).
//! * **R-3** The engine's lock is never held while user code, Python or a blocking system call runs.
//! * **R-4** An endpoint that was lost is never used again; a fresh one may take its place.
//! * **R-5** Memory is reused only when no task and no view of it is left.
//! * **R-6** Every wait has a deadline, or ends with the endpoint that it waits for; each asks the interrupt check every 50 ms.
//! * **R-7** Every thread and child has an owner that joins it.

pub mod args;
pub mod buffer;
pub mod callable;
pub mod channel;
pub mod child;
pub mod chip;
pub mod deadline;
pub mod endpoint;
mod engine;
pub mod error;
pub mod failpoint;
mod failure;
mod fast;
pub mod graph;
pub mod mailbox;
pub mod memory;
pub mod process;
mod registration;
pub mod remote;
pub mod tensor;
pub mod testing;
pub mod text;
pub mod trace;
pub mod worker;

pub use args::{ArgSource, TaskArgs, TensorArg};
pub use buffer::{RemoteBuffer, RemoteExport};
pub use callable::{Callable, CallableHost, CallableSource, HostedCallable, NativeFn};
pub use chip::{ChipCode, ChipDevices};
pub use error::{
    Error, FailureKind, Interrupt, Interrupted, NoInterrupt, RunError, StoryStep, TaskFailureInfo,
};
pub use remote::RemoteWorkerSpec;
pub use tensor::{Tag, TaskView, Tensor};
pub use trace::TraceEvent;
pub use worker::{
    CallableHandle, ChildProgram, CopySide, LevelPlan, Orchestrator, Progress, RegisterOptions,
    RegisterScope, RunEnd, RunReport, TaskHandle, TaskOptions, Worker, WorkerBuilder, WorkerState,
};
