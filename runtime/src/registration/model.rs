//! The transaction and the pairs against workers that refuse, die, and answer late: every step, every worker, every way.

use std::collections::{HashMap, HashSet, VecDeque};

use echelon_wire::callable::{CallableKind, Digest, RegistryTarget};
use proptest::prelude::*;

use super::{Answer, Key, PairState, Pairs, Step, Transaction};
use crate::endpoint::Ticket;
use crate::graph::EndpointId;

const WORKERS: usize = 3;

/// What goes wrong with a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The worker says no and does nothing.
    Refused,
    /// The worker does it, and the control raises all the same.
    Raised,
    /// The worker is lost before it answers.
    Lost,
    /// The caller stops waiting; the worker does it later.
    Late,
    /// The caller stops waiting; the worker refuses it later.
    LateRefused,
}

const FAULTS: [Fault; 5] = [
    Fault::Refused,
    Fault::Raised,
    Fault::Lost,
    Fault::Late,
    Fault::LateRefused,
];

/// A worker as it is: what it has, and what is on its way to it.
#[derive(Clone, Debug, Default)]
struct Real {
    prepared: HashSet<Key>,
    live: HashSet<Key>,
    queue: VecDeque<(Ticket, Key, Step, Option<Fault>)>,
}

impl Real {
    fn carry(&mut self, key: Key, step: Step) -> bool {
        match step {
            Step::Prepare => {
                self.prepared.insert(key);
            }
            Step::Commit => {
                let prepared = self.prepared.remove(&key);
                if prepared {
                    self.live.insert(key);
                }
                return prepared;
            }
            Step::Abort => {
                self.prepared.remove(&key);
            }
            Step::Remove => {
                self.prepared.remove(&key);
                self.live.remove(&key);
            }
        }
        true
    }
}

/// The fault of the next control of a step to a worker.
type Plan = HashMap<(Step, usize), Fault>;

const STEPS: [Step; 4] = [Step::Prepare, Step::Commit, Step::Abort, Step::Remove];

#[derive(Clone, Debug)]
struct World {
    real: Vec<Real>,
    known: Vec<Pairs>,
    plan: Plan,
    tickets: u64,
}

impl World {
    fn new() -> Self {
        Self {
            real: vec![Real::default(); WORKERS],
            known: vec![Pairs::default(); WORKERS],
            plan: Plan::new(),
            tickets: 0,
        }
    }

    /// A fresh worker in the place of one that was lost.
    fn lose(&mut self, worker: usize) {
        self.real[worker] = Real::default();
        self.known[worker].clear();
    }

