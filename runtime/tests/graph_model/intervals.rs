//! Dependency inference against a model that looks at every byte.

use std::collections::{BTreeMap, BTreeSet};

use echelon_runtime::graph::*;
use proptest::prelude::*;

use super::memory::{bytes, conflict, reads, writes};
use super::program::access;
use super::world::World;

/// Last writer and readers since, byte by byte; numbers of unfinished tasks only.
#[derive(Default)]
struct Byte {
    writer: Option<usize>,
    readers: BTreeSet<usize>,
}

#[derive(Default)]
struct Model(BTreeMap<(Space, usize), Byte>);

impl Model {
    fn submit(&mut self, task: usize, accesses: &[Access]) -> BTreeSet<usize> {
        let (reads, writes) = (bytes(accesses, reads), bytes(accesses, writes));
        let mut before = BTreeSet::new();
        for byte in reads.iter().chain(&writes) {
            before.extend(self.0.entry(*byte).or_default().writer);
        }
        for byte in &writes {
            before.extend(&self.0.entry(*byte).or_default().readers);
        }
        for byte in &reads {
            self.0.entry(*byte).or_default().readers.insert(task);
        }
        for byte in &writes {
            self.0.insert(
                *byte,
                Byte {
                    writer: Some(task),
                    readers: BTreeSet::new(),
                },
            );
        }
        before
    }

    fn finish(&mut self, task: usize) {
        for byte in self.0.values_mut() {
            byte.writer = byte.writer.filter(|writer| *writer != task);
            byte.readers.remove(&task);
        }
    }
}

proptest! {
    /// exactly the edges that the bytes ask for, while tasks finish in between.
    #[test]
    fn r_227_edges_equal_the_model_that_looks_at_every_byte(
        program in prop::collection::vec((prop::collection::vec(access(), 0..4), 0usize..3, any::<usize>()), 1..40),
    ) {
        let mut world = World::new(1000, &[100]);
        let mut model = Model::default();
        for (accesses, finish, at) in program {
            let kind = NodeKind::Single { eligible: Eligible::one(EndpointId(0)) };
            let expected = model.submit(world.records.len(), &accesses);
            let task = world.submit(NodeSpec { run: RunId(1), kind, accesses, prefer: None }).unwrap();
            let found = world.scheduler.predecessors(world.records[task].id);
            let expected: Vec<TaskId> = expected.into_iter().map(|t| world.records[t].id).collect();
            prop_assert_eq!(found, expected);
            if finish == 0 && !world.flights.is_empty() {
                let at = at % world.flights.len();
                model.finish(world.flights[at].task);
                world.report_flight(at, MemberResult::Completed);
            }
        }
    }

    /// with nothing finished, tasks that share a byte which one of them writes are ordered by a path, and no edge
    /// joins tasks that do not.
    #[test]
    fn r_227_overlap_always_orders_and_disjoint_never_does(
        program in prop::collection::vec(prop::collection::vec(access(), 0..4), 1..30),
    ) {
        // The endpoint is busy with a task of its own, so nothing ends.
        let mut world = World::new(1000, &[1]);
        let kind = NodeKind::Single { eligible: Eligible::one(EndpointId(0)) };
        let submit = |world: &mut World, accesses: Vec<Access>| {
            world.submit(NodeSpec { run: RunId(1), kind: kind.clone(), accesses, prefer: None }).unwrap()
        };
        submit(&mut world, Vec::new());
        let mut paths: Vec<BTreeSet<usize>> = vec![BTreeSet::new()];
        for accesses in program {
            let task = submit(&mut world, accesses.clone());
            let mut reached = BTreeSet::new();
            for id in world.scheduler.predecessors(world.records[task].id) {
                let before = world.records.iter().position(|r| r.id == id).unwrap();
                prop_assert!(conflict(&accesses, &world.records[before].spec.accesses), "{} and {}", before, task);
                reached.insert(before);
                reached.extend(&paths[before]);
            }
            for (other, record) in world.records[..task].iter().enumerate() {
                let ordered = reached.contains(&other) || !conflict(&accesses, &record.spec.accesses);
                prop_assert!(ordered, "{} and {} overlap and are not ordered", other, task);
            }
            paths.push(reached);
        }
    }
}
