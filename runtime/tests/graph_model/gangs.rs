//! Gangs beside singles and beside each other.

use echelon_runtime::graph::*;
use proptest::prelude::*;

use super::program::{eligible, Numbers};
use super::world::World;

fn set(ids: &[u32]) -> Eligible {
    Eligible::new(ids.iter().copied().map(EndpointId)).unwrap()
}

fn submit(world: &mut World, kind: NodeKind) -> usize {
    let spec = NodeSpec {
        run: RunId(1),
        kind,
        accesses: Vec::new(),
        prefer: None,
    };
    world.submit(spec).unwrap()
}

fn single(world: &mut World, ids: &[u32]) -> usize {
    submit(world, NodeKind::Single { eligible: set(ids) })
}

fn gang(world: &mut World, members: &[&[u32]]) -> usize {
    submit(
        world,
        NodeKind::Gang {
            members: members.iter().map(|ids| set(ids)).collect(),
        },
    )
}

fn started(world: &World, task: usize) -> bool {
    world.records[task].inputs.is_some()
}

fn complete(world: &mut World, task: usize) {
    while let Some(at) = world.flights.iter().position(|flight| flight.task == task) {
        world.report_flight(at, MemberResult::Completed);
    }
}

proptest! {
    // Each case is hundreds of steps long.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, ..ProptestConfig::default() })]

    /// while singles never stop arriving, every gang starts after a bounded number of completions.
    #[test]
    fn r_229_singles_that_keep_arriving_do_not_starve_gangs(
        capacities in prop::collection::vec(1u32..3, 10),
        gangs in prop::collection::vec((prop::collection::vec(eligible(), 1..5), 0usize..200), 1..8),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(10_000, &capacities);
        let mut numbers = Numbers(seed);
        let mut waiting: Vec<(usize, usize)> = Vec::new();
        for step in 0..600 {
            while world.scheduler.stats().unfinished < 50 {
                // Half may run anywhere, half want one of the busy endpoints.
                let only = numbers.below(8) as u32;
                let ids = if only < 4 { vec![only] } else { (0..10).collect() };
                single(&mut world, &ids);
            }
            for (members, _) in gangs.iter().filter(|(_, at)| *at == step) {
                let kind = NodeKind::Gang { members: members.clone() };
                if world.placeable(&kind) {
                    waiting.push((submit(&mut world, kind), step));
                }
            }
            // No member runs forever: half of the time the oldest ends.
            let at = if numbers.below(2) == 0 { 0 } else { numbers.below(world.flights.len()) };
            world.report_flight(at, MemberResult::Completed);
            waiting.retain(|&(gang, _)| !started(&world, gang));
            for &(gang, since) in &waiting {
                prop_assert!(step - since < 350, "gang {} has waited since step {}", gang, since);
            }
        }
        prop_assert!(waiting.is_empty());
    }

}

proptest! {
    /// any mix of gangs and waves ends, whatever the order: no two of them wait for each other.
    #[test]
    fn r_229_gangs_do_not_deadlock(
        capacities in prop::collection::vec(1u32..3, 10),
        nodes in prop::collection::vec((prop::collection::vec(eligible(), 1..5), any::<bool>()), 1..40),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(10_000, &capacities);
        for (members, wave) in nodes {
            let kind = match wave {
                true => NodeKind::Waves { members: 4, eligible: members[0].clone() },
                false => NodeKind::Gang { members },
            };
            if world.placeable(&kind) {
                submit(&mut world, kind);
            }
        }
        let mut numbers = Numbers(seed);
        world.drain(|bound| numbers.below(bound));
        prop_assert!(world.records.iter().all(|record| record.outcome == Some(Outcome::Completed)));
    }
}

#[test]
fn a_gang_starts_at_once_when_there_is_room_for_all() {
    let mut world = World::new(100, &[1, 1, 1]);
    let task = gang(&mut world, &[&[0, 1], &[0], &[0, 1, 2]]);
    let placed: Vec<u32> = world.records[task]
        .dispatched
        .values()
        .map(|endpoint| endpoint.0)
        .collect();
    assert_eq!(placed, [1, 0, 2], "the only assignment");
    complete(&mut world, task);
    assert_eq!(world.outcome(task), Some(Outcome::Completed));
}

#[test]
fn a_claimed_place_takes_no_single_and_others_go_on() {
    let mut world = World::new(100, &[1, 1, 1]);
    let busy = single(&mut world, &[0]);
    let group = gang(&mut world, &[&[0, 1], &[0, 1]]);
    let behind = single(&mut world, &[1]);
    let beside = single(&mut world, &[1, 2]);
    assert!(!started(&world, group) && !started(&world, behind));
    assert!(started(&world, beside), "endpoint 2 is not the gang's");
    complete(&mut world, busy);
    assert!(started(&world, group) && !started(&world, behind));
    complete(&mut world, group);
    assert!(started(&world, behind));
}

