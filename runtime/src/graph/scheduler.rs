//! The scheduler: (state, submit or event) → (state, actions).

use std::collections::VecDeque;

use super::access::{Access, Space};
use super::chain::{Before, Chaining};
use super::deps::DependencyMap;
use super::depth::Depth;
use super::error::SubmitError;
use super::event::{Action, Event};
use super::gang::shape_of;
use super::id::{Eligible, EndpointId, RunId, TaskId};
use super::interval::Holder;
use super::node::{NodeKind, NodeSpec};
use super::placement::Placement;
use super::slot::SlotTable;
use super::stats::Stats;
use super::task::{Accesses, Phase, Successor, Task, Work};
use crate::fast::LastMap;

/// What the scheduler knows of a run with tasks in the table, or that had some not long ago.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Tasks without an outcome.
    pub(super) unfinished: usize,
    /// Tasks in the table: the unfinished and the cancelled ones that still keep the order.
    pub(super) kept: usize,
    /// The run was declared over: what its last tasks leave undefined poisons nobody.
    pub(super) ended: bool,
}

impl Run {
    fn add(&mut self) {
        self.unfinished += 1;
        self.kept += 1;
    }
}

/// The task graph, the endpoints' places, and what waits for them.
///
/// It owns no thread and no clock: its driver calls `submit` and `handle` and performs the actions that they append, in
/// order. Neither call looks at all tasks or all endpoints, except `CancelRun`, which looks at the table of tasks.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) tasks: SlotTable<Task>,
    pub(super) deps: DependencyMap,
    pub(super) placement: Placement,
    pub(super) runs: LastMap<RunId, Run>,
    pub(super) counts: Stats,
    /// Tasks in `Waiting` or `Running`.
    pub(super) active: usize,
    next_seq: u64,
    /// Tasks whose last predecessor has ended; empty between calls.
    pub(super) unblocked: VecDeque<TaskId>,
    /// Calls since the invariants were last checked in a debug build.
    pub(super) unchecked: usize,
}

impl Scheduler {
    /// A scheduler without endpoints, for at most `max_tasks` unfinished tasks.
    pub fn new(max_tasks: u32) -> Self {
        Self {
            tasks: SlotTable::new(max_tasks),
            deps: DependencyMap::default(),
            placement: Placement::default(),
            runs: LastMap::default(),
            counts: Stats::default(),
            active: 0,
            next_seq: 0,
            unblocked: VecDeque::new(),
            unchecked: 0,
        }
    }

    /// Adds a task behind all tasks submitted before it, and starts it if it is ready and a place is free.
    ///
    /// Publication is one step: when this returns, the task's edges, its count of predecessors and its state
    /// agree, and no event can come in between.
    ///
    /// # Errors
    /// See [`SubmitError`]; a refused submit changes nothing and appends nothing.
    pub fn submit(&mut self, spec: NodeSpec, out: &mut Vec<Action>) -> Result<TaskId, SubmitError> {
        self.submit_chained(spec, Chaining::default(), out)
    }

    /// As [`Scheduler::submit`], for a task that may have a part in a chain.
    ///
    /// # Errors
    /// See [`SubmitError`]; a refused submit changes nothing and appends nothing.
    pub fn submit_chained(
        &mut self,
        spec: NodeSpec,
        chaining: Chaining,
        out: &mut Vec<Action>,
    ) -> Result<TaskId, SubmitError> {
        let accesses = spec.accesses.into();
        self.enter((spec.run, &spec.kind, spec.prefer), accesses, chaining, out)
    }

    /// [`Scheduler::submit_chained`] of a [`NodeSpec`] in parts, the kind of which stays with the caller.
    pub(crate) fn enter(
        &mut self,
        (run, kind, prefer): (RunId, &NodeKind, Option<EndpointId>),
        accesses: Accesses,
        chaining: Chaining,
        out: &mut Vec<Action>,
    ) -> Result<TaskId, SubmitError> {
        let entered = self.publish((run, kind, prefer), accesses, chaining, out);
        self.placement.lean(None);
        entered
    }

