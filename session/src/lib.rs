//! The serving side of Echelon: the daemon `echelon-worker`, which starts a session for each request, the session runner
//! `echelon-session`, which serves one parent, and in [`chip`] the process that owns a device.
//!
//! Invariants, quoted by the tests that prove them:
//!
//! * **S-1** Nothing is parsed beyond its announced and checked length; a peer's bytes never panic and never end anything but that
//!   peer's connection or session.
//! * **S-2** A daemon's accept is never behind a slow peer.
//! * **S-3** Every runner is ended, reaped and swept by the one task that owns it, whatever happens to who asked for it.
//! * **S-4** A failed command never ends a session; the end of the command lane always does, also while a task runs.
//! * **S-5** All state of a session belongs to the session; when it ends, its memory, names, threads and processes are gone.
#![deny(unsafe_code)]

mod buffers;
pub mod chip;
mod config;
mod daemon;
mod error;
mod peer;
mod policy;
mod registry;
mod runner;
mod segments;

pub use buffers::BufferError;
pub use config::{DaemonConfig, Parsed, RunnerConfig};
pub use daemon::daemon_main;
pub use error::{SessionError, StartError};
pub use peer::TicketError;
pub use policy::ImportPolicy;
pub use registry::RegistryError;
pub use runner::{run, session_main, NativeHost};
