//! The remote endpoint: a session's two lanes behind the endpoint trait.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use echelon_wire::bootstrap::Manifest;
use echelon_wire::buffer::RemoteTensorDesc;
use echelon_wire::callable::Digest;
use echelon_wire::codec::Writer;
use echelon_wire::frame::Features;
use echelon_wire::id::WorkerId;
use echelon_wire::limits::MAX_INLINE_BYTES;
use echelon_wire::order::{Conditions, Scope};
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};
use smallvec::SmallVec;

use super::bulk::{is_negotiated, Bulk, BulkConfig, STEP_BYTES};
use super::connect::{establish, StartError};
use super::health::{HealthMonitor, HealthThread};
use super::lane::{Lane, LaneThread, Ring};
use super::requests::encode;
use super::spec::RemoteWorkerSpec;
use super::staging::{Next, Staging};
use super::stall::StallClock;
use super::state::{LaneConfig, LaneState, Request};
use super::transport::Side;
use crate::channel::{Channel, Until};
use crate::endpoint::{
    ControlFailure, ControlRequest, Endpoint, EndpointEvent, EndpointGone, EndpointInfo,
    OutboundTask, OutboundTensor, Place, RegisterStep, SubmitError, Ticket,
};
use crate::failpoint::hit_at;
use crate::mailbox::Source;
use crate::memory::HostMemory;

/// Longest time that sent bytes may stay unacknowledged before the connection is taken for dead, whatever the session timeout.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(30);

/// Room for a task with an argument or two, so that its bytes are put together in one piece of memory.
const TASK_BYTES: usize = 256;

/// How long the threads of a lane that was shut down may take to end.
const JOIN_WITHIN: Duration = Duration::from_secs(2);

/// A remote session.
pub struct RemoteEndpoint {
    name: String,
    worker: WorkerId,
    session: u64,
    pid: u32,
    features: Features,
    frame_bytes: u32,
    /// Tasks that may be in flight.
    depth: u32,
    side: Side,
    /// Large copies, and the order of everything around them.
    bulk: Bulk,
    /// The lane has ended and something is still being moved.
    lost: Option<EndpointEvent>,
    lane: Arc<Lane>,
    thread: LaneThread,
    health: HealthThread,
    lost_told: bool,
    /// Registrations whose machine code is on its way in parts.
    stagings: HashMap<Ticket, Staging>,
}

impl RemoteEndpoint {
    /// Has the daemon start a session and connects to it. `timeout` bounds answers, writes and health silence afterwards, `until` the
    /// whole start; `ring` is called whenever there is an event.
    ///
    /// # Errors
    /// [`StartError`]; connections and threads are gone then, and a session that had started ends by itself.
    pub fn start(
        spec: &RemoteWorkerSpec,
        manifest: Manifest,
        timeout: Duration,
        ring: Ring,
        until: &Until,
    ) -> Result<Self, StartError> {
        let unacknowledged = timeout.min(UNACKNOWLEDGED_LIMIT);
        let connected = establish(spec, &manifest, unacknowledged, until)?;
        let name = format!("remote{}", manifest.worker_id);
        let (session, worker) = (manifest.session(), manifest.worker());
        let config = LaneConfig {
            session,
            worker,
            features: connected.features,
            timeout,
            credits: connected.credits,
        };
        hit_at("remote.lane", worker.0)?;
        let command: Box<dyn Channel> = Box::new(connected.command);
        let now = Instant::now();
        let answering = connected.features.contains(Features::HEALTH_ECHO);
        let clock = Arc::new(StallClock::new(timeout, answering, now));
        let (lane, mut thread) = Lane::start(
            command,
            config,
            &name,
            Arc::clone(&ring),
            Arc::clone(&clock),
        )
        .map_err(StartError::Thread)?;
        let watched = Watched {
            channel: Arc::new(connected.health),
            monitor: HealthMonitor::new(session, worker, timeout, now),
            answering,
            clock,
        };
        let health = match watched.start(worker, &lane, &name) {
            Ok(health) => health,
            Err(error) => {
                lane.lose("its health lane could not be watched");
                thread.join(Instant::now() + JOIN_WITHIN);
                return Err(StartError::Thread(error));
            }
        };
        let (features, pid) = (connected.features, connected.pid);
        let side = Side {
            features,
            same_host: spec.same_host,
        };
        let bulk = BulkConfig::of(&config, side, connected.host);
        let bulk = Bulk::new(name.clone(), bulk, Arc::clone(&lane), ring);
        Ok(Self {
            name,
            worker,
            session: session.0,
            pid,
            features,
            frame_bytes: config.credits.max_frame_bytes,
            depth: LaneState::depth(config.credits),
            side,
            bulk,
            lost: None,
            lane,
            thread,
            health,
            lost_told: false,
            stagings: HashMap::new(),
        })
    }

