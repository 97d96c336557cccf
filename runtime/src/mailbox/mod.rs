//! The mailbox between a parent and one child process: two rings of records in one memfd.
//!
//! Tasks and controls go down, completions come up. Each ring has one producer and one consumer; each word of the
//! segment has **one writer and one meaning** for ever (a word that two sides write is how shutdowns get lost, R-044):
//!
//! | offset | word | written by | read by | ordering |
//! |---|---|---|---|---|
//! | 0 | magic, version, ring sizes, zeros ([`layout`]) | parent, before the child starts | child, once | process start |
//! | 128 | task head: bytes ever written to the task ring | parent | child | release / acquire |
//! | 256 | task tail: bytes ever read from it | child | parent | release / acquire |
//! | 384 | completion head | child | parent | release / acquire |
//! | 512 | completion tail | parent | child | release / acquire |
//! | 640 | doorbell sequence (futex): counts what the parent did | parent | child | sequentially consistent |
//! | 768 | doorbell asleep: the sequence that the child sleeps on, and 1 while it may ([`wake`]) | child | parent | sequentially consistent |
//! | 896 | shutdown: 0, then 1 for ever | parent | child | release / acquire |
//! | 1024 | seat: the child's place in the bell's segment, 0 for none | parent, before the child starts | child, once | process start |
//! | 1152 | stalled: 1 while the child waits for room in the completion ring | child | parent | release / acquire |
//!
//! The parent's own waits go through the [`Bell`]: one small segment shared by a `Worker` and all its children, with a
//! sequence (anyone increments), who sleeps (the parent's threads), who is present and who stands by ([`standby`]), where the
//! parent and each child wait (`place`), and the leases of spinners ([`spin`]), which a whole tree of workers has in common: in
//! the segment of its first one.
//!
//! Invariants:
//!
//! 1. No system call when both sides are awake: a futex wake happens only when the other side has declared itself asleep. One
//!    sleep costs one wake, however many records follow before the sleeper is on its feet.
//! 2. No wake-up is lost: a waiter declares itself asleep *before* it compares the sequence for the last time (the
//!    kernel does, inside the futex call), a ringer increments the sequence *before* it looks for sleepers, and all
//!    four are sequentially consistent. `tests/loom_ring.rs` runs all interleavings.
//! 3. What the peer wrote is copied out, then decoded. Positions and lengths are checked against what is possible; one that
//!    is not is [`MailboxError::Corrupt`], which ends the endpoint and nothing else.
//! 4. An idle child sleeps in the kernel; it spins for at most [`spin::SPIN_LIMIT`] after work.

mod bell;
mod beside;
mod error;
mod futex;
pub mod layout;
mod place;
pub mod ring;
mod sides;
pub mod spin;
pub mod standby;
pub mod wake;

pub use bell::{Bell, Seat, SpinnersAbove};
pub use beside::{Seen, Source, Spinner};
pub use error::MailboxError;
pub use futex::{Word32, Word64};
pub use ring::RecordHead;
pub use sides::{ChildSide, Mailbox, ParentSide};
pub use wake::KernelCalls;
