//! The graph core against models of it: a world that really executes reads and writes over byte arrays, and a sequential
//! reference that runs the same tasks one by one in submit order.
//!
//! `PROPTEST_CASES` sets how many random programs run; a failure prints the smallest program that shows it.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in helpers too"
)]

mod bounded;
mod chained_programs;
mod chains;
mod depths;
mod gangs;
mod intervals;
mod judge;
mod lanes;
mod memory;
mod outcomes;
mod placement;
mod program;
mod random_programs;
mod reference;
mod returns;
mod settling;
mod world;