    /// The extensions in use.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// What a waiter reads itself, while nobody else rings the bell for it.
    #[must_use]
    pub fn source(&self) -> Weak<dyn Source> {
        self.lane.source()
    }

    /// The end is told when nothing is moved any more: until then the caller's memory is in use.
    fn lose(&mut self, lost: EndpointEvent) -> Option<EndpointEvent> {
        if self.bulk.lose() {
            return Some(lost);
        }
        self.lost = Some(lost);
        None
    }

    fn gone(&self, reason: String) -> EndpointGone {
        EndpointGone {
            name: self.name.clone(),
            reason,
        }
    }

    /// The bytes of a task, and what it may overtake.
    fn encode_task(&self, task: &OutboundTask<'_>) -> Result<(Vec<u8>, Scope), String> {
        let mut inline = Inline::default();
        let carrier = Carrier::Wire(self.features);
        let mut args = TaskArgsWire {
            scalars: task.scalars.to_vec(),
            ..TaskArgsWire::default()
        };
        for tensor in task.tensors {
            let mut sidecar = sidecar(tensor, &mut inline)?;
            if carrier.has(Features::TASK_TAGS) {
                let tagged = sidecar.map(|desc| desc.with_tag(tensor.tag as u8));
                sidecar = tagged.transpose().map_err(|error| error.to_string())?;
            }
            args.sidecars.push(sidecar);
            args.tensors.push(tensor.meta);
        }
        args.check_extents().map_err(|error| error.to_string())?;
        let scope = Scope::of_descriptors(args.sidecars.iter().flatten(), self.features);
        let payload = TaskPayload {
            digest: task.callable.digest,
            config: task.config.clone(),
            args,
        };
        let mut writer = Writer::with_capacity(TASK_BYTES + inline.len);
        if self.features.contains(Features::CONDITIONS) {
            // None yet: what they are is known when it is sent.
            Conditions::write(&[], &mut writer).map_err(|error| error.to_string())?;
        }
        payload
            .encode_before_inline(carrier, inline.len, &mut writer)
            .map_err(|error| error.to_string())?;
        Ok((inline.append_to(writer.into_bytes())?, scope))
    }
}

/// A health lane that is to be watched.
struct Watched {
    channel: Arc<dyn Channel>,
    monitor: HealthMonitor,
    answering: bool,
    clock: Arc<StallClock>,
}

impl Watched {
    fn start(
        self,
        worker: WorkerId,
        lane: &Arc<Lane>,
        name: &str,
    ) -> std::io::Result<HealthThread> {
        let monitor = if self.answering {
            self.monitor.answering()
        } else {
            self.monitor
        };
        hit_at("remote.watch", worker.0).map_err(std::io::Error::from)?;
        HealthThread::start(self.channel, monitor, Arc::clone(lane), self.clock, name)
    }
}

/// The callable whose registration the request takes back.
fn undone(request: &ControlRequest) -> Option<Digest> {
    match request {
        ControlRequest::Register {
            step: RegisterStep::Abort,
            callable,
            ..
        } => Some(callable.digest),
        ControlRequest::Unregister { digest, .. } => Some(*digest),
        _ => None,
    }
}

/// How a remote task names the bytes of one argument.
fn sidecar<'a>(
    tensor: &'a OutboundTensor,
    inline: &mut Inline<'a>,
) -> Result<Option<RemoteTensorDesc>, String> {
    match &tensor.place {
        Place::Empty => Ok(None),
        Place::Remote(desc) => Ok(Some(*desc)),
        Place::Inline(memory) => inline.place(memory).map(Some),
        Place::Shared { .. } => Err(
            "local memory cannot be named in a remote task; use remote_malloc and orch.copy".into(),
        ),
    }
}

/// The arena of a task: bytes that are copied once, from where they are to behind the rest of the frame.
#[derive(Default)]
struct Inline<'a> {
    parts: SmallVec<[&'a HostMemory; 4]>,
    len: usize,
}

impl<'a> Inline<'a> {
    fn place(&mut self, memory: &'a HostMemory) -> Result<RemoteTensorDesc, String> {
        let start = self.len;
        let end = start.saturating_add(memory.len());
        if end > MAX_INLINE_BYTES as usize {
            return Err(format!(
                "{end} bytes of local arguments in one remote task, limit {MAX_INLINE_BYTES}; use remote_malloc and orch.copy"
            ));
        }
        self.parts.push(memory);
        self.len = end;
        Ok(RemoteTensorDesc::host_inline(
            start as u64,
            memory.len() as u64,
        ))
    }

    fn append_to(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        for memory in &self.parts {
            let start = bytes.len();
            bytes.resize(start + memory.len(), 0);
            memory
                .copy_out(0, &mut bytes[start..])
                .map_err(|error| error.to_string())?;
        }
        Ok(bytes)
    }
}

