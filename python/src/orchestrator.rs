//! `Orchestrator`: what an orchestration function submits with.

use echelon_runtime::args::TaskArgs;
use echelon_runtime::error::Error;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::worker::{CopySide, Orchestrator, TaskHandle, TaskOptions};
use echelon_wire::call_config::CallConfig;
use parking_lot::Mutex;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::call_config::PyCallConfig;
use crate::callable_handle::PyCallableHandle;
use crate::remote_buffer_handle::PyRemoteBufferHandle;
use crate::remote_tensor_ref::{Backing, PyRemoteTensorRef};
use crate::scope::PyScope;
use crate::task_args::PyTaskArgs;
use crate::task_handle::PyTaskHandle;
use crate::tensor::PyTensor;
use crate::{buffer, convert, error, gil};

/// The submitting side of one run: the first argument of an orchestration function, valid until that function returns.
///
/// Tasks order themselves by the tensors that they name: the result is that of running them one by one in submit order.
/// May be used from several threads.
#[pyclass(frozen, module = "echelon._core", name = "Orchestrator")]
pub(crate) struct PyOrchestrator(Mutex<Option<Orchestrator>>);

impl PyOrchestrator {
    pub(crate) fn new(orchestrator: Orchestrator) -> Self {
        Self(Mutex::new(Some(orchestrator)))
    }

    /// The function has returned: what kept the object cannot submit any more, and keeps no engine alive.
    pub(crate) fn end(&self) {
        let ended = self.0.lock().take();
        drop(ended);
    }

    pub(crate) fn inner(&self, py: Python<'_>) -> PyResult<Orchestrator> {
        let inner = self.0.lock().clone();
        inner.ok_or_else(|| {
            error::lifecycle(
                py,
                "the orchestration function of this run has returned; submit from within it",
            )
        })
    }
}

/// Options of a submit; `None` for those that most have.
fn options(
    timeout_s: Option<&Bound<'_, PyAny>>,
    idempotent: bool,
) -> PyResult<Option<TaskOptions>> {
    if timeout_s.is_none() && !idempotent {
        return Ok(None);
    }
    let timeout = convert::optional_seconds("timeout_s", timeout_s)?;
    Ok(Some(TaskOptions {
        timeout,
        idempotent,
    }))
}

impl PyOrchestrator {
    /// The orchestrator for a submit with options.
    fn with(&self, py: Python<'_>, options: Option<TaskOptions>) -> PyResult<Orchestrator> {
        let inner = self.inner(py)?;
        match options {
            Some(options) => inner.with(options).map_err(convert::raise(py)),
            None => Ok(inner),
        }
    }

    /// One submit: with the GIL held if it has to wait for nothing, else without.
    fn submit(
        &self,
        py: Python<'_>,
        args: Option<&PyTaskArgs>,
        options: Option<TaskOptions>,
        attempt: impl FnOnce(&Orchestrator, &TaskArgs) -> Result<Option<TaskHandle>, Error>,
        call: impl FnOnce(Orchestrator, TaskArgs) -> Result<TaskHandle, Error> + Send,
    ) -> PyResult<PyTaskHandle> {
        let plain = options.is_none();
        let waiting = || {
            let orchestrator = self.with(py, options)?;
            let args = args.map_or_else(|| Ok(TaskArgs::new()), |args| args.snapshot(py))?;
            Ok(move || call(orchestrator, args))
        };
        // No call into Python happens under these locks, and nobody else waits for them: all who take them hold the GIL.
        let attempt = |args: &TaskArgs| match &*self.0.lock() {
            Some(orchestrator) if plain => attempt(orchestrator, args),
            _ => Ok(None),
        };
        let attempt = || match args {
            Some(args) => args.look(py, attempt),
            None => Ok(attempt(&TaskArgs::new())),
        };
        gil::quick(py, attempt, waiting).map(PyTaskHandle)
    }

    fn submit_many(
        &self,
        py: Python<'_>,
        args_list: &Bound<'_, PyAny>,
        options: Option<TaskOptions>,
        call: impl FnOnce(Orchestrator, Vec<TaskArgs>) -> Result<Vec<TaskHandle>, Error> + Send,
    ) -> PyResult<Vec<PyTaskHandle>> {
        let orchestrator = self.with(py, options)?;
        let args = snapshots(args_list)?;
        let handles = gil::blocking(py, || call(orchestrator, args))?;
        Ok(handles.into_iter().map(PyTaskHandle).collect())
    }
}

