//! How deep queues become, in time that the test makes: short tasks in deep queues, long ones spread evenly, and no starving.

use std::collections::VecDeque;

use echelon_runtime::graph::*;
use proptest::prelude::*;

const LEAST: u32 = 2;
const MOST: u32 = 64;
/// What a queue may hold, as the module says.
const QUEUE_NS: u64 = 1_000_000;

/// Endpoints that work their queues off one by one, in time that is counted and not spent.
struct Simulation {
    scheduler: Scheduler,
    now_ns: u64,
    /// What each task takes, by slot of its id.
    takes: Vec<u64>,
    /// By endpoint: its queue in order, and when the member that it runs began.
    queues: Vec<(VecDeque<(TaskId, u32)>, u64)>,
    /// What the last member took, by endpoint.
    last_ns: Vec<u64>,
    /// Times come with the reports.
    told: bool,
    ended: usize,
    deepest: usize,
}

impl Simulation {
    fn new(endpoints: u32, told: bool) -> Self {
        let mut scheduler = Scheduler::new(1 << 16);
        for id in 0..endpoints {
            let added = Event::EndpointAdded {
                endpoint: EndpointId(id),
                capacity: LEAST,
                depth: MOST,
            };
            scheduler.handle(added, &mut Vec::new());
        }
        Self {
            scheduler,
            now_ns: 0,
            takes: Vec::new(),
            queues: vec![(VecDeque::new(), 0); endpoints as usize],
            last_ns: vec![QUEUE_NS; endpoints as usize],
            told,
            ended: 0,
            deepest: 0,
        }
    }

    fn all(&self) -> Eligible {
        Eligible::new((0..self.queues.len() as u32).map(EndpointId)).unwrap()
    }

    fn submit(&mut self, kind: NodeKind, takes_ns: u64) -> TaskId {
        let mut out = Vec::new();
        self.scheduler.advance(self.now_ns);
        let spec = NodeSpec {
            run: RunId(1),
            kind,
            accesses: Vec::new(),
            prefer: None,
        };
        let task = self.scheduler.submit(spec, &mut out).unwrap();
        let slot = task.slot as usize;
        self.takes.resize(self.takes.len().max(slot + 1), 0);
        self.takes[slot] = takes_ns;
        self.perform(&out);
        task
    }

    fn single(&mut self, takes_ns: u64) -> TaskId {
        let eligible = self.all();
        self.submit(NodeKind::Single { eligible }, takes_ns)
    }

    fn perform(&mut self, actions: &[Action]) {
        for action in actions {
            let Action::Dispatch {
                task,
                member,
                endpoint,
            } = *action
            else {
                continue;
            };
            let at = endpoint.0 as usize;
            let (queue, began) = &mut self.queues[at];
            let before = queue.len() as u64;
            // The rule: not deeper than the least, unless what it holds is worth less than the bound by the last answer, and
            // nothing has run for longer than that.
            if before >= u64::from(LEAST) {
                let running = self.now_ns - *began;
                let each = self.last_ns[at].max(running);
                assert!(
                    (before + 1) * each <= QUEUE_NS,
                    "{before} are there, each takes {each} ns"
                );
            }
            assert!(before < u64::from(MOST));
            if queue.is_empty() {
                *began = self.now_ns;
            }
            queue.push_back((task, member));
            self.deepest = self.deepest.max(queue.len());
        }
        if self.scheduler.live() < 64 {
            self.scheduler.check_invariants().unwrap();
        }
    }

    /// The next member that ends, in time.
    fn step(&mut self) -> bool {
        let ends = self.queues.iter().enumerate().filter_map(|(at, queue)| {
            let (task, _) = queue.0.front()?;
            Some((queue.1 + self.takes[task.slot as usize], at))
        });
        let Some((end, at)) = ends.min() else {
            return false;
        };
        self.now_ns = end;
        let (queue, began) = &mut self.queues[at];
        let took = end - *began;
        *began = end;
        let (task, member) = queue.pop_front().unwrap();
        self.last_ns[at] = took;
        let endpoint = EndpointId(at as u32);
        self.scheduler.advance(end);
        if self.told {
            self.scheduler.ran(endpoint, took);
        }
        let mut out = Vec::new();
        let done = Event::MemberDone {
            task,
            member,
            endpoint,
            result: MemberResult::Completed,
        };
        self.scheduler.handle(done, &mut out);
        let finished = |action: &&Action| matches!(action, Action::Finished { .. });
        self.ended += out.iter().filter(finished).count();
        self.perform(&out);
        true
    }

