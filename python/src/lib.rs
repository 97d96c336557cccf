//! `echelon._core`: the runtime for Python. Converts and delegates; one class a file.
//!
//! There is no protocol constant, offset, socket or scheduling decision in this crate. `gil` says when the interpreter's
//! lock is held (invariants P-1 to P-3), `error` maps every error, `buffer`, `tensor` and `dlpack` hold the `unsafe`
//! that the buffer protocol and DLPack need.

mod buffer;
mod call_config;
mod callable_handle;
mod chip_callable;
mod convert;
mod dlpack;
mod error;
mod gil;
mod host;
mod orchestrator;
mod process;
mod remote_buffer_export;
mod remote_buffer_handle;
mod remote_callable;
mod remote_copy;
mod remote_tensor_ref;
mod remote_worker_spec;
mod run_report;
mod scope;
mod task_args;
mod task_handle;
mod tensor;
mod worker;
mod worker_life;
mod worker_options;
mod worker_run;
mod zygote;

use pyo3::prelude::*;

/// The compiled part of the package `echelon`.
#[pymodule]
#[pyo3(name = "_core")]
fn core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<callable_handle::PyCallableHandle>()?;
    module.add_class::<call_config::PyCallConfig>()?;
    module.add_class::<chip_callable::PyChipCallable>()?;
    module.add_class::<orchestrator::PyOrchestrator>()?;
    module.add_class::<remote_buffer_export::PyRemoteBufferExport>()?;
    module.add_class::<remote_buffer_handle::PyRemoteBufferHandle>()?;
    module.add_class::<remote_callable::PyRemoteCallable>()?;
    module.add_class::<remote_copy::PyRemoteCopy>()?;
    module.add_class::<remote_tensor_ref::PyRemoteTensorRef>()?;
    module.add_class::<remote_worker_spec::PyRemoteWorkerSpec>()?;
    module.add_class::<run_report::PyRunReport>()?;
    module.add_class::<scope::PyScope>()?;
    module.add_class::<task_args::PyTaskArgs>()?;
    module.add_class::<task_handle::PyTaskHandle>()?;
    module.add_class::<tensor::PyTensor>()?;
    module.add_class::<worker::PyWorker>()?;
    module.add_function(wrap_pyfunction!(host::inner_handle, module)?)?;
    module.add_function(wrap_pyfunction!(process::child_main, module)?)?;
    module.add_function(wrap_pyfunction!(process::chip_main, module)?)?;
    module.add_function(wrap_pyfunction!(process::session_main, module)?)?;
    module.add_function(wrap_pyfunction!(process::daemon_main, module)?)?;
    module.add_function(wrap_pyfunction!(zygote::zygote_serve, module)?)?;
    module.add_function(wrap_pyfunction!(zygote::zygote_fork_off, module)?)?;
    Ok(())
}
