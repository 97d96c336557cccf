//! Submitting: snapshot, eligibility, shadows, back-pressure, and the scheduler's answer carried out at once.

use std::sync::Arc;

use echelon_wire::call_config::CallConfig;
use smallvec::SmallVec;

use super::at_once::Patience;
use super::attempts::check_repeatable;
use super::chain::part_of;
use super::copies::CopyJob;
use super::prepare::{
    access_of, check_arrays_disjoint, check_imports_disjoint, check_kinds, check_members_disjoint,
};
use super::record::{EndpointRole, MemberRecord, TaskRecord, Work};
use super::signature::check_signature;
use super::story::Steps;
use super::{Core, Engine};
use crate::args::{ArgSource, TaskArgs, TensorArg};
use crate::buffer::RemoteBuffer;
use crate::callable::Callable;
use crate::error::Error;
use crate::graph::{self, Chaining, Eligible, EndpointId, NodeKind, NodeSpec, RunId};
use crate::memory::MemoryError;
use crate::worker::TaskOptions;

/// Which kind of worker a task is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// Sub workers.
    Sub,
    /// Any NEXT_LEVEL worker.
    NextLevel,
    /// These NEXT_LEVEL workers; for a group, one a member.
    Workers(&'a [i32]),
}

/// How members are scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupKind {
    /// One task.
    Single,
    /// All members at once on distinct workers.
    Gang,
    /// Members as places become free.
    Waves,
}

/// One submit. What the task keeps is taken when it is admitted.
#[derive(Clone, Copy)]
pub(crate) struct SubmitSpec<'a> {
    pub(crate) run: RunId,
    pub(crate) callable: &'a Arc<Callable>,
    pub(crate) config: &'a CallConfig,
    pub(crate) target: Target<'a>,
    pub(crate) group: GroupKind,
    pub(crate) options: TaskOptions,
    /// One entry a member.
    pub(crate) args: &'a [TaskArgs],
}

/// Work and options of a node.
pub(super) type What = (Work, TaskOptions);

/// What the scheduler is to be given, once arguments are prepared.
#[derive(PartialEq)]
pub(super) struct Plan {
    pub(super) kind: NodeKind,
    pub(super) prefer: Option<EndpointId>,
    pub(super) shares_memory: bool,
}

impl Engine {
    /// Submits a call. Blocks while the task table or the arena is full and something is running (back-pressure).
    ///
    /// Returns the task's number in its run.
    pub(crate) fn submit(&self, spec: SubmitSpec<'_>) -> Result<u64, Error> {
        match self.submit_at_once(spec, Patience::ForTheLock)? {
            Some(sequence) => Ok(sequence),
            None => self.submit_waiting(spec),
        }
    }

    /// Submits a group, or what has to wait for room or memory.
    pub(super) fn submit_waiting(&self, spec: SubmitSpec<'_>) -> Result<u64, Error> {
        let members: Vec<TaskArgs> = spec
            .args
            .iter()
            .map(|args| self.normalise(args))
            .collect::<Result<_, Error>>()?;
        for args in &members {
            check_signature(spec.callable, args.tensors(), args.scalars().len())?;
            check_imports_disjoint(args.tensors())?;
            check_arrays_disjoint(args.tensors())?;
        }
        let tensors = || members.iter().flat_map(TaskArgs::tensors);
        if members.len() > 1 {
            check_members_disjoint(&members)?;
        }
        if spec.options.idempotent {
            check_repeatable(&members, spec.group)?;
        }
        let (plan, mut pins) = {
            let mut core = self.core.lock();
            core.check_run(spec.run)?;
            core.check_sessions(tensors())?;
            let plan = core.plan(&spec, &members)?;
            // Under the same lock: from here on the callable stays where it is until the task has ended.
            let number = core.begin_plan(spec.callable.digest);
            (plan, Pins::of_plan(self, Some(number)))
        };
        pins.take(tensors())?;
        let accesses = tensors().filter_map(access_of).collect();
        let mut prepared = SmallVec::with_capacity(members.len());
        for args in members {
            prepared.push(self.prepare_waiting(args, plan.shares_memory)?);
        }
        let chaining = part_of(spec.group, &prepared, &spec.options);
        let work = Work::call(&spec, prepared);
        let node = NodeSpec {
            run: spec.run,
            kind: plan.kind,
            accesses,
            prefer: plan.prefer,
        };
        self.admit(node, chaining, (work, spec.options), pins)
    }

    /// Submits a copy node.
    pub(crate) fn submit_copy(
        &self,
        run: RunId,
        job: CopyJob,
        dst: &TensorArg,
        src: &TensorArg,
    ) -> Result<u64, Error> {
        self.check_process("submit to")?;
        {
            let core = self.core.lock();
            core.check_run(run)?;
            core.check_sessions([dst, src])?;
        }
        let mut pins = Pins::of_plan(self, None);
        pins.take([dst, src])?;
        let accesses = [src, dst].into_iter().filter_map(access_of).collect();
        let node = NodeSpec {
            run,
            kind: NodeKind::Copy,
            accesses,
            prefer: None,
        };
        let what = (Work::Copy(Box::new(job)), TaskOptions::default());
        self.admit(node, Chaining::default(), what, pins)
    }

