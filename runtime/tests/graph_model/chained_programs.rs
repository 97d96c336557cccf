//! Random programs whose tasks may be chained: outcomes and memory equal the sequential run.

use std::cell::Cell;

use echelon_runtime::graph::*;
use proptest::prelude::*;

use super::memory::{SPACES, SPACE_BYTES};
use super::program::{kind, result, Numbers};
use super::reference::compare;
use super::world::World;

const ENDPOINTS: u32 = 3;
const RUNS: u64 = 2;

#[derive(Clone, Debug)]
enum Step {
    Submit(NodeSpec, Chaining),
    Report(usize, MemberResult),
    ReportAgain(usize),
    /// A member has run, and what it wrote arrives later.
    Ran(usize, MemberResult),
    Settle(usize),
    /// A member that may be repeated is to be tried again.
    Return(usize, bool),
    Release(usize),
    Pause(u32),
    LoseLane(u32, usize, bool),
    Lose(u32),
    Add(u32, u32),
    Cancel(u64),
    Drain(u64),
}

fn access() -> impl Strategy<Value = Access> {
    let mode = prop_oneof![
        2 => Just(AccessMode::Read),
        1 => Just(AccessMode::Write),
        2 => Just(AccessMode::ReadWrite)
    ];
    (0..SPACE_BYTES as u64 / 3, 1u64..4, mode).prop_map(|(start, len, mode)| Access {
        space: SPACES[0],
        start,
        end: start + len,
        mode,
    })
}

/// Mostly singles that name their worker, or may go to two.
fn some_kind() -> impl Strategy<Value = NodeKind> {
    let one = (0..ENDPOINTS).prop_map(|id| Eligible::one(EndpointId(id)));
    let two = (0..ENDPOINTS).prop_map(|id| {
        let others = (0..ENDPOINTS).filter(move |other| *other != id);
        Eligible::new(others.map(EndpointId)).unwrap()
    });
    let first = Just(Eligible::one(EndpointId(0)));
    prop_oneof![
        8 => first.prop_map(|eligible| NodeKind::Single { eligible }),
        3 => one.prop_map(|eligible| NodeKind::Single { eligible }),
        3 => two.prop_map(|eligible| NodeKind::Single { eligible }),
        1 => kind().prop_map(within),
    ]
}

/// The same kind over the endpoints that there are.
fn within(kind: NodeKind) -> NodeKind {
    let cut = |set: Eligible| {
        let ids = set.ids().iter().map(|id| EndpointId(id.0 % ENDPOINTS));
        Eligible::new(ids).unwrap()
    };
    match kind {
        NodeKind::Single { eligible } => NodeKind::Single {
            eligible: cut(eligible),
        },
        NodeKind::Gang { members } => NodeKind::Gang {
            members: members.into_iter().map(cut).collect(),
        },
        NodeKind::Waves { members, eligible } => NodeKind::Waves {
            members,
            eligible: cut(eligible),
        },
        NodeKind::Copy => NodeKind::Copy,
    }
}

fn chaining() -> impl Strategy<Value = Chaining> {
    let usually = |weight| prop::bool::weighted(weight);
    (usually(0.9), usually(0.9), usually(0.25)).prop_map(|(follows, leads, repeats)| Chaining {
        follows,
        leads,
        repeats,
    })
}

fn submit() -> impl Strategy<Value = Step> {
    let accesses = prop::collection::vec(access(), 1..3);
    let prefer = prop::option::of((0..ENDPOINTS).prop_map(EndpointId));
    (0..RUNS, some_kind(), accesses, prefer, chaining()).prop_map(
        |(run, kind, accesses, prefer, chaining)| {
            let run = RunId(run);
            Step::Submit(
                NodeSpec {
                    run,
                    kind,
                    accesses,
                    prefer,
                },
                chaining,
            )
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => submit(),
        14 => (any::<usize>(), result()).prop_map(|(at, result)| Step::Report(at, result)),
        1 => any::<usize>().prop_map(Step::ReportAgain),
        4 => (any::<usize>(), result()).prop_map(|(at, result)| Step::Ran(at, result)),
        2 => any::<usize>().prop_map(Step::Settle),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(at, hold)| Step::Return(at, hold)),
        3 => any::<usize>().prop_map(Step::Release),
        1 => (0..ENDPOINTS).prop_map(Step::Pause),
        2 => (0..ENDPOINTS, 0usize..6, prop::bool::weighted(0.2))
            .prop_map(|(id, begun, forever)| Step::LoseLane(id, begun, forever)),
        1 => (0..ENDPOINTS).prop_map(Step::Lose),
        3 => (0..ENDPOINTS, 1u32..8).prop_map(|(id, capacity)| Step::Add(id, capacity)),
        1 => (0..RUNS).prop_map(Step::Cancel),
        1 => any::<u64>().prop_map(Step::Drain),
    ]
}

