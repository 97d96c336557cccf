//! The tables of callables: prepared and live (contract §5, registration semantics). Pure; what a callable is, is a parameter.

use std::collections::HashMap;
use std::hash::Hash;

/// Callables that one table holds, prepared and live together.
pub(crate) const CALLABLES_MAX: usize = 16_384;

/// Why a table refuses. The texts are those of the contract's recorded cases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// COMMIT of something that was not prepared, or was committed already.
    #[error("COMMIT_REGISTER_CALLABLE digest was not prepared")]
    NotPrepared,
    /// The table is full.
    #[error(
        "RESOURCE_EXHAUSTED: {limit} callables are registered, which is the limit; unregister some"
    )]
    Full {
        /// The limit.
        limit: usize,
    },
}

/// One table: what was prepared waits for its commit, what is live can be called.
#[derive(Debug)]
pub(crate) struct Registry<K, T> {
    prepared: HashMap<K, T>,
    live: HashMap<K, T>,
}

impl<K: Eq + Hash, T> Registry<K, T> {
    pub(crate) fn new() -> Self {
        Self {
            prepared: HashMap::new(),
            live: HashMap::new(),
        }
    }

    /// Keeps a callable aside. Preparing again replaces.
    pub(crate) fn prepare(&mut self, key: K, callable: T) -> Result<(), RegistryError> {
        if self.prepared.len() + self.live.len() >= CALLABLES_MAX
            && !self.prepared.contains_key(&key)
        {
            return Err(RegistryError::Full {
                limit: CALLABLES_MAX,
            });
        }
        self.prepared.insert(key, callable);
        Ok(())
    }

    /// Looks at what COMMIT would make live.
    pub(crate) fn prepared(&self, key: &K) -> Result<&T, RegistryError> {
        self.prepared.get(key).ok_or(RegistryError::NotPrepared)
    }

    /// Makes live what was prepared; returns what it replaces.
    pub(crate) fn commit(&mut self, key: K) -> Result<Option<T>, RegistryError> {
        let callable = self
            .prepared
            .remove(&key)
            .ok_or(RegistryError::NotPrepared)?;
        Ok(self.live.insert(key, callable))
    }

    /// Forgets what was prepared; of something unknown it succeeds.
    pub(crate) fn abort(&mut self, key: &K) {
        self.prepared.remove(key);
    }

    /// Removes prepared and live; returns what was live. Of something unknown it succeeds.
    pub(crate) fn unregister(&mut self, key: &K) -> Option<T> {
        self.prepared.remove(key);
        self.live.remove(key)
    }

    /// What is live under `key`.
    pub(crate) fn live(&self, key: &K) -> Option<&T> {
        self.live.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_prepared_can_be_committed_and_only_once() {
        let mut table = Registry::new();
        assert_eq!(table.commit(1), Err(RegistryError::NotPrepared));
        table.prepare(1, "a").expect("room");
        assert_eq!(table.live(&1), None);
        assert_eq!(table.commit(1), Ok(None));
        assert_eq!(table.live(&1), Some(&"a"));
        assert_eq!(table.commit(1), Err(RegistryError::NotPrepared));
    }

    #[test]
    fn preparing_again_replaces_and_a_live_one_stays_until_the_commit() {
        let mut table = Registry::new();
        table.prepare(1, "a").expect("room");
        table.prepare(1, "b").expect("room");
        assert_eq!(table.commit(1), Ok(None));
        table.prepare(1, "c").expect("room");
        assert_eq!(table.live(&1), Some(&"b"));
        assert_eq!(table.commit(1), Ok(Some("b")));
    }

    #[test]
    fn abort_and_unregister_of_the_unknown_succeed() {
        let mut table: Registry<u8, &str> = Registry::new();
        table.abort(&1);
        assert_eq!(table.unregister(&1), None);
        table.prepare(1, "a").expect("room");
        table.abort(&1);
        assert_eq!(table.commit(1), Err(RegistryError::NotPrepared));
        table.prepare(1, "a").expect("room");
        assert_eq!(table.commit(1), Ok(None));
        table.prepare(1, "b").expect("room");
        assert_eq!(table.unregister(&1), Some("a"));
        assert_eq!(table.commit(1), Err(RegistryError::NotPrepared));
    }

    #[test]
    fn a_table_is_bounded() {
        let mut table = Registry::new();
        for key in 0..CALLABLES_MAX {
            table.prepare(key, ()).expect("room");
        }
        assert_eq!(
            table.prepare(CALLABLES_MAX, ()),
            Err(RegistryError::Full {
                limit: CALLABLES_MAX
            })
        );
        assert_eq!(table.prepare(0, ()), Ok(()));
    }
}
