//! How tasks move from phase to phase: one method for each thing that happens.

use smallvec::SmallVec;

use super::event::Action;
use super::id::{EndpointId, RunId, TaskId};
use super::node::{MemberResult, Outcome};
use super::poison::{Poison, Root};
use super::scheduler::Scheduler;
use super::task::{Phase, Task, Work};

impl Scheduler {
    /// Follows every consequence of a change, without recursion: places that came free, tasks left without an endpoint,
    /// tasks whose last predecessor ended. What has waited is served before what becomes ready now.
    pub(super) fn settle(&mut self, out: &mut Vec<Action>) {
        loop {
            self.place(out);
            if !self.placement.decisions.stranded.is_empty() {
                for id in std::mem::take(&mut self.placement.decisions.stranded) {
                    self.strand(id, out);
                }
            }
            match self.unblocked.pop_front() {
                Some(id) => self.start(id, out),
                None if self.placement.decisions.is_empty() => break,
                None => {}
            }
        }
        self.check_now_and_then();
    }

    /// Offers free places and turns what was dispatched into actions.
    fn place(&mut self, out: &mut Vec<Action>) {
        if self.placement.is_settled() {
            return;
        }
        self.placement.refill();
        while let Some(lane) = self.placement.decisions.leading.pop() {
            self.chain_followers(lane);
        }
        if self.placement.decisions.dispatched.is_empty() {
            return;
        }
        let mut led: SmallVec<[TaskId; 2]> = SmallVec::new();
        for (id, member, index) in self.placement.decisions.dispatched.drain(..) {
            let endpoint = self.placement.endpoints[index as usize].id;
            self.counts.dispatched += 1;
            let Some(task) = self.tasks.get_mut(id) else {
                continue;
            };
            task.phase = Phase::Running;
            task.dispatched += 1;
            if task.all_placed() {
                task.ticket = None;
            }
            if matches!(task.work, Work::Slots { members: 1, .. }) {
                task.seat = Some(index);
                let leads = task.chaining.leads && !task.successors.is_empty();
                led.extend(leads.then_some(id));
            }
            out.push(if task.pending > 0 {
                Action::Chain { task: id, endpoint }
            } else {
                Action::Dispatch {
                    task: id,
                    member,
                    endpoint,
                }
            });
        }
        for id in led {
            self.chain_behind(id);
        }
    }

    /// A task is in flight: what waits for it may be sent behind it.
    fn chain_behind(&mut self, id: TaskId) {
        let mut at = 0;
        while let Some(next) = self.tasks.get(id).and_then(|task| task.successors.get(at)) {
            let next = next.task;
            self.try_chain(next);
            at += 1;
        }
    }

    /// The last predecessor has ended.
    fn start(&mut self, id: TaskId, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        if task.phase == Phase::Reported {
            return self.finish(id, Outcome::Cancelled, None, out);
        }
        if task.phase == Phase::Running {
            // It was sent behind its predecessors, and its own end was reported before the last of theirs.
            return self.finish_if_over(id, out);
        }
        if let Some(root) = task.root {
            return self.finish(id, Outcome::Skipped, Some(root), out);
        }
        task.phase = Phase::Waiting;
        self.active += 1;
        task.ticket = match &task.work {
            Work::Slots {
                class,
                members,
                prefer,
            } => {
                let ticket = self.placement.draw_ticket();
                task.place = ticket;
                if !task.held.is_empty() {
                    return;
                }
                let waits = self.placement.start(id, ticket, *class, *members, *prefer);
                waits.then_some(ticket)
            }
            Work::Gang { members, shape } => self.placement.start_gang(id, members, shape),
            Work::Copy => {
                task.phase = Phase::Running;
                task.dispatched = 1;
                self.counts.dispatched += 1;
                out.push(Action::StartCopy { task: id });
                None
            }
        };
        if task.ticket.is_some() {
            out.push(Action::Waits { task: id });
        }
    }

