//! `Worker`: one level of the hierarchy.

use echelon_runtime::worker::{RegisterOptions, WorkerState};
use echelon_runtime::ChipDevices;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::callable_handle::{callable_of, PyCallableHandle};
use crate::remote_buffer_export::PyRemoteBufferExport;
use crate::remote_buffer_handle::PyRemoteBufferHandle;
use crate::remote_copy::PyRemoteCopy;
use crate::remote_worker_spec::PyRemoteWorkerSpec;
use crate::run_report::PyRunReport;
use crate::worker_life::Life;
use crate::worker_options::Options;
use crate::{buffer, convert, gil, worker_run};

/// One level of the hierarchy: the parent of a script, or the specification of a local child.
///
/// Args (all are keywords):
///     level: a label from 3 to 255; the parent is 4 or more, and above its children.
///     num_sub_workers: Python processes that run sub callables, 0 to 1024.
///     device_ids: devices that this worker owns, each once: a process each, which runs `ChipCallable`s. They are its first
///         next-level workers, ids from 0 in this order.
///     platform: what kind of device; `"cpu"` needs no accelerator and has devices 0 to 1023.
///     runtime: the runtime that the machine code is made for.
///     remote_session_timeout_s: seconds, above 0.2, after which a silent session counts as lost, and after which a session ends itself
///         when this process stands still or cannot be reached; default 30.
///     startup_timeout_s: bound of `init()` as a whole, in seconds; default 60.
///     close_timeout_s: bound of `close()` as a whole, in seconds; default 10.
///     interrupt_grace_s: seconds that running tasks have after Ctrl-C before their process is killed; default 5.
///     memory_limit: bytes of shared memory for tensors, at least 1 MiB; default half of what the machine has free.
///     max_tasks: unfinished tasks before a submit blocks, 1 to 1,048,576; default 16,384.
///     max_attempts: how often a task that is submitted as idempotent may be begun in all, 1 to 100; default 3.
///
/// Children import with the `sys.path` that this process has when `init()` is called.
///
/// Raises TypeError for an unknown keyword, with the nearest known one, and ValueError for a value out of range.
#[pyclass(frozen, weakref, module = "echelon._core", name = "Worker")]
pub(crate) struct PyWorker(Life);

