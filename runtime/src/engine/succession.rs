//! A fresh endpoint in the place of one that ended: within the run, outside the lock, and not for ever (decision 0011).
//!
//! The position keeps its id; the scheduler holds back what can run nowhere else until the fresh endpoint has every callable that
//! the old one had. Starting a process blocks, so the driver thread does it; installing is carried out by whoever drives.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use echelon_wire::callable::{Digest, RegistryTarget};

use super::record::Flight;
use super::{Core, Engine, WaitEnd};
use crate::endpoint::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, RegisterStep, Ticket,
};
use crate::error::Error;
use crate::graph::{EndpointId, Event};

/// Ends in a row, without a task that was answered in between, after which a position stays empty until the next run.
pub(crate) const MAX_ENDS_IN_A_ROW: u32 = 3;

/// Starts a fresh endpoint. May block; called without the engine's lock.
pub(crate) type Recipe = Arc<dyn Fn() -> Result<Box<dyn Endpoint>, Error> + Send + Sync>;

/// What follows an end at one position.
pub(crate) struct Succession {
    recipe: Recipe,
    /// Ends since the last answered task, apart from those that we brought about.
    ends: u32,
    /// The next end is our doing and says nothing against the position.
    pub(super) expected: bool,
    /// Nothing is sent there: a fresh endpoint is on its way.
    pub(super) down: bool,
    /// Answers that must come before tasks may go there.
    installing: HashSet<Ticket>,
    /// What could not be installed on the fresh endpoint, and why.
    pub(super) refused: HashMap<Digest, String>,
}

impl Succession {
    fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            ends: 0,
            expected: false,
            down: false,
            installing: HashSet::new(),
            refused: HashMap::new(),
        }
    }

    /// A task was answered there: the position is worth another start.
    pub(super) fn proved(&mut self) {
        self.ends = 0;
    }

    /// Counts an end; says whether another start is due.
    fn ended(&mut self) -> bool {
        self.installing.clear();
        self.refused.clear();
        if !std::mem::take(&mut self.expected) {
            self.ends += 1;
        }
        self.ends < MAX_ENDS_IN_A_ROW
    }
}

/// What waits for the driver thread.
#[derive(Default)]
pub(super) struct Errands {
    starts: Vec<EndpointId>,
    /// To be dropped without the lock.
    retired: Vec<Box<dyn Endpoint>>,
}

impl Errands {
    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty() && self.retired.is_empty()
    }
}

impl Core {
    /// From now on a fresh endpoint takes this position whenever the one there ends.
    pub(crate) fn give_successors(&mut self, endpoint: EndpointId, recipe: Recipe) {
        if let Some(slot) = self.slot_mut(endpoint) {
            slot.succession = Some(Succession::new(recipe));
        }
    }

    /// Ends what runs at a position by force; a fresh endpoint follows where that can be.
    pub(crate) fn kill(&mut self, endpoint: EndpointId, reason: &str) {
        if let Some(slot) = self.slot_mut(endpoint) {
            if let Some(succession) = &mut slot.succession {
                succession.expected = !succession.down;
            }
            slot.endpoint.kill(reason);
        }
    }

    /// A run begins: what was given up in an earlier one gets another chance.
    pub(crate) fn revive(&mut self) {
        if self.torn {
            return;
        }
        for index in 0..self.endpoints.len() {
            let slot = &mut self.endpoints[index];
            let Some(succession) = slot.succession.as_mut().filter(|_| slot.lost.is_some()) else {
                continue;
            };
            succession.ends = 0;
            slot.lost = None;
            // Ids were given out as u32.
            self.order_start(EndpointId(index as u32));
        }
    }

    /// An endpoint has ended for `reason`. `None` when a fresh one follows; else why none does.
    pub(super) fn give_up_position(
        &mut self,
        endpoint: EndpointId,
        reason: &str,
    ) -> Option<String> {
        let closed = self.closed;
        let Some(slot) = self.slot_mut(endpoint) else {
            return Some(reason.to_owned());
        };
        let Some(succession) = slot.succession.as_mut().filter(|_| !closed) else {
            return Some(reason.to_owned());
        };
        if succession.ended() {
            self.order_start(endpoint);
            return None;
        }
        succession.down = false;
        let ended = self.vacate(endpoint, "it ended too often");
        self.errands.retired.extend(ended);
        Some(format!(
            "{reason}; that was its end number {MAX_ENDS_IN_A_ROW} without a task answered in between, so it is started again only by the next run"
        ))
    }

    /// The position takes nothing until the driver thread has started a fresh endpoint for it.
    fn order_start(&mut self, endpoint: EndpointId) {
        if let Some(succession) = self.slot_mut(endpoint).and_then(|s| s.succession.as_mut()) {
            succession.down = true;
        }
        let ended = self.vacate(endpoint, "a fresh process is being started in its place");
        self.errands.retired.extend(ended);
        self.errands.starts.push(endpoint);
        self.feed(Event::EndpointDown { endpoint });
    }

