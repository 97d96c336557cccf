//! `RunReport`: what a completed run did.

use std::path::PathBuf;

use echelon_runtime::trace::{chrome_trace, TraceEvent};
use echelon_runtime::worker::RunReport;
use pyo3::exceptions::{PyLookupError, PyOSError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::gil;

/// What a completed run did.
#[pyclass(frozen, module = "echelon._core", name = "RunReport")]
pub(crate) struct PyRunReport(pub(crate) RunReport);

#[pymethods]
impl PyRunReport {
    /// Number of tasks by outcome: `completed`, `failed`, `lost`, `skipped`, `cancelled`.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = PyDict::new(py);
        for (outcome, count) in &self.0.counts {
            counts.set_item(outcome, count)?;
        }
        Ok(counts)
    }

    /// Number of tasks by name of the worker that ran them, inner workers of sessions included.
    #[getter]
    fn tasks_per_worker<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = PyDict::new(py);
        for (worker, count) in &self.0.tasks_per_worker {
            counts.set_item(worker, count)?;
        }
        Ok(counts)
    }

    /// One dict an attempt of a task: `name`, `worker`, `pid`, `task` (number in the run), `member` (of a group), `attempt` (from
    /// 1), `submit_ns`, `ready_ns`,
    /// `start_ns`, `end_ns` (nanoseconds on this process's monotonic clock), `deps` (numbers of tasks), `outcome`.
    #[getter]
    fn timeline<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let events = PyList::empty(py);
        for event in &self.0.timeline {
            events.append(event_to_py(py, event)?)?;
        }
        Ok(events)
    }

    /// Attempts beyond the first, of idempotent tasks whose worker was lost.
    #[getter]
    fn retried(&self) -> u64 {
        self.0.retried
    }

    /// The story of a task, by its number in the run: when it was submitted, what it waited for, and each attempt with worker,
    /// times and outcome, one line a step.
    ///
    /// Raises LookupError when the timeline does not have the task.
    fn explain(&self, task: u64) -> PyResult<String> {
        let story = self.0.explain(task);
        story.ok_or_else(|| {
            PyLookupError::new_err(format!(
                "the timeline has no task {task}; it has the {} events of this run",
                self.0.timeline.len()
            ))
        })
    }

    /// Memory whose contents the run left undefined, in words. Empty: only a run that raises leaves any, and its error has
    /// them in an attribute of this name.
    #[getter]
    fn undefined_ranges<'py>(&self, py: Python<'py>) -> Bound<'py, PyList> {
        PyList::empty(py)
    }

    /// Writes the timeline in Chrome-trace form, which ui.perfetto.dev opens.
    ///
    /// Raises OSError when the file cannot be written.
    fn write_timeline(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let written = gil::detached(py, || std::fs::write(&path, chrome_trace(&self.0.timeline)));
        written.map_err(|cause| match cause.raw_os_error() {
            // In this form Python makes the subclass of the number and names the file.
            Some(number) => PyOSError::new_err((number, cause.to_string(), path)),
            None => cause.into(),
        })
    }

    fn __repr__(&self) -> String {
        let counts = self.0.counts.iter().filter(|(_, count)| **count > 0);
        let counts: Vec<String> = counts
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        let counts = if counts.is_empty() {
            "no tasks".to_owned()
        } else {
            counts.join(", ")
        };
        format!(
            "<RunReport {counts} on {} workers>",
            self.0.tasks_per_worker.len()
        )
    }
}

fn event_to_py<'py>(py: Python<'py>, event: &TraceEvent) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &*event.name)?;
    dict.set_item("worker", &*event.worker)?;
    dict.set_item("pid", event.pid)?;
    dict.set_item("task", event.task)?;
    dict.set_item("member", event.member)?;
    dict.set_item("attempt", event.attempt)?;
    dict.set_item("submit_ns", event.submit_ns)?;
    dict.set_item("ready_ns", event.ready_ns)?;
    dict.set_item("start_ns", event.start_ns)?;
    dict.set_item("end_ns", event.end_ns)?;
    dict.set_item("deps", &event.deps)?;
    dict.set_item("outcome", &*event.outcome)?;
    Ok(dict)
}
