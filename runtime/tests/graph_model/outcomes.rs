//! How tasks end: failures, losses, cancels, refusals, one rule a test.

use echelon_runtime::graph::*;

use super::reference::compare;
use super::world::World;

const SPACE: Space = Space::Region(1);
const RUN: RunId = RunId(1);

fn access(mode: AccessMode, start: u64, end: u64) -> Access {
    Access {
        space: SPACE,
        start,
        end,
        mode,
    }
}

fn reads(start: u64, end: u64) -> Access {
    access(AccessMode::Read, start, end)
}

fn writes(start: u64, end: u64) -> Access {
    access(AccessMode::Write, start, end)
}

fn on(endpoint: u32) -> NodeKind {
    NodeKind::Single {
        eligible: Eligible::one(EndpointId(endpoint)),
    }
}

fn submit_as(world: &mut World, run: RunId, kind: NodeKind, accesses: &[Access]) -> usize {
    world
        .submit(NodeSpec {
            run,
            kind,
            accesses: accesses.to_vec(),
            prefer: None,
        })
        .unwrap()
}

fn submit(world: &mut World, accesses: &[Access]) -> usize {
    submit_as(world, RUN, on(0), accesses)
}

fn end(world: &mut World, task: usize, result: MemberResult) {
    let at = world
        .flights
        .iter()
        .position(|flight| flight.task == task)
        .expect("the task is in flight");
    world.report_flight(at, result);
}

fn complete(world: &mut World, tasks: &[usize]) {
    tasks
        .iter()
        .for_each(|&task| end(world, task, MemberResult::Completed));
}

fn world() -> World {
    World::new(100, &[100, 100])
}

/// transitive readers are skipped and name the root; writers over undefined bytes and strangers run.
#[test]
fn r_082_poison_travels_along_reads_only() {
    let mut world = world();
    let producer = submit(&mut world, &[writes(0, 8)]);
    let reader = submit(&mut world, &[reads(4, 6), writes(10, 12)]);
    let second = submit(&mut world, &[reads(11, 12), writes(20, 21)]);
    let overwriter = submit(&mut world, &[writes(0, 8)]);
    let after = submit(&mut world, &[reads(0, 8)]);
    let stranger = submit(&mut world, &[reads(8, 10)]);
    end(&mut world, producer, MemberResult::Failed);
    for skipped in [reader, second] {
        assert_eq!(world.outcome(skipped), Some(Outcome::Skipped));
        assert_eq!(world.records[skipped].cause, Some(producer));
    }
    complete(&mut world, &[overwriter, after, stranger]);
    assert_eq!(
        world.scheduler.poisoned_ranges(RUN),
        [(SPACE, 10, 12), (SPACE, 20, 21)]
    );
    compare(&world);
}

/// also when the writer had ended before the reader was submitted, and only on the bytes that it wrote.
#[test]
fn r_082_a_writer_that_failed_earlier_poisons_later_readers() {
    let mut world = world();
    let producer = submit(&mut world, &[writes(4, 12)]);
    end(&mut world, producer, MemberResult::Failed);
    let beside = submit(&mut world, &[reads(0, 4), reads(12, 16)]);
    let touching = submit(&mut world, &[reads(11, 13)]);
    let in_out = submit(&mut world, &[access(AccessMode::ReadWrite, 4, 5)]);
    assert_eq!(world.outcome(touching), Some(Outcome::Skipped));
    assert_eq!(world.outcome(in_out), Some(Outcome::Skipped), "INOUT reads");
    let cleaner = submit(&mut world, &[writes(4, 8)]);
    complete(&mut world, &[beside, cleaner]);
    let clean = submit(&mut world, &[reads(4, 8)]);
    let dirty = submit(&mut world, &[reads(7, 9)]);
    assert_eq!(world.outcome(dirty), Some(Outcome::Skipped));
    complete(&mut world, &[clean]);
    assert_eq!(world.scheduler.poisoned_ranges(RUN), [(SPACE, 8, 12)]);
    compare(&world);
}

