//! The main functions of the processes that Echelon starts: children, sessions, the daemon.

use std::ffi::OsString;
use std::sync::Arc;

use echelon_runtime::child::{Child, ChildArgs, ChildError};
use echelon_runtime::worker::{ChildProgram, Worker, WorkerBuilder};
use pyo3::prelude::*;

use crate::host::PyHost;
use crate::{gil, worker_options, zygote};

/// Serves as a local worker until the parent ends it; returns the exit status. Started by the runtime.
#[pyfunction]
pub(crate) fn child_main(py: Python<'_>, argv: Vec<OsString>) -> PyResult<i32> {
    // Most children have no worker below, and their start is what many wait for.
    let inner = match argv.iter().any(|word| word == "--plan") {
        true => inner(py)?,
        false => Worker::builder(),
    };
    let served = gil::detached(py, || -> Result<(), ChildError> {
        let args = ChildArgs::parse(argv)?;
        Child::attach(args, Arc::new(PyHost::default()), inner)?.serve()
    });
    match served {
        Ok(()) => Ok(0),
        Err(cause) => failed(py, "echelon child", &cause),
    }
}

/// Serves as the process of a chip until the parent ends it; returns the exit status. Started by the runtime.
#[pyfunction]
pub(crate) fn chip_main(py: Python<'_>, argv: Vec<OsString>) -> i32 {
    gil::detached(py, || echelon_session::chip::chip_main(argv))
}

/// Runs one session; returns the exit status. Started by the daemon.
#[pyfunction]
pub(crate) fn session_main(py: Python<'_>, argv: Vec<String>) -> PyResult<i32> {
    let inner = inner(py)?;
    Ok(gil::detached(py, || {
        echelon_session::session_main(argv.into_iter(), Arc::new(PyHost::default()), inner)
    }))
}

/// Runs the daemon until SIGTERM or SIGINT; returns the exit status. Its sessions run with this interpreter unless the
/// arguments name another.
#[pyfunction]
pub(crate) fn daemon_main(py: Python<'_>, argv: Vec<String>) -> PyResult<i32> {
    let session = match worker_options::child_program(py)? {
        ChildProgram::Python { executable } => Some(vec![
            executable.into_os_string(),
            "-m".into(),
            "echelon._session".into(),
        ]),
        ChildProgram::Custom { .. } | ChildProgram::None => None,
    };
    Ok(gil::detached(py, || {
        echelon_session::daemon_main(argv.into_iter(), session)
    }))
}

/// For the worker of this process that is not the script's: how its own processes are started.
fn inner(py: Python<'_>) -> PyResult<WorkerBuilder> {
    Ok(Worker::builder()
        .child_program(worker_options::child_program(py)?)
        .chip_program(worker_options::chip_program(py)?)
        .child_env(worker_options::child_env(py)?)
        .own_zygote(zygote::own()))
}

/// Says on standard error why the process ends.
fn failed(py: Python<'_>, who: &str, cause: &dyn std::fmt::Display) -> PyResult<i32> {
    let stderr = py.import("sys")?.getattr("stderr")?;
    stderr.call_method1("write", (format!("{who}: {cause}\n"),))?;
    Ok(1)
}
