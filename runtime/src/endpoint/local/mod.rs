//! The local endpoint: a child process behind a mailbox.

mod outbox;
mod records;
mod start;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use echelon_wire::limits::MAX_PAYLOAD_BYTES;

pub(crate) use start::program_of;
pub use start::LocalSpec;

use super::{
    ControlReply, ControlRequest, Endpoint, EndpointEvent, EndpointGone, EndpointInfo,
    OutboundTask, Place, SubmitError, Ticket,
};
use crate::child::records::{Parts, PART_UP};
use crate::mailbox::{Bell, Seat};
use crate::process::{ChildHandle, ExitInfo};
use outbox::{Leases, Outbox};
use records::TaskEncoder;

/// Tasks in a child's queue, the running one included: enough to hide the way back, few enough to leave work for others.
const CAPACITY: u32 = 2;

/// Tasks in a child's queue while they are short: so many that a child finds work however seldom its parent looks.
const DEPTH: u32 = 128;

// What a parent has in flight can all be named.
const _: () = assert!(DEPTH as usize <= crate::child::CONDITION_WINDOW);

/// How long a child that was killed may take to be reaped.
const REAP_WITHIN: Duration = Duration::from_secs(2);

/// One child process and its mailbox.
pub struct LocalEndpoint {
    name: String,
    /// What it is, in brackets, or nothing.
    about: String,
    outbox: Outbox,
    bell: Arc<Bell>,
    /// The child's place in the bell's segment; kept until the child has ended.
    seat: Seat,
    child: ChildHandle,
    /// Set by the keeper when the child has ended.
    exit: Arc<OnceLock<ExitInfo>>,
    /// Answers that need nothing from the child.
    answers: VecDeque<EndpointEvent>,
    payload: Vec<u8>,
    incoming: Parts,
    /// The encoder of tasks; its memory is used again.
    encoder: TaskEncoder,
    /// What keeps the memory of ended tasks of which the child still has views, by ticket (design §15.6).
    retained: HashMap<u64, Leases>,
    ready: bool,
    started: Instant,
    ready_by: Instant,
    /// Why it was ended from this side, if it was.
    killed: Option<String>,
    lost: Option<String>,
    lost_told: bool,
    /// Records that the child has to answer.
    owed: usize,
    /// When it was first told to end.
    told: Option<Instant>,
    runtime_below: bool,
}

impl LocalEndpoint {
    fn gone(&self) -> Option<EndpointGone> {
        let reason = self.lost.clone().or_else(|| self.killed.clone())?;
        Some(EndpointGone {
            name: self.name.clone(),
            reason,
        })
    }
    /// What to report when nothing more comes.
    fn end_reason(&mut self) -> Option<String> {
        if let Some(info) = self.exit.get() {
            let pid = format!("{}{}", self.child.pid(), self.about);
            let why = match &self.killed {
                Some(reason) => format!("child pid {pid} was ended: {reason}"),
                None if self.ready => format!("child pid {pid} {info}"),
                None => format!(
                    "child pid {pid} {info} before it was ready; its last output is on stderr"
                ),
            };
            return Some(why);
        }
        if !self.ready && Instant::now() >= self.ready_by && self.killed.is_none() {
            let limit = self.ready_by.saturating_duration_since(self.started);
            self.kill(&format!("it was not ready within {limit:?}"));
        }
        None
    }

    /// The child was given something to do, and will ring the bell.
    fn owe(&mut self) {
        self.owed += 1;
        self.seat.await_it();
        self.bell.kick();
    }

    /// The next record of the child as an event; faults of the mailbox end the child.
    fn next_record(&mut self) -> Option<EndpointEvent> {
        loop {
            let mut payload = std::mem::take(&mut self.payload);
            let received = self.outbox.side.receive(&mut payload);
            if matches!(received, Ok(Some(head)) if head.kind != PART_UP) {
                self.incoming.complete(&mut payload);
            }
            self.payload = payload;
            let event = match received {
                Ok(Some(head)) => self.event_of(head),
                Ok(None) => return None,
                Err(error) => Err(error.to_string()),
            };
            match event {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(fault) => {
                    self.kill(&format!("its mailbox is corrupt: {fault}"));
                    return None;
                }
            }
        }
    }
}

