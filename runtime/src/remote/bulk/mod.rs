//! Bulk copies: around the command lane, through memory shared with the session (`same_host`) or its data lanes (`data_lane`).
//!
//! ```text
//! waiting ─► exporting ─► moving ─► done
//!   its turn   how is it     │
//!   (`line`)   reached?      ├─► fencing ─► failed
//!              │ not         ▼
//!              └────────► frames ─► done
//! ```
//!
//! What is to be ordered is ordered by `line`, who moves the bytes is `mover`, what a data lane says is `stream`. Where neither way
//! can be had, the bytes go in COPY controls, as towards version 1.

mod line;
mod mover;
mod route;
mod stream;
#[cfg(test)]
mod stream_tests;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::buffer::AccessFlags;
use echelon_wire::frame::FrameType;
use echelon_wire::id::{SessionId, WorkerId};
use echelon_wire::order::Scope;

use super::lane::{Lane, Ring};
use super::requests::{copy_scope_payload, encode};
use super::state::{LaneConfig, Request};
use super::transport::Side;
use crate::endpoint::{
    BufferKey, ControlFailure, ControlReply, ControlRequest, EndpointEvent, Ticket,
};
use crate::engine::step_limit;
use crate::memory::HostMemory;
use line::{Line, Waiting};
use mover::{drain, Far, Job, Mover, Outcome};
pub(super) use route::is_negotiated;
use route::Route;

/// Below this many bytes a copy is faster in a frame of the command lane.
const BULK_FROM: usize = 128 << 10;
/// Most bytes of one copy that an interrupt has to wait for.
pub(super) const STEP_BYTES: u64 = 64 << 20;

/// Buffers of one session that are kept mapped, the last used: each has a descriptor, of which a process has few.
const MAPPED_MAX: usize = 16;

/// How long copies go through frames when no data lane could be had: the session may have had many others.
const STREAMS_PAUSE: Duration = Duration::from_secs(10);

/// What bulk copies need to know of their endpoint.
#[derive(Clone, Copy)]
pub(super) struct BulkConfig {
    session: SessionId,
    worker: WorkerId,
    side: Side,
    frame_bytes: u32,
    /// Where the session's command lane is; its data lanes are nowhere else (R-230).
    host: IpAddr,
    /// How long a data lane may not move.
    limit: Duration,
}

impl BulkConfig {
    pub(super) fn of(lane: &LaneConfig, side: Side, host: IpAddr) -> Self {
        Self {
            session: lane.session,
            worker: lane.worker,
            side,
            frame_bytes: lane.credits.max_frame_bytes,
            host,
            limit: lane.timeout,
        }
    }
}

enum Phase {
    Waiting,
    Exporting,
    Moving { left: usize, worst: Outcome },
    Fencing { why: String, again: bool },
    Frames { done: usize, step: usize },
}

struct Copy {
    to_remote: bool,
    buffer: BufferKey,
    offset: u64,
    near: HostMemory,
    phase: Phase,
}

/// The bulk copies of one endpoint, and the order of everything around them.
pub(super) struct Bulk {
    name: String,
    config: BulkConfig,
    lane: Arc<Lane>,
    ring: Ring,
    line: Line<Request>,
    copies: HashMap<Ticket, Copy>,
    routes: HashMap<BufferKey, Route>,
    /// Those that are mapped, the one that was mapped last at the end.
    mapped: VecDeque<BufferKey>,
    /// Sizes of the buffers that were allocated, and of those that are asked for.
    sizes: HashMap<BufferKey, u64>,
    asked: HashMap<Ticket, u64>,
    mover: Option<Mover>,
    /// Jobs that have not ended.
    jobs: usize,
    /// No data lane could be had; when to try again.
    streams_again: Option<Instant>,
    events: VecDeque<EndpointEvent>,
}

