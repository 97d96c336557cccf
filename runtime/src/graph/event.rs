//! The scheduler's two closed vocabularies: what can happen to it, and what it asks for.

use super::id::{EndpointId, RunId, TaskId};
use super::node::{MemberResult, Outcome};

/// Everything that can happen besides a submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An endpoint came up, came back after a loss, or changed its capacity.
    EndpointAdded {
        /// Its identity.
        endpoint: EndpointId,
        /// Members that may be in flight there at once however long they take; 0 counts as 1.
        capacity: u32,
        /// Members that may be in flight there while they are short; less than `capacity` counts as that.
        depth: u32,
    },
    /// An endpoint takes nothing for a while and will be added again: what can run nowhere else waits for it. What is in
    /// flight there stays in flight until it is reported or comes back. A lost endpoint that is to come back is down, too.
    EndpointDown {
        /// Its identity.
        endpoint: EndpointId,
    },
    /// An endpoint is gone: what is in flight there is lost, and nothing is dispatched there again.
    EndpointLost {
        /// Its identity.
        endpoint: EndpointId,
    },
    /// A dispatched member ended. A second report, or one after the endpoint was lost, is ignored and counted.
    MemberDone {
        /// The task as dispatched.
        task: TaskId,
        /// The member as dispatched.
        member: u32,
        /// The endpoint as dispatched.
        endpoint: EndpointId,
        /// How it ended.
        result: MemberResult,
    },
    /// A dispatched member has run, or is lost, and what it wrote may still be on its way: its place is free, its task has not
    /// ended. One `MemberSettled` is expected. What comes a second time, or after the endpoint was lost, is ignored and counted.
    MemberRan {
        /// The task as dispatched.
        task: TaskId,
        /// The member as dispatched.
        member: u32,
        /// The endpoint as dispatched.
        endpoint: EndpointId,
    },
    /// What a member of `MemberRan` wrote has arrived, or cannot. A second report is ignored and counted.
    MemberSettled {
        /// The task.
        task: TaskId,
        /// How the member ended.
        result: MemberResult,
    },
    /// A dispatched member has not run, or may run once more: it waits for a place again, before what became ready after
    /// it. After a failure of another member, or a cancel, nothing more of the task is started. A member of a gang is lost.
    MemberReturned {
        /// The task as dispatched.
        task: TaskId,
        /// The member as dispatched.
        member: u32,
        /// The endpoint as dispatched.
        endpoint: EndpointId,
        /// It is kept back until `MemberReleased`, and blocks nobody meanwhile.
        hold: bool,
    },
    /// A member that came back with `hold` waits for a place from now on.
    MemberReleased {
        /// The task.
        task: TaskId,
        /// The member.
        member: u32,
    },
    /// A started copy ended. A second report is ignored and counted.
    CopyDone {
        /// The task as started.
        task: TaskId,
        /// How it ended.
        ok: MemberResult,
    },
    /// Tasks of the run that have not started become `Cancelled`; running ones go on. Later submits are not affected.
    CancelRun {
        /// The run.
        run: RunId,
    },
    /// The run is over: the memory that its tasks left undefined no longer poisons readers.
    RunEnded {
        /// The run.
        run: RunId,
    },
}

/// What the scheduler asks its driver to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a member to an endpoint. One `MemberDone` is expected.
    Dispatch {
        /// The task.
        task: TaskId,
        /// Which member, from 0.
        member: u32,
        /// Where to.
        endpoint: EndpointId,
    },
    /// Send the only member of a task to a lane on which everything is in flight that it waits for, with the conditions that
    /// [`Scheduler::conditions`](super::Scheduler::conditions) tells. One `MemberDone` is expected, or a `MemberReturned` when
    /// the lane skipped it.
    Chain {
        /// The task.
        task: TaskId,
        /// Where to.
        endpoint: EndpointId,
    },
    /// Nothing: the task is ready and waits for a place.
    Waits {
        /// The task.
        task: TaskId,
    },
    /// Start a copy. One `CopyDone` is expected.
    StartCopy {
        /// The task.
        task: TaskId,
    },
    /// The task has ended; exactly one for each submitted task.
    Finished {
        /// The task; the id is not valid any more.
        task: TaskId,
        /// Its run.
        run: RunId,
        /// How it ended.
        outcome: Outcome,
        /// For `Skipped`: the first submitted of the tasks whose own failure, loss or cancelling it comes from.
        cause: Option<TaskId>,
    },
}
