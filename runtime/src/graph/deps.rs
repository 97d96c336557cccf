//! The dependency map: for each space, by byte interval, the last writer and the readers since.
//!
//! Edges: read after write, write after read, write after write, over any overlapping byte, never over disjoint ones.
//! A mark lives as long as its task, so every edge leads to an unfinished task, and the size of the map is bounded by the
//! accesses of unfinished tasks and the poison of unfinished runs.

use smallvec::SmallVec;

use super::access::{Access, AccessMode, Space};
use super::id::{RunId, TaskId};
use super::interval::{Holder, IntervalMap, Writer};
use super::poison::{Poison, PoisonIndex, Root};
use crate::fast::NumberMap;

/// An unfinished task that must end before another may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Predecessor {
    seq: u64,
    pub(super) task: TaskId,
    /// A read-after-write edge: poison travels along it.
    pub(super) read: bool,
}

/// Those of one task: few, as a rule.
pub(super) type Found = SmallVec<[Predecessor; 4]>;

/// The map over all spaces.
#[derive(Debug, Default)]
pub(super) struct DependencyMap {
    spaces: NumberMap<Space, IntervalMap>,
    poison: PoisonIndex,
}

impl DependencyMap {
    /// Enters a task, the newest, and returns its predecessors (each once, in submit order) and the earliest root among
    /// the marks on what it reads.
    pub(super) fn attach(&mut self, holder: Holder, accesses: &[Access]) -> (Found, Option<Root>) {
        let mut found = Found::new();
        let mut root = None;
        // All look-ups come before the first entry, so a task with overlapping accesses never meets itself.
        for access in accesses {
            self.look_up(access, &mut found, &mut root);
        }
        // Its reads are entered before its writes: of bytes that it both reads and writes it is the last writer.
        for writes in [false, true] {
            for access in accesses
                .iter()
                .filter(|a| a.mode.writes() == writes && a.start < a.end)
            {
                let map = self.spaces.entry(access.space).or_default();
                if writes {
                    map.set_writer(access.start, access.end, holder);
                } else {
                    map.add_reader(access.start, access.end, holder);
                }
            }
        }
        found.sort_unstable_by_key(|p| p.seq);
        found.dedup_by(|later, kept| {
            let same = later.seq == kept.seq;
            kept.read |= same && later.read;
            same
        });
        (found, root)
    }

    fn look_up(&self, access: &Access, found: &mut Found, root: &mut Option<Root>) {
        let Some(map) = self.spaces.get(&access.space) else {
            return;
        };
        if access.start >= access.end {
            return;
        }
        let (reads, writes) = (access.mode.reads(), access.mode.writes());
        map.visit(access.start, access.end, |segment| {
            match segment.writer {
                Writer::Live(Holder { seq, task }) => found.push(Predecessor {
                    seq,
                    task,
                    read: reads,
                }),
                Writer::Poisoned(poison) if reads => {
                    *root = Root::earlier(*root, Some(poison.root))
                }
                Writer::Poisoned(_) | Writer::Settled => {}
            }
            if writes {
                let readers = segment.readers.iter();
                found.extend(readers.map(|&Holder { seq, task }| Predecessor {
                    seq,
                    task,
                    read: false,
                }));
            }
        });
    }

    /// Removes the task `seq` from the map; `poison` marks what it was to write, if it did not complete.
    pub(super) fn retire(&mut self, seq: u64, accesses: &[Access], poison: Option<Poison>) {
        for access in accesses.iter().filter(|a| a.start < a.end) {
            let Some(map) = self.spaces.get_mut(&access.space) else {
                continue;
            };
            if access.mode == AccessMode::Read {
                map.retire_reader(access.start, access.end, seq);
            } else {
                map.retire_writer(access.start, access.end, seq, poison);
                if let Some(poison) = poison {
                    self.poison.note(poison.run, access.space);
                }
            }
            if map.is_empty() {
                self.spaces.remove(&access.space);
            }
        }
    }

    /// Drops the poison of a run.
    pub(super) fn end_run(&mut self, run: RunId) {
        for space in self.poison.take(run) {
            let Some(map) = self.spaces.get_mut(&space) else {
                continue;
            };
            map.clear_poison(run);
            if map.is_empty() {
                self.spaces.remove(&space);
            }
        }
    }

    /// What the run left undefined and nobody has overwritten since, ascending.
    pub(super) fn poisoned(&self, run: RunId) -> Vec<(Space, u64, u64)> {
        let maps = self
            .poison
            .spaces(run)
            .filter_map(|space| Some((space, self.spaces.get(&space)?)));
        maps.flat_map(|(space, map)| {
            map.poisoned(run)
                .into_iter()
                .map(move |(start, end)| (space, start, end))
        })
        .collect()
    }

    /// Number of intervals remembered, over all spaces.
    pub(super) fn segments(&self) -> usize {
        self.spaces.values().map(IntervalMap::len).sum()
    }

    /// Checks every space; `is_live` says whether a remembered task is unfinished.
    pub(super) fn check(&self, is_live: impl Fn(Holder) -> bool) -> Result<(), String> {
        for (space, map) in &self.spaces {
            let mut stale = None;
            map.check(|holder| {
                if !is_live(holder) {
                    stale = Some(holder);
                }
            })?;
            if let Some(holder) = stale {
                return Err(format!(
                    "{space:?} remembers {}, which has ended",
                    holder.task
                ));
            }
            if map.is_empty() {
                return Err(format!("{space:?} is kept without an interval"));
            }
        }
        Ok(())
    }
}
