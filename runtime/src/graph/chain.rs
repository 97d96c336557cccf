//! Chains: a task is sent to a lane before the tasks that it waits for have ended there (design §15.18).
//!
//! A lane carries out what it is sent strictly in order. So a task may be sent as soon as everything that it waits for is in
//! flight on one lane; for what it reads from it says so (its *conditions*), and the lane skips it unless these completed there.
//! A chain then costs throughput and not a round trip a link. What is chained holds a place like everything else in flight, but
//! takes none that something ready waits for.
//!
//! A skipped member is reported as `MemberReturned`: if what it reads from has failed, the task ends as skipped, with the root
//! that it would have had anyway; if that is to be tried again, the task waits for it like before.

use smallvec::SmallVec;

use super::classes::ClassId;
use super::endpoint::EndpointIndex;
use super::event::Action;
use super::id::{EndpointId, TaskId};
use super::node::Outcome;
use super::placement::Placement;
use super::scheduler::Scheduler;
use super::task::{Phase, Task, Work};

/// Most tasks that one which is chained may have waited for at its submit; bounds the work of a decision, and the conditions.
pub const MAX_CONDITIONS: usize = echelon_wire::limits::MAX_CONDITIONS as usize;

/// What part a task may have in a chain. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chaining {
    /// It may be sent behind tasks that it waits for.
    pub follows: bool,
    /// Others may be sent behind it: what it wrote is where they find it as soon as the lane has carried it out, and when the
    /// lane says that it completed, it did.
    pub leads: bool,
    /// It may be begun a second time after it was reported. Only what reads from it may be sent behind it: what overwrites its
    /// inputs or its results must not run before its last attempt.
    pub repeats: bool,
}

impl Chaining {
    /// Sent behind others, and others behind it.
    pub const FULL: Self = Self {
        follows: true,
        leads: true,
        repeats: false,
    };
}

/// A task that another one waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    pub(super) task: TaskId,
    /// It reads what that one writes.
    pub(super) reads: bool,
}

impl Scheduler {
    /// Allows or forbids to send tasks to a known endpoint before what they wait for has ended there: its lane keeps the order
    /// of what it is sent and takes conditions. Forbidden until said otherwise.
    pub fn chain_on(&mut self, endpoint: EndpointId, allowed: bool) {
        if let Some(index) = self.placement.find(endpoint) {
            self.placement.endpoints[index as usize].chains = allowed;
        }
    }

    /// For a task of [`Action::Chain`]: the tasks in flight on its lane that must complete there before it. `None` when it is not
    /// to be sent after all, and to be reported as returned: what it waits for has failed or left the lane since the decision.
    pub fn conditions(&self, task: TaskId) -> Option<SmallVec<[TaskId; 2]>> {
        let task = self.tasks.get(task)?;
        if task.root.is_some() {
            return None;
        }
        let mut conditions = SmallVec::new();
        for before in &task.predecessors {
            let Some(other) = self.tasks.get(before.task) else {
                continue;
            };
            if other.seat != task.seat {
                return None;
            }
            if before.reads {
                conditions.push(before.task);
            }
        }
        Some(conditions)
    }

    /// Whether something that an unfinished task reads did not complete: whatever is still reported of it, it ends as skipped.
    pub fn is_poisoned(&self, task: TaskId) -> bool {
        self.tasks.get(task).is_some_and(|task| task.root.is_some())
    }

    /// Whether members of an unfinished task that have their places are not to be sent any more: its run was cancelled. Those of a
    /// gang begin together: some may wait for the others already.
    pub fn is_called_off(&self, task: TaskId) -> bool {
        let gang = |task: &Task| matches!(task.work, Work::Gang { .. });
        self.tasks
            .get(task)
            .is_some_and(|task| task.cancelled && !gang(task))
    }

    /// Sends a blocked task if everything that it waits for is on one lane and its placement would choose that, or remembers it
    /// there until a place comes free.
    pub(super) fn try_chain(&mut self, id: TaskId) {
        let Some(lane) = self.lane_for(id) else {
            return;
        };
        if self.seat_behind(id, lane) {
            return;
        }
        if let Some(task) = self.tasks.get_mut(id).filter(|t| t.listed != Some(lane)) {
            task.listed = Some(lane);
            self.placement.endpoints[lane as usize]
                .followers
                .push_back(id);
        }
    }

