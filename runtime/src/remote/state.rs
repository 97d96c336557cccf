//! The command lane as pure code: one ordered queue of requests, what is in flight, the bytes on their way out and in.
//!
//! ```text
//! submit/control ──> queue ──> in flight (≤ credits) ──> outbox ──> socket
//!                                  │ reply matched by sequence, name, version
//! socket ──> FrameReader ──> frame ──> event
//! ```
//!
//! Time is a parameter; nothing here reads a clock or a socket. Whatever does not fit the contract is an error, and an error ends
//! the lane for good (R-068, R-071, R-236).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use echelon_wire::codec::Decode;
use echelon_wire::error::{DecodeError, EncodeError};
use echelon_wire::frame::{
    Completion, ControlReply as ReplyFrame, Credits, FailureKind, Features, Frame, FrameHeader,
    FrameType, TimedCompletion,
};
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::order::Scope;
use smallvec::SmallVec;

use super::replies::Expected;
use super::requests::Outgoing;
use crate::endpoint::{ControlFailure, EndpointEvent, TaskFailure, TaskReport, Ticket};
use crate::text;
use chain::Chain;
use flights::{Flight, Flights};

mod chain;
mod flights;

/// Payloads up to this many bytes share a piece of the outbox with others; larger ones are not copied.
const JOINED_BYTES_MAX: usize = 8 * 1024;
/// A piece that is shared is written when it has so many bytes, whether more are to come or not.
pub(crate) const TOGETHER_BYTES: usize = 16 * 1024;
/// Pieces that go out in one call.
const PIECES_MAX: usize = 8;

/// Why the lane ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LaneError {
    #[error("the session sent a frame that breaks the protocol: {0}")]
    Decode(#[from] DecodeError),
    #[error("the session sent {0:?}, which a parent never gets")]
    Direction(FrameType),
    #[error("the session answered {0:?} when nothing of that kind was in flight")]
    Unasked(FrameType),
    #[error("the session's answer does not fit the request: {0}")]
    Answer(String),
    #[error("the session closed its command lane")]
    Ended,
    #[error("the session did not answer {what} within {limit:?}")]
    Silent { what: &'static str, limit: Duration },
    #[error("the session took no bytes for {0:?}")]
    Stalled(Duration),
    #[error("a frame was begun and not ended within {0:?}")]
    Drip(Duration),
    #[error("the command lane broke: {0}")]
    Io(String),
}

/// A request that waits for its turn.
pub(crate) struct Request {
    pub(crate) ticket: Ticket,
    pub(crate) frame_type: FrameType,
    pub(crate) payload: Vec<u8>,
    /// Length of the payload, which goes into the outbox before the rest goes into flight.
    payload_bytes: u64,
    pub(crate) expected: Expected,
    /// What it may overtake.
    scope: Scope,
    /// Tasks that must have completed in the session, or it is skipped there.
    after: SmallVec<[Ticket; 2]>,
}

impl Request {
    pub(crate) fn task(ticket: Ticket, payload: Vec<u8>, scope: Scope) -> Self {
        Self {
            ticket,
            frame_type: FrameType::Task,
            payload_bytes: payload.len() as u64,
            payload,
            expected: Expected::Task,
            scope,
            after: SmallVec::new(),
        }
    }

    /// The task is to be skipped unless these completed.
    pub(crate) fn after(mut self, tasks: &[Ticket]) -> Self {
        self.after = tasks.into();
        self
    }

    pub(crate) fn control(ticket: Ticket, outgoing: Outgoing, scope: Scope) -> Self {
        let Outgoing {
            name,
            payload,
            reply,
        } = outgoing;
        Self {
            ticket,
            frame_type: FrameType::Control,
            payload_bytes: payload.len() as u64,
            payload,
            expected: Expected::Control { name, reply },
            scope,
            after: SmallVec::new(),
        }
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }
}

/// Identity and bounds of a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneConfig {
    pub(crate) session: SessionId,
    pub(crate) worker: WorkerId,
    pub(crate) features: Features,
    /// Bound of an answer to a control, of a write, and of a whole frame.
    pub(crate) timeout: Duration,
    /// What may be in flight: one request towards version 1.
    pub(crate) credits: Credits,
}

