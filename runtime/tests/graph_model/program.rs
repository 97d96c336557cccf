//! Random programs.

use echelon_runtime::graph::*;
use proptest::prelude::*;

use super::memory::{SPACES, SPACE_BYTES};

/// Endpoints of the world: enough for sets that are searched one by one and for sets that are kept in order.
pub(crate) const ENDPOINTS: u32 = 10;

/// Endpoints that most sets are taken from, so that they are short.
const BUSY: u32 = 4;

/// Runs of a program that are alive at once.
pub(crate) const RUNS: u64 = 3;

/// One step of a program. Positions are taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Submit(NodeSpec),
    Report(usize, MemberResult),
    ReportAgain(usize),
    /// A member has run, and what it wrote arrives later.
    Ran(usize, MemberResult),
    Settle(usize),
    Return(usize, bool),
    Release(usize),
    Pause(u32),
    Lose(u32),
    Add(u32, u32),
    Cancel(u64),
    EndRun(u64),
    /// Completes everything in an order that the number seeds.
    Drain(u64),
}

pub(crate) fn access() -> impl Strategy<Value = Access> {
    let mode = prop_oneof![
        Just(AccessMode::Read),
        Just(AccessMode::Write),
        Just(AccessMode::ReadWrite)
    ];
    let interval = (0..=SPACE_BYTES as u64, 0u64..10);
    // The first space is the busiest, so that intervals really meet.
    let space = prop_oneof![3 => Just(0usize), 1 => 0..SPACES.len()];
    (space, interval, mode).prop_map(|(space, (start, len), mode)| {
        let end = (start + len).min(SPACE_BYTES as u64);
        Access {
            space: SPACES[space],
            start,
            end,
            mode,
        }
    })
}

pub(crate) fn eligible() -> impl Strategy<Value = Eligible> {
    let all = (1u32 << ENDPOINTS) - 1;
    let mask = prop_oneof![6 => 1u32..1 << BUSY, 1 => 1..=all, 1 => Just(all), 1 => Just(all - 1)];
    mask.prop_map(|mask| {
        let ids = (0..ENDPOINTS)
            .filter(|id| mask & (1 << id) != 0)
            .map(EndpointId);
        Eligible::new(ids).unwrap()
    })
}

pub(crate) fn kind() -> impl Strategy<Value = NodeKind> {
    prop_oneof![
        5 => eligible().prop_map(|eligible| NodeKind::Single { eligible }),
        2 => prop::collection::vec(eligible(), 1..4).prop_map(|members| NodeKind::Gang { members }),
        2 => (1u32..6, eligible()).prop_map(|(members, eligible)| NodeKind::Waves { members, eligible }),
        1 => Just(NodeKind::Copy),
    ]
}

pub(crate) fn spec() -> impl Strategy<Value = NodeSpec> {
    let accesses = prop::collection::vec(access(), 0..4);
    let prefer = prop::option::of(endpoint().prop_map(EndpointId));
    (0..RUNS, kind(), accesses, prefer).prop_map(|(run, kind, accesses, prefer)| NodeSpec {
        run: RunId(run),
        kind,
        accesses,
        prefer,
    })
}

pub(crate) fn result() -> impl Strategy<Value = MemberResult> {
    prop_oneof![
        8 => Just(MemberResult::Completed),
        2 => Just(MemberResult::Failed),
        1 => Just(MemberResult::Lost),
    ]
}

fn endpoint() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..BUSY, 1 => 0..ENDPOINTS]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => spec().prop_map(Step::Submit),
        14 => (any::<usize>(), result()).prop_map(|(at, result)| Step::Report(at, result)),
        3 => any::<usize>().prop_map(Step::ReportAgain),
        4 => (any::<usize>(), result()).prop_map(|(at, result)| Step::Ran(at, result)),
        3 => any::<usize>().prop_map(Step::Settle),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(at, hold)| Step::Return(at, hold)),
        1 => any::<usize>().prop_map(Step::Release),
        2 => endpoint().prop_map(Step::Pause),
        1 => endpoint().prop_map(Step::Lose),
        2 => (endpoint(), 1u32..4).prop_map(|(id, capacity)| Step::Add(id, capacity)),
        1 => (0..RUNS).prop_map(Step::Cancel),
        1 => (0..RUNS).prop_map(Step::EndRun),
        1 => any::<u64>().prop_map(Step::Drain),
    ]
}

/// Capacities of the endpoints, the size of the task table, and the steps.
pub(crate) fn program() -> impl Strategy<Value = (Vec<u32>, u32, Vec<Step>)> {
    let capacities = prop::collection::vec(1u32..4, ENDPOINTS as usize);
    let limit = prop_oneof![3 => Just(1000u32), 1 => 1u32..12];
    (capacities, limit, prop::collection::vec(step(), 1..70))
}

/// A small generator of numbers for orders that need not shrink.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64: every seed is good.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