impl Bulk {
    pub(super) fn new(name: String, config: BulkConfig, lane: Arc<Lane>, ring: Ring) -> Self {
        Self {
            name,
            config,
            lane,
            ring,
            line: Line::new(),
            copies: HashMap::new(),
            routes: HashMap::new(),
            mapped: VecDeque::new(),
            sizes: HashMap::new(),
            asked: HashMap::new(),
            mover: None,
            jobs: 0,
            streams_again: None,
            events: VecDeque::new(),
        }
    }

    /// Sends a request, unless it has to wait for a copy.
    pub(super) fn send(&mut self, request: Request) -> Result<(), String> {
        if self.line.is_empty() {
            return self.lane.send(request);
        }
        let (ticket, scope) = (request.ticket, request.scope().clone());
        match self.line.hold(ticket, &scope, request) {
            Some(request) => self.lane.send(request),
            None => Ok(()),
        }
    }

    /// Takes over a copy that is for us; gives anything else back. What passes by is noted.
    pub(super) fn take(
        &mut self,
        ticket: Ticket,
        request: ControlRequest,
    ) -> Result<(), ControlRequest> {
        let (to_remote, buffer, offset, near) = match request {
            ControlRequest::CopyTo {
                buffer,
                offset,
                source,
            } if self.is_for_us(true, &source) => (true, buffer, offset, source),
            ControlRequest::CopyFrom {
                buffer,
                offset,
                destination,
            } if self.is_for_us(false, &destination) => (false, buffer, offset, destination),
            ControlRequest::Alloc { nbytes } => {
                self.asked.insert(ticket, nbytes);
                return Err(request);
            }
            ControlRequest::Free { buffer } => {
                self.routes.remove(&buffer);
                self.mapped.retain(|known| *known != buffer);
                self.sizes.remove(&buffer);
                return Err(request);
            }
            other => return Err(other),
        };
        let scope = self.scope(to_remote, buffer);
        let unanswered = self.lane.unanswered(&scope);
        self.line.push_copy(ticket, scope, unanswered);
        let copy = Copy {
            to_remote,
            buffer,
            offset,
            near,
            phase: Phase::Waiting,
        };
        self.copies.insert(ticket, copy);
        self.advance();
        Ok(())
    }

    fn is_for_us(&self, to_remote: bool, near: &HostMemory) -> bool {
        let step = step_limit(to_remote, self.config.frame_bytes);
        near.len() as u64 > step || (near.len() >= BULK_FROM && is_negotiated(self.config.side))
    }

    fn scope(&self, to_remote: bool, buffer: BufferKey) -> Scope {
        let payload = copy_scope_payload(self.config.worker, to_remote, buffer);
        payload.map_or(Scope::IN_ORDER, |payload| {
            Scope::of_command(FrameType::Control, &payload, self.config.side.features)
        })
    }

    /// An answer came from the lane. It is given back when it is for the engine.
    pub(super) fn answered(
        &mut self,
        ticket: Ticket,
        result: Result<ControlReply, ControlFailure>,
    ) -> Option<EndpointEvent> {
        if let Some(nbytes) = self.asked.remove(&ticket) {
            if let Ok(ControlReply::Allocated { buffer, .. }) = &result {
                self.sizes.insert(*buffer, nbytes);
            }
        }
        let Some(copy) = self.copies.get_mut(&ticket) else {
            self.ended(ticket);
            return Some(EndpointEvent::ControlDone { ticket, result });
        };
        match (&mut copy.phase, result) {
            (Phase::Exporting, result) => {
                let buffer = copy.buffer;
                let route = match result {
                    Ok(ControlReply::Exported(export)) => Route::of(&self.config, buffer, &export),
                    _ => Route::Frames,
                };
                self.keep(buffer, route);
                self.begin(ticket);
            }
            (Phase::Fencing { again: true, .. }, Ok(_)) => self.send_frame(ticket, 0),
            (Phase::Fencing { why, .. }, _) => {
                let failure = ControlFailure::Refused(std::mem::take(why));
                self.finish(ticket, Err(failure));
            }
            (Phase::Frames { done, step }, Ok(_)) => {
                let done = *done + *step;
                self.send_frame(ticket, done);
            }
            (_, result) => self.finish(ticket, result),
        }
        None
    }

