//! What an orchestration function gets: submits, copies, memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use echelon_wire::call_config::CallConfig;
use echelon_wire::tensor::TensorMeta;
use parking_lot::Mutex;

use super::{CallableHandle, TaskOptions, Worker};
use crate::args::{ArgSource, TaskArgs, TensorArg};
use crate::buffer::RemoteBuffer;
use crate::engine::{self, Engine, GroupKind, Patience, SubmitSpec, Target, WaitEnd};
use crate::error::Error;
use crate::graph::RunId;
use crate::memory::{ArenaBlock, HostMemory, MemoryError};
use crate::tensor::{Tag, Tensor};

/// A submitted task, by its number in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskHandle {
    /// From 1, in submit order.
    pub sequence: u64,
}

/// One side of [`Orchestrator::copy`].
#[derive(Clone, Debug)]
pub enum CopySide {
    /// A tensor in shared memory.
    Tensor(Tensor),
    /// Memory of this process, such as a numpy array.
    Host {
        /// The bytes.
        memory: HostMemory,
        /// Their shape.
        meta: TensorMeta,
    },
    /// A range of a remote buffer or import.
    Remote {
        /// The handle.
        buffer: RemoteBuffer,
        /// First byte.
        offset: u64,
        /// Its shape.
        meta: TensorMeta,
    },
}

/// An arena block with the scope that bounds its use.
pub(crate) struct ScopedBlock {
    _block: Arc<ArenaBlock>,
    scope: Arc<AtomicBool>,
}

impl ScopedBlock {
    pub(crate) fn ended(&self) -> bool {
        self.scope.load(Ordering::Acquire)
    }
}

/// The submitting side of one `run()`; valid until its orchestration function returns. May be used from several threads.
#[derive(Clone)]
pub struct Orchestrator {
    worker: Worker,
    engine: Arc<Engine>,
    run: RunId,
    pub(super) options: TaskOptions,
    /// Open scopes, innermost last; each flag says that its scope has ended.
    scopes: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
}

impl Orchestrator {
    /// The run was interrupted while its function ran (design §15.15): what has not started never will, what runs has
    /// `interrupt_grace`, and nothing is copied back into the caller's arrays. To be followed by the function's return.
    pub fn interrupted(&self) {
        if let Some(state) = self.engine.core.lock().runs.get_mut(self.run) {
            state.interrupted = true;
        }
    }

    pub(crate) fn new(worker: Worker, engine: Arc<Engine>, run: RunId) -> Self {
        Self {
            worker,
            engine,
            run,
            options: TaskOptions::default(),
            scopes: Arc::default(),
        }
    }

    /// The worker that runs it.
    #[must_use]
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Submits a task to one NEXT_LEVEL worker: the named one, or any eligible.
    ///
    /// # Errors
    /// [`Error::NotEligible`] with each worker's reason, [`Error::Type`] for memory that cannot go there, [`Error::Handle`],
    /// [`Error::Resource`] when nothing is running that could make room.
    pub fn submit_next_level(
        &self,
        callable: &CallableHandle,
        args: TaskArgs,
        config: CallConfig,
        worker: Option<i32>,
    ) -> Result<TaskHandle, Error> {
        self.submit(
            callable,
            &[args],
            &config,
            next_level(worker.as_ref()),
            GroupKind::Single,
        )
    }

    /// Submits a gang: one member for each entry of `args`, all at once on distinct NEXT_LEVEL workers (design §15.23).
    ///
    /// # Errors
    /// As [`Self::submit_next_level`]; also when members touch the same bytes and one writes, or there are too few workers.
    pub fn submit_next_level_group(
        &self,
        callable: &CallableHandle,
        args: Vec<TaskArgs>,
        config: CallConfig,
        workers: Option<Vec<i32>>,
    ) -> Result<TaskHandle, Error> {
        if let Some(ids) = workers.as_ref().filter(|ids| ids.len() != args.len()) {
            return Err(Error::argument(
                "workers",
                format!(
                    "{} workers for {} members; name one for each",
                    ids.len(),
                    args.len()
                ),
            ));
        }
        let target = workers.as_deref();
        let target = target.map_or(Target::NextLevel, Target::Workers);
        self.submit(callable, &args, &config, target, GroupKind::Gang)
    }

    /// Submits a task to a sub worker.
    ///
    /// # Errors
    /// As [`Self::submit_next_level`].
    pub fn submit_sub(
        &self,
        callable: &CallableHandle,
        args: TaskArgs,
    ) -> Result<TaskHandle, Error> {
        self.submit(
            callable,
            &[args],
            CallConfig::usual(),
            Target::Sub,
            GroupKind::Single,
        )
    }

    /// Submits one member a set of arguments to sub workers; they may run in waves.
    ///
    /// # Errors
    /// As [`Self::submit_next_level`].
    pub fn submit_sub_group(
        &self,
        callable: &CallableHandle,
        args: Vec<TaskArgs>,
    ) -> Result<TaskHandle, Error> {
        self.submit(
            callable,
            &args,
            CallConfig::usual(),
            Target::Sub,
            GroupKind::Waves,
        )
    }

