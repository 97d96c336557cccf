//! The only file that attaches to and detaches from the interpreter.
//!
//! Invariants (each has a test in `tests/test_py_gil.py`):
//! * P-1 Every call that can wait runs in [`blocking`]: the GIL is free meanwhile, so that other Python threads go on. What can be
//!   done without waiting may be done with it ([`quick`]).
//! * P-2 The GIL is never taken while a Rust lock is held: [`attached`] and [`PyInterrupt::check`] are called by code that
//!   holds none, and no lock of this crate is held across a call into Python.
//! * P-3 A signal handler that raises ends the waiting call within 100 ms with what it raised.

use std::cell::RefCell;

use echelon_runtime::error::{Error, Interrupt, Interrupted};
use pyo3::prelude::*;

use crate::buffer;
use crate::error::to_py;

thread_local! {
    /// What a signal handler raised during the current blocking call of this thread.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Runs `call` without the GIL and maps its error.
pub(crate) fn blocking<T, F>(py: Python<'_>, call: F) -> PyResult<T>
where
    T: Send,
    F: FnOnce() -> Result<T, Error> + Send,
{
    buffer::drain(py);
    let result = py.detach(call);
    buffer::drain(py);
    result.map_err(|error| to_py(py, error))
}

/// Runs `attempt` with the GIL held. It waits for nothing, not even for a lock; when it could not do its work so, it gives `None`
/// and `call` does it without the GIL, as in [`blocking`].
///
/// To let the GIL go and take it again costs more than a short call, and gives a busy thread the chance to keep it for 5 ms.
pub(crate) fn quick<T, F>(
    py: Python<'_>,
    attempt: impl FnOnce() -> PyResult<Result<Option<T>, Error>>,
    call: impl FnOnce() -> PyResult<F>,
) -> PyResult<T>
where
    T: Send,
    F: FnOnce() -> Result<T, Error> + Send,
{
    buffer::drain(py);
    match attempt()? {
        Ok(Some(done)) => Ok(done),
        Ok(None) => blocking(py, call()?),
        Err(error) => Err(to_py(py, error)),
    }
}

/// Runs `call` without the GIL; for main loops, which report through their exit status.
pub(crate) fn detached<T: Send>(py: Python<'_>, call: impl FnOnce() -> T + Send) -> T {
    py.detach(call)
}

/// Runs `call` with the GIL, from a thread that may not have it. Must not be called while a Rust lock is held.
pub(crate) fn attached<R>(call: impl FnOnce(Python<'_>) -> R) -> R {
    Python::attach(|py| {
        buffer::drain(py);
        call(py)
    })
}

/// Runs `call` with the GIL unless the interpreter is ending.
pub(crate) fn try_attached<R>(call: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    Python::try_attach(call)
}

/// Ends blocking calls when a Python signal handler raises, as the one of Ctrl-C does.
#[derive(Debug)]
pub(crate) struct PyInterrupt;

impl Interrupt for PyInterrupt {
    fn check(&self) -> Result<(), Interrupted> {
        match Python::try_attach(|py| py.check_signals()) {
            Some(Ok(())) => Ok(()),
            Some(Err(raised)) => {
                RAISED.with(|slot| slot.replace(Some(raised)));
                Err(Interrupted)
            }
            // The interpreter is ending: nobody is left to hand a result to.
            None => Err(Interrupted),
        }
    }
}

/// What the signal handler raised that made the last blocking call of this thread end with [`Error::Interrupted`].
pub(crate) fn take_raised() -> Option<PyErr> {
    RAISED.with(RefCell::take)
}