    /// Takes what was started into service, or counts the failure like an end. Returns what is not wanted any more, to be ended
    /// without the lock.
    fn started(
        &mut self,
        endpoint: EndpointId,
        started: Result<Box<dyn Endpoint>, Error>,
    ) -> Option<Box<dyn Endpoint>> {
        match started {
            Ok(fresh) if self.closed => Some(fresh),
            Ok(fresh) => {
                self.put_in_position(endpoint, fresh);
                None
            }
            Err(error) => {
                let slot = self.slot(endpoint);
                tracing::error!(worker = slot.map(|s| &*s.info.name), %error, "a lost worker could not be started again");
                self.on_lost(
                    endpoint,
                    &format!("it could not be started again: {error}"),
                    &[],
                );
                None
            }
        }
    }

    /// Puts a fresh endpoint into a position that is down and gives it the callables that the old one had.
    pub(crate) fn put_in_position(&mut self, endpoint: EndpointId, fresh: Box<dyn Endpoint>) {
        let Some(slot) = self.slot_mut(endpoint) else {
            return;
        };
        slot.take_over(fresh);
        slot.lost = None;
        for callable in slot.pairs.inherited() {
            for step in [RegisterStep::Prepare, RegisterStep::Commit] {
                let ticket = self.new_ticket();
                let digest = callable.digest;
                let request = ControlRequest::Register {
                    step,
                    callable: callable.clone(),
                    registry: RegistryTarget::RemoteTaskDispatcher,
                };
                let Some(slot) = self.slot_mut(endpoint) else {
                    return;
                };
                // An endpoint that is gone already says so by its event.
                if slot.endpoint.control(ticket, request).is_ok() {
                    if let Some(succession) = &mut slot.succession {
                        succession.installing.insert(ticket);
                    }
                    self.flights
                        .insert(ticket, Flight::Install { digest, endpoint });
                }
            }
        }
        self.open_if_installed(endpoint);
    }

    /// One step of installing was answered.
    pub(super) fn install_done(
        &mut self,
        endpoint: EndpointId,
        ticket: Ticket,
        digest: Digest,
        result: Result<ControlReply, ControlFailure>,
    ) {
        let Some(slot) = self.slot_mut(endpoint) else {
            return;
        };
        let name = slot.info.name.clone();
        let Some(succession) = &mut slot.succession else {
            return;
        };
        succession.installing.remove(&ticket);
        if let Err(failure) = result {
            tracing::error!(worker = %name, %failure, "a callable could not be installed on a fresh worker");
            let text = format!("it could not be installed again on the fresh {name}: {failure}");
            succession.refused.entry(digest).or_insert(text);
        }
        self.open_if_installed(endpoint);
    }

    fn open_if_installed(&mut self, endpoint: EndpointId) {
        let Some(slot) = self.slot_mut(endpoint) else {
            return;
        };
        let added = slot.added(endpoint);
        if let Some(succession) = &mut slot.succession {
            if !succession.installing.is_empty() {
                return;
            }
            succession.down = false;
        }
        self.feed(added);
    }

    /// No position is empty for a while: each is up, or lost.
    pub(crate) fn all_positions_settled(&self) -> bool {
        let down = |slot: &super::EndpointSlot| slot.succession.as_ref().is_some_and(|s| s.down);
        !self.endpoints.iter().any(down)
    }

    pub(crate) fn has_errands(&self) -> bool {
        !self.errands.is_empty()
    }
}

impl Engine {
    /// Waits until no fresh endpoint is on its way: what is registered then goes to each that there is. Bounded by the time
    /// that a start may take.
    pub(crate) fn wait_for_positions(&self) -> Result<(), Error> {
        self.wait_until(None, |core| core.all_positions_settled().then_some(()))
            .map_err(WaitEnd::into_error)
    }

    /// What must not be done under the lock: starts fresh endpoints, drops ended ones. Called by the driver thread.
    pub(super) fn run_errands(&self) {
        let starts: Vec<_> = {
            let mut core = self.core.lock();
            let Errands { starts, retired } = std::mem::take(&mut core.errands);
            let recipe = |id: EndpointId| {
                let succession = core.slot(id)?.succession.as_ref()?;
                Some((id, Arc::clone(&succession.recipe)))
            };
            let starts = starts.into_iter().filter_map(recipe).collect();
            drop(core);
            // What crashes again and again must not hold the descriptors of all that went before.
            drop(retired);
            starts
        };
        for (id, recipe) in starts {
            let started = recipe();
            let unwanted = self.core.lock().started(id, started);
            drop(unwanted);
            self.bell.ring();
        }
    }
}
