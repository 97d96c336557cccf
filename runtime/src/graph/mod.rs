//! The task graph and its scheduler, as pure code: events in, actions out; no socket, thread, clock or environment.
//!
//! A submit names byte intervals ([`Access`]) and what the node needs to run ([`NodeKind`]). The dependency map turns the
//! intervals into edges; a node whose predecessors have ended is placed on an endpoint with room, or waits in line.
//!
//! ```
//! use echelon_runtime::graph::*;
//!
//! let mut scheduler = Scheduler::new(1024);
//! let mut out = Vec::new();
//! let endpoint = EndpointId(0);
//! scheduler.handle(Event::EndpointAdded { endpoint, capacity: 2, depth: 2 }, &mut out);
//! let task = |mode| NodeSpec {
//!     run: RunId(1),
//!     kind: NodeKind::Single { eligible: Eligible::one(endpoint) },
//!     accesses: vec![Access { space: Space::Region(7), start: 0, end: 64, mode }],
//!     prefer: None,
//! };
//! let producer = scheduler.submit(task(AccessMode::Write), &mut out)?;
//! let consumer = scheduler.submit(task(AccessMode::Read), &mut out)?;
//! assert_eq!(out, [Action::Dispatch { task: producer, member: 0, endpoint }]);
//!
//! out.clear();
//! let result = MemberResult::Completed;
//! scheduler.handle(Event::MemberDone { task: producer, member: 0, endpoint, result }, &mut out);
//! assert_eq!(out[1], Action::Dispatch { task: consumer, member: 0, endpoint });
//! # Ok::<(), SubmitError>(())
//! ```
//!
//! # Invariants
//!
//! [`Scheduler::check_invariants`] checks them; the tests quote them.
//!
//! * **G-1** Every submitted task ends exactly once, and the counters add up (R-083).
//! * **G-2** Whatever order tasks run in, memory and outcomes equal running them one by one in submit order with the same
//!   failures: an edge wherever two tasks share a byte and one writes it, none elsewhere (R-227).
//! * **G-3** A task that reads bytes whose last writer did not complete is never dispatched, or was sent with that writer as its
//!   condition and ends as skipped (R-082). One that only overwrites them runs.
//! * **G-4** The dependency map remembers unfinished tasks and the poison of unfinished runs, nothing else; the entry of a
//!   newer task survives the clean-up of an older one (R-228).
//! * **G-5** A skipped or cancelled task keeps its place in the order of accesses until its predecessors have ended.
//! * **G-6** Nothing waits while an endpoint that could take it has room; of what waits for a place the lowest ticket gets
//!   it (R-243).
//! * **G-7** Only gangs that share no endpoint hold places while they wait (R-229).
//! * **G-8** Nothing is dispatched to an endpoint that is down or lost, and the first verdict on a member stands (R-084).
//!   What waits for one that is down keeps waiting, in its order; what came back from it takes its old place there.
//! * **G-9** Between calls every task is published whole: blocked with the exact number of its unfinished predecessors,
//!   waiting in one queue, or running (R-233).
//! * **G-10** A task is sent before what it waits for has ended only when all of that is in flight on one lane, and it ends
//!   after it (design §15.18).

mod access;
mod chain;
mod claims;
mod classes;
mod deps;
mod depth;
mod endpoint;
mod error;
mod event;
mod flights;
mod gang;
mod id;
mod interval;
mod invariants;
mod matching;
mod node;
mod placement;
mod poison;
mod readers;
mod scheduler;
mod slot;
mod stats;
mod task;
mod transition;

pub use access::{Access, AccessMode, Space};
pub use chain::{Chaining, MAX_CONDITIONS};
pub(crate) use depth::fading_max;
pub use error::SubmitError;
pub use event::{Action, Event};
pub use id::{Eligible, EndpointId, RunId, TaskId};
pub use node::{MemberResult, NodeKind, NodeSpec, Outcome};
pub use scheduler::Scheduler;
pub use stats::Stats;
pub(crate) use task::Accesses;
