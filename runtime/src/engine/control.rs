//! Controls that a thread waits for: registration, buffers, copies outside the graph.

use std::sync::Arc;
use std::time::Instant;

use echelon_wire::limits::MAX_PAYLOAD_BYTES;

use super::copies::{step_at, step_limit};
use super::finish::knows_no_import;
use super::record::{ControlCell, Flight, Undo};
use super::{Core, Engine, WaitEnd};
use crate::buffer::RemoteBuffer;
use crate::endpoint::{BufferKey, ControlFailure, ControlReply, ControlRequest, Ticket};
use crate::error::Error;
use crate::graph::EndpointId;

/// Controls at one endpoint for which nobody waits are at most so many: each keeps its bytes, or a copy of them.
pub(crate) const CONTROLS_MAX: usize = 256;

/// A control that was sent.
pub(crate) struct Asked {
    pub(crate) endpoint: EndpointId,
    /// The session that was there then; `None` for a local worker.
    pub(crate) session: Option<u64>,
    /// Gets the answer.
    pub(crate) cell: ControlCell,
}

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
        let asked = self.send_control(endpoint, request, None)?;
        self.await_control(asked, what, deadline)
    }

    /// As [`Self::control`], with `pin` held until the answer; also says which session was asked: another may be there by now.
    pub(crate) fn control_of_session(
        &self,
        endpoint: EndpointId,
        what: &'static str,
        request: ControlRequest,
        pin: Option<&RemoteBuffer>,
    ) -> Result<(ControlReply, u64), Error> {
        let asked = self.send_control(endpoint, request, pin)?;
        let session = asked.session;
        let reply = self.await_control(asked, what, None)?;
        // Only sessions make buffers.
        Ok((reply, session.unwrap_or_default()))
    }

    /// As [`Self::control`], with `pin` held until the answer, also when the thread is interrupted before it comes.
    pub(crate) fn control_pinning(
        &self,
        endpoint: EndpointId,
        what: &'static str,
        request: ControlRequest,
        pin: &RemoteBuffer,
    ) -> Result<ControlReply, Error> {
        let asked = self.send_control(endpoint, request, Some(pin))?;
        self.await_control(asked, what, None)
    }

    /// Most bytes of one copy request that an endpoint takes.
    pub(crate) fn copy_step(&self, endpoint: EndpointId, to_remote: bool) -> u64 {
        let core = self.core.lock();
        core.slot(endpoint).map_or_else(
            || step_limit(to_remote, MAX_PAYLOAD_BYTES),
            |slot| step_at(&slot.info, to_remote),
        )
    }

    /// Sends a control; the cell gets the answer. Who was asked is told under the lock under which it was sent.
    pub(crate) fn send_control(
        &self,
        endpoint: EndpointId,
        request: ControlRequest,
        pin: Option<&RemoteBuffer>,
    ) -> Result<Asked, Error> {
        self.check_process("use")?;
        let mut core = self.core.lock();
        if let Some(buffer) = pin {
            core.check_session(buffer)?;
        }
        let ticket = core.post(endpoint, request)?;
        let pin = pin.cloned();
        if let Some(buffer) = &pin {
            buffer.pin_raw();
        }
        let cell = ControlCell::default();
        core.flights.insert(
            ticket,
            Flight::Control {
                cell: Arc::clone(&cell),
                endpoint,
                pin,
            },
        );
        let slot = core.slot_mut(endpoint);
        let session = slot.and_then(|slot| {
            slot.controls_in_flight += 1;
            slot.info.session
        });
        Ok(Asked {
            endpoint,
            session,
            cell,
        })
    }

    /// Waits until fewer than [`CONTROLS_MAX`] controls are on their way to an endpoint. They end, or it is lost, within its own
    /// deadlines.
    ///
    /// # Errors
    /// `Interrupted`.
    pub(crate) fn wait_for_control_room(&self, endpoint: EndpointId) -> Result<(), Error> {
        let has_room = |core: &mut Core| {
            let slot = core.slot(endpoint);
            slot.is_none_or(|slot| slot.controls_in_flight < CONTROLS_MAX)
                .then_some(())
        };
        self.wait_until(None, has_room).map_err(WaitEnd::into_error)
    }

    /// Waits for the answer to a control that was sent.
    pub(crate) fn await_control(
        &self,
        asked: Asked,
        what: &'static str,
        deadline: Option<Instant>,
    ) -> Result<ControlReply, Error> {
        let Asked {
            endpoint,
            session,
            cell,
        } = asked;
        let started = Instant::now();
        let end = match self.wait_until(deadline, |_| cell.lock().take()) {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(failure)) => {
                return Err(self.core.lock().control_error(endpoint, what, failure))
            }
            Err(end) => end,
        };
        {
            // Under the lock: either the answer is here and is undone, or whoever brings it finds the cell given up.
            let mut core = self.core.lock();
            let late = cell.lock().take();
            if let Some(result) = late {
                core.undo_abandoned(endpoint, session, None, result);
            }
            drop(cell);
        }
        match end {
            WaitEnd::Interrupted | WaitEnd::Torn | WaitEnd::Forked => Err(end.into_error()),
            WaitEnd::Deadline => Err(Error::Timeout {
                what: what.to_owned(),
                limit: started.elapsed(),
                hint: "the worker is alive but does not answer: a task may be running there",
            }),
        }
    }
}

