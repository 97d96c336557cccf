//! Registration: which callable may run where. On several workers it is all or nothing (design §8, R-098, R-099).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use echelon_wire::callable::{CallableKind, Digest, Hashid, RegistryTarget};

use serde::{Deserialize, Serialize};

use super::plan::InnerPlan;
use super::{Child, Worker, WorkerState};
use crate::callable::{Callable, CallableSource};
use crate::endpoint::{ControlReply, ControlRequest, RegisterStep};
use crate::engine::{Core, EndpointRole, Engine};
use crate::error::Error;
use crate::graph::EndpointId;

/// Which workers a callable goes to when none are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterScope {
    /// All sub workers and local children.
    #[default]
    Local,
    /// All remote workers.
    Remote,
}

/// How to register.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RegisterOptions {
    /// NEXT_LEVEL ids; `None` = all of the scope.
    pub workers: Option<Vec<i32>>,
    /// Install it in the workers' inner runtimes, for their own sub workers (INNER_L3_WORKER).
    pub inner: bool,
    /// What `workers: None` means.
    pub scope: RegisterScope,
}

/// A registered callable. Clones are the same handle.
#[derive(Clone, Debug)]
pub struct CallableHandle {
    pub(crate) callable: Callable,
    pub(crate) owner_uid: u64,
    pub(crate) inner: bool,
    live: Arc<AtomicBool>,
}

impl CallableHandle {
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
        if self.owner_uid != uid {
            return Err(Error::handle(
                "callable",
                format!(
                    "the handle of {} belongs to another Worker; register it with this one",
                    self.name()
                ),
            ));
        }
        if self.inner {
            return Err(Error::handle(
                "callable",
                format!("{} was registered with inner=True: only the workers' own orchestration functions can submit it", self.name()),
            ));
        }
        if !self.live.load(Ordering::Acquire) {
            return Err(Error::handle(
                "callable",
                format!("{} was unregistered; register it again", self.name()),
            ));
        }
        Ok(())
    }
}

/// What was registered, kept to be carried out at `init()` and to be looked up.
#[derive(Clone)]
pub(crate) struct Registration {
    pub(crate) handle: CallableHandle,
    pub(crate) options: RegisterOptions,
}

impl Registration {
    pub(crate) fn plan(&self) -> Result<InnerPlan, Error> {
        InnerPlan::of(&self.handle.callable, self.options.clone())
    }

    /// True when it goes to the child with this id.
    pub(crate) fn includes(&self, worker: i32, child: &Child) -> bool {
        match (&self.options.workers, self.options.scope, child) {
            (Some(ids), _, _) => ids.contains(&worker),
            (None, RegisterScope::Local, Child::Local(_))
            | (None, RegisterScope::Remote, Child::Remote(_)) => true,
            (None, _, _) => false,
        }
    }

    /// True when it goes to the sub workers of this level.
    pub(crate) fn for_subs(&self) -> bool {
        self.options.workers.is_none()
            && self.options.scope == RegisterScope::Local
            && !self.options.inner
    }

    fn registry(&self) -> RegistryTarget {
        if self.options.inner {
            RegistryTarget::InnerL3Worker
        } else {
            RegistryTarget::RemoteTaskDispatcher
        }
    }
}