    /// All endpoints that could take what still waits of a task are lost.
    fn strand(&mut self, id: TaskId, out: &mut Vec<Action>) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.ticket = None;
            task.held.clear();
            task.worst = task.worst.max(Outcome::EndpointLost);
            self.finish_if_over(id, out);
        }
    }

    /// A member in flight ended and its place is free.
    pub(super) fn member_done(&mut self, id: TaskId, result: MemberResult, out: &mut Vec<Action>) {
        self.record(id, result);
        // First of all the endpoint gets its next member: what comes after may take the driver longer.
        self.place(out);
        self.finish_if_over(id, out);
    }

    /// A member in flight has run; its place is free.
    pub(super) fn member_ran(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.settling += 1;
            task.seat = None;
        }
    }

    /// What a member that has run wrote is where others look for it, or never will be.
    pub(super) fn member_settled(
        &mut self,
        id: TaskId,
        result: MemberResult,
        out: &mut Vec<Action>,
    ) {
        match self.tasks.get_mut(id).filter(|task| task.settling > 0) {
            Some(task) => {
                task.settling -= 1;
                self.record(id, result);
                self.finish_if_over(id, out);
            }
            None => self.counts.late_reports += 1,
        }
    }

    /// A member in flight came back unexecuted, or is to be tried again: it waits for a place, or is held until it is
    /// released. A gang runs together or not at all, so that a member of one which comes back is lost.
    pub(super) fn member_returned(
        &mut self,
        id: TaskId,
        member: u32,
        hold: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        if !matches!(task.work, Work::Slots { .. }) {
            return self.member_done(id, MemberResult::Lost, out);
        }
        task.dispatched -= 1;
        task.seat = None;
        if task.place == 0 {
            return self.unchain(id, member, hold, out);
        }
        if task.dispatched == 0 {
            task.phase = Phase::Waiting;
        }
        if task.cancelled || task.worst != Outcome::Completed {
            if task.cancelled {
                task.worst = task.worst.max(Outcome::Cancelled);
            }
            self.finish_if_over(id, out);
        } else if hold {
            task.held.push(member);
        } else {
            self.wait_again(id, member);
        }
    }

    /// A held member waits for a place from now on. Nothing happens when its task has ended or was cancelled meanwhile.
    pub(super) fn member_released(&mut self, id: TaskId, member: u32) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        if let Some(at) = task.held.iter().position(|held| *held == member) {
            task.held.remove(at);
            // A task whose predecessors have not ended is placed when they have.
            if task.is_active() {
                self.wait_again(id, member);
            }
        }
    }

    fn wait_again(&mut self, id: TaskId, member: u32) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let Work::Slots { class, members, .. } = task.work else {
            return;
        };
        let seat = (member, members);
        if self.placement.start_again(id, task.place, class, seat) {
            task.ticket = Some(task.place);
        }
    }

    pub(super) fn endpoint_down(&mut self, endpoint: EndpointId) {
        if let Some(index) = self.placement.find(endpoint) {
            self.placement.pause_endpoint(index);
        }
    }

    pub(super) fn copy_done(&mut self, id: TaskId, result: MemberResult, out: &mut Vec<Action>) {
        let running =
            |task: &&mut Task| matches!(task.work, Work::Copy) && task.phase == Phase::Running;
        match self.tasks.get_mut(id).filter(running) {
            Some(_) => {
                self.record(id, result);
                self.finish_if_over(id, out);
            }
            None => self.counts.late_reports += 1,
        }
    }

    pub(super) fn endpoint_lost(&mut self, endpoint: EndpointId, out: &mut Vec<Action>) {
        let Some(index) = self.placement.find(endpoint) else {
            return;
        };
        let in_flight = self.placement.lose_endpoint(index);
        for &(id, _) in &in_flight {
            self.record(id, MemberResult::Lost);
        }
        for (id, _) in in_flight {
            self.finish_if_over(id, out);
        }
    }

    pub(super) fn cancel(&mut self, run: RunId, out: &mut Vec<Action>) {
        let of_run = |(id, task): (TaskId, &Task)| (task.run == run).then_some((task.seq, id));
        let mut ids: Vec<_> = self.tasks.iter().filter_map(of_run).collect();
        ids.sort_unstable();
        // All are withdrawn before any place is offered again, or one of them could still be started.
        for &(_, id) in &ids {
            let Some(task) = self.tasks.get_mut(id) else {
                continue;
            };
            if task.phase == Phase::Blocked {
                task.phase = Phase::Reported;
                task.held.clear();
                self.report(id, run, Outcome::Cancelled, None, out);
                continue;
            }
            task.cancelled = true;
            if task.waits() {
                task.worst = task.worst.max(Outcome::Cancelled);
                task.held.clear();
            }
            if let Some(ticket) = task.ticket.take() {
                self.placement.withdraw(ticket, &task.work);
            }
        }
        for (_, id) in ids {
            self.finish_if_over(id, out);
        }
    }

    /// Notes how a member ended. After a failure no further member is dispatched.
    fn record(&mut self, id: TaskId, result: MemberResult) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        task.reported += 1;
        task.seat = None;
        task.worst = task.worst.max(result.into());
        if result != MemberResult::Completed {
            task.held.clear();
            if let Some(ticket) = task.ticket.take() {
                self.placement.withdraw(ticket, &task.work);
            }
        }
    }

    fn finish_if_over(&mut self, id: TaskId, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get(id).filter(|task| task.is_over()) else {
            return;
        };
        match task.root {
            // It was sent behind what did not complete: whatever became of it, it counts as not carried out.
            Some(root) => self.finish(id, Outcome::Skipped, Some(root), out),
            None => {
                let outcome = task.worst;
                self.finish(id, outcome, None, out);
            }
        }
    }

    /// Ends a task: its slot, its marks in the map and its hold on its successors go together.
    fn finish(&mut self, id: TaskId, outcome: Outcome, root: Option<Root>, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        self.active -= usize::from(task.is_active());
        self.placement.release(&task.work);
        let (run, seq, reported) = (task.run, task.seq, task.phase == Phase::Reported);
        let successors = std::mem::take(&mut task.successors);
        if !reported {
            self.report(id, run, outcome, root, out);
        }
        let ended = self.leave_run(run);
        let mark = root.unwrap_or(Root { seq, task: id });
        let poisoned = outcome != Outcome::Completed;
        let poison = (poisoned && !ended).then_some(Poison { run, root: mark });
        if let Some(task) = self.tasks.get(id) {
            self.deps.retire(seq, &task.accesses, poison);
        }
        self.tasks.remove(id);
        let mut left: SmallVec<[TaskId; 4]> = SmallVec::new();
        for successor in successors {
            // A successor cannot end before its predecessors, so it is there.
            let Some(next) = self.tasks.get_mut(successor.task) else {
                continue;
            };
            if poisoned && successor.reads {
                next.root = Root::earlier(next.root, Some(mark));
            }
            next.pending -= 1;
            if next.pending > 0 {
                left.push(successor.task);
            } else if next.phase != Phase::Running || next.is_over() {
                self.unblocked.push_back(successor.task);
            }
        }
        for id in left {
            self.try_chain(id);
        }
    }

    /// Announces the end of a task; once for each task.
    pub(super) fn report(
        &mut self,
        task: TaskId,
        run: RunId,
        outcome: Outcome,
        root: Option<Root>,
        out: &mut Vec<Action>,
    ) {
        self.counts.count(outcome);
        self.counts.unfinished -= 1;
        if let Some(run) = self.runs.get_mut(run) {
            run.unfinished -= 1;
        }
        let cause = root.map(|root| root.task);
        out.push(Action::Finished {
            task,
            run,
            outcome,
            cause,
        });
    }

    /// A task of `run` leaves the table; says whether the run was declared over.
    fn leave_run(&mut self, id: RunId) -> bool {
        let Some(run) = self.runs.get_mut(id) else {
            return true;
        };
        run.kept -= 1;
        let ended = run.ended;
        if run.kept == 0 && ended {
            self.runs.remove(id);
        }
        ended
    }
}