#[pymethods]
impl PyWorker {
    #[new]
    #[pyo3(signature = (*, level=None, num_sub_workers=None, device_ids=None, platform="cpu",
                        runtime="tensormap_and_ringbuffer", remote_session_timeout_s=None, startup_timeout_s=None,
                        close_timeout_s=None, interrupt_grace_s=None, memory_limit=None, max_tasks=None, max_attempts=None,
                        **unknown))]
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each setting, all of them keywords"
    )]
    fn new(
        py: Python<'_>,
        level: Option<&Bound<'_, PyAny>>,
        num_sub_workers: Option<&Bound<'_, PyAny>>,
        device_ids: Option<Vec<i64>>,
        platform: &str,
        runtime: &str,
        remote_session_timeout_s: Option<&Bound<'_, PyAny>>,
        startup_timeout_s: Option<&Bound<'_, PyAny>>,
        close_timeout_s: Option<&Bound<'_, PyAny>>,
        interrupt_grace_s: Option<&Bound<'_, PyAny>>,
        memory_limit: Option<&Bound<'_, PyAny>>,
        max_tasks: Option<&Bound<'_, PyAny>>,
        max_attempts: Option<&Bound<'_, PyAny>>,
        unknown: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        crate::worker_options::refuse_unknown(unknown)?;
        let options = Options {
            level: convert::optional_count("level", level)?,
            num_sub_workers: convert::optional_count("num_sub_workers", num_sub_workers)?,
            chips: ChipDevices {
                platform: platform.to_owned(),
                runtime: runtime.to_owned(),
                ids: device_ids.unwrap_or_default(),
            },
            remote_session_timeout: convert::optional_seconds(
                "remote_session_timeout_s",
                remote_session_timeout_s,
            )?,
            startup_timeout: convert::optional_seconds("startup_timeout_s", startup_timeout_s)?,
            close_timeout: convert::optional_seconds("close_timeout_s", close_timeout_s)?,
            interrupt_grace: convert::optional_seconds("interrupt_grace_s", interrupt_grace_s)?,
            memory_limit: memory_limit
                .map(|value| convert::byte_count("memory_limit", value))
                .transpose()?,
            max_tasks: convert::optional_count("max_tasks", max_tasks)?,
            max_attempts: convert::optional_count("max_attempts", max_attempts)?,
        };
        let worker = options.builder(py)?.build().map_err(convert::raise(py))?;
        Ok(Self(Life::new(worker)))
    }

    /// Adds a local child, a process that is a Worker itself; returns its worker id. Ids count both kinds of `add_*` in order of
    /// the calls, after those of the devices. The child is taken over and cannot be used directly any more.
    ///
    /// Raises LifecycleError when either worker is inited, ValueError when the child's level is not below this one's.
    fn add_worker(&self, py: Python<'_>, child: &Self) -> PyResult<i32> {
        let (worker, child) = (self.0.get(py)?, child.0.get(py)?);
        gil::blocking(py, || worker.add_worker(child))
    }

    /// Adds a session on a remote daemon; returns its worker id.
    ///
    /// Raises LifecycleError after `init()`, ValueError for a worker of level 3.
    fn add_remote_worker(&self, py: Python<'_>, spec: &PyRemoteWorkerSpec) -> PyResult<i32> {
        let worker = self.0.get(py)?;
        let spec = spec.0.clone();
        gil::blocking(py, || worker.add_remote_worker(spec))
    }

    /// Makes a callable known to workers; on several it is all or nothing. Before `init()` it is carried out by `init()`.
    ///
    /// Args:
    ///     target: a function, which goes to all sub workers and local children, or a `RemoteCallable`, which goes to all
    ///         remote workers. A function of an importable module goes by its import path; others (of `__main__`, lambdas,
    ///         closures) are serialized with cloudpickle, for workers of this host and sessions whose daemon allows it.
    ///         A `ChipCallable` goes to this worker's chips, or with `inner` to those of its next-level workers.
    ///     workers: ids of next-level workers to which it goes instead.
    ///     inner: installs it for the sub workers *of* those workers; there `ec.session.get_inner_handle` finds it.
    ///
    /// Raises RegistrationError with every worker's reason, TypeError for a target that cannot be called or serialized,
    /// ValueError for unknown ids. A session that takes no serialized functions is such a reason.
    #[pyo3(signature = (target, *, workers=None, inner=false))]
    fn register(
        &self,
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        workers: Option<Vec<i32>>,
        inner: bool,
    ) -> PyResult<PyCallableHandle> {
        let worker = self.0.get(py)?;
        let (callable, scope) = callable_of(target)?;
        let options = RegisterOptions {
            workers,
            inner,
            scope,
        };
        if worker.state() == WorkerState::New {
            self.0.prepare(py)?;
        }
        gil::blocking(py, || worker.register(callable, options)).map(PyCallableHandle)
    }

    /// Removes a callable everywhere. Tasks that were submitted before still run.
    ///
    /// Raises HandleError for a handle of another Worker or one that was unregistered, RegistrationError naming the
    /// workers that did not confirm.
    fn unregister(&self, py: Python<'_>, handle: &PyCallableHandle) -> PyResult<()> {
        let worker = self.0.get(py)?;
        gil::blocking(py, || worker.unregister(&handle.0))
    }

    /// Starts all workers, in one transaction: when it raises, nothing of it is left.
    ///
    /// Raises StartupError with the first cause, RegistrationError, LifecycleError when it was inited before.
    fn init(&self, py: Python<'_>) -> PyResult<()> {
        let worker = self.0.get(py)?;
        self.0.prepare(py)?;
        gil::blocking(py, || worker.init())
    }

    /// Starts a fresh session for a remote worker that was lost, within `startup_timeout_s`: same id and name, with all callables of
    /// that worker; handles of buffers, imports and exports of the lost session are refused, and freeing them succeeds.
    ///
    /// Raises ValueError for an unknown or local id, LifecycleError when it is not lost or another thread reopens it, StartupError,
    /// RegistrationError: then it stays lost and may be reopened again.
    fn reopen(&self, py: Python<'_>, worker_id: i32) -> PyResult<()> {
        let worker = self.0.get(py)?;
        gil::blocking(py, || worker.reopen(worker_id))
    }

    /// Ends all workers within `close_timeout_s`. May be called from any state and thread, any number of times.
    ///
    /// Raises CloseError naming what could not be ended; a further call tries again.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let worker = self.0.get(py)?;
        gil::blocking(py, || worker.close())
    }

    /// Calls `fn(orch, args, config)` on this thread and waits until every task that it submitted has ended.
    ///
    /// A worker that is not inited is inited first. What `fn` raises passes through unchanged, after what it submitted has
    /// been cancelled or has ended.
    ///
    /// Args:
    ///     fn: the orchestration function.
    ///     args: handed to it as it is.
    ///     config: handed to it; a default `CallConfig` when absent.
    ///
    /// Raises TaskError when user code in a worker raised, EndpointLost when a worker was lost, KeyboardInterrupt on
    /// Ctrl-C, LifecycleError. The worker stays usable.
    #[pyo3(signature = (r#fn, args=None, config=None))]
    fn run(
        &self,
        py: Python<'_>,
        r#fn: &Bound<'_, PyAny>,
        args: Option<Py<PyAny>>,
        config: Option<Py<PyAny>>,
    ) -> PyResult<PyRunReport> {
        let worker = self.0.get(py)?;
        worker_run::check_function(r#fn)?;
        if worker.state() == WorkerState::New {
            self.init(py)?;
        }
        worker_run::run(py, worker, r#fn, args, config)
    }

    /// Allocates a zeroed buffer on a remote worker.
    ///
    /// Args:
    ///     worker: id of the worker.
    ///     nbytes: size in bytes, 1 or more.
    ///
    /// Raises ValueError, ResourceExhausted when the session's limit is reached, RemoteError, EndpointLost, LifecycleError.
    #[pyo3(signature = (worker, nbytes))]
    fn remote_malloc(
        &self,
        py: Python<'_>,
        worker: i32,
        nbytes: &Bound<'_, PyAny>,
    ) -> PyResult<PyRemoteBufferHandle> {
        let this = self.0.get(py)?;
        let nbytes = convert::byte_count("nbytes", nbytes)?;
        gil::blocking(py, || this.remote_malloc(worker, nbytes)).map(PyRemoteBufferHandle)
    }

    /// Frees a buffer: at once, or when the last task and import that use it have ended.
    ///
    /// Raises HandleError for a released, foreign or imported handle, RemoteError.
    fn remote_free(&self, py: Python<'_>, handle: &PyRemoteBufferHandle) -> PyResult<()> {
        let worker = self.0.get(py)?;
        gil::blocking(py, || worker.remote_free(&handle.0))
    }

    /// Copies host bytes into a buffer; returns when they have arrived.
    ///
    /// Args:
    ///     handle: an owner's handle.
    ///     host: anything C-contiguous with the buffer protocol.
    ///     nbytes: how many of its bytes, from the first on; all when absent.
    ///     offset: first byte in the buffer, 0 when absent.
    ///
    /// Raises ValueError for a range outside either side, HandleError, RemoteError, EndpointLost.
    #[pyo3(signature = (handle, host, nbytes=None, *, offset=None))]
    fn remote_copy_to(
        &self,
        py: Python<'_>,
        handle: &PyRemoteBufferHandle,
        host: &Bound<'_, PyAny>,
        nbytes: Option<&Bound<'_, PyAny>>,
        offset: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let worker = self.0.get(py)?;
        let (memory, offset) = buffer::host_range(host, nbytes, offset)?;
        gil::blocking(py, || worker.remote_copy_to(&handle.0, &memory, offset))
    }

    /// Copies from a buffer into host memory; returns when the bytes are there.
    ///
    /// Args:
    ///     handle: an owner's handle.
    ///     host: anything writable and C-contiguous with the buffer protocol.
    ///     nbytes: how many bytes; as many as `host` has when absent.
    ///     offset: first byte in the buffer, 0 when absent.
    ///
    /// Raises as `remote_copy_to`; ValueError also when `host` is read-only.
    #[pyo3(signature = (handle, host, nbytes=None, *, offset=None))]
    fn remote_copy_from(
        &self,
        py: Python<'_>,
        handle: &PyRemoteBufferHandle,
        host: &Bound<'_, PyAny>,
        nbytes: Option<&Bound<'_, PyAny>>,
        offset: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let worker = self.0.get(py)?;
        let (memory, offset) = buffer::host_range(host, nbytes, offset)?;
        gil::blocking(py, || worker.remote_copy_from(&handle.0, &memory, offset))
    }

    /// Begins `remote_copy_to` and returns at once with a `RemoteCopy`. The copy keeps its place among everything that uses the buffer:
    /// what is submitted afterwards sees the bytes. `host` must not be changed until the copy has ended.
    ///
    /// Args and errors as `remote_copy_to`; what happens later is raised by `RemoteCopy.wait`. While 256 controls are on their
    /// way to that worker, it waits for one of them to end.
    #[pyo3(signature = (handle, host, nbytes=None, *, offset=None))]
    fn remote_copy_to_async(
        &self,
        py: Python<'_>,
        handle: &PyRemoteBufferHandle,
        host: &Bound<'_, PyAny>,
        nbytes: Option<&Bound<'_, PyAny>>,
        offset: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyRemoteCopy> {
        let worker = self.0.get(py)?;
        let (memory, offset) = buffer::host_range(host, nbytes, offset)?;
        gil::blocking(py, || {
            worker.remote_copy_to_async(&handle.0, &memory, offset)
        })
        .map(PyRemoteCopy)
    }

    /// Begins `remote_copy_from` and returns at once with a `RemoteCopy`. What `host` holds until the copy has ended is undefined.
    ///
    /// Args and errors as `remote_copy_from`; what happens later is raised by `RemoteCopy.wait`. It waits as `remote_copy_to_async`.
    #[pyo3(signature = (handle, host, nbytes=None, *, offset=None))]
    fn remote_copy_from_async(
        &self,
        py: Python<'_>,
        handle: &PyRemoteBufferHandle,
        host: &Bound<'_, PyAny>,
        nbytes: Option<&Bound<'_, PyAny>>,
        offset: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyRemoteCopy> {
        let worker = self.0.get(py)?;
        let (memory, offset) = buffer::host_range(host, nbytes, offset)?;
        gil::blocking(py, || {
            worker.remote_copy_from_async(&handle.0, &memory, offset)
        })
        .map(PyRemoteCopy)
    }

    /// Makes a range of an owned buffer importable by other workers.
    ///
    /// Args:
    ///     handle: an owner's handle.
    ///     offset: first byte in the buffer, 0 when absent.
    ///     nbytes: size in bytes, 1 or more; to the end when absent.
    ///     access: `"read"`, `"write"`, `"readwrite"` or an `AccessFlags`: what an importer may do; `"read"` when absent.
    ///
    /// Raises HandleError for imports and released handles, ValueError for an empty range or one outside, RemoteError.
    #[pyo3(signature = (handle, *, offset=None, nbytes=None, access=None))]
    fn remote_export(
        &self,
        py: Python<'_>,
        handle: &PyRemoteBufferHandle,
        offset: Option<&Bound<'_, PyAny>>,
        nbytes: Option<&Bound<'_, PyAny>>,
        access: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyRemoteBufferExport> {
        let worker = self.0.get(py)?;
        let offset = offset.map_or(Ok(0), |value| convert::byte_count("offset", value))?;
        let nbytes = nbytes
            .map(|value| convert::byte_count("nbytes", value))
            .transpose()?;
        let access = access.map_or(
            Ok(echelon_wire::buffer::AccessFlags::READ),
            convert::access_from_py,
        )?;
        gil::blocking(py, || {
            worker.remote_export(&handle.0, offset, nbytes, access)
        })
        .map(PyRemoteBufferExport)
    }

    /// Makes an export usable on another worker.
    ///
    /// Args:
    ///     export: what `remote_export` of this Worker returned.
    ///     worker: id of the worker.
    ///     access: a part of what the export allows, in the same words; all of it when absent.
    ///
    /// Raises HandleError for a foreign export, a freed owner or more access than exported, RemoteError when the session
    /// cannot reach the bytes, ValueError for the owner itself.
    #[pyo3(signature = (export, *, worker, access=None))]
    fn remote_import(
        &self,
        py: Python<'_>,
        export: &PyRemoteBufferExport,
        worker: i32,
        access: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyRemoteBufferHandle> {
        let this = self.0.get(py)?;
        let access = access.map(convert::access_from_py).transpose()?;
        gil::blocking(py, || this.remote_import(&export.0, worker, access))
            .map(PyRemoteBufferHandle)
    }

    /// Ends an import: at once, or when the last task that uses it has ended.
    ///
    /// Raises HandleError for a released, foreign or owner's handle, RemoteError.
    fn remote_release_import(&self, py: Python<'_>, handle: &PyRemoteBufferHandle) -> PyResult<()> {
        let worker = self.0.get(py)?;
        gil::blocking(py, || worker.remote_release_import(&handle.0))
    }

    /// Number of tasks since `init()`: a dict with `submitted` and `finished`, of the finished ones `completed`, `failed`,
    /// `lost`, `skipped` and `cancelled`, and `retried` (attempts beyond the first). For progress bars, from any thread.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let worker = self.0.get(py)?;
        worker_run::progress(py, worker)
    }

    /// The workers as they are now: a list of dicts with `name`, `pid` (0 where it is not known) and `capacity` (tasks in
    /// flight there however long they are; more while they are short). Empty before `init()` and after `close()`.
    fn workers<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let worker = self.0.get(py)?;
        worker_run::workers(py, worker)
    }

    /// Where the worker is in its life: `"new"`, `"starting"`, `"ready"`, `"closing"`, `"closed"`, `"failed"`, or `"given"`
    /// when it was added to another worker.
    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(match self.0.get(py)?.state() {
            WorkerState::New => "new",
            WorkerState::Starting => "starting",
            WorkerState::Ready => "ready",
            WorkerState::Closing => "closing",
            WorkerState::Closed => "closed",
            WorkerState::Failed(_) => "failed",
            WorkerState::Given => "given",
        })
    }

    /// The level, 3 to 255.
    #[getter]
    fn level(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.0.get(py)?.level())
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let py = slf.py();
        if slf.get().0.get(py)?.state() == WorkerState::New {
            slf.get().init(py)?;
        }
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if self.0.is_forked() {
            // A `with` block that a fork leaves, by `sys.exit()` for instance: the Worker is its owner's.
            return Ok(());
        }
        self.close(py)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let worker = self.0.get(py)?;
        Ok(format!(
            "<Worker level={} {}>",
            worker.level(),
            worker.state()
        ))
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a Worker cannot be pickled: it owns processes; make one where it is needed",
        ))
    }
}
