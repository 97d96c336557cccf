//! The buffer protocol inwards: numpy arrays, bytes, bytearray, memoryview, ctypes and array.array as pinned memory. `unsafe`
//! lives here.
//!
//! A pin may end on any thread, under any lock of the engine. It must not take the GIL there (design §15.12): the exporter's
//! view goes to a queue, and the next call that holds the GIL anyway releases it ([`drain`]).

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use echelon_runtime::memory::HostMemory;
use echelon_wire::limits::MAX_TENSOR_DIMS;
use echelon_wire::tensor::{DataType, TensorMeta};
use parking_lot::Mutex;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use smallvec::SmallVec;

use crate::convert;

static RELEASED: Mutex<Vec<View>> = Mutex::new(Vec::new());

/// Whether there may be something in the queue: what asks often asks this first.
static ANY_RELEASED: AtomicBool = AtomicBool::new(false);

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
            ANY_RELEASED.store(true, Ordering::Release);
        }
    }
}

/// Releases the views that nobody uses any more.
pub(crate) fn drain(py: Python<'_>) {
    if ANY_RELEASED.load(Ordering::Acquire) {
        drain_all(py);
    }
}

#[cold]
fn drain_all(_py: Python<'_>) {
    // Before the queue is taken: what is added from now on sets it again.
    ANY_RELEASED.store(false, Ordering::Release);
    // The lock is not held while the exporters' release functions run, which may be Python code (P-2).
    let mut released = std::mem::take(&mut *RELEASED.lock());
    for view in released.drain(..) {
        release(view);
    }
    // The room for so many is used again.
    let mut queue = RELEASED.lock();
    if queue.is_empty() {
        std::mem::swap(&mut *queue, &mut released);
    }
}

/// The last field of an object that may hold pins: dropped after them, it gives the exporters their views back at once.
#[derive(Default)]
pub(crate) struct DrainOnDrop;

impl Drop for DrainOnDrop {
    fn drop(&mut self) {
        if ANY_RELEASED.load(Ordering::Acquire) {
            // Python frees its objects with the GIL held, so this never waits; at the interpreter's end there is nothing to give
            // back.
            crate::gil::try_attached(drain);
        }
    }
}

/// Bytes of a Python object, with what the exporter says of their elements.
pub(crate) struct HostBuffer {
    pub(crate) memory: HostMemory,
    extents: Extents,
    format: Format,
    item_bytes: usize,
}

type Extents = SmallVec<[u64; MAX_TENSOR_DIMS]>;

/// What the exporter says of an element.
enum Format {
    Known(DataType),
    /// A format without an element type, for the message.
    Unknown(String),
}