impl Worker {
    /// Makes a callable known to workers; all or nothing on several. Before `init()` it is carried out by `init()`.
    ///
    /// # Errors
    /// [`Error::Registration`] with every worker's reason (an import that fails comes with its traceback),
    /// [`Error::Argument`] for unknown ids or a callable that cannot go there, [`Error::Lifecycle`] after `close()`.
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
        let handle = CallableHandle {
            callable,
            owner_uid: self.0.uid,
            inner: options.inner,
            live: Arc::new(AtomicBool::new(true)),
        };
        let registration = Registration {
            handle: handle.clone(),
            options,
        };
        {
            let mut life = self.0.life.lock();
            if life.state == WorkerState::New {
                life.registrations.push(registration);
                return Ok(handle);
            }
        }
        let engine = self.engine("register a callable with")?;
        engine.wait_for_places()?;
        let endpoints = engine.core.lock().registration_targets(&registration)?;
        let endpoints = self.without_holders(&engine, &registration, endpoints);
        engine.register_on(&registration, &endpoints, None)?;
        self.0.life.lock().registrations.push(registration);
        Ok(handle)
    }

    /// Leaves out the endpoints that have the callable already, by an earlier registration of the same digest: undoing this
    /// one must not take it from them.
    fn without_holders(
        &self,
        engine: &Engine,
        registration: &Registration,
        mut endpoints: Vec<EndpointId>,
    ) -> Vec<EndpointId> {
        let digest = registration.handle.callable.digest;
        let life = self.0.life.lock();
        let earlier: Vec<&Registration> = life
            .registrations
            .iter()
            .filter(|r| {
                r.handle.callable.digest == digest && r.options.inner == registration.options.inner
            })
            .collect();
        let core = engine.core.lock();
        endpoints.retain(|id| {
            let holds = |r: &&Registration| {
                core.registration_targets(r)
                    .is_ok_and(|targets| targets.contains(id))
            };
            let proven = registration.options.inner
                || core
                    .slot(*id)
                    .is_some_and(|slot| slot.callables.contains_key(&digest));
            !(proven && earlier.iter().any(holds))
        });
        endpoints
    }

    /// Removes a callable everywhere, after the tasks that name it and were submitted before have ended. New ones are refused at
    /// once.
    ///
    /// # Errors
    /// [`Error::Handle`] for a foreign or unregistered handle, [`Error::Registration`] naming workers that did not confirm.
    pub fn unregister(&self, handle: &CallableHandle) -> Result<(), Error> {
        if handle.owner_uid != self.0.uid {
            return handle.check(self.0.uid);
        }
        if !handle.live.swap(false, Ordering::AcqRel) {
            return Err(Error::handle(
                "callable",
                format!("{} was already unregistered", handle.name()),
            ));
        }
        let removed: Vec<Registration> = {
            let mut life = self.0.life.lock();
            let (gone, kept) = life
                .registrations
                .drain(..)
                .partition(|r| Arc::ptr_eq(&r.handle.live, &handle.live));
            life.registrations = kept;
            gone
        };
        if self.state() == WorkerState::New {
            return Ok(());
        }
        let engine = self.engine("unregister a callable from")?;
        for registration in &removed {
            let still_wanted = self.0.life.lock().registrations.iter().any(|r| {
                r.handle.callable.digest == handle.callable.digest
                    && r.options.inner == registration.options.inner
            });
            if !still_wanted {
                engine.unregister_on(registration)?;
            }
        }
        Ok(())
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

    fn check_reach(&self, callable: &Callable, options: &RegisterOptions) -> Result<(), Error> {
        let life = self.0.life.lock();
        let children = life.children.iter().zip(0..);
        if let Some(ids) = &options.workers {
            for id in ids {
                if usize::try_from(*id).map_or(true, |index| index >= life.children.len()) {
                    let known: Vec<String> =
                        (0..life.children.len()).map(|id| id.to_string()).collect();
                    return Err(Error::argument(
                        "workers",
                        format!(
                            "there is no worker {id}; known ids are [{}]",
                            known.join(", ")
                        ),
                    ));
                }
            }
        }
        let probe = |child: &Child| matches!(child, Child::Remote(_));
        let reaches_remote = children.clone().any(|(child, id)| {
            probe(child)
                && options
                    .workers
                    .as_ref()
                    .map_or(options.scope == RegisterScope::Remote, |ids| {
                        ids.contains(&id)
                    })
        });
        if reaches_remote && !matches!(callable.source, CallableSource::Import(_)) {
            return Err(Error::argument(
                "target",
                format!(
                    "{} has no import path, and remote workers take import paths only; \
                     put it into a module and register RemoteCallable(\"module:qualname\")",
                    callable.name
                ),
            ));
        }
        Ok(())
    }
}