#[pymethods]
impl PyOrchestrator {
    /// Submits a task to one next-level worker.
    ///
    /// Args:
    ///     handle: what to call, as `fn(orch, args, config)`.
    ///     args: its arguments; a snapshot is taken.
    ///     config: a `CallConfig`; the default one when absent.
    ///     worker: id of the worker, or -1 for any eligible one.
    ///     timeout_s: longest time from its begin in seconds, more than 0 and at most 30 days. When it passes, the child
    ///         that runs it is killed, or the session fails, and the task ends as lost.
    ///     idempotent: it may be carried out more than once: after the loss of its worker it is tried again elsewhere, at most
    ///         `max_attempts` times in all. What its code raises is never tried again. ValueError with an INOUT or NO_DEP
    ///         argument, which a lost attempt may have half written.
    ///
    /// Raises NotEligibleError with each worker's reason, HandleError, ResourceExhausted when a limit is reached and nothing
    /// is running that could make room, TypeError for memory that cannot go there.
    #[pyo3(signature = (handle, args, config=None, *, worker=-1, timeout_s=None, idempotent=false),
           text_signature = "($self, handle, args, config=None, *, worker=-1, timeout_s=None, idempotent=False)")]
    #[expect(clippy::too_many_arguments, reason = "most are keywords")]
    fn submit_next_level(
        &self,
        py: Python<'_>,
        handle: &PyCallableHandle,
        args: &PyTaskArgs,
        config: Option<&PyCallConfig>,
        worker: i32,
        timeout_s: Option<&Bound<'_, PyAny>>,
        idempotent: bool,
    ) -> PyResult<PyTaskHandle> {
        let config = match config {
            Some(config) => &config.0,
            None => CallConfig::usual(),
        };
        let worker = (worker != -1).then_some(worker);
        self.submit(
            py,
            Some(args),
            options(timeout_s, idempotent)?,
            |orch, args| orch.try_submit_next_level(&handle.0, args, config, worker),
            |orch, args| orch.submit_next_level(&handle.0, args, config.clone(), worker),
        )
    }

    /// Submits a task to one next-level worker for each entry of `args_list`, in order: the same as so many `submit_next_level`,
    /// with less to pay for each. The tasks order themselves by their tensors as single ones do.
    ///
    /// Args:
    ///     handle: what to call, as `fn(orch, args, config)`.
    ///     args_list: one `TaskArgs` a task; may be empty. One object may stand there many times.
    ///     config: a `CallConfig` for all of them; the default one when absent.
    ///     worker: id of the worker for all of them, or -1 for any eligible one.
    ///     timeout_s, idempotent: as for `submit_next_level`, for each task.
    ///
    /// Returns one `TaskHandle` a task.
    ///
    /// Raises TypeError before anything is submitted when an entry is no `TaskArgs`; otherwise as `submit_next_level`, with the
    /// index of the entry: what stands before it stays submitted, nothing after it is.
    #[pyo3(signature = (handle, args_list, config=None, *, worker=-1, timeout_s=None, idempotent=false),
           text_signature = "($self, handle, args_list, config=None, *, worker=-1, timeout_s=None, idempotent=False)")]
    #[expect(clippy::too_many_arguments, reason = "most are keywords")]
    fn submit_next_level_many(
        &self,
        py: Python<'_>,
        handle: &PyCallableHandle,
        args_list: &Bound<'_, PyAny>,
        config: Option<&PyCallConfig>,
        worker: i32,
        timeout_s: Option<&Bound<'_, PyAny>>,
        idempotent: bool,
    ) -> PyResult<Vec<PyTaskHandle>> {
        let config = config.cloned().unwrap_or_default().0;
        let worker = (worker != -1).then_some(worker);
        let options = options(timeout_s, idempotent)?;
        self.submit_many(py, args_list, options, |orch, args| {
            orch.submit_next_level_many(&handle.0, &args, &config, worker)
        })
    }

    /// Submits a gang: one member for each entry of `args_list`, at once on distinct next-level workers.
    ///
    /// Args:
    ///     handle: what to call, as `fn(orch, args, config)`.
    ///     args_list: one `TaskArgs` a member, at least one.
    ///     config: a `CallConfig` for all members; the default one when absent.
    ///     workers: one worker id a member, or `None` for any eligible ones.
    ///     timeout_s: as for `submit_next_level`, for each member.
    ///
    /// Raises as `submit_next_level`; also when members touch the same bytes and one writes, or there are too few workers.
    #[pyo3(signature = (handle, args_list, config=None, *, workers=None, timeout_s=None))]
    fn submit_next_level_group(
        &self,
        py: Python<'_>,
        handle: &PyCallableHandle,
        args_list: &Bound<'_, PyAny>,
        config: Option<&PyCallConfig>,
        workers: Option<Vec<i32>>,
        timeout_s: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyTaskHandle> {
        let orchestrator = self.with(py, options(timeout_s, false)?)?;
        let args = snapshots(args_list)?;
        let config = config.cloned().unwrap_or_default().0;
        gil::blocking(py, || {
            orchestrator.submit_next_level_group(&handle.0, args, config, workers)
        })
        .map(PyTaskHandle)
    }

    /// Submits a task to a sub worker.
    ///
    /// Args:
    ///     handle: what to call, as `fn(args)`.
    ///     args: its arguments, none when absent; a snapshot is taken.
    ///     timeout_s, idempotent: as for `submit_next_level`.
    ///
    /// Raises as `submit_next_level`; TypeError for a RemoteTensorRef.
    #[pyo3(signature = (handle, args=None, *, timeout_s=None, idempotent=false))]
    fn submit_sub(
        &self,
        py: Python<'_>,
        handle: &PyCallableHandle,
        args: Option<&PyTaskArgs>,
        timeout_s: Option<&Bound<'_, PyAny>>,
        idempotent: bool,
    ) -> PyResult<PyTaskHandle> {
        self.submit(
            py,
            args,
            options(timeout_s, idempotent)?,
            |orch, args| orch.try_submit_sub(&handle.0, args),
            |orch, args| orch.submit_sub(&handle.0, args),
        )
    }

    /// Submits a task to a sub worker for each entry of `args_list`, in order: the same as so many `submit_sub`, with less to
    /// pay for each.
    ///
    /// Args:
    ///     handle: what to call, as `fn(args)`.
    ///     args_list: one `TaskArgs` a task; may be empty. One object may stand there many times.
    ///     timeout_s, idempotent: as for `submit_next_level`, for each task.
    ///
    /// Returns one `TaskHandle` a task.
    ///
    /// Raises as `submit_next_level_many`; TypeError for a RemoteTensorRef.
    #[pyo3(signature = (handle, args_list, *, timeout_s=None, idempotent=false))]
    fn submit_sub_many(
        &self,
        py: Python<'_>,
        handle: &PyCallableHandle,
        args_list: &Bound<'_, PyAny>,
        timeout_s: Option<&Bound<'_, PyAny>>,
        idempotent: bool,
    ) -> PyResult<Vec<PyTaskHandle>> {
        let options = options(timeout_s, idempotent)?;
        self.submit_many(py, args_list, options, |orch, args| {
            orch.submit_sub_many(&handle.0, &args)
        })
    }

    /// Submits one member for each entry of `args_list` to sub workers; they may run in waves.
    ///
    /// Args:
    ///     handle: what to call, as `fn(args)`.
    ///     args_list: one `TaskArgs` a member, at least one.
    ///     timeout_s, idempotent: as for `submit_next_level`, for each member.
    ///
    /// Raises as `submit_sub`.
    #[pyo3(signature = (handle, args_list, *, timeout_s=None, idempotent=false))]
    fn submit_sub_group(
        &self,
        py: Python<'_>,
        handle: &PyCallableHandle,
        args_list: &Bound<'_, PyAny>,
        timeout_s: Option<&Bound<'_, PyAny>>,
        idempotent: bool,
    ) -> PyResult<PyTaskHandle> {
        let orchestrator = self.with(py, options(timeout_s, idempotent)?)?;
        let args = snapshots(args_list)?;
        gil::blocking(py, || orchestrator.submit_sub_group(&handle.0, args)).map(PyTaskHandle)
    }

    /// Allocates a tensor in shared memory; its contents are undefined.
    ///
    /// Args:
    ///     shape: an int, or 1 to 5 extents in elements, each 0 or more.
    ///     dtype: a `DataType`, its name, or a numpy dtype.
    ///
    /// Inside `with orch.scope():` it may be submitted until the scope ends, else until the run ends. The memory is reused
    /// when neither a task nor a view of it is left.
    ///
    /// Raises ResourceExhausted when the worker's memory_limit is reached and nothing running could give some back,
    /// ValueError for a shape or element type that cannot be.
    fn alloc(
        &self,
        py: Python<'_>,
        shape: &Bound<'_, PyAny>,
        dtype: &Bound<'_, PyAny>,
    ) -> PyResult<PyTensor> {
        let orchestrator = self.inner(py)?;
        let meta = convert::meta(
            &convert::shape_from_py(shape)?,
            convert::dtype_from_py(dtype)?,
        )?;
        let tensor = gil::blocking(py, || orchestrator.alloc(meta))?;
        Ok(PyTensor::new(tensor))
    }

    /// Waits until every task that this run has submitted so far has ended, so that results can be looked at before the
    /// function goes on. The rest of the run is not affected by what failed; the run raises it at its end.
    ///
    /// Raises KeyboardInterrupt on Ctrl-C.
    fn wait_all(&self, py: Python<'_>) -> PyResult<()> {
        let orchestrator = self.inner(py)?;
        gil::blocking(py, || orchestrator.wait_all())
    }

    /// A context manager that bounds the use of the memory that is allocated inside it.
    fn scope(slf: Py<Self>) -> PyScope {
        PyScope(slf)
    }

    /// Allocates a zeroed buffer on a remote worker, as `Worker.remote_malloc` does. For orchestration functions in a child
    /// of another worker, which have no `Worker` of their own at hand.
    ///
    /// Args:
    ///     worker: id of the worker.
    ///     nbytes: size in bytes, 1 or more.
    ///
    /// Raises as `Worker.remote_malloc`.
    #[pyo3(signature = (worker, nbytes))]
    fn remote_malloc(
        &self,
        py: Python<'_>,
        worker: i32,
        nbytes: &Bound<'_, PyAny>,
    ) -> PyResult<PyRemoteBufferHandle> {
        let orchestrator = self.inner(py)?;
        let nbytes = convert::byte_count("nbytes", nbytes)?;
        gil::blocking(py, || orchestrator.worker().remote_malloc(worker, nbytes))
            .map(PyRemoteBufferHandle)
    }

    /// Frees a buffer: at once, or when the last task, copy and import that use it have ended.
    ///
    /// Raises as `Worker.remote_free`.
    fn remote_free(&self, py: Python<'_>, handle: &PyRemoteBufferHandle) -> PyResult<()> {
        let orchestrator = self.inner(py)?;
        gil::blocking(py, || orchestrator.worker().remote_free(&handle.0))
    }

    /// Submits a copy as a node of the graph; both sides have one size.
    ///
    /// Args:
    ///     dst: a `Tensor`, a `RemoteTensorRef` or a writable array.
    ///     src: the same, or inline bytes.
    ///
    /// Raises ValueError when the sizes differ or `dst` is read-only, HandleError, TypeError.
    fn copy(
        &self,
        py: Python<'_>,
        dst: &Bound<'_, PyAny>,
        src: &Bound<'_, PyAny>,
    ) -> PyResult<PyTaskHandle> {
        let orchestrator = self.inner(py)?;
        let dst = copy_side("dst", dst)?;
        let src = copy_side("src", src)?;
        gil::blocking(py, || orchestrator.copy(dst, src)).map(PyTaskHandle)
    }

    fn __repr__(&self) -> &'static str {
        if self.0.lock().is_some() {
            "<Orchestrator>"
        } else {
            "<Orchestrator of an ended run>"
        }
    }
}

