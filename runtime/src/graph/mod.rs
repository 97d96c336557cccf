//! The task graph and its scheduler, as pure code: events in, actions out; no socket, thread, clock or environment.

mod access;
mod error;
mod event;
mod id;
mod node;

pub use access::{Access, AccessMode, Space};
pub use error::SubmitError;
pub use event::{Action, Event};
pub use id::{Eligible, EndpointId, RunId, TaskId};
pub use node::{MemberResult, NodeKind, NodeSpec, Outcome};
