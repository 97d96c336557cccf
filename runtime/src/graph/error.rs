//! Why a submit is refused. A refused submit changes nothing.

use super::id::EndpointId;

/// Why a submit is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The table of tasks is full: wait until one has finished.
    #[error(
        "the task table is full: {limit} tasks are unfinished, the limit; wait for one to finish"
    )]
    TableFull {
        /// Most tasks that may be unfinished at once.
        limit: u32,
    },
    /// The eligible set names an endpoint that was never added.
    #[error("the eligible set names {endpoint}, which was never added")]
    NoSuchEndpoint {
        /// The unknown endpoint.
        endpoint: EndpointId,
    },
    /// Every endpoint of the eligible set is lost.
    #[error("all {eligible} eligible endpoints are lost; reopen one or submit to others")]
    AllLost {
        /// Size of the eligible set.
        eligible: usize,
    },
    /// The members of a gang cannot be put on distinct live endpoints.
    #[error("the group has {members} members, but only {available} of them can be put on distinct live endpoints")]
    GangTooLarge {
        /// Members asked for.
        members: usize,
        /// Most members that can run at once.
        available: usize,
    },
    /// A gang or wave without members.
    #[error("the group has no members; give at least one")]
    NoMembers,
    /// An access ends before it starts.
    #[error("access {index} ends at byte {end}, before its start at byte {start}")]
    BadInterval {
        /// Position in `NodeSpec::accesses`.
        index: usize,
        /// First byte.
        start: u64,
        /// First byte behind.
        end: u64,
    },
}
