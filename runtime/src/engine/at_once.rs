//! The submit that waits for nothing: one lock, taken once, from the plan to the ring of the worker.
//!
//! What would have to wait, for room in the table or for memory, goes back to the caller unchanged and takes the longer way of
//! `submit`. With [`Patience::None`] not even the lock is waited for: such a call may be made by a thread that holds the
//! interpreter's lock, because nothing under the engine's lock ever asks for that one (design §15.12).

use std::time::Instant;

use parking_lot::MutexGuard;

use super::attempts::check_repeatable;
use super::chain::part_of;
use super::drive::INTERRUPT_PERIOD;
use super::prepare::{check_arrays_disjoint, check_imports_disjoint};
use super::record::Work;
use super::signature::check_signature;
use super::submit::{GroupKind, SubmitSpec, What};
use super::{Core, Engine};
use crate::args::{ArgSource, TaskArgs, TensorArg};
use crate::buffer::RemoteBuffer;
use crate::error::Error;
use crate::failpoint::hit;
use crate::graph::{self, NodeSpec, RunId};
use crate::memory::MemoryError;

/// Tasks of a batch that are submitted under one lock: long enough that the lock costs nothing, short enough (tens of
/// microseconds) that others get in.
const BATCH: usize = 64;

/// Most bytes of arrays that are staged under the lock. More of them are worth the longer way, where memory is taken without it.
const STAGED_BYTES: u64 = 64 << 10;

/// Times that a lock which must not be waited for is looked at.
const LOOKS: u32 = 32;

/// What a submit may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Nothing at all.
    None,
    /// The engine's lock, which is never held for long.
    ForTheLock,
}

/// What came of a submit that does not wait.
pub(crate) enum AtOnce {
    /// The task's number in its run.
    Submitted(u64),
    /// It would have to wait; nothing has happened.
    WouldWait(SubmitSpec),
}

impl Engine {
    /// Submits one task if that can be done now.
    pub(crate) fn submit_at_once(
        &self,
        spec: SubmitSpec,
        patience: Patience,
    ) -> Result<AtOnce, Error> {
        let Some(tensors) = self.checked(&spec)? else {
            return Ok(AtOnce::WouldWait(spec));
        };
        let core = match patience {
            Patience::None => self.core_soon(),
            Patience::ForTheLock => Some(self.core.lock()),
        };
        let Some(mut core) = core else {
            return Ok(AtOnce::WouldWait(spec));
        };
        let limited = spec.options.timeout.is_some();
        let done = self.submit_locked(&mut core, spec, tensors);
        self.leave_submit(core);
        if limited {
            // Whoever sleeps must not sleep beyond the limit.
            self.wake();
        }
        done
    }