/// Of several failed producers the first submitted is named, whichever failed first.
#[test]
fn the_cause_does_not_depend_on_the_order_of_failures() {
    for swapped in [false, true] {
        let mut world = world();
        let first = submit(&mut world, &[writes(0, 1)]);
        let second = submit(&mut world, &[writes(1, 2)]);
        let reader = submit(&mut world, &[reads(0, 2)]);
        let (one, other) = if swapped {
            (second, first)
        } else {
            (first, second)
        };
        end(&mut world, one, MemberResult::Failed);
        assert_eq!(
            world.outcome(reader),
            None,
            "it keeps its place until both have ended"
        );
        end(&mut world, other, MemberResult::Failed);
        assert_eq!(world.records[reader].cause, Some(first));
    }
}

#[test]
fn poison_ends_with_its_run() {
    let mut world = world();
    let failed = submit(&mut world, &[writes(0, 4)]);
    end(&mut world, failed, MemberResult::Failed);
    let other = RunId(2);
    let reader = submit_as(&mut world, other, on(0), &[reads(0, 1), writes(5, 6)]);
    assert_eq!(
        world.outcome(reader),
        Some(Outcome::Skipped),
        "the bytes are undefined for every run"
    );
    assert_eq!(world.scheduler.poisoned_ranges(other), [(SPACE, 5, 6)]);
    world.end_run(RUN);
    let reader = submit_as(&mut world, other, on(0), &[reads(0, 4)]);
    complete(&mut world, &[reader]);
    world.end_run(other);
    assert_eq!(world.scheduler.stats().intervals, 0);
}

/// A skipped task's outputs keep their order: the writer behind it still waits for the reader before it (G-5).
#[test]
fn a_skipped_task_keeps_its_place_in_the_order() {
    let mut world = world();
    let failing = submit(&mut world, &[writes(0, 1)]);
    let slow_reader = submit(&mut world, &[reads(10, 11)]);
    let skipped = submit(&mut world, &[reads(0, 1), writes(10, 11)]);
    let writer = submit(&mut world, &[writes(10, 11)]);
    end(&mut world, failing, MemberResult::Failed);
    assert!(
        world.records[writer].inputs.is_none(),
        "the slow reader is not done"
    );
    complete(&mut world, &[slow_reader]);
    assert_eq!(world.outcome(skipped), Some(Outcome::Skipped));
    complete(&mut world, &[writer]);
    compare(&world);
}

/// A cancel is told at once, running tasks go on, and the order of accesses stays (G-5).
#[test]
fn a_cancel_ends_what_has_not_started_at_once() {
    let mut world = World::new(100, &[1, 1]);
    let running = submit(&mut world, &[reads(0, 4)]);
    let waiting = submit(&mut world, &[]);
    let blocked = submit(&mut world, &[writes(0, 4)]);
    let other = RunId(2);
    let behind = submit_as(&mut world, other, on(1), &[writes(0, 2)]);
    let reader = submit_as(&mut world, other, on(1), &[reads(3, 4)]);
    world.cancel(RUN);
    assert_eq!(world.outcome(waiting), Some(Outcome::Cancelled));
    assert_eq!(world.outcome(blocked), Some(Outcome::Cancelled));
    assert_eq!(
        (world.scheduler.run_live(RUN), world.outcome(running)),
        (1, None)
    );
    assert!(
        world.records[behind].inputs.is_none(),
        "it may not overtake the reader that runs"
    );
    complete(&mut world, &[running, behind]);
    assert_eq!(world.records[reader].cause, Some(blocked));
    assert_eq!(world.scheduler.live(), 0);
    compare(&world);
}

/// A cancelled task that outlives its run in the order of accesses leaves no poison behind.
#[test]
fn a_cancelled_task_of_a_run_that_is_over_poisons_nobody() {
    let mut world = world();
    let other = RunId(2);
    let slow = submit_as(&mut world, other, on(1), &[reads(0, 4)]);
    submit(&mut world, &[writes(0, 4)]);
    let before = submit_as(&mut world, other, on(1), &[reads(0, 1)]);
    world.cancel(RUN);
    world.end_run(RUN);
    let after = submit_as(&mut world, other, on(1), &[reads(3, 4)]);
    assert!(world.records[after].inputs.is_none(), "the order stays");
    complete(&mut world, &[slow]);
    assert_eq!(world.outcome(before), Some(Outcome::Skipped));
    complete(&mut world, &[after]);
    assert_eq!(world.scheduler.stats().intervals, 0);
    compare(&world);
}

