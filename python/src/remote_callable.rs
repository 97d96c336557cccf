//! `RemoteCallable`: a callable named by its import path.

use echelon_wire::callable::ImportTarget;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A callable by its import path, imported where it runs; this process need not be able to import it.
///
/// Args:
///     target: `"module:qualname"`, such as `"pkg.mod:Class.method"`.
///
/// Raises ValueError for a text that is not an import path.
#[pyclass(frozen, eq, hash, module = "echelon._core", name = "RemoteCallable")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct PyRemoteCallable(pub(crate) ImportTarget);

#[pymethods]
impl PyRemoteCallable {
    #[new]
    fn new(target: &str) -> PyResult<Self> {
        ImportTarget::parse(target)
            .map(Self)
            .map_err(|error| PyValueError::new_err(format!("{target:?}: {error}")))
    }

    /// `"module:qualname"`.
    #[getter]
    fn target(&self) -> String {
        self.0.to_string()
    }

    /// The module.
    #[getter]
    fn module(&self) -> &str {
        self.0.module()
    }

    /// The name in the module.
    #[getter]
    fn qualname(&self) -> &str {
        self.0.qualname()
    }

    fn __repr__(&self) -> String {
        format!("RemoteCallable('{}')", self.0)
    }

    fn __getnewargs__(&self) -> (String,) {
        (self.target(),)
    }
}
