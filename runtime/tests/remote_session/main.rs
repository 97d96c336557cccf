//! The remote endpoint against sessions that do everything wrong that can be done: each failure is told once, in time, and is final.
#![allow(clippy::unwrap_used, missing_docs)] // A failed unwrap is a failed test.

mod closing;
mod commands;
mod crowds;
mod extensions;
mod faults;
mod liveness;
mod peer;
mod starting;
mod windows;
