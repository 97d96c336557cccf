//! `CallableHandle`: a registered callable.

use bytes::Bytes;
use echelon_runtime::callable::Callable;
use echelon_runtime::worker::{CallableHandle, RegisterScope};
use echelon_wire::callable::ImportTarget;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::chip_callable::PyChipCallable;
use crate::remote_callable::PyRemoteCallable;

/// A callable registered with `Worker.register`. It has no public constructor and cannot be pickled.
#[pyclass(frozen, module = "echelon._core", name = "CallableHandle")]
pub(crate) struct PyCallableHandle(pub(crate) CallableHandle);

#[pymethods]
impl PyCallableHandle {
    /// `"sha256:"` and 64 hexadecimal digits: the identity of the callable on every host.
    #[getter]
    fn hashid(&self) -> String {
        self.0.hashid()
    }

    /// The 32 bytes behind the hashid.
    #[getter]
    fn digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.digest().as_bytes())
    }

    /// `"PYTHON_IMPORT"`, `"PYTHON_SERIALIZED"` or `"CHIP_CALLABLE"`.
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind().name()
    }

    /// `module:qualname`.
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    fn __repr__(&self) -> String {
        format!(
            "<CallableHandle {} {}>",
            self.0.name(),
            self.0.kind().name()
        )
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a CallableHandle cannot be pickled: it belongs to the Worker that made it; in a session use \
             ec.session.get_inner_handle(hashid)",
        ))
    }
}

/// What `register` was given, and the workers that it goes to when none are named.
pub(crate) fn callable_of(target: &Bound<'_, PyAny>) -> PyResult<(Callable, RegisterScope)> {
    if let Ok(chip) = target.cast::<PyChipCallable>() {
        return Ok((chip.get().0.clone(), RegisterScope::Local));
    }
    if let Ok(remote) = target.cast::<PyRemoteCallable>() {
        return Ok((
            Callable::import(remote.get().0.clone()),
            RegisterScope::Remote,
        ));
    }
    let described = target
        .py()
        .import("echelon._callables")?
        .call_method1("describe", (target,))?;
    let (name, payload): (String, Option<Vec<u8>>) = described.extract()?;
    let callable = match payload {
        Some(payload) => Callable::serialized(&name, Bytes::from(payload)),
        None => {
            let path = ImportTarget::parse(&name).map_err(|cause| {
                PyValueError::new_err(format!("{name:?} is no import path: {cause}"))
            })?;
            Callable::import(path)
        }
    };
    Ok((callable, RegisterScope::Local))
}