    /// A request was answered that is no copy.
    pub(super) fn ended(&mut self, ticket: Ticket) {
        if !self.line.is_empty() {
            self.line.ended(ticket);
            self.advance();
        }
    }

    /// What became of copies.
    pub(super) fn poll_event(&mut self) -> Option<EndpointEvent> {
        while self.jobs > 0 {
            let done = self.mover.as_ref().and_then(Mover::next_done);
            let Some((ticket, outcome)) = done else { break };
            self.jobs -= 1;
            self.moved(ticket, outcome);
        }
        self.events.pop_front()
    }

    /// The lane has ended: nothing begins any more. True when nothing is being moved.
    pub(super) fn lose(&mut self) -> bool {
        self.line.clear();
        self.copies.clear();
        self.events.clear();
        if let Some(mover) = &self.mover {
            mover.cancel();
            while self.jobs > 0 && mover.next_done().is_some() {
                self.jobs -= 1;
            }
        }
        self.jobs == 0
    }

    /// Ends what is being moved.
    pub(super) fn close(&mut self, deadline: Instant) {
        if let Some(mover) = &self.mover {
            drain(mover, self.jobs, deadline);
            // Nobody is told of them any more.
            self.jobs = 0;
        }
    }

    fn advance(&mut self) {
        while let Some((ticket, waiting)) = self.line.next() {
            match waiting {
                // A lane that has ended says so by its last event.
                Waiting::Request(request) => drop(self.lane.send(request)),
                Waiting::Copy => self.begin(ticket),
            }
        }
    }

    /// Begins a copy whose turn has come, or goes on when it is known how its buffer is reached.
    fn begin(&mut self, ticket: Ticket) {
        let Some(copy) = self.copies.get_mut(&ticket) else {
            return;
        };
        let known = self.routes.get(&copy.buffer).cloned();
        let streamless = self.streams_again.is_some_and(|at| Instant::now() < at);
        let route = match (known, self.sizes.get(&copy.buffer)) {
            (Some(Route::Stream(_)), _) if streamless => Route::Frames,
            (Some(route), _) => route,
            (None, Some(&nbytes)) if is_negotiated(self.config.side) => {
                copy.phase = Phase::Exporting;
                let request = ControlRequest::Export {
                    buffer: copy.buffer,
                    offset: 0,
                    nbytes,
                    access: AccessFlags::READ_WRITE,
                };
                return self.ask(ticket, request);
            }
            (None, _) => Route::Frames,
        };
        let far = match route {
            Route::Frames => return self.send_frame(ticket, 0),
            Route::Stream(stream) => Far::Stream(stream, copy.offset),
            Route::Mapped(region, fresh) => {
                match region.host(copy.offset, copy.near.len() as u64) {
                    Ok(bytes) => {
                        let used = Route::Mapped(region, false);
                        self.routes.insert(copy.buffer, used);
                        Far::Mapped { bytes, fresh }
                    }
                    Err(error) => {
                        let failure = ControlFailure::Refused(error.to_string());
                        return self.finish(ticket, Err(failure));
                    }
                }
            }
        };
        let job = Job {
            ticket,
            to_remote: copy.to_remote,
            near: copy.near.clone(),
            far,
        };
        let Some(mover) = self.started() else {
            return self.send_frame(ticket, 0);
        };
        let left = mover.begin(job);
        self.jobs += left;
        if let Some(copy) = self.copies.get_mut(&ticket) {
            let worst = Outcome::Moved;
            copy.phase = Phase::Moving { left, worst };
        }
    }

    fn started(&mut self) -> Option<&Mover> {
        if self.mover.is_none() {
            match Mover::start(&self.name, self.config.limit, &self.ring) {
                Ok(mover) => self.mover = Some(mover),
                Err(error) => tracing::warn!(%error, "no thread for bulk copies"),
            }
        }
        self.mover.as_ref()
    }