    /// The core if it is free, or within about a microsecond: those who hold it mostly give it back by then, and to sleep for it
    /// costs more.
    fn core_soon(&self) -> Option<MutexGuard<'_, Core>> {
        for _ in 0..LOOKS {
            if let Some(core) = self.core.try_lock() {
                return Some(core);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Submits one task for each of `args`, in order, as single submits would. Returns their numbers; when one is refused,
    /// those before it stay submitted.
    pub(crate) fn submit_many(
        &self,
        args: Vec<TaskArgs>,
        spec_of: impl Fn(TaskArgs) -> SubmitSpec,
    ) -> Result<Vec<u64>, (usize, Error)> {
        let mut sequences = Vec::with_capacity(args.len());
        let mut args = args.into_iter().map(spec_of).peekable();
        let mut next_check = Instant::now() + INTERRUPT_PERIOD;
        while args.peek().is_some() {
            let batch = args.by_ref().take(BATCH).collect();
            let mut done = self.submit_batch(batch, &mut sequences);
            if Instant::now() >= next_check {
                done = done.and_then(|()| self.interrupt.check().map_err(|_| Error::Interrupted));
                next_check = Instant::now() + INTERRUPT_PERIOD;
            }
            done.map_err(|error| (sequences.len(), error))?;
        }
        Ok(sequences)
    }

    fn submit_batch(&self, batch: Vec<SubmitSpec>, sequences: &mut Vec<u64>) -> Result<(), Error> {
        let mut checked = Vec::with_capacity(batch.len());
        let mut refused = None;
        for spec in batch {
            match self.checked(&spec) {
                Ok(tensors) => checked.push((spec, tensors)),
                Err(error) => {
                    // Those before it are submitted all the same.
                    refused = Some(error);
                    break;
                }
            }
        }
        let limited = checked
            .iter()
            .any(|(spec, _)| spec.options.timeout.is_some());
        let done = self.submit_checked(checked, sequences);
        if limited {
            self.wake();
        }
        done?;
        refused.map_or(Ok(()), Err)
    }

    fn submit_checked(
        &self,
        checked: Vec<(SubmitSpec, Option<Vec<TensorArg>>)>,
        sequences: &mut Vec<u64>,
    ) -> Result<(), Error> {
        let mut core = self.core.lock();
        for (spec, tensors) in checked {
            let tried = match tensors {
                Some(tensors) => self.submit_locked(&mut core, spec, tensors)?,
                None => AtOnce::WouldWait(spec),
            };
            let sequence = match tried {
                AtOnce::Submitted(sequence) => sequence,
                AtOnce::WouldWait(spec) => {
                    drop(core);
                    let sequence = self.submit_waiting(spec)?;
                    core = self.core.lock();
                    sequence
                }
            };
            sequences.push(sequence);
        }
        self.leave_submit(core);
        Ok(())
    }

    /// The tensors of a task, with what can be said against them without the lock; `None` for a group, and for large arrays.
    fn checked(&self, spec: &SubmitSpec) -> Result<Option<Vec<TensorArg>>, Error> {
        let (GroupKind::Single, [args]) = (spec.group, spec.args.as_slice()) else {
            return Ok(None);
        };
        let tensors = self.normalise(args)?;
        check_signature(&spec.callable, &tensors, args.scalars().len())?;
        if tensors.len() > 1 {
            check_imports_disjoint(&tensors)?;
            check_arrays_disjoint(&tensors)?;
        }
        if spec.options.idempotent {
            check_repeatable(std::slice::from_ref(&tensors), spec.group)?;
        }
        let staged = tensors.iter().map(staged_bytes).sum::<u64>();
        Ok((staged <= STAGED_BYTES).then_some(tensors))
    }

    fn submit_locked(
        &self,
        core: &mut Core,
        spec: SubmitSpec,
        tensors: Vec<TensorArg>,
    ) -> Result<AtOnce, Error> {
        core.check_run(spec.run)?;
        core.check_sessions(tensors.iter())?;
        if core.scheduler.is_full() {
            return Ok(AtOnce::WouldWait(spec));
        }
        let members = [tensors];
        let plan = core.plan(&spec, &members)?;
        let [tensors] = members;
        let pins = pinned(core, &tensors)?;
        let scalars = spec.args.first().map_or(&[][..], TaskArgs::scalars);
        let prepared = match self.prepare_member(tensors, scalars.to_vec(), plan.shares_memory) {
            Ok(member) => member,
            Err(error) => {
                core.unpin_all(pins);
                return match error {
                    MemoryError::Exhausted { .. } => Ok(AtOnce::WouldWait(spec)),
                    error => Err(error.into()),
                };
            }
        };
        let members = [prepared];
        let chaining = part_of(spec.group, &members, &spec.options);
        let node = NodeSpec {
            run: spec.run,
            kind: plan.kind,
            accesses: plan.accesses,
            prefer: plan.prefer,
        };
        let mut actions = std::mem::take(&mut core.actions);
        core.tick();
        let task = match core.scheduler.submit_chained(node, chaining, &mut actions) {
            Ok(task) => task,
            Err(error) => {
                core.actions = actions;
                core.unpin_all(pins);
                return match error {
                    graph::SubmitError::TableFull { .. } => Ok(AtOnce::WouldWait(spec)),
                    error => Err(core.refused(&spec.callable.name, &error)),
                };
            }
        };
        let name = std::sync::Arc::clone(&spec.callable.name);
        let work = Work::Call {
            callable: spec.callable,
            config: spec.config,
            members: members.into(),
        };
        let number = core.plan_number();
        let what = (name, work, spec.options);
        core.admitted(task, spec.run, what, (number, pins), actions)
            .map(AtOnce::Submitted)
    }
}

impl Core {
    /// What the scheduler has said against a task.
    pub(super) fn refused(&self, callable: &str, error: &graph::SubmitError) -> Error {
        match error {
            graph::SubmitError::AllLost { .. } => Error::EndpointLost {
                // They were there a moment ago, or nobody would have been found to run it.
                worker: "every worker that could run it".into(),
                message: format!(
                    "the last loss was {}",
                    self.last_loss.as_deref().unwrap_or_default()
                ),
                hint: "worker.reopen(worker_id) starts a lost session anew, a later run what else is replaced",
            },
            graph::SubmitError::BadInterval { .. } | graph::SubmitError::NoMembers => {
                Error::argument("args", error.to_string())
            }
            _ => Error::NotEligible {
                callable: callable.to_owned(),
                reasons: vec![error.to_string()],
            },
        }
    }

    /// The scheduler has taken a task: its record, and what it asks for. Returns the task's number in its run.
    pub(super) fn admitted(
        &mut self,
        task: graph::TaskId,
        run: RunId,
        what: What,
        (plan, pins): (u64, Vec<RemoteBuffer>),
        actions: Vec<graph::Action>,
    ) -> Result<u64, Error> {
        let before = std::mem::replace(&mut self.torn, true);
        hit("submit.admitted")?;
        let mut record = self.new_record(task, run, what, pins);
        record.plan = plan;
        let sequence = record.sequence;
        self.records.insert(task, record);
        self.carry_out(actions);
        self.torn = before;
        Ok(sequence)
    }

    fn unpin_all(&mut self, pins: Vec<RemoteBuffer>) {
        for buffer in pins {
            // Another thread may have freed it meanwhile: then the free is sent now.
            self.unpin(buffer);
        }
    }
}

/// Bytes that are copied into shared memory for a local worker.
fn staged_bytes(arg: &TensorArg) -> u64 {
    match arg.source {
        ArgSource::Host(_) | ArgSource::Inline(_) => arg.nbytes(),
        ArgSource::Tensor(_) | ArgSource::Remote { .. } => 0,
    }
}

/// The buffers of the arguments, held for the task; all or none.
fn pinned(core: &mut Core, tensors: &[TensorArg]) -> Result<Vec<RemoteBuffer>, Error> {
    let mut pins = Vec::new();
    for arg in tensors {
        if let ArgSource::Remote { buffer, .. } = &arg.source {
            if let Err(error) = buffer.pin("tensor") {
                core.unpin_all(pins);
                return Err(error);
            }
            pins.push(buffer.clone());
        }
    }
    Ok(pins)
}
