//! A fresh session in the place of a remote worker that was lost (design §6). The place keeps its id and name; what the old session held
//! is gone, and its handles say so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;

use super::{Child, Life, Worker, WorkerState};
use crate::endpoint::Endpoint;
use crate::engine::Engine;
use crate::error::Error;
use crate::graph::EndpointId;
use crate::remote::RemoteEndpoint;

/// The right to reopen one worker, held by one thread at a time; `close()` calls it off and waits for its end.
struct Turn<'a> {
    of: &'a Worker,
    worker: i32,
    called_off: Arc<AtomicBool>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let inner = &self.of.0;
        inner.life.lock().reopening.remove(&self.worker);
        inner.changed.notify_all();
    }
}

impl Worker {
    /// Starts a fresh session for a remote worker that was lost, under the start-up budget. It has the same id and name, and every
    /// callable registered for it, its inner workers' too. Buffers, imports and exports of the old session are gone: their handles are
    /// refused, and freeing them succeeds. Other workers go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id that is unknown or local; [`Error::Lifecycle`] when the worker is not lost, when another thread
    /// reopens it, or when this `Worker` closes; [`Error::Startup`], [`Error::Registration`], [`Error::Interrupted`]: it stays lost, and
    /// may be reopened again.
    pub fn reopen(&self, worker: i32) -> Result<(), Error> {
        let engine = self.engine("reopen a session of")?;
        let id = engine.core.lock().endpoint_of(worker)?;
        let turn = self.take_turn(worker)?;
        let ended = {
            let mut core = engine.core.lock();
            // The loss may be known to its lane and not yet to us.
            core.pump();
            core.check_open("reopen a session of")?;
            let slot = core.slot(id).filter(|slot| slot.lost.is_some());
            if slot.is_none() {
                return Err(refused(
                    worker,
                    "up",
                    "its session lives; reopen() is for one that was lost",
                ));
            }
            core.vacate(id, "its session is being reopened")
        };
        // Its threads are joined here, without a lock.
        drop(ended);
        let deadline = self.startup_deadline();
        self.start_again(&engine, &turn, id, deadline)?;
        let failed = match self.install_registrations(&engine, id, Some(deadline)) {
            Ok(failed) => failed.into_iter().next(),
            Err(error) => Some(error),
        };
        let Some(error) = failed else { return Ok(()) };
        let mut core = engine.core.lock();
        core.kill(
            id,
            &format!("it was reopened and could not be used: {error}"),
        );
        core.pump();
        Err(error)
    }

    /// Calls every reopening off and waits for its end. Each notices within 50 ms.
    pub(super) fn call_off_reopening(
        &self,
        life: &mut MutexGuard<'_, Life>,
        deadline: Instant,
    ) -> Result<(), Error> {
        for called_off in life.reopening.values() {
            called_off.store(true, Ordering::Relaxed);
        }
        while !life.reopening.is_empty() {
            if self.0.changed.wait_until(life, deadline).timed_out() {
                return Err(Error::Close {
                    survivors: vec!["reopen(), called off, still ends what it started".into()],
                });
            }
        }
        Ok(())
    }

    fn take_turn(&self, worker: i32) -> Result<Turn<'_>, Error> {
        let mut life = self.0.life.lock();
        if life.state != WorkerState::Ready {
            return Err(Error::Lifecycle {
                state: life.state.to_string(),
                action: "reopen a session of",
                hint: "make a new Worker".into(),
            });
        }
        let child = usize::try_from(worker)
            .ok()
            .and_then(|index| life.children.get(index));
        if !matches!(child, Some(Child::Remote(_))) {
            return Err(Error::argument(
                "worker_id",
                format!("worker {worker} is local; reopen() is for remote workers"),
            ));
        }
        if life.reopening.contains_key(&worker) {
            return Err(refused(
                worker,
                "being reopened",
                "another thread is at it; wait for that call",
            ));
        }
        let called_off = Arc::new(AtomicBool::new(false));
        life.reopening.insert(worker, Arc::clone(&called_off));
        Ok(Turn {
            of: self,
            worker,
            called_off,
        })
    }

    /// Starts the session and takes it into service.
    fn start_again(
        &self,
        engine: &Engine,
        turn: &Turn<'_>,
        id: EndpointId,
        deadline: Instant,
    ) -> Result<(), Error> {
        let (children, registrations) = {
            let life = self.0.life.lock();
            (life.children.clone(), life.registrations.clone())
        };
        let wanted = self.wanted(&children, &registrations, |id| id == turn.worker)?;
        let called_off = Arc::clone(&turn.called_off);
        let started = self.start_sessions(engine, wanted, deadline, called_off, || Ok(()));
        let started = started.map_err(|error| self.unless_closing(error))?;
        let (_, endpoint, _) = started
            .into_iter()
            .next()
            .ok_or_else(|| Error::argument("worker_id", "no such remote worker"))?;
        if turn.called_off.load(Ordering::Relaxed) {
            self.end_again(endpoint);
            return Err(self.unless_closing(Error::Interrupted));
        }
        let mut core = engine.core.lock();
        if let Err(closing) = core.check_open("reopen a session of") {
            drop(core);
            self.end_again(endpoint);
            return Err(closing);
        }
        // From now on tasks may go there, as far as their callables came with the session. What was registered or removed meanwhile
        // is the business of `install_registrations`.
        core.take_what_came(&children, &registrations, |worker| worker == turn.worker);
        core.follow(id, Box::new(endpoint));
        Ok(())
    }

    fn end_again(&self, mut endpoint: RemoteEndpoint) {
        endpoint.begin_close();
        if let Err(survivor) = endpoint.finish_close(Instant::now() + self.0.settings.close_timeout)
        {
            tracing::error!(survivor, "could not be ended after it was started again");
        }
    }

    fn unless_closing(&self, error: Error) -> Error {
        match self.state() {
            WorkerState::Ready => error,
            state => Error::Lifecycle {
                state: state.to_string(),
                action: "reopen a session of",
                hint: "make a new Worker".into(),
            },
        }
    }
}

fn refused(worker: i32, state: &str, hint: &str) -> Error {
    Error::Lifecycle {
        state: state.to_owned(),
        action: "reopen",
        hint: format!("worker {worker}: {hint}"),
    }
}
