//! The life of a `Worker` as Python sees it: closed at exit, closed when forgotten, left alone in a forked process.

use std::sync::{Arc, Weak};

use echelon_runtime::worker::{Worker, WorkerState};
use parking_lot::Mutex;
use pyo3::exceptions::PyResourceWarning;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::wrap_pyfunction;

use crate::{error, gil, worker_options};

static LIVE: Mutex<Vec<Weak<Owned>>> = Mutex::new(Vec::new());
static AT_EXIT: PyOnceLock<()> = PyOnceLock::new();

/// A worker of the process that made it.
pub(crate) struct Life(Arc<Owned>);

struct Owned {
    /// Always there until `drop`.
    worker: Option<Worker>,
    pid: u32,
}

impl Life {
    pub(crate) fn new(worker: Worker) -> Self {
        worker.set_interrupt(Arc::new(gil::PyInterrupt));
        Self(Arc::new(Owned {
            worker: Some(worker),
            pid: std::process::id(),
        }))
    }

    /// True in a process that was forked from the Worker's.
    pub(crate) fn is_forked(&self) -> bool {
        self.0.pid != std::process::id()
    }

    /// The worker.
    ///
    /// # Errors
    /// `LifecycleError` in a process that was forked from the one that made it: its threads and children are not there.
    pub(crate) fn get(&self, py: Python<'_>) -> PyResult<&Worker> {
        if self.is_forked() {
            return Err(error::lifecycle(
                py,
                "this Worker belongs to the process that made it, and this one was forked from it; make a Worker here",
            ));
        }
        self.0
            .worker
            .as_ref()
            .ok_or_else(|| error::lifecycle(py, "this Worker is being deleted"))
    }

    /// It will be inited: closed at exit from now on, and children import as this process does now.
    pub(crate) fn prepare(&self, py: Python<'_>) -> PyResult<()> {
        self.close_at_exit(py)?;
        self.get(py)?.set_child_env(worker_options::child_env(py)?);
        Ok(())
    }

    /// Closes the worker when the interpreter ends, if it is still open then.
    fn close_at_exit(&self, py: Python<'_>) -> PyResult<()> {
        AT_EXIT.get_or_try_init(py, || {
            let module = py.import("echelon._core")?;
            let close = wrap_pyfunction!(close_all, &module)?;
            py.import("atexit")?
                .call_method1("register", (close,))
                .map(|_| ())
        })?;
        let mut live = LIVE.lock();
        let own = Arc::downgrade(&self.0);
        live.retain(|owned| owned.strong_count() > 0 && !owned.ptr_eq(&own));
        live.push(own);
        Ok(())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        if self.pid != std::process::id() {
            // A forked copy: dropping it could end the children of the process that made it. The memory goes with the process.
            std::mem::forget(worker);
        } else if matches!(worker.state(), WorkerState::Ready | WorkerState::Starting) {
            close_forgotten(&worker);
        }
    }
}

/// A worker that was dropped while open: ended all the same, with a warning.
fn close_forgotten(worker: &Worker) {
    gil::try_attached(|py| {
        let warning = py.get_type::<PyResourceWarning>();
        let text = c"a Worker was dropped without close(); use `with ec.Worker(...) as w:`";
        if let Err(raised) = PyErr::warn(py, &warning, text, 1) {
            raised.write_unraisable(py, None);
        }
        if let Err(cause) = gil::detached(py, || worker.close()) {
            error::to_py(py, cause).write_unraisable(py, None);
        }
    });
}

/// Closes every open worker of this process; runs at exit.
#[pyfunction]
fn close_all(py: Python<'_>) {
    let live: Vec<Arc<Owned>> = LIVE
        .lock()
        .drain(..)
        .filter_map(|owned| owned.upgrade())
        .collect();
    for owned in live.iter().filter(|owned| owned.pid == std::process::id()) {
        let Some(worker) = &owned.worker else {
            continue;
        };
        if let Err(cause) = gil::detached(py, || worker.close()) {
            error::to_py(py, cause).write_unraisable(py, None);
        }
    }
}