impl Endpoint for LocalEndpoint {
    fn info(&self) -> EndpointInfo {
        EndpointInfo {
            name: self.name.clone(),
            pid: self.child.pid(),
            capacity: CAPACITY,
            depth: DEPTH,
            shares_memory: true,
            session: None,
            frame_bytes: MAX_PAYLOAD_BYTES,
            copy_step: None,
        }
    }

    fn submit(&mut self, ticket: Ticket, task: &OutboundTask<'_>) -> Result<(), SubmitError> {
        if let Some(gone) = self.gone() {
            return Err(gone.into());
        }
        let payload = self.encode(task).map_err(SubmitError::Refused)?;
        let leases = task.tensors.iter().filter_map(|tensor| {
            let Place::Shared { lease, .. } = &tensor.place else {
                return None;
            };
            lease.clone()
        });
        let sent = self.outbox.task(ticket.0, &payload, leases.collect());
        self.encoder.reuse(payload);
        sent.map_err(|error| SubmitError::Refused(self.fault(&error)))?;
        self.owe();
        Ok(())
    }

    fn takes_conditions(&self) -> bool {
        true
    }

    fn control(&mut self, ticket: Ticket, request: ControlRequest) -> Result<(), EndpointGone> {
        if let Some(gone) = self.gone() {
            return Err(gone);
        }
        let result = match self.send_control(ticket, request) {
            Ok(false) => {
                self.owe();
                return Ok(());
            }
            Ok(true) => Ok(ControlReply::Done),
            Err(failure) => Err(failure),
        };
        self.answers
            .push_back(EndpointEvent::ControlDone { ticket, result });
        self.bell.ring();
        Ok(())
    }

    fn poll_event(&mut self) -> Option<EndpointEvent> {
        if self.lost_told {
            return None;
        }
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if self.killed.is_none() {
            if let Err(error) = self.outbox.flush() {
                self.kill(&format!("it cannot be reached: {error}"));
            }
        }
        // The exit is looked at before the ring is drained: what the child said before it ended still counts.
        let ended = self.end_reason();
        if let Some(event) = self.next_record() {
            self.owed = self.owed.saturating_sub(1);
            return Some(event);
        }
        let reason = ended?;
        self.retained.clear();
        self.lost = Some(reason.clone());
        self.lost_told = true;
        let untaken = self.outbox.abandon();
        let unstarted = untaken.into_iter().map(Ticket).collect();
        Some(EndpointEvent::Lost { reason, unstarted })
    }

    fn is_quiet(&self) -> bool {
        let told = self.ready && self.killed.is_none() && self.exit.get().is_none();
        told && self.answers.is_empty() && self.outbox.is_idle() && self.outbox.side.is_quiet()
    }

    fn may_ring(&self) -> bool {
        // Its end is told by the keeper, in this process.
        !self.ready || self.owed > 0
    }

    fn kill(&mut self, reason: &str) {
        if self.killed.is_none() {
            self.killed = Some(reason.to_owned());
            self.child.kill_group();
        }
    }

    fn begin_close(&mut self) {
        self.told.get_or_insert_with(Instant::now);
        self.outbox.side.request_shutdown();
    }

    fn finish_close(&mut self, deadline: Instant) -> Result<(), String> {
        self.begin_close();
        // Half of the time since it was told is for the child to end by itself. All children are told together, so those that
        // do not are killed together, and two that are stopped take no longer than one. A child that never said READY has
        // nothing to finish, unless it has children of its own to end.
        let told = self.told.unwrap_or_else(Instant::now);
        let half = deadline.saturating_duration_since(told) / 2;
        let cooperative = if self.ready || self.runtime_below {
            told + half
        } else {
            told
        };
        let mut ended = self.child.wait_exit(cooperative).is_some();
        if !ended {
            self.kill("it did not end when it was told to");
            ended = self
                .child
                .wait_exit(deadline.max(Instant::now() + REAP_WITHIN))
                .is_some();
        }
        if !ended {
            return Err(format!(
                "{} (pid {}) cannot be ended, not even by SIGKILL",
                self.name,
                self.child.pid()
            ));
        }
        self.killed
            .get_or_insert_with(|| "it was closed".to_owned());
        Ok(())
    }
}
