//! Python callables in the process that runs them: a child or a session.

use std::sync::Arc;

use echelon_runtime::callable::{CallableHost, HostedCallable};
use echelon_runtime::process::ForkMark;
use echelon_runtime::tensor::TaskView;
use echelon_runtime::worker::{CallableHandle, Orchestrator, Worker};
use echelon_wire::callable::{CallableKind, ImportTarget};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::call_config::PyCallConfig;
use crate::callable_handle::PyCallableHandle;
use crate::orchestrator::PyOrchestrator;
use crate::task_args::PyTaskArgs;
use crate::{convert, error, gil};

/// Workers whose orchestration callables run now. A process hosts one worker, so the last one is the one meant; it is kept
/// for the process and not by thread, because user code may ask from a thread of its own.
static ORCHESTRATING: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

/// Imports or unpickles Python callables. Takes the GIL only while Python code runs, and between calls that follow one another
/// at once (P-1).
#[derive(Debug, Default)]
pub(crate) struct PyHost {
    /// Callables run in the process that made the host.
    process: Arc<ForkMark>,
}

impl CallableHost for PyHost {
    fn in_a_row(&self, calls: &mut dyn FnMut()) {
        gil::attached(|_| calls());
    }

    fn resolve(
        &self,
        kind: CallableKind,
        payload: &[u8],
    ) -> Result<Arc<dyn HostedCallable>, String> {
        gil::attached(|py| {
            let resolved = match kind {
                CallableKind::PythonImport => import(py, payload),
                CallableKind::PythonSerialized => unpickle(py, payload),
                CallableKind::ChipCallable => Err(error::named(
                    py,
                    "RegistrationError",
                    "a chip callable cannot run in a Python worker; register it with a worker that owns a device",
                )),
            };
            let resolved = resolved.and_then(|object| check_callable(py, object));
            match resolved {
                Ok(function) => Ok(Arc::new(PyCallable {
                    function,
                    process: Arc::clone(&self.process),
                }) as Arc<dyn HostedCallable>),
                Err(raised) => Err(traceback_text(py, &raised)),
            }
        })
    }
}

fn import(py: Python<'_>, payload: &[u8]) -> PyResult<Py<PyAny>> {
    let text = String::from_utf8_lossy(payload);
    let target = ImportTarget::parse(&text).map_err(|cause| {
        error::named(
            py,
            "RegistrationError",
            &format!("{text:?} is no import path: {cause}"),
        )
    })?;
    let mut found = py
        .import("importlib")?
        .call_method1("import_module", (target.module(),))?;
    for part in target.qualname().split('.') {
        found = found.getattr(part)?;
    }
    Ok(found.unbind())
}

fn unpickle(py: Python<'_>, payload: &[u8]) -> PyResult<Py<PyAny>> {
    Ok(py
        .import("pickle")?
        .call_method1("loads", (PyBytes::new(py, payload),))?
        .unbind())
}

fn check_callable(py: Python<'_>, object: Py<PyAny>) -> PyResult<Py<PyAny>> {
    if object.bind(py).is_callable() {
        return Ok(object);
    }
    let kind = convert::type_name(object.bind(py));
    Err(pyo3::exceptions::PyTypeError::new_err(format!(
        "it is {kind}, which is not callable"
    )))
}

/// The text of an exception with its traceback, causes and notes, as Python prints it.
fn traceback_text(py: Python<'_>, raised: &PyErr) -> String {
    // Before Python 3.12 a caught exception has its traceback beside it, not in it.
    let parts = (raised.get_type(py), raised.value(py), raised.traceback(py));
    let formatted = py
        .import("traceback")
        .and_then(|module| module.call_method1("format_exception", parts))
        .and_then(|lines| printable(py, &lines));
    match formatted {
        Ok(text) => text,
        // An exception whose own text raises must not hide that the callable failed.
        Err(_) => format!(
            "{} (its text could not be made)",
            convert::type_name(raised.value(py).as_any())
        ),
    }
}