fn snapshots(args_list: &Bound<'_, PyAny>) -> PyResult<Vec<TaskArgs>> {
    let py = args_list.py();
    let items = args_list.try_iter().map_err(|_| {
        PyTypeError::new_err(format!(
            "args_list must be a sequence of TaskArgs, not {}",
            convert::type_name(args_list)
        ))
    })?;
    items
        .map(|item| {
            let item = item?;
            let args = item.cast::<PyTaskArgs>().map_err(|_| {
                PyTypeError::new_err(format!(
                    "args_list must hold TaskArgs, not {}",
                    convert::type_name(&item)
                ))
            })?;
            args.get().snapshot(py)
        })
        .collect()
}

fn copy_side(what: &str, object: &Bound<'_, PyAny>) -> PyResult<CopySide> {
    if let Ok(tensor) = object.cast::<PyTensor>() {
        return Ok(CopySide::Tensor(tensor.get().inner().clone()));
    }
    if let Ok(reference) = object.cast::<PyRemoteTensorRef>() {
        let reference = reference.get();
        let meta = reference.meta;
        return Ok(match &reference.backing {
            Backing::Remote { buffer, offset } => CopySide::Remote {
                buffer: buffer.clone(),
                offset: *offset,
                meta,
            },
            Backing::Inline(bytes) => CopySide::Host {
                memory: HostMemory::from_bytes(bytes.clone()),
                meta,
            },
        });
    }
    let host = buffer::pin_any(what, object)?;
    let meta = host.meta(what, None)?;
    Ok(CopySide::Host {
        memory: host.memory,
        meta,
    })
}
