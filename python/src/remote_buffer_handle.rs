//! `RemoteBufferHandle`: a buffer on a worker, or the import of one.

use echelon_runtime::buffer::RemoteBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::convert;

/// Memory on a remote worker (`Worker.remote_malloc`), or another worker's memory made usable on one
/// (`Worker.remote_import`). Opaque: it has no public constructor, cannot be copied or pickled, and shows no address.
#[pyclass(frozen, module = "echelon._core", name = "RemoteBufferHandle")]
pub(crate) struct PyRemoteBufferHandle(pub(crate) RemoteBuffer);

#[pymethods]
impl PyRemoteBufferHandle {
    /// Id of the worker on which it is used.
    #[getter]
    fn worker_id(&self) -> i32 {
        self.0.worker_id()
    }

    /// Id of the worker that owns the bytes.
    #[getter]
    fn owner_worker_id(&self) -> i32 {
        self.0.owner_worker_id()
    }

    /// Size in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes()
    }

    /// Kind of memory, an `AddressSpace`.
    #[getter]
    fn address_space<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::member(py, "AddressSpace", self.0.address_space().code())
    }

    /// What tasks and copies may do with it, an `AccessFlags`.
    #[getter]
    fn access_flags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::access_to_py(py, self.0.access())
    }

    /// True for the result of `remote_import`.
    #[getter]
    fn is_imported(&self) -> bool {
        self.0.is_imported()
    }

    /// True after `remote_free` or `remote_release_import`.
    #[getter]
    fn released(&self) -> bool {
        self.0.released()
    }

    fn __repr__(&self) -> String {
        let buffer = &self.0;
        let origin = if buffer.is_imported() {
            format!(" imported from worker {}", buffer.owner_worker_id())
        } else {
            String::new()
        };
        let released = if buffer.released() { " released" } else { "" };
        format!(
            "<RemoteBufferHandle {} bytes on worker {}{origin}{released}>",
            buffer.nbytes(),
            buffer.worker_id()
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
        "a RemoteBufferHandle cannot be {what}: it belongs to the Worker that made it; pass it in a RemoteTensorRef"
    ))
}
