//! Whom a registration is for: which workers it goes to, and whether any of them can run it.

use std::collections::HashSet;

use echelon_wire::callable::Digest;
use serde::{Deserialize, Serialize};

use super::chips::check_chip_reach;
use super::plan::InnerPlan;
use super::{CallableHandle, Child, Worker};
use crate::callable::{Callable, CallableSource};
use crate::engine::{Core, EndpointRole};
use crate::error::Error;
use crate::graph::EndpointId;
use crate::registration::Key;

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

/// What was registered, kept to be carried out at `init()` and to be looked up.
#[derive(Clone)]
pub(crate) struct Registration {
    pub(crate) handle: CallableHandle,
    pub(crate) options: RegisterOptions,
}

impl Registration {
    pub(crate) fn key(&self) -> Key {
        Key::new(&self.handle.callable, self.options.inner)
    }

    pub(crate) fn plan(&self) -> Result<InnerPlan, Error> {
        InnerPlan::of(&self.handle.callable, self.options.clone())
    }

    /// True when it goes to the child with this id.
    pub(crate) fn includes(&self, worker: i32, child: &Child) -> bool {
        match (&self.options.workers, self.options.scope, child) {
            (Some(ids), _, _) => ids.contains(&worker),
            (None, _, Child::Chip { .. }) => self.is_chip_code() && !self.options.inner,
            (None, _, _) if self.is_chip_code() => self.options.inner,
            (None, RegisterScope::Local, Child::Local(_))
            | (None, RegisterScope::Remote, Child::Remote(_)) => true,
            (None, _, _) => false,
        }
    }

    /// True when it goes to the sub workers of this level.
    pub(crate) fn for_subs(&self) -> bool {
        self.options.workers.is_none()
            && !self.is_chip_code()
            && self.options.scope == RegisterScope::Local
            && !self.options.inner
    }

    /// True when it travels in the manifest of a session, which has room for the machine code of `code`: what needs an extension waits
    /// until the session has accepted it.
    pub(crate) fn in_manifest(&self, code: &HashSet<Digest>) -> bool {
        match &self.handle.callable.source {
            CallableSource::Import(_) => true,
            CallableSource::Chip(_) => code.contains(&self.handle.callable.digest),
            CallableSource::Serialized(_) | CallableSource::Native(_) => false,
        }
    }
}

impl Worker {
    pub(super) fn check_reach(
        &self,
        callable: &Callable,
        options: &RegisterOptions,
    ) -> Result<(), Error> {
        let life = self.0.life.lock();
        check_chip_reach(callable, options, &life.children)?;
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
        if reaches_remote && matches!(callable.source, CallableSource::Native(_)) {
            return Err(Error::argument(
                "target",
                format!(
                    "{} is a closure of this process and cannot run on a remote worker; register RemoteCallable(\"module:qualname\")",
                    callable.name
                ),
            ));
        }
        Ok(())
    }
}

impl Worker {
    /// Refuses callables that no worker could ever run, before anything is started.
    pub(super) fn check_runnable(
        &self,
        children: &[Child],
        registrations: &[Registration],
    ) -> Result<(), Error> {
        let subs = self.0.settings.sub_workers + self.0.settings.threads > 0;
        // What a level below gets is decided above it, where it may be registered for several of different kinds.
        let unmet = registrations.iter().filter(|_| !self.0.settings.inner);
        let unmet = unmet.filter_map(|r| Some((r.handle.name(), r.unmet(subs, children)?)));
        let unmet: Vec<(&str, String)> = unmet.collect();
        if unmet.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = unmet.iter().map(|(name, _)| *name).collect();
        let reasons = unmet.iter().map(|(name, why)| format!("{name}: {why}"));
        Err(Error::Registration {
            callable: names.join(", "),
            message: reasons.collect::<Vec<_>>().join("; "),
        })
    }
}