impl Core {
    /// The endpoints that a registration goes to, now.
    fn registration_targets(&self, registration: &Registration) -> Result<Vec<EndpointId>, Error> {
        if let Some(ids) = &registration.options.workers {
            return ids.iter().map(|id| self.endpoint_of(*id)).collect();
        }
        let wanted = |role: &EndpointRole| match role {
            EndpointRole::Sub => registration.for_subs(),
            EndpointRole::LocalNextLevel { .. } => {
                registration.options.scope == RegisterScope::Local
            }
            EndpointRole::RemoteNextLevel { .. } => {
                registration.options.scope == RegisterScope::Remote
            }
        };
        let slots = self.endpoints.iter().zip(0..);
        Ok(slots
            .filter(|(slot, _)| slot.lost.is_none() && wanted(&slot.role))
            .map(|(_, id)| EndpointId(id))
            .collect())
    }
}

impl Engine {
    /// Prepare everywhere, commit everywhere; on the first failure undo what was done and report it. Without a
    /// `deadline` the wait for a local worker that is inside a task lasts as long as the task, or until the interrupt.
    pub(crate) fn register_on(
        &self,
        registration: &Registration,
        endpoints: &[EndpointId],
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let step = |endpoint: EndpointId, step: RegisterStep| {
            let request = ControlRequest::Register {
                step,
                callable: registration.handle.callable.clone(),
                registry: registration.registry(),
            };
            self.control(endpoint, "the registration", request, deadline)
        };
        for (index, endpoint) in endpoints.iter().enumerate() {
            if let Err(error) = step(*endpoint, RegisterStep::Prepare) {
                // The one that failed included: whether it took effect there is not known.
                for prepared in &endpoints[..=index] {
                    self.log_cleanup(step(*prepared, RegisterStep::Abort));
                }
                return Err(registration_error(registration, error));
            }
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            if let Err(error) = step(*endpoint, RegisterStep::Commit) {
                for committed in &endpoints[..=index] {
                    self.log_cleanup(self.unregister_at(registration, *committed));
                }
                for uncommitted in &endpoints[index + 1..] {
                    self.log_cleanup(step(*uncommitted, RegisterStep::Abort));
                }
                return Err(registration_error(registration, error));
            }
        }
        if !registration.options.inner {
            let mut core = self.core.lock();
            for endpoint in endpoints {
                if let Some(slot) = core.slot_mut(*endpoint) {
                    let callable = &registration.handle.callable;
                    slot.callables.insert(callable.digest, callable.clone());
                }
            }
        }
        Ok(())
    }

    /// Removes it from every worker that has it; each is tried, what did not confirm is named.
    fn unregister_on(&self, registration: &Registration) -> Result<(), Error> {
        let digest = registration.handle.callable.digest;
        let endpoints = {
            let mut core = self.core.lock();
            let endpoints = core.registration_targets(registration)?;
            for endpoint in endpoints.iter().filter(|_| !registration.options.inner) {
                // Ineligible from now on, whatever the answer.
                if let Some(slot) = core.slot_mut(*endpoint) {
                    slot.callables.remove(&digest);
                }
            }
            endpoints
        };
        if !registration.options.inner {
            let unused = |core: &mut Core| (!core.names_callable(&digest)).then_some(());
            self.wait_until(None, unused)
                .map_err(|_| Error::Interrupted)?;
        }
        let mut failures = Vec::new();
        for endpoint in endpoints {
            match self.unregister_at(registration, endpoint) {
                Ok(_) | Err(Error::EndpointLost { .. }) => {}
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(Error::Registration {
            callable: registration.handle.name().to_owned(),
            message: failures.join("; "),
        })
    }

    fn unregister_at(
        &self,
        registration: &Registration,
        endpoint: EndpointId,
    ) -> Result<ControlReply, Error> {
        let request = ControlRequest::Unregister {
            digest: registration.handle.callable.digest,
            kind: registration.handle.callable.kind,
            registry: registration.registry(),
        };
        self.control(endpoint, "the removal", request, None)
    }

    fn log_cleanup(&self, result: Result<ControlReply, Error>) {
        if let Err(error) = result {
            tracing::warn!(%error, "undoing a registration failed; the callable stays ineligible there");
        }
    }
}

fn registration_error(registration: &Registration, error: Error) -> Error {
    match error {
        Error::Interrupted => Error::Interrupted,
        error => Error::Registration {
            callable: registration.handle.name().to_owned(),
            message: error.to_string(),
        },
    }
}