/// The lines as one text; what UTF-8 cannot hold (a lone surrogate, as in a file name of other bytes) is escaped.
fn printable(py: Python<'_>, lines: &Bound<'_, PyAny>) -> PyResult<String> {
    PyString::new(py, "")
        .call_method1("join", (lines,))?
        .call_method1("encode", ("utf-8", "backslashreplace"))?
        .call_method1("decode", ("utf-8",))?
        .extract()
}

/// Ends a process that user code forked off and that came back out of the callable: it shares the mailbox with its parent,
/// and two processes that answer would corrupt it.
fn end_stray_fork(py: Python<'_>, process: &ForkMark) {
    if process.is_here() {
        return;
    }
    let ended = py
        .import("os")
        .and_then(|os| os.call_method1("_exit", (0,)));
    if ended.is_err() {
        std::process::abort();
    }
}

/// A resolved function. Dropped without the GIL, its reference waits in pyo3's pool for the next call that has it (P-2).
struct PyCallable {
    function: Py<PyAny>,
    process: Arc<ForkMark>,
}

impl PyCallable {
    fn call(
        &self,
        call: impl FnOnce(Python<'_>, &Bound<'_, PyAny>) -> PyResult<()>,
    ) -> Result<(), String> {
        gil::attached(|py| {
            let result =
                call(py, self.function.bind(py)).map_err(|raised| failure_text(py, &raised));
            end_stray_fork(py, &self.process);
            result
        })
    }
}

impl HostedCallable for PyCallable {
    fn call_leaf(&self, view: TaskView) -> Result<(), String> {
        self.call(|py, function| {
            let args = Bound::new(py, PyTaskArgs::received(view))?;
            function.call1((args,)).map(|_| ())
        })
    }

    fn call_orchestration(
        &self,
        orchestrator: &Orchestrator,
        view: TaskView,
    ) -> Result<(), String> {
        let _orchestrating = Orchestrating::begin(orchestrator.worker());
        let orchestrator = orchestrator.clone();
        self.call(|py, function| {
            let config = Bound::new(py, PyCallConfig(view.config.clone()))?;
            let args = Bound::new(py, PyTaskArgs::received(view))?;
            let orch = Bound::new(py, PyOrchestrator::new(orchestrator))?;
            let returned = function.call1((&orch, args, config));
            orch.get().end();
            returned.map(|_| ())
        })
    }
}

/// The text of what a callable raised. The exception, its frames and the tensors in them are freed before this returns, so
/// that the memory of a failed task is not held by its traceback.
fn failure_text(py: Python<'_>, raised: &PyErr) -> String {
    let text = traceback_text(py, raised);
    let cleared = match raised.traceback(py) {
        Some(traceback) => py
            .import("traceback")
            .and_then(|module| module.call_method1("clear_frames", (traceback,)))
            .map(drop),
        None => Ok(()),
    };
    if let Err(cause) = cleared {
        cause.write_unraisable(py, None);
    }
    text
}

/// Makes a worker the one that `_inner_handle` asks, for as long as it lives.
struct Orchestrating;

impl Orchestrating {
    fn begin(worker: &Worker) -> Self {
        ORCHESTRATING.lock().push(worker.clone());
        Self
    }
}

impl Drop for Orchestrating {
    fn drop(&mut self) {
        let ended = ORCHESTRATING.lock().pop();
        drop(ended);
    }
}

/// The handle of a callable of the sub workers; see `echelon.session.get_inner_handle`.
#[pyfunction]
#[pyo3(name = "_inner_handle")]
pub(crate) fn inner_handle(py: Python<'_>, key: &str) -> PyResult<PyCallableHandle> {
    let worker = ORCHESTRATING.lock().last().cloned();
    let Some(worker) = worker else {
        return Err(error::lifecycle(
            py,
            "get_inner_handle may be used only inside an orchestration callable, fn(orch, args, config), that runs on a \
             session or on a local child of level 3 or more",
        ));
    };
    let found: Result<CallableHandle, _> = gil::detached(py, || worker.find_handle(key));
    found.map(PyCallableHandle).map_err(convert::raise(py))
}
