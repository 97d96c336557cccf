//! The buffer protocol inwards: numpy arrays, bytes, bytearray, memoryview, ctypes and array.array as pinned memory. `unsafe`
//! lives here.
//!
//! A pin may end on any thread, under any lock of the engine. It must not take the GIL there (design §15.12): the exporter's
//! view goes to a queue, and the next call that holds the GIL anyway releases it ([`drain`]).

use std::ffi::CStr;
use std::sync::Arc;

use echelon_runtime::memory::HostMemory;
use echelon_wire::tensor::{DataType, TensorMeta};
use parking_lot::Mutex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::convert;

static RELEASED: Mutex<Vec<View>> = Mutex::new(Vec::new());

/// A view that the exporter has handed out. Released by [`drain`], never by a destructor.
struct View(Box<ffi::Py_buffer>);

// SAFETY: a View is only moved between threads; it is read under the GIL, in `pin` and `drain`.
unsafe impl Send for View {}
// SAFETY: no method takes `&View`.
unsafe impl Sync for View {}

/// Keeps a view until the last user of its bytes is gone.
struct Pin(Option<View>);

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(view) = self.0.take() {
            RELEASED.lock().push(view);
        }
    }
}

/// Releases the views that nobody uses any more.
pub(crate) fn drain(_py: Python<'_>) {
    // The lock is not held while the exporters' release functions run, which may be Python code (P-2).
    let released = std::mem::take(&mut *RELEASED.lock());
    for mut view in released {
        // SAFETY: the view was filled by PyObject_GetBuffer and is released once: it is owned by value here. The GIL is held.
        unsafe { ffi::PyBuffer_Release(&raw mut *view.0) };
    }
}

/// The last field of an object that may hold pins: dropped after them, it gives the exporters their views back at once.
#[derive(Default)]
pub(crate) struct DrainOnDrop;

impl Drop for DrainOnDrop {
    fn drop(&mut self) {
        // Python frees its objects with the GIL held, so this never waits; at the interpreter's end there is nothing to give back.
        crate::gil::try_attached(drain);
    }
}

/// Bytes of a Python object, with what the exporter says of their elements.
pub(crate) struct HostBuffer {
    pub(crate) memory: HostMemory,
    shape: Vec<u64>,
    format: String,
    item_bytes: usize,
}

/// Pins the bytes of `object`.
///
/// # Errors
/// `TypeError` when it has no buffer protocol, `ValueError` when the bytes are not C-contiguous.
pub(crate) fn pin(what: &str, object: &Bound<'_, PyAny>) -> PyResult<HostBuffer> {
    let py = object.py();
    drain(py);
    let view = acquire(what, object)?;
    let raw = &view.0;
    let rank = usize::try_from(raw.ndim).unwrap_or(0);
    let shape = words(raw.shape, rank);
    let format = if raw.format.is_null() {
        "B".to_owned()
    } else {
        // SAFETY: a format is a NUL-terminated string that lives as long as the view.
        unsafe { CStr::from_ptr(raw.format) }
            .to_string_lossy()
            .into_owned()
    };
    let item_bytes = usize::try_from(raw.itemsize).unwrap_or(0);
    // SAFETY: `view` is filled and the GIL is held.
    let contiguous =
        unsafe { ffi::PyBuffer_IsContiguous(&raw const *view.0, b'C' as std::ffi::c_char) } != 0;
    if !contiguous {
        let strides = words(raw.strides, rank);
        release(view);
        return Err(PyValueError::new_err(format!(
            "{what} has shape {shape:?} and strides {strides:?} bytes, which is not C-contiguous; \
             pass numpy.ascontiguousarray(...) of it, and copy the result back where it is written"
        )));
    }
    let length = usize::try_from(raw.len).unwrap_or(0);
    let writable = raw.readonly == 0;
    let pointer = if raw.buf.is_null() {
        std::ptr::dangling_mut()
    } else {
        raw.buf.cast::<u8>()
    };
    let shape = shape
        .into_iter()
        .map(|extent| u64::try_from(extent).unwrap_or(0))
        .collect();
    let owner = Arc::new(Pin(Some(view)));
    // SAFETY: the exporter keeps `len` bytes at `buf` in place until the view is released, which happens only after `owner`
    // is gone. Rust forms no reference to them.
    let memory = unsafe { HostMemory::from_raw(pointer, length, writable, owner) };
    Ok(HostBuffer {
        memory,
        shape,
        format,
        item_bytes,
    })
}

/// An object with the buffer protocol over the same bytes: the object itself, or numpy's view of a tensor of another
/// framework in host memory.
pub(crate) fn exporter<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if !has_buffer(object) && object.hasattr("__dlpack__")? {
        return object
            .py()
            .import("numpy")?
            .call_method1("from_dlpack", (object,));
    }
    Ok(object.clone())
}

