//! Chains, one rule a test (design §15.18).

use echelon_runtime::graph::*;

use super::reference::compare;
use super::world::World;

const RUN: RunId = RunId(1);
const LANE: EndpointId = EndpointId(0);
const OTHER: EndpointId = EndpointId(1);

fn access(mode: AccessMode, start: u64) -> Access {
    Access {
        space: Space::Region(1),
        start,
        end: start + 1,
        mode,
    }
}

fn reads(at: u64) -> Access {
    access(AccessMode::Read, at)
}

fn writes(at: u64) -> Access {
    access(AccessMode::Write, at)
}

fn updates(at: u64) -> Access {
    access(AccessMode::ReadWrite, at)
}

fn on(endpoints: &[EndpointId]) -> NodeKind {
    let eligible = Eligible::new(endpoints.iter().copied()).unwrap();
    NodeKind::Single { eligible }
}

fn spec(kind: NodeKind, accesses: &[Access]) -> NodeSpec {
    NodeSpec {
        run: RUN,
        kind,
        accesses: accesses.to_vec(),
        prefer: None,
    }
}

/// Submits to the first lane.
fn submit(world: &mut World, accesses: &[Access]) -> usize {
    let spec = spec(on(&[LANE]), accesses);
    world.submit_chained(spec, Chaining::FULL).unwrap()
}

/// A world whose endpoints take chains.
fn world(capacities: &[u32]) -> World {
    let mut world = World::new(100, capacities);
    for (id, _) in (0..).zip(capacities) {
        world.chain_on(EndpointId(id));
    }
    world
}

fn report(world: &mut World, task: usize, result: MemberResult) {
    let at = world.flights.iter().position(|f| f.task == task);
    world.report_flight(at.expect("the task is in flight"), result);
}

fn in_flight(world: &World) -> Vec<usize> {
    world.flights.iter().map(|f| f.task).collect()
}

#[test]
fn a_chain_fills_the_queue_and_each_end_sends_the_next() {
    let mut world = world(&[3]);
    let tasks: Vec<usize> = (0..6).map(|_| submit(&mut world, &[updates(0)])).collect();
    assert_eq!(in_flight(&world), tasks[..3]);
    for done in 0..3 {
        report(&mut world, tasks[done], MemberResult::Completed);
        assert_eq!(in_flight(&world), tasks[done + 1..done + 4]);
    }
    world.drain(|_| 0);
    assert_eq!(world.chained, 5);
    compare(&world);
}

/// the lane skips the rest, each names the root, and who overwrites without reading runs.
#[test]
fn r_082_a_failure_in_the_middle_of_a_chain_skips_its_readers_only() {
    let mut world = world(&[10]);
    let first = submit(&mut world, &[updates(0)]);
    let failing = submit(&mut world, &[updates(0)]);
    let reader = submit(&mut world, &[reads(0), writes(1)]);
    let second = submit(&mut world, &[reads(1), writes(2)]);
    let overwriter = submit(&mut world, &[writes(0)]);
    let after = submit(&mut world, &[reads(0)]);
    assert_eq!(world.chained, 5);
    report(&mut world, first, MemberResult::Completed);
    report(&mut world, failing, MemberResult::Failed);
    assert_eq!(world.outcome(reader), None, "the lane has not said so yet");
    for skipped in [reader, second] {
        report(&mut world, skipped, MemberResult::Completed);
        assert_eq!(world.outcome(skipped), Some(Outcome::Skipped));
        assert_eq!(world.records[skipped].cause, Some(failing));
    }
    report(&mut world, overwriter, MemberResult::Completed);
    report(&mut world, after, MemberResult::Completed);
    assert_eq!(world.outcome(after), Some(Outcome::Completed));
    compare(&world);
}

#[test]
fn only_what_leads_and_what_follows_is_chained() {
    let of = |first: Chaining, second: Chaining, lane: bool| {
        let mut world = World::new(100, &[10]);
        if lane {
            world.chain_on(LANE);
        }
        for chaining in [first, second] {
            let spec = spec(on(&[LANE]), &[updates(0)]);
            world.submit_chained(spec, chaining).unwrap();
        }
        world.drain(|_| 0);
        world.chained
    };
    let (full, none) = (Chaining::FULL, Chaining::default());
    assert_eq!(of(full, full, true), 1);
    assert_eq!(of(full, full, false), 0);
    assert_eq!(of(none, full, true), 0);
    assert_eq!(of(full, none, true), 0);
}

