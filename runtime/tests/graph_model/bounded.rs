//! Memory follows what is unfinished, not what has ever run.

use echelon_runtime::graph::*;

use super::program::Numbers;

const TASKS: u64 = 100_000;
const TABLE: u32 = 256;

fn spec(numbers: &mut Numbers, sets: &[Eligible]) -> NodeSpec {
    let mode = [AccessMode::Read, AccessMode::Write, AccessMode::ReadWrite];
    let accesses = (0..2).map(|_| {
        let start = numbers.next() % 10_000;
        let end = start + numbers.next() % 500;
        Access {
            space: Space::Region(numbers.next() % 4),
            start,
            end,
            mode: mode[numbers.below(3)],
        }
    });
    let accesses = accesses.collect();
    let eligible = sets[numbers.below(sets.len())].clone();
    NodeSpec {
        run: RunId(1),
        kind: NodeKind::Single { eligible },
        accesses,
        prefer: None,
    }
}

#[test]
fn r_228_memory_is_bounded_by_unfinished_tasks() {
    let mut numbers = Numbers(1);
    let mut scheduler = Scheduler::new(TABLE);
    let mut out = Vec::new();
    for id in 0..16 {
        scheduler.handle(
            Event::EndpointAdded {
                endpoint: EndpointId(id),
                capacity: 2,
                depth: 2,
            },
            &mut out,
        );
    }
    // More sets than the scheduler keeps for unused ones.
    let some = |n: u32| {
        (0..16)
            .filter(move |bit| n & (1 << bit) != 0)
            .map(EndpointId)
    };
    let sets: Vec<Eligible> = (1..80)
        .filter_map(|n| Eligible::new(some(n * 13)))
        .collect();
    let mut flights: Vec<(TaskId, u32, EndpointId)> = Vec::new();
    let (mut submitted, mut finished) = (0, 0u64);
    while finished < TASKS {
        while submitted < TASKS && scheduler.has_room() {
            scheduler
                .submit(spec(&mut numbers, &sets), &mut out)
                .unwrap();
            submitted += 1;
        }
        finished += collect(&mut out, &mut flights);
        assert!(
            !flights.is_empty() || finished == TASKS,
            "tasks are left and nothing runs"
        );
        if flights.is_empty() {
            break;
        }
        let (task, member, endpoint) = flights.swap_remove(numbers.below(flights.len()));
        let result = MemberResult::Completed;
        let done = Event::MemberDone {
            task,
            member,
            endpoint,
            result,
        };
        scheduler.handle(done, &mut out);
        finished += collect(&mut out, &mut flights);
        if finished % 8 == 0 {
            // Two accesses a task have four ends; between two neighbouring ends lies at most one interval.
            let stats = scheduler.stats();
            assert!(stats.intervals <= 4 * scheduler.live(), "{stats:?}");
            assert!(stats.slots <= TABLE as usize, "{stats:?}");
        }
    }
    let stats = scheduler.stats();
    assert_eq!(
        (stats.submitted, stats.completed, stats.intervals),
        (TASKS, TASKS, 0)
    );
    assert!(stats.eligible_sets <= 65, "{stats:?}");
    scheduler.check_invariants().unwrap();
}

fn collect(out: &mut Vec<Action>, flights: &mut Vec<(TaskId, u32, EndpointId)>) -> u64 {
    let mut finished = 0;
    for action in out.drain(..) {
        match action {
            Action::Dispatch {
                task,
                member,
                endpoint,
            } => flights.push((task, member, endpoint)),
            Action::Finished { outcome, .. } => {
                assert_eq!(outcome, Outcome::Completed);
                finished += 1;
            }
            Action::Waits { .. } => {}
            Action::Chain { .. } => panic!("no chain was allowed"),
            Action::StartCopy { .. } => panic!("no copy was submitted"),
        }
    }
    finished
}