    fn send(&mut self, worker: usize, key: Key, step: Step) -> (Ticket, Option<Fault>) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.known[worker].sent(key, step, ticket, None);
        let fault = self.plan.remove(&(step, worker));
        self.real[worker]
            .queue
            .push_back((ticket, key, step, fault));
        (ticket, fault)
    }

    /// The worker takes what was sent to it, in order, and its answers arrive. Returns the last one.
    fn drain(&mut self, worker: usize) -> Answer {
        let mut last = Answer::Done;
        while let Some((ticket, key, step, fault)) = self.real[worker].queue.pop_front() {
            let refuses = matches!(fault, Some(Fault::Refused | Fault::LateRefused));
            let done =
                !refuses && self.real[worker].carry(key, step) && fault != Some(Fault::Raised);
            self.known[worker].answered(&key, ticket, done);
            last = if done { Answer::Done } else { Answer::Refused };
            self.check();
        }
        last
    }

    fn step(&mut self, worker: usize, key: Key, step: Step, waits: bool) -> Answer {
        let (_, fault) = self.send(worker, key, step);
        self.check();
        match fault {
            Some(Fault::Lost) => {
                self.lose(worker);
                Answer::Lost
            }
            Some(Fault::Late | Fault::LateRefused) => Answer::Silent,
            _ if !waits => Answer::Silent,
            _ => self.drain(worker),
        }
    }

    /// What the edge does with a transaction.
    fn register(&mut self, key: Key, workers: &[usize]) -> bool {
        let before: Vec<PairState> = self.known.iter().map(|pairs| pairs.state(&key)).collect();
        let states: Vec<_> = workers
            .iter()
            .map(|w| (EndpointId(*w as u32), before[*w]))
            .collect();
        let mut transaction = Transaction::default();
        transaction.extend(&states);
        loop {
            let steps = transaction.steps();
            if steps.is_empty() {
                break;
            }
            let waits = transaction.waits();
            let carried = steps.iter();
            let answers: Vec<Answer> = carried
                .map(|(id, step)| self.step(id.0 as usize, key, *step, waits))
                .collect();
            transaction.answered(&answers);
            self.nothing_new_is_live(key, &before);
        }
        if transaction.succeeded() {
            for pairs in &mut self.known {
                pairs.publish(&key);
            }
        } else {
            self.nothing_new_is_live(key, &before);
        }
        self.check();
        transaction.succeeded()
    }

    fn unregister(&mut self, key: Key) {
        let there: Vec<usize> = (0..WORKERS)
            .filter(|w| self.known[*w].state(&key) != PairState::Absent)
            .collect();
        for worker in &there {
            self.known[*worker].retire(&key);
        }
        for worker in there {
            self.step(worker, key, Step::Remove, true);
        }
        for pairs in &self.known {
            assert_ne!(pairs.state(&key), PairState::Live);
        }
    }

    /// until it is published everywhere nobody may call it anywhere; what was live before stays so.
    fn nothing_new_is_live(&self, key: Key, before: &[PairState]) {
        for (pairs, before) in self.known.iter().zip(before) {
            let now = pairs.state(&key) == PairState::Live;
            assert!(!now || *before == PairState::Live);
        }
    }

    /// What is believed to be proven is true.
    fn check(&self) {
        for (real, known) in self.real.iter().zip(&self.known) {
            for key in keys() {
                let (prepared, live) = (real.prepared.contains(&key), real.live.contains(&key));
                match known.state(&key) {
                    PairState::Absent => assert!(!prepared && !live, "{known:?} {real:?}"),
                    PairState::Live | PairState::Committed | PairState::Retired => {
                        assert!(live, "{known:?} {real:?}")
                    }
                    PairState::Prepared => assert!(prepared, "{known:?} {real:?}"),
                    _ => {}
                }
                assert_eq!(
                    known.obstacle(&key).is_none(),
                    known.state(&key) == PairState::Live
                );
            }
        }
    }

    /// When nothing goes wrong any more, everything can be registered everywhere, and removed.
    fn recovers(mut self) {
        self.plan.clear();
        for worker in 0..WORKERS {
            self.drain(worker);
        }
        for key in keys() {
            assert!(self.register(key, &[0, 1, 2]), "{self:?}");
            assert!(self.real.iter().all(|real| real.live.contains(&key)));
            self.unregister(key);
            assert!(self
                .known
                .iter()
                .all(|pairs| pairs.state(&key) == PairState::Absent));
        }
        assert!(self
            .real
            .iter()
            .all(|real| real.live.is_empty() && real.prepared.is_empty()));
        assert!(self.known.iter().all(|pairs| pairs.keys().next().is_none()));
    }
}

fn keys() -> [Key; 2] {
    [
        RegistryTarget::RemoteTaskDispatcher,
        RegistryTarget::InnerL3Worker,
    ]
    .map(|registry| Key {
        digest: Digest([7; 32]),
        kind: CallableKind::PythonImport,
        registry,
    })
}

/// Every step at every worker in every way, and then every step of the undoing likewise; with and without an earlier
/// registration at one of the workers.
#[test]
fn r_098_r_099_a_failure_at_every_step_of_every_worker_in_every_way() {
    let [key, _] = keys();
    for (step, worker, fault) in places() {
        let undoing = |step: &Step| matches!(step, Step::Abort | Step::Remove);
        for (undo, at, second) in places().filter(|(step, _, _)| undoing(step)) {
            for earlier in [None, Some(0), Some(2)] {
                let mut world = World::new();
                if let Some(first) = earlier {
                    assert!(world.register(key, &[first]));
                }
                world.plan = Plan::from([((step, worker), fault)]);
                if (undo, at) != (step, worker) {
                    world.plan.insert((undo, at), second);
                }
                let registered = world.register(key, &[0, 1, 2]);
                let stepped = matches!(step, Step::Prepare | Step::Commit);
                if stepped && earlier != Some(worker) {
                    assert!(!registered, "{step:?} {worker} {fault:?}");
                }
                world.recovers();
            }
        }
    }
}

