//! Requests that were sent and are not answered: how many there may be, which may be answered now, and which answers are due.

use std::collections::VecDeque;
use std::time::Instant;

use echelon_wire::frame::{ControlName, Credits, FrameType};
use echelon_wire::id::Sequence;
use echelon_wire::order::Scope;

use super::{LaneError, Request};
use crate::endpoint::Ticket;
use crate::remote::replies::Expected;

/// Most requests in flight, whatever a session allows.
const IN_FLIGHT_MAX: u32 = 256;

/// Tasks that a session with these credits takes at a time; the rest is for controls.
pub(super) fn depth(credits: Credits) -> u32 {
    let most = commands_max(credits);
    most - most / 8
}

/// Commands in flight at a session with these credits.
pub(super) fn commands_max(credits: Credits) -> u32 {
    credits.max_commands.min(IN_FLIGHT_MAX)
}

/// A request that was put into the outbox.
pub(super) struct Flight {
    pub(super) ticket: Ticket,
    pub(super) sequence: Sequence,
    pub(super) expected: Expected,
    scope: Scope,
    payload_bytes: u64,
    /// Bytes of the lane up to and with its last one.
    ends_at: u64,
    /// Unanswered requests before it that it may not overtake; of those that answer in order among themselves, only if it is
    /// none of them.
    blockers: usize,
    /// When its last byte was written. This and what follows only of controls: a task may run for ever.
    sent: Option<Instant>,
    /// Since when the session can work on it.
    free: Option<Instant>,
    /// Since when its answer is owed: later than `free` while the session answers what came to it before.
    owed: Option<Instant>,
}

/// All of a lane, in the order in which they were sent. Tasks, and what keeps its place among them, are answered in that order, so
/// only the few others are compared with anything.
pub(super) struct Flights {
    credits: Credits,
    in_order: VecDeque<Flight>,
    beside: VecDeque<Flight>,
    /// Controls in both.
    controls: usize,
    payload_bytes: u64,
}

impl Flights {
    pub(super) fn new(credits: Credits) -> Self {
        Self {
            credits,
            in_order: VecDeque::new(),
            beside: VecDeque::new(),
            controls: 0,
            payload_bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.in_order.len() + self.beside.len()
    }

    /// True when the session has room for a command with so many payload bytes. One that fits a frame has room when it is alone.
    pub(super) fn have_credit(&self, payload_bytes: usize) -> bool {
        let commands = commands_max(self.credits) as usize;
        self.len() < commands && self.payload_bytes + payload_bytes as u64 <= self.credits.max_bytes
    }

    pub(super) fn push(&mut self, request: Request, sequence: Sequence, ends_at: u64) {
        let Request {
            ticket,
            expected,
            scope,
            payload_bytes,
            ..
        } = request;
        let beside = scope.is_beside_tasks();
        let bound = |earlier: &&Flight| !scope.may_overtake(&earlier.scope);
        let mut blockers = self.beside.iter().filter(bound).count();
        if beside {
            blockers += self.in_order.iter().filter(bound).count();
        }
        self.payload_bytes += payload_bytes;
        self.controls += usize::from(expected.is_control());
        let flights = if beside {
            &mut self.beside
        } else {
            &mut self.in_order
        };
        flights.push_back(Flight {
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
        let before = self.in_order.iter().chain(&self.beside);
        let before = before.filter(|flight| !scope.may_overtake(&flight.scope));
        before.map(|flight| flight.ticket).collect()
    }

    fn controls_mut(&mut self) -> impl Iterator<Item = &mut Flight> {
        let controls = |flight: &&mut Flight| flight.expected.is_control();
        let both = self.in_order.iter_mut().chain(&mut self.beside);
        both.filter(controls)
    }

    /// So many bytes of the lane are written.
    pub(super) fn written(&mut self, bytes: u64, now: Instant) {
        if self.controls == 0 {
            return;
        }
        for flight in self.controls_mut().filter(|flight| flight.ends_at <= bytes) {
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
        let flight = self.find(kind, sequence)?;
        self.payload_bytes -= flight.payload_bytes;
        unblock(&mut self.beside, &flight);
        if flight.scope.is_beside_tasks() {
            unblock(&mut self.in_order, &flight);
        }
        if flight.expected.is_control() {
            self.controls -= 1;
            self.restart(&flight, now);
        }
        if self.controls > 0 {
            self.set_free(now);
        }
        Ok(flight)
    }

    fn find(&mut self, kind: FrameType, sequence: Sequence) -> Result<Flight, LaneError> {
        let is_control = kind == FrameType::ControlReply;
        let of_kind = |flight: &&Flight| flight.expected.is_control() == is_control;
        let overtakes = || {
            LaneError::Answer(format!(
                "{sequence} is answered, and it may not overtake a request before it"
            ))
        };
        if let Some(first) = self.in_order.front().filter(|f| f.sequence == sequence) {
            if of_kind(&first) {
                let free = first.blockers == 0;
                let first = free.then(|| self.in_order.pop_front()).flatten();
                return first.ok_or_else(overtakes);
            }
        }
        let beside = self.beside.iter().position(|f| f.sequence == sequence);
        if let Some(at) = beside.filter(|at| self.beside.get(*at).as_ref().is_some_and(of_kind)) {
            let free = self.beside.get(at).is_some_and(|f| f.blockers == 0);
            let flight = free.then(|| self.beside.remove(at)).flatten();
            return flight.ok_or_else(overtakes);
        }
        let mut in_order = self.in_order.iter();
        if in_order.any(|flight| flight.sequence == sequence && of_kind(&flight)) {
            return Err(overtakes());
        }
        let awaited = self.in_order.iter().chain(&self.beside).filter(of_kind);
        let awaited = awaited.min_by_key(|flight| flight.sequence.0);
        Err(awaited.map_or(LaneError::Unasked(kind), |awaited| {
            super::out_of_order(sequence, awaited.sequence)
        }))
    }

    /// A session carries out one control at a time, the oldest it can: while it answers those that came to it before another one
    /// was free, that one is not late. Those are at most as many as were in flight then.
    fn restart(&mut self, answered: &Flight, now: Instant) {
        let behind =
            |flight: &&mut Flight| flight.free.is_some_and(|free| answered.sent <= Some(free));
        for flight in self.controls_mut().filter(behind) {
            flight.owed = Some(now);
        }
    }

    fn set_free(&mut self, now: Instant) {
        let first = self.in_order.front_mut();
        for flight in first.into_iter().chain(&mut self.beside) {
            let free = flight.blockers == 0 && flight.sent.is_some() && flight.free.is_none();
            if free && flight.expected.is_control() {
                (flight.free, flight.owed) = (Some(now), Some(now));
            }
        }
    }

    /// Controls whose answer is owed, since when. A task may run for ever, and so may what waits for it.
    pub(super) fn owed(&self) -> impl Iterator<Item = (Instant, ControlName)> + '_ {
        let first = self.in_order.front();
        let flights = first.into_iter().chain(&self.beside);
        flights.filter_map(|flight| match flight.expected {
            Expected::Control { name, .. } => Some((flight.owed?, name)),
            Expected::Task => None,
        })
    }
}

/// `gone` holds nothing up any more.
fn unblock(flights: &mut VecDeque<Flight>, gone: &Flight) {
    for later in flights.iter_mut().filter(|f| f.sequence > gone.sequence) {
        if !later.scope.may_overtake(&gone.scope) {
            later.blockers -= 1;
        }
    }
}
