//! `CallConfig`: settings that travel with a task.

use echelon_wire::call_config::CallConfig;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Settings that travel with a next-level task; the callable gets them as its third argument.
///
/// Args (all are 32-bit ints but the last):
///     block_dim: blocks to launch; 0 lets the callable decide.
///     aicpu_thread_num: scheduler threads on the device.
///     enable_l2_swimlane: non-zero records the timeline.
///     enable_dump_tensor: non-zero dumps tensors.
///     enable_pmu: performance counter group, 0 for none.
///     enable_dep_gen: non-zero records dependencies.
///     enable_scope_stats: non-zero records statistics by scope.
///     output_prefix: where diagnostics are written, at most 1,023 bytes; needed when any of the `enable_*` is not 0.
///
/// Raises ValueError for a prefix that is too long or missing.
#[pyclass(frozen, eq, hash, module = "echelon._core", name = "CallConfig")]
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct PyCallConfig(pub(crate) CallConfig);

#[pymethods]
impl PyCallConfig {
    #[new]
    #[pyo3(signature = (*, block_dim=0, aicpu_thread_num=3, enable_l2_swimlane=0, enable_dump_tensor=0, enable_pmu=0,
                        enable_dep_gen=0, enable_scope_stats=0, output_prefix=""))]
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each field, all of them keywords"
    )]
    fn new(
        block_dim: i32,
        aicpu_thread_num: i32,
        enable_l2_swimlane: i32,
        enable_dump_tensor: i32,
        enable_pmu: i32,
        enable_dep_gen: i32,
        enable_scope_stats: i32,
        output_prefix: &str,
    ) -> PyResult<Self> {
        let config = CallConfig {
            block_dim,
            aicpu_thread_num,
            enable_l2_swimlane,
            enable_dump_tensor,
            enable_pmu,
            enable_dep_gen,
            enable_scope_stats,
            output_prefix: output_prefix.to_owned(),
        };
        config
            .check()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self(config))
    }

    /// Blocks to launch; 0 lets the callable decide.
    #[getter]
    fn block_dim(&self) -> i32 {
        self.0.block_dim
    }

    /// Scheduler threads on the device.
    #[getter]
    fn aicpu_thread_num(&self) -> i32 {
        self.0.aicpu_thread_num
    }

    /// Non-zero records the timeline.
    #[getter]
    fn enable_l2_swimlane(&self) -> i32 {
        self.0.enable_l2_swimlane
    }

    /// Non-zero dumps tensors.
    #[getter]
    fn enable_dump_tensor(&self) -> i32 {
        self.0.enable_dump_tensor
    }

    /// Performance counter group, 0 for none.
    #[getter]
    fn enable_pmu(&self) -> i32 {
        self.0.enable_pmu
    }

    /// Non-zero records dependencies.
    #[getter]
    fn enable_dep_gen(&self) -> i32 {
        self.0.enable_dep_gen
    }

    /// Non-zero records statistics by scope.
    #[getter]
    fn enable_scope_stats(&self) -> i32 {
        self.0.enable_scope_stats
    }

    /// Where diagnostics are written.
    #[getter]
    fn output_prefix(&self) -> &str {
        &self.0.output_prefix
    }

    fn __repr__(&self) -> String {
        let c = &self.0;
        format!(
            "CallConfig(block_dim={}, aicpu_thread_num={}, enable_l2_swimlane={}, enable_dump_tensor={}, enable_pmu={}, \
             enable_dep_gen={}, enable_scope_stats={}, output_prefix={:?})",
            c.block_dim,
            c.aicpu_thread_num,
            c.enable_l2_swimlane,
            c.enable_dump_tensor,
            c.enable_pmu,
            c.enable_dep_gen,
            c.enable_scope_stats,
            c.output_prefix
        )
    }
}