/// Design: when an endpoint is lost, started → EndpointLost, unstarted readers of a lost producer → Skipped, other
/// unstarted → EndpointLost.
#[test]
fn a_lost_endpoint_ends_each_task_there_in_its_way() {
    let mut world = World::new(100, &[1, 100]);
    let started = submit(&mut world, &[writes(0, 4)]);
    let reader = submit(&mut world, &[reads(0, 4)]);
    let waiting = submit(&mut world, &[]);
    let writer = submit(&mut world, &[writes(0, 1)]);
    let elsewhere = submit_as(&mut world, RUN, on(1), &[]);
    world.lose_endpoint(EndpointId(0));
    assert_eq!(world.outcome(started), Some(Outcome::EndpointLost));
    assert_eq!(
        (world.outcome(reader), world.records[reader].cause),
        (Some(Outcome::Skipped), Some(started))
    );
    assert_eq!(world.outcome(waiting), Some(Outcome::EndpointLost));
    assert_eq!(world.outcome(writer), Some(Outcome::EndpointLost));
    complete(&mut world, &[elsewhere]);
    let again = NodeSpec {
        run: RUN,
        kind: on(0),
        accesses: Vec::new(),
        prefer: None,
    };
    assert_eq!(
        world.submit(again.clone()),
        Err(SubmitError::AllLost { eligible: 1 })
    );
    world.add_endpoint(EndpointId(0), 1);
    let after = world.submit(again).unwrap();
    complete(&mut world, &[after]);
}

/// the first verdict stands; later ones are counted.
#[test]
fn r_084_late_and_duplicate_reports_are_ignored_and_counted() {
    let mut world = World::new(100, &[2, 2]);
    let lost = submit(&mut world, &[writes(0, 4)]);
    let copy = submit_as(&mut world, RUN, NodeKind::Copy, &[writes(4, 8)]);
    let kept = submit_as(&mut world, RUN, on(1), &[writes(8, 12)]);
    world.lose_endpoint(EndpointId(0));
    end(&mut world, copy, MemberResult::Failed);
    complete(&mut world, &[kept]);
    for event in world.reported.clone() {
        world.report_again(event);
    }
    let (task, result) = (world.records[kept].id, MemberResult::Completed);
    world.report_again(Event::CopyDone { task, ok: result });
    let endpoint = EndpointId(77);
    world.report_again(Event::MemberDone {
        task,
        member: 0,
        endpoint,
        result,
    });
    assert_eq!(world.outcome(lost), Some(Outcome::EndpointLost));
    assert_eq!(world.outcome(copy), Some(Outcome::Failed));
    assert_eq!(world.scheduler.stats().late_reports, 5);
}

/// a second report is not taken for the task that has the place in the table now.
#[test]
fn r_084_a_late_report_does_not_end_the_next_task_in_the_slot() {
    let mut world = World::new(1, &[1]);
    let first = submit_as(&mut world, RUN, NodeKind::Copy, &[writes(0, 4)]);
    complete(&mut world, &[first]);
    let second = submit_as(&mut world, RUN, NodeKind::Copy, &[writes(0, 4)]);
    let (old, new) = (world.records[first].id, world.records[second].id);
    assert_eq!((old.slot, old.generation + 1), (new.slot, new.generation));
    world.report_again(world.reported[0]);
    assert_eq!(world.outcome(second), None);
    complete(&mut world, &[second]);
}

/// A report for a member that runs, but from another endpoint or for another member, is not taken for it.
#[test]
fn r_084_a_report_from_elsewhere_does_not_end_a_member() {
    let mut world = World::new(100, &[1, 1]);
    let task = submit(&mut world, &[]);
    let (id, result) = (world.records[task].id, MemberResult::Failed);
    world.report_again(Event::MemberDone {
        task: id,
        member: 0,
        endpoint: EndpointId(1),
        result,
    });
    world.report_again(Event::MemberDone {
        task: id,
        member: 1,
        endpoint: EndpointId(0),
        result,
    });
    world.report_again(Event::CopyDone {
        task: id,
        ok: result,
    });
    complete(&mut world, &[task]);
    assert_eq!(world.outcome(task), Some(Outcome::Completed));
}