/// Producers on two lanes, a group and a copy: what waits for them is sent when they have ended.
#[test]
fn nothing_is_chained_behind_another_lane_a_group_or_a_copy() {
    let one = || Eligible::one(LANE);
    let kinds = [
        on(&[OTHER]),
        NodeKind::Gang {
            members: vec![one()],
        },
        NodeKind::Waves {
            members: 2,
            eligible: one(),
        },
        NodeKind::Copy,
    ];
    for kind in kinds {
        let mut world = world(&[10, 10]);
        let spec = spec(kind, &[writes(1)]);
        world.submit_chained(spec, Chaining::FULL).unwrap();
        submit(&mut world, &[writes(0)]);
        let reader = submit(&mut world, &[reads(0), reads(1)]);
        assert_eq!(world.chained, 0);
        while world.outcome(0).is_none() {
            report(&mut world, 0, MemberResult::Completed);
        }
        assert_eq!(world.chained, 1, "one producer is left, on the same lane");
        world.drain(|_| 0);
        assert_eq!(world.outcome(reader), Some(Outcome::Completed));
        compare(&world);
    }
}

/// A chain that alternates between two workers is never chained.
#[test]
fn an_alternating_chain_waits_for_each_end() {
    let mut world = world(&[10, 10]);
    for at in 0..8 {
        let kind = on(&[[LANE, OTHER][at % 2]]);
        let spec = spec(kind, &[updates(0)]);
        world.submit_chained(spec, Chaining::FULL).unwrap();
        assert_eq!(world.flights.len(), 1);
    }
    world.drain(|_| 0);
    assert_eq!(world.chained, 0);
}

#[test]
fn a_chain_leaves_an_idle_worker_its_choice() {
    let both = || on(&[LANE, OTHER]);
    let mut world = world(&[10, 10]);
    let chained = |world: &mut World, at| {
        let spec = spec(both(), &[updates(at)]);
        world.submit_chained(spec, Chaining::FULL).unwrap();
        world.chained
    };
    assert_eq!(chained(&mut world, 0), 0);
    assert_eq!(chained(&mut world, 0), 0, "the other worker is idle");
    assert_eq!(chained(&mut world, 1), 0, "it is placed there");
    assert_eq!(chained(&mut world, 1), 1, "both are busy now");
    world.drain(|_| 0);
    compare(&world);
}

/// What became ready has waited: it takes the place that comes free, before what would be chained.
#[test]
fn what_is_ready_comes_before_what_follows() {
    let mut world = world(&[2]);
    let first = submit(&mut world, &[updates(0)]);
    let second = submit(&mut world, &[updates(0)]);
    let third = submit(&mut world, &[updates(0)]);
    let ready = submit(&mut world, &[writes(5)]);
    report(&mut world, first, MemberResult::Completed);
    assert_eq!(in_flight(&world), [second, ready]);
    report(&mut world, ready, MemberResult::Completed);
    assert_eq!(in_flight(&world), [second, third]);
    world.drain(|_| 0);
}

/// a producer is tried again; its skipped reader waits for it and runs once.
#[test]
fn r_086_a_reader_waits_for_the_next_attempt_of_its_producer() {
    let mut world = world(&[10]);
    let repeats = Chaining {
        repeats: true,
        ..Chaining::FULL
    };
    let spec = spec(on(&[LANE]), &[reads(7), writes(0)]);
    let producer = world.submit_chained(spec, repeats).unwrap();
    let reader = submit(&mut world, &[reads(0), writes(1)]);
    let second = submit(&mut world, &[reads(1)]);
    let overwriter = submit(&mut world, &[writes(7)]);
    assert_eq!(in_flight(&world), [producer, reader, second]);
    world.return_flight(0, true);
    report(&mut world, reader, MemberResult::Completed);
    report(&mut world, second, MemberResult::Completed);
    assert!(world.flights.is_empty(), "all wait for the producer");
    world.release(0);
    assert_eq!(in_flight(&world), [producer]);
    for task in [producer, reader, second, overwriter] {
        report(&mut world, task, MemberResult::Completed);
        assert_eq!(world.outcome(task), Some(Outcome::Completed));
    }
    compare(&world);
}

