//! The end of an engine: its endpoints are taken out, and whoever still waits is told.

use std::time::Instant;

use super::{Core, Flight};
use crate::buffer::RemoteBuffer;
use crate::endpoint::{
    ControlRequest, Endpoint, EndpointEvent, EndpointGone, EndpointInfo, OutboundTask, SubmitError,
    Ticket,
};
use crate::error::Error;
use crate::graph::{EndpointId, Event};

/// Stands in the place of an endpoint that is being ended or replaced, so that ids and names stay right.
struct Ended(EndpointInfo, &'static str);

impl Ended {
    fn gone(&self) -> EndpointGone {
        EndpointGone {
            name: self.0.name.clone(),
            reason: self.1.into(),
        }
    }
}

impl Endpoint for Ended {
    fn info(&self) -> EndpointInfo {
        self.0.clone()
    }

    fn submit(&mut self, _: Ticket, _: &OutboundTask<'_>) -> Result<(), SubmitError> {
        Err(self.gone().into())
    }

    fn control(&mut self, _: Ticket, _: ControlRequest) -> Result<(), EndpointGone> {
        Err(self.gone())
    }

    fn poll_event(&mut self) -> Option<EndpointEvent> {
        None
    }

    fn may_ring(&self) -> bool {
        false
    }

    fn kill(&mut self, _: &str) {}

    fn begin_close(&mut self) {}

    fn finish_close(&mut self, _: Instant) -> Result<(), String> {
        Ok(())
    }
}

impl Core {
    /// Takes all endpoints out, so that they can be ended without the lock. Nothing is submitted from now on.
    pub(crate) fn take_endpoints(&mut self) -> Vec<Box<dyn Endpoint>> {
        self.closed = true;
        let slots = self.endpoints.iter_mut();
        slots
            .map(|slot| {
                // What it was started with is let go of.
                slot.succession = None;
                let ended = Box::new(Ended(slot.info.clone(), "the worker is closing"));
                std::mem::replace(&mut slot.endpoint, ended)
            })
            .collect()
    }

    /// Takes out an endpoint that has ended, with its descriptors and memory. To be dropped without the lock.
    pub(crate) fn vacate(
        &mut self,
        id: EndpointId,
        why: &'static str,
    ) -> Option<Box<dyn Endpoint>> {
        let slot = self.slot_mut(id)?;
        let ended = Box::new(Ended(slot.info.clone(), why));
        Some(std::mem::replace(&mut slot.endpoint, ended))
    }

    /// Settles the answers that came while an endpoint ended, so that what was freed counts as freed.
    pub(crate) fn take_last_answers(&mut self, index: usize, endpoint: &mut dyn Endpoint) {
        if self.torn {
            return;
        }
        while let Some(event) = endpoint.poll_event() {
            if let EndpointEvent::ControlDone { ticket, result } = event {
                // Indices are ids, which were given out as u32.
                self.on_control_done(EndpointId(index as u32), ticket, result);
            }
        }
    }

    /// Everything in flight is settled, so that threads which still wait are told. `left` could not be ended. Returns the buffers
    /// of which nobody can say that they were freed.
    pub(crate) fn give_up(
        &mut self,
        reason: &str,
        left: Vec<(usize, Box<dyn Endpoint>)>,
    ) -> Vec<String> {
        let uncertain = self.take_unconfirmed();
        let runs: Vec<_> = self.runs.iter().map(|(run, _)| run).collect();
        for run in runs {
            self.feed(Event::CancelRun { run });
        }
        self.give_up_copies(reason);
        for index in 0..self.endpoints.len() {
            self.on_lost(EndpointId(index as u32), reason, &[]);
        }
        for (index, endpoint) in left {
            if let Some(slot) = self.endpoints.get_mut(index) {
                slot.endpoint = endpoint;
            }
        }
        uncertain
    }

    /// Names what was to be released and was not: refused each time, or without an answer from a session that did not end in order.
    fn take_unconfirmed(&mut self) -> Vec<String> {
        let buffer_of = |buffer: &RemoteBuffer| {
            let (key, what) = (buffer.facts().key.buffer.0, buffer.nbytes());
            format!("buffer {key} ({what} bytes)")
        };
        let mut found: Vec<(EndpointId, String)> = Vec::new();
        for buffer in std::mem::take(&mut self.pending_releases) {
            let named = format!("the release of {} was refused", buffer_of(&buffer));
            found.push((buffer.facts().endpoint, named));
        }
        for undo in std::mem::take(&mut self.pending_undos) {
            let named = "the release of what an interrupted call had made was refused".to_owned();
            found.push((undo.endpoint, named));
        }
        for flight in self.flights.values() {
            if let Flight::Release {
                buffer, endpoint, ..
            } = flight
            {
                let named = format!("the release of {} was not answered", buffer_of(buffer));
                found.push((*endpoint, named));
            }
        }
        let name = |id| self.slot(id).map_or("no worker", |slot| &slot.info.name);
        let found = found.iter();
        let mut named: Vec<String> = found
            .map(|(id, what)| format!("{what} by {}; it goes with that session", name(*id)))
            .collect();
        named.sort();
        named
    }

    /// Refuses what needs endpoints once `close()` has taken them.
    pub(crate) fn check_open(&self, action: &'static str) -> Result<(), Error> {
        if self.torn {
            return Err(super::drive::torn(action));
        }
        if !self.closed {
            return Ok(());
        }
        Err(Error::Lifecycle {
            state: "closing".into(),
            action,
            hint: "make a new Worker".into(),
        })
    }
}
