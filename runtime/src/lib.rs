//! Runtime.

pub mod graph;
pub mod memory;
