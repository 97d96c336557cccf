//! What must hold between calls. The list is in the module's documentation.

use std::collections::HashMap;

use super::id::{RunId, TaskId};
use super::scheduler::Scheduler;
use super::task::{Phase, Task, Work};

impl Scheduler {
    /// Recomputes from scratch everything that is kept incrementally and compares. The cost grows with the whole state.
    ///
    /// # Errors
    /// The first difference found, in words. It is a bug of this module.
    pub fn check_invariants(&self) -> Result<(), String> {
        if !self.unblocked.is_empty() || !self.placement.decisions.is_empty() {
            return Err("a call left consequences behind".to_owned());
        }
        self.check_counts()?;
        self.check_tasks()?;
        self.deps.check(|holder| {
            self.tasks
                .get(holder.task)
                .is_some_and(|task| task.seq == holder.seq)
        })?;
        self.placement.check()
    }

    /// In debug builds checks the invariants, as often as keeps the cost of a call constant on average.
    pub(super) fn check_now_and_then(&mut self) {
        if cfg!(debug_assertions) {
            self.unchecked += 1;
            if self.unchecked > self.tasks.len() + self.placement.endpoints.len() {
                self.unchecked = 0;
                let found = self.check_invariants();
                debug_assert!(found.is_ok(), "scheduler invariant broken: {found:?}");
            }
        }
    }

    fn check_counts(&self) -> Result<(), String> {
        let counts = &self.counts;
        if counts.submitted != counts.finished() + counts.unfinished as u64 {
            return Err(format!("counters do not add up: {counts:?}"));
        }
        let mut runs: HashMap<RunId, (usize, usize)> = HashMap::new();
        for (_, task) in self.tasks.iter() {
            let run = runs.entry(task.run).or_default();
            run.0 += usize::from(task.phase != Phase::Reported);
            run.1 += 1;
        }
        let kept: HashMap<RunId, (usize, usize)> = self
            .runs
            .iter()
            .filter(|(_, run)| run.kept > 0)
            .map(|(id, run)| (id, (run.unfinished, run.kept)))
            .collect();
        if runs != kept || runs.values().map(|run| run.0).sum::<usize>() != counts.unfinished {
            return Err(format!("runs hold {runs:?} tasks, counted {kept:?}"));
        }
        let active = self
            .tasks
            .iter()
            .filter(|(_, task)| task.is_active())
            .count();
        if active != self.active {
            return Err(format!(
                "{active} tasks are ready or running, counted {}",
                self.active
            ));
        }
        if active == 0 && self.tasks.len() > 0 {
            return Err("tasks are left and none can ever run".to_owned());
        }
        Ok(())
    }

    fn check_tasks(&self) -> Result<(), String> {
        let mut pending: HashMap<TaskId, u32> = HashMap::new();
        for (id, task) in self.tasks.iter() {
            for successor in &task.successors {
                if self
                    .tasks
                    .get(successor.task)
                    .is_none_or(|next| next.seq <= task.seq)
                {
                    return Err(format!(
                        "an edge leads from {id} to {}, which is not later",
                        successor.task
                    ));
                }
                *pending.entry(successor.task).or_default() += 1;
            }
        }
        let mut in_flight: HashMap<TaskId, u32> = HashMap::new();
        for endpoint in &self.placement.endpoints {
            for &(id, _) in endpoint.in_flight.iter() {
                *in_flight.entry(id).or_default() += 1;
            }
        }
        for (id, task) in self.tasks.iter() {
            let copies = u32::from(matches!(task.work, Work::Copy) && task.phase == Phase::Running);
            let in_flight = in_flight.remove(&id).unwrap_or(copies);
            check_task(task, pending.remove(&id).unwrap_or(0), in_flight)
                .map_err(|what| format!("{id} {what}"))?;
        }
        match in_flight.keys().next() {
            Some(id) => Err(format!("{id} is in flight and has ended")),
            None => Ok(()),
        }
    }
}

fn check_task(task: &Task, edges: u32, in_flight: u32) -> Result<(), String> {
    let (phase, ticket) = (task.phase, task.ticket);
    if edges != task.pending {
        return Err(format!(
            "counts {} predecessors and has {edges}",
            task.pending
        ));
    }
    let in_flight = in_flight + task.settling;
    if task.dispatched - task.reported != in_flight || task.dispatched > task.work.members() {
        return Err(format!(
            "has {in_flight} members in flight or settling of {} dispatched",
            task.dispatched
        ));
    }
    let sound = match phase {
        Phase::Blocked | Phase::Reported => {
            task.pending > 0 && task.dispatched == 0 && ticket.is_none()
        }
        Phase::Waiting => task.pending == 0 && task.dispatched == 0 && task.waits(),
        // Chained: it was sent behind what it waits for, and its end may have been reported before the end of that.
        Phase::Running if task.pending > 0 => task.place == 0 && task.work.members() == 1,
        Phase::Running => in_flight > 0 || task.waits(),
    };
    let single = matches!(task.work, Work::Slots { members: 1, .. });
    if task.seat.is_some() && !(single && in_flight == 1 && task.settling == 0) {
        return Err("has a seat and is not in flight".to_owned());
    }
    if !sound {
        return Err(format!(
            "is {phase:?} with {in_flight} members in flight and ticket {ticket:?}"
        ));
    }
    Ok(())
}
