//! Requests that were sent and are not answered: how many there may be, which may be answered now, and which answers are due.

use std::collections::VecDeque;
use std::time::Instant;

use echelon_wire::frame::{ControlName, Credits, FrameType};
use echelon_wire::id::Sequence;
use echelon_wire::order::Scope;

use super::{LaneError, Request};
use crate::endpoint::Ticket;
use crate::remote::replies::Expected;

/// Most requests in flight, whatever a session allows: their scopes are compared with each other.
const IN_FLIGHT_MAX: u32 = 64;

/// A request that was put into the outbox.
pub(super) struct Flight {
    pub(super) ticket: Ticket,
    pub(super) sequence: Sequence,
    pub(super) expected: Expected,
    scope: Scope,
    payload_bytes: u64,
    /// Bytes of the lane up to and with its last one.
    ends_at: u64,
    /// Unanswered requests before it that it may not overtake.
    blockers: usize,
    /// When its last byte was written.
    sent: Option<Instant>,
    /// Since when the session can work on it.
    free: Option<Instant>,
    /// Since when its answer is owed: later than `free` while the session answers what came to it before.
    owed: Option<Instant>,
}

/// All of a lane, in the order in which they were sent.
pub(super) struct Flights {
    credits: Credits,
    list: VecDeque<Flight>,
    payload_bytes: u64,
}

impl Flights {
    pub(super) fn new(credits: Credits) -> Self {
        Self {
            credits,
            list: VecDeque::new(),
            payload_bytes: 0,
        }
    }

    /// True when the session has room for a command with so many payload bytes. One that fits a frame has room when it is alone.
    pub(super) fn have_credit(&self, payload_bytes: usize) -> bool {
        let commands = self.credits.max_commands.min(IN_FLIGHT_MAX) as usize;
        self.list.len() < commands
            && self.payload_bytes + payload_bytes as u64 <= self.credits.max_bytes
    }

    pub(super) fn push(&mut self, request: Request, sequence: Sequence, ends_at: u64) {
        let Request {
            ticket,
            expected,
            scope,
            payload_bytes,
            ..
        } = request;
        let blockers = self.list.iter();
        let blockers = blockers.filter(|earlier| !scope.may_overtake(&earlier.scope));
        let blockers = blockers.count();
        self.payload_bytes += payload_bytes;
        self.list.push_back(Flight {
            ticket,
            sequence,
            expected,
            scope,
            payload_bytes,
            ends_at,
            blockers,
            sent: None,
            free: None,
            owed: None,
        });
    }

    /// Those that one with this scope may not overtake.
    pub(super) fn before(&self, scope: &Scope) -> Vec<Ticket> {
        let before = self.list.iter();
        let before = before.filter(|flight| !scope.may_overtake(&flight.scope));
        before.map(|flight| flight.ticket).collect()
    }

    /// So many bytes of the lane are written.
    pub(super) fn written(&mut self, bytes: u64, now: Instant) {
        for flight in &mut self.list {
            if flight.ends_at > bytes {
                break;
            }
            flight.sent.get_or_insert(now);
        }
        self.set_free(now);
    }

    /// The request that an answer of `kind` with this sequence belongs to. Tasks are answered in their order, and nothing before
    /// what it may not overtake.
    pub(super) fn take(
        &mut self,
        kind: FrameType,
        sequence: Sequence,
        now: Instant,
    ) -> Result<Flight, LaneError> {
        let of_kind =
            |flight: &Flight| flight.expected.is_control() == (kind == FrameType::ControlReply);
        let at = self.list.iter().position(|f| f.sequence == sequence);
        let Some(at) = at.filter(|at| self.list.get(*at).is_some_and(of_kind)) else {
            let awaited = self.list.iter().find(|flight| of_kind(flight));
            return Err(awaited.map_or(LaneError::Unasked(kind), |awaited| {
                super::out_of_order(sequence, awaited.sequence)
            }));
        };
        let flight = self.list.remove(at);
        let flight = flight.filter(|flight| flight.blockers == 0);
        let Some(flight) = flight else {
            return Err(LaneError::Answer(format!(
                "{sequence} is answered, and it may not overtake a request before it"
            )));
        };
        self.payload_bytes -= flight.payload_bytes;
        for later in self.list.range_mut(at..) {
            if !later.scope.may_overtake(&flight.scope) {
                later.blockers -= 1;
            }
        }
        self.restart(&flight, now);
        self.set_free(now);
        Ok(flight)
    }

    /// A session carries out one control at a time, the oldest it can: while it answers those that came to it before another one
    /// was free, that one is not late. Those are at most as many as were in flight then.
    fn restart(&mut self, answered: &Flight, now: Instant) {
        if !answered.expected.is_control() {
            return;
        }
        let behind =
            |flight: &&mut Flight| flight.free.is_some_and(|free| answered.sent <= Some(free));
        for flight in self.list.iter_mut().filter(behind) {
            flight.owed = Some(now);
        }
    }

    fn set_free(&mut self, now: Instant) {
        for flight in &mut self.list {
            if flight.blockers == 0 && flight.sent.is_some() && flight.free.is_none() {
                (flight.free, flight.owed) = (Some(now), Some(now));
            }
        }
    }

    /// Controls whose answer is owed, since when. A task may run for ever, and so may what waits for it.
    pub(super) fn owed(&self) -> impl Iterator<Item = (Instant, ControlName)> + '_ {
        self.list.iter().filter_map(|flight| match flight.expected {
            Expected::Control { name, .. } => Some((flight.owed?, name)),
            Expected::Task => None,
        })
    }
}