/// A part of `host` from its first byte on, all of it without `nbytes`, and the offset in the buffer that it is for.
pub(crate) fn host_range(
    host: &Bound<'_, PyAny>,
    nbytes: Option<&Bound<'_, PyAny>>,
    offset: Option<&Bound<'_, PyAny>>,
) -> PyResult<(HostMemory, u64)> {
    let offset = offset.map_or(Ok(0), |value| convert::byte_count("offset", value))?;
    let memory = pin("host", &exporter(host)?)?.memory;
    let Some(nbytes) = nbytes else {
        return Ok((memory, offset));
    };
    let nbytes = convert::byte_count("nbytes", nbytes)?;
    let length = memory.len();
    let part = usize::try_from(nbytes)
        .ok()
        .and_then(|nbytes| memory.slice(0, nbytes).ok());
    let part = part.ok_or_else(|| {
        PyValueError::new_err(format!(
            "nbytes is {nbytes}, and host has {length} bytes; pass fewer"
        ))
    })?;
    Ok((part, offset))
}

fn has_buffer(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: `object` is a live object and the GIL is held.
    unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) != 0 }
}

fn acquire(what: &str, object: &Bound<'_, PyAny>) -> PyResult<View> {
    let py = object.py();
    if !has_buffer(object) {
        return Err(PyTypeError::new_err(format!(
            "{what} must have the buffer protocol (a numpy array, bytes, bytearray, memoryview, ctypes or array.array), not {}",
            convert::type_name(object)
        )));
    }
    let mut raw = Box::new(ffi::Py_buffer::new());
    // SAFETY: `object` is live and the GIL is held; `raw` is a zeroed Py_buffer that stays where it is, in its box, until it is released.
    let status =
        unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *raw, ffi::PyBUF_FULL_RO) };
    if status != 0 {
        return Err(PyErr::fetch(py));
    }
    Ok(View(raw))
}

fn release(mut view: View) {
    // SAFETY: the view was filled by PyObject_GetBuffer and is owned; callers hold the GIL.
    unsafe { ffi::PyBuffer_Release(&raw mut *view.0) };
}

fn words(pointer: *const ffi::Py_ssize_t, count: usize) -> Vec<ffi::Py_ssize_t> {
    if pointer.is_null() {
        return Vec::new();
    }
    // SAFETY: shape and strides of a view have `ndim` words, and live as long as it.
    unsafe { std::slice::from_raw_parts(pointer, count) }.to_vec()
}

impl HostBuffer {
    /// Shape and element type as the exporter gives them; `dtype` replaces the latter by one of the same size. A buffer
    /// without dimensions counts as one element.
    ///
    /// # Errors
    /// `ValueError` for a format without an element type, for a rank over 5, and for an extent over 2^32-1.
    pub(crate) fn meta(&self, what: &str, dtype: Option<DataType>) -> PyResult<TensorMeta> {
        let dtype = match dtype {
            Some(dtype) if dtype.element_bytes() == self.item_bytes as u64 => dtype,
            Some(dtype) => {
                return Err(PyValueError::new_err(format!(
                    "{what} has elements of {} bytes, and {} has {}",
                    self.item_bytes,
                    dtype.name(),
                    dtype.element_bytes()
                )))
            }
            None => self.dtype(what)?,
        };
        let extents = if self.shape.is_empty() {
            &[1][..]
        } else {
            &self.shape
        };
        let shape = extents
            .iter()
            .map(|extent| u32::try_from(*extent))
            .collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| {
            PyValueError::new_err(format!(
                "{what} has shape {extents:?}; an extent is at most {}, reshape it",
                u32::MAX
            ))
        })?;
        convert::meta(&shape, dtype)
    }

    fn dtype(&self, what: &str) -> PyResult<DataType> {
        dtype_of_format(&self.format, self.item_bytes).ok_or_else(|| {
            PyValueError::new_err(format!(
                "{what} has elements of format {:?} ({} bytes), which no element type has; convert it, for example with \
                 .astype('float32'), or pass a view as uint8",
                self.format, self.item_bytes
            ))
        })
    }
}

/// Native sizes and standard sizes differ ("l" has 8 or 4 bytes), so the size decides and the letter gives the family.
fn dtype_of_format(format: &str, item_bytes: usize) -> Option<DataType> {
    let letter = format.trim_start_matches(['@', '=', '<', '|']);
    let dtype = match (letter, item_bytes) {
        ("f", 4) => "float32",
        ("e", 2) => "float16",
        ("d", 8) => "float64",
        ("?", 1) => "bool",
        ("b", 1) => "int8",
        ("B" | "c", 1) => "uint8",
        ("h" | "i" | "l" | "q" | "n", 2) => "int16",
        ("h" | "i" | "l" | "q" | "n", 4) => "int32",
        ("h" | "i" | "l" | "q" | "n", 8) => "int64",
        ("H" | "I" | "L" | "Q" | "N", 2) => "uint16",
        ("H" | "I" | "L" | "Q" | "N", 4) => "uint32",
        ("H" | "I" | "L" | "Q" | "N", 8) => "uint64",
        _ => return None,
    };
    DataType::from_name(dtype)
}