impl Core {
    /// Hands a control to its endpoint. The caller says, under the same lock, what the ticket stands for.
    pub(super) fn post(
        &mut self,
        endpoint: EndpointId,
        request: ControlRequest,
    ) -> Result<Ticket, Error> {
        self.check_open("use")?;
        let ticket = self.new_ticket();
        let slot = self
            .slot_mut(endpoint)
            .ok_or_else(|| Error::argument("worker", "no such worker"))?;
        let worker = slot.info.name.clone();
        let hint = slot.role.after_loss();
        let lost = |message: String| Error::EndpointLost {
            worker,
            message,
            hint,
        };
        if let Some(reason) = &slot.lost {
            return Err(lost(reason.clone()));
        }
        let sent = slot.endpoint.control(ticket, request);
        sent.map_err(|gone| lost(gone.reason))?;
        Ok(ticket)
    }

    pub(crate) fn control_error(
        &self,
        endpoint: EndpointId,
        what: &'static str,
        failure: ControlFailure,
    ) -> Error {
        let (worker, hint) = self.slot(endpoint).map_or_else(
            || (String::new(), ""),
            |slot| (slot.info.name.clone(), slot.role.after_loss()),
        );
        match failure {
            ControlFailure::Lost(message) => Error::EndpointLost {
                worker,
                message,
                hint,
            },
            other => Error::Remote {
                worker,
                what,
                message: other.to_string(),
            },
        }
    }

    /// Nobody waits for a copy any more: `close()` tells when it has failed.
    pub(crate) fn unwatch_copy(
        &mut self,
        what: &'static str,
        endpoint: EndpointId,
        cell: ControlCell,
    ) {
        let went_well = |cell: &ControlCell| matches!(&*cell.lock(), Some(Ok(_)));
        self.unwatched.retain(|(_, _, cell)| !went_well(cell));
        if !went_well(&cell) {
            self.unwatched.push((what, endpoint, cell));
        }
    }

    /// Copies that failed and that nobody waited for, told once.
    pub(crate) fn unwatched_failures(&mut self) -> Vec<String> {
        let unwatched = std::mem::take(&mut self.unwatched);
        let failed = unwatched.into_iter().filter_map(|(what, endpoint, cell)| {
            let failure = cell.lock().take()?.err()?;
            let error = self.control_error(endpoint, what, failure);
            Some(format!("{what}, for which nobody waited, failed: {error}"))
        });
        failed.collect()
    }

    /// Tells every local worker that a region is gone; a dead or slow one blocks nobody.
    pub(crate) fn drop_region(&mut self, region: u64) {
        let local = self
            .endpoints
            .iter()
            .zip(0..)
            .filter(|(slot, _)| slot.info.shares_memory && slot.lost.is_none());
        let local: Vec<EndpointId> = local.map(|(_, index)| EndpointId(index)).collect();
        for endpoint in local {
            let ticket = self.new_ticket();
            let Some(slot) = self.slot_mut(endpoint) else {
                continue;
            };
            if slot
                .endpoint
                .control(ticket, ControlRequest::DropRegion { region })
                .is_ok()
            {
                self.flights.insert(ticket, Flight::Forget { endpoint });
            }
        }
    }

    /// The thread that asked is gone (interrupted): what was made for it is given back. `pin` is held until that is answered.
    pub(super) fn undo_abandoned(
        &mut self,
        endpoint: EndpointId,
        session: Option<u64>,
        pin: Option<RemoteBuffer>,
        result: Result<ControlReply, ControlFailure>,
    ) {
        let request = match result {
            Ok(ControlReply::Allocated { buffer, .. }) => ControlRequest::Free { buffer },
            Ok(ControlReply::Imported(import)) => ControlRequest::ReleaseImport {
                owner: import.owner_worker_id,
                buffer: BufferKey {
                    buffer: import.buffer_id,
                    generation: import.generation,
                },
                import: import.import_id,
            },
            _ => return self.unpin_if(pin),
        };
        self.send_undo(Undo {
            endpoint,
            session,
            request,
            pin,
            refused: false,
        });
    }

    /// Sends the undoing; with a lost session there is nothing left to undo, and its numbers are others' in the next one.
    pub(super) fn send_undo(&mut self, undo: Undo) {
        let ticket = self.new_ticket();
        let request = undo.request.clone();
        let sent = self.slot_mut(undo.endpoint).is_some_and(|slot| {
            slot.lost.is_none()
                && slot.info.session == undo.session
                && slot.endpoint.control(ticket, request).is_ok()
        });
        if sent {
            self.flights.insert(ticket, Flight::Undo(undo));
        } else {
            self.unpin_if(undo.pin);
        }
    }

    /// What was refused is tried again with the other releases.
    pub(super) fn undo_done(
        &mut self,
        mut undo: Undo,
        result: &Result<ControlReply, ControlFailure>,
    ) {
        match result {
            Ok(_) | Err(ControlFailure::Lost(_)) => self.unpin_if(undo.pin),
            Err(failure) if undo.refused && knows_no_import(failure) => self.unpin_if(undo.pin),
            Err(failure) => {
                undo.refused = true;
                tracing::warn!(%failure, "undoing an interrupted call was refused; it is tried again");
                self.pending_undos.push(undo);
            }
        }
    }
}
