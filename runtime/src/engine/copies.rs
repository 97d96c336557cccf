//! Copy nodes: `orch.copy(dst, src)` between local memory and remote buffers, in steps that fit a frame.
//!
//! Two remote sides go through the parent (design §15.19). A copy takes no task slot of any endpoint.

use echelon_wire::limits::{MAX_COPY_FROM_BYTES, MAX_COPY_TO_BYTES, MAX_PAYLOAD_BYTES};

use super::copier::Ended;
use super::record::{Flight, Work};
use super::staging::is_large;
use super::Core;
use crate::buffer::RemoteBuffer;
use crate::endpoint::{BufferKey, ControlFailure, ControlReply, ControlRequest, EndpointInfo};
use crate::error::FailureKind;
use crate::graph::{EndpointId, Event, MemberResult, TaskId};
use crate::memory::HostMemory;
use crate::trace::{now_ns, TraceEvent};

/// Most bytes a step moves: what one COPY control takes in a frame of `frame_bytes` (slr3-v1 §5, design §15.19, R-081).
pub(crate) fn step_limit(to_remote: bool, frame_bytes: u32) -> u64 {
    let limit = if to_remote {
        MAX_COPY_TO_BYTES
    } else {
        MAX_COPY_FROM_BYTES
    };
    // What a smaller frame is short of, a step is short of too. No lane has frames below 64 KiB.
    limit - u64::from(MAX_PAYLOAD_BYTES - frame_bytes.min(MAX_PAYLOAD_BYTES))
}

/// Most bytes of a step to or from one endpoint.
pub(crate) fn step_at(info: &EndpointInfo, to_remote: bool) -> u64 {
    let in_frames = step_limit(to_remote, info.frame_bytes);
    info.copy_step.unwrap_or(in_frames)
}

/// A range of a buffer at its owner.
#[derive(Clone)]
pub(crate) struct RemoteRange {
    pub(crate) endpoint: EndpointId,
    session: u64,
    pub(crate) key: BufferKey,
    pub(crate) offset: u64,
    pub(crate) nbytes: u64,
}

impl RemoteRange {
    /// The control that writes `source` at `done` bytes into the range.
    pub(crate) fn write(&self, done: u64, source: HostMemory) -> (EndpointId, ControlRequest) {
        let offset = self.offset + done;
        (
            self.endpoint,
            ControlRequest::CopyTo {
                buffer: self.key,
                offset,
                source,
            },
        )
    }

    /// The control that reads from `done` bytes into the range into `destination`.
    pub(crate) fn read(&self, done: u64, destination: HostMemory) -> (EndpointId, ControlRequest) {
        let offset = self.offset + done;
        (
            self.endpoint,
            ControlRequest::CopyFrom {
                buffer: self.key,
                offset,
                destination,
            },
        )
    }
}

/// Copy steps that may be on their way to one endpoint: one that moves, one behind it. Each holds up to 16 MiB in the lane's queue, so
/// that without a bound a graph of many ready copies would hold all its bytes twice.
const STEPS_IN_FLIGHT: usize = 2;

/// One side of a copy.
#[derive(Clone)]
pub(crate) enum CopySide {
    /// Local memory, pinned.
    Local(HostMemory),
    /// An import is copied where its bytes are.
    Remote(RemoteRange),
}

impl CopySide {
    /// The owner's side of `nbytes` at `offset` of a handle.
    pub(crate) fn of_buffer(buffer: &RemoteBuffer, offset: u64, nbytes: u64) -> Self {
        let facts = buffer.facts();
        let owner = facts
            .import
            .as_ref()
            .map(|(_, owner)| owner.facts().endpoint);
        let endpoint = owner.unwrap_or(facts.endpoint);
        Self::Remote(RemoteRange {
            endpoint,
            session: facts.owner_session,
            key: facts.key,
            offset: facts.base + offset,
            nbytes,
        })
    }

    fn nbytes(&self) -> u64 {
        match self {
            Self::Local(memory) => memory.len() as u64,
            Self::Remote(range) => range.nbytes,
        }
    }
}

/// A copy and how far it has come.
pub(crate) struct CopyJob {
    dst: CopySide,
    src: CopySide,
    /// Bytes that have arrived.
    done: u64,
    /// Bytes on their way through the parent, between two remote sides.
    between: Option<HostMemory>,
    /// The step in flight fills `between`; the next one sends it on.
    reading: bool,
    /// Most bytes of a step.
    limit: u64,
    started_ns: u64,
}

impl CopyJob {
    /// Both sides must be of one size; the caller checked.
    pub(crate) fn new(dst: CopySide, src: CopySide) -> Self {
        Self {
            dst,
            src,
            done: 0,
            between: None,
            reading: false,
            limit: step_limit(true, MAX_PAYLOAD_BYTES),
            started_ns: 0,
        }
    }

