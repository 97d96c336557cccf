//! Registration: which callable may run where. On several workers it is all or nothing (design §8, R-098, R-099).

use std::time::Instant;

use super::reach::Registration;
use super::{CallableHandle, RegisterOptions, Worker, WorkerState};
use crate::callable::Callable;
use crate::engine::{Core, Engine};
use crate::error::Error;
use crate::graph::EndpointId;
use crate::registration::{Key, PairState};

impl Worker {
    /// Makes a callable known to workers; all or nothing on several. Before `init()` it is carried out by `init()`.
    ///
    /// Where an earlier registration or removal of the same callable was not confirmed, its removal is proven first.
    ///
    /// # Errors
    /// [`Error::Registration`] with every worker's reason (an import that fails comes with its traceback),
    /// [`Error::Argument`] for unknown ids or a callable that cannot go there, [`Error::Lifecycle`] after `close()`,
    /// [`Error::Interrupted`]; it is undone then, without waiting.
    pub fn register(
        &self,
        callable: Callable,
        mut options: RegisterOptions,
    ) -> Result<CallableHandle, Error> {
        if let Some(ids) = &mut options.workers {
            // A worker named twice would be asked to commit twice.
            let mut seen = std::collections::HashSet::new();
            ids.retain(|id| seen.insert(*id));
        }
        self.check_reach(&callable, &options)?;
        let handle = CallableHandle::new(callable, self.0.uid, options.inner);
        let registration = Registration {
            handle: handle.clone(),
            options,
        };
        {
            let mut life = self.0.life.lock();
            if life.state == WorkerState::New {
                life.registrations.push(registration);
                self.prepare_early(&mut life);
                return Ok(handle);
            }
        }
        let engine = self.engine("register a callable with")?;
        let key = registration.key();
        let _turn = engine.take_turn(key)?;
        engine.wait_for_positions()?;
        let targets = |core: &Core| {
            let targets = core.registration_targets(&registration)?;
            // No session would have imported it, and one that cannot would not come back.
            let lost = targets
                .is_empty()
                .then(|| core.all_lost(&registration))
                .flatten();
            lost.map_or(Ok(targets), Err)
        };
        // Entered in the list under the lock that made it callable: a worker that comes up finds it there, or is found here.
        let enter = || self.0.life.lock().registrations.push(registration.clone());
        engine.register_at(&handle.callable, key, None, targets, enter)?;
        Ok(handle)
    }

    /// Removes a callable everywhere, after the tasks that name it and were submitted before have ended. New ones are refused at
    /// once. Interrupted while it waits for tasks, it has done nothing; a removal that was not confirmed is tried again by
    /// another call, and by the next registration of the callable.
    ///
    /// # Errors
    /// [`Error::Handle`] for a foreign or unregistered handle, [`Error::Removal`] naming workers that did not confirm,
    /// [`Error::Interrupted`].
    pub fn unregister(&self, handle: &CallableHandle) -> Result<(), Error> {
        handle.check_owner(self.0.uid)?;
        handle.leave()?;
        {
            let mut life = self.0.life.lock();
            if life.state == WorkerState::New {
                life.registrations.retain(|r| !r.handle.is_same(handle));
                handle.set_gone();
                return Ok(());
            }
        }
        let engine = self
            .engine("unregister a callable from")
            .inspect_err(|_| handle.stay())?;
        let key = Key::new(&handle.callable, handle.inner);
        let _turn = engine.take_turn(key).inspect_err(|_| handle.stay())?;
        // Another thread may have done it meanwhile.
        if handle.is_gone() {
            return handle.leave();
        }
        let (taken, endpoints) = self.retire(&engine, handle, key);
        if key.is_for_tasks() {
            if let Err(interrupted) = engine.wait_unnamed(&key.digest) {
                self.restore(&engine, handle, key, taken, &endpoints);
                return Err(interrupted);
            }
        }
        let unconfirmed = engine.remove_at(key, &endpoints)?;
        if unconfirmed.is_empty() {
            handle.set_gone();
            return Ok(());
        }
        let reasons: Vec<String> = unconfirmed.iter().map(ToString::to_string).collect();
        Err(Error::Removal {
            callable: handle.name().to_owned(),
            message: reasons.join("; "),
        })
    }

