//! Carries registrations out: controls about pairs, their answers, and one operation at a time on each callable.

use std::sync::Arc;
use std::time::Instant;

use echelon_wire::callable::Digest;

use super::control::Asked;
use super::record::{ControlCell, Flight, Work};
use super::{Core, Engine, WaitEnd};
use crate::callable::Callable;
use crate::endpoint::{ControlFailure, ControlReply, ControlRequest, RegisterStep, Ticket};
use crate::error::Error;
use crate::graph::EndpointId;
use crate::registration::{Answer, Doubt, Key, PairState, Step, Transaction};

/// The right to change what is registered under a key, held by one thread at a time.
pub(crate) struct Turn<'a> {
    engine: &'a Engine,
    key: Key,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.engine.core.lock().turns.remove(&self.key);
        self.engine.wake();
    }
}

impl Engine {
    /// Waits until nobody else registers or removes what `key` names.
    ///
    /// # Errors
    /// `Interrupted`, `Lifecycle` when the worker closes.
    pub(crate) fn take_turn(&self, key: Key) -> Result<Turn<'_>, Error> {
        let taken = self.wait_until(None, |core| match core.check_open("register with") {
            Ok(()) => core.turns.insert(key).then_some(Ok(())),
            Err(closing) => Some(Err(closing)),
        });
        taken.map_err(WaitEnd::into_error)??;
        Ok(Turn { engine: self, key })
    }

    /// Registers at the workers that `targets` names, all or nothing, and again at those that it names afterwards: a worker that
    /// came up meanwhile. When it names no others, all are published and `published` is called, under one lock. Without a
    /// `deadline` the wait for a worker that is inside a task lasts as long as the task, or until the interrupt.
    ///
    /// # Errors
    /// `Registration` with each worker's reason, after what was done has been undone; `Interrupted`.
    pub(crate) fn register_at(
        &self,
        callable: &Callable,
        key: Key,
        deadline: Option<Instant>,
        targets: impl Fn(&Core) -> Result<Vec<EndpointId>, Error>,
        published: impl FnOnce(),
    ) -> Result<(), Error> {
        let mut transaction = Transaction::default();
        loop {
            {
                let mut core = self.core.lock();
                core.check_open("register with")?;
                let mut targets = targets(&core)?;
                // A position that only the next run fills again gets it then.
                let later = core.take_given_up(&mut targets);
                let states = targets.into_iter().map(|id| (id, core.pair(id, &key)));
                let states: Vec<(EndpointId, PairState)> = states.collect();
                if !transaction.extend(&states) {
                    for endpoint in later {
                        core.endpoints[endpoint.0 as usize]
                            .pairs
                            .brought(key, callable);
                    }
                    core.publish(transaction.members(), key);
                    published();
                    return Ok(());
                }
            }
            self.carry(&mut transaction, callable, key, deadline)?;
        }
    }

    /// Carries a transaction out until it has no steps left.
    fn carry(
        &self,
        transaction: &mut Transaction,
        callable: &Callable,
        key: Key,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let mut reasons = Vec::new();
        let mut interrupted = false;
        loop {
            let steps = transaction.steps();
            if steps.is_empty() {
                break;
            }
            let cells: Vec<_> = {
                let mut core = self.core.lock();
                let send = |&(id, step): &(EndpointId, Step)| {
                    core.send_step(id, Some(callable), key, step)
                };
                steps.iter().map(send).collect()
            };
            let mut waits = transaction.waits();
            let mut answers = Vec::with_capacity(steps.len());
            for (&(endpoint, step), cell) in steps.iter().zip(cells) {
                let (answer, error) = self.await_step(endpoint, step, cell, waits, deadline);
                // Whoever was told to stop waits for no other worker either.
                waits &= !matches!(error, Some(Error::Interrupted));
                interrupted |= matches!(error, Some(Error::Interrupted));
                if let Some(error) = error {
                    if transaction.is_undoing() {
                        tracing::warn!(%error, callable = %callable.name, "undoing a registration failed; no task goes there");
                    } else if step == Step::Remove {
                        reasons.push(format!(
                            "{error}; an earlier registration must be gone there first, try again"
                        ));
                    } else {
                        reasons.push(error.to_string());
                    }
                }
                answers.push(answer);
            }
            transaction.answered(&answers);
        }
        if interrupted {
            return Err(Error::Interrupted);
        }
        if transaction.succeeded() {
            return Ok(());
        }
        Err(Error::Registration {
            callable: callable.name.to_string(),
            message: reasons.join("; "),
        })
    }

    fn await_step(
        &self,
        endpoint: EndpointId,
        step: Step,
        cell: Result<ControlCell, Error>,
        waits: bool,
        deadline: Option<Instant>,
    ) -> (Answer, Option<Error>) {
        let what = match step {
            Step::Prepare | Step::Commit => "the registration",
            Step::Abort | Step::Remove => "the removal",
        };
        let waited = match cell {
            Ok(_) if !waits => return (Answer::Silent, None),
            Ok(cell) => {
                let asked = Asked {
                    endpoint,
                    // A registration makes nothing that would be undone by its number.
                    session: None,
                    cell,
                };
                self.await_control(asked, what, deadline)
            }
            Err(error) => Err(error),
        };
        match waited {
            Ok(_) => (Answer::Done, None),
            Err(error @ Error::EndpointLost { .. }) => (Answer::Lost, Some(error)),
            Err(error @ (Error::Interrupted | Error::Timeout { .. })) => {
                (Answer::Silent, Some(error))
            }
            Err(error) => (Answer::Refused, Some(error)),
        }
    }

    /// Removes what `key` names from these workers: each is tried. With a lost one it is gone. Returns what did not confirm.
    ///
    /// # Errors
    /// `Interrupted`: the removals are on their way, and what they come to is taken in when they are answered.
    pub(crate) fn remove_at(
        &self,
        key: Key,
        endpoints: &[EndpointId],
    ) -> Result<Vec<Error>, Error> {
        let cells: Vec<_> = {
            let mut core = self.core.lock();
            let send = |id: &EndpointId| core.send_step(*id, None, key, Step::Remove);
            endpoints.iter().map(send).collect()
        };
        let mut unconfirmed = Vec::new();
        for (endpoint, cell) in endpoints.iter().zip(cells) {
            match self.await_step(*endpoint, Step::Remove, cell, true, None) {
                (_, Some(Error::Interrupted)) => return Err(Error::Interrupted),
                (Answer::Done | Answer::Lost, _) => {}
                (_, error) => unconfirmed.extend(error),
            }
        }
        Ok(unconfirmed)
    }

    /// Waits until the calls planned so far that name a callable have ended.
    ///
    /// # Errors
    /// `Interrupted`.
    pub(crate) fn wait_unnamed(&self, digest: &Digest) -> Result<(), Error> {
        let before = self.core.lock().next_plan;
        let unnamed = |core: &mut Core| (!core.names_callable(digest, before)).then_some(());
        self.wait_until(None, unnamed).map_err(WaitEnd::into_error)
    }
}

