//! The same tasks one by one in submit order, with the failures that really happened.

use std::collections::{BTreeMap, BTreeSet};

use echelon_runtime::graph::*;

use super::memory::{bytes, gather, memory, reads, scatter, writes, Memory};
use super::world::{Mark, World};

/// The sequential machine.
struct Sequential {
    memory: Memory,
    /// Bytes left undefined: by which run, and the number of the root task.
    undefined: BTreeMap<(Space, usize), (RunId, usize)>,
    /// Bytes that a run which is over left undefined: readers run, on whatever is there.
    unknown: BTreeSet<(Space, usize)>,
}

/// Compares a finished world with the sequential run: every outcome, every root, every input, every defined byte, and
/// the ranges reported as undefined.
pub(crate) fn compare(world: &World) {
    let (undefined, unknown) = (BTreeMap::new(), BTreeSet::new());
    let mut machine = Sequential {
        memory: memory(),
        undefined,
        unknown,
    };
    for mark in &world.marks {
        match *mark {
            Mark::RunEnded(run) => machine.end_run(run),
            Mark::Submitted(task) => machine.step(world, task),
        }
    }
    for (space, real) in &world.memory {
        for (i, value) in real
            .iter()
            .enumerate()
            .filter(|(i, _)| machine.knows(&(*space, *i)))
        {
            let expected = machine.memory[space][i];
            assert_eq!(
                *value, expected,
                "byte {i} of {space:?} differs from the sequential run"
            );
        }
    }
    let runs: BTreeSet<RunId> = world.records.iter().map(|r| r.spec.run).collect();
    for run in runs {
        let left = machine
            .undefined
            .iter()
            .filter(|(_, poison)| poison.0 == run);
        let left: Vec<_> = left.map(|(byte, _)| *byte).collect();
        let ranges = world.scheduler.poisoned_ranges(run);
        let each = |&(space, start, end): &(Space, u64, u64)| {
            (start..end).map(move |i| (space, i as usize))
        };
        let reported: Vec<_> = ranges.iter().flat_map(each).collect();
        assert_eq!(reported, left, "undefined bytes of {run:?}");
    }
}

impl Sequential {
    fn knows(&self, byte: &(Space, usize)) -> bool {
        !self.undefined.contains_key(byte) && !self.unknown.contains(byte)
    }

    fn end_run(&mut self, run: RunId) {
        let left = self.undefined.iter().filter(|(_, poison)| poison.0 == run);
        self.unknown.extend(left.map(|(byte, _)| *byte));
        self.undefined.retain(|_, poison| poison.0 != run);
    }

    /// Runs one task, or does not, as it went in the world; objects where the world was wrong.
    fn step(&mut self, world: &World, task: usize) {
        let record = &world.records[task];
        let accesses = &record.spec.accesses;
        let reads = bytes(accesses, reads);
        let root = reads
            .iter()
            .filter_map(|byte| self.undefined.get(byte))
            .map(|poison| poison.1)
            .min();
        let outcome = record
            .outcome
            .unwrap_or_else(|| panic!("task {task} never ended (R-083)"));
        if record.inputs.is_some() || outcome == Outcome::EndpointLost {
            assert_eq!(
                root, None,
                "task {task} was started on undefined bytes (R-082)"
            );
        }
        let mut inputs = gather(&self.memory, accesses);
        if let Some(real) = &record.inputs {
            let bytes = reads.iter().zip(&mut inputs).zip(real);
            bytes
                .filter(|((byte, _), _)| self.unknown.contains(byte))
                .for_each(|((_, value), real)| *value = *real);
            assert_eq!(
                *real, inputs,
                "task {task} saw other inputs than in the sequential run"
            );
        }
        let poison = match outcome {
            Outcome::Completed => None,
            Outcome::Skipped => {
                assert!(root.is_some(), "task {task} was skipped without a reason");
                assert_eq!(record.cause, root, "the root that task {task} names");
                root
            }
            Outcome::Failed | Outcome::EndpointLost | Outcome::Cancelled => Some(task),
        };
        for byte in bytes(accesses, writes) {
            self.unknown.remove(&byte);
            match poison {
                Some(root) => self.undefined.insert(byte, (record.spec.run, root)),
                None => self.undefined.remove(&byte),
            };
        }
        if poison.is_none() {
            scatter(&mut self.memory, accesses, &inputs, task);
        }
    }
}
