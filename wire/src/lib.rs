//! SLR3 wire protocol.
#![forbid(unsafe_code)]
