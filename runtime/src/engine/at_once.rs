//! The submit that waits for nothing: one lock, taken once, from the plan to the ring of the worker.
//!
//! What would have to wait, for room in the table or for memory, goes back to the caller unchanged and takes the longer way of
//! `submit`. With [`Patience::None`] not even the lock is waited for: such a call may be made by a thread that holds the
//! interpreter's lock, because nothing under the engine's lock ever asks for that one (design §15.12).

use std::time::Instant;

use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::attempts::check_repeatable;
use super::chain::part_of;
use super::drive::INTERRUPT_PERIOD;
use super::prepare::{accesses_of, check_arrays_disjoint, check_imports_disjoint};
use super::record::Work;
use super::signature::check_signature;
use super::submit::{GroupKind, SubmitSpec, What};
use super::{Core, Engine};
use crate::args::{ArgSource, TaskArgs, TensorArg};
use crate::buffer::RemoteBuffer;
use crate::error::Error;
use crate::failpoint::hit_often;
use crate::graph::{self, RunId};
use crate::memory::MemoryError;

/// Tasks of a batch that are submitted under one lock: long enough that the lock costs nothing, short enough (tens of
/// microseconds) that others get in.
const BATCH: usize = 64;

/// Most tensors of a task of a batch that are looked at under the lock.
const FEW_TENSORS: usize = 8;

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

impl Engine {
    /// Submits one task if that can be done now: its number in its run. `None` when it would have to wait; nothing has happened then.
    pub(crate) fn submit_at_once(
        &self,
        spec: SubmitSpec<'_>,
        patience: Patience,
    ) -> Result<Option<u64>, Error> {
        self.check_process("submit to")?;
        let Some(args) = self.checked(&spec)? else {
            return Ok(None);
        };
        let visit = self.visit();
        let core = match patience {
            Patience::None => self.core_soon(),
            Patience::ForTheLock => Some(self.core.lock()),
        };
        let Some(mut core) = core else {
            return Ok(None);
        };
        let done = self.submit_locked(&mut core, &spec, args);
        self.leave_submit(core, &visit);
        if spec.options.timeout.is_some() {
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

    /// Submits one task for each of `spec.args`, in order, as single submits would. Returns their numbers; when one is refused,
    /// those before it stay submitted.
    pub(crate) fn submit_many(&self, spec: SubmitSpec<'_>) -> Result<Vec<u64>, (usize, Error)> {
        self.check_process("submit to")
            .map_err(|error| (0, error))?;
        let mut sequences = Vec::with_capacity(spec.args.len());
        let mut next_check = Instant::now() + INTERRUPT_PERIOD;
        for args in spec.args.chunks(BATCH) {
            let batch = SubmitSpec { args, ..spec };
            let mut done = self.submit_batch(batch, &mut sequences, &mut next_check);
            if spec.options.timeout.is_some() {
                self.wake();
            }
            done = done.and_then(|()| self.check_interrupt(&mut next_check));
            done.map_err(|error| (sequences.len(), error))?;
        }
        Ok(sequences)
    }

    /// Each [`INTERRUPT_PERIOD`].
    fn check_interrupt(&self, next_check: &mut Instant) -> Result<(), Error> {
        if Instant::now() < *next_check {
            return Ok(());
        }
        *next_check = Instant::now() + INTERRUPT_PERIOD;
        self.interrupt.check().map_err(|_| Error::Interrupted)
    }

    fn submit_batch(
        &self,
        batch: SubmitSpec<'_>,
        sequences: &mut Vec<u64>,
        next_check: &mut Instant,
    ) -> Result<(), Error> {
        let visit = self.visit();
        let mut core = self.core.lock();
        for args in batch.args {
            let spec = SubmitSpec {
                args: std::slice::from_ref(args),
                ..batch
            };
            // To look at many tensors takes longer than others should wait.
            let checked = if args.tensors().len() > FEW_TENSORS {
                MutexGuard::unlocked(&mut core, || self.checked(&spec))
            } else {
                self.checked(&spec)
            };
            let tried = match checked {
                Ok(Some(args)) => self.submit_locked(&mut core, &spec, args),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            let sequence = match tried {
                Ok(Some(sequence)) => sequence,
                Ok(None) => {
                    drop(core);
                    let sequence = self.submit_waiting(spec)?;
                    // Waits that are shorter than the period check nothing themselves.
                    if let Err(interrupted) = self.check_interrupt(next_check) {
                        sequences.push(sequence);
                        return Err(interrupted);
                    }
                    core = self.core.lock();
                    sequence
                }
                Err(error) => {
                    // Those before it are submitted all the same.
                    self.leave_submit(core, &visit);
                    return Err(error);
                }
            };
            sequences.push(sequence);
        }
        self.leave_submit(core, &visit);
        Ok(())
    }

    /// The arguments of a task, with what can be said against them without the lock; `None` for a group, and for large arrays.
    fn checked(&self, spec: &SubmitSpec<'_>) -> Result<Option<TaskArgs>, Error> {
        let (GroupKind::Single, [args]) = (spec.group, spec.args) else {
            return Ok(None);
        };
        let args = self.normalise(args)?;
        let tensors = args.tensors();
        check_signature(spec.callable, tensors, args.scalars().len())?;
        if tensors.is_empty() {
            return Ok(Some(args));
        }
        if tensors.len() > 1 {
            check_imports_disjoint(tensors)?;
            check_arrays_disjoint(tensors)?;
        }
        if spec.options.idempotent {
            check_repeatable(std::slice::from_ref(&args), spec.group)?;
        }
        let staged = tensors.iter().map(staged_bytes).sum::<u64>();
        Ok((staged <= STAGED_BYTES).then_some(args))
    }

    fn submit_locked(
        &self,
        core: &mut Core,
        spec: &SubmitSpec<'_>,
        args: TaskArgs,
    ) -> Result<Option<u64>, Error> {
        core.check_run(spec.run)?;
        core.check_sessions(args.tensors())?;
        if core.scheduler.is_full() {
            return Ok(None);
        }
        let plan = core.plan(spec, std::slice::from_ref(&args))?;
        let accesses = accesses_of(args.tensors());
        let pins = pinned(core, args.tensors())?;
        let member = match self.prepare_member(args, plan.shares_memory) {
            Ok(member) => member,
            Err(error) => {
                core.unpin_all(pins);
                return match error {
                    MemoryError::Exhausted { .. } => Ok(None),
                    error => Err(error.into()),
                };
            }
        };
        let chaining = part_of(spec.group, std::slice::from_ref(&member), &spec.options);
        let node = (spec.run, &plan.kind, plan.prefer);
        let mut actions = std::mem::take(&mut core.actions);
        core.tick();
        let leaning = core.leaning(&spec.callable.digest);
        let scheduler = &mut core.scheduler;
        if let Some(endpoint) = leaning {
            scheduler.lean(endpoint);
        }
        let task = match scheduler.enter(node, accesses, chaining, &mut actions) {
            Ok(task) => task,
            Err(error) => {
                core.actions = actions;
                core.unpin_all(pins);
                return match error {
                    graph::SubmitError::TableFull { .. } => Ok(None),
                    error => Err(core.refused(&spec.callable.name, &error)),
                };
            }
        };
        let number = core.plan_number();
        let what = (Work::call(spec, SmallVec::from_buf([member])), spec.options);
        core.admitted(task, spec.run, what, (number, pins), actions)
            .map(Some)
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
        hit_often("submit.admitted")?;
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
