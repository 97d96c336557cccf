//! The engine and the `Worker` over fake endpoints: no processes, no sockets, every order of events chosen by the test.

#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod attempts;
mod bed;
mod buffers;
mod chains;
mod chaos;
mod closing;
mod copies;
mod eligibility;
mod fences;
mod groups;
mod handles;
mod leaning;
mod losses;
mod model;
mod points;
mod registering_at_once;
mod registration;
mod reports;
mod runs;
mod sessions;
mod staging;
mod starting;
mod succession;
mod unproven;
