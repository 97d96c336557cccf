//! `ChipCallable`: machine code for a chip.

use std::path::PathBuf;

use bytes::Bytes;
use echelon_runtime::{Callable, ChipCode};
use echelon_session::chip;
use echelon_wire::callable::{Direction, Hashid};
use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::convert;

/// Machine code for a chip: for platform `cpu` a shared object built with `echelon_chip.h` (see `ec.include_dir()`).
///
/// Args:
///     blob: the code, at most 64 MiB.
///     signature: a `ChipArg` for each parameter. For `cpu` the code declares it, and what is given here must agree.
///     platform: the chips it is for.
///     runtime: the runtime of those chips.
///     name: for messages and timelines; the beginning of the hashid when absent.
///
/// Raises ValueError when it is not what the platform runs or declares another signature, and for an unknown platform.
#[pyclass(frozen, module = "echelon._core", name = "ChipCallable")]
pub(crate) struct PyChipCallable(pub(crate) Callable);

#[pymethods]
impl PyChipCallable {
    #[new]
    #[pyo3(signature = (blob, *, signature=None, platform="cpu", runtime="tensormap_and_ringbuffer", name=None))]
    fn new(
        blob: Vec<u8>,
        signature: Option<Vec<Bound<'_, PyAny>>>,
        platform: &str,
        runtime: &str,
        name: Option<&str>,
    ) -> PyResult<Self> {
        let signature = signature
            .map(|list| list.iter().map(direction).collect::<PyResult<Vec<_>>>())
            .transpose()?;
        let code = code(platform, runtime, Bytes::from(blob), signature)?;
        let digest = code.digest().to_string();
        let name = name.map_or_else(
            || format!("chip:{}", digest.get(..12).unwrap_or_default()),
            str::to_owned,
        );
        Ok(Self(Callable::chip(&name, code)))
    }

    /// Reads the code from a file; its name is that of the file when none is given.
    ///
    /// Raises OSError when it cannot be read, and what the constructor raises.
    #[staticmethod]
    #[pyo3(signature = (path, *, signature=None, platform="cpu", runtime="tensormap_and_ringbuffer", name=None))]
    fn from_file(
        path: PathBuf,
        signature: Option<Vec<Bound<'_, PyAny>>>,
        platform: &str,
        runtime: &str,
        name: Option<&str>,
    ) -> PyResult<Self> {
        let blob = std::fs::read(&path)
            .map_err(|error| PyOSError::new_err(format!("{}: {error}", path.display())))?;
        let file = path.file_name().map(|name| name.to_string_lossy());
        let name = name.or(file.as_deref());
        Self::new(blob, signature, platform, runtime, name)
    }

    /// `"sha256:"` and 64 hexadecimal digits: the identity of the callable on every host.
    #[getter]
    fn hashid(&self) -> String {
        Hashid::from(self.0.digest).to_string()
    }

    /// What each parameter is: a tuple of `ChipArg`.
    #[getter]
    fn signature<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let directions = self.0.chip_code().map_or(&[][..], ChipCode::signature);
        let members: Vec<_> = directions
            .iter()
            .map(|direction| convert::member(py, "ChipArg", direction.code()))
            .collect::<PyResult<_>>()?;
        PyTuple::new(py, members)
    }

    /// The chips it is for.
    #[getter]
    fn platform(&self) -> &str {
        self.0.chip_code().map_or("", ChipCode::platform)
    }

    /// The runtime of those chips.
    #[getter]
    fn runtime(&self) -> &str {
        self.0.chip_code().map_or("", ChipCode::runtime)
    }

    /// Name in messages.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    /// Size of the code in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.chip_code().map_or(0, |code| code.blob().len())
    }

    fn __repr__(&self) -> String {
        format!(
            "<ChipCallable {} {} {} bytes>",
            self.name(),
            self.platform(),
            self.nbytes()
        )
    }

    fn __reduce_ex__(&self, _protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a ChipCallable cannot be pickled: register it, and name it by its hashid elsewhere",
        ))
    }
}

fn code(
    platform: &str,
    runtime: &str,
    blob: Bytes,
    signature: Option<Vec<Direction>>,
) -> PyResult<ChipCode> {
    let value = |text: String| PyValueError::new_err(text);
    if chip::backend(platform).is_ok() {
        return chip::code(platform, runtime, blob, signature.as_deref())
            .map_err(|error| value(error.to_string()));
    }
    // Another host's accelerator: what its machine code declares is not known here.
    let signature = signature.ok_or_else(|| {
        value(format!(
            "signature is needed for platform {platform:?}, whose machine code cannot be read here"
        ))
    })?;
    ChipCode::new(platform, runtime, &signature, blob).map_err(|error| value(error.to_string()))
}

/// A direction from a `ChipArg`, its value, or its name.
fn direction(value: &Bound<'_, PyAny>) -> PyResult<Direction> {
    let known = || PyValueError::new_err(format!("{value} is not one of SCALAR, IN, OUT, INOUT"));
    if let Ok(name) = value.cast::<PyString>() {
        let name = name.to_string();
        let mut all = (0..4).filter_map(Direction::from_code);
        return all
            .find(|direction| direction.name().eq_ignore_ascii_case(&name))
            .ok_or_else(known);
    }
    let code: u32 = value.extract().map_err(|_| {
        PyTypeError::new_err(format!(
            "signature consists of ChipArg members, not {}",
            convert::type_name(value)
        ))
    })?;
    Direction::from_code(code).ok_or_else(known)
}
