//! Small values between Python and Rust: element types, shapes, tags, access rights.

use std::time::Duration;

use echelon_runtime::error::Error;
use echelon_runtime::tensor::Tag;
use echelon_wire::buffer::AccessFlags;
use echelon_wire::tensor::{DataType, TensorMeta};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyInt, PyModule, PyString, PyTuple};

use crate::error::to_py;

static ENUMS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// A member of an enumeration of `echelon._enums`.
pub(crate) fn member<'py>(py: Python<'py>, class: &str, code: u32) -> PyResult<Bound<'py, PyAny>> {
    let module = ENUMS.get_or_try_init(py, || py.import("echelon._enums").map(Bound::unbind))?;
    module.bind(py).getattr(class)?.call1((code,))
}

/// The `DataType` of an element type.
pub(crate) fn dtype_to_py(py: Python<'_>, dtype: DataType) -> PyResult<Bound<'_, PyAny>> {
    member(py, "DataType", dtype.code())
}

/// The element type that a Python object names, see `DataType.of`.
pub(crate) fn dtype_from_py(value: &Bound<'_, PyAny>) -> PyResult<DataType> {
    let py = value.py();
    let module = ENUMS.get_or_try_init(py, || py.import("echelon._enums").map(Bound::unbind))?;
    let code: u32 = module
        .bind(py)
        .getattr("DataType")?
        .call_method1("of", (value,))?
        .extract()?;
    DataType::from_code(code).ok_or_else(|| {
        PyValueError::new_err(format!(
            "dtype {code} is not an element type of the protocol"
        ))
    })
}

/// Extents from an int or a sequence of ints.
pub(crate) fn shape_from_py(shape: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if is_index(shape)? {
        return Ok(vec![extent(shape)?]);
    }
    let items = shape.try_iter().map_err(|_| {
        PyTypeError::new_err(format!(
            "shape must be an int or a sequence of ints, not {}",
            type_name(shape)
        ))
    })?;
    items.map(|item| extent(&item?)).collect()
}

fn is_index(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(value.hasattr("__index__")? && !value.is_instance_of::<PyBool>())
}

fn extent(item: &Bound<'_, PyAny>) -> PyResult<u32> {
    if !is_index(item)? {
        return Err(PyTypeError::new_err(format!(
            "shape must consist of ints, not {}",
            type_name(item)
        )));
    }
    item.extract::<u32>().map_err(|_| {
        PyValueError::new_err(format!(
            "shape has the extent {item}; an extent is between 0 and {}",
            u32::MAX
        ))
    })
}

/// Shape and element type together.
pub(crate) fn meta(shape: &[u32], dtype: DataType) -> PyResult<TensorMeta> {
    TensorMeta::new(shape, dtype)
        .map_err(|error| PyValueError::new_err(format!("shape {shape:?}: {error}")))
}

/// The shape as a tuple.
pub(crate) fn shape_to_py<'py>(
    py: Python<'py>,
    meta: &TensorMeta,
) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, meta.shape())
}

static TAGS: PyOnceLock<[Py<PyAny>; Tag::ALL.len()]> = PyOnceLock::new();

/// The members of `TensorArgType`, in the order of `Tag::ALL`.
fn tags(py: Python<'_>) -> PyResult<&[Py<PyAny>; Tag::ALL.len()]> {
    TAGS.get_or_try_init(py, || {
        let mut members = Vec::with_capacity(Tag::ALL.len());
        for tag in Tag::ALL {
            members.push(member(py, "TensorArgType", u32::from(tag as u8))?.unbind());
        }
        members
            .try_into()
            .map_err(|_| PyTypeError::new_err("TensorArgType has other members than the runtime"))
    })
}

/// A tag from a `TensorArgType`, its value, or its name.
pub(crate) fn tag_from_py(value: &Bound<'_, PyAny>) -> PyResult<Tag> {
    // Members are single objects, and nearly every tag is one.
    let known = tags(value.py())?;
    if let Some(code) = known.iter().position(|member| member.is(value)) {
        return Ok(Tag::ALL[code]);
    }
    tag_of_value(value)
}

