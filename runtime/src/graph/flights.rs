//! The members in flight at one endpoint.

use std::collections::VecDeque;

use super::id::TaskId;

/// In the order in which they were sent. They end nearly always in that order too, so that the first is the one that is looked for.
#[derive(Debug, Default)]
pub(super) struct Flights(VecDeque<(TaskId, u32)>);

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, member: &(TaskId, u32)) -> bool {
        self.0.front() == Some(member) || self.0.contains(member)
    }

    pub(super) fn insert(&mut self, member: (TaskId, u32)) {
        self.0.push_back(member);
    }

    pub(super) fn remove(&mut self, member: &(TaskId, u32)) {
        if self.0.front() == Some(member) {
            self.0.pop_front();
        } else if let Some(at) = self.0.iter().position(|known| known == member) {
            self.0.remove(at);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(TaskId, u32)> {
        self.0.iter()
    }
}

impl IntoIterator for Flights {
    type Item = (TaskId, u32);
    type IntoIter = std::collections::vec_deque::IntoIter<(TaskId, u32)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
