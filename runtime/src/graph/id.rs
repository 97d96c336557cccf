//! Identities the graph speaks of: tasks, runs, endpoints, and sets of endpoints that may run a task.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// One submitted node of the graph: a place in the bounded table and the count of its earlier users.
///
/// A `TaskId` whose task has ended never names a later task, so a late report cannot be taken for another task's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Place in the table.
    pub slot: u32,
    /// How many tasks held the place before this one.
    pub generation: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}.{}", self.slot, self.generation)
    }
}

/// One call of `run()`: the unit of cancelling and of the lifetime of poison. Not used again after `RunEnded`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// One place that executes tasks (a child, a worker thread, a session); the scheduler knows no transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoint {}", self.0)
    }
}

/// A set of endpoints that may run a member: sorted, without duplicates, never empty.
///
/// A clone shares the storage, and the hash is computed once, so that submitting many tasks with one set costs nothing
/// that grows with the set: keep the value and clone it.
#[derive(Clone)]
pub struct Eligible(Arc<Set>);

struct Set {
    hash: u64,
    ids: Box<[EndpointId]>,
}

impl Eligible {
    /// Sorts and deduplicates `ids`; `None` when there is none (nothing could ever run the task).
    pub fn new(ids: impl IntoIterator<Item = EndpointId>) -> Option<Self> {
        let mut ids: Vec<EndpointId> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        ids.hash(&mut hasher);
        Some(Self(Arc::new(Set {
            hash: hasher.finish(),
            ids: ids.into_boxed_slice(),
        })))
    }

    /// The set of exactly one endpoint: an explicit `worker=`.
    pub fn one(id: EndpointId) -> Self {
        let mut hasher = DefaultHasher::new();
        [id].as_slice().hash(&mut hasher);
        Self(Arc::new(Set {
            hash: hasher.finish(),
            ids: Box::new([id]),
        }))
    }

    /// The endpoints in ascending order; at least one.
    pub fn ids(&self) -> &[EndpointId] {
        &self.0.ids
    }

    /// Whether both are one value and its clone.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether `id` is in the set.
    pub fn contains(&self, id: EndpointId) -> bool {
        self.0.ids.binary_search(&id).is_ok()
    }
}

impl PartialEq for Eligible {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.hash == other.0.hash && self.0.ids == other.0.ids)
    }
}

impl Eq for Eligible {}

impl Hash for Eligible {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for Eligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.0.ids.iter().map(|id| id.0))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_sorted_without_duplicates_and_never_empty() {
        let set = Eligible::new([3, 1, 3, 2].map(EndpointId)).unwrap();
        assert_eq!(set.ids(), [1, 2, 3].map(EndpointId));
        assert!(set.contains(EndpointId(2)) && !set.contains(EndpointId(4)));
        assert!(Eligible::new([]).is_none());
    }

    #[test]
    fn sets_of_the_same_endpoints_are_equal_however_they_were_made() {
        let one = Eligible::one(EndpointId(7));
        let made = Eligible::new([EndpointId(7), EndpointId(7)]).unwrap();
        assert_eq!(one, made);
        let hash = |set: &Eligible| {
            let mut hasher = DefaultHasher::new();
            set.hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&one), hash(&made));
        assert_ne!(one, Eligible::one(EndpointId(8)));
    }
}