/// Pins the bytes of `object`.
///
/// # Errors
/// `TypeError` when it has no buffer protocol, `ValueError` when the bytes are not C-contiguous.
pub(crate) fn pin(what: &str, object: &Bound<'_, PyAny>) -> PyResult<HostBuffer> {
    drain(object.py());
    let view = acquire(what, object)?;
    let raw = &view.0;
    let rank = usize::try_from(raw.ndim).unwrap_or(0);
    let extents = words(raw.shape, rank);
    let extents: Extents = extents
        .iter()
        .map(|extent| u64::try_from(*extent).unwrap_or(0))
        .collect();
    let item_bytes = usize::try_from(raw.itemsize).unwrap_or(0);
    let format = if raw.format.is_null() {
        c"B"
    } else {
        // SAFETY: a format is a NUL-terminated string that lives as long as the view.
        unsafe { CStr::from_ptr(raw.format) }
    };
    let format = match dtype_of_format(format, item_bytes) {
        Some(dtype) => Format::Known(dtype),
        None => Format::Unknown(format.to_string_lossy().into_owned()),
    };
    // SAFETY: `view` is filled and the GIL is held.
    let contiguous =
        unsafe { ffi::PyBuffer_IsContiguous(&raw const *view.0, b'C' as std::ffi::c_char) } != 0;
    if !contiguous {
        let strides = words(raw.strides, rank).to_vec();
        release(view);
        return Err(PyValueError::new_err(format!(
            "{what} has shape {extents:?} and strides {strides:?} bytes, which is not C-contiguous; \
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
    let owner = Arc::new(Pin(Some(view)));
    // SAFETY: the exporter keeps `len` bytes at `buf` in place until the view is released, which happens only after `owner`
    // is gone. Rust forms no reference to them.
    let memory = unsafe { HostMemory::from_raw(pointer, length, writable, owner) };
    Ok(HostBuffer {
        memory,
        extents,
        format,
        item_bytes,
    })
}

/// Numpy's view of a tensor of another framework in host memory; `None` for what has the buffer protocol itself, and for what
/// has neither.
fn exporter<'py>(object: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    if has_buffer(object) || !object.hasattr("__dlpack__")? {
        return Ok(None);
    }
    let numpy = object.py().import("numpy")?;
    numpy.call_method1("from_dlpack", (object,)).map(Some)
}

/// Pins the bytes of `object`, or those of numpy's view of it.
pub(crate) fn pin_any(what: &str, object: &Bound<'_, PyAny>) -> PyResult<HostBuffer> {
    match exporter(object)? {
        None => pin(what, object),
        Some(view) => pin(what, &view),
    }
}

/// A part of `host` from its first byte on, all of it without `nbytes`, and the offset in the buffer that it is for.
pub(crate) fn host_range(
    host: &Bound<'_, PyAny>,
    nbytes: Option<&Bound<'_, PyAny>>,
    offset: Option<&Bound<'_, PyAny>>,
) -> PyResult<(HostMemory, u64)> {
    let offset = offset.map_or(Ok(0), |value| convert::byte_count("offset", value))?;
    let memory = pin_any("host", host)?.plain("host")?;
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

/// Shape or strides of a view, not to be used after it.
fn words<'a>(pointer: *const ffi::Py_ssize_t, count: usize) -> &'a [ffi::Py_ssize_t] {
    if pointer.is_null() {
        return &[];
    }
    // SAFETY: shape and strides of a view have `ndim` words, and live as long as it.
    unsafe { std::slice::from_raw_parts(pointer, count) }
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
        let extents = if self.extents.is_empty() {
            &[1][..]
        } else {
            &self.extents
        };
        let shape = extents.iter().map(|extent| u32::try_from(*extent));
        let shape: Result<SmallVec<[u32; MAX_TENSOR_DIMS]>, _> = shape.collect();
        let shape = shape.map_err(|_| {
            PyValueError::new_err(format!(
                "{what} has shape {extents:?}; an extent is at most {}, reshape it",
                u32::MAX
            ))
        })?;
        convert::meta(&shape, dtype)
    }

    /// The bytes, which may be of any type but references: copied from elsewhere they would point nowhere.
    fn plain(self, what: &str) -> PyResult<HostMemory> {
        match &self.format {
            Format::Unknown(format) if has_references(format) => {
                Err(PyValueError::new_err(format!(
                    "{what} has elements of format {format:?}, which are references to Python objects; convert it, for example \
                     with .astype('float32')"
                )))
            }
            _ => Ok(self.memory),
        }
    }

    fn dtype(&self, what: &str) -> PyResult<DataType> {
        match &self.format {
            Format::Known(dtype) => Ok(*dtype),
            Format::Unknown(format) => Err(PyValueError::new_err(format!(
                "{what} has elements of format {format:?} ({} bytes), which no element type has; convert it, for example with \
                 .astype('float32'), or pass a view as uint8",
                self.item_bytes
            ))),
        }
    }
}

/// Whether a format has objects or pointers in it. Names of fields stand between colons.
fn has_references(format: &str) -> bool {
    let types = format.split(':').step_by(2);
    types
        .flat_map(str::chars)
        .any(|letter| matches!(letter, 'O' | 'P' | '&' | 'X'))
}

/// Native sizes and standard sizes differ ("l" has 8 or 4 bytes), so the size decides and the letter gives the family.
fn dtype_of_format(format: &CStr, item_bytes: usize) -> Option<DataType> {
    let letter = match format.to_bytes() {
        [b'@' | b'=' | b'<' | b'|', letter] | [letter] => *letter,
        _ => return None,
    };
    Some(match (letter, item_bytes) {
        (b'f', 4) => DataType::Float32,
        (b'e', 2) => DataType::Float16,
        (b'd', 8) => DataType::Float64,
        (b'?', 1) => DataType::Bool,
        (b'b', 1) => DataType::Int8,
        (b'B' | b'c', 1) => DataType::Uint8,
        (b'h' | b'i' | b'l' | b'q' | b'n', 2) => DataType::Int16,
        (b'h' | b'i' | b'l' | b'q' | b'n', 4) => DataType::Int32,
        (b'h' | b'i' | b'l' | b'q' | b'n', 8) => DataType::Int64,
        (b'H' | b'I' | b'L' | b'Q' | b'N', 2) => DataType::Uint16,
        (b'H' | b'I' | b'L' | b'Q' | b'N', 4) => DataType::Uint32,
        (b'H' | b'I' | b'L' | b'Q' | b'N', 8) => DataType::Uint64,
        _ => return None,
    })
}
