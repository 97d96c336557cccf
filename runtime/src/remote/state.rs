//! The command lane as pure code: one ordered queue of requests, what is in flight, the bytes on their way out and in.
//!
//! ```text
//! submit/control ──> queue ──> in flight (≤ limit) ──> outbox ──> socket
//!                                  │ reply matched by sequence, name, version
//! socket ──> partial frame ──> frame ──> event
//! ```
//!
//! Time is a parameter; nothing here reads a clock or a socket. Whatever does not fit the contract is an error, and an error ends
//! the lane for good (R-068, R-071, R-236).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use echelon_wire::codec::Decode;
use echelon_wire::error::{DecodeError, EncodeError};
use echelon_wire::frame::{
    Completion, ControlReply as ReplyFrame, Features, Frame, FrameHeader, FrameType,
    TimedCompletion,
};
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::limits::HEADER_BYTES;

use super::requests::Expected;
use crate::endpoint::{ControlFailure, EndpointEvent, TaskFailure, TaskReport, Ticket};

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
    pub(crate) expected: Expected,
}

struct InFlight {
    ticket: Ticket,
    sequence: Sequence,
    expected: Expected,
    /// When its last byte was written; a control is to be answered from then on.
    sent: Option<Instant>,
}

/// The bytes of one frame that has not arrived as a whole.
struct Partial {
    header: [u8; HEADER_BYTES],
    /// Header bytes that are there.
    have: usize,
    payload: Vec<u8>,
    /// Payload bytes that are there.
    filled: usize,
    begun: Option<Instant>,
}

impl Partial {
    fn new() -> Self {
        Self {
            header: [0; HEADER_BYTES],
            have: 0,
            payload: Vec::new(),
            filled: 0,
            begun: None,
        }
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
    /// Requests in flight: 1 towards version 1.
    pub(crate) in_flight_limit: usize,
}

/// The lane's state.
pub(crate) struct LaneState {
    config: LaneConfig,
    next_sequence: u64,
    queue: VecDeque<Request>,
    in_flight: VecDeque<InFlight>,
    outbox: Vec<u8>,
    written: usize,
    /// Since when the outbox has not moved.
    write_begun: Option<Instant>,
    partial: Partial,
    pub(crate) events: VecDeque<EndpointEvent>,
}

impl LaneState {
    pub(crate) fn new(config: LaneConfig) -> Self {
        Self {
            config,
            next_sequence: 1,
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            outbox: Vec::new(),
            written: 0,
            write_begun: None,
            partial: Partial::new(),
            events: VecDeque::new(),
        }
    }

    /// Appends a request; it is put into the outbox when its turn has come.
    pub(crate) fn enqueue(&mut self, request: Request, now: Instant) {
        self.queue.push_back(request);
        self.advance(now);
    }

    /// Fills the outbox as far as the limit of requests in flight allows.
    fn advance(&mut self, now: Instant) {
        while self.in_flight.len() < self.config.in_flight_limit {
            let Some(request) = self.queue.pop_front() else {
                return;
            };
            let sequence = Sequence(self.next_sequence);
            match self.append(request.frame_type, sequence, &request.payload, now) {
                Ok(()) => {
                    self.next_sequence += 1;
                    let Request {
                        ticket, expected, ..
                    } = request;
                    self.in_flight.push_back(InFlight {
                        ticket,
                        sequence,
                        expected,
                        sent: None,
                    });
                }
                Err(error) => self
                    .events
                    .push_back(request.expected.refused(request.ticket, error.to_string())),
            }
        }
    }

    fn append(
        &mut self,
        frame_type: FrameType,
        sequence: Sequence,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), EncodeError> {
        let header = FrameHeader::new(
            frame_type,
            self.config.session,
            self.config.worker,
            sequence,
            payload.len(),
        )?;
        self.outbox.extend_from_slice(&header.to_array()?);
        self.outbox.extend_from_slice(payload);
        self.write_begun.get_or_insert(now);
        Ok(())
    }

    /// Appends SHUTDOWN, out of turn: nothing is asked for after it (R-240).
    pub(crate) fn shut_down(&mut self, now: Instant) {
        self.queue.clear();
        // An empty payload always fits.
        let _ = self.append(FrameType::Shutdown, Sequence(self.next_sequence), &[], now);
        self.next_sequence += 1;
    }

    /// What is to be written next; empty when there is nothing.
    pub(crate) fn unwritten(&self) -> &[u8] {
        &self.outbox[self.written..]
    }