/// The lane's state.
pub(crate) struct LaneState {
    config: LaneConfig,
    next_sequence: u64,
    queue: VecDeque<Request>,
    in_flight: Flights,
    chain: Chain,
    /// What is to be written, in order; none is empty.
    outbox: VecDeque<Vec<u8>>,
    /// More may be appended to the last piece.
    open: bool,
    /// A piece that was written, to be used again.
    spare: Vec<u8>,
    /// Bytes of the first piece that are written.
    written: usize,
    /// Bytes that ever went into the outbox, and those of them that were written.
    appended_total: u64,
    written_total: u64,
    /// Since when the outbox has not moved.
    write_begun: Option<Instant>,
    pub(crate) events: VecDeque<EndpointEvent>,
}

impl LaneState {
    pub(crate) fn new(config: LaneConfig) -> Self {
        Self {
            config,
            next_sequence: 1,
            queue: VecDeque::new(),
            in_flight: Flights::new(config.credits),
            chain: Chain::new(config.features, flights::commands_max(config.credits)),
            outbox: VecDeque::new(),
            open: false,
            spare: Vec::new(),
            written: 0,
            appended_total: 0,
            written_total: 0,
            write_begun: None,
            events: VecDeque::new(),
        }
    }

    /// Fills the outbox as far as the session gave credit. Waiting for credit has no deadline: a task may run for ever.
    fn advance(&mut self, now: Instant) {
        while let Some(next) = self.queue.front() {
            if !self.in_flight.have_credit(next.payload.len()) {
                return;
            }
            let Some(mut request) = self.queue.pop_front() else {
                return;
            };
            let sequence = Sequence(self.next_sequence);
            let payload = std::mem::take(&mut request.payload);
            match self.append(request.frame_type, sequence, payload, now) {
                Ok(()) => {
                    self.next_sequence += 1;
                    self.in_flight.push(request, sequence, self.appended_total);
                }
                Err(error) => {
                    self.chain.answered(request.ticket, false);
                    let refused = request.expected.refused(request.ticket, error.to_string());
                    self.events.push_back(refused);
                }
            }
        }
    }

    /// The requests without an answer that one with this scope may not overtake.
    pub(crate) fn unanswered(&self, scope: &Scope) -> Vec<Ticket> {
        let queued = self.queue.iter();
        let queued = queued.filter(|request| !scope.may_overtake(&request.scope));
        let mut before = self.in_flight.before(scope);
        before.extend(queued.map(|request| request.ticket));
        before
    }

    /// Appends a request; it is put into the outbox when its turn has come. One that no frame of this lane holds is refused at once
    /// (R-081).
    pub(crate) fn enqueue(&mut self, mut request: Request, now: Instant) {
        // What waits is sent in its order, so the sequence is known.
        let sequence = Sequence(self.next_sequence + self.queue.len() as u64);
        if let Some(skipped) = self.chain.admit(&mut request, sequence) {
            return self.events.push_back(skipped);
        }
        let limit = self.config.credits.max_frame_bytes;
        if request.payload_bytes > limit.into() {
            let text = format!(
                "{} bytes in one frame, limit {limit}; send less in one task, and larger data by buffers",
                request.payload_bytes
            );
            self.chain.answered(request.ticket, false);
            let refused = request.expected.refused(request.ticket, text);
            return self.events.push_back(refused);
        }
        self.queue.push_back(request);
        self.advance(now);
    }

