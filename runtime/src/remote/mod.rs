//! Remote workers as the parent sees them: a session behind a command lane and a health lane (slr3-v1).
//!
//! * `spec` says which worker, `connect` has the daemon start its session, `handshake` checks HELLO;
//! * `state` is the command lane as pure code: one ordered queue, what is in flight, the bytes that go out;
//! * `lane` is its edge: one thread that polls, and a first write by whoever submits;
//! * `health` is the other lane: it alone decides about liveness, and its verdict wakes every waiter; `stall` knows whether we ran;
//! * `transport` chooses how an importer reaches an owner's bytes;
//! * `bulk` moves large copies around the lane, and keeps the order of all around them;
//! * `staging` brings machine code that is larger than a frame;
//! * `endpoint` puts them behind the [`crate::endpoint::Endpoint`] trait, `requests` turns controls into frames and back.

mod bulk;
mod connect;
mod endpoint;
mod handshake;
mod health;
mod lane;
mod replies;
mod requests;
mod spec;
mod staging;
mod stall;
mod state;
mod transport;

pub use connect::StartError;
pub use endpoint::RemoteEndpoint;
pub use health::{HealthMonitor, Verdict};
pub use spec::{RemoteWorkerSpec, SpecError};

/// Extensions that this parent can use; offered in the manifest.
pub(crate) const OFFERED: [&str; 13] = [
    "pipelining",
    "task_tags",
    "timed_completion",
    "conditions",
    "serialized_callables",
    "concurrent_control",
    "health_echo",
    "float64",
    "peer_fetch",
    "peer_fence",
    "data_lane",
    "same_host",
    "staged_blobs",
];
