//! What is submitted and how it ends.

use super::access::Access;
use super::id::{Eligible, EndpointId, RunId};

/// The shape of a node: what it needs to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// One member on one endpoint of the set.
    Single {
        /// Where it may run.
        eligible: Eligible,
    },
    /// All members at once on distinct endpoints, which are reserved together (a next-level group).
    Gang {
        /// Where each member may run; one entry a member, at least one.
        members: Vec<Eligible>,
    },
    /// Members as places become free, in waves if need be (a sub group). One failure skips members not yet dispatched.
    Waves {
        /// Number of members, at least one.
        members: u32,
        /// Where each member may run.
        eligible: Eligible,
    },
    /// A copy between two pieces of memory: takes no endpoint's place.
    Copy,
}

/// One submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// The run it belongs to.
    pub run: RunId,
    /// What it needs to run.
    pub kind: NodeKind,
    /// The bytes it reads and writes, of all members together; intervals may overlap each other.
    pub accesses: Vec<Access>,
    /// The endpoint that owns most of the bytes: taken whenever it is eligible and has room.
    pub prefer: Option<EndpointId>,
}

/// How a task ended; reached exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Every member completed.
    Completed,
    /// The run was cancelled before the task, or a part of it, had started.
    Cancelled,
    /// Something it reads was not produced; it was never dispatched.
    Skipped,
    /// User code raised.
    Failed,
    /// Infrastructure: a member ran on an endpoint that was lost, or no eligible endpoint is left.
    EndpointLost,
}

/// How one dispatched member, or a copy, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberResult {
    /// It returned.
    Completed,
    /// User code raised, or the copy was refused.
    Failed,
    /// The infrastructure under it failed.
    Lost,
}

impl From<MemberResult> for Outcome {
    fn from(result: MemberResult) -> Self {
        match result {
            MemberResult::Completed => Self::Completed,
            MemberResult::Failed => Self::Failed,
            MemberResult::Lost => Self::EndpointLost,
        }
    }
}