#[test]
fn gangs_that_share_an_endpoint_start_in_order_and_others_do_not_wait() {
    let mut world = World::new(100, &[1; 5]);
    let busy = single(&mut world, &[0]);
    let first = gang(&mut world, &[&[0], &[1]]);
    let second = gang(&mut world, &[&[1], &[2]]);
    let third = gang(&mut world, &[&[2], &[3]]);
    let apart = gang(&mut world, &[&[4]]);
    assert!(started(&world, apart));
    assert!([first, second, third]
        .iter()
        .all(|&task| !started(&world, task)));
    complete(&mut world, busy);
    assert!(started(&world, first) && !started(&world, second) && !started(&world, third));
    complete(&mut world, first);
    assert!(started(&world, second) && !started(&world, third));
    complete(&mut world, second);
    assert!(started(&world, third));
}

#[test]
fn a_single_that_waits_longer_than_the_gang_goes_first() {
    let mut world = World::new(100, &[1, 1]);
    let busy = [single(&mut world, &[0]), single(&mut world, &[1])];
    let older = single(&mut world, &[0]);
    let group = gang(&mut world, &[&[0], &[1]]);
    let younger = single(&mut world, &[0]);
    complete(&mut world, busy[0]);
    assert!(started(&world, older));
    complete(&mut world, busy[1]);
    complete(&mut world, older);
    assert!(started(&world, group) && !started(&world, younger));
}

#[test]
fn a_cancelled_gang_gives_its_claims_back() {
    let mut world = World::new(100, &[1, 1]);
    let busy = single(&mut world, &[0]);
    let spec = |run, kind| NodeSpec {
        run: RunId(run),
        kind,
        accesses: Vec::new(),
        prefer: None,
    };
    let group = world
        .submit(spec(
            2,
            NodeKind::Gang {
                members: vec![set(&[0]), set(&[1])],
            },
        ))
        .unwrap();
    let behind = single(&mut world, &[1]);
    let next = gang(&mut world, &[&[1]]);
    assert!(!started(&world, behind));
    world.cancel(RunId(2));
    assert_eq!(world.outcome(group), Some(Outcome::Cancelled));
    assert!(started(&world, behind) && !started(&world, next));
    complete(&mut world, behind);
    assert!(started(&world, next));
    complete(&mut world, busy);
}

#[test]
fn a_gang_claims_elsewhere_when_a_claimed_endpoint_is_lost() {
    let mut world = World::new(100, &[1; 4]);
    let busy = [single(&mut world, &[0]), single(&mut world, &[2])];
    let group = gang(&mut world, &[&[0, 1, 2], &[0, 1, 2]]);
    world.lose_endpoint(EndpointId(1));
    complete(&mut world, busy[0]);
    assert!(!started(&world, group));
    complete(&mut world, busy[1]);
    assert!(started(&world, group));
    complete(&mut world, group);
}

#[test]
fn a_gang_that_can_never_be_whole_again_is_lost_and_frees_the_rest() {
    let mut world = World::new(100, &[1, 1]);
    let busy = single(&mut world, &[0]);
    let group = gang(&mut world, &[&[0, 1], &[0, 1]]);
    let behind = single(&mut world, &[1]);
    world.lose_endpoint(EndpointId(0));
    assert_eq!(world.outcome(busy), Some(Outcome::EndpointLost));
    assert_eq!(world.outcome(group), Some(Outcome::EndpointLost));
    assert!(started(&world, behind));
    let error = world.submit(NodeSpec {
        run: RunId(1),
        kind: NodeKind::Gang {
            members: vec![set(&[0, 1]), set(&[0, 1])],
        },
        accesses: Vec::new(),
        prefer: None,
    });
    assert_eq!(
        error,
        Err(SubmitError::GangTooLarge {
            members: 2,
            available: 1
        })
    );
}

/// The node ends with the worst of its members, after the last of them.
#[test]
fn a_gang_ends_when_all_members_have_ended() {
    let mut world = World::new(100, &[1, 1, 1]);
    let group = gang(&mut world, &[&[0], &[1], &[2]]);
    world.report_flight(0, MemberResult::Failed);
    assert_eq!(world.outcome(group), None);
    world.lose_endpoint(EndpointId(1));
    assert_eq!(world.outcome(group), None);
    world.report_flight(0, MemberResult::Completed);
    assert_eq!(world.outcome(group), Some(Outcome::EndpointLost));
}
