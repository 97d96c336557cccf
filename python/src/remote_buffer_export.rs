//! `RemoteBufferExport`: a range of a buffer that other workers may import.

use echelon_runtime::buffer::RemoteExport;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::convert;

/// A range of a remote buffer that `Worker.remote_import` makes usable on another worker. Opaque: it has no public
/// constructor, cannot be copied or pickled, and shows no address, key or segment name.
#[pyclass(frozen, module = "echelon._core", name = "RemoteBufferExport")]
pub(crate) struct PyRemoteBufferExport(pub(crate) RemoteExport);

#[pymethods]
impl PyRemoteBufferExport {
    /// Id of the worker that owns the bytes.
    #[getter]
    fn owner_worker_id(&self) -> i32 {
        self.0.owner_worker_id()
    }

    /// First byte in the owner's buffer.
    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset()
    }

    /// Size in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes()
    }

    /// What an importer may ask for, an `AccessFlags`.
    #[getter]
    fn access_flags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::access_to_py(py, self.0.access())
    }

    /// How the bytes reach an importer, for example `"sim"`.
    #[getter]
    fn transport_profile(&self) -> &str {
        self.0.transport_profile()
    }

    fn __repr__(&self) -> String {
        let export = &self.0;
        format!(
            "<RemoteBufferExport {} bytes from offset {} of worker {}>",
            export.nbytes(),
            export.offset(),
            export.owner_worker_id()
        )
    }

    fn __copy__(&self) -> PyResult<()> {
        Err(refused("copied"))
    }

    fn __deepcopy__(&self, _memo: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(refused("copied"))
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(refused("pickled"))
    }
}

fn refused(what: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "a RemoteBufferExport cannot be {what}: it is valid only in the Worker that made it; hand it to remote_import"
    ))
}