    fn append(
        &mut self,
        frame_type: FrameType,
        sequence: Sequence,
        payload: Vec<u8>,
        now: Instant,
    ) -> Result<(), EncodeError> {
        let header = FrameHeader::new(
            frame_type,
            self.config.session,
            self.config.worker,
            sequence,
            payload.len(),
        )?;
        let head = header.to_array()?;
        self.appended_total += (head.len() + payload.len()) as u64;
        let small = payload.len() <= JOINED_BYTES_MAX;
        let fits = |last: &Vec<u8>| last.len() < TOGETHER_BYTES;
        if !self.open || !self.outbox.back().is_some_and(fits) {
            self.outbox.push_back(std::mem::take(&mut self.spare));
        }
        if let Some(last) = self.outbox.back_mut() {
            last.extend_from_slice(&head);
            if small {
                last.extend_from_slice(&payload);
            }
        }
        if !small {
            self.outbox.push_back(payload);
        }
        self.open = small;
        self.write_begun.get_or_insert(now);
        Ok(())
    }

    /// Appends SHUTDOWN, out of turn: nothing is asked for after it (R-240).
    pub(crate) fn shut_down(&mut self, now: Instant) {
        self.queue.clear();
        // An empty payload always fits.
        let sequence = Sequence(self.next_sequence);
        let _ = self.append(FrameType::Shutdown, sequence, Vec::new(), now);
        self.next_sequence += 1;
    }

    /// What is to be written next, in a few pieces; none when there is nothing.
    pub(crate) fn unwritten(&self) -> SmallVec<[IoSlice<'_>; PIECES_MAX]> {
        let mut skip = self.written;
        let pieces = self.outbox.iter().take(PIECES_MAX);
        pieces
            .map(|piece| IoSlice::new(&piece[std::mem::take(&mut skip)..]))
            .collect()
    }

    /// So many bytes of [`Self::unwritten`] were written.
    pub(crate) fn wrote(&mut self, count: usize, now: Instant) {
        self.written += count;
        self.written_total += count as u64;
        self.in_flight.written(self.written_total, now);
        while let Some(piece) = self.outbox.front().map(Vec::len) {
            if self.written < piece {
                self.write_begun = Some(now);
                return;
            }
            self.written -= piece;
            if let Some(mut piece) = self.outbox.pop_front() {
                if piece.capacity() <= 2 * TOGETHER_BYTES {
                    piece.clear();
                    self.spare = piece;
                }
            }
        }
        self.write_begun = None;
        self.open = false;
    }

    /// True when something is to be written that has waited for company for `limit`, or is as much as should go together.
    pub(crate) fn should_write(&self, limit: Duration, now: Instant) -> bool {
        let waited = |begun: Instant| now.saturating_duration_since(begun) >= limit;
        self.outbox.len() > 1
            || self
                .outbox
                .front()
                .is_some_and(|p| p.len() >= TOGETHER_BYTES)
            || self.write_begun.is_some_and(waited)
    }