    /// Where the next step goes; `None` when it needs no endpoint.
    fn next_endpoint(&self) -> Option<EndpointId> {
        if self.is_whole() {
            return None;
        }
        match (&self.dst, &self.src) {
            (CopySide::Local(_), CopySide::Local(_)) => None,
            (CopySide::Local(_), CopySide::Remote(src)) => Some(src.endpoint),
            (CopySide::Remote(dst), CopySide::Local(_)) => Some(dst.endpoint),
            (CopySide::Remote(_), CopySide::Remote(src)) if self.between.is_none() => {
                Some(src.endpoint)
            }
            (CopySide::Remote(dst), CopySide::Remote(_)) => Some(dst.endpoint),
        }
    }

    /// The next control and where it goes; `None` when all bytes have arrived.
    fn next(&mut self) -> Result<Option<(EndpointId, ControlRequest)>, String> {
        let left = self.src.nbytes() - self.done;
        if left == 0 {
            return Ok(None);
        }
        let step = left.min(self.limit);
        let text = |error: crate::memory::MemoryError| error.to_string();
        Ok(match (&self.dst, &self.src) {
            (CopySide::Local(dst), CopySide::Local(src)) => {
                dst.copy_from(src).map_err(text)?;
                self.done = src.len() as u64;
                None
            }
            (CopySide::Remote(dst), CopySide::Local(src)) => {
                Some(dst.write(self.done, part(src, self.done, step).map_err(text)?))
            }
            (CopySide::Local(dst), CopySide::Remote(src)) => {
                Some(src.read(self.done, part(dst, self.done, step).map_err(text)?))
            }
            (CopySide::Remote(dst), CopySide::Remote(src)) => match self.between.clone() {
                Some(source) => Some(dst.write(self.done, source)),
                None => {
                    // At most one step, 16 MiB.
                    let destination = HostMemory::from_vec(vec![0; step as usize]);
                    self.between = Some(destination.clone());
                    self.reading = true;
                    Some(src.read(self.done, destination))
                }
            },
        })
    }

    /// The session that the step to `endpoint` is for.
    fn session_at(&self, endpoint: EndpointId) -> Option<u64> {
        [&self.dst, &self.src]
            .into_iter()
            .find_map(|side| match side {
                CopySide::Remote(range) if range.endpoint == endpoint => Some(range.session),
                _ => None,
            })
    }

    fn is_whole(&self) -> bool {
        self.done == self.src.nbytes()
    }

    /// The step that `next` gave was answered.
    fn answered(&mut self) {
        if std::mem::take(&mut self.reading) {
            return;
        }
        self.done += (self.src.nbytes() - self.done).min(self.limit);
        self.between = None;
    }
}

/// A part of pinned memory; offsets within one process's memory fit `usize`.
fn part(
    memory: &HostMemory,
    offset: u64,
    len: u64,
) -> Result<HostMemory, crate::memory::MemoryError> {
    memory.slice(offset as usize, len as usize)
}

impl Core {
    /// Starts a copy whose producers have ended.
    pub(crate) fn start_copy(&mut self, task: TaskId) -> Option<Event> {
        if let Some(Work::Copy(job)) = self.records.get_mut(&task).map(|record| &mut record.work) {
            job.started_ns = now_ns();
            if let (CopySide::Local(dst), CopySide::Local(src)) = (&job.dst, &job.src) {
                if is_large(src.len() as u64) {
                    self.staging.copy(task, dst.clone(), src.clone());
                    return None;
                }
            }
            let at = |side: &CopySide| match side {
                CopySide::Local(_) => None,
                CopySide::Remote(range) => self.endpoints.get(range.endpoint.0 as usize),
            };
            job.limit = match (at(&job.dst), at(&job.src)) {
                // Through the parent's memory, of which such a copy has no more than a frame holds.
                (Some(dst), Some(src)) => {
                    let frame_bytes = dst.info.frame_bytes.min(src.info.frame_bytes);
                    step_limit(true, frame_bytes)
                }
                (Some(dst), None) => step_at(&dst.info, true),
                (None, Some(src)) => step_at(&src.info, false),
                (None, None) => job.limit,
            };
        }
        self.next_copy_step(task)
    }

    /// Sends the next step, or queues the copy behind others that want the same endpoint; an event comes back when there is no step
    /// left or it cannot be sent.
    fn next_copy_step(&mut self, task: TaskId) -> Option<Event> {
        let Work::Copy(job) = &self.records.get(&task)?.work else {
            return None;
        };
        if let Some(endpoint) = job.next_endpoint() {
            let slot = self.endpoints.get_mut(endpoint.0 as usize)?;
            // Behind those that wait already: a large copy takes turns with the others.
            let full = slot.copies_in_flight >= STEPS_IN_FLIGHT || !slot.copies_waiting.is_empty();
            if full && slot.lost.is_none() {
                slot.copies_waiting.push_back(task);
                return None;
            }
        }
        self.send_copy_step(task)
    }

