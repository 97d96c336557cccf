//! `init()`: one transaction under one deadline. Whatever fails, everything that was started is ended again and the first cause
//! is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use super::chips::chips_of_manifest;
use super::reach::Registration;
use super::{Child, Live, Worker, WorkerState};
use crate::deadline::to_monotonic_ns;
use crate::endpoint::Endpoint;
use crate::engine::{Core, Driver, EndpointRole, Engine};
use crate::error::{Error, Interrupt, Interrupted};
use crate::failpoint::{hit, hit_at};
use crate::mailbox::Bell;
use crate::memory::Arena;
use crate::process::Keeper;
use crate::trace::TraceLog;

impl Worker {
    /// Starts everything: sub workers, local children, remote sessions; registers every callable. READY when it returns.
    ///
    /// # Errors
    /// [`Error::Startup`] naming the worker and the first cause, [`Error::Registration`], [`Error::Lifecycle`] in a wrong state,
    /// [`Error::Interrupted`]. Nothing is left behind, and the worker is `FAILED`.
    pub fn init(&self) -> Result<(), Error> {
        let (children, registrations, early) = {
            let mut life = self.0.life.lock();
            self.expect_new(&life, "init")?;
            life.state = WorkerState::Starting;
            self.0.changed.notify_all();
            let (children, registrations) = (life.children.clone(), life.registrations.clone());
            (children, registrations, life.early.take())
        };
        let deadline = self.startup_deadline();
        let started = self
            .check_runnable(&children, &registrations)
            .and_then(|()| self.start(early, &children, &registrations, deadline));
        let result = started.and_then(|live| self.publish(live, deadline));
        let result = match result {
            Err(Error::Interrupted) if self.is_called_off() => Err(startup(
                "this worker",
                "close() was called before it was ready",
            )),
            result => result,
        };
        if let Err(error) = &result {
            self.0.life.lock().state = WorkerState::Failed(error.to_string());
        }
        self.0.changed.notify_all();
        result
    }

    /// READY, unless it has become too late meanwhile: then everything is rolled back.
    fn publish(&self, live: Live, deadline: Instant) -> Result<(), Error> {
        // With the level, because the workers of children and sessions come by here too.
        let outcome = hit_at("init.commit", self.0.settings.level);
        let refused = {
            let mut life = self.0.life.lock();
            // Asked with the lock held, the last moment at which it can still be refused.
            if outcome.is_ok() && !self.is_called_off() && Instant::now() < deadline {
                *self.0.live.write() = Some(live);
                life.state = WorkerState::Ready;
                return Ok(());
            }
            live
        };
        let cause = match outcome {
            Ok(()) => self.too_late(),
            Err(injected) => injected.into(),
        };
        Err(self.roll_back(refused, cause))
    }

    fn start(
        &self,
        early: Option<Keeper>,
        children: &[Child],
        registrations: &[Registration],
        deadline: Instant,
    ) -> Result<Live, Error> {
        let settings = &self.0.settings;
        hit("init.keeper")?;
        let keeper = Arc::new(early.map_or_else(|| self.start_keeper(), Ok)?);
        self.prepare_locals(&keeper, children);
        hit("init.bell")?;
        let bell = Bell::create_below(settings.spinners.as_ref())
            .map_err(|error| startup("this process", error))?;
        hit("init.arena")?;
        let arena = Arena::create(settings.memory_limit)?;
        let interrupt = Arc::new(StartInterrupt {
            caller: Arc::clone(&*self.0.interrupt.read()),
            called_off: Arc::clone(&self.0.called_off),
        });
        let engine = Engine::new(
            arena,
            settings.inherited_regions.clone(),
            bell,
            settings.max_tasks,
            interrupt,
            self.0.uid,
        );
        {
            let mut core = engine.core.lock();
            core.trace = TraceLog::keeping(settings.inner);
            core.max_attempts = settings.max_attempts;
        }
        let mut live = Live {
            engine,
            driver: None,
            keeper,
        };
        match self.populate(&mut live, children, registrations, deadline) {
            Ok(()) => Ok(live),
            Err(cause) => Err(self.roll_back(live, cause)),
        }
    }

    /// Ends what was started. What does not end within `close_timeout_s` is named after the first cause, and kept for `close()`.
    fn roll_back(&self, live: Live, cause: Error) -> Error {
        let bound = Instant::now() + self.0.settings.close_timeout;
        let left = self.end(live, bound);
        match cause {
            Error::Startup { worker, message } if !left.survivors.is_empty() => {
                let survivors = left.survivors.join("; ");
                let message = format!(
                    "{message}\n(what had started did not end: {survivors}; call close() to go on)"
                );
                Error::Startup { worker, message }
            }
            cause => cause,
        }
    }

    fn is_called_off(&self) -> bool {
        self.0.called_off.load(Ordering::Acquire)
    }

    fn too_late(&self) -> Error {
        if self.is_called_off() {
            return Error::Interrupted;
        }
        let limit = self.0.settings.startup_timeout;
        startup(
            "this worker",
            format!("startup_timeout_s of {limit:?} has passed"),
        )
    }

