//! The places for sessions: how many run, and no more than the limit.

use std::cell::Cell;
use std::rc::Rc;

use crate::error::SessionError;

/// Counts the running sessions.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    taken: Rc<Cell<u32>>,
    limit: u32,
}

/// One session's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Rc<Cell<u32>>);

impl Places {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            taken: Rc::default(),
            limit,
        }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`SessionError::Resource`] when there is none.
    pub(crate) fn take(&self) -> Result<Slot, SessionError> {
        let taken = self.taken.get();
        if taken >= self.limit {
            return Err(SessionError::Resource {
                what: "the number of sessions",
                requested: u64::from(taken) + 1,
                limit: self.limit.into(),
                hint: "close a session, or start the daemon with a larger --max-sessions",
            });
        }
        self.taken.set(taken + 1);
        Ok(Slot(Rc::clone(&self.taken)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back_r_048() {
        let places = Places::new(2);
        let first = places.take().expect("free");
        let _second = places.take().expect("free");
        assert!(places
            .take()
            .expect_err("full")
            .to_string()
            .contains("limit 2"));
        drop(first);
        assert!(places.take().is_ok());
    }
}