fn run_step(world: &mut World, step: Step) {
    match step {
        // What cannot be placed any more is refused; the other programs look at the reasons.
        Step::Submit(spec, chaining) => drop(world.submit_chained(spec, chaining)),
        Step::Report(at, result) => {
            if !world.flights.is_empty() {
                world.report_flight(at % world.flights.len(), result);
            }
        }
        Step::ReportAgain(at) => {
            if !world.reported.is_empty() {
                world.report_again(world.reported[at % world.reported.len()]);
            }
        }
        Step::Ran(at, result) => {
            if !world.flights.is_empty() {
                world.run_flight(at % world.flights.len(), result);
            }
        }
        Step::Settle(at) => {
            if !world.settling.is_empty() {
                world.settle(at % world.settling.len());
            }
        }
        Step::Return(at, hold) => {
            let repeatable = |at: &usize| {
                let flight = &world.flights[*at];
                flight.queued.is_none() && world.records[flight.task].chaining.repeats
            };
            let found: Vec<usize> = (0..world.flights.len()).filter(repeatable).collect();
            if !found.is_empty() {
                world.return_flight(found[at % found.len()], hold);
            }
        }
        Step::Release(at) => {
            if !world.held.is_empty() {
                world.release(at % world.held.len());
            }
        }
        Step::Pause(id) => world.pause_endpoint(EndpointId(id)),
        Step::LoseLane(id, begun, forever) => world.lose_lane(EndpointId(id), begun, forever),
        Step::Lose(id) => world.lose_endpoint(EndpointId(id)),
        Step::Add(id, capacity) => world.add_endpoint(EndpointId(id), capacity),
        Step::Cancel(run) => world.cancel(RunId(run)),
        Step::Drain(seed) => {
            let mut numbers = Numbers(seed);
            world.drain(|bound| numbers.below(bound));
        }
    }
}

fn run(capacities: &[u32], lanes: &[bool], steps: Vec<Step>, order: u64) -> u64 {
    let mut world = World::new(1000, capacities);
    for (id, _) in (0..).zip(lanes).filter(|(_, chains)| **chains) {
        world.chain_on(EndpointId(id));
    }
    for step in steps {
        run_step(&mut world, step);
    }
    let mut numbers = Numbers(order);
    world.drain(|bound| numbers.below(bound));
    compare(&world);
    let stats = world.scheduler.stats();
    assert_eq!(stats.finished(), world.records.len() as u64);
    assert_eq!((stats.unfinished, stats.late_reports), (0, world.late));
    for run in 0..RUNS {
        world.end_run(RunId(run));
    }
    assert_eq!(world.scheduler.stats().intervals, 0);
    world.chained
}

/// failures, losses, second attempts and cancels in the middle of chains, among groups, copies and
/// lanes that take no chains, give what the sequential run gives.
#[test]
fn r_082_r_086_any_chained_program_equals_the_sequential_run() {
    let (programs, chained) = (Cell::new(0), Cell::new(0));
    proptest!(|(
        capacities in prop::collection::vec(1u32..12, ENDPOINTS as usize),
        lanes in prop::collection::vec(prop::bool::weighted(0.8), ENDPOINTS as usize),
        steps in prop::collection::vec(step(), 1..80),
        order in any::<u64>(),
    )| {
        programs.set(programs.get() + 1);
        chained.set(chained.get() + run(&capacities, &lanes, steps, order));
    });
    let (programs, chained) = (programs.get(), chained.get());
    assert!(
        chained > programs,
        "{chained} tasks of {programs} programs were chained"
    );
}