    pub(super) fn startup_deadline(&self) -> Instant {
        let settings = &self.0.settings;
        let own = Instant::now() + settings.startup_timeout;
        settings.start_by.map_or(own, |outer| own.min(outer))
    }

    fn populate(
        &self,
        live: &mut Live,
        children: &[Child],
        registrations: &[Registration],
        deadline: Instant,
    ) -> Result<(), Error> {
        let engine = Arc::clone(&live.engine);
        let (mut recipes, mut rest) = (Vec::new(), Vec::new());
        // Local processes come up while sessions are asked for.
        let locals = || {
            recipes = self.start_subs(live, deadline)?;
            recipes.extend(self.start_chips(live, children, deadline)?);
            self.start_levels(live, children, registrations, deadline, &mut rest)
        };
        let remotes = self.start_remotes(&engine, children, registrations, deadline, locals);
        let (remotes, outcome) =
            remotes.map_or_else(|error| (Vec::new(), Err(error)), |r| (r, Ok(())));
        for (id, endpoint, host) in remotes {
            let role = EndpointRole::RemoteNextLevel { worker: id, host };
            rest.push((id, Box::new(endpoint), role));
        }
        // Ids follow the order of add_*, whatever started first. In service also when one did not start: what did is
        // ended in order then.
        rest.sort_by_key(|(id, _, _)| *id);
        for (_, endpoint, role) in rest {
            engine.core.lock().add_endpoint(endpoint, role);
        }
        outcome?;
        hit_at("init.driver", self.0.settings.level)?;
        live.driver = Some(
            Driver::start(Arc::clone(&engine))
                .map_err(|error| startup("the driver thread", error))?,
        );
        Self::register_all(&engine, children, registrations, deadline)?;
        // A worker without callables has not been spoken to yet: ask every local one, so that READY means ready.
        hit_at("init.confirm", self.0.settings.level)?;
        engine.confirm_locals(deadline)?;
        // Only now: a child that ends before it was ready fails the start, with its own cause.
        let mut core = engine.core.lock();
        for (id, recipe) in recipes {
            core.give_successors(id, recipe);
        }
        drop(core);
        engine.interrupt.check().map_err(|_| Error::Interrupted)
    }

    /// Starts the local children with a runtime of their own. `started` gets what is up, also on an error.
    fn start_levels(
        &self,
        live: &Live,
        children: &[Child],
        registrations: &[Registration],
        deadline: Instant,
        started: &mut Vec<(i32, Box<dyn Endpoint>, EndpointRole)>,
    ) -> Result<(), Error> {
        for (child, id) in children.iter().zip(0..) {
            if let Child::Local(plan) = child {
                let mut plan = plan.clone();
                hit_at("init.child", id)?;
                plan.start_by_ns = to_monotonic_ns(deadline);
                let local = self.start_level(live, id, plan, registrations, child, deadline)?;
                let role = EndpointRole::LocalNextLevel { worker: id };
                started.push((id, Box::new(local), role));
            }
        }
        Ok(())
    }

    /// What did not come with its worker goes by control.
    fn register_all(
        engine: &Engine,
        children: &[Child],
        registrations: &[Registration],
        deadline: Instant,
    ) -> Result<(), Error> {
        engine
            .core
            .lock()
            .take_what_came(children, registrations, |_| true);
        for (registration, index) in registrations.iter().zip(0_u32..) {
            hit_at("init.register", index)?;
            let (callable, key) = (&registration.handle.callable, registration.key());
            let targets = |core: &Core| core.registration_targets(registration);
            engine.register_at(callable, key, Some(deadline), targets, || ())?;
        }
        Ok(())
    }
}

/// The caller's interrupt, and a `close()` that does not want to wait for `init()`.
struct StartInterrupt {
    caller: Arc<dyn Interrupt>,
    called_off: Arc<AtomicBool>,
}

impl Interrupt for StartInterrupt {
    fn check(&self) -> Result<(), Interrupted> {
        if self.called_off.load(Ordering::Acquire) {
            return Err(Interrupted);
        }
        self.caller.check()
    }
}

impl Core {
    /// What was in a session's manifest, or in a child's plan, is there; for the workers `of` which it is asked.
    pub(super) fn take_what_came(
        &mut self,
        children: &[Child],
        registrations: &[Registration],
        of: impl Fn(i32) -> bool,
    ) {
        for slot in self.endpoints.iter_mut() {
            let Some(worker) = slot.role.worker_id().filter(|worker| of(*worker)) else {
                continue;
            };
            let child = usize::try_from(worker).ok().and_then(|at| children.get(at));
            let Some(child) = child else { continue };
            let code = chips_of_manifest(worker, child, registrations);
            for registration in registrations.iter().filter(|r| r.includes(worker, child)) {
                let came = match child {
                    Child::Local(_) => registration.options.inner,
                    Child::Remote(_) => registration.in_manifest(&code),
                    Child::Chip { .. } => false,
                };
                if came {
                    slot.pairs
                        .brought(registration.key(), &registration.handle.callable);
                }
            }
        }
    }
}

pub(super) fn startup(worker: &str, error: impl std::fmt::Display) -> Error {
    Error::Startup {
        worker: worker.to_owned(),
        message: error.to_string(),
    }
}