    /// Submits a task for each entry of `args`, in their order: the same as so many single submits, with less to pay for each.
    /// Tasks of one batch may depend on each other.
    ///
    /// # Errors
    /// As [`Self::submit_next_level`], in [`Error::InBatch`], which has the index. What stands before it in `args` stays submitted.
    pub fn submit_next_level_many(
        &self,
        callable: &CallableHandle,
        args: &[TaskArgs],
        config: &CallConfig,
        worker: Option<i32>,
    ) -> Result<Vec<TaskHandle>, Error> {
        self.submit_many(callable, args, config, next_level(worker.as_ref()))
    }

    /// Submits a task to a sub worker for each entry of `args`, in their order.
    ///
    /// # Errors
    /// As [`Self::submit_next_level_many`].
    pub fn submit_sub_many(
        &self,
        callable: &CallableHandle,
        args: &[TaskArgs],
    ) -> Result<Vec<TaskHandle>, Error> {
        self.submit_many(callable, args, CallConfig::usual(), Target::Sub)
    }

    /// [`Self::submit_next_level`] if it has to wait for nothing, not even for a lock; `None` if it had to, and then nothing has
    /// happened. For callers that hold a lock of their own that others need, such as the interpreter's.
    ///
    /// # Errors
    /// As [`Self::submit_next_level`].
    pub fn try_submit_next_level(
        &self,
        callable: &CallableHandle,
        args: &TaskArgs,
        config: &CallConfig,
        worker: Option<i32>,
    ) -> Result<Option<TaskHandle>, Error> {
        self.try_submit(callable, args, config, next_level(worker.as_ref()))
    }

    /// [`Self::submit_sub`] if it has to wait for nothing; see [`Self::try_submit_next_level`].
    ///
    /// # Errors
    /// As [`Self::submit_next_level`].
    pub fn try_submit_sub(
        &self,
        callable: &CallableHandle,
        args: &TaskArgs,
    ) -> Result<Option<TaskHandle>, Error> {
        self.try_submit(callable, args, CallConfig::usual(), Target::Sub)
    }

    fn try_submit(
        &self,
        callable: &CallableHandle,
        args: &TaskArgs,
        config: &CallConfig,
        target: Target<'_>,
    ) -> Result<Option<TaskHandle>, Error> {
        callable.check(self.engine.uid)?;
        let args = std::slice::from_ref(args);
        let spec = self.spec(callable, args, config, target, GroupKind::Single);
        let sequence = self.engine.submit_at_once(spec, Patience::None)?;
        Ok(sequence.map(|sequence| TaskHandle { sequence }))
    }

    fn submit(
        &self,
        callable: &CallableHandle,
        args: &[TaskArgs],
        config: &CallConfig,
        target: Target<'_>,
        group: GroupKind,
    ) -> Result<TaskHandle, Error> {
        callable.check(self.engine.uid)?;
        if args.is_empty() {
            return Err(Error::argument(
                "args_list",
                "a group needs at least one member",
            ));
        }
        let spec = self.spec(callable, args, config, target, group);
        Ok(TaskHandle {
            sequence: self.engine.submit(spec)?,
        })
    }

    fn submit_many(
        &self,
        callable: &CallableHandle,
        args: &[TaskArgs],
        config: &CallConfig,
        target: Target<'_>,
    ) -> Result<Vec<TaskHandle>, Error> {
        callable.check(self.engine.uid)?;
        let spec = self.spec(callable, args, config, target, GroupKind::Single);
        match self.engine.submit_many(spec) {
            Ok(sequences) => Ok(sequences
                .into_iter()
                .map(|sequence| TaskHandle { sequence })
                .collect()),
            Err((index, error)) => Err(Error::InBatch {
                index,
                error: Box::new(error),
            }),
        }
    }