/// Design: when an endpoint is lost, started → EndpointLost, unstarted readers of a lost producer → Skipped, others as ever.
#[test]
fn a_lost_lane_ends_each_link_in_its_way() {
    for forever in [false, true] {
        let mut world = world(&[10]);
        let done = submit(&mut world, &[updates(0)]);
        let started = submit(&mut world, &[updates(0)]);
        let reader = submit(&mut world, &[reads(0)]);
        let overwriter = submit(&mut world, &[writes(0)]);
        report(&mut world, done, MemberResult::Completed);
        world.lose_lane(LANE, 1, forever);
        assert_eq!(world.outcome(started), Some(Outcome::EndpointLost));
        assert_eq!(world.outcome(reader), Some(Outcome::Skipped));
        assert_eq!(world.records[reader].cause, Some(started));
        let fate = forever.then_some(Outcome::EndpointLost);
        assert_eq!(world.outcome(overwriter), fate);
        world.drain(|_| 0);
        compare(&world);
    }
}

/// A chained task that may have been begun on the lane that was lost, while its producer is to be tried again, is not run twice.
#[test]
fn what_may_have_begun_is_lost_though_its_producer_runs_again() {
    let mut world = world(&[10]);
    let repeats = Chaining {
        repeats: true,
        ..Chaining::FULL
    };
    let spec = spec(on(&[LANE]), &[writes(0)]);
    let producer = world.submit_chained(spec, repeats).unwrap();
    let reader = submit(&mut world, &[reads(0)]);
    world.lose_lane(LANE, 2, false);
    assert_eq!(world.outcome(reader), None, "it keeps its place");
    world.drain(|_| 0);
    assert_eq!(world.outcome(producer), Some(Outcome::Completed));
    assert_eq!(world.outcome(reader), Some(Outcome::EndpointLost));
    compare(&world);
}

/// What was sent is not called back by a cancel; what was skipped or came back meanwhile is cancelled at once.
#[test]
fn a_cancel_ends_what_comes_back() {
    let mut world = world(&[10]);
    let first = submit(&mut world, &[updates(0)]);
    let second = submit(&mut world, &[updates(0)]);
    world.cancel(RUN);
    assert_eq!(world.outcome(second), None);
    world.lose_lane(LANE, 1, false);
    assert_eq!(world.outcome(first), Some(Outcome::EndpointLost));
    assert_eq!(world.outcome(second), Some(Outcome::Cancelled));
    compare(&world);
}

/// A reader of very many tasks is not chained: the work of a decision is bounded.
#[test]
fn what_waits_for_many_is_not_chained() {
    for many in [MAX_CONDITIONS, MAX_CONDITIONS + 1] {
        let mut world = world(&[100]);
        let reader: Vec<Access> = (0..many as u64).map(reads).collect();
        for at in 0..many as u64 {
            submit(&mut world, &[writes(at)]);
        }
        submit(&mut world, &reader);
        assert_eq!(world.chained, u64::from(many == MAX_CONDITIONS));
        world.drain(|_| 0);
    }
}

/// An endpoint remembers only what could still follow there.
#[test]
fn what_follows_is_forgotten_when_it_cannot() {
    let mut world = world(&[1, 4]);
    let producer = submit(&mut world, &[writes(0)]);
    let waiting: Vec<usize> = (0..4).map(|_| submit(&mut world, &[reads(0)])).collect();
    assert_eq!(world.chained, 0, "there is no room");
    report(&mut world, producer, MemberResult::Completed);
    assert_eq!(in_flight(&world), waiting[..1]);
    world.drain(|_| 0);
    assert_eq!((world.chained, world.scheduler.stats().followers), (0, 0));
    compare(&world);
}
