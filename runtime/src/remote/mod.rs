//! Placeholder: the signatures that `worker` uses; the real one replaces this file.
#![allow(missing_docs, clippy::all)]
use crate::endpoint::*;
use echelon_wire::bootstrap::{CallableEntry, Manifest};
use std::sync::Arc;
use std::time::{Duration, Instant};
#[derive(Clone, Debug)]
pub struct RemoteWorkerSpec {
    /// host:port
    pub endpoint: String,
    pub platform: String,
    pub transport: String,
    pub runtime: String,
    pub device_ids: Vec<i64>,
    pub num_sub_workers: u32,
    pub session_listen_host: Option<String>,
    pub allow_wildcard_session_bind: bool,
    pub name: Option<String>,
}
impl RemoteWorkerSpec {
    pub fn validate(&self) -> Result<(), crate::process::ProcessError> {
        Ok(())
    }
    pub fn manifest(
        &self,
        _s: u64,
        _i: i32,
        _l: u32,
        _t: Duration,
        _a: Vec<CallableEntry>,
        _b: Vec<CallableEntry>,
    ) -> Manifest {
        unreachable!()
    }
}
pub struct RemoteEndpoint;
impl RemoteEndpoint {
    pub fn start(
        _s: &RemoteWorkerSpec,
        _m: Manifest,
        _t: Duration,
        _r: Arc<dyn Fn() + Send + Sync>,
        _d: Instant,
    ) -> Result<Self, crate::process::ProcessError> {
        Err(crate::process::ProcessError::Stopped)
    }
}
impl Endpoint for RemoteEndpoint {
    fn info(&self) -> EndpointInfo {
        unreachable!()
    }
    fn submit(&mut self, _t: Ticket, _k: &OutboundTask<'_>) -> Result<(), SubmitError> {
        unreachable!()
    }
    fn control(&mut self, _t: Ticket, _r: ControlRequest) -> Result<(), EndpointGone> {
        unreachable!()
    }
    fn poll_event(&mut self) -> Option<EndpointEvent> {
        None
    }
    fn kill(&mut self, _r: &str) {}
    fn begin_close(&mut self) {}
    fn finish_close(&mut self, _d: Instant) -> Result<(), String> {
        Ok(())
    }
}