    /// So many bytes of [`Self::unwritten`] were written.
    pub(crate) fn wrote(&mut self, count: usize, now: Instant) {
        self.written += count;
        if self.written < self.outbox.len() {
            self.write_begun = Some(now);
            return;
        }
        self.outbox.clear();
        // A large copy's buffer is not kept for ever.
        self.outbox.shrink_to(64 * 1024);
        self.written = 0;
        self.write_begun = None;
        for request in &mut self.in_flight {
            request.sent.get_or_insert(now);
        }
    }

    /// Where the next bytes belong: never empty.
    pub(crate) fn read_into(&mut self) -> &mut [u8] {
        let partial = &mut self.partial;
        if partial.have < HEADER_BYTES {
            &mut partial.header[partial.have..]
        } else {
            &mut partial.payload[partial.filled..]
        }
    }

    /// So many bytes were read into [`Self::read_into`]. Frames that are whole become events.
    pub(crate) fn read(&mut self, count: usize, now: Instant) -> Result<(), LaneError> {
        let partial = &mut self.partial;
        partial.begun.get_or_insert(now);
        if partial.have < HEADER_BYTES {
            partial.have += count;
            if partial.have < HEADER_BYTES {
                return Ok(());
            }
            // Length first: nothing is allocated for a frame over the limit (R-069).
            let len = FrameHeader::payload_len(&partial.header)?;
            partial.payload = vec![0; len];
            partial.filled = 0;
        } else {
            partial.filled += count;
        }
        if partial.filled < partial.payload.len() {
            return Ok(());
        }
        let whole = std::mem::replace(&mut self.partial, Partial::new());
        let header = FrameHeader::decode_with(&whole.header, self.config.features)?;
        header.expect_identity(self.config.session, self.config.worker)?;
        self.on_frame(&Frame {
            header,
            payload: &whole.payload,
        })?;
        self.advance(now);
        Ok(())
    }

    fn on_frame(&mut self, frame: &Frame<'_>) -> Result<(), LaneError> {
        let kind = frame.header.frame_type;
        if !matches!(
            kind,
            FrameType::Completion | FrameType::ControlReply | FrameType::TimedCompletion
        ) {
            return Err(LaneError::Direction(kind));
        }
        let is_reply = kind == FrameType::ControlReply;
        let fits = self
            .in_flight
            .front()
            .is_some_and(|request| request.expected.is_control() == is_reply);
        let Some(request) = self.in_flight.pop_front().filter(|_| fits) else {
            return Err(LaneError::Unasked(kind));
        };
        let event = match kind {
            FrameType::ControlReply => self.on_reply(request, frame.payload)?,
            FrameType::Completion => {
                let done = Completion::decode(frame.payload)?;
                done.expect(request.sequence)?;
                let failure = failure_of(done.error_code, &done.error_message);
                let report = TaskReport {
                    failure,
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
                    return Err(LaneError::Answer(format!(
                        "sequence {} for {}",
                        done.sequence, request.sequence
                    )));
                }
                let failure = failure_of(done.error_code, &done.error_message);
                let report = TaskReport {
                    failure,
                    start_ns: Some(done.start_ns),
                    end_ns: Some(done.end_ns),
                };
                EndpointEvent::Done {
                    ticket: request.ticket,
                    report,
                }
            }
        };
        self.events.push_back(event);
        Ok(())
    }

    fn on_reply(&self, request: InFlight, payload: &[u8]) -> Result<EndpointEvent, LaneError> {
        let reply = ReplyFrame::decode_with(payload, self.config.features)?;
        let InFlight {
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
            Err(ControlFailure::Refused(reply.error_message.into_owned()))
        };
        Ok(EndpointEvent::ControlDone { ticket, result })
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
        let answer = self.in_flight.front().and_then(|request| {
            let Expected::Control { name, .. } = &request.expected else {
                return None;
            };
            request.sent.map(|sent| {
                (
                    sent,
                    LaneError::Silent {
                        what: name.name(),
                        limit,
                    },
                )
            })
        });
        let write = self
            .write_begun
            .map(|begun| (begun, LaneError::Stalled(limit)));
        let frame = self
            .partial
            .begun
            .map(|begun| (begun, LaneError::Drip(limit)));
        [answer, write, frame].into_iter().flatten()
    }
}

fn failure_of(error_code: i32, message: &str) -> Option<TaskFailure> {
    (error_code != 0).then(|| TaskFailure {
        message: message.to_owned(),
    })
}