    /// True when something is to be written.
    pub(crate) fn has_unwritten(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Requests that were sent, or wait to be written, and are not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A frame came: what it answers becomes an event, and the next request goes into the outbox.
    pub(crate) fn on_frame(&mut self, frame: &Frame<'_>, now: Instant) -> Result<(), LaneError> {
        let event = self.answered(frame, now)?;
        if let EndpointEvent::Done { ticket, report } = &event {
            self.chain.answered(*ticket, report.failure.is_none());
        }
        self.events.push_back(event);
        self.advance(now);
        Ok(())
    }

    fn answered(&mut self, frame: &Frame<'_>, now: Instant) -> Result<EndpointEvent, LaneError> {
        let kind = frame.header.frame_type;
        if !matches!(
            kind,
            FrameType::Completion | FrameType::ControlReply | FrameType::TimedCompletion
        ) {
            return Err(LaneError::Direction(kind));
        }
        // It takes the place of the other.
        let timed = self.config.features.contains(Features::TIMED_COMPLETION);
        if timed && kind == FrameType::Completion {
            return Err(LaneError::Direction(kind));
        }
        let request = self.in_flight.take(kind, frame.header.sequence, now)?;
        Ok(match kind {
            FrameType::ControlReply => self.on_reply(request, frame.payload)?,
            FrameType::Completion => {
                let done = Completion::decode(frame.payload)?;
                done.expect(request.sequence)?;
                let failed = done.error_code != 0;
                let report = TaskReport {
                    failure: failed
                        .then(|| TaskFailure::raised(text::of_peer(&done.error_message))),
                    start_ns: None,
                    end_ns: None,
                };
                EndpointEvent::Done {
                    ticket: request.ticket,
                    report,
                }
            }
            _ => {
                let done = TimedCompletion::decode(frame.payload)?;
                if done.sequence != request.sequence {
                    return Err(out_of_order(done.sequence, request.sequence));
                }
                let ticket = request.ticket;
                let skipped = done.failure_kind == FailureKind::Skipped;
                let skipped = self.chain.was_skipped(ticket, skipped);
                if skipped.map_err(|why| LaneError::Answer(why.into()))? {
                    self.chain.answered(ticket, false);
                    return Ok(EndpointEvent::Skipped { ticket });
                }
                let report = TaskReport {
                    failure: failure_of(done.failure_kind, &done.error_message),
                    start_ns: Some(done.start_ns),
                    end_ns: Some(done.end_ns),
                };
                EndpointEvent::Done {
                    ticket: request.ticket,
                    report,
                }
            }
        })
    }

    fn on_reply(&self, request: Flight, payload: &[u8]) -> Result<EndpointEvent, LaneError> {
        let reply = ReplyFrame::decode_with(payload, self.config.features)?;
        let Flight {
            ticket,
            sequence,
            expected,
            ..
        } = request;
        let Expected::Control {
            name,
            reply: wanted,
        } = expected
        else {
            return Err(LaneError::Unasked(FrameType::ControlReply));
        };
        reply.expect(
            sequence,
            name,
            echelon_wire::frame::control::CONTROL_VERSION,
        )?;
        let result = if reply.error_code == 0 {
            Ok(wanted
                .decode(self.config.worker, &reply.result)
                .map_err(LaneError::Answer)?)
        } else {
            Err(ControlFailure::Refused(text::of_peer(&reply.error_message)))
        };
        Ok(EndpointEvent::ControlDone { ticket, result })
    }

    /// Tasks that a session with these credits takes at a time; the rest is for controls.
    pub(crate) fn depth(credits: Credits) -> u32 {
        flights::depth(credits)
    }

    /// The earliest instant at which a bound is broken if nothing happens; `None` when nothing is owed (a task may run for ever).
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.owed()
            .map(|(begun, _)| begun + self.config.timeout)
            .min()
    }

    /// Checks every bound.
    pub(crate) fn check_deadlines(&self, now: Instant) -> Result<(), LaneError> {
        let late = self
            .owed()
            .find(|(begun, _)| now >= *begun + self.config.timeout);
        late.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn owed(&self) -> impl Iterator<Item = (Instant, LaneError)> + '_ {
        let limit = self.config.timeout;
        let answers = self.in_flight.owed().map(move |(since, name)| {
            let what = name.name();
            (since, LaneError::Silent { what, limit })
        });
        let write = self
            .write_begun
            .map(|begun| (begun, LaneError::Stalled(limit)));
        answers.chain(write)
    }
}

fn out_of_order(got: Sequence, asked: Sequence) -> LaneError {
    LaneError::Answer(format!("it has sequence {got}, and {asked} is awaited"))
}

/// What a session says of a task, whose fault included. One that it skipped or cancelled was not carried out, whatever the callable
/// does: for the parent, whose graph knows no reason for that, it is as lost as one whose data was out of reach (R-085).
fn failure_of(kind: FailureKind, message: &str) -> Option<TaskFailure> {
    let message = text::of_peer(message);
    match kind {
        FailureKind::None => None,
        FailureKind::Task => Some(TaskFailure::raised(message)),
        FailureKind::Endpoint => Some(TaskFailure::infrastructure(message)),
        FailureKind::Skipped => Some(TaskFailure::infrastructure(format!(
            "its session skipped it: {message}"
        ))),
        FailureKind::Cancelled => Some(TaskFailure::infrastructure(format!(
            "its session cancelled it: {message}"
        ))),
    }
}

#[cfg(test)]
mod pipelined;
#[cfg(test)]
mod tests;
