//! Memory that processes of one host share, and pinned bytes of this process.
//!
//! Concepts, from the bottom:
//!
//! * [`Mapping`]: a file descriptor mapped `MAP_SHARED`. Only raw pointers come out of it: another process may write
//!   the same bytes at any time, so a `&[u8]` over them would promise what nobody keeps.
//! * [`HostMemory`]: a pinned range of bytes of this process, from a mapping, a `Vec`, a `Bytes` or a foreign buffer.
//! * [`SharedRegion`]: a memfd or a POSIX segment with a random identity, mapped once.
//! * [`Arena`]: one sparse memfd per `Worker` that hands out [`ArenaBlock`]s (`alloc`, staging, inline payloads).
//!
//! Invariants:
//!
//! 1. Pages are allocated before they are used: running out is a [`MemoryError`], never a SIGBUS.
//! 2. A read-only region is mapped `PROT_READ`; that it is not written is not a convention.
//! 3. A block of an arena is handed out again only after its last view is gone (design §15.6).
//! 4. A published POSIX name is unlinked by the process that made it and by nobody else.
//! 5. memfds are sealed against shrinking, so no process that holds one can make another one crash.

mod arena;
mod error;
mod extents;
mod host;
mod limit;
mod mapping;
mod names;
mod region;
mod spare;

pub use arena::{Arena, ArenaBlock};
pub use error::MemoryError;
pub use host::HostMemory;
pub use mapping::Mapping;
pub use region::{random_id, SharedRegion};
