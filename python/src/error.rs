//! From Rust errors to the exception tree of `echelon.errors`; the one mapping.

use echelon_runtime::error::{Error, FailureKind, RunError, TaskFailureInfo};
use echelon_runtime::memory::MemoryError;
use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyModule};

use crate::gil;

static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// The exception of an error.
pub(crate) fn to_py(py: Python<'_>, error: Error) -> PyErr {
    let text = error.to_string();
    with_text(py, error, text)
}

fn with_text(py: Python<'_>, error: Error, text: String) -> PyErr {
    match error {
        Error::InBatch { error, .. } => with_text(py, *error, text),
        Error::Argument { .. } => PyValueError::new_err(text),
        Error::Type { .. } => PyTypeError::new_err(text),
        Error::Lifecycle { .. } => named(py, "LifecycleError", &text),
        Error::NotEligible { .. } => named(py, "NotEligibleError", &text),
        Error::Resource { .. } => named(py, "ResourceExhausted", &text),
        Error::Handle { .. } => named(py, "HandleError", &text),
        Error::Registration { .. } | Error::Removal { .. } => named(py, "RegistrationError", &text),
        Error::Startup { .. } | Error::Process(_) => named(py, "StartupError", &text),
        // A session answers with a text; this word is how it says that a limit of its own was reached.
        Error::Remote { ref message, .. } if message.contains("RESOURCE_EXHAUSTED: ") => {
            named(py, "ResourceExhausted", &text)
        }
        Error::Remote { .. } => named(py, "RemoteError", &text),
        Error::EndpointLost { .. } => named(py, "EndpointLost", &text),
        Error::Run(run) => run_error(py, &run, &text).unwrap_or_else(|raised| raised),
        Error::Timeout { .. } => named(py, "EchelonTimeout", &text),
        Error::Interrupted => {
            gil::take_raised().unwrap_or_else(|| PyKeyboardInterrupt::new_err(()))
        }
        Error::Close { .. } => named(py, "CloseError", &text),
        Error::Memory(cause) => match *cause {
            MemoryError::Exhausted { .. } | MemoryError::NoSpace { .. } => {
                named(py, "ResourceExhausted", &text)
            }
            _ => named(py, "EchelonError", &text),
        },
        // The enum is open: a variant that this file does not know is still one of ours.
        _ => named(py, "EchelonError", &text),
    }
}

/// An exception of `echelon.errors` by name.
pub(crate) fn named(py: Python<'_>, class: &str, text: &str) -> PyErr {
    match class_of(py, class).and_then(|class| class.call1((text,))) {
        Ok(instance) => PyErr::from_value(instance),
        Err(raised) => raised,
    }
}

/// A `LifecycleError`.
pub(crate) fn lifecycle(py: Python<'_>, text: &str) -> PyErr {
    named(py, "LifecycleError", text)
}

fn class_of<'py>(py: Python<'py>, class: &str) -> PyResult<Bound<'py, PyAny>> {
    let module = ERRORS.get_or_try_init(py, || py.import("echelon.errors").map(Bound::unbind))?;
    module.bind(py).getattr(class)
}

fn run_error(py: Python<'_>, run: &RunError, text: &str) -> PyResult<PyErr> {
    let class = match run.kind() {
        FailureKind::Failed => "TaskError",
        FailureKind::EndpointLost => "EndpointLost",
        FailureKind::Skipped => "TaskSkipped",
        FailureKind::Cancelled => "TaskCancelled",
    };
    let details = PyDict::new(py);
    details.set_item("failures", task_failures(py, &run.failures)?)?;
    details.set_item("failures_dropped", run.failures_dropped)?;
    details.set_item("affected", task_failures(py, &run.affected)?)?;
    details.set_item("skipped", run.skipped)?;
    details.set_item("cancelled", run.cancelled)?;
    details.set_item("undefined_ranges", &run.undefined_ranges)?;
    let instance = class_of(py, class)?.call((text,), Some(&details))?;
    Ok(PyErr::from_value(instance))
}

fn task_failures<'py>(py: Python<'py>, tasks: &[TaskFailureInfo]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for task in tasks {
        list.append(task_failure(py, task)?)?;
    }
    Ok(list)
}

fn task_failure<'py>(py: Python<'py>, failure: &TaskFailureInfo) -> PyResult<Bound<'py, PyAny>> {
    let steps: Vec<(&str, u64, &str)> = failure
        .story
        .iter()
        .map(|step| (step.state, step.at_ns, step.detail.as_str()))
        .collect();
    let details = PyDict::new(py);
    details.set_item("cause", failure.cause)?;
    details.set_item("attempts", failure.attempts)?;
    details.set_item("steps", steps)?;
    details.set_item("story", failure.tell())?;
    class_of(py, "TaskFailure")?.call(
        (
            failure.kind.name(),
            &failure.callable,
            failure.worker_id,
            &failure.worker,
            &failure.host,
            failure.sequence,
            &failure.message,
            failure.hint,
        ),
        Some(&details),
    )
}