    /// Takes a handle's registration out of the list, and the callable away from the workers where no other handle holds it.
    fn retire(
        &self,
        engine: &Engine,
        handle: &CallableHandle,
        key: Key,
    ) -> (Option<Registration>, Vec<EndpointId>) {
        let mut core = engine.core.lock();
        let mut life = self.0.life.lock();
        let place = life
            .registrations
            .iter()
            .position(|r| r.handle.is_same(handle));
        let taken = place.map(|place| life.registrations.remove(place));
        let others = life.registrations.iter().filter(|r| r.key() == key);
        let held: Vec<EndpointId> = others
            .filter_map(|r| core.registration_targets(r).ok())
            .flatten()
            .collect();
        drop(life);
        let mut endpoints = Vec::new();
        for (slot, id) in core.endpoints.iter_mut().zip(0..) {
            let state = slot.pairs.state(&key);
            let stays = state == PairState::Live && held.contains(&EndpointId(id));
            if state != PairState::Absent && !stays {
                slot.pairs.retire(&key);
                endpoints.push(EndpointId(id));
            }
        }
        (taken, endpoints)
    }

    /// Undoes [`Self::retire`].
    fn restore(
        &self,
        engine: &Engine,
        handle: &CallableHandle,
        key: Key,
        taken: Option<Registration>,
        endpoints: &[EndpointId],
    ) {
        let Some(taken) = taken else { return };
        let mut core = engine.core.lock();
        for endpoint in endpoints {
            if let Some(slot) = core.slot_mut(*endpoint) {
                slot.pairs.restore(&key);
            }
        }
        self.0.life.lock().registrations.push(taken);
        handle.stay();
    }

    /// Brings a worker that has just come up to what is registered: each registration that includes it is tried, and what came
    /// with the worker and was unregistered meanwhile is removed. Returns what failed; those callables are not eligible there.
    ///
    /// A `register()` in another thread does not miss it: the endpoint is to be in service before this is called.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Lifecycle`] when the worker closes.
    pub(crate) fn install_registrations(
        &self,
        engine: &Engine,
        endpoint: EndpointId,
        deadline: Option<Instant>,
    ) -> Result<Vec<Error>, Error> {
        let mut keys: Vec<Key> = Vec::new();
        {
            let core = engine.core.lock();
            let life = self.0.life.lock();
            let listed = life.registrations.iter().map(Registration::key);
            let there = core.slot(endpoint).map(|slot| slot.pairs.keys().copied());
            for key in listed.chain(there.into_iter().flatten()) {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        let mut failed = Vec::new();
        for key in keys {
            match self.install_one(engine, endpoint, key, deadline) {
                Ok(unconfirmed) => failed.extend(unconfirmed),
                Err(error @ (Error::Interrupted | Error::Lifecycle { .. })) => return Err(error),
                Err(error) => failed.push(error),
            }
        }
        Ok(failed)
    }

    fn install_one(
        &self,
        engine: &Engine,
        endpoint: EndpointId,
        key: Key,
        deadline: Option<Instant>,
    ) -> Result<Vec<Error>, Error> {
        let _turn = engine.take_turn(key)?;
        let wanted = {
            let core = engine.core.lock();
            let life = self.0.life.lock();
            let of_key = life.registrations.iter().filter(|r| r.key() == key);
            let mut wanted = of_key.filter(|r| {
                let targets = core.registration_targets(r);
                targets.is_ok_and(|targets| targets.contains(&endpoint))
            });
            wanted.next().map(|r| r.handle.callable.clone())
        };
        match wanted {
            Some(callable) => {
                let targets = |_: &Core| Ok(vec![endpoint]);
                engine.register_at(&callable, key, deadline, targets, || ())?;
                Ok(Vec::new())
            }
            None if engine.core.lock().pair(endpoint, &key) == PairState::Absent => Ok(Vec::new()),
            None => engine.remove_at(key, &[endpoint]),
        }
    }

    /// The handle of what is registered under a hashid or an import path.
    ///
    /// # Errors
    /// [`Error::Handle`] naming what is registered.
    pub fn find_handle(&self, key: &str) -> Result<CallableHandle, Error> {
        let life = self.0.life.lock();
        let bare = key.strip_prefix("sha256:").unwrap_or(key);
        let named = life.registrations.iter().filter(|registration| {
            let handle = &registration.handle;
            handle.name() == key || handle.hashid().strip_prefix("sha256:") == Some(bare)
        });
        // A middle level may have it twice: for itself, and for those below, where alone an inner one can be submitted.
        let found = named.min_by_key(|registration| registration.options.inner);
        found
            .map(|registration| registration.handle.clone())
            .ok_or_else(|| {
                let names: Vec<&str> = life.registrations.iter().map(|r| r.handle.name()).collect();
                Error::handle(
                    "callable",
                    format!(
                        "{key} is not registered here; registered are [{}]",
                        names.join(", ")
                    ),
                )
            })
    }
}
