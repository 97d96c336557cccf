//! Tables for the path of every task: keys are small numbers that this process gives out, or that a peer gives out within a
//! session. A seed of the process keeps a peer from choosing keys that meet.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
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

/// Values by number, of which one after the other asks for the same: the one that was asked for last is found without a search.
#[derive(Debug)]
pub(crate) struct LastMap<K, V> {
    places: NumberMap<K, usize>,
    values: Vec<Option<(K, V)>>,
    free: Vec<usize>,
    /// Of the value that was put in or changed last.
    last: usize,
}

impl<K, V> Default for LastMap<K, V> {
    fn default() -> Self {
        Self {
            places: NumberMap::default(),
            values: Vec::new(),
            free: Vec::new(),
            last: 0,
        }
    }
}

impl<K: Copy + Eq + Hash, V> LastMap<K, V> {
    fn place(&self, key: K) -> Option<usize> {
        match self.values.get(self.last) {
            Some(Some((known, _))) if *known == key => Some(self.last),
            _ => self.places.get(&key).copied(),
        }
    }

    pub(crate) fn get(&self, key: K) -> Option<&V> {
        let value = self.values.get(self.place(key)?)?;
        value.as_ref().map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.last = self.place(key)?;
        let value = self.values.get_mut(self.last)?;
        value.as_mut().map(|(_, value)| value)
    }

    /// Puts a value in; an earlier one under the key is dropped.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.remove(key);
        let place = self.free.pop().unwrap_or_else(|| {
            self.values.push(None);
            self.values.len() - 1
        });
        self.places.insert(key, place);
        self.values[place] = Some((key, value));
        self.last = place;
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let place = self.places.remove(&key)?;
        self.free.push(place);
        let value = self.values.get_mut(place)?.take();
        value.map(|(_, value)| value)
    }

    /// Drops the values that are not to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        let gone = |(key, value)| (!keep(value)).then_some(key);
        let gone: Vec<K> = self.iter().filter_map(gone).collect();
        for key in gone {
            self.remove(key);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.values
            .iter()
            .flatten()
            .map(|(key, value)| (*key, value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_last_map_is_a_map(steps in prop::collection::vec((0..5_u8, 0..6_u64), 0..200)) {
            let mut map = LastMap::default();
            let mut model: HashMap<u64, usize> = HashMap::new();
            for (at, (what, key)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        map.insert(key, at);
                        model.insert(key, at);
                    }
                    1 => prop_assert_eq!(map.remove(key), model.remove(&key)),
                    2 => prop_assert_eq!(map.get_mut(key), model.get_mut(&key)),
                    3 => {
                        map.retain(|value| value % 7 != 0);
                        model.retain(|_, value| *value % 7 != 0);
                    }
                    _ => prop_assert_eq!(map.get(key), model.get(&key)),
                }
                let all: HashMap<u64, usize> = map.iter().map(|(key, value)| (key, *value)).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }

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
