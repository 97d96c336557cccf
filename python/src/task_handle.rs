//! `TaskHandle`: what a submit returns.

use echelon_runtime::worker::TaskHandle;
use pyo3::prelude::*;

/// A submitted task. Tasks order themselves by their tensors; the handle only names the task in messages and timelines.
#[pyclass(frozen, eq, hash, module = "echelon._core", name = "TaskHandle")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PyTaskHandle(pub(crate) TaskHandle);

#[pymethods]
impl PyTaskHandle {
    /// Number of the task in its run, from 1 in submit order.
    #[getter]
    fn sequence(&self) -> u64 {
        self.0.sequence
    }

    fn __repr__(&self) -> String {
        format!("<TaskHandle {}>", self.0.sequence)
    }
}
