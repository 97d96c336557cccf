//! Drives one endpoint by hand, as the engine would.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::RegistryTarget;

use super::Fixture;
use crate::callable::Callable;
use crate::endpoint::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, EndpointEvent, OutboundTask,
    OutboundTensor, RegisterStep, SubmitError, TaskReport, Ticket,
};
use crate::mailbox::Bell;
use crate::testing::fake::PATIENCE;

/// An endpoint, its bell, and what is owed by it.
pub(super) struct Probe {
    pub(super) endpoint: Box<dyn Endpoint>,
    pub(super) bell: Arc<Bell>,
    next: u64,
    /// Tickets without their event.
    pub(super) open: HashSet<Ticket>,
}

impl Probe {
    pub(super) fn new(fixture: &dyn Fixture) -> Self {
        let (endpoint, bell) = fixture.start();
        Self {
            endpoint,
            bell,
            next: 0,
            open: HashSet::new(),
        }
    }

    /// A probe whose endpoint has the callables.
    pub(super) fn with(fixture: &dyn Fixture, callables: &[Callable]) -> Self {
        let mut probe = Self::new(fixture);
        for callable in callables {
            probe.install(callable);
        }
        probe
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    /// The next event, awaited. Every ticket must be owed, and is owed no longer.
    pub(super) fn event(&mut self) -> EndpointEvent {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.bell.value();
            if let Some(event) = self.endpoint.poll_event() {
                match &event {
                    EndpointEvent::Done { ticket, .. }
                    | EndpointEvent::Skipped { ticket }
                    | EndpointEvent::ControlDone { ticket, .. } => {
                        assert!(
                            self.open.remove(ticket),
                            "{ticket:?} was not owed: {event:?}"
                        );
                    }
                    EndpointEvent::Lost { .. } => self.open.clear(),
                }
                return event;
            }
            assert!(
                self.bell.wait(seen, deadline),
                "nothing came, and owed are {:?}",
                self.open
            );
        }
    }

    pub(super) fn submit(&mut self, callable: &Callable) -> Result<Ticket, SubmitError> {
        self.submit_with(callable, &[])
    }

    pub(super) fn submit_with(
        &mut self,
        callable: &Callable,
        tensors: &[OutboundTensor],
    ) -> Result<Ticket, SubmitError> {
        self.submit_whole(callable, tensors, &[])
    }

    /// Submits a task that is to be skipped unless those before it completed.
    pub(super) fn submit_after(&mut self, callable: &Callable, after: &[Ticket]) -> Ticket {
        let submitted = self.submit_whole(callable, &[], after);
        let Ok(ticket) = submitted else {
            panic!("{submitted:?}")
        };
        ticket
    }

    fn submit_whole(
        &mut self,
        callable: &Callable,
        tensors: &[OutboundTensor],
        after: &[Ticket],
    ) -> Result<Ticket, SubmitError> {
        let ticket = self.ticket();
        let task = OutboundTask {
            callable,
            config: &CallConfig::default(),
            tensors,
            scalars: &[],
            after,
        };
        self.endpoint.submit(ticket, &task)?;
        self.open.insert(ticket);
        Ok(ticket)
    }

    /// How a task ended, as the next event.
    pub(super) fn report(&mut self, ticket: Ticket) -> TaskReport {
        match self.event() {
            EndpointEvent::Done { ticket: of, report } if of == ticket => report,
            other => panic!("{other:?} instead of the end of {ticket:?}"),
        }
    }

    /// Runs a task to its end. A refusal counts as a failure.
    pub(super) fn run(&mut self, callable: &Callable) -> Result<(), String> {
        match self.submit(callable) {
            Ok(ticket) => match self.report(ticket).failure {
                None => Ok(()),
                Some(failure) => Err(failure.message),
            },
            Err(SubmitError::Refused(message)) => Err(message),
            Err(SubmitError::Gone(gone)) => panic!("{gone}"),
        }
    }

    pub(super) fn ask(&mut self, request: ControlRequest) -> Ticket {
        let ticket = self.ticket();
        match self.endpoint.control(ticket, request) {
            Ok(()) => self.open.insert(ticket),
            Err(gone) => panic!("{gone}"),
        };
        ticket
    }

    /// A control and its answer, which is the next event.
    pub(super) fn control(
        &mut self,
        request: ControlRequest,
    ) -> Result<ControlReply, ControlFailure> {
        let ticket = self.ask(request);
        match self.event() {
            EndpointEvent::ControlDone { ticket: of, result } if of == ticket => result,
            other => panic!("{other:?} instead of the answer to {ticket:?}"),
        }
    }

    pub(super) fn step(
        &mut self,
        callable: &Callable,
        step: RegisterStep,
    ) -> Result<ControlReply, ControlFailure> {
        self.control(register(callable, step))
    }

    pub(super) fn install(&mut self, callable: &Callable) {
        for step in [RegisterStep::Prepare, RegisterStep::Commit] {
            let answer = self.step(callable, step);
            assert!(
                matches!(answer, Ok(ControlReply::Done)),
                "{step:?} of {}: {answer:?}",
                callable.name
            );
        }
    }

    /// Asks for the removal.
    pub(super) fn remove(&mut self, callable: &Callable) -> Result<ControlReply, ControlFailure> {
        self.control(ControlRequest::Unregister {
            digest: callable.digest,
            kind: callable.kind,
            registry: RegistryTarget::RemoteTaskDispatcher,
        })
    }

    /// Nothing is owed, and after a round trip nothing came that was not.
    pub(super) fn settled(&mut self, callable: &Callable) {
        assert!(self.open.is_empty(), "owed are {:?}", self.open);
        let answer = self.step(callable, RegisterStep::Abort);
        assert!(answer.is_ok(), "{answer:?}");
        self.silent();
    }

    /// No event is there.
    pub(super) fn silent(&mut self) {
        let event = self.endpoint.poll_event();
        assert!(event.is_none(), "unasked: {event:?}");
    }

    /// Takes events until the loss, which must be the last.
    pub(super) fn loss(&mut self) -> String {
        loop {
            if let EndpointEvent::Lost { reason, .. } = self.event() {
                self.silent();
                return reason;
            }
        }
    }

    /// It takes nothing any more.
    pub(super) fn refuses_all(&mut self, callable: &Callable) {
        let submitted = self.submit(callable);
        assert!(
            matches!(submitted, Err(SubmitError::Gone(_))),
            "{submitted:?}"
        );
        let ticket = self.ticket();
        let name = self.endpoint.info().name;
        match self
            .endpoint
            .control(ticket, register(callable, RegisterStep::Prepare))
        {
            Ok(()) => panic!("a control was taken"),
            Err(gone) => {
                assert_eq!(gone.name, name);
                assert!(!gone.reason.is_empty());
            }
        }
        self.silent();
    }
}

pub(super) fn register(callable: &Callable, step: RegisterStep) -> ControlRequest {
    ControlRequest::Register {
        step,
        callable: callable.clone(),
        registry: RegistryTarget::RemoteTaskDispatcher,
    }
}
