//! Tables for the path of every task: keys are small numbers that this process gives out, or that a peer gives out within a
//! session. A seed of the process keeps a peer from choosing keys that meet.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

/// A map by numbers.
pub(crate) type NumberMap<K, V> = HashMap<K, V, Numbers>;

/// Makes the hashers of a [`NumberMap`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    seed: u64,
}

impl Default for Numbers {
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        let seed = *SEED.get_or_init(|| RandomState::new().hash_one(0_u8));
        Self { seed }
    }
}

impl BuildHasher for Numbers {
    type Hasher = NumberHasher;

    fn build_hasher(&self) -> NumberHasher {
        NumberHasher(self.seed)
    }
}

/// Each number is mixed in by one long multiplication, both halves of which count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NumberHasher(u64);

/// Odd, with its bits spread evenly: the fraction of the golden ratio.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // Never zero: the seed decides also for the number that equals the state.
        let product = u128::from((self.0 ^ number) | 1 << 63) * SPREAD;
        self.0 = (product as u64 ^ (product >> 64) as u64).wrapping_add(self.0.rotate_left(23));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn neighbours_are_spread() {
        let numbers = Numbers::default();
        let hashes: Vec<u64> = (0..4096_u64).map(|n| numbers.hash_one(n)).collect();
        let whole: HashSet<u64> = hashes.iter().copied().collect();
        assert_eq!(whole.len(), hashes.len());
        for shift in [0, 57] {
            let mut counts = [0; 128];
            for hash in &hashes {
                counts[(hash >> shift) as usize & 127] += 1;
            }
            assert!(counts.iter().all(|count| *count < 4 * 32), "{counts:?}");
        }
    }
}
