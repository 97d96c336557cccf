//! Disjoint byte intervals of one space, each with its last writer and the readers since.

use std::collections::BTreeMap;
use std::ops::Bound;

use smallvec::SmallVec;

use super::id::{RunId, TaskId};
use super::poison::Poison;
use super::readers::Readers;

/// An unfinished task as the map remembers it. `seq` is its place in submit order and never used twice, so comparing it
/// tells this task from a later one in the same slot or on the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) seq: u64,
    pub(super) task: TaskId,
}

/// Who wrote an interval last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// Nobody, or a task that completed: the bytes are defined and settled.
    Settled,
    /// A task that has not ended.
    Live(Holder),
    /// A task that ended without completing.
    Poisoned(Poison),
}

/// State of one interval. `readers` is in submit order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    end: u64,
    pub(super) writer: Writer,
    pub(super) readers: Readers,
}

impl Segment {
    fn is_idle(&self) -> bool {
        self.writer == Writer::Settled && self.readers.is_empty()
    }

    fn same_state(&self, other: &Self) -> bool {
        self.writer == other.writer && self.readers == other.readers
    }
}

/// Segments by first byte; disjoint, non-empty, none idle.
#[derive(Debug, Default)]
pub(super) struct IntervalMap {
    segments: BTreeMap<u64, Segment>,
}

impl IntervalMap {
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    /// Calls `f` on every segment that shares a byte with `start..end`.
    pub(super) fn visit(&self, start: u64, end: u64, mut f: impl FnMut(&Segment)) {
        for (_, segment) in self.segments.range(self.first_overlap(start)..end) {
            f(segment);
        }
    }

    /// Adds a reader to every byte of `start..end`; its `seq` must be the highest yet.
    pub(super) fn add_reader(&mut self, start: u64, end: u64, holder: Holder) {
        self.split_at(start);
        self.split_at(end);
        let mut gaps = SmallVec::<[(u64, u64); 2]>::new();
        let mut covered = start;
        for (&at, segment) in self.segments.range_mut(start..end) {
            if covered < at {
                gaps.push((covered, at));
            }
            covered = segment.end;
            segment.readers.add(holder);
        }
        if covered < end {
            gaps.push((covered, end));
        }
        for (at, end) in gaps {
            let (writer, readers) = (Writer::Settled, Readers::one(holder));
            let segment = Segment {
                end,
                writer,
                readers,
            };
            self.segments.insert(at, segment);
        }
    }

    /// Makes `holder` the last writer of every byte of `start..end` and forgets what was known of them.
    pub(super) fn set_writer(&mut self, start: u64, end: u64, holder: Holder) {
        self.split_at(start);
        self.split_at(end);
        while let Some((&at, _)) = self.segments.range(start..end).next() {
            self.segments.remove(&at);
        }
        let (writer, readers) = (Writer::Live(holder), Readers::default());
        let segment = Segment {
            end,
            writer,
            readers,
        };
        self.segments.insert(start, segment);
    }

    /// Removes the reader `seq` from `start..end`. A byte that was overwritten since does not know it any more.
    pub(super) fn retire_reader(&mut self, start: u64, end: u64, seq: u64) {
        self.retire(start, end, |segment| {
            segment.readers.remove(seq);
        });
    }

    /// Ends the write of `seq` on `start..end`, leaving `poison` if it did not complete. A newer writer stays.
    pub(super) fn retire_writer(&mut self, start: u64, end: u64, seq: u64, poison: Option<Poison>) {
        self.retire(start, end, |segment| {
            if matches!(segment.writer, Writer::Live(holder) if holder.seq == seq) {
                segment.writer = poison.map_or(Writer::Settled, Writer::Poisoned);
            }
        });
    }

    /// Drops the marks that `run` left.
    pub(super) fn clear_poison(&mut self, run: RunId) {
        self.retire(0, u64::MAX, |segment| {
            if matches!(segment.writer, Writer::Poisoned(poison) if poison.run == run) {
                segment.writer = Writer::Settled;
            }
        });
    }

