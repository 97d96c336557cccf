//! Where tasks go and what waits behind what.

use echelon_runtime::graph::*;

use super::world::World;

fn set(ids: impl IntoIterator<Item = u32>) -> Eligible {
    Eligible::new(ids.into_iter().map(EndpointId)).unwrap()
}

fn submit(world: &mut World, eligible: Eligible, prefer: Option<u32>) -> usize {
    let kind = NodeKind::Single { eligible };
    world
        .submit(NodeSpec {
            run: RunId(1),
            kind,
            accesses: Vec::new(),
            prefer: prefer.map(EndpointId),
        })
        .unwrap()
}

fn place(world: &World, task: usize) -> Option<u32> {
    world.records[task]
        .dispatched
        .get(&0)
        .map(|endpoint| endpoint.0)
}

fn complete(world: &mut World, task: usize) {
    let at = world
        .flights
        .iter()
        .position(|flight| flight.task == task)
        .unwrap();
    world.report_flight(at, MemberResult::Completed);
}

/// the head of a queue waits for its explicit worker; those behind it run elsewhere.
#[test]
fn r_243_a_task_that_waits_for_its_worker_blocks_nobody() {
    let mut world = World::new(100, &[1, 1]);
    let busy = submit(&mut world, set([0]), None);
    let head = submit(&mut world, set([0]), None);
    let free = submit(&mut world, set([0, 1]), None);
    assert_eq!((place(&world, head), place(&world, free)), (None, Some(1)));
    let next = submit(&mut world, set([0, 1]), None);
    complete(&mut world, free);
    assert_eq!((place(&world, head), place(&world, next)), (None, Some(1)));
    complete(&mut world, busy);
    assert_eq!(place(&world, head), Some(0));
}

/// A place that comes free goes to the task that waits longest, over all sets that contain the endpoint.
#[test]
fn the_oldest_waiting_task_over_all_sets_goes_first() {
    let mut world = World::new(100, &[1, 1]);
    let busy = [
        submit(&mut world, set([0]), None),
        submit(&mut world, set([1]), None),
    ];
    let any = submit(&mut world, set([0, 1]), None);
    let explicit = submit(&mut world, set([0]), None);
    let later = submit(&mut world, set([0, 1]), None);
    complete(&mut world, busy[0]);
    assert_eq!(
        (place(&world, any), place(&world, explicit)),
        (Some(0), None)
    );
    complete(&mut world, any);
    assert_eq!(
        (place(&world, explicit), place(&world, later)),
        (Some(0), None)
    );
    complete(&mut world, busy[1]);
    assert_eq!(place(&world, later), Some(1));
}

/// Both for sets that are searched and for sets that are kept in order.
#[test]
fn work_goes_to_the_least_loaded_and_rotates() {
    for endpoints in [4, 20] {
        let mut world = World::new(1000, &vec![2; endpoints as usize]);
        let all = set(0..endpoints);
        let first: Vec<_> = (0..endpoints)
            .map(|_| submit(&mut world, all.clone(), None))
            .collect();
        let places: Vec<_> = first.iter().map(|&task| place(&world, task)).collect();
        assert_eq!(places, (0..endpoints).map(Some).collect::<Vec<_>>());
        let task = submit(&mut world, all.clone(), None);
        assert_eq!(
            place(&world, task),
            Some(0),
            "the second place of the first"
        );
        complete(&mut world, first[2]);
        let task = submit(&mut world, all.clone(), None);
        assert_eq!(place(&world, task), Some(2), "the only idle one");
        // One task at a time: each endpoint gets its turn.
        world.drain(|_| 0);
        let mut served = vec![0; endpoints as usize];
        for _ in 0..5 * endpoints {
            let task = submit(&mut world, all.clone(), None);
            served[place(&world, task).unwrap() as usize] += 1;
            complete(&mut world, task);
        }
        assert!(served.iter().all(|&n| (4..=6).contains(&n)), "{served:?}");
    }
}