    /// Takes the shadows, waiting for running tasks to give theirs back.
    fn prepare_waiting(&self, args: TaskArgs, shared: bool) -> Result<MemberRecord, Error> {
        loop {
            let finished = self.core.lock().finished;
            match self.prepare_member(args.clone(), shared) {
                Ok(member) => return Ok(member),
                Err(MemoryError::Exhausted {
                    requested, limit, ..
                }) => {
                    self.wait_for_room(finished, || Error::Resource {
                        what: "shared memory of the worker".into(),
                        requested,
                        limit,
                        hint: "nothing is running that could give some back: release tensors, or raise memory_limit",
                    })?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until a task has ended since `finished` was read. With nothing runnable or running, waiting cannot help.
    pub(crate) fn wait_for_room(
        &self,
        finished: u64,
        exhausted: impl FnOnce() -> Error,
    ) -> Result<(), Error> {
        let waited = self.wait_until(None, |core| {
            if core.finished != finished {
                return Some(true);
            }
            (core.scheduler.runnable_or_running() == 0).then_some(false)
        });
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => Err(exhausted()),
            Err(end) => Err(end.into_error()),
        }
    }

    fn admit(
        &self,
        node: NodeSpec,
        chaining: Chaining,
        what: What,
        pins: Pins<'_>,
    ) -> Result<u64, Error> {
        let limited = what.1.timeout.is_some();
        let mut pending = Some((what, pins));
        loop {
            let visit = self.visit();
            let mut core = self.core.lock();
            core.check_run(node.run)?;
            let mut actions = std::mem::take(&mut core.actions);
            core.tick();
            match core
                .scheduler
                .submit_chained(node.clone(), chaining, &mut actions)
            {
                Ok(task) => {
                    // `pending` is taken once: this arm returns.
                    let Some((what, pins)) = pending.take() else {
                        return Err(Error::Interrupted);
                    };
                    let (plan, pins) = pins.keep();
                    let plan = plan.map_or(0, |number| core.end_plan(number));
                    let sequence = core.admitted(task, node.run, what, (plan, pins), actions)?;
                    self.leave_submit(core, &visit);
                    if limited {
                        // Whoever sleeps must not sleep beyond the limit.
                        self.wake();
                    }
                    return Ok(sequence);
                }
                Err(graph::SubmitError::TableFull { limit }) => {
                    core.actions = actions;
                    let finished = core.finished;
                    drop(core);
                    drop(visit);
                    self.wait_for_room(finished, || Error::Resource {
                        what: "unfinished tasks".into(),
                        requested: u64::from(limit) + 1,
                        limit: u64::from(limit),
                        hint: "nothing is running that could end: raise max_tasks",
                    })?;
                }
                Err(error) => {
                    core.actions = actions;
                    return Err(core.refused(&name_of(pending.as_ref()), &error));
                }
            }
        }
    }
}

fn name_of(pending: Option<&(What, Pins<'_>)>) -> String {
    pending.map_or_else(String::new, |((work, _), _)| work.name().to_string())
}

impl Core {
    pub(crate) fn check_run(&self, run: RunId) -> Result<(), Error> {
        self.check_open("submit to")?;
        match self.runs.get(run) {
            Some(state) if !state.closed => Ok(()),
            _ => Err(Error::Lifecycle {
                state: "not in this run any more".into(),
                action: "submit to",
                hint: "an Orchestrator is valid until its orchestration function returns".into(),
            }),
        }
    }

    pub(super) fn plan_anew(
        &self,
        spec: &SubmitSpec<'_>,
        members: &[TaskArgs],
    ) -> Result<Plan, Error> {
        let candidates = self.candidates(spec.target, spec.group)?;
        let all = || candidates.iter().flatten();
        let local = all().any(|id| self.slot(*id).is_some_and(|slot| slot.info.shares_memory));
        let remote = all().any(|id| self.slot(*id).is_some_and(|slot| !slot.info.shares_memory));
        let mut sets = Vec::with_capacity(members.len());
        for args in members {
            check_kinds(args.tensors(), local, remote)?;
        }
        for (index, args) in members.iter().enumerate() {
            let of_member = candidates
                .get(index)
                .or_else(|| candidates.first())
                .map_or(&[][..], Vec::as_slice);
            sets.push(self.eligible(of_member, spec.callable, args.tensors())?);
        }
        let shares_memory = sets
            .iter()
            .flatten()
            .any(|id| self.slot(*id).is_some_and(|slot| slot.info.shares_memory));
        let first = members.first();
        let prefer = first.and_then(|args| self.preferred(args.tensors()));
        let mut eligible: Vec<Eligible> = sets.into_iter().filter_map(Eligible::new).collect();
        let kind = match spec.group {
            GroupKind::Gang => NodeKind::Gang { members: eligible },
            GroupKind::Waves => NodeKind::Waves {
                members: u32::try_from(members.len()).unwrap_or(u32::MAX),
                eligible: common(eligible, spec.callable)?,
            },
            GroupKind::Single => match eligible.pop() {
                Some(eligible) => NodeKind::Single { eligible },
                None => return Err(Error::argument("args", "one set of arguments is needed")),
            },
        };
        Ok(Plan {
            kind,
            prefer,
            shares_memory,
        })
    }

    /// Candidates a member: one list for all members, or one list each when the workers are named.
    pub(super) fn candidates(
        &self,
        target: Target<'_>,
        group: GroupKind,
    ) -> Result<Vec<Vec<EndpointId>>, Error> {
        let all = |wanted: &dyn Fn(&EndpointRole) -> bool| -> Vec<EndpointId> {
            let ids = 0..u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
            ids.map(EndpointId)
                .filter(|id| self.slot(*id).is_some_and(|slot| wanted(&slot.role)))
                .collect()
        };
        match target {
            Target::Sub => Ok(vec![all(&|role| *role == EndpointRole::Sub)]),
            Target::NextLevel => Ok(vec![all(&|role| role.worker_id().is_some())]),
            Target::Workers(ids) => {
                let lists: Result<Vec<_>, Error> = ids
                    .iter()
                    .map(|id| Ok(vec![self.endpoint_of(*id)?]))
                    .collect();
                let lists = lists?;
                // Without a gang, named workers are alternatives.
                Ok(if group == GroupKind::Gang {
                    lists
                } else {
                    vec![lists.into_iter().flatten().collect()]
                })
            }
        }
    }

    /// The endpoint of a NEXT_LEVEL worker id.
    pub(crate) fn endpoint_of(&self, worker: i32) -> Result<EndpointId, Error> {
        let found = self
            .endpoints
            .iter()
            .rposition(|slot| slot.role.worker_id() == Some(worker));
        match found.and_then(|index| u32::try_from(index).ok()) {
            Some(index) => Ok(EndpointId(index)),
            None => {
                let known: Vec<String> = self
                    .endpoints
                    .iter()
                    .filter_map(|slot| slot.role.worker_id())
                    .map(|id| id.to_string())
                    .collect();
                Err(Error::argument(
                    "worker",
                    format!(
                        "there is no worker {worker}; known ids are [{}]",
                        known.join(", ")
                    ),
                ))
            }
        }
    }

    pub(super) fn new_record(
        &mut self,
        task: graph::TaskId,
        run: RunId,
        (work, options): What,
        pins: Vec<RemoteBuffer>,
    ) -> TaskRecord {
        self.submitted += 1;
        self.any_limits |= options.timeout.is_some();
        let mut sequence = 0;
        let mut deps = SmallVec::new();
        if let Some(state) = self.runs.get_mut(run) {
            state.submitted += 1;
            sequence = state.submitted;
            // Those of other runs have numbers of their own.
            for before in self.scheduler.before(task) {
                let record = self.records.get(&before);
                if let Some(before) = record.filter(|before| before.run == run) {
                    deps.push(before.sequence);
                }
            }
        }
        TaskRecord {
            run,
            plan: 0,
            sequence,
            work,
            pins,
            options,
            submit_ns: self.now_ns,
            deps,
            steps: Steps::default(),
            failure: None,
        }
    }
}

fn common(sets: Vec<Eligible>, callable: &Callable) -> Result<Eligible, Error> {
    let mut sets = sets.into_iter();
    let Some(first) = sets.next() else {
        return Err(Error::argument(
            "args_list",
            "a group needs at least one member",
        ));
    };
    let mut ids = first.ids().to_vec();
    for set in sets {
        ids.retain(|id| set.contains(*id));
    }
    Eligible::new(ids).ok_or_else(|| Error::NotEligible {
        callable: callable.name.to_string(),
        reasons: vec!["no worker can run every member".into()],
    })
}

/// What a submit holds before it is a task: pins on its buffers, and its plan, which keeps its callable. Let go again when the
/// submit fails. Never dropped under the engine's lock.
struct Pins<'a> {
    engine: &'a Engine,
    plan: Option<u64>,
    buffers: Vec<RemoteBuffer>,
}

impl<'a> Pins<'a> {
    fn of_plan(engine: &'a Engine, plan: Option<u64>) -> Self {
        Self {
            engine,
            plan,
            buffers: Vec::new(),
        }
    }

    fn take<'b>(&mut self, args: impl IntoIterator<Item = &'b TensorArg>) -> Result<(), Error> {
        for arg in args {
            if let ArgSource::Remote { buffer, .. } = &arg.source {
                buffer.pin("tensor")?;
                self.buffers.push(buffer.clone());
            }
        }
        Ok(())
    }

    /// The task takes them over.
    fn keep(mut self) -> (Option<u64>, Vec<RemoteBuffer>) {
        (self.plan.take(), std::mem::take(&mut self.buffers))
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        if self.buffers.is_empty() && self.plan.is_none() {
            return;
        }
        let mut core = self.engine.core.lock();
        if let Some(number) = self.plan {
            core.end_plan(number);
        }
        for buffer in self.buffers.drain(..) {
            // Another thread may have freed it meanwhile: then the free is sent now.
            core.unpin(buffer);
        }
        drop(core);
        // Whoever unregisters the callable may wait for this.
        self.engine.wake();
    }
}