    /// The intervals that `run` left undefined, neighbours joined, ascending.
    pub(super) fn poisoned(&self, run: RunId) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (&start, segment) in &self.segments {
            if !matches!(segment.writer, Writer::Poisoned(poison) if poison.run == run) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.1 == start => last.1 = segment.end,
                _ => ranges.push((start, segment.end)),
            }
        }
        ranges
    }

    /// Every holder that the map remembers, and a check that segments are disjoint, non-empty and none is idle.
    pub(super) fn check(&self, mut holder: impl FnMut(Holder)) -> Result<(), String> {
        let mut covered = 0;
        for (&start, segment) in &self.segments {
            if start < covered || segment.end <= start || segment.is_idle() {
                let end = segment.end;
                return Err(format!("segment {start}..{end} overlaps, is empty or idle"));
            }
            covered = segment.end;
            if let Writer::Live(writer) = segment.writer {
                holder(writer);
            }
            let readers = segment.readers.iter();
            if readers
                .clone()
                .zip(readers.clone().skip(1))
                .any(|(a, b)| a.seq >= b.seq)
            {
                return Err(format!(
                    "readers of the segment at {start} are out of order"
                ));
            }
            readers.copied().for_each(&mut holder);
        }
        Ok(())
    }

    /// First byte of the segment that contains `at`, or `at` itself: where a range scan must begin.
    fn first_overlap(&self, at: u64) -> u64 {
        match self.segments.range(..at).next_back() {
            Some((&start, segment)) if segment.end > at => start,
            _ => at,
        }
    }

    fn split_at(&mut self, at: u64) {
        let Some((_, left)) = self.segments.range_mut(..at).next_back() else {
            return;
        };
        if left.end > at {
            let right = left.clone();
            left.end = at;
            self.segments.insert(at, right);
        }
    }

    /// Applies `change` to the segments of `start..end`, drops idle ones and joins neighbours that became equal, so that
    /// the size follows the unfinished tasks and not the boundaries of finished ones.
    fn retire(&mut self, start: u64, end: u64, mut change: impl FnMut(&mut Segment)) {
        let first = self.first_overlap(start);
        let mut idle = SmallVec::<[u64; 2]>::new();
        for (&at, segment) in self.segments.range_mut(first..end) {
            change(segment);
            if segment.is_idle() {
                idle.push(at);
            }
        }
        for at in idle {
            self.segments.remove(&at);
        }
        if self.segments.len() > 1 {
            self.join(first, end);
        }
    }

    fn join(&mut self, first: u64, end: u64) {
        let mut at = self
            .segments
            .range(..first)
            .next_back()
            .map_or(first, |(&at, _)| at);
        while let Some((&left_at, left)) = self.segments.range(at..).next() {
            let after = (Bound::Excluded(left_at), Bound::Unbounded);
            let Some((&right_at, right)) = self.segments.range(after).next() else {
                return;
            };
            if right_at > end {
                return;
            }
            at = right_at;
            if left.end == right_at && left.same_state(right) {
                let joined = right.end;
                self.segments.remove(&right_at);
                if let Some(left) = self.segments.get_mut(&left_at) {
                    left.end = joined;
                }
                at = left_at;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(seq: u64) -> Holder {
        let task = TaskId {
            slot: seq as u32,
            generation: 0,
        };
        Holder { seq, task }
    }

    fn shape(map: &IntervalMap) -> Vec<(u64, u64)> {
        map.check(|_| ()).unwrap();
        map.segments
            .iter()
            .map(|(&start, s)| (start, s.end))
            .collect()
    }

    #[test]
    fn a_reader_fills_the_gaps_between_writers() {
        let mut map = IntervalMap::default();
        map.set_writer(2, 4, holder(1));
        map.set_writer(6, 8, holder(2));
        map.add_reader(0, 7, holder(3));
        assert_eq!(shape(&map), [(0, 2), (2, 4), (4, 6), (6, 7), (7, 8)]);
    }

    #[test]
    fn finished_tasks_leave_no_boundaries_behind() {
        let mut map = IntervalMap::default();
        map.set_writer(0, 100, holder(1));
        for seq in 2..50 {
            map.add_reader(seq, seq + 1, holder(seq));
            map.retire_reader(seq, seq + 1, seq);
            assert_eq!(shape(&map), [(0, 100)]);
        }
        map.retire_writer(0, 100, 1, None);
        assert!(map.is_empty());
    }

    /// the entry of a newer writer survives the clean-up of an older one on the same bytes.
    #[test]
    fn r_228_a_newer_writer_survives_the_older_one() {
        let mut map = IntervalMap::default();
        map.set_writer(0, 10, holder(1));
        map.set_writer(3, 5, holder(2));
        map.retire_writer(0, 10, 1, None);
        assert_eq!(shape(&map), [(3, 5)]);
        map.visit(0, 10, |s| assert_eq!(s.writer, Writer::Live(holder(2))));
    }

    #[test]
    fn the_last_byte_of_the_address_space_is_covered() {
        let mut map = IntervalMap::default();
        map.set_writer(u64::MAX - 1, u64::MAX, holder(1));
        let root = super::super::poison::Root {
            seq: 1,
            task: holder(1).task,
        };
        let run = RunId(1);
        map.retire_writer(u64::MAX - 1, u64::MAX, 1, Some(Poison { run, root }));
        assert_eq!(map.poisoned(run), [(u64::MAX - 1, u64::MAX)]);
        map.clear_poison(run);
        assert!(map.is_empty());
    }
}