/// Short tasks are kept together by whoever knows that they are short; what is not ready at once, or may not go there, does not.
#[test]
fn a_task_leans_to_where_it_had_best_go_while_it_may() {
    let mut world = World::new(100, &[2, 2, 2]);
    let all = set([0, 1, 2]);
    let leaning = |world: &mut World, eligible: &Eligible, prefer| {
        world.scheduler.lean(EndpointId(2));
        let task = submit(world, eligible.clone(), prefer);
        place(world, task)
    };
    assert_eq!(leaning(&mut world, &all, None), Some(2));
    assert_eq!(
        leaning(&mut world, &set([0, 1]), None),
        Some(0),
        "not there"
    );
    assert_eq!(leaning(&mut world, &all, Some(1)), Some(1), "to its bytes");
    assert_eq!(leaning(&mut world, &all, None), Some(2));
    assert_eq!(leaning(&mut world, &all, None), Some(0), "no room there");
    world.drain(|_| 0);
    let task = submit(&mut world, all.clone(), None);
    assert_ne!(place(&world, task), Some(2), "it holds for one submit");
    world.scheduler.lean(EndpointId(7));
    let task = submit(&mut world, all, None);
    assert!(place(&world, task).is_some(), "there is no such endpoint");
}

#[test]
fn the_owner_of_the_bytes_is_preferred_while_it_has_room() {
    let mut world = World::new(100, &[2, 2]);
    let both = set([0, 1]);
    let places: Vec<_> = (0..3)
        .map(|_| {
            let task = submit(&mut world, both.clone(), Some(1));
            place(&world, task)
        })
        .collect();
    assert_eq!(places, [Some(1), Some(1), Some(0)]);
    let task = submit(&mut world, set([0]), Some(1));
    assert_eq!(
        place(&world, task),
        Some(0),
        "one that is not eligible is not preferred"
    );
}

#[test]
fn a_wave_takes_one_place_a_member_and_the_rest_waits() {
    let mut world = World::new(100, &[1, 2]);
    let kind = NodeKind::Waves {
        members: 5,
        eligible: set([0, 1]),
    };
    let wave = world
        .submit(NodeSpec {
            run: RunId(1),
            kind,
            accesses: Vec::new(),
            prefer: None,
        })
        .unwrap();
    assert_eq!(world.records[wave].dispatched.len(), 3);
    let behind = submit(&mut world, set([0, 1]), None);
    complete(&mut world, wave);
    complete(&mut world, wave);
    assert_eq!(world.records[wave].dispatched.len(), 5);
    assert_eq!(place(&world, behind), None);
    complete(&mut world, wave);
    assert!(place(&world, behind).is_some());
    world.drain(|_| 0);
    assert_eq!(world.outcome(wave), Some(Outcome::Completed));
}

#[test]
fn an_endpoint_that_grows_or_returns_takes_what_waits() {
    let mut world = World::new(100, &[1, 1]);
    let tasks: Vec<_> = (0..5)
        .map(|_| submit(&mut world, set([0, 1]), None))
        .collect();
    world.add_endpoint(EndpointId(0), 2);
    assert_eq!(place(&world, tasks[2]), Some(0));
    world.lose_endpoint(EndpointId(1));
    assert_eq!(place(&world, tasks[3]), None);
    world.add_endpoint(EndpointId(1), 2);
    assert_eq!(
        (place(&world, tasks[3]), place(&world, tasks[4])),
        (Some(1), Some(1))
    );
    world.drain(|_| 0);
}

/// The endpoint is busy again before anybody looks after the task that ended there, and what has waited goes before
/// what becomes ready.
#[test]
fn a_free_place_is_given_away_first() {
    let (mut scheduler, mut out) = (Scheduler::new(10), Vec::new());
    let (endpoint, run) = (EndpointId(0), RunId(1));
    scheduler.handle(
        Event::EndpointAdded {
            endpoint,
            capacity: 1,
            depth: 1,
        },
        &mut out,
    );
    let mut submit = |mode: Option<AccessMode>| {
        let access = |mode| Access {
            space: Space::Host,
            start: 0,
            end: 1,
            mode,
        };
        let kind = NodeKind::Single {
            eligible: Eligible::one(endpoint),
        };
        let accesses = mode.map(access).into_iter().collect();
        scheduler
            .submit(
                NodeSpec {
                    run,
                    kind,
                    accesses,
                    prefer: None,
                },
                &mut out,
            )
            .unwrap()
    };
    let first = submit(Some(AccessMode::Write));
    let reader = submit(Some(AccessMode::Read));
    let waiting = submit(None);
    out.clear();
    let result = MemberResult::Completed;
    scheduler.handle(
        Event::MemberDone {
            task: first,
            member: 0,
            endpoint,
            result,
        },
        &mut out,
    );
    let outcome = Outcome::Completed;
    let finished = Action::Finished {
        task: first,
        run,
        outcome,
        cause: None,
    };
    assert_eq!(
        out,
        [
            Action::Dispatch {
                task: waiting,
                member: 0,
                endpoint
            },
            finished,
            Action::Waits { task: reader }
        ]
    );
}