#[test]
fn a_failed_wave_skips_members_not_yet_dispatched() {
    let mut world = World::new(100, &[1, 1]);
    let eligible = Eligible::new([EndpointId(0), EndpointId(1)]).unwrap();
    let wave = submit_as(
        &mut world,
        RUN,
        NodeKind::Waves {
            members: 5,
            eligible,
        },
        &[writes(0, 1)],
    );
    let behind = submit(&mut world, &[]);
    world.report_flight(0, MemberResult::Completed);
    assert_eq!(world.records[wave].dispatched.len(), 3);
    let failing = world
        .flights
        .iter()
        .position(|flight| flight.endpoint == Some(EndpointId(0)))
        .unwrap();
    world.report_flight(failing, MemberResult::Failed);
    assert_eq!(world.records[wave].dispatched.len(), 3);
    assert_eq!(world.outcome(wave), None, "a member is still in flight");
    assert!(
        world.records[behind].inputs.is_some(),
        "the place goes to the next task"
    );
    end(&mut world, wave, MemberResult::Completed);
    assert_eq!(world.outcome(wave), Some(Outcome::Failed));
}

#[test]
fn a_copy_is_ordered_and_takes_no_place() {
    let mut world = World::new(100, &[1]);
    let producer = submit(&mut world, &[writes(0, 4)]);
    let copy = submit_as(
        &mut world,
        RUN,
        NodeKind::Copy,
        &[reads(0, 4), writes(8, 12)],
    );
    let other = submit_as(&mut world, RUN, NodeKind::Copy, &[]);
    assert_eq!(
        world.scheduler.predecessors(world.records[copy].id),
        [world.records[producer].id]
    );
    assert!(
        world.records[other].inputs.is_some(),
        "the endpoint is full"
    );
    complete(&mut world, &[producer, copy, other]);
    assert_eq!(world.scheduler.stats().completed, 3);
    compare(&world);
}

/// Every refusal leaves everything as it was (the world compares the counters).
#[test]
fn a_refused_submit_changes_nothing() {
    let mut world = World::new(2, &[1, 1]);
    let spec = |kind| NodeSpec {
        run: RUN,
        kind,
        accesses: vec![writes(0, 4)],
        prefer: None,
    };
    let unknown = Eligible::new([EndpointId(0), EndpointId(9)]).unwrap();
    let error = SubmitError::NoSuchEndpoint {
        endpoint: EndpointId(9),
    };
    assert_eq!(
        world.submit(spec(NodeKind::Single {
            eligible: unknown.clone()
        })),
        Err(error.clone())
    );
    let members = vec![Eligible::one(EndpointId(0)), unknown];
    assert_eq!(world.submit(spec(NodeKind::Gang { members })), Err(error));
    let one = Eligible::one(EndpointId(0));
    let members = vec![one.clone(), one.clone()];
    let error = SubmitError::GangTooLarge {
        members: 2,
        available: 1,
    };
    assert_eq!(world.submit(spec(NodeKind::Gang { members })), Err(error));
    assert_eq!(
        world.submit(spec(NodeKind::Gang {
            members: Vec::new()
        })),
        Err(SubmitError::NoMembers)
    );
    assert_eq!(
        world.submit(spec(NodeKind::Waves {
            members: 0,
            eligible: one
        })),
        Err(SubmitError::NoMembers)
    );
    let backwards = NodeSpec {
        accesses: vec![reads(0, 1), reads(5, 4)],
        ..spec(on(0))
    };
    let error = SubmitError::BadInterval {
        index: 1,
        start: 5,
        end: 4,
    };
    assert_eq!(world.submit(backwards), Err(error));
    let first = submit(&mut world, &[]);
    submit(&mut world, &[]);
    assert_eq!(
        world.submit(spec(on(0))),
        Err(SubmitError::TableFull { limit: 2 })
    );
    complete(&mut world, &[first]);
    assert!(world.scheduler.has_room());
    submit(&mut world, &[writes(0, 4)]);
}