    fn publish(
        &mut self,
        (run, kind, prefer): (RunId, &NodeKind, Option<EndpointId>),
        accesses: Accesses,
        chaining: Chaining,
        out: &mut Vec<Action>,
    ) -> Result<TaskId, SubmitError> {
        for (index, &Access { start, end, .. }) in accesses.iter().enumerate() {
            if end < start {
                return Err(SubmitError::BadInterval { index, start, end });
            }
        }
        let work = self.admit(kind, prefer)?;
        let seq = self.next_seq;
        let Some(id) = self
            .tasks
            .insert(Task::new(seq, run, work, accesses, chaining))
        else {
            // The place was checked by `admit`.
            return Err(self.table_full());
        };
        self.next_seq += 1;
        self.counts.submitted += 1;
        self.counts.unfinished += 1;
        match self.runs.get_mut(run) {
            Some(run) => run.add(),
            None => {
                // Those without tasks were kept in case that more come.
                self.runs.retain(|run| run.kept > 0);
                let mut state = Run::default();
                state.add();
                self.runs.insert(run, state);
            }
        }
        self.attach(id, seq);
        self.settle(out);
        Ok(id)
    }

    /// Where the task that is submitted next had best go, if it is single, ready at once, and may: there is work enough to keep it
    /// awake, and not so much that another endpoint had better begin.
    pub fn lean(&mut self, endpoint: EndpointId) {
        self.placement.lean(Some(endpoint));
    }

