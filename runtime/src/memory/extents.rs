//! The free list of an arena: pure bookkeeping over byte offsets, no memory.

use std::collections::{BTreeMap, BTreeSet};

/// Alignment and granularity of extents in bytes: a cache line.
pub(super) const GRANULE: u64 = 64;

/// Free extents of a fixed range, best fit, coalescing. All offsets and lengths are multiples of [`GRANULE`].
#[derive(Debug)]
pub(super) struct Extents {
    /// offset → length.
    by_offset: BTreeMap<u64, u64>,
    /// (length, offset): the best fit is the first at or above a length.
    by_len: BTreeSet<(u64, u64)>,
    free: u64,
}

impl Extents {
    /// One free extent `0..size`; `size` is a multiple of [`GRANULE`].
    pub(super) fn new(size: u64) -> Self {
        debug_assert_eq!(size % GRANULE, 0);
        let mut extents = Self {
            by_offset: BTreeMap::new(),
            by_len: BTreeSet::new(),
            free: 0,
        };
        if size > 0 {
            extents.insert(0, size);
            extents.free = size;
        }
        extents
    }

    /// The length that a request of `nbytes` occupies, `None` on overflow.
    pub(super) fn rounded(nbytes: u64) -> Option<u64> {
        nbytes.checked_next_multiple_of(GRANULE)
    }

    /// Takes the low end of the smallest extent that holds `len` (a rounded length, non-zero). The lowest offset wins among
    /// equals, so what was in use before is used again first.
    pub(super) fn take(&mut self, len: u64) -> Option<u64> {
        let (found, offset) = self.by_len.range((len, 0)..).next().copied()?;
        self.remove(offset, found);
        if found > len {
            self.insert(offset + len, found - len);
        }
        self.free -= len;
        Some(offset)
    }

    /// Gives an extent back that [`Extents::take`] handed out, and merges it with its free neighbours.
    pub(super) fn give(&mut self, offset: u64, len: u64) {
        let (mut start, mut end) = (offset, offset + len);
        let before = self
            .by_offset
            .range(..offset)
            .next_back()
            .map(|(at, len)| (*at, *len));
        if let Some((at, before_len)) = before {
            debug_assert!(
                at + before_len <= offset,
                "extent at {offset} given back twice"
            );
            if at + before_len == offset {
                self.remove(at, before_len);
                start = at;
            }
        }
        if let Some(after_len) = self.by_offset.get(&end).copied() {
            self.remove(end, after_len);
            end += after_len;
        }
        self.insert(start, end - start);
        self.free += len;
    }

    /// Bytes that are free.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    fn insert(&mut self, offset: u64, len: u64) {
        self.by_offset.insert(offset, len);
        self.by_len.insert((len, offset));
    }

    fn remove(&mut self, offset: u64, len: u64) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 4096;

    #[derive(Clone, Debug)]
    enum Step {
        Take(u64),
        Give(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..900_u64).prop_map(Step::Take),
            any::<usize>().prop_map(Step::Give)
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn live_extents_never_overlap_and_all_given_back_is_one(steps in steps()) {
            let mut extents = Extents::new(SIZE);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(nbytes) => {
                        let len = Extents::rounded(nbytes).unwrap();
                        let Some(offset) = extents.take(len) else {
                            prop_assert!(extents.by_offset.values().all(|free| *free < len));
                            continue;
                        };
                        prop_assert!(offset % GRANULE == 0 && offset + len <= SIZE);
                        prop_assert!(live.iter().all(|(at, l)| offset + len <= *at || at + l <= offset));
                        live.push((offset, len));
                    }
                    Step::Give(which) if !live.is_empty() => {
                        let (offset, len) = live.swap_remove(which % live.len());
                        extents.give(offset, len);
                    }
                    Step::Give(_) => {}
                }
                let used: u64 = live.iter().map(|(_, len)| len).sum();
                prop_assert_eq!(extents.free(), SIZE - used);
                prop_assert_eq!(extents.by_len.len(), extents.by_offset.len());
            }
            for (offset, len) in live {
                extents.give(offset, len);
            }
            prop_assert_eq!(extents.by_offset, BTreeMap::from([(0, SIZE)]));
        }
    }

    #[test]
    fn the_smallest_hole_that_fits_is_used() {
        let mut extents = Extents::new(SIZE);
        let blocks: Vec<u64> = (0..5).map(|_| extents.take(640).unwrap()).collect();
        let small = extents.take(64).unwrap();
        extents.give(blocks[1], 640);
        extents.give(small, 64);
        assert_eq!(extents.take(640), Some(blocks[1]));
        assert_eq!(Extents::rounded(u64::MAX), None);
    }
}