impl Endpoint for RemoteEndpoint {
    fn info(&self) -> EndpointInfo {
        EndpointInfo {
            name: self.name.clone(),
            pid: self.pid,
            capacity: 1,
            depth: self.depth,
            shares_memory: false,
            session: Some(self.session),
            frame_bytes: self.frame_bytes,
            copy_step: is_negotiated(self.side).then_some(STEP_BYTES),
        }
    }

    fn submit(&mut self, ticket: Ticket, task: &OutboundTask<'_>) -> Result<(), SubmitError> {
        let (payload, scope) = self.encode_task(task).map_err(SubmitError::Refused)?;
        self.bulk
            .send(Request::task(ticket, payload, scope).after(task.after))
            .map_err(|reason| self.gone(reason).into())
    }

    fn takes_conditions(&self) -> bool {
        self.features.contains(Features::CONDITIONS)
    }

    fn control(&mut self, ticket: Ticket, request: ControlRequest) -> Result<(), EndpointGone> {
        let request = match self.bulk.take(ticket, request) {
            Ok(()) => return Ok(()),
            Err(request) => request,
        };
        if let Some(digest) = undone(&request) {
            for staging in self.stagings.values_mut() {
                staging.call_off(&digest);
            }
        }
        let outgoing = match Staging::of(&request, self.features, self.frame_bytes) {
            Some(Ok((staging, first))) => {
                self.stagings.insert(ticket, staging);
                Ok(first)
            }
            Some(Err(failure)) => Err(failure),
            None => encode(self.worker, self.side, request),
        };
        let request = match outgoing {
            Ok(outgoing) => {
                let scope = outgoing.scope(self.features);
                Request::control(ticket, outgoing, scope)
            }
            Err(mut failure) => {
                if let ControlFailure::Unsupported { worker, .. } = &mut failure {
                    worker.clone_from(&self.name);
                }
                return self
                    .lane
                    .answer(EndpointEvent::ControlDone {
                        ticket,
                        result: Err(failure),
                    })
                    .map_err(|r| self.gone(r));
            }
        };
        let sent = self.bulk.send(request);
        sent.map_err(|reason| self.gone(reason))
    }

    fn read(&mut self) {
        self.lane.look();
    }

    fn poll_event(&mut self) -> Option<EndpointEvent> {
        loop {
            if let Some(event) = self.bulk.poll_event() {
                return Some(event);
            }
            if let Some(lost) = self.lost.take() {
                return self.lose(lost);
            }
            let event = self.lane.poll_event(&mut self.lost_told)?;
            let (ticket, result) = match event {
                EndpointEvent::ControlDone { ticket, result } => (ticket, result),
                EndpointEvent::Done { ticket, .. } | EndpointEvent::Skipped { ticket } => {
                    self.bulk.ended(ticket);
                    return Some(event);
                }
                lost @ EndpointEvent::Lost { .. } => return self.lose(lost),
            };
            let Some(mut staging) = self.stagings.remove(&ticket) else {
                if let Some(event) = self.bulk.answered(ticket, result) {
                    return Some(event);
                }
                continue;
            };
            match staging.next(result) {
                Next::Answer(result) => {
                    self.bulk.ended(ticket);
                    return Some(EndpointEvent::ControlDone { ticket, result });
                }
                Next::Send(outgoing) => {
                    // A lane that has ended reports its loss, which answers for the ticket too.
                    let scope = outgoing.scope(self.features);
                    let request = Request::control(ticket, outgoing, scope);
                    if self.lane.send(request).is_ok() {
                        self.stagings.insert(ticket, staging);
                    }
                }
            }
        }
    }

    fn may_ring(&self) -> bool {
        false
    }

    fn kill(&mut self, reason: &str) {
        self.health.expect_end();
        self.lane.lose(reason);
    }

    fn begin_close(&mut self) {
        self.health.expect_end();
        self.lane.begin_close();
    }

    fn finish_close(&mut self, deadline: Instant) -> Result<(), String> {
        self.begin_close();
        self.bulk.close(deadline);
        // Both lanes end when the session has: then nothing of it is left.
        let in_order = self.thread.join(deadline);
        if !in_order {
            // Before anything is closed that the session could notice: the reason is ours.
            self.lane.lose("it was closed and did not end in time");
        }
        self.health.join(deadline);
        if in_order {
            return Ok(());
        }
        if self.thread.join(Instant::now() + JOIN_WITHIN) {
            tracing::warn!(worker = %self.name, "the session did not end in time; its connections were closed, which ends it");
            return Ok(());
        }
        Err(format!("the threads of {}", self.name))
    }
}

impl Drop for RemoteEndpoint {
    fn drop(&mut self) {
        self.health.expect_end();
        self.lane.lose("it was dropped");
        if !self.thread.join(Instant::now() + JOIN_WITHIN) {
            tracing::error!(worker = %self.name, "a lane's thread did not end");
        }
    }
}
