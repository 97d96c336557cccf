//! `RemoteWorkerSpec`: where a remote worker runs and what it consists of.

use echelon_runtime::remote::RemoteWorkerSpec;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A remote worker: a session on the daemon at `endpoint`.
///
/// Args:
///     endpoint: `"host:port"` of the daemon.
///     platform: platform of the session, `"cpu"` where there is no device.
///     transport: how sessions exchange buffers, `"sim"` for shared memory of one host.
///     runtime: name of the session's runtime.
///     device_ids: devices that the session owns.
///     num_sub_workers: Python processes inside the session, 0 or more.
///     session_listen_host: address on which the session listens; `None` lets the daemon choose.
///     allow_wildcard_session_bind: lets the session listen on all addresses.
///     same_host: False never maps memory of other workers, nor lets them map this one's: imports are fetched over the network, as
///         between two hosts, and the parent's own copies go over it too. True: workers that prove to be on one host share memory.
///
/// Raises ValueError for an endpoint or another value that cannot be.
#[pyclass(frozen, module = "echelon._core", name = "RemoteWorkerSpec")]
#[derive(Clone)]
pub(crate) struct PyRemoteWorkerSpec(pub(crate) RemoteWorkerSpec);

#[pymethods]
impl PyRemoteWorkerSpec {
    #[new]
    #[pyo3(signature = (endpoint, platform="cpu", *, transport="sim", runtime="tensormap_and_ringbuffer",
                        device_ids=None, num_sub_workers=0, session_listen_host=None,
                        allow_wildcard_session_bind=false, same_host=true))]
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each field, most of them keywords"
    )]
    fn new(
        endpoint: String,
        platform: &str,
        transport: &str,
        runtime: &str,
        device_ids: Option<Vec<i64>>,
        num_sub_workers: u32,
        session_listen_host: Option<String>,
        allow_wildcard_session_bind: bool,
        same_host: bool,
    ) -> PyResult<Self> {
        let spec = RemoteWorkerSpec {
            endpoint,
            platform: platform.to_owned(),
            transport: transport.to_owned(),
            runtime: runtime.to_owned(),
            device_ids: device_ids.unwrap_or_default(),
            num_sub_workers,
            session_listen_host,
            allow_wildcard_session_bind,
            same_host,
        };
        spec.validate()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self(spec))
    }

    /// `"host:port"` of the daemon.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// Platform of the session.
    #[getter]
    fn platform(&self) -> &str {
        &self.0.platform
    }

    /// How sessions exchange buffers.
    #[getter]
    fn transport(&self) -> &str {
        &self.0.transport
    }

    /// Name of the session's runtime.
    #[getter]
    fn runtime(&self) -> &str {
        &self.0.runtime
    }

    /// Devices that the session owns.
    #[getter]
    fn device_ids(&self) -> Vec<i64> {
        self.0.device_ids.clone()
    }

    /// Python processes inside the session.
    #[getter]
    fn num_sub_workers(&self) -> u32 {
        self.0.num_sub_workers
    }

    /// Address on which the session listens.
    #[getter]
    fn session_listen_host(&self) -> Option<&str> {
        self.0.session_listen_host.as_deref()
    }

    /// True when the session may listen on all addresses.
    #[getter]
    fn allow_wildcard_session_bind(&self) -> bool {
        self.0.allow_wildcard_session_bind
    }

    /// False when this worker shares memory with no other.
    #[getter]
    fn same_host(&self) -> bool {
        self.0.same_host
    }

    fn __repr__(&self) -> String {
        format!(
            "RemoteWorkerSpec(endpoint='{}', platform='{}', num_sub_workers={})",
            self.0.endpoint, self.0.platform, self.0.num_sub_workers
        )
    }
}
