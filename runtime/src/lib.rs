//! Runtime.

pub mod graph;
