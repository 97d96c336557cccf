//! Random programs of submits, failures, losses, cancels and completion orders.

use echelon_runtime::graph::*;
use proptest::prelude::*;

use super::program::{program, Numbers, Step, RUNS};
use super::reference::compare;
use super::world::World;

/// The program's run as the world knows it now: a run that ended never comes back.
fn current(world: &World, run: u64) -> RunId {
    let lives = world
        .ended
        .iter()
        .filter(|ended| ended.0 % RUNS == run % RUNS)
        .count() as u64;
    RunId(run % RUNS + lives * RUNS)
}

fn run_step(world: &mut World, step: Step) {
    match step {
        Step::Submit(spec) => {
            let run = current(world, spec.run.0);
            submit(world, NodeSpec { run, ..spec });
        }
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
            if !world.flights.is_empty() {
                world.return_flight(at % world.flights.len(), hold);
            }
        }
        Step::Release(at) => {
            if !world.held.is_empty() {
                world.release(at % world.held.len());
            }
        }
        Step::Pause(id) => world.pause_endpoint(EndpointId(id)),
        Step::Lose(id) => world.lose_endpoint(EndpointId(id)),
        Step::Add(id, capacity) => world.add_endpoint(EndpointId(id), capacity),
        Step::Cancel(run) => world.cancel(current(world, run)),
        Step::EndRun(run) => {
            let run = current(world, run);
            if world.scheduler.run_live(run) == 0 {
                world.end_run(run);
            }
        }
        Step::Drain(seed) => {
            let mut numbers = Numbers(seed);
            world.drain(|bound| numbers.below(bound));
        }
    }
}

/// A submit, or the right reason against it.
fn submit(world: &mut World, spec: NodeSpec) {
    let kind = spec.kind.clone();
    let room = world.scheduler.has_room();
    match world.submit(spec) {
        Ok(_) => assert!(room && world.placeable(&kind)),
        Err(SubmitError::TableFull { .. }) => assert!(!room),
        Err(SubmitError::AllLost { .. } | SubmitError::GangTooLarge { .. }) => {
            assert!(!world.placeable(&kind))
        }
        Err(error) => panic!("{error}"),
    }
}

fn finish(world: &mut World, seed: u64) {
    let mut numbers = Numbers(seed);
    world.drain(|bound| numbers.below(bound));
    compare(world);
    let stats = world.scheduler.stats();
    assert_eq!(stats.submitted, world.records.len() as u64);
    assert_eq!(
        stats.finished(),
        stats.submitted,
        "the counters add up (R-083)"
    );
    assert_eq!((stats.unfinished, stats.late_reports), (0, world.late));
    let count = |outcome| {
        world
            .records
            .iter()
            .filter(|r| r.outcome == Some(outcome))
            .count() as u64
    };
    assert_eq!(stats.completed, count(Outcome::Completed));
    assert_eq!(stats.failed, count(Outcome::Failed));
    assert_eq!(stats.endpoint_lost, count(Outcome::EndpointLost));
    assert_eq!(stats.skipped, count(Outcome::Skipped));
    assert_eq!(stats.cancelled, count(Outcome::Cancelled));
    for run in 0..RUNS {
        let run = current(world, run);
        assert_eq!(world.scheduler.run_live(run), 0);
        world.end_run(run);
    }
    assert_eq!(
        world.scheduler.stats().intervals,
        0,
        "the map outlives its tasks and runs (R-228)"
    );
}

proptest! {
    /// outcomes and memory equal the sequential run with the same failures.
    #[test]
    fn r_082_r_083_any_program_equals_the_sequential_run(
        (capacities, limit, steps) in program(),
        order in any::<u64>(),
        deeper in prop_oneof![Just(0_u32), 1..6_u32],
    ) {
        let mut world = World::deep(limit, &capacities, deeper);
        let mut times = Numbers(order);
        for step in steps {
            world.now_ns += [100, 1_000, 50_000, 3_000_000][times.below(4)];
            run_step(&mut world, step);
        }
        finish(&mut world, order);
    }
}

/// very many tiny graphs, each in a random order: no wake-up is lost, no task starts before its last input.
/// `GRAPH_SMALL_GRAPHS` sets how many.
#[test]
fn r_233_no_wake_up_is_lost_in_many_small_graphs() {
    let graphs: u64 = std::env::var("GRAPH_SMALL_GRAPHS").map_or(5_000, |n| n.parse().unwrap());
    for seed in 0..graphs {
        let mut numbers = Numbers(seed);
        let mut world = World::new(100, &[1, 2]);
        let eligible = Eligible::new([EndpointId(0), EndpointId(1)]).unwrap();
        for _ in 0..8 {
            let mode = [AccessMode::Read, AccessMode::Write, AccessMode::ReadWrite];
            let accesses = (0..2).map(|_| {
                let start = numbers.below(6) as u64;
                let end = start + numbers.below(4) as u64;
                Access {
                    space: Space::Host,
                    start,
                    end,
                    mode: mode[numbers.below(3)],
                }
            });
            let accesses = accesses.collect();
            let kind = NodeKind::Single {
                eligible: eligible.clone(),
            };
            world
                .submit(NodeSpec {
                    run: RunId(1),
                    kind,
                    accesses,
                    prefer: None,
                })
                .unwrap();
            if numbers.below(3) == 0 && !world.flights.is_empty() {
                world.report_flight(numbers.below(world.flights.len()), MemberResult::Completed);
            }
        }
        world.drain(|bound| numbers.below(bound));
        compare(&world);
        assert_eq!(world.scheduler.stats().completed, 8, "seed {seed}");
    }
}
