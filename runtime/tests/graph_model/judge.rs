//! The world performs actions and objects to every wrong one.

use std::collections::BTreeMap;

use echelon_runtime::graph::*;

use super::memory::{bytes, conflict, gather, reads, writes};
use super::world::{Flight, World};

impl World {
    /// Nobody may have changed what a running task reads and does not write itself.
    pub(crate) fn check_inputs(&self, accesses: &[Access], inputs: &[u8]) {
        let written = bytes(accesses, writes);
        for (byte, &value) in bytes(accesses, reads).iter().zip(inputs) {
            if written.binary_search(byte).is_err() {
                assert_eq!(
                    self.memory[&byte.0][byte.1], value,
                    "an input changed while its reader ran"
                );
            }
        }
    }

    pub(crate) fn perform(&mut self, actions: &[Action]) {
        let mut gangs: BTreeMap<usize, u32> = BTreeMap::new();
        for &action in actions {
            match action {
                Action::Dispatch {
                    task,
                    member,
                    endpoint,
                } => {
                    let number = self.dispatch(task, member, endpoint);
                    if matches!(self.records[number].spec.kind, NodeKind::Gang { .. }) {
                        *gangs.entry(number).or_default() += 1;
                    }
                }
                Action::Chain { task, endpoint } => self.chain(task, endpoint),
                Action::Waits { task } => {
                    let task = self.numbers[&task];
                    assert_eq!(self.records[task].outcome, None);
                }
                Action::StartCopy { task } => {
                    let task = self.numbers[&task];
                    assert_eq!(self.records[task].spec.kind, NodeKind::Copy);
                    self.begin(task);
                    self.flights.push(Flight {
                        task,
                        member: 0,
                        endpoint: None,
                        queued: None,
                    });
                }
                Action::Finished {
                    task,
                    run,
                    outcome,
                    cause,
                } => self.finished(task, run, outcome, cause),
            }
        }
        for (task, members) in gangs {
            assert_eq!(
                members,
                self.records[task].members(),
                "a gang was dispatched in parts"
            );
        }
        self.check();
    }

    pub(crate) fn check_place(&self, endpoint: EndpointId) {
        assert!(
            self.up.contains_key(&endpoint),
            "a member was dispatched to a lost endpoint"
        );
        let capacity = self.deepest(endpoint);
        assert!(!self.down.contains(&endpoint), "{endpoint} is down (G-8)");
        let busy = self
            .flights
            .iter()
            .filter(|f| f.endpoint == Some(endpoint))
            .count();
        assert!(busy < capacity as usize, "{endpoint} has no room");
    }

    fn dispatch(&mut self, id: TaskId, member: u32, endpoint: EndpointId) -> usize {
        let task = self.numbers[&id];
        self.check_place(endpoint);
        let record = &self.records[task];
        assert!(member < record.members() && record.eligible(member).contains(endpoint));
        assert!(
            !record.dispatched.contains_key(&member),
            "member {member} of {id} was dispatched twice"
        );
        assert!(
            !self.held.contains(&(task, member)),
            "member {member} of {id} is held"
        );
        assert!(!record.cancelled, "{id} goes on after a cancel");
        assert!(
            record.results.iter().all(|r| *r == MemberResult::Completed),
            "dispatched after a failure"
        );
        let gang = matches!(record.spec.kind, NodeKind::Gang { .. });
        assert!(
            !gang || record.dispatched.values().all(|e| *e != endpoint),
            "a gang shares an endpoint"
        );
        if record.inputs.is_none() {
            self.begin(task);
        }
        self.records[task].dispatched.insert(member, endpoint);
        self.flights.push(Flight {
            task,
            member,
            endpoint: Some(endpoint),
            queued: None,
        });
        task
    }

    /// First start of a task: takes its inputs and makes what it will overwrite unreadable.
    pub(crate) fn begin(&mut self, task: usize) {
        let accesses = self.records[task].spec.accesses.clone();
        for other in &self.running {
            let other_accesses = &self.records[*other].spec.accesses;
            assert!(
                !conflict(&accesses, other_accesses),
                "{task} runs beside {other}"
            );
        }
        self.running.insert(task);
        assert_eq!(
            self.records[task].outcome, None,
            "{task} starts after its end"
        );
        self.records[task].inputs = Some(gather(&self.memory, &accesses));
        let read = bytes(&accesses, reads);
        for byte in bytes(&accesses, writes) {
            if read.binary_search(&byte).is_err() {
                self.memory.get_mut(&byte.0).unwrap()[byte.1] ^= 0xa5;
            }
        }
    }

    fn finished(&mut self, id: TaskId, run: RunId, outcome: Outcome, cause: Option<TaskId>) {
        let task = self.numbers[&id];
        let in_flight = self.flights.iter().any(|f| f.task == task);
        let possible = self.can_be_placed(task);
        let record = &mut self.records[task];
        assert_eq!(record.outcome, None, "{id} ended twice (R-083)");
        assert_eq!((record.id, record.spec.run), (id, run));
        assert!(!in_flight, "{id} ended with a member in flight");
        let worst = record
            .results
            .iter()
            .map(|&r| Outcome::from(r))
            .max()
            .unwrap_or(Outcome::Completed);
        let complete = record.results.len() == record.members() as usize;
        match outcome {
            Outcome::Completed => assert!(worst == outcome && complete),
            Outcome::Failed => assert_eq!(worst, outcome),
            Outcome::EndpointLost => assert!(worst == outcome || !possible, "{id} could still run"),
            Outcome::Skipped => assert!(record.inputs.is_none(), "a skipped task had been started"),
            Outcome::Cancelled => {
                assert!(record.cancelled && !complete && worst == Outcome::Completed)
            }
        }
        assert_eq!(cause.is_some(), outcome == Outcome::Skipped);
        record.outcome = Some(outcome);
        self.running.remove(&task);
        record.cause = cause.map(|cause| self.numbers[&cause]);
    }

    /// Whether the members of a task not dispatched yet could ever be placed, by trying everything.
    fn can_be_placed(&self, task: usize) -> bool {
        self.placeable(&self.records[task].spec.kind)
    }

    pub(crate) fn placeable(&self, kind: &NodeKind) -> bool {
        fn assign(world: &World, members: &[Eligible], used: &mut Vec<EndpointId>) -> bool {
            let Some((first, rest)) = members.split_first() else {
                return true;
            };
            first.ids().iter().any(|id| {
                if used.contains(id) || !world.up.contains_key(id) {
                    return false;
                }
                used.push(*id);
                let found = assign(world, rest, used);
                used.pop();
                found
            })
        }
        match kind {
            NodeKind::Copy => true,
            NodeKind::Gang { members } => assign(self, members, &mut Vec::new()),
            NodeKind::Single { eligible } | NodeKind::Waves { eligible, .. } => {
                assign(self, std::slice::from_ref(eligible), &mut Vec::new())
            }
        }
    }
}
