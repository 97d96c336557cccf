//! `Scope`: the context manager of `orch.scope()`.

use pyo3::prelude::*;

use crate::convert;
use crate::orchestrator::PyOrchestrator;

/// Bounds the use of memory: tensors that are allocated inside cannot be submitted after it.
#[pyclass(frozen, module = "echelon._core", name = "Scope")]
pub(crate) struct PyScope(pub(crate) Py<PyOrchestrator>);

#[pymethods]
impl PyScope {
    fn __enter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        slf.get().0.get().inner(py)?.scope_begin();
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.0
            .get()
            .inner(py)?
            .scope_end()
            .map_err(convert::raise(py))
    }
}
