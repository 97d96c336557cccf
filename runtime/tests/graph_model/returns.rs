//! Endpoints that are down for a while, and members that come back from them.

use echelon_runtime::graph::*;

use super::reference::compare;
use super::world::World;

const RUN: RunId = RunId(1);
const ONE: EndpointId = EndpointId(0);

fn task(kind: NodeKind, accesses: &[Access]) -> NodeSpec {
    NodeSpec {
        run: RUN,
        kind,
        accesses: accesses.to_vec(),
        prefer: None,
    }
}

fn single() -> NodeSpec {
    let eligible = Eligible::one(ONE);
    task(NodeKind::Single { eligible }, &[])
}

fn started(world: &World) -> Vec<usize> {
    world.flights.iter().map(|flight| flight.task).collect()
}

/// Of the tasks on the only worker, the one that ran there is lost; the rest waits and runs in its old order (G-8).
#[test]
fn r_083_what_waits_for_a_worker_that_is_down_runs_when_it_is_back() {
    let mut world = World::new(100, &[2]);
    let tasks: Vec<usize> = (0..5).map(|_| world.submit(single()).unwrap()).collect();
    world.pause_endpoint(ONE);
    world.report_flight(0, MemberResult::Lost);
    world.return_flight(0, false);
    assert!(world.flights.is_empty());
    assert!(world.scheduler.runnable_or_running() > 0);
    let late = world.submit(single()).unwrap();
    world.add_endpoint(ONE, 2);
    let mut order = Vec::new();
    while !world.flights.is_empty() {
        order.push(world.flights[0].task);
        world.report_flight(0, MemberResult::Completed);
    }
    assert_eq!(order, [&tasks[1..], &[late][..]].concat());
    assert_eq!(world.outcome(tasks[0]), Some(Outcome::EndpointLost));
    let stats = world.scheduler.stats();
    assert_eq!((stats.completed, stats.endpoint_lost), (5, 1));
    compare(&world);
}

#[test]
fn a_worker_that_does_not_come_back_strands_what_waited_for_it() {
    let mut world = World::new(100, &[1]);
    let tasks: Vec<usize> = (0..3).map(|_| world.submit(single()).unwrap()).collect();
    world.pause_endpoint(ONE);
    world.return_flight(0, false);
    world.lose_endpoint(ONE);
    for task in tasks {
        assert_eq!(world.outcome(task), Some(Outcome::EndpointLost));
    }
    assert!(world.submit(single()).is_err());
    // Lost, and then down: it is to come back.
    world.pause_endpoint(ONE);
    let next = world.submit(single()).unwrap();
    world.add_endpoint(ONE, 1);
    assert_eq!(started(&world), [next]);
}

#[test]
fn a_held_member_blocks_nobody_and_keeps_its_place() {
    let mut world = World::new(100, &[1]);
    let tasks: Vec<usize> = (0..3).map(|_| world.submit(single()).unwrap()).collect();
    world.return_flight(0, true);
    assert_eq!(started(&world), [tasks[1]]);
    world.release(0);
    assert_eq!(started(&world), [tasks[1]]);
    world.report_flight(0, MemberResult::Completed);
    assert_eq!(
        started(&world),
        [tasks[0]],
        "before what became ready later"
    );
    world.drain(|_| 0);
    assert_eq!(world.scheduler.stats().completed, 3);
}

#[test]
fn what_came_back_is_cancelled_with_its_run() {
    for hold in [false, true] {
        let mut world = World::new(100, &[1, 1]);
        let back = world.submit(single()).unwrap();
        world.pause_endpoint(ONE);
        world.return_flight(0, hold);
        world.cancel(RUN);
        assert_eq!(world.outcome(back), Some(Outcome::Cancelled));
        // Cancelled first, and then it comes back.
        world.add_endpoint(ONE, 1);
        let running = world.submit(single()).unwrap();
        world.cancel(RUN);
        assert_eq!(world.outcome(running), None);
        world.return_flight(0, hold);
        assert_eq!(world.outcome(running), Some(Outcome::Cancelled));
        world.mend();
        assert!(world.flights.is_empty());
    }
}

#[test]
fn members_of_a_wave_come_back_one_by_one() {
    let mut world = World::new(100, &[3]);
    let eligible = Eligible::one(ONE);
    let members = 5;
    let wave = world
        .submit(task(NodeKind::Waves { members, eligible }, &[]))
        .unwrap();
    world.pause_endpoint(ONE);
    for hold in [false, true, false] {
        world.return_flight(0, hold);
    }
    world.add_endpoint(ONE, 3);
    world.drain(|bound| bound - 1);
    assert_eq!(world.outcome(wave), Some(Outcome::Completed));
    assert_eq!(world.records[wave].results.len(), 5);
}

/// After a failure of one member nothing that comes back is started again, and the task ends with the worst (G-1).
#[test]
fn after_a_failed_member_the_others_do_not_come_back() {
    let mut world = World::new(100, &[3]);
    let eligible = Eligible::one(ONE);
    let members = 3;
    let wave = world
        .submit(task(NodeKind::Waves { members, eligible }, &[]))
        .unwrap();
    world.return_flight(0, true);
    world.report_flight(0, MemberResult::Failed);
    world.return_flight(0, false);
    assert_eq!(world.outcome(wave), Some(Outcome::Failed));
    world.release(0);
    assert!(world.flights.is_empty());
}

#[test]
fn a_gang_keeps_waiting_for_a_member_that_is_down_and_loses_one_that_comes_back() {
    let mut world = World::new(100, &[1, 1]);
    let gang = || {
        let members = vec![Eligible::one(ONE), Eligible::one(EndpointId(1))];
        task(NodeKind::Gang { members }, &[])
    };
    world.pause_endpoint(ONE);
    let waiting = world.submit(gang()).unwrap();
    assert_eq!(world.outcome(waiting), None);
    world.add_endpoint(ONE, 1);
    assert_eq!(started(&world), [waiting, waiting]);
    world.pause_endpoint(ONE);
    world.return_flight(0, false);
    world.report_flight(0, MemberResult::Completed);
    assert_eq!(world.outcome(waiting), Some(Outcome::EndpointLost));
}
