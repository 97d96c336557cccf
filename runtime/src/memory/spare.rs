//! Small blocks that were given back, by length: the next of that length takes the one that was used last, whose pages are warm.

use super::extents::GRANULE;

/// Longest block that is kept.
const LEN_MAX: u64 = 64 << 10;

/// Bytes kept in all; beyond that blocks go back to the free extents, where neighbours join.
const BYTES_MAX: u64 = 32 << 20;

/// Offsets of free blocks, by length in granules.
#[derive(Debug, Default)]
pub(super) struct Spare {
    by_len: Vec<Vec<u64>>,
    bytes: u64,
}

impl Spare {
    /// A block of exactly `len` bytes, a rounded length.
    pub(super) fn take(&mut self, len: u64) -> Option<u64> {
        let offset = self.by_len.get_mut((len / GRANULE) as usize)?.pop()?;
        self.bytes -= len;
        Some(offset)
    }

    /// Keeps a block that is not in use any more; false when it is not for this list.
    pub(super) fn keep(&mut self, offset: u64, len: u64) -> bool {
        if len > LEN_MAX || self.bytes + len > BYTES_MAX {
            return false;
        }
        // Lengths are bounded, so this fits.
        let class = (len / GRANULE) as usize;
        if class >= self.by_len.len() {
            self.by_len.resize_with(class + 1, Vec::new);
        }
        self.by_len[class].push(offset);
        self.bytes += len;
        true
    }

    /// Bytes kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes everything out: offsets and lengths.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (u64, u64)> {
        self.bytes = 0;
        let lists = std::mem::take(&mut self.by_len).into_iter().zip(0_u64..);
        lists.flat_map(|(list, class)| list.into_iter().map(move |at| (at, class * GRANULE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_used_last_is_used_next_and_everything_comes_back() {
        let mut spare = Spare::default();
        assert_eq!(spare.take(64), None);
        assert!(spare.keep(0, 64) && spare.keep(640, 64) && spare.keep(128, 128));
        assert!(!spare.keep(4096, LEN_MAX + GRANULE));
        assert_eq!((spare.take(64), spare.bytes()), (Some(640), 192));
        let mut rest: Vec<_> = spare.drain().collect();
        rest.sort_unstable();
        assert_eq!((rest, spare.bytes()), (vec![(0, 64), (128, 128)], 0));
        let mut kept = 0;
        while spare.keep(kept, LEN_MAX) {
            kept += LEN_MAX;
        }
        assert_eq!(kept, BYTES_MAX);
    }
}