impl Registration {
    /// Why no worker can run it, whatever happens; `None` when one can.
    fn unmet(&self, subs: bool, children: &[Child]) -> Option<String> {
        let children = || children.iter().zip(0..);
        let mut included = children().filter(|(child, id)| self.includes(*id, child));
        if self.options.inner {
            let without = |(child, _): &(&Child, i32)| !child.has_workers_below();
            return match &self.options.workers {
                // Who is named is meant.
                Some(_) => included.find(without).map(|(_, id)| {
                    format!("inner=True, and worker {id} has no workers of its own; give it num_sub_workers")
                }),
                None if included.any(|at| !without(&at)) => None,
                None => Some(format!(
                    "inner=True, and no {} worker has workers of its own; give one num_sub_workers",
                    self.options.scope.word()
                )),
            };
        }
        if included.next().is_some() || (subs && self.for_subs()) {
            return None;
        }
        Some(match (&self.options.workers, self.options.scope) {
            (Some(_), _) => "workers=[] names none; name some, or leave it out".to_owned(),
            (None, RegisterScope::Local) => {
                "it is for sub workers and local children, and there are none; give num_sub_workers, or name remote \
                 workers in register(…, workers=[…])"
                    .to_owned()
            }
            (None, RegisterScope::Remote) => {
                "it is for remote workers, and there are none; add one with add_remote_worker, or register the function \
                 itself for local workers"
                    .to_owned()
            }
        })
    }
}

impl RegisterScope {
    fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

impl Child {
    /// True when an inner callable has somewhere to run.
    fn has_workers_below(&self) -> bool {
        match self {
            Self::Local(plan) => {
                let local = |child: &Self| matches!(child, Self::Local(_));
                plan.sub_workers > 0 || plan.chips.is_some() || plan.children.iter().any(local)
            }
            Self::Remote(spec) => spec.num_sub_workers > 0 || !spec.device_ids.is_empty(),
            Self::Chip { .. } => false,
        }
    }
}

impl Core {
    /// The endpoints that a registration goes to, now. Places that only the next run fills again are among them.
    pub(super) fn registration_targets(
        &self,
        registration: &Registration,
    ) -> Result<Vec<EndpointId>, Error> {
        if let Some(ids) = &registration.options.workers {
            return ids.iter().map(|id| self.endpoint_of(*id)).collect();
        }
        let of_scope = |role: &EndpointRole| match role {
            EndpointRole::Sub => registration.for_subs(),
            EndpointRole::Chip { .. } => false,
            EndpointRole::LocalNextLevel { .. } => {
                registration.options.scope == RegisterScope::Local
            }
            EndpointRole::RemoteNextLevel { .. } => {
                registration.options.scope == RegisterScope::Remote
            }
        };
        let wanted = |role: &EndpointRole| {
            let of_chips = registration.chip_scope(role);
            of_chips.unwrap_or_else(|| of_scope(role))
        };
        let slots = self.endpoints.iter().zip(0..);
        Ok(slots
            .filter(|(slot, _)| slot.lost.is_none() || slot.succession.is_some())
            .filter(|(slot, _)| wanted(&slot.role))
            .map(|(_, id)| EndpointId(id))
            .collect())
    }

    /// The error of a registration that has no targets because all of them are lost.
    pub(super) fn all_lost(&self, registration: &Registration) -> Option<Error> {
        let remote = registration.options.scope == RegisterScope::Remote;
        let chip = registration.is_chip_code();
        let of_scope = |role: &EndpointRole| match role {
            EndpointRole::RemoteNextLevel { .. } => remote || chip,
            EndpointRole::LocalNextLevel { .. } => !remote || chip,
            EndpointRole::Sub | EndpointRole::Chip { .. } => false,
        };
        let slots = self.endpoints.iter().filter(|slot| of_scope(&slot.role));
        let lost = slots.filter_map(|slot| {
            let (why, hint) = (slot.lost.as_ref()?, slot.role.after_loss());
            Some(format!("{} is lost: {why}; {hint}", slot.info.name))
        });
        let lost: Vec<String> = lost.collect();
        (!lost.is_empty()).then(|| Error::Registration {
            callable: registration.handle.name().to_owned(),
            message: lost.join("; "),
        })
    }
}