    fn keep(&mut self, buffer: BufferKey, route: Route) {
        if matches!(route, Route::Mapped(..)) {
            self.mapped.push_back(buffer);
            if self.mapped.len() > MAPPED_MAX {
                // What is being moved keeps its mapping.
                let oldest = self.mapped.pop_front();
                oldest.and_then(|oldest| self.routes.remove(&oldest));
            }
        }
        self.routes.insert(buffer, route);
    }

    /// A job of a copy has ended.
    fn moved(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some(copy) = self.copies.get_mut(&ticket) else {
            return;
        };
        let Phase::Moving { left, worst } = &mut copy.phase else {
            return;
        };
        *left -= 1;
        let outcome = outcome.max(worst.clone());
        if *left > 0 {
            *worst = outcome;
            return;
        }
        let streamed = matches!(self.routes.get(&copy.buffer), Some(Route::Stream(_)));
        let (why, again) = match outcome {
            Outcome::Moved => return self.finish(ticket, Ok(ControlReply::Done)),
            Outcome::Cancelled => ("the worker ends".to_owned(), false),
            Outcome::Unreachable(why) => {
                tracing::warn!(worker = %self.name, why, "no data lane; copies go through the command lane for a while");
                self.streams_again = Some(Instant::now() + STREAMS_PAUSE);
                return self.send_frame(ticket, 0);
            }
            Outcome::Closed(why) => (why, true),
            Outcome::Refused(why) | Outcome::Broken(why) => (why, false),
        };
        if streamed && copy.to_remote {
            // What was sent may still be on its way into the buffer.
            let request = ControlRequest::Fence {
                buffer: copy.buffer,
                importer: self.config.session.0,
                lasting: false,
            };
            copy.phase = Phase::Fencing { why, again };
            return self.ask(ticket, request);
        }
        if again {
            return self.send_frame(ticket, 0);
        }
        self.finish(ticket, Err(ControlFailure::Refused(why)));
    }

    /// The next part by a COPY control, or the end.
    fn send_frame(&mut self, ticket: Ticket, done: usize) {
        let Some(copy) = self.copies.get_mut(&ticket) else {
            return;
        };
        let left = copy.near.len() - done;
        if left == 0 {
            return self.finish(ticket, Ok(ControlReply::Done));
        }
        // A step is at most 16 MiB.
        let step = left.min(step_limit(copy.to_remote, self.config.frame_bytes) as usize);
        copy.phase = Phase::Frames { done, step };
        let (buffer, offset) = (copy.buffer, copy.offset + done as u64);
        let request = match copy.near.slice(done, step) {
            Ok(source) if copy.to_remote => ControlRequest::CopyTo {
                buffer,
                offset,
                source,
            },
            Ok(destination) => ControlRequest::CopyFrom {
                buffer,
                offset,
                destination,
            },
            Err(error) => {
                return self.finish(ticket, Err(ControlFailure::Refused(error.to_string())))
            }
        };
        self.ask(ticket, request);
    }

    /// Sends a control of a copy, past the line: the copy has its turn.
    fn ask(&mut self, ticket: Ticket, request: ControlRequest) {
        let BulkConfig { worker, side, .. } = self.config;
        match encode(worker, side, request) {
            Ok(outgoing) => {
                let scope = outgoing.scope(side.features);
                // A lane that has ended says so by its last event.
                let _ = self.lane.send(Request::control(ticket, outgoing, scope));
            }
            Err(failure) => self.finish(ticket, Err(failure)),
        }
    }

    fn finish(&mut self, ticket: Ticket, result: Result<ControlReply, ControlFailure>) {
        self.copies.remove(&ticket);
        let event = EndpointEvent::ControlDone { ticket, result };
        self.events.push_back(event);
        self.line.ended(ticket);
        self.advance();
    }
}
