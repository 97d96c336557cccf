//! `RemoteTensorRef`: a tensor on a worker, or bytes that travel with the task.

use bytes::Bytes;
use echelon_runtime::buffer::RemoteBuffer;
use echelon_wire::tensor::TensorMeta;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::remote_buffer_handle::PyRemoteBufferHandle;
use crate::{buffer, convert};

/// Where the bytes are.
pub(crate) enum Backing {
    Remote { buffer: RemoteBuffer, offset: u64 },
    Inline(Bytes),
}

/// A tensor inside a remote buffer or an import.
///
/// Args:
///     handle: a `RemoteBufferHandle`.
///     offset: first byte in it, 0 or more.
///     shape: 1 to 5 extents in elements.
///     dtype: a `DataType`, its name, or a numpy dtype.
///
/// Raises ValueError when the tensor does not lie inside the buffer.
#[pyclass(frozen, module = "echelon._core", name = "RemoteTensorRef")]
pub(crate) struct PyRemoteTensorRef {
    pub(crate) meta: TensorMeta,
    pub(crate) backing: Backing,
    handle: Option<Py<PyRemoteBufferHandle>>,
}

#[pymethods]
impl PyRemoteTensorRef {
    #[new]
    #[pyo3(signature = (handle, *, offset=None, shape, dtype))]
    fn new(
        handle: &Bound<'_, PyRemoteBufferHandle>,
        offset: Option<&Bound<'_, PyAny>>,
        shape: &Bound<'_, PyAny>,
        dtype: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let meta = meta_from(shape, dtype)?;
        let offset = offset.map_or(Ok(0), |value| convert::byte_count("offset", value))?;
        let buffer = handle.get().0.clone();
        let nbytes = meta.nbytes().unwrap_or(u64::MAX);
        if offset
            .checked_add(nbytes)
            .is_none_or(|end| end > buffer.nbytes())
        {
            return Err(PyValueError::new_err(format!(
                "offset {offset} and {nbytes} bytes (shape {:?} of {}) do not lie inside the buffer of {} bytes",
                meta.shape(),
                meta.dtype().name(),
                buffer.nbytes()
            )));
        }
        Ok(Self {
            meta,
            backing: Backing::Remote { buffer, offset },
            handle: Some(handle.clone().unbind()),
        })
    }

    /// A tensor whose bytes travel with the task: an INPUT of at most 1 MiB in all.
    ///
    /// Args:
    ///     data: C-contiguous bytes with the buffer protocol; copied.
    ///     shape: 1 to 5 extents in elements.
    ///     dtype: a `DataType`, its name, or a numpy dtype.
    ///
    /// Raises ValueError when `data` has another size than shape and dtype give.
    #[staticmethod]
    #[pyo3(signature = (data, *, shape, dtype))]
    fn host_inline(
        data: &Bound<'_, PyAny>,
        shape: &Bound<'_, PyAny>,
        dtype: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let meta = meta_from(shape, dtype)?;
        let memory = buffer::pin("data", data)?.memory;
        let nbytes = meta.nbytes().unwrap_or(u64::MAX);
        if memory.len() as u64 != nbytes {
            return Err(PyValueError::new_err(format!(
                "data has {} bytes, and shape {:?} of {} takes {nbytes}",
                memory.len(),
                meta.shape(),
                meta.dtype().name()
            )));
        }
        let copy = Bytes::from(memory.to_vec());
        drop(memory);
        buffer::drain(data.py());
        Ok(Self {
            meta,
            backing: Backing::Inline(copy),
            handle: None,
        })
    }

    /// The buffer, `None` for inline bytes.
    #[getter]
    fn handle(&self, py: Python<'_>) -> Option<Py<PyRemoteBufferHandle>> {
        self.handle.as_ref().map(|handle| handle.clone_ref(py))
    }

    /// First byte in the buffer; 0 for inline bytes.
    #[getter]
    fn offset(&self) -> u64 {
        match self.backing {
            Backing::Remote { offset, .. } => offset,
            Backing::Inline(_) => 0,
        }
    }

    /// Extents in elements.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        convert::shape_to_py(py, &self.meta)
    }

    /// Element type, a `DataType`.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::dtype_to_py(py, self.meta.dtype())
    }

    /// Size in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.meta.nbytes().unwrap_or(0)
    }

    /// True when the bytes travel with the task.
    #[getter]
    fn is_inline(&self) -> bool {
        matches!(self.backing, Backing::Inline(_))
    }

    fn __repr__(&self) -> String {
        let place = match &self.backing {
            Backing::Remote { buffer, offset } => {
                format!("worker {} offset {offset}", buffer.worker_id())
            }
            Backing::Inline(_) => "inline".to_owned(),
        };
        format!(
            "<RemoteTensorRef {place} shape={:?} dtype={}>",
            self.meta.shape(),
            self.meta.dtype().name()
        )
    }
}

fn meta_from(shape: &Bound<'_, PyAny>, dtype: &Bound<'_, PyAny>) -> PyResult<TensorMeta> {
    convert::meta(
        &convert::shape_from_py(shape)?,
        convert::dtype_from_py(dtype)?,
    )
}
