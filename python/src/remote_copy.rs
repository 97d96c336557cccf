//! `RemoteCopy`: a copy between host memory and a remote buffer that goes on by itself.

use std::time::Duration;

use echelon_runtime::worker::PendingCopy;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::gil;

/// A copy that `remote_copy_to_async` or `remote_copy_from_async` has begun. The host object's buffer is held until the copy has ended,
/// also when this handle is dropped before; a failure for which nobody waited is raised by `Worker.close()`.
#[pyclass(frozen, module = "echelon._core", name = "RemoteCopy")]
pub(crate) struct PyRemoteCopy(pub(crate) PendingCopy);

#[pymethods]
impl PyRemoteCopy {
    /// Waits until the bytes are there.
    ///
    /// Args:
    ///     timeout_s: seconds to wait at most; without a limit when absent. The copy goes on after a timeout, and after Ctrl-C.
    ///
    /// Raises EchelonTimeout, and what became of the copy: RemoteError, EndpointLost.
    #[pyo3(signature = (timeout_s=None))]
    fn wait(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<()> {
        let timeout = timeout_s.map(Duration::try_from_secs_f64).transpose();
        let timeout = timeout.map_err(|_| {
            let value = timeout_s.unwrap_or_default();
            PyValueError::new_err(format!(
                "timeout_s is {value}; give seconds, 0 or more, or None to wait without a limit"
            ))
        })?;
        gil::blocking(py, || self.0.wait(timeout))
    }

    /// True when the copy has ended, in whatever way; `wait()` then returns at once.
    fn done(&self, py: Python<'_>) -> bool {
        gil::detached(py, || self.0.is_done())
    }

    fn __repr__(&self) -> &'static str {
        if self.0.is_done() {
            "<RemoteCopy done>"
        } else {
            "<RemoteCopy pending>"
        }
    }
}
