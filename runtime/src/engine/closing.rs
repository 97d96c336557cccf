//! The end of an engine: its endpoints are taken out, and whoever still waits is told.

use std::time::Instant;

use super::Core;
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
    pub(super) fn vacate(
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
        while let Some(event) = endpoint.poll_event() {
            if let EndpointEvent::ControlDone { ticket, result } = event {
                // Indices are ids, which were given out as u32.
                self.on_control_done(EndpointId(index as u32), ticket, result);
            }
        }
    }

    /// Everything in flight is settled, so that threads which still wait are told. `left` could not be ended.
    pub(crate) fn give_up(&mut self, reason: &str, left: Vec<(usize, Box<dyn Endpoint>)>) {
        let runs: Vec<_> = self.runs.keys().copied().collect();
        for run in runs {
            self.feed(Event::CancelRun { run });
        }
        for index in 0..self.endpoints.len() {
            self.on_lost(EndpointId(index as u32), reason, &[]);
        }
        for (index, endpoint) in left {
            if let Some(slot) = self.endpoints.get_mut(index) {
                slot.endpoint = endpoint;
            }
        }
        self.report_unconfirmed();
    }

    /// Says at which workers something was to be released and nobody ever said that it was. With the session's process it
    /// goes all the same; of one that could not be ended, `close()` speaks.
    fn report_unconfirmed(&mut self) {
        let releases = std::mem::take(&mut self.pending_releases);
        let undos = std::mem::take(&mut self.pending_undos);
        let mut at = std::collections::BTreeMap::<EndpointId, u64>::new();
        for endpoint in releases
            .iter()
            .map(|buffer| buffer.facts().endpoint)
            .chain(undos.iter().map(|undo| undo.endpoint))
        {
            *at.entry(endpoint).or_default() += 1;
        }
        for (endpoint, unconfirmed) in at {
            let worker = self
                .slot(endpoint)
                .map_or("", |slot| slot.info.name.as_str());
            tracing::warn!(
                worker,
                unconfirmed,
                "uncertain: the release of remote buffers was refused until the end; they go with their session"
            );
        }
    }

    /// Refuses what needs endpoints once `close()` has taken them.
    pub(crate) fn check_open(&self, action: &'static str) -> Result<(), Error> {
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