/// after a removal without an answer the next registration begins with the removal; without its proof it is refused.
#[test]
fn r_100_a_removal_without_an_answer_is_proven_before_the_callable_comes_back() {
    let [key, _] = keys();
    for worker in 0..WORKERS {
        for fault in FAULTS {
            let mut world = World::new();
            assert!(world.register(key, &[0, 1, 2]));
            world.plan = Plan::from([((Step::Remove, worker), fault)]);
            world.unregister(key);
            let gone = fault == Fault::Lost;
            assert_eq!(world.known[worker].state(&key) == PairState::Absent, gone);
            // The proof fails too: nothing is prepared anywhere.
            world.plan = Plan::from([((Step::Remove, worker), Fault::Refused)]);
            assert_eq!(world.register(key, &[0, 1, 2]), gone);
            if !gone {
                assert!(world.real.iter().all(|real| real.prepared.is_empty()));
                assert!(world.register(key, &[0, 1, 2]));
            }
            world.recovers();
        }
    }
}

/// A late answer counts when nothing has been sent since, and only then.
#[test]
fn r_100_a_late_answer_to_the_last_control_is_a_proof() {
    let [key, _] = keys();
    let mut world = World::new();
    assert!(world.register(key, &[0]));
    world.plan = Plan::from([((Step::Remove, 0), Fault::Late)]);
    world.unregister(key);
    assert!(matches!(world.known[0].state(&key), PairState::Removing(_)));
    world.drain(0);
    assert_eq!(world.known[0].state(&key), PairState::Absent);
    // Here something has: the removal that undoes.
    world.plan = Plan::from([((Step::Commit, 0), Fault::Late)]);
    assert!(!world.register(key, &[0]));
    assert_eq!(world.real[0].queue.len(), 2);
    world.drain(0);
    assert_eq!(world.known[0].state(&key), PairState::Absent);
}

fn places() -> impl Iterator<Item = (Step, usize, Fault)> {
    STEPS.into_iter().flat_map(|step| {
        (0..WORKERS)
            .flat_map(move |worker| FAULTS.into_iter().map(move |fault| (step, worker, fault)))
    })
}

#[derive(Clone, Debug)]
enum Op {
    Register(usize, Vec<usize>),
    Unregister(usize),
    Lose(usize),
    Drain(usize),
    Plan(usize, usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..2_usize, prop::sample::subsequence(vec![0, 1, 2], 1..=3)).prop_map(|(k, w)| Op::Register(k, w)),
        2 => (0..2_usize).prop_map(Op::Unregister),
        1 => (0..WORKERS).prop_map(Op::Lose),
        1 => (0..WORKERS).prop_map(Op::Drain),
        6 => (0..4_usize, 0..WORKERS, 0..5_usize).prop_map(|(s, w, f)| Op::Plan(s, w, f)),
    ]
}

proptest! {
    /// Whatever happened in whatever order: what is believed is true, and everything recovers.
    #[test]
    fn r_099_what_is_believed_of_a_pair_is_true(ops in prop::collection::vec(op(), 0..40)) {
        let mut world = World::new();
        for op in ops {
            match op {
                Op::Register(key, workers) => drop(world.register(keys()[key], &workers)),
                Op::Unregister(key) => world.unregister(keys()[key]),
                Op::Lose(worker) => world.lose(worker),
                Op::Drain(worker) => drop(world.drain(worker)),
                Op::Plan(step, worker, fault) => {
                    world.plan.insert((STEPS[step], worker), FAULTS[fault]);
                }
            }
            world.check();
        }
        world.recovers();
    }
}
