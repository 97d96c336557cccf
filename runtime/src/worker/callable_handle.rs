//! `CallableHandle`: what a registration gives to its caller.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use echelon_wire::callable::{CallableKind, Digest, Hashid};

use crate::callable::Callable;
use crate::error::Error;

const LIVE: u8 = 0;
const LEAVING: u8 = 1;
const GONE: u8 = 2;

/// A registered callable. Clones are the same handle.
#[derive(Clone, Debug)]
pub struct CallableHandle {
    pub(crate) callable: Arc<Callable>,
    pub(crate) owner_uid: u64,
    pub(crate) inner: bool,
    state: Arc<AtomicU8>,
}

impl CallableHandle {
    pub(crate) fn new(callable: Callable, owner_uid: u64, inner: bool) -> Self {
        Self {
            callable: Arc::new(callable),
            owner_uid,
            inner,
            state: Arc::new(AtomicU8::new(LIVE)),
        }
    }

    /// `sha256:` and 64 hexadecimal digits.
    #[must_use]
    pub fn hashid(&self) -> String {
        Hashid::from(self.callable.digest).to_string()
    }

    /// The 32 bytes behind the hashid.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.callable.digest
    }

    /// Which kind of descriptor.
    #[must_use]
    pub fn kind(&self) -> CallableKind {
        self.callable.kind
    }

    /// Import path or function name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.callable.name
    }

    /// Refuses a handle that was unregistered, belongs to another `Worker`, or is for inner workers.
    pub(crate) fn check(&self, uid: u64) -> Result<(), Error> {
        self.check_owner(uid)?;
        if self.inner {
            return Err(Error::handle(
                "callable",
                format!("{} was registered with inner=True: only the workers' own orchestration functions can submit it", self.name()),
            ));
        }
        if self.state.load(Ordering::Acquire) != LIVE {
            return Err(Error::handle(
                "callable",
                format!("{} was unregistered; register it again", self.name()),
            ));
        }
        Ok(())
    }

    pub(super) fn check_owner(&self, uid: u64) -> Result<(), Error> {
        if self.owner_uid == uid {
            return Ok(());
        }
        Err(Error::handle(
            "callable",
            format!(
                "the handle of {} belongs to another Worker; register it with this one",
                self.name()
            ),
        ))
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// From now on no task may name it. Allowed again until it is gone everywhere.
    pub(super) fn leave(&self) -> Result<(), Error> {
        let taken = self
            .state
            .compare_exchange(LIVE, LEAVING, Ordering::AcqRel, Ordering::Acquire);
        if taken.is_ok() || taken == Err(LEAVING) {
            return Ok(());
        }
        Err(Error::handle(
            "callable",
            format!("{} was already unregistered", self.name()),
        ))
    }

    /// It stays after all.
    pub(super) fn stay(&self) {
        self.state.store(LIVE, Ordering::Release);
    }

    /// It is gone everywhere.
    pub(super) fn is_gone(&self) -> bool {
        self.state.load(Ordering::Acquire) == GONE
    }

    pub(super) fn set_gone(&self) {
        self.state.store(GONE, Ordering::Release);
    }
}