    /// Gives free places of a lane to tasks whose producers are all there, the longest known first.
    pub(super) fn chain_followers(&mut self, lane: EndpointIndex) {
        while let Some(&id) = self.placement.endpoints[lane as usize].followers.front() {
            // What has ended, or became ready, or lost a producer to another lane: it is not here any more.
            let stale = self.lane_for(id) != Some(lane);
            if !stale && !self.seat_behind(id, lane) {
                return;
            }
            self.placement.endpoints[lane as usize]
                .followers
                .pop_front();
            if let Some(task) = self.tasks.get_mut(id).filter(|t| t.listed == Some(lane)) {
                task.listed = None;
            }
        }
    }

    /// The one lane on which everything is in flight that a blocked task waits for.
    fn lane_for(&self, id: TaskId) -> Option<EndpointIndex> {
        let task = self.tasks.get(id)?;
        let may = task.phase == Phase::Blocked && task.chaining.follows && task.root.is_none();
        let single = matches!(task.work, Work::Slots { members: 1, .. });
        if !may || !single || task.predecessors.len() > MAX_CONDITIONS {
            return None;
        }
        let mut lane = None;
        for before in &task.predecessors {
            let Some(other) = self.tasks.get(before.task) else {
                continue;
            };
            let seat = other.seat?;
            let follows = other.chaining.leads && (before.reads || !other.unsettled);
            if !follows || other.root.is_some() || lane.is_some_and(|lane| lane != seat) {
                return None;
            }
            lane = Some(seat);
        }
        lane.filter(|lane| self.placement.endpoints[*lane as usize].chains)
    }

    fn seat_behind(&mut self, id: TaskId, lane: EndpointIndex) -> bool {
        let Some(task) = self.tasks.get(id) else {
            return false;
        };
        let Work::Slots { class, prefer, .. } = task.work else {
            return false;
        };
        if !self.placement.would_choose(lane, class, prefer) {
            return false;
        }
        let unsettled = self.reads_unsettled(task);
        self.placement.seat(lane, id, 0);
        if let Some(task) = self.tasks.get_mut(id) {
            task.unsettled |= unsettled;
            task.phase = Phase::Running;
            self.active += 1;
        }
        true
    }

    /// Whether it comes back when something that it reads from is tried again.
    fn reads_unsettled(&self, task: &Task) -> bool {
        let unsettled = |before: &Before| {
            let other = self.tasks.get(before.task);
            before.reads && other.is_some_and(|other| other.unsettled)
        };
        task.predecessors.iter().any(unsettled)
    }

    /// A chained member came back: its task is where it was before it was sent, and is not sent like this again.
    pub(super) fn unchain(&mut self, id: TaskId, member: u32, hold: bool, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        task.chaining.follows = false;
        task.phase = Phase::Blocked;
        self.active -= 1;
        if hold {
            task.held.push(member);
        }
        if task.cancelled {
            // It keeps its place in the order of accesses until its predecessors have ended.
            task.held.clear();
            task.phase = Phase::Reported;
            let run = task.run;
            self.report(id, run, Outcome::Cancelled, None, out);
        }
        self.unblock_if_free(id);
    }

    fn unblock_if_free(&mut self, id: TaskId) {
        if self.tasks.get(id).is_some_and(|task| task.pending == 0) {
            self.unblocked.push_back(id);
        }
    }
}

impl Placement {
    /// Whether a task of a class would be placed on `lane` if it were ready: there is room, and no other member of the class
    /// has less to do.
    fn would_choose(
        &mut self,
        lane: EndpointIndex,
        class: ClassId,
        prefer: Option<EndpointIndex>,
    ) -> bool {
        let elsewhere = prefer.filter(|&index| index != lane);
        if elsewhere.is_some_and(|index| self.still_has_room(index)) {
            return false;
        }
        if !self.classes.get(class).contains(lane) || !self.still_has_room(lane) {
            return false;
        }
        let used = |index: EndpointIndex| self.endpoints[index as usize].used();
        let best = self.classes.get(class).best(&self.endpoints, |_| false);
        best.is_some_and(|best| used(best) >= used(lane))
    }
}
