//! One unfinished task as the scheduler keeps it.

use smallvec::SmallVec;

use super::access::Access;
use super::chain::{Before, Chaining};
use super::classes::{ClassId, Ticket};
use super::endpoint::EndpointIndex;
use super::gang::Shape;
use super::id::{RunId, TaskId};
use super::node::Outcome;
use super::poison::Root;

/// Where a task stands.
///
/// ```text
///  submit ──► Blocked ──last predecessor ended──► Waiting ──first member dispatched──► Running ──► ended
///                │  └────── sent behind its predecessors, which are on one lane ─────────► Running ──► ended
///                │  └─────────────── it reads what was not produced: Skipped ──────────────────────► ended
///                └──cancelled──► Reported ──last predecessor ended───────────────────────────────► ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A predecessor has not ended.
    Blocked,
    /// Cancelled while blocked: its end is reported, but it keeps its place in the order of accesses until its
    /// predecessors have ended, or a later writer could overtake an earlier reader.
    Reported,
    /// Ready; no member is dispatched, or all came back.
    Waiting,
    /// A member, or the copy, was dispatched and did not come back.
    Running,
}

/// What the task needs to run. Each class in it holds one reference on the class.
#[derive(Debug)]
pub(super) enum Work {
    /// A single (one member) or waves.
    Slots {
        class: ClassId,
        members: u32,
        prefer: Option<EndpointIndex>,
    },
    /// All members together; `shape` holds the references.
    Gang {
        members: Box<[ClassId]>,
        shape: Shape,
    },
    /// A copy.
    Copy,
}

impl Work {
    /// How many reports a full execution gives.
    pub(super) fn members(&self) -> u32 {
        match self {
            Self::Slots { members, .. } => *members,
            // Checked at submit to fit.
            Self::Gang { members, .. } => members.len() as u32,
            Self::Copy => 1,
        }
    }
}

/// What a task touches; most touch little.
pub(crate) type Accesses = SmallVec<[Access; 2]>;

/// A task that waits for this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Successor {
    pub(super) task: TaskId,
    /// It reads what this one writes.
    pub(super) reads: bool,
}

/// One unfinished task.
#[derive(Debug)]
pub(super) struct Task {
    /// Place in submit order.
    pub(super) seq: u64,
    pub(super) run: RunId,
    pub(super) work: Work,
    pub(super) accesses: Accesses,
    /// Unfinished producers and readers at submit.
    pub(super) predecessors: SmallVec<[Before; 2]>,
    pub(super) successors: SmallVec<[Successor; 2]>,
    /// Predecessors that have not ended.
    pub(super) pending: u32,
    /// Why it must be skipped: the earliest root among what it reads.
    pub(super) root: Option<Root>,
    pub(super) phase: Phase,
    /// Its place in the order of all that waits, drawn when it became ready; 0 before, and while it is chained. Members that come back keep it.
    pub(super) place: Ticket,
    /// Set while members wait for a place.
    pub(super) ticket: Option<Ticket>,
    /// Members that came back and are held until they are released.
    pub(super) held: SmallVec<[u32; 1]>,
    /// Where its only member is in flight.
    pub(super) seat: Option<EndpointIndex>,
    /// What part it may have in a chain.
    pub(super) chaining: Chaining,
    /// It may come back after it was reported, or because what it reads from does.
    pub(super) unsettled: bool,
    /// The lane that remembers it as one to be sent there behind what it waits for.
    pub(super) listed: Option<EndpointIndex>,
    /// Nothing more of it is started: its run was cancelled.
    pub(super) cancelled: bool,
    pub(super) dispatched: u32,
    pub(super) reported: u32,
    /// Members that have run and are not reported yet.
    pub(super) settling: u32,
    /// The worst that happened to a member, in the order of `Outcome`.
    pub(super) worst: Outcome,
}

impl Task {
    pub(super) fn new(
        seq: u64,
        run: RunId,
        work: Work,
        accesses: Accesses,
        chaining: Chaining,
    ) -> Self {
        Self {
            seq,
            run,
            work,
            accesses,
            predecessors: SmallVec::new(),
            successors: SmallVec::new(),
            pending: 0,
            root: None,
            phase: Phase::Blocked,
            place: 0,
            ticket: None,
            held: SmallVec::new(),
            seat: None,
            chaining,
            unsettled: chaining.repeats,
            listed: None,
            cancelled: false,
            dispatched: 0,
            reported: 0,
            settling: 0,
            worst: Outcome::Completed,
        }
    }

    /// Ready or running: it will end without waiting for another task.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Running)
    }

    /// It was started, nothing of it waits for a place or is in flight, and what it was sent behind has ended.
    pub(super) fn is_over(&self) -> bool {
        self.is_active() && !self.waits() && self.reported == self.dispatched && self.pending == 0
    }

    /// Members of it wait for a place, or are held back.
    pub(super) fn waits(&self) -> bool {
        self.ticket.is_some() || !self.held.is_empty()
    }

    /// Members that are neither dispatched nor held wait for a place.
    pub(super) fn all_placed(&self) -> bool {
        self.dispatched as usize + self.held.len() == self.work.members() as usize
    }
}
