//! A zygote: a single-threaded process, an interpreter that imported nothing of the user's, which forks ready children
//! (decision 0023).
//!
//! It makes them with `CLONE_PARENT`: they are children of the process that owns the zygote, of the very thread that started it.
//! So they are watched, signalled and reaped as if they had been executed, they end with the owner's thread and not with
//! the zygote, and a zygote that is gone is missed by nobody: the next child is executed.
//!
//! `owner` is the side of the keeper, `server` that of the zygote, `message` what travels between them, `surroundings` what must not
//! have changed since the zygote was started.

mod message;
mod owner;
mod server;
mod surroundings;

pub(super) use owner::{Nursery, Way};
pub use server::{fork_off, serve, Forked, OwnZygote, ZygoteHooks};

/// The argument that makes a program a zygote; the number of its socket follows.
pub const ZYGOTE_FLAG: &str = "--zygote";

/// The argument that tells a child to fork a zygote for its own children, before it has threads.
pub const OWN_ZYGOTE_FLAG: &str = "--own-zygote";

/// Set to 0 it switches all zygotes off, in this process and below.
pub const SWITCH: &str = "ECHELON_ZYGOTE";

/// False when the environment switches zygotes off.
#[must_use]
pub fn is_enabled() -> bool {
    std::env::var_os(SWITCH).is_none_or(|value| value != "0")
}
