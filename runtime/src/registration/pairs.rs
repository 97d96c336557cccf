//! The pairs of one worker. Controls are answered in the order in which they were sent, so the answer to the last one decides.

use std::collections::HashMap;

use echelon_wire::callable::{CallableKind, Digest, RegistryTarget};

use crate::callable::Callable;
use crate::endpoint::Ticket;

/// What is registered: a callable, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) digest: Digest,
    pub(crate) kind: CallableKind,
    pub(crate) registry: RegistryTarget,
}

impl Key {
    /// A callable for the workers' inner runtimes, or for the tasks of this level.
    pub(crate) fn new(callable: &Callable, inner: bool) -> Self {
        let registry = if inner {
            RegistryTarget::InnerL3Worker
        } else {
            RegistryTarget::RemoteTaskDispatcher
        };
        Self {
            digest: callable.digest,
            kind: callable.kind,
            registry,
        }
    }

    /// Tasks of this level name it.
    pub(crate) fn is_for_tasks(&self) -> bool {
        self.registry == RegistryTarget::RemoteTaskDispatcher
    }
}

/// A control about a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Check, import, keep aside.
    Prepare,
    /// Make callable what was prepared.
    Commit,
    /// Forget what was prepared.
    Abort,
    /// Forget what was prepared and what is callable; of something unknown it succeeds.
    Remove,
}

/// What is not proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// How far a registration came that failed (*uncertain*).
    Registration,
    /// Whether a removal took effect (*tombstone*).
    Removal,
}

/// What is known of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairState {
    /// It is not there.
    Absent,
    /// PREPARE is on its way.
    Preparing,
    /// It is kept aside there.
    Prepared,
    /// COMMIT is on its way.
    Committing,
    /// It is callable there, and other workers of the registration may not have it yet.
    Committed,
    /// It is callable, and tasks may go there.
    Live,
    /// It is callable there for the tasks that were submitted before it was unregistered.
    Retired,
    /// A removal is on its way; without an answer, this is in doubt.
    Removing(Doubt),
    /// Nobody knows: a removal has to prove that it is gone.
    Unproven(Doubt),
}

#[derive(Clone, Debug)]
struct Pair {
    state: PairState,
    /// The last control about it.
    last: Ticket,
    /// For a fresh worker in the same place.
    callable: Option<Callable>,
}

/// No control was needed; tickets begin at 1.
const BROUGHT: Ticket = Ticket(0);

/// What one worker has, as far as its answers prove it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs(HashMap<Key, Pair>);

impl Pairs {
    pub(crate) fn state(&self, key: &Key) -> PairState {
        self.0.get(key).map_or(PairState::Absent, |pair| pair.state)
    }

    /// The worker has answered a registration, so it is there.
    pub(crate) fn has_answered(&self) -> bool {
        self.0
            .values()
            .any(|pair| pair.state == PairState::Live && pair.last != BROUGHT)
    }

    /// Every pair that is not absent.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// It came with the worker, in a session's manifest or a child's plan, or will be installed with the next one.
    pub(crate) fn brought(&mut self, key: Key, callable: &Callable) {
        let pair = Pair {
            state: PairState::Live,
            last: BROUGHT,
            callable: Some(callable.clone()),
        };
        self.0.insert(key, pair);
    }

    /// The worker has ended and a fresh one takes its place: what tasks may name stays wanted, nothing else is there any more.
    pub(crate) fn pass_on(&mut self) {
        let wanted = |state| matches!(state, PairState::Live | PairState::Retired);
        self.0.retain(|_, pair| wanted(pair.state));
    }

    /// What a fresh worker in this place is to get.
    pub(crate) fn inherited(&self) -> Vec<Callable> {
        let callables = self.0.values().filter_map(|pair| pair.callable.clone());
        callables.collect()
    }

    /// Nothing of it is there.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// A control is on its way.
    pub(crate) fn sent(
        &mut self,
        key: Key,
        step: Step,
        ticket: Ticket,
        callable: Option<&Callable>,
    ) {
        let state = match (step, self.state(&key)) {
            (Step::Prepare, _) => PairState::Preparing,
            (Step::Commit, _) => PairState::Committing,
            (
                Step::Abort | Step::Remove,
                PairState::Live
                | PairState::Retired
                | PairState::Removing(Doubt::Removal)
                | PairState::Unproven(Doubt::Removal),
            ) => PairState::Removing(Doubt::Removal),
            (Step::Abort | Step::Remove, _) => PairState::Removing(Doubt::Registration),
        };
        let before = self.0.remove(&key).and_then(|pair| pair.callable);
        let pair = Pair {
            state,
            last: ticket,
            callable: callable.cloned().or(before),
        };
        self.0.insert(key, pair);
    }

    /// A control was answered, in time or late. Only the last one that was sent says something: whatever came before it has
    /// been overtaken.
    pub(crate) fn answered(&mut self, key: &Key, ticket: Ticket, done: bool) {
        let Some(pair) = self.0.get_mut(key).filter(|pair| pair.last == ticket) else {
            return;
        };
        pair.state = match (pair.state, done) {
            (PairState::Preparing, true) => PairState::Prepared,
            (PairState::Committing, true) => PairState::Committed,
            (PairState::Preparing | PairState::Committing, false) => {
                PairState::Unproven(Doubt::Registration)
            }
            (PairState::Removing(_), true) => PairState::Absent,
            (PairState::Removing(doubt), false) => PairState::Unproven(doubt),
            (state, _) => state,
        };
        if pair.state == PairState::Absent {
            self.0.remove(key);
        }
    }

    /// What is committed here can be called from now on.
    pub(crate) fn publish(&mut self, key: &Key) {
        self.change(key, PairState::Committed, PairState::Live);
    }

    /// No new task may name it.
    pub(crate) fn retire(&mut self, key: &Key) {
        self.change(key, PairState::Live, PairState::Retired);
    }

    /// It was not removed after all.
    pub(crate) fn restore(&mut self, key: &Key) {
        self.change(key, PairState::Retired, PairState::Live);
    }

    fn change(&mut self, key: &Key, from: PairState, to: PairState) {
        if let Some(pair) = self.0.get_mut(key).filter(|pair| pair.state == from) {
            pair.state = to;
        }
    }

    /// The worker is lost, and everything there with it.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Why no task that names it may go there; `None` when one may.
    pub(crate) fn obstacle(&self, key: &Key) -> Option<&'static str> {
        Some(match self.state(key) {
            PairState::Live => return None,
            PairState::Absent => "the callable is not registered there; name the worker in register(…, workers=[…])",
            PairState::Preparing
            | PairState::Prepared
            | PairState::Committing
            | PairState::Committed => "the callable is being registered there; wait for register() to return",
            PairState::Retired | PairState::Removing(Doubt::Removal) => {
                "the callable is being unregistered there; register it again"
            }
            PairState::Removing(Doubt::Registration) | PairState::Unproven(Doubt::Registration) => {
                "registering the callable there failed, and that nothing is left of it is not confirmed; register it again"
            }
            PairState::Unproven(Doubt::Removal) => {
                "the callable was unregistered there, which was not confirmed; register it again"
            }
        })
    }
}
