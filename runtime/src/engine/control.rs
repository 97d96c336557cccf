//! Controls that a thread waits for: registration, buffers, copies outside the graph.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::record::{ControlCell, Flight};
use super::{Core, Engine, WaitEnd};
use crate::endpoint::{ControlFailure, ControlReply, ControlRequest};
use crate::error::Error;
use crate::graph::EndpointId;

impl Engine {
    /// Sends a control and waits for its answer. An endpoint answers or is lost within its own deadlines, so the wait has none
    /// of its own beside the caller's `deadline`.
    ///
    /// # Errors
    /// `Interrupted`, `EndpointLost`, `Remote` with the other side's text, `Timeout`.
    pub(crate) fn control(
        &self,
        endpoint: EndpointId,
        what: &'static str,
        request: ControlRequest,
        deadline: Option<Instant>,
    ) -> Result<ControlReply, Error> {
        let cell = self.send_control(endpoint, request)?;
        self.await_control(endpoint, what, &cell, deadline)
    }

    /// Sends a control; the cell gets the answer.
    pub(crate) fn send_control(
        &self,
        endpoint: EndpointId,
        request: ControlRequest,
    ) -> Result<ControlCell, Error> {
        let mut core = self.core.lock();
        let ticket = core.new_ticket();
        let slot = core
            .slot_mut(endpoint)
            .ok_or_else(|| Error::argument("worker", "no such worker"))?;
        let worker = slot.info.name.clone();
        if let Some(reason) = &slot.lost {
            return Err(Error::EndpointLost {
                worker,
                message: reason.clone(),
            });
        }
        slot.endpoint
            .control(ticket, request)
            .map_err(|gone| Error::EndpointLost {
                worker,
                message: gone.reason,
            })?;
        let cell: ControlCell = Arc::new(Mutex::new(None));
        core.flights.insert(
            ticket,
            Flight::Control {
                cell: Arc::clone(&cell),
                endpoint,
            },
        );
        Ok(cell)
    }

    /// Waits for the answer to a control that was sent.
    pub(crate) fn await_control(
        &self,
        endpoint: EndpointId,
        what: &'static str,
        cell: &ControlCell,
        deadline: Option<Instant>,
    ) -> Result<ControlReply, Error> {
        let started = Instant::now();
        match self.wait_until(deadline, |_| cell.lock().take()) {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(failure)) => Err(self.core.lock().control_error(endpoint, what, failure)),
            Err(WaitEnd::Interrupted) => Err(Error::Interrupted),
            Err(WaitEnd::Deadline) => Err(Error::Timeout {
                what: what.to_owned(),
                limit: started.elapsed(),
                hint: "the worker is alive but does not answer: a task may be running there",
            }),
        }
    }
}

impl Core {
    fn control_error(
        &self,
        endpoint: EndpointId,
        what: &'static str,
        failure: ControlFailure,
    ) -> Error {
        let worker = self
            .slot(endpoint)
            .map_or_else(String::new, |slot| slot.info.name.clone());
        match failure {
            ControlFailure::Lost(message) => Error::EndpointLost { worker, message },
            other => Error::Remote {
                worker,
                what,
                message: other.to_string(),
            },
        }
    }

    /// The thread that asked is gone (interrupted): what was allocated for it is given back.
    pub(crate) fn undo_abandoned(
        &mut self,
        endpoint: EndpointId,
        result: Result<ControlReply, ControlFailure>,
    ) {
        let Ok(ControlReply::Allocated { buffer, .. }) = result else {
            return;
        };
        let ticket = self.new_ticket();
        let Some(slot) = self.slot_mut(endpoint) else {
            return;
        };
        if slot
            .endpoint
            .control(ticket, ControlRequest::Free { buffer })
            .is_ok()
        {
            self.flights.insert(ticket, Flight::Forget { endpoint });
        }
    }
}
