//! `Tensor`: shared memory seen from Python. `unsafe` lives here, for the buffer protocol outwards.
//!
//! A view of a tensor keeps the Python object, that keeps the runtime's tensor, and that keeps the memory block: a block is
//! reused only when no view of it is alive (design §15.6).

use std::ffi::{c_int, c_void, CStr};

use echelon_runtime::memory::HostMemory;
use echelon_runtime::tensor::Tensor;
use echelon_wire::tensor::DataType;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use crate::{convert, dlpack};

static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// A C-contiguous tensor in shared memory: what `orch.alloc` returns and what a callable gets from `args.tensor(i)`.
///
/// It has the buffer protocol, `__array__` and `__dlpack__`: `numpy.asarray(t)`, `memoryview(t)` and `torch.from_dlpack(t)`
/// give views without a copy. Views of an INPUT are read-only where the tag is known. bfloat16 shows as uint16 in
/// numpy and keeps its type in DLPack. Views may be kept after the task; the memory is reused only when they are gone.
#[pyclass(frozen, module = "echelon._core", name = "Tensor")]
pub(crate) struct PyTensor {
    inner: Tensor,
}

impl PyTensor {
    pub(crate) fn new(inner: Tensor) -> Self {
        Self { inner }
    }

    pub(crate) fn inner(&self) -> &Tensor {
        &self.inner
    }

    /// The bytes, kept by the result.
    pub(crate) fn memory(&self, py: Python<'_>) -> PyResult<HostMemory> {
        self.inner.memory().map_err(convert::raise(py))
    }

    pub(crate) fn read_only(&self) -> bool {
        self.inner.is_read_only()
    }
}

#[pymethods]
impl PyTensor {
    /// Extents in elements, outermost first; 1 to 5 of them.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        convert::shape_to_py(py, self.inner.meta())
    }

    /// Element type, a `DataType`.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::dtype_to_py(py, self.inner.meta().dtype())
    }

    /// Size in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.inner.nbytes()
    }

    /// Number of dimensions, 1 to 5.
    #[getter]
    fn ndim(&self) -> u32 {
        self.inner.meta().ndims()
    }

    /// True when views of it cannot be written.
    #[getter]
    fn readonly(&self) -> bool {
        self.read_only()
    }

    /// A part of the tensor by rows of its first axis, over the same memory. Tasks on disjoint parts do not wait for each
    /// other.
    ///
    /// Args:
    ///     first: first row, 0 or more.
    ///     count: number of rows, 0 or more.
    ///
    /// Raises ValueError when the rows do not lie inside the tensor.
    fn rows(&self, py: Python<'_>, first: u32, count: u32) -> PyResult<Self> {
        let part = self.inner.rows(first, count).map_err(convert::raise(py))?;
        Ok(Self::new(part))
    }

    /// A numpy array over the same memory, without a copy.
    ///
    /// Raises ImportError when numpy is not installed.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let asarray = ASARRAY.get_or_try_init(py, || {
            let function = py.import("numpy")?.getattr("asarray")?;
            Ok::<_, PyErr>(function.unbind())
        })?;
        asarray.bind(py).call1((view_of(slf)?,))
    }

    /// For `numpy.asarray`: a view, or a converted copy when `dtype` differs or `copy` is true.
    ///
    /// Raises ValueError when `copy` is false and a copy is needed.
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<&Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let numpy = slf.py().import("numpy")?;
        let options = PyDict::new(slf.py());
        options.set_item("dtype", dtype)?;
        if copy == Some(true) {
            options.set_item("copy", true)?;
            return numpy.call_method("array", (view_of(slf)?,), Some(&options));
        }
        let view = numpy.call_method1("asarray", (view_of(slf)?,))?;
        let result = numpy.call_method("asarray", (&view,), Some(&options))?;
        if copy == Some(false) && !result.is(&view) {
            return Err(pyo3::exceptions::PyValueError::new_err(
                "another dtype needs a copy, and copy=False forbids it",
            ));
        }
        Ok(result)
    }

    /// A DLPack capsule over the same memory. The consumer's `max_version` decides the form.
    ///
    /// Raises BufferError for a stream, another device, or a read-only tensor in the unversioned form, which cannot say so.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        slf: &Bound<'py, Self>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if stream.is_some() {
            return Err(PyBufferError::new_err(
                "stream must be None: the tensor is in host memory",
            ));
        }
        if dl_device.is_some_and(|device| device != dlpack::CPU) {
            return Err(PyBufferError::new_err(
                "the tensor is in host memory; no other device can be asked for",
            ));
        }
        dlpack::capsule(slf.py(), slf.get(), max_version, copy == Some(true))
    }

    /// `(1, 0)`: host memory.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::CPU
    }

    /// First extent.
    fn __len__(&self) -> usize {
        // The protocol has at least one dimension.
        self.inner
            .meta()
            .shape()
            .first()
            .map_or(0, |extent| *extent as usize)
    }

    fn __repr__(&self) -> String {
        let meta = self.inner.meta();
        let shape = meta
            .shape()
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let comma = if meta.ndims() == 1 { "," } else { "" };
        let read_only = if self.read_only() { " read-only" } else { "" };
        format!(
            "<Tensor shape=({shape}{comma}) dtype={}{read_only}>",
            meta.dtype().name()
        )
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a Tensor cannot be pickled: it is shared memory of this run; pass it as a tensor argument, or copy it with numpy.array(t)",
        ))
    }

    // SAFETY: called by the interpreter with a Py_buffer to fill; see `fill`.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        if slf.get().read_only() && (flags & ffi::PyBUF_WRITABLE) == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err(
                "the tensor is an INPUT and read-only here; numpy.array(t) gives a copy",
            ));
        }
        // Only for the address: the view keeps `slf`, and that keeps the bytes.
        let memory = slf.get().memory(slf.py())?;
        // SAFETY: `view` is not null and the interpreter gives it to us to fill.
        unsafe { fill(slf, &memory, view, flags) };
        Ok(())
    }

    // SAFETY: called by the interpreter once for every view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: `internal` is the box that `fill` leaked into this view.
        drop(unsafe { Box::from_raw((*view).internal.cast::<Layout>()) });
    }
}

