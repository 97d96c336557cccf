//! Registration as pure code: what is known of every callable at one worker, and the transaction that changes it at several
//! (design §8, R-098 to R-101).
//!
//! A **pair** is one callable in one registry of one worker. It can be called only while it is [`PairState::Live`], which it
//! becomes at all workers of a registration at once. Whatever is not proven is not live; it is cleared by a removal that is
//! answered, which the protocol allows at any time and any number of times.

mod pairs;
mod transaction;

#[cfg(test)]
mod model;

pub(crate) use pairs::{Doubt, Key, PairState, Pairs, Step};
pub(crate) use transaction::{Answer, Transaction};