    fn finish(&mut self) {
        while self.step() {}
        assert_eq!(self.scheduler.live(), 0);
    }
}

/// Times in which members that end together are rare, so that an order of ends is one of times.
fn long() -> impl Strategy<Value = u64> {
    QUEUE_NS..20 * QUEUE_NS
}

fn short() -> impl Strategy<Value = u64> {
    500_u64..5_000
}

proptest! {
    /// Long tasks: queues stay as flat as they must be, and no endpoint works more than two tasks longer than another.
    #[test]
    fn long_tasks_are_spread_over_all_endpoints(
        endpoints in 1_u32..5,
        takes in prop::collection::vec(long(), 1..60),
        told in any::<bool>(),
    ) {
        let mut simulation = Simulation::new(endpoints, told);
        for &takes_ns in &takes {
            simulation.single(takes_ns);
        }
        simulation.finish();
        prop_assert_eq!(simulation.ended, takes.len());
        prop_assert!(simulation.deepest <= LEAST as usize);
        let longest = takes.iter().max().unwrap();
        let even = takes.iter().sum::<u64>() / u64::from(endpoints);
        prop_assert!(simulation.now_ns <= even + u64::from(LEAST) * longest);
    }

    /// Long ones among short ones, submitted at any time: the rule holds at every dispatch, and what a long one holds up is
    /// bounded by what a queue may hold.
    #[test]
    fn a_mix_of_long_and_short_tasks_is_spread_too(
        endpoints in 1_u32..5,
        takes in prop::collection::vec((prop_oneof![20 => short(), 1 => long()], 0..3_usize), 1..400),
        told in any::<bool>(),
    ) {
        let mut simulation = Simulation::new(endpoints, told);
        for &(takes_ns, steps) in &takes {
            simulation.single(takes_ns);
            for _ in 0..steps {
                simulation.step();
            }
        }
        simulation.finish();
        prop_assert_eq!(simulation.ended, takes.len());
    }
}

/// Short tasks fill the queue, and a long one empties it again: from then on others take what waits.
#[test]
fn queues_of_short_tasks_are_deep_until_a_long_one_comes() {
    for told in [false, true] {
        let mut simulation = Simulation::new(2, told);
        for _ in 0..400 {
            simulation.single(1_000);
        }
        simulation.finish();
        assert_eq!(simulation.deepest, MOST as usize);

        // Both are idle. One gets a long task, the other all that comes when that has run for a while.
        simulation.single(100 * QUEUE_NS);
        simulation.now_ns += QUEUE_NS;
        let before = simulation.now_ns;
        simulation.ended = 0;
        for _ in 0..100 {
            simulation.single(1_000);
        }
        while simulation.ended < 98 {
            assert!(simulation.step());
        }
        assert!(
            simulation.now_ns - before <= 100_000,
            "they waited for the long one"
        );
        simulation.finish();
    }
}

/// A gang gets its places although short tasks keep all queues full.
#[test]
fn a_gang_starts_behind_full_queues() {
    let mut simulation = Simulation::new(3, true);
    for _ in 0..600 {
        simulation.single(1_000);
    }
    for _ in 0..200 {
        simulation.step();
    }
    let members = vec![simulation.all(); 3];
    let gang = simulation.submit(NodeKind::Gang { members }, 1_000);
    let in_flight = |simulation: &Simulation| {
        let queues = simulation.queues.iter();
        queues.flat_map(|q| &q.0).filter(|m| m.0 == gang).count()
    };
    let mut steps = 0;
    while in_flight(&simulation) < 3 {
        simulation.single(1_000);
        assert!(simulation.step());
        steps += 1;
        assert!(steps < 1_000, "the gang starves");
    }
    simulation.finish();
}
