//! Marks on memory that a task left undefined.
//!
//! Poison travels along read-after-write edges only, by byte interval: whoever overwrites the bytes without reading them
//! runs and cleans them, whoever reads them is skipped, also when the writer had ended before the reader was submitted.

use std::collections::{BTreeMap, BTreeSet};

use super::access::Space;
use super::id::{RunId, TaskId};

/// The task whose own failure, loss or cancelling made bytes undefined; ordered by submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Root {
    pub(super) seq: u64,
    pub(super) task: TaskId,
}

impl Root {
    /// The earlier submitted of two roots, so that a report does not depend on the order in which tasks really ended.
    pub(super) fn earlier(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// A mark on an interval: which run left it undefined, and the root to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Poison {
    pub(super) run: RunId,
    pub(super) root: Root,
}

/// Where each run left marks, so that the end of a run looks at those spaces only.
#[derive(Debug, Default)]
pub(super) struct PoisonIndex {
    spaces: BTreeMap<RunId, BTreeSet<Space>>,
}

impl PoisonIndex {
    /// Notes that `run` left a mark in `space`.
    pub(super) fn note(&mut self, run: RunId, space: Space) {
        self.spaces.entry(run).or_default().insert(space);
    }

    /// The spaces where `run` left marks; some of them may have been overwritten since.
    pub(super) fn spaces(&self, run: RunId) -> impl Iterator<Item = Space> + '_ {
        self.spaces.get(&run).into_iter().flatten().copied()
    }

    /// Forgets `run` and returns the spaces where it left marks.
    pub(super) fn take(&mut self, run: RunId) -> BTreeSet<Space> {
        self.spaces.remove(&run).unwrap_or_default()
    }
}
