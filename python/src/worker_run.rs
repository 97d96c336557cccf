//! What `Worker.run` does, and what a `Worker` tells about itself while it runs.

use echelon_runtime::worker::{RunEnd, Worker};
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::call_config::PyCallConfig;
use crate::orchestrator::PyOrchestrator;
use crate::run_report::PyRunReport;
use crate::{buffer, convert, error, gil};

/// Refuses what cannot be an orchestration function.
pub(crate) fn check_function(function: &Bound<'_, PyAny>) -> PyResult<()> {
    if function.is_callable() {
        return Ok(());
    }
    Err(PyTypeError::new_err(format!(
        "fn must be callable, not {}",
        convert::type_name(function)
    )))
}

/// Calls `function(orch, args, config)` on this thread and waits for what it submitted.
pub(crate) fn run(
    py: Python<'_>,
    worker: &Worker,
    function: &Bound<'_, PyAny>,
    args: Option<Py<PyAny>>,
    config: Option<Py<PyAny>>,
) -> PyResult<PyRunReport> {
    let config = match config {
        Some(config) => config,
        None => Py::new(py, PyCallConfig::default())?.into_any(),
    };
    let function = function.clone().unbind();
    buffer::drain(py);
    let result = gil::detached(py, || {
        worker.run(|orchestrator| {
            let orchestrator = orchestrator.clone();
            gil::attached(|py| {
                let orch = Bound::new(py, PyOrchestrator::new(orchestrator.clone()))?;
                let returned = function.bind(py).call1((&orch, args, config));
                orch.get().end();
                let left = |raised: &PyErr| !raised.is_instance_of::<PyException>(py);
                if returned.as_ref().err().is_some_and(left) {
                    // Ctrl-C, or SystemExit: nobody wants to wait for what runs (design §15.15).
                    orchestrator.interrupted();
                }
                returned.map(|_| ())
            })
        })
    });
    buffer::drain(py);
    match result {
        Ok(((), report)) => Ok(PyRunReport(report)),
        Err(RunEnd::Function(raised)) => Err(raised),
        Err(RunEnd::Engine(cause)) => Err(error::to_py(py, cause)),
    }
}

/// Counts of tasks since `init()`, by name.
pub(crate) fn progress<'py>(py: Python<'py>, worker: &Worker) -> PyResult<Bound<'py, PyDict>> {
    let progress = gil::detached(py, || worker.progress());
    let dict = PyDict::new(py);
    dict.set_item("submitted", progress.submitted)?;
    dict.set_item("finished", progress.finished)?;
    dict.set_item("completed", progress.completed)?;
    dict.set_item("failed", progress.failed)?;
    dict.set_item("lost", progress.lost)?;
    dict.set_item("skipped", progress.skipped)?;
    dict.set_item("cancelled", progress.cancelled)?;
    dict.set_item("retried", progress.retried)?;
    Ok(dict)
}

/// The workers as they are now, a dict each.
pub(crate) fn workers<'py>(py: Python<'py>, worker: &Worker) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let infos = gil::detached(py, || worker.workers());
    infos
        .into_iter()
        .map(|info| {
            let dict = PyDict::new(py);
            dict.set_item("name", info.name)?;
            dict.set_item("pid", info.pid)?;
            dict.set_item("capacity", info.capacity)?;
            Ok(dict)
        })
        .collect()
}
