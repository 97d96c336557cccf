//! The keywords of `Worker`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use echelon_runtime::worker::{ChildProgram, Worker, WorkerBuilder};
use echelon_runtime::ChipDevices;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

const NAMES: [&str; 12] = [
    "level",
    "num_sub_workers",
    "device_ids",
    "platform",
    "runtime",
    "remote_session_timeout_s",
    "startup_timeout_s",
    "close_timeout_s",
    "interrupt_grace_s",
    "memory_limit",
    "max_tasks",
    "max_attempts",
];

/// What was given; the runtime has the defaults and checks the ranges.
pub(crate) struct Options {
    pub(crate) level: Option<u32>,
    pub(crate) num_sub_workers: Option<u32>,
    pub(crate) chips: ChipDevices,
    pub(crate) remote_session_timeout: Option<Duration>,
    pub(crate) startup_timeout: Option<Duration>,
    pub(crate) close_timeout: Option<Duration>,
    pub(crate) interrupt_grace: Option<Duration>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) max_tasks: Option<u32>,
    pub(crate) max_attempts: Option<u32>,
}

impl Options {
    /// A builder with everything set.
    pub(crate) fn builder(self, py: Python<'_>) -> PyResult<WorkerBuilder> {
        echelon_session::chip::check_devices(&self.chips)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let mut builder = Worker::builder()
            .memory_limit(self.memory_limit)
            .chips(self.chips);
        if let Some(level) = self.level {
            builder = builder.level(level);
        }
        if let Some(count) = self.num_sub_workers {
            builder = builder.sub_workers(count);
        }
        if let Some(timeout) = self.remote_session_timeout {
            builder = builder.remote_session_timeout(timeout);
        }
        if let Some(timeout) = self.startup_timeout {
            builder = builder.startup_timeout(timeout);
        }
        if let Some(timeout) = self.close_timeout {
            builder = builder.close_timeout(timeout);
        }
        if let Some(grace) = self.interrupt_grace {
            builder = builder.interrupt_grace(grace);
        }
        if let Some(count) = self.max_tasks {
            builder = builder.max_tasks(count);
        }
        if let Some(count) = self.max_attempts {
            builder = builder.max_attempts(count);
        }
        Ok(builder
            .child_program(child_program(py)?)
            .chip_program(chip_program(py)?)
            .child_env(child_env(py)?))
    }
}

/// The interpreter that runs this process; none where Python is embedded and has no executable.
pub(crate) fn child_program(py: Python<'_>) -> PyResult<ChildProgram> {
    let executable: Option<PathBuf> = py.import("sys")?.getattr("executable")?.extract()?;
    Ok(match executable {
        Some(path) if !path.as_os_str().is_empty() => ChildProgram::Python { executable: path },
        _ => ChildProgram::None,
    })
}

/// How the processes of chips are started: with the same interpreter, which imports nothing of the user's.
pub(crate) fn chip_program(py: Python<'_>) -> PyResult<ChildProgram> {
    Ok(match child_program(py)? {
        ChildProgram::Python { executable } => ChildProgram::Custom {
            program: executable,
            args: vec!["-m".to_owned(), "echelon._chip".to_owned()],
        },
        other => other,
    })
}

/// What children get on top of this process's environment, so that they import what this process can; see
/// `echelon._callables.child_environment`.
pub(crate) fn child_env(py: Python<'_>) -> PyResult<Vec<(OsString, OsString)>> {
    let environment = py
        .import("echelon._callables")?
        .call_method0("child_environment")?;
    environment.extract()
}

/// Raises `TypeError` for the first keyword that does not exist, with the nearest that does.
pub(crate) fn refuse_unknown(unknown: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    let Some((name, _)) = unknown.and_then(|unknown| unknown.iter().next()) else {
        return Ok(());
    };
    let nearest: Vec<String> = name
        .py()
        .import("difflib")?
        .call_method1("get_close_matches", (&name, NAMES.to_vec(), 1))?
        .extract()?;
    let hint = match nearest.first() {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => format!("known are {}", NAMES.join(", ")),
    };
    Err(PyTypeError::new_err(format!(
        "Worker() has no keyword {name}; {hint}"
    )))
}
