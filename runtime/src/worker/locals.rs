//! What runs on this host: threads and processes of a worker, started side by side, and how a process is started again.

use std::sync::Arc;
use std::time::Instant;

use super::builder::ChildProgram;
use super::init::startup;
use super::reach::Registration;
use super::{Child, LevelPlan, Life, Live, RegisterOptions, Worker};
use crate::endpoint::local::{program_of, LocalEndpoint, LocalSpec};
use crate::endpoint::thread::ThreadEndpoint;
use crate::endpoint::{ControlRequest, Endpoint};
use crate::engine::{EndpointRole, Engine, Recipe};
use crate::error::Error;
use crate::failpoint::hit_at;
use crate::graph::EndpointId;
use crate::mailbox::Bell;
use crate::process::{zygote, Keeper, ProcessError};

impl Worker {
    /// Returns how each of the processes is started again.
    pub(super) fn start_subs(
        &self,
        live: &Live,
        deadline: Instant,
    ) -> Result<Vec<(EndpointId, Recipe)>, Error> {
        let mut recipes = Vec::new();
        let settings = &self.0.settings;
        let engine = &live.engine;
        for index in 0..settings.threads {
            let name = format!("{}thread{index}", settings.name_prefix);
            hit_at("init.thread", index)?;
            let endpoint = ThreadEndpoint::start(name.clone(), Arc::clone(&engine.bell));
            let endpoint = endpoint.map_err(|error| startup(&name, error))?;
            engine
                .core
                .lock()
                .add_endpoint(Box::new(endpoint), EndpointRole::Sub);
        }
        // All are started before the first is waited for: they come up side by side.
        for index in 0..settings.sub_workers {
            // Many may be wanted, and each is a fork.
            engine.interrupt.check().map_err(|_| Error::Interrupted)?;
            hit_at("init.sub", index)?;
            let name = format!("{}sub{index}", settings.name_prefix);
            let spec = self.local_spec(live, name, None, deadline);
            recipes.push(self.start_process(live, spec, EndpointRole::Sub)?);
        }
        Ok(recipes)
    }

    /// The keeper of all processes of this worker.
    pub(super) fn start_keeper(&self) -> Result<Keeper, ProcessError> {
        Keeper::start_with(self.0.settings.own_zygote.lock().take())
    }

    /// What forks the local processes comes up while everything else begins (decision 0023).
    pub(super) fn prepare_locals(&self, keeper: &Keeper, children: &[Child]) {
        if self.0.settings.sub_workers > 0 || children.iter().any(is_local) {
            let env = self.0.child_env.read().clone();
            let spec = program_of("", &self.0.settings.child_program, env);
            if let Some(spec) = spec {
                keeper.prepare(spec);
            }
        }
    }

    /// Something was registered: `init()` will follow, and will not have to wait for an interpreter to start.
    pub(super) fn prepare_early(&self, life: &mut Life) {
        let settings = &self.0.settings;
        let is_python = matches!(settings.child_program, ChildProgram::Python { .. });
        let is_wanted = settings.sub_workers > 0 || life.children.iter().any(is_local);
        let is_early = life.early.is_none() && !settings.inner;
        if is_python && is_wanted && is_early && zygote::is_enabled() {
            // What fails here fails again in `init()`, which says so.
            life.early = self.start_keeper().ok();
            if let Some(keeper) = &life.early {
                self.prepare_locals(keeper, &life.children);
            }
        }
    }

    /// Starts a process, and says how a fresh one is started in its place when it ends (decision 0011).
    pub(super) fn start_process(
        &self,
        live: &Live,
        spec: LocalSpec,
        role: EndpointRole,
    ) -> Result<(EndpointId, Recipe), Error> {
        let endpoint = start_local(spec.clone(), &live.keeper, &live.engine.bell)?;
        let (keeper, bell) = (Arc::clone(&live.keeper), Arc::clone(&live.engine.bell));
        let ready_within = self.0.settings.startup_timeout;
        let recipe: Recipe = Arc::new(move || {
            let mut spec = spec.clone();
            spec.ready_by = Instant::now() + ready_within;
            let fresh = start_local(spec, &keeper, &bell)?;
            Ok(Box::new(fresh) as Box<dyn Endpoint>)
        });
        let mut core = live.engine.core.lock();
        Ok((core.add_endpoint(Box::new(endpoint), role), recipe))
    }

    /// What every child of this worker is started with.
    pub(super) fn local_spec(
        &self,
        live: &Live,
        name: String,
        plan: Option<Vec<u8>>,
        ready_by: Instant,
    ) -> LocalSpec {
        let settings = &self.0.settings;
        let mut regions = settings.inherited_regions.clone();
        regions.push(Arc::clone(live.engine.arena.region()));
        LocalSpec {
            name,
            about: None,
            program: settings.child_program.clone(),
            env: self.0.child_env.read().clone(),
            regions,
            plan,
            is_parent: false,
            ready_by,
        }
    }

    pub(super) fn start_level(
        &self,
        live: &Live,
        id: i32,
        mut plan: LevelPlan,
        registrations: &[Registration],
        child: &Child,
        ready_by: Instant,
    ) -> Result<LocalEndpoint, Error> {
        if matches!(self.0.settings.child_program, ChildProgram::None) {
            return Err(startup(
                &format!("worker {id}"),
                "a local child is a process and needs a child_program",
            ));
        }
        for registration in registrations
            .iter()
            .filter(|r| r.options.inner && r.includes(id, child))
        {
            let mut entry = registration.plan()?;
            // For the child it is a callable of its own workers.
            entry.options = RegisterOptions::default();
            plan.inner.push(entry);
        }
        let json =
            serde_json::to_vec(&plan).map_err(|error| startup(&format!("worker {id}"), error))?;
        let name = format!("{}worker{id}", self.0.settings.name_prefix);
        let mut spec = self.local_spec(live, name, Some(json), ready_by);
        spec.is_parent = plan.starts_python();
        start_local(spec, &live.keeper, &live.engine.bell)
    }
}

fn is_local(child: &Child) -> bool {
    matches!(child, Child::Local(_))
}

impl Engine {
    /// Waits until every local worker has answered something.
    pub(super) fn confirm_locals(&self, deadline: Instant) -> Result<(), Error> {
        let silent: Vec<EndpointId> = {
            let core = self.core.lock();
            let slots = core.endpoints.iter().zip(0..);
            slots
                .filter(|(slot, _)| slot.info.shares_memory && !slot.pairs.has_answered())
                .map(|(_, index)| EndpointId(index))
                .collect()
        };
        for endpoint in silent {
            let request = ControlRequest::DropRegion { region: 0 };
            self.control(endpoint, "the start", request, Some(deadline))
                .map_err(|error| match error {
                    Error::Interrupted => error,
                    Error::Timeout { .. } => startup(
                        &self.worker_name(endpoint),
                        "it was not ready within startup_timeout_s; is it stopped, or does it only need longer?",
                    ),
                    error => startup(&self.worker_name(endpoint), error),
                })?;
        }
        Ok(())
    }
}

fn start_local(
    spec: LocalSpec,
    keeper: &Arc<Keeper>,
    bell: &Arc<Bell>,
) -> Result<LocalEndpoint, Error> {
    let name = spec.name.clone();
    LocalEndpoint::start(spec, keeper, Arc::clone(bell)).map_err(|error| startup(&name, error))
}
