//! Short tasks go where something is awake already.
//!
//! To wake a worker takes tens of microseconds, on both sides; a task of a microsecond that waits behind a few others of its kind
//! begins sooner, and costs less. So a task whose callable has been short lately leans to the worker that the last such task went
//! to, while what is queued there is less than a wake-up takes. A callable of which little is known, or that took longer once, does
//! not lean, and nothing leans to a worker that has anything else to do: what is long spreads over all workers at once.

use echelon_wire::callable::Digest;

use super::record::{EndpointSlot, TaskRecord, Work};
use super::Core;
use crate::endpoint::Ticket;
use crate::fast::NumberMap;
use crate::graph::{fading_max, EndpointId, TaskId};

/// The longest task that is short.
const SHORT_NS: u64 = 20_000;
/// Work that is queued at one worker before another one is woken.
const QUEUED_NS: u64 = 50_000;
/// The same for a session, where requests go together and more of them are on their way than wait.
const QUEUED_FAR_NS: u64 = 250_000;
/// Tasks of a callable that must have ended before it may be called short.
const KNOWN: u32 = 16;
/// Callables that are remembered; beyond that all are forgotten and found out again.
const CALLABLES_MAX: usize = 1024;

/// What the tasks of one callable have taken.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    ended: u32,
    /// A maximum that fades.
    recent_ns: u64,
}

impl Pace {
    fn end(&mut self, took_ns: u64) {
        self.recent_ns = fading_max(self.recent_ns, took_ns);
        self.ended = self.ended.saturating_add(1);
    }

    fn is_short(self) -> bool {
        self.ended >= KNOWN && self.recent_ns <= SHORT_NS
    }
}

/// The paces of all callables.
#[derive(Default)]
pub(super) struct Paces {
    known: NumberMap<Digest, Pace>,
    /// The one that was asked for last: runs of one callable ask for no other.
    last: Option<(Digest, Pace)>,
    /// Where the last short task went.
    lean: Option<EndpointId>,
}

impl Paces {
    fn of(&mut self, digest: &Digest) -> &mut Pace {
        if self.last.is_none_or(|(last, _)| last != *digest) {
            if let Some((left, pace)) = self.last.take() {
                if self.known.len() >= CALLABLES_MAX {
                    self.known.clear();
                }
                self.known.insert(left, pace);
            }
            let pace = self.known.get(digest).copied().unwrap_or_default();
            self.last = Some((*digest, pace));
        }
        &mut self
            .last
            .get_or_insert_with(|| (*digest, Pace::default()))
            .1
    }
}

impl Core {
    /// Where a task of the callable is to go if it is ready now, and there is room.
    pub(super) fn leaning(&mut self, digest: &Digest) -> Option<EndpointId> {
        if self.endpoints.len() < 2 {
            return None;
        }
        let pace = *self.paces.of(digest);
        let id = self.paces.lean.filter(|_| pace.is_short())?;
        let slot = self.slot(id)?;
        let queued_ns = (slot.queue.len() as u64).saturating_mul(pace.recent_ns.max(1));
        let most_ns = match slot.info.session {
            Some(_) => QUEUED_FAR_NS,
            None => QUEUED_NS,
        };
        let fits = slot.lost.is_none() && slot.unhurried.is_empty() && queued_ns <= most_ns;
        fits.then_some(id)
    }

    /// A task was sent to an endpoint.
    pub(super) fn note_pace(&mut self, task: TaskId, endpoint: EndpointId, ticket: Ticket) {
        if self.endpoints.len() < 2 {
            return;
        }
        let digest = self.records.get(&task).and_then(digest_of);
        let short = digest.is_some_and(|digest| self.paces.of(&digest).is_short());
        if short {
            self.paces.lean = Some(endpoint);
        } else if let Some(slot) = self.endpoints.at_work(endpoint) {
            slot.unhurried.push_back(ticket);
        }
    }

    /// A task has run for so long.
    pub(super) fn learn_pace(&mut self, task: TaskId, took_ns: u64) {
        if self.endpoints.len() < 2 {
            return;
        }
        if let Some(digest) = self.records.get(&task).and_then(digest_of) {
            self.paces.of(&digest).end(took_ns);
        }
    }
}

impl EndpointSlot {
    /// A task has left the endpoint.
    pub(super) fn forget_pace(&mut self, ticket: Ticket) {
        if self.unhurried.front() == Some(&ticket) {
            self.unhurried.pop_front();
        } else if !self.unhurried.is_empty() {
            self.unhurried.retain(|queued| *queued != ticket);
        }
    }
}

fn digest_of(record: &TaskRecord) -> Option<Digest> {
    match &record.work {
        Work::Call { callable, .. } => Some(callable.digest),
        Work::Copy(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callable_is_short_once_enough_is_known_and_not_after_a_long_task() {
        let mut paces = Paces::default();
        let (short, other) = (Digest([1; 32]), Digest([2; 32]));
        for _ in 0..KNOWN {
            assert!(!paces.of(&short).is_short());
            paces.of(&short).end(1_000);
            paces.of(&other).end(SHORT_NS + 1);
        }
        assert!(paces.of(&short).is_short() && !paces.of(&other).is_short());
        paces.of(&short).end(1_000_000);
        assert!(!paces.of(&short).is_short());
        let until = (1..1000).find(|_| {
            paces.of(&short).end(1_000);
            paces.of(&short).is_short()
        });
        assert!(until.is_some_and(|count| count > 30), "{until:?}");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut paces = Paces::default();
        for n in 0..3 * CALLABLES_MAX as u64 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            paces.of(&Digest(digest)).end(1);
        }
        assert!(paces.known.len() <= CALLABLES_MAX);
    }
}