    fn spec<'a>(
        &self,
        callable: &'a CallableHandle,
        args: &'a [TaskArgs],
        config: &'a CallConfig,
        target: Target<'a>,
        group: GroupKind,
    ) -> SubmitSpec<'a> {
        SubmitSpec {
            run: self.run,
            callable: &callable.callable,
            config,
            target,
            group,
            options: self.options,
            args,
        }
    }

    /// Allocates a tensor in shared memory; contents undefined. Inside a scope it may be submitted until the scope ends. The
    /// memory is reused when no task and no view of it is left.
    ///
    /// # Errors
    /// [`Error::Resource`] when the memory limit is reached and nothing is running that could give some back.
    pub fn alloc(&self, meta: TensorMeta) -> Result<Tensor, Error> {
        let nbytes = meta
            .nbytes()
            .ok_or_else(|| Error::argument("shape", "its size in bytes overflows 64 bits"))?;
        let block = self.alloc_block(nbytes)?;
        let scope = self.scopes.lock().last().cloned().unwrap_or_default();
        let (region, offset) = (Arc::clone(block.region()), block.offset());
        let lease: crate::tensor::Lease = Arc::new(ScopedBlock {
            _block: block,
            scope,
        });
        Tensor::new(meta, region, offset, Some(lease), false)
    }

    fn alloc_block(&self, nbytes: u64) -> Result<Arc<ArenaBlock>, Error> {
        loop {
            let finished = self.engine.core.lock().finished;
            match self.engine.arena.alloc(nbytes) {
                Ok(block) => return Ok(block),
                Err(MemoryError::Exhausted {
                    requested, limit, ..
                }) => {
                    self.engine.wait_for_room(finished, || Error::Resource {
                        what: "shared memory of the worker".into(),
                        requested,
                        limit,
                        hint: "release tensors that are not needed any more, or raise memory_limit",
                    })?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until every task of the run that was submitted so far, and by other threads meanwhile, has ended. Failures are
    /// reported by `run()`.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn wait_all(&self) -> Result<(), Error> {
        let run = self.run;
        let waited = self.engine.wait_until(None, |core| {
            (core.scheduler.run_live(run) == 0).then_some(())
        });
        waited.map_err(WaitEnd::into_error)
    }

    /// Opens a scope: what is allocated from now on belongs to it.
    pub fn scope_begin(&self) {
        self.scopes.lock().push(Arc::default());
    }

    /// Ends the innermost scope.
    ///
    /// # Errors
    /// [`Error::Argument`] when none is open.
    pub fn scope_end(&self) -> Result<(), Error> {
        let scope = self.scopes.lock().pop();
        let scope = scope.ok_or_else(|| Error::argument("scope", "no scope is open"))?;
        scope.store(true, Ordering::Release);
        Ok(())
    }

    /// Submits a copy as a node of the graph: its dependencies are inferred like a task's, and it runs on the lanes.
    ///
    /// # Errors
    /// [`Error::Argument`] when sizes differ or the destination is read-only, [`Error::Handle`] for a handle that does not
    /// allow it.
    pub fn copy(&self, dst: CopySide, src: CopySide) -> Result<TaskHandle, Error> {
        let dst = self.copy_arg(dst, Tag::Output, "dst")?;
        let src = self.copy_arg(src, Tag::Input, "src")?;
        if dst.nbytes() != src.nbytes() {
            return Err(Error::argument(
                "copy",
                format!(
                    "dst has {} bytes and src {}; give both one size",
                    dst.nbytes(),
                    src.nbytes()
                ),
            ));
        }
        let job = engine::CopyJob::new(copy_side(&dst)?, copy_side(&src)?);
        Ok(TaskHandle {
            sequence: self.engine.submit_copy(self.run, job, &dst, &src)?,
        })
    }

    fn copy_arg(&self, side: CopySide, tag: Tag, what: &'static str) -> Result<TensorArg, Error> {
        let mut args = TaskArgs::new();
        match side {
            CopySide::Tensor(tensor) => args.add_tensor(&tensor, tag)?,
            CopySide::Host { memory, meta } => args.add_host(memory, meta, tag)?,
            CopySide::Remote {
                buffer,
                offset,
                meta,
            } => args.add_remote(&buffer, offset, meta, tag)?,
        };
        let arg = args
            .tensors()
            .first()
            .ok_or_else(|| Error::argument(what, "nothing to copy"))?;
        self.engine.normalise_one(arg)
    }
}

fn next_level(worker: Option<&i32>) -> Target<'_> {
    worker.map_or(Target::NextLevel, |id| {
        Target::Workers(std::slice::from_ref(id))
    })
}

fn copy_side(arg: &TensorArg) -> Result<engine::CopySide, Error> {
    Ok(match &arg.source {
        ArgSource::Tensor(tensor) => engine::CopySide::Local(tensor.memory()?),
        ArgSource::Host(memory) => engine::CopySide::Local(memory.clone()),
        ArgSource::Inline(bytes) => engine::CopySide::Local(HostMemory::from_bytes(bytes.clone())),
        ArgSource::Remote { buffer, offset } => {
            engine::CopySide::of_buffer(buffer, *offset, arg.nbytes())
        }
    })
}

impl std::fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orchestrator")
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callable::Callable;
    use crate::worker::RegisterOptions;

    /// A thread that holds the interpreter's lock would otherwise wait for one that another thread holds.
    #[test]
    fn section_15_12_a_submit_that_must_not_wait_leaves_a_lock_that_is_taken() {
        let worker = Worker::builder().threads(1).build().unwrap();
        let noop = Callable::native("noop", |_| Ok(()));
        let noop = worker.register(noop, RegisterOptions::default()).unwrap();
        worker.init().unwrap();
        let run = worker.run_simple(|orch| {
            let busy = orch.engine.core.lock();
            assert_eq!(orch.try_submit_sub(&noop, &TaskArgs::new())?, None);
            drop(busy);
            orch.submit_sub(&noop, TaskArgs::new()).map(drop)
        });
        assert_eq!(run.unwrap().counts["completed"], 1);
        worker.close().unwrap();
    }
}