impl Core {
    pub(crate) fn pair(&self, endpoint: EndpointId, key: &Key) -> PairState {
        let Some(slot) = self.slot(endpoint) else {
            return PairState::Absent;
        };
        if key.is_for_tasks() && slot.refused(&key.digest).is_some() {
            return PairState::Unproven(Doubt::Registration);
        }
        slot.pairs.state(key)
    }

    /// Takes out the positions that are empty until the next run.
    fn take_given_up(&self, targets: &mut Vec<EndpointId>) -> Vec<EndpointId> {
        let given_up = |id: &EndpointId| {
            let slot = self.slot(*id);
            slot.is_some_and(|slot| slot.lost.is_some() && slot.succession.is_some())
        };
        let (later, now) = targets.iter().partition(|id| given_up(id));
        *targets = now;
        later
    }

    /// All of them at once: from now on tasks may go there.
    fn publish(&mut self, members: impl Iterator<Item = EndpointId>, key: Key) {
        for endpoint in members {
            let Some(slot) = self.slot_mut(endpoint) else {
                continue;
            };
            slot.pairs.publish(&key);
            if let Some(succession) = slot.succession.as_mut().filter(|_| key.is_for_tasks()) {
                succession.refused.remove(&key.digest);
            }
        }
    }

    /// Sends a control about a pair. Its answer changes the pair, whether or not somebody still waits for it.
    fn send_step(
        &mut self,
        endpoint: EndpointId,
        callable: Option<&Callable>,
        key: Key,
        step: Step,
    ) -> Result<ControlCell, Error> {
        let registry = key.registry;
        let wire = match step {
            Step::Prepare => Some(RegisterStep::Prepare),
            Step::Commit => Some(RegisterStep::Commit),
            Step::Abort => Some(RegisterStep::Abort),
            Step::Remove => None,
        };
        let request = match (wire, callable) {
            (Some(step), Some(callable)) => ControlRequest::Register {
                step,
                callable: callable.clone(),
                registry,
            },
            _ => ControlRequest::Unregister {
                digest: key.digest,
                kind: key.kind,
                registry,
            },
        };
        let posted = self.post(endpoint, request);
        if let Some(slot) = self.slot_mut(endpoint) {
            match &posted {
                Ok(ticket) => slot.pairs.sent(key, step, *ticket, callable),
                // With the worker went what it had; a fresh one is not to get it.
                Err(Error::EndpointLost { .. }) => slot.pairs.forget(&key),
                Err(_) => {}
            }
        }
        let ticket = posted?;
        let cell = ControlCell::default();
        let flight = Flight::Registration {
            key,
            endpoint,
            cell: Arc::clone(&cell),
        };
        self.flights.insert(ticket, flight);
        Ok(cell)
    }

    pub(super) fn pair_answered(
        &mut self,
        endpoint: EndpointId,
        key: &Key,
        ticket: Ticket,
        result: &Result<ControlReply, ControlFailure>,
    ) {
        if let Some(slot) = self.slot_mut(endpoint) {
            slot.pairs.answered(key, ticket, result.is_ok());
        }
    }

    /// A call is planned: what it names stays until it has ended, or was not submitted after all.
    pub(super) fn begin_plan(&mut self, digest: Digest) -> u64 {
        let number = self.next_plan;
        self.next_plan += 1;
        self.planned.insert(number, digest);
        number
    }

    /// The number of a call that becomes a task under the same lock.
    pub(super) fn plan_number(&mut self) -> u64 {
        self.next_plan += 1;
        self.next_plan - 1
    }

    /// A plan has become a task, or nothing.
    pub(super) fn end_plan(&mut self, number: u64) -> u64 {
        self.planned.remove(&number);
        number
    }

    /// True while a call that names the callable and was planned before has not ended.
    fn names_callable(&self, digest: &Digest, before: u64) -> bool {
        let planned = self.planned.iter();
        let mut planned = planned.filter(|(number, named)| **number < before && *named == digest);
        planned.next().is_some() || self.records.values().any(|record| {
            let named =
                matches!(&record.work, Work::Call { callable, .. } if callable.digest == *digest);
            named && record.plan < before
        })
    }
}
