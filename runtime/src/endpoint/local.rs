//! Placeholder: the signatures that `worker` uses; the real one replaces this file.
#![allow(missing_docs, clippy::all)]
use super::*;
use crate::mailbox::Bell;
use crate::worker::ChildProgram;
use std::time::Duration;
pub struct LocalSpec {
    pub name: String,
    pub program: ChildProgram,
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    pub regions: Vec<Arc<SharedRegion>>,
    pub plan: Option<Vec<u8>>,
    pub ready_within: Duration,
}
pub struct LocalEndpoint;
impl LocalEndpoint {
    pub fn start(
        _s: LocalSpec,
        _k: &Arc<crate::process::Keeper>,
        _b: Arc<Bell>,
    ) -> Result<Self, crate::process::ProcessError> {
        Err(crate::process::ProcessError)
    }
}
impl Endpoint for LocalEndpoint {
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
