//! Who has read some bytes since they were written.

use std::collections::VecDeque;

use super::interval::Holder;

/// Unfinished readers in submit order. Most bytes have one, which takes no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Readers {
    /// The oldest; there is one whenever `more` has any.
    oldest: Option<Holder>,
    more: VecDeque<Holder>,
}

impl Readers {
    pub(super) fn one(holder: Holder) -> Self {
        Self {
            oldest: Some(holder),
            more: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.oldest.is_none()
    }

    /// Adds the newest task, once.
    pub(super) fn add(&mut self, holder: Holder) {
        if self.oldest.is_none() {
            self.oldest = Some(holder);
        } else if self.oldest != Some(holder) && self.more.back() != Some(&holder) {
            self.more.push_back(holder);
        }
    }

    pub(super) fn remove(&mut self, seq: u64) {
        if self.oldest.is_some_and(|holder| holder.seq == seq) {
            self.oldest = self.more.pop_front();
        } else if let Ok(at) = self.more.binary_search_by_key(&seq, |r| r.seq) {
            self.more.remove(at);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Holder> + Clone {
        self.oldest.iter().chain(&self.more)
    }
}