    /// Takes one event and appends what it leads to.
    pub fn handle(&mut self, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::EndpointAdded {
                endpoint,
                capacity,
                depth,
            } => self
                .placement
                .add_endpoint(endpoint, Depth::new(capacity, depth)),
            Event::EndpointDown { endpoint } => self.endpoint_down(endpoint),
            Event::EndpointLost { endpoint } => self.endpoint_lost(endpoint, out),
            Event::MemberDone {
                task,
                member,
                endpoint,
                result,
            } => match self.placement.vacate(endpoint, task, member) {
                Some(()) => self.member_done(task, result, out),
                None => self.counts.late_reports += 1,
            },
            Event::MemberRan {
                task,
                member,
                endpoint,
            } => match self.placement.vacate(endpoint, task, member) {
                Some(()) => self.member_ran(task),
                None => self.counts.late_reports += 1,
            },
            Event::MemberSettled { task, result } => self.member_settled(task, result, out),
            Event::MemberReturned {
                task,
                member,
                endpoint,
                hold,
            } => match self.placement.vacate(endpoint, task, member) {
                Some(()) => self.member_returned(task, member, hold, out),
                None => self.counts.late_reports += 1,
            },
            Event::MemberReleased { task, member } => self.member_released(task, member),
            Event::CopyDone { task, ok } => self.copy_done(task, ok, out),
            Event::CancelRun { run } => self.cancel(run, out),
            Event::RunEnded { run } => {
                self.deps.end_run(run);
                if let Some(state) = self.runs.get_mut(run) {
                    state.ended = true;
                    if state.kept == 0 {
                        self.runs.remove(run);
                    }
                }
            }
        }
        self.settle(out);
    }

    /// Tells the time, on any clock in ns that does not go back: how deep an endpoint's queue may be depends on it.
    pub fn advance(&mut self, now_ns: u64) {
        self.placement.advance(now_ns);
    }

    /// Tells how long the member ran whose `MemberDone` follows, where the endpoint says so. Without it the time since the
    /// endpoint's last answer counts.
    pub fn ran(&mut self, endpoint: EndpointId, took_ns: u64) {
        self.placement.ran(endpoint, took_ns);
    }

    /// Whether a submit would find a free place in the table.
    pub fn has_room(&self) -> bool {
        !self.tasks.is_full()
    }

    /// Places of the table in use: tasks without an outcome, and cancelled ones that still keep the order of accesses.
    pub fn live(&self) -> usize {
        self.tasks.len()
    }

    /// Tasks that are ready or running. 0 while `live` is not means that nothing will ever come free: it cannot happen.
    pub fn runnable_or_running(&self) -> usize {
        self.active
    }

    /// Tasks of a run without an outcome.
    pub fn run_live(&self, run: RunId) -> usize {
        self.runs.get(run).map_or(0, |run| run.unfinished)
    }

    /// Counters and sizes. The cost grows with the number of spaces in use: meant for a report, not for each event.
    pub fn stats(&self) -> Stats {
        Stats {
            slots: self.tasks.capacity(),
            intervals: self.deps.segments(),
            eligible_sets: self.placement.classes.len(),
            followers: self
                .placement
                .endpoints
                .iter()
                .map(|e| e.followers.len())
                .sum(),
            ..self.counts
        }
    }

    /// The tasks that were unfinished when `task` was submitted and that it had to wait for, in submit order. Empty
    /// once the task has ended.
    pub fn predecessors(&self, task: TaskId) -> Vec<TaskId> {
        self.before(task).collect()
    }

    /// [`Scheduler::predecessors`], one after the other.
    pub fn before(&self, task: TaskId) -> impl Iterator<Item = TaskId> + '_ {
        let task = self.tasks.get(task);
        let before = task.map_or(&[][..], |task| &task.predecessors);
        before.iter().map(|before| before.task)
    }

    /// What the tasks of a run left undefined and nobody has overwritten since, ascending.
    pub fn poisoned_ranges(&self, run: RunId) -> Vec<(Space, u64, u64)> {
        self.deps.poisoned(run)
    }

    /// Checks what a submit needs and takes references on its eligible sets.
    fn admit(&mut self, kind: &NodeKind, prefer: Option<EndpointId>) -> Result<Work, SubmitError> {
        let work = match kind {
            NodeKind::Copy => Work::Copy,
            NodeKind::Waves { members: 0, .. } => return Err(SubmitError::NoMembers),
            NodeKind::Single { eligible } | NodeKind::Waves { eligible, .. } => {
                let members = match kind {
                    NodeKind::Waves { members, .. } => *members,
                    _ => 1,
                };
                let class = self.placement.intern(eligible)?;
                let prefer = prefer.and_then(|id| self.placement.find(id));
                let prefer =
                    prefer.filter(|&index| self.placement.classes.get(class).contains(index));
                Work::Slots {
                    class,
                    members,
                    prefer,
                }
            }
            NodeKind::Gang { members } => self.admit_gang(members)?,
        };
        let lacking = match &work {
            _ if self.tasks.is_full() => Some(self.table_full()),
            Work::Slots { class, .. } => self.placement.lacking_single(*class),
            Work::Gang { members, shape } => self.placement.lacking_gang(members.len(), shape),
            Work::Copy => None,
        };
        match lacking {
            None => Ok(work),
            Some(error) => {
                self.placement.release(&work);
                Err(error)
            }
        }
    }

    fn admit_gang(&mut self, members: &[Eligible]) -> Result<Work, SubmitError> {
        if members.is_empty() {
            return Err(SubmitError::NoMembers);
        }
        let mut classes = Vec::with_capacity(members.len());
        for set in members {
            match self.placement.intern(set) {
                Ok(class) => classes.push(class),
                Err(error) => {
                    classes
                        .into_iter()
                        .for_each(|class| self.placement.release_class(class));
                    return Err(error);
                }
            }
        }
        let shape = shape_of(&classes);
        // One reference a class is kept.
        for &(class, count) in &shape {
            (1..count).for_each(|_| self.placement.release_class(class));
        }
        Ok(Work::Gang {
            members: classes.into(),
            shape,
        })
    }

    /// True while no further task is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.tasks.is_full()
    }

    fn table_full(&self) -> SubmitError {
        SubmitError::TableFull {
            limit: self.tasks.limit(),
        }
    }

    /// Enters the newest task into the dependency map and into its predecessors.
    fn attach(&mut self, id: TaskId, seq: u64) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        if task.accesses.is_empty() {
            // It waits for nothing, and nothing will wait for it.
            return self.unblocked.push_back(id);
        }
        let (found, root) = self.deps.attach(Holder { seq, task: id }, &task.accesses);
        task.root = root;
        task.predecessors = found
            .iter()
            .map(|p| Before {
                task: p.task,
                reads: p.read,
            })
            .collect();
        // Predecessors are tasks of the table, whose size is a u32.
        task.pending = found.len() as u32;
        if found.is_empty() {
            return self.unblocked.push_back(id);
        }
        for predecessor in found {
            let Some(before) = self.tasks.get_mut(predecessor.task) else {
                continue;
            };
            // A cancelled task of a run that is over orders its successors and poisons none.
            let harmless = before.phase == Phase::Reported
                && self.runs.get(before.run).is_some_and(|r| r.ended);
            let reads = predecessor.read && !harmless;
            before.successors.push(Successor { task: id, reads });
        }
        self.try_chain(id);
    }
}
