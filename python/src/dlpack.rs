//! DLPack outwards: `Tensor.__dlpack__`. `unsafe` lives here, for the C structures that a capsule hands over.
//!
//! The context of a managed tensor holds Rust values only, so that a consumer may delete it on any thread, without the GIL.

use std::ffi::{c_void, CStr};

use echelon_runtime::memory::HostMemory;
use echelon_wire::tensor::{DataType, TensorMeta};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::tensor::PyTensor;

/// `(kDLCPU, 0)`.
pub(crate) const CPU: (i32, i32) = (1, 0);

const PLAIN: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
const FLAG_READ_ONLY: u64 = 1;
const FLAG_COPIED: u64 = 2;

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// The unversioned form.
#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

/// The form since version 1.0.
#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
    flags: u64,
    tensor: DlTensor,
}

/// What a managed tensor points to.
struct Context {
    shape: [i64; 5],
    strides: [i64; 5],
    _memory: HostMemory,
}

/// A capsule over `tensor`, or over a copy of it.
///
/// # Errors
/// `BufferError` for a read-only tensor in the unversioned form.
pub(crate) fn capsule<'py>(
    py: Python<'py>,
    tensor: &PyTensor,
    max_version: Option<(u32, u32)>,
    copy: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let versioned = max_version.is_some_and(|(major, _)| major >= 1);
    let read_only = tensor.read_only() && !copy;
    if read_only && !versioned {
        return Err(PyBufferError::new_err(
            "the tensor is read-only, which this DLPack consumer cannot be told; copy it first: numpy.array(t)",
        ));
    }
    let memory = if copy {
        HostMemory::from_vec(tensor.memory(py)?.to_vec())
    } else {
        tensor.memory(py)?
    };
    let (view, context) = describe(tensor.inner().meta(), memory);
    if versioned {
        let flags = if read_only { FLAG_READ_ONLY } else { 0 } | if copy { FLAG_COPIED } else { 0 };
        let managed = ManagedVersioned {
            major: 1,
            minor: 0,
            context,
            deleter: Some(delete_versioned),
            flags,
            tensor: view,
        };
        let pointer = Box::into_raw(Box::new(managed));
        // SAFETY: the capsule takes the pointer over; until a consumer renames it, `drop_versioned` deletes it.
        let capsule =
            unsafe { ffi::PyCapsule_New(pointer.cast(), VERSIONED.as_ptr(), Some(drop_versioned)) };
        if capsule.is_null() {
            // SAFETY: nobody else has the pointer.
            unsafe { delete_versioned(pointer) };
        }
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
    } else {
        let pointer = Box::into_raw(Box::new(Managed {
            tensor: view,
            context,
            deleter: Some(delete_plain),
        }));
        // SAFETY: as above, with `drop_plain`.
        let capsule =
            unsafe { ffi::PyCapsule_New(pointer.cast(), PLAIN.as_ptr(), Some(drop_plain)) };
        if capsule.is_null() {
            // SAFETY: nobody else has the pointer.
            unsafe { delete_plain(pointer) };
        }
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
    }
}

fn describe(meta: &TensorMeta, memory: HostMemory) -> (DlTensor, *mut c_void) {
    let mut shape = [0; 5];
    let mut strides = [0; 5];
    let mut stride = 1_i64;
    for (axis, extent) in meta.shape().iter().enumerate().rev() {
        shape[axis] = i64::from(*extent);
        strides[axis] = stride;
        stride = stride.saturating_mul(i64::from(*extent).max(1));
    }
    let data = memory.as_ptr().cast::<c_void>();
    let context = Box::into_raw(Box::new(Context {
        shape,
        strides,
        _memory: memory,
    }));
    let (code, bits) = element(meta.dtype());
    let view = DlTensor {
        data,
        device_type: CPU.0,
        device_id: CPU.1,
        ndim: meta.ndims() as i32,
        code,
        bits,
        lanes: 1,
        // SAFETY: `context` was just made from a box; only the addresses of its fields are taken.
        shape: unsafe { (&raw mut (*context).shape).cast() },
        // SAFETY: as above.
        strides: unsafe { (&raw mut (*context).strides).cast() },
        byte_offset: 0,
    };
    (view, context.cast())
}

/// DLPack's code (0 int, 1 uint, 2 float, 4 bfloat, 6 bool) and bits.
fn element(dtype: DataType) -> (u8, u8) {
    let code = match dtype.name() {
        "bfloat16" => 4,
        "bool" => 6,
        name if name.starts_with("float") => 2,
        name if name.starts_with("int") => 0,
        _ => 1,
    };
    // At most 8 bytes.
    (code, (dtype.element_bytes() * 8) as u8)
}

/// # Safety
/// `managed` must come from [`capsule`] and not have been deleted.
unsafe extern "C" fn delete_plain(managed: *mut Managed) {
    // SAFETY: by contract both pointers were made from boxes and are taken back once.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// # Safety
/// As [`delete_plain`].
unsafe extern "C" fn delete_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: by contract both pointers were made from boxes and are taken back once.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context>()));
    }
}

/// Destructor of a capsule: deletes the tensor unless a consumer took it, which renames the capsule.
///
/// # Safety
/// `capsule` is one of [`capsule`]'s; called by the interpreter.
unsafe extern "C" fn drop_plain(capsule: *mut ffi::PyObject) {
    // SAFETY: the name says that the pointer is ours and still in the capsule.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, PLAIN.as_ptr()) != 0 {
            delete_plain(ffi::PyCapsule_GetPointer(capsule, PLAIN.as_ptr()).cast());
        }
    }
}

/// # Safety
/// As [`drop_plain`].
unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: the name says that the pointer is ours and still in the capsule.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) != 0 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast());
        }
    }
}