fn tag_of_value(value: &Bound<'_, PyAny>) -> PyResult<Tag> {
    if let Ok(name) = value.cast::<PyString>() {
        let name = name.to_string();
        return Tag::ALL
            .into_iter()
            .find(|tag| tag.name().eq_ignore_ascii_case(&name))
            .ok_or_else(|| {
                PyValueError::new_err(format!("tag {name:?} is not one of {}", tag_names()))
            });
    }
    if !is_index(value)? {
        return Err(PyTypeError::new_err(format!(
            "tag must be a TensorArgType, not {}",
            type_name(value)
        )));
    }
    value
        .extract::<u8>()
        .ok()
        .and_then(Tag::from_code)
        .ok_or_else(|| PyValueError::new_err(format!("tag {value} is not one of {}", tag_names())))
}

/// The `TensorArgType` of a tag.
pub(crate) fn tag_to_py(py: Python<'_>, tag: Tag) -> PyResult<Bound<'_, PyAny>> {
    Ok(tags(py)?[tag as usize].bind(py).clone())
}

fn tag_names() -> String {
    Tag::ALL.map(Tag::name).join(", ")
}

/// Access rights from `"read"`, `"write"`, `"readwrite"` or an `AccessFlags`.
pub(crate) fn access_from_py(value: &Bound<'_, PyAny>) -> PyResult<AccessFlags> {
    if let Ok(name) = value.cast::<PyString>() {
        return match name.to_string().as_str() {
            "read" => Ok(AccessFlags::READ),
            "write" => Ok(AccessFlags::WRITE),
            "readwrite" => Ok(AccessFlags::READ_WRITE),
            other => Err(PyValueError::new_err(format!(
                "access is \"read\", \"write\" or \"readwrite\", not {other:?}"
            ))),
        };
    }
    if !is_index(value)? {
        return Err(PyTypeError::new_err(format!(
            "access is \"read\", \"write\", \"readwrite\" or an AccessFlags, not {}",
            type_name(value)
        )));
    }
    let bits = value.extract::<u32>().unwrap_or(u32::MAX);
    AccessFlags::from_bits(bits).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// The `AccessFlags` of access rights.
pub(crate) fn access_to_py(py: Python<'_>, access: AccessFlags) -> PyResult<Bound<'_, PyAny>> {
    member(py, "AccessFlags", access.bits())
}

/// A scalar argument: 0 to 2^64-1, or a negative number down to -2^63 as its two's complement.
pub(crate) fn scalar_from_py(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    if !value.is_exact_instance_of::<PyInt>() && !value.hasattr("__index__")? {
        return Err(PyTypeError::new_err(format!(
            "a scalar is an int of 64 bits, not {}; pass other numbers as a tensor of one element",
            type_name(value)
        )));
    }
    if let Ok(number) = value.extract::<u64>() {
        return Ok(number);
    }
    value
        .extract::<i64>()
        .map(|negative| negative as u64)
        .map_err(|_| {
            PyValueError::new_err(format!(
                "scalar {value} is outside -2^63 to 2^64-1; pass it as a tensor"
            ))
        })
}

/// A count of bytes or an offset.
pub(crate) fn byte_count(what: &'static str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    if !is_index(value)? {
        return Err(PyTypeError::new_err(format!(
            "{what} must be an int, not {}",
            type_name(value)
        )));
    }
    value.extract::<u64>().map_err(|_| {
        PyValueError::new_err(format!(
            "{what} is {value}; it must be between 0 and 2^64-1"
        ))
    })
}

/// A setting that is a count of 32 bits.
pub(crate) fn optional_count(
    what: &'static str,
    value: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<u32>> {
    let Some(value) = value else { return Ok(None) };
    if !is_index(value)? {
        return Err(PyTypeError::new_err(format!(
            "{what} must be an int, not {}",
            type_name(value)
        )));
    }
    let count = value.extract::<u32>();
    count.map(Some).map_err(|_| {
        PyValueError::new_err(format!(
            "{what} is {value}; it must be between 0 and 2^32-1"
        ))
    })
}

/// A setting in seconds.
pub(crate) fn optional_seconds(
    what: &'static str,
    value: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    let seconds = value.extract::<f64>().map_err(|_| {
        PyTypeError::new_err(format!(
            "{what} must be a number of seconds, not {}",
            type_name(value)
        ))
    })?;
    let duration = Duration::try_from_secs_f64(seconds);
    duration.map(Some).map_err(|_| {
        PyValueError::new_err(format!(
            "{what} is {seconds:e}; it must be a positive number of seconds that a clock can count"
        ))
    })
}

/// Name of the type of a value, for messages.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value
        .get_type()
        .name()
        .map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

/// For `map_err`: the exception of a runtime error.
pub(crate) fn raise(py: Python<'_>) -> impl FnOnce(Error) -> PyErr + '_ {
    move |error| to_py(py, error)
}
