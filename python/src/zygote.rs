//! The interpreter's part in a zygote: what it wants to be told around a fork (decision 0023).

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use echelon_runtime::process::take_inherited_fd;
use echelon_runtime::process::zygote::{fork_off, serve, Forked, OwnZygote, ZygoteHooks};
use echelon_runtime::worker::ChildProgram;
use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::{ffi, prelude::*};

use crate::worker_options;

/// The zygote that this process forked off for its own children, until its worker starts.
static OWN: Mutex<Option<OwnZygote>> = Mutex::new(None);
/// In a zygote that was forked off: its end of the socket.
static OF_ZYGOTE: Mutex<Option<OwnedFd>> = Mutex::new(None);

const HOOKS: ZygoteHooks = ZygoteHooks {
    // SAFETY: each is called around a fork, in this order, by functions of this module, which have the GIL.
    before: || unsafe { ffi::PyOS_BeforeFork() },
    // SAFETY: as above.
    in_parent: || unsafe { ffi::PyOS_AfterFork_Parent() },
    // SAFETY: as above.
    in_child: || unsafe { ffi::PyOS_AfterFork_Child() },
};

/// Forks a child for each request that comes over the inherited `socket`, or over that of `zygote_fork_off`. Returns the
/// arguments in every child, and `None` in the zygote when its owner has gone.
#[pyfunction]
#[pyo3(signature = (socket=None))]
pub(crate) fn zygote_serve(
    _py: Python<'_>,
    socket: Option<i32>,
) -> PyResult<Option<Vec<OsString>>> {
    let failed =
        |cause: &dyn std::fmt::Display| PyRuntimeError::new_err(format!("zygote: {cause}"));
    let socket = match socket {
        Some(number) => take_inherited_fd(number).map_err(|error| failed(&error))?,
        None => OF_ZYGOTE
            .lock()
            .take()
            .ok_or_else(|| failed(&"it was not forked off"))?,
    };
    match serve(socket, HOOKS) {
        Ok(Forked::Child(args)) => Ok(Some(args)),
        Ok(Forked::Ended) => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

/// Forks off a zygote for the sub workers and local children of this process, which has one thread and has run nothing of the
/// user's. True in the zygote. Where it cannot be, there is none.
#[pyfunction]
pub(crate) fn zygote_fork_off(py: Python<'_>) -> PyResult<bool> {
    let ChildProgram::Python { executable } = worker_options::child_program(py)? else {
        return Ok(false);
    };
    let env = worker_options::child_env(py)?;
    let module = vec!["-m".into(), "echelon._child".into()];
    match fork_off(executable, module, &env, HOOKS) {
        Ok(Ok(own)) => *OWN.lock() = Some(own),
        Ok(Err(socket)) => {
            *OF_ZYGOTE.lock() = Some(socket);
            return Ok(true);
        }
        // Then the keeper starts one when it needs it, and says so when that fails too.
        Err(_) => {}
    }
    Ok(false)
}

/// The zygote that was forked off, for the builder of the worker below.
pub(crate) fn own() -> Option<OwnZygote> {
    OWN.lock().take()
}
