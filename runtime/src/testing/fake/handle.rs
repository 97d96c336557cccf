//! The test's side of a fake: verdicts, what was received, answers and losses at the test's word.

use std::sync::Arc;
use std::time::Instant;

use echelon_wire::callable::Digest;

use super::{done, ControlVerdict, FakeHandle, FakeTask, TaskVerdict, PATIENCE};
use crate::endpoint::TaskFailure;
use crate::endpoint::{ControlRequest, EndpointEvent, Ticket};
use crate::memory::HostMemory;

impl FakeHandle {
    /// What becomes of tasks from now on. The rule must not call this handle.
    pub fn on_task(&self, rule: impl FnMut(&FakeTask) -> TaskVerdict + Send + 'static) {
        self.0.state.lock().on_task = Box::new(rule);
    }

    /// What tasks that end from now on say to have taken.
    pub fn takes(&self, took_ns: u64) {
        self.0.state.lock().took_ns = Some(took_ns);
    }

    /// Keeps tasks in flight until told otherwise.
    pub fn hold_tasks(&self) {
        self.on_task(|_| TaskVerdict::Hold);
    }

    /// What becomes of controls from now on. The rule must not call this handle.
    pub fn on_control(&self, rule: impl FnMut(&ControlRequest) -> ControlVerdict + Send + 'static) {
        self.0.state.lock().on_control = Box::new(rule);
    }

    /// Controls are carried out again.
    pub fn carry_controls(&self) {
        self.on_control(|_| ControlVerdict::Carry);
    }

    /// Says that it takes conditions; to be called before its worker starts. Whether they are met is the test's word.
    pub fn takes_conditions(&self) {
        self.0.state.lock().takes_conditions = true;
    }

    /// Skips a task: something that it names did not complete.
    pub fn skip(&self, ticket: Ticket) {
        let mut state = self.0.state.lock();
        state.held.remove(&ticket);
        state.events.push_back(EndpointEvent::Skipped { ticket });
        self.0.announce(state);
    }

    /// `kill` only makes it refuse work; the loss is reported by [`Self::lose`].
    pub fn dies_slowly(&self) {
        self.0.state.lock().dies_slowly = true;
    }

    /// What the attempt to end it comes to, by the number of the attempt, from 1.
    pub fn on_close(&self, rule: impl Fn(u32) -> Result<(), String> + Send + Sync + 'static) {
        self.0.state.lock().on_close = Arc::new(rule);
    }

    /// How often it was asked to end.
    #[must_use]
    pub fn closes(&self) -> u32 {
        self.0.state.lock().closes
    }

    /// Every task that was accepted, in order.
    #[must_use]
    pub fn submitted(&self) -> Vec<FakeTask> {
        self.0.state.lock().submitted.clone()
    }

    /// Every control that was accepted, in order.
    #[must_use]
    pub fn controls(&self) -> Vec<ControlRequest> {
        self.0.state.lock().controls.clone()
    }

    /// Tasks in flight, oldest first.
    #[must_use]
    pub fn in_flight(&self) -> Vec<FakeTask> {
        self.0.state.lock().held.values().cloned().collect()
    }

    /// True while a callable is prepared or live here.
    #[must_use]
    pub fn knows(&self, digest: &Digest) -> bool {
        let state = self.0.state.lock();
        state.functions.contains(digest) || state.prepared.contains(digest)
    }

    /// Buffers and imports that exist here.
    #[must_use]
    pub fn live_buffers(&self) -> usize {
        self.0.state.lock().buffers.len()
    }

    /// Waits until `done` holds of the accepted tasks and controls.
    ///
    /// # Panics
    /// When it does not come true within [`PATIENCE`].
    pub fn wait_for(
        &self,
        what: &str,
        mut done: impl FnMut(&[FakeTask], &[ControlRequest]) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.state.lock();
        while !done(&state.submitted, &state.controls) {
            let timeout = self.0.changed.wait_until(&mut state, deadline);
            assert!(
                !timeout.timed_out(),
                "{}: {what} did not come",
                self.0.info.name
            );
        }
    }

    /// Waits until so many tasks have been accepted in all.
    ///
    /// # Panics
    /// When they do not come within [`PATIENCE`].
    pub fn wait_tasks(&self, count: usize) {
        self.wait_for(&format!("task {count}"), |tasks, _| tasks.len() >= count);
    }

    /// Completes the oldest task in flight. True when there was one.
    #[must_use]
    pub fn complete_next(&self) -> bool {
        let ticket = self.0.state.lock().held.keys().next().copied();
        ticket.is_some_and(|ticket| {
            self.finish(ticket, None);
            true
        })
    }

    /// Completes a task, whether or not it is in flight here: also after the endpoint was lost, as no endpoint should.
    pub fn complete(&self, ticket: Ticket) {
        self.finish(ticket, None);
    }

    /// Fails a task with this text.
    pub fn fail(&self, ticket: Ticket, message: &str) {
        self.finish(ticket, Some(message.to_owned()));
    }

    fn finish(&self, ticket: Ticket, failure: Option<String>) {
        let mut state = self.0.state.lock();
        state.held.remove(&ticket);
        let event = done(ticket, failure.map(TaskFailure::raised), state.took_ns);
        state.events.push_back(event);
        self.0.announce(state);
    }

    /// Carries out and answers the oldest control that is held. True when there was one.
    #[must_use]
    pub fn answer_held(&self) -> bool {
        let mut state = self.0.state.lock();
        let Some((ticket, request)) = state.held_controls.pop_front() else {
            return false;
        };
        let result = state.carry(&self.0.info.name, request);
        state
            .events
            .push_back(EndpointEvent::ControlDone { ticket, result });
        self.0.announce(state);
        true
    }

    /// The endpoint is lost: whatever is in flight is never answered.
    pub fn lose(&self, reason: &str) {
        let mut state = self.0.state.lock();
        state.lose(reason, Vec::new());
        self.0.announce(state);
    }

    /// The endpoint is lost and had begun with the oldest task in flight only.
    pub fn lose_with_queue(&self, reason: &str) {
        let mut state = self.0.state.lock();
        let unstarted = state.held.keys().skip(1).copied().collect();
        state.lose(reason, unstarted);
        self.0.announce(state);
    }

    /// Waits until the endpoint was lost, or killed.
    ///
    /// # Panics
    /// When that does not come within [`PATIENCE`].
    pub fn wait_until_gone(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.state.lock();
        while state.gone.is_none() {
            let timeout = self.0.changed.wait_until(&mut state, deadline);
            assert!(!timeout.timed_out(), "{} was not lost", self.0.info.name);
        }
    }

    /// The bytes that a task sees as its tensor `index`.
    ///
    /// # Errors
    /// What a session would say: the buffer is gone, the range is outside.
    pub fn bytes(&self, task: &FakeTask, index: usize) -> Result<HostMemory, String> {
        self.0.state.lock().buffers.resolve(&task.tensors[index])
    }
}