    /// Gives the places that are free at an endpoint to the copies that wait for it.
    pub(crate) fn resume_copies(&mut self, endpoint: EndpointId) {
        loop {
            let Some(slot) = self.slot_mut(endpoint) else {
                return;
            };
            if slot.copies_in_flight >= STEPS_IN_FLIGHT && slot.lost.is_none() {
                return;
            }
            let Some(task) = slot.copies_waiting.pop_front() else {
                return;
            };
            if let Some(event) = self.send_copy_step(task) {
                self.feed(event);
            }
        }
    }

    fn send_copy_step(&mut self, task: TaskId) -> Option<Event> {
        let ticket = self.new_ticket();
        let record = self.records.get_mut(&task)?;
        let Work::Copy(job) = &mut record.work else {
            return None;
        };
        let (endpoint, request) = match job.next() {
            Ok(Some(step)) => step,
            Ok(None) => {
                self.trace_copy(task);
                return Some(Event::CopyDone {
                    task,
                    ok: MemberResult::Completed,
                });
            }
            Err(message) => {
                record.fail(FailureKind::Failed, None, message);
                return Some(Event::CopyDone {
                    task,
                    ok: MemberResult::Failed,
                });
            }
        };
        // Nobody waits for a large copy of a run that was interrupted; what it has not reached stays as it was.
        if self.runs.get(record.run).is_none_or(|run| run.interrupted) {
            let message = "the run was interrupted before the copy was complete";
            record.fail(FailureKind::Failed, None, message.into());
            return Some(Event::CopyDone {
                task,
                ok: MemberResult::Failed,
            });
        }
        let session = job.session_at(endpoint);
        let slot = self.endpoints.get_mut(endpoint.0 as usize)?;
        let followed = slot.info.session != session;
        let ended = followed.then(|| "the buffer's session has ended; allocate again".to_owned());
        if let Some(reason) = slot.lost.clone().or(ended) {
            record.fail(FailureKind::EndpointLost, Some(slot), reason);
            return Some(Event::CopyDone {
                task,
                ok: MemberResult::Lost,
            });
        }
        // An endpoint that is gone says so by its event too, and the step is settled then, as if it had been sent.
        let _gone = slot.endpoint.control(ticket, request);
        slot.copies_in_flight += 1;
        self.flights.insert(ticket, Flight::Copy { task, endpoint });
        None
    }

    /// A step was answered. After an interrupt no further one is sent: the caller has its arrays back, and a copy of any size
    /// ends within one step.
    pub(crate) fn copy_step_done(
        &mut self,
        task: TaskId,
        endpoint: EndpointId,
        result: Result<ControlReply, ControlFailure>,
    ) -> Option<Event> {
        let slot = self.endpoints.get_mut(endpoint.0 as usize)?;
        slot.copies_in_flight = slot.copies_in_flight.saturating_sub(1);
        let slot = Some(&*slot);
        let record = self.records.get_mut(&task)?;
        if let Err(failure) = result {
            let (kind, ok) = match failure {
                ControlFailure::Lost(_) => (FailureKind::EndpointLost, MemberResult::Lost),
                _ => (FailureKind::Failed, MemberResult::Failed),
            };
            record.fail(kind, slot, failure.to_string());
            return Some(Event::CopyDone { task, ok });
        }
        let run = self.runs.get(record.run);
        let frozen = run.is_none_or(|run| run.interrupted);
        if let Work::Copy(job) = &mut record.work {
            job.answered();
            if frozen && !job.is_whole() {
                let message = "the run was interrupted before all bytes had arrived".to_owned();
                record.fail(FailureKind::Failed, None, message);
                let ok = MemberResult::Failed;
                return Some(Event::CopyDone { task, ok });
            }
        }
        self.next_copy_step(task)
    }

    /// The copier has copied from one place of this process to another, or could not.
    pub(super) fn copied_here(&mut self, task: TaskId, ended: &Ended) {
        let ok = match ended {
            Ended::Copied => {
                self.trace_copy(task);
                MemberResult::Completed
            }
            Ended::Failed(_) | Ended::CalledOff => MemberResult::Failed,
        };
        let why = match ended {
            Ended::Copied => None,
            Ended::Failed(why) => Some(why.clone()),
            Ended::CalledOff => Some("it was called off".to_owned()),
        };
        if let (Some(why), Some(record)) = (why, self.records.get_mut(&task)) {
            record.fail(FailureKind::Failed, None, why);
        }
        self.feed(Event::CopyDone { task, ok });
    }

    fn trace_copy(&mut self, task: TaskId) {
        let Some(record) = self.records.get(&task) else {
            return;
        };
        let Work::Copy(job) = &record.work else {
            return;
        };
        let event = TraceEvent {
            name: "copy".into(),
            worker: "copies".into(),
            pid: 0,
            task: record.sequence,
            member: 0,
            attempt: 1,
            submit_ns: record.submit_ns,
            ready_ns: job.started_ns,
            start_ns: job.started_ns,
            end_ns: now_ns(),
            deps: record.deps.to_vec(),
            outcome: "completed".into(),
        };
        self.trace.push(&event);
        if let Some(run) = self.runs.get_mut(record.run) {
            run.push_event(event);
        }
    }
}