/// A memoryview, from which numpy takes shape, format and the right to write.
fn view_of<'py>(tensor: &Bound<'py, PyTensor>) -> PyResult<Bound<'py, PyAny>> {
    Ok(pyo3::types::PyMemoryView::from(tensor.as_any())?.into_any())
}

/// Shape and strides of one view, in the form of the buffer protocol.
struct Layout {
    shape: [ffi::Py_ssize_t; 5],
    strides: [ffi::Py_ssize_t; 5],
}

/// # Safety
/// `view` must be valid for writes.
unsafe fn fill(
    slf: Bound<'_, PyTensor>,
    memory: &HostMemory,
    view: *mut ffi::Py_buffer,
    flags: c_int,
) {
    let tensor = slf.get();
    let meta = *tensor.inner.meta();
    let item = meta.dtype().element_bytes() as ffi::Py_ssize_t;
    let mut layout = Box::new(Layout {
        shape: [0; 5],
        strides: [0; 5],
    });
    let mut stride = item;
    for (axis, extent) in meta.shape().iter().enumerate().rev() {
        layout.shape[axis] = *extent as ffi::Py_ssize_t;
        layout.strides[axis] = stride;
        stride = stride.saturating_mul((*extent).max(1) as ffi::Py_ssize_t);
    }
    let pointer = memory.as_ptr().cast::<c_void>();
    let length = memory.len() as ffi::Py_ssize_t;
    let read_only = c_int::from(tensor.read_only());
    let format = format_of(meta.dtype());
    let layout = Box::into_raw(layout);
    // SAFETY: `view` is valid for writes by contract. The pointers given out live as long as the view: bytes and format by
    // `obj`, the owned reference that the interpreter drops on release; shape and strides in the box that release frees.
    unsafe {
        (*view).buf = pointer;
        (*view).len = length;
        (*view).readonly = read_only;
        (*view).itemsize = item;
        (*view).ndim = meta.ndims() as c_int;
        (*view).format = if flags & ffi::PyBUF_FORMAT == ffi::PyBUF_FORMAT {
            format.as_ptr().cast_mut()
        } else {
            std::ptr::null_mut()
        };
        (*view).shape = if flags & ffi::PyBUF_ND == ffi::PyBUF_ND {
            (&raw mut (*layout).shape).cast()
        } else {
            std::ptr::null_mut()
        };
        (*view).strides = if flags & ffi::PyBUF_STRIDES == ffi::PyBUF_STRIDES {
            (&raw mut (*layout).strides).cast()
        } else {
            std::ptr::null_mut()
        };
        (*view).suboffsets = std::ptr::null_mut();
        (*view).internal = layout.cast();
        (*view).obj = slf.into_any().into_ptr();
    }
}

/// Format of the buffer protocol; bfloat16 has none and shows as uint16.
fn format_of(dtype: DataType) -> &'static CStr {
    match dtype.name() {
        "float32" => c"f",
        "float16" => c"e",
        "float64" => c"d",
        "int32" => c"i",
        "int16" => c"h",
        "int8" => c"b",
        "int64" => c"q",
        "uint64" => c"Q",
        "uint16" | "bfloat16" => c"H",
        "uint32" => c"I",
        "bool" => c"?",
        _ => c"B",
    }
}
