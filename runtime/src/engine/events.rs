//! What endpoints report, fed to the scheduler.

use super::record::{ControlCell, EndpointSlot, Flight, Sent, Work};
use super::story::StepKind;
use super::Core;
use crate::buffer::RemoteBuffer;
use crate::endpoint::{ControlFailure, ControlReply, EndpointEvent, TaskReport, Ticket};
use crate::error::FailureKind;
use crate::failpoint::hit_often;
use crate::graph::{EndpointId, Event, MemberResult, TaskId};
use crate::trace::TraceEvent;

/// What an endpoint owes when it ends: a member and whether it took it, or something else.
enum Owed {
    Member(Sent, bool),
    Other(Flight),
}

impl Core {
    /// Takes every event that is there. True when there was one.
    pub(crate) fn pump(&mut self) -> bool {
        let before = std::mem::replace(&mut self.torn, true);
        // Compiled in for development only.
        let _armed = hit_often("engine.pump");
        let mut progressed = false;
        self.tick();
        progressed |= self.fire_timers();
        for index in 0..self.endpoints.len() {
            let slot = &self.endpoints[index];
            if slot.lost.is_some() || slot.endpoint.is_quiet() {
                continue;
            }
            // The index came from the length above; ids were given out as u32.
            progressed |= self.take_events(EndpointId(index as u32));
        }
        self.torn = before;
        progressed
    }

    fn take_events(&mut self, id: EndpointId) -> bool {
        let mut progressed = false;
        while let Some(event) = self.next_event(id) {
            progressed = true;
            self.on_event(id, event);
        }
        progressed
    }

    /// Takes everything that an endpoint has reported until now, also what nobody has read yet.
    pub(super) fn catch_up(&mut self, id: EndpointId) {
        if let Some(slot) = self.endpoints.at_work(id) {
            slot.endpoint.read();
        }
        self.take_events(id);
    }

    fn next_event(&mut self, id: EndpointId) -> Option<EndpointEvent> {
        self.endpoints.at_work(id)?.endpoint.poll_event()
    }

    fn on_event(&mut self, endpoint: EndpointId, event: EndpointEvent) {
        match event {
            EndpointEvent::Done { ticket, report } => self.on_done(endpoint, ticket, report),
            EndpointEvent::Skipped { ticket } => self.on_skipped(endpoint, ticket),
            EndpointEvent::ControlDone { ticket, result } => {
                self.on_control_done(endpoint, ticket, result);
            }
            EndpointEvent::Lost { reason, unstarted } => {
                if let Some(slot) = self.slot(endpoint) {
                    tracing::warn!(worker = %slot.info.name, reason, "worker lost");
                }
                self.on_lost(endpoint, &reason, &unstarted);
            }
        }
    }

    fn on_done(&mut self, endpoint: EndpointId, ticket: Ticket, report: TaskReport) {
        // An endpoint that answers for another settles nothing.
        let Some(Sent { task, member, .. }) = self.leave_queue(endpoint, ticket) else {
            tracing::warn!(
                ticket = ticket.0,
                "a completion that nobody waits for was dropped"
            );
            return;
        };
        if let (Some(start_ns), Some(end_ns)) = (report.start_ns, report.end_ns) {
            let took_ns = end_ns.saturating_sub(start_ns);
            self.scheduler.ran(endpoint, took_ns);
            self.learn_pace(task, took_ns);
        }
        let lost = report.failure.as_ref().filter(|f| f.infrastructure);
        let lost = lost.map(|failure| failure.message.clone());
        let result = match self.answer_of(task, member, endpoint, report) {
            Ok(result) => result,
            Err(report) => return self.copy_back_later((task, member), endpoint, report),
        };
        if let Some(reason) = lost {
            self.fence_off(task, member, false);
            return self.lose_member((task, member), endpoint, &reason);
        }
        self.feed(Event::MemberDone {
            task,
            member,
            endpoint,
            result,
        });
    }

    /// A member has left an endpoint's queue; the time of the next one may begin.
    pub(super) fn leave_queue(&mut self, endpoint: EndpointId, ticket: Ticket) -> Option<Sent> {
        let slot = self.endpoints.at_work(endpoint)?;
        let first = slot.queue.front().map(|sent| sent.ticket);
        let sent = slot.take_member(ticket);
        if first == Some(ticket) {
            self.watch_time(endpoint);
        }
        sent
    }

    /// A member was answered: what it wrote is copied back, before anything that depends on it may start. The report comes back when
    /// that is too much to be done with the lock held.
    fn answer_of(
        &mut self,
        task: TaskId,
        member: u32,
        endpoint: EndpointId,
        report: TaskReport,
    ) -> Result<MemberResult, TaskReport> {
        let mut pid = 0;
        if let Some(slot) = self.endpoints.at_work(endpoint) {
            pid = slot.info.pid;
            slot.served += 1;
            if let Some(succession) = &mut slot.succession {
                succession.proved();
            }
        }
        let mut copied = Ok(());
        let record = self.records.get(&task);
        let part = record.and_then(|record| Some((record.run, record.member(member)?)));
        let written = part.filter(|(_, part)| report.failure.is_none() && part.writes_back());
        if let Some((run, part)) = written {
            if self.runs.get_mut(run).is_none_or(|run| run.interrupted) {
                // The caller has its arrays back: they stay as they are, and the task has failed for whoever reads them.
                let what = "the run was interrupted before its results were copied back";
                copied = Err(what.to_owned());
            } else if part.writes_much() {
                return Err(report);
            } else {
                copied = part.copy_back();
            }
        }
        Ok(self.settle_member((task, member), (endpoint, pid), report, copied))
    }

    /// Records how a member ended. `copied`: whether what it wrote is where its readers look.
    pub(super) fn settle_member(
        &mut self,
        (task, member): (TaskId, u32),
        (endpoint, pid): (EndpointId, u32),
        report: TaskReport,
        copied: Result<(), String>,
    ) -> MemberResult {
        let now = self.now_ns;
        let Some(slot) = self.endpoints.get(endpoint.0 as usize) else {
            return MemberResult::Lost;
        };
        let Some(record) = self.records.get_mut(&task) else {
            return MemberResult::Lost;
        };
        let mut run = self.runs.get_mut(record.run);
        let mut result = MemberResult::Completed;
        if report.failure.as_ref().is_some_and(|f| f.infrastructure) {
            result = MemberResult::Lost;
        } else if let Some(failure) = report.failure {
            record.fail(FailureKind::Failed, Some(slot), failure.message);
            result = MemberResult::Failed;
        } else if let Err(message) = copied {
            record.fail(FailureKind::Failed, Some(slot), message);
            result = MemberResult::Failed;
        }
        if let Some(start_ns) = report.start_ns {
            let began = StepKind::Began(endpoint);
            record.steps.note_at(start_ns, member, began);
        }
        record.steps.note_at(
            report.end_ns.unwrap_or(now),
            member,
            StepKind::Ended(endpoint),
        );
        if let Some(run) = &mut run {
            run.count_at(endpoint);
            let outcome = match result {
                MemberResult::Completed => "completed",
                MemberResult::Failed => "failed",
                MemberResult::Lost => "lost",
            };
            let mut event = member_event(record, slot, member, outcome, now);
            if result == MemberResult::Completed && record.is_alone() {
                // Nobody tells the story of a task that completed.
                event.deps = std::mem::take(&mut record.deps).into_vec();
            } else {
                event.deps = record.deps.to_vec();
            }
            event.pid = pid;
            event.start_ns = report.start_ns.unwrap_or(event.ready_ns);
            event.end_ns = report.end_ns.unwrap_or(now);
            self.trace.push(&event);
            run.push_event(event);
        }
        result
    }

    pub(super) fn on_control_done(
        &mut self,
        endpoint: EndpointId,
        ticket: Ticket,
        result: Result<ControlReply, ControlFailure>,
    ) {
        let flight = self.flights.get(&ticket);
        let expected = flight.is_some_and(|flight| flight.endpoint() == endpoint);
        let flight = expected.then(|| self.flights.remove(&ticket)).flatten();
        match flight {
            Some(Flight::Control { cell, pin, .. }) => self.answer(endpoint, cell, pin, result),
            Some(Flight::Registration { key, cell, .. }) => {
                self.pair_answered(endpoint, &key, ticket, &result);
                *cell.lock() = Some(result);
            }
            Some(Flight::Copy { task, endpoint }) => {
                if let Some(event) = self.copy_step_done(task, endpoint, result) {
                    self.feed(event);
                }
                self.resume_copies(endpoint);
            }
            Some(Flight::Release { buffer, cell, .. }) => self.release_done(&buffer, cell, result),
            Some(Flight::Undo(undo)) => self.undo_done(undo, &result),
            Some(Flight::Install { digest, .. }) => {
                self.install_done(endpoint, ticket, digest, result);
            }
            Some(Flight::Forget { .. }) => {}
            Some(Flight::Fence { task, member, .. }) => {
                self.fenced(endpoint, (task, member), &result)
            }
            None => {
                tracing::warn!(
                    ticket = ticket.0,
                    "an answer that nobody waits for was dropped"
                );
            }
        }
    }

    /// Gives the answer to the thread that asked; what was made for a thread that has gone away is undone.
    fn answer(
        &mut self,
        endpoint: EndpointId,
        cell: ControlCell,
        pin: Option<RemoteBuffer>,
        result: Result<ControlReply, ControlFailure>,
    ) {
        if let Some(slot) = self.slot_mut(endpoint) {
            slot.controls_in_flight = slot.controls_in_flight.saturating_sub(1);
        }
        // A thread gives its cell up under this lock only, see `await_control`.
        if std::sync::Arc::strong_count(&cell) == 1 {
            // An answer comes from the session that was asked: what was in flight at one that ended is settled already.
            let session = self.slot(endpoint).and_then(|slot| slot.info.session);
            self.undo_abandoned(endpoint, session, pin, result);
            return;
        }
        *cell.lock() = Some(result);
        self.unpin_if(pin);
    }

    pub(super) fn unpin_if(&mut self, pin: Option<RemoteBuffer>) {
        if let Some(buffer) = pin {
            self.unpin(buffer);
        }
    }

    /// The one place where an endpoint ends: everything in flight there is settled, exactly once. What it had not begun
    /// (`unstarted`) waits again; so does what can run nowhere else, if a fresh endpoint follows.
    pub(crate) fn on_lost(&mut self, endpoint: EndpointId, reason: &str, unstarted: &[Ticket]) {
        let Some(slot) = self.slot_mut(endpoint).filter(|slot| slot.lost.is_none()) else {
            return;
        };
        // A position that is filled again keeps what belongs there.
        if slot.succession.is_some() {
            slot.pairs.pass_on();
        } else {
            slot.pairs.clear();
        }
        slot.copies_in_flight = 0;
        let flights = self.take_flights(endpoint);
        let why = self.give_up_position(endpoint, reason);
        if let Some(why) = &why {
            self.close_position(endpoint, why);
        }
        for (_, flight) in &flights {
            if let Owed::Member(sent, _) = flight {
                self.fence_off(sent.task, sent.member, true);
            }
        }
        let mut copies = Vec::new();
        for (ticket, flight) in flights {
            match flight {
                Owed::Member(Sent { task, member, .. }, taken) => {
                    // What it reads did not complete: it ends as skipped, begun or not.
                    let begun =
                        taken && !unstarted.contains(&ticket) && !self.scheduler.is_poisoned(task);
                    self.settle_lost_member(
                        (task, member),
                        endpoint,
                        begun.then_some(reason),
                        !taken,
                    );
                }
                Owed::Other(Flight::Copy { task, .. }) => {
                    self.mark_lost(task, endpoint, reason);
                    copies.push(task);
                }
                Owed::Other(flight) => self.settle_lost_control(endpoint, flight, reason),
            }
        }
        if why.is_some() {
            self.feed(Event::EndpointLost { endpoint });
        }
        for task in copies {
            self.feed(Event::CopyDone {
                task,
                ok: MemberResult::Lost,
            });
        }
        self.resume_copies(endpoint);
    }

    /// Takes everything that an endpoint owes, in the order in which it was sent.
    fn take_flights(&mut self, endpoint: EndpointId) -> Vec<(Ticket, Owed)> {
        let mut owed = Vec::new();
        if let Some(slot) = self.slot_mut(endpoint) {
            slot.unhurried.clear();
            let member = |sent: Sent, taken| (sent.ticket, Owed::Member(sent, taken));
            owed.extend(slot.queue.drain(..).map(|sent| member(sent, true)));
            owed.extend(slot.untaken.drain(..).map(|sent| member(sent, false)));
        }
        let flights = self.flights.iter();
        let others = flights.filter(|(_, flight)| flight.endpoint() == endpoint);
        let others: Vec<Ticket> = others.map(|(ticket, _)| *ticket).collect();
        for ticket in others {
            let flight = self.flights.remove(&ticket);
            owed.extend(flight.map(|flight| (ticket, Owed::Other(flight))));
        }
        owed.sort_unstable_by_key(|(ticket, _)| *ticket);
        owed
    }

    /// Nothing follows at this position: nothing is sent there any more.
    fn close_position(&mut self, endpoint: EndpointId, why: &str) {
        let Some(slot) = self.slot_mut(endpoint) else {
            return;
        };
        slot.lost = Some(why.to_owned());
        self.last_loss = Some(format!(
            "{}: {why}",
            self.endpoints[endpoint.0 as usize].info.name
        ));
        // While what was there is settled, nothing new goes there.
        self.feed(Event::EndpointDown { endpoint });
    }

    fn settle_lost_control(&mut self, endpoint: EndpointId, flight: Flight, reason: &str) {
        let lost = || Err(ControlFailure::Lost(reason.to_owned()));
        match flight {
            Flight::Control { cell, pin, .. } => self.answer(endpoint, cell, pin, lost()),
            Flight::Registration { cell, .. } => *cell.lock() = Some(lost()),
            Flight::Release { buffer, cell, .. } => self.release_done(&buffer, cell, lost()),
            Flight::Undo(undo) => self.unpin_if(undo.pin),
            Flight::Fence { task, member, .. } => self.fenced(endpoint, (task, member), &lost()),
            Flight::Copy { .. } | Flight::Install { .. } | Flight::Forget { .. } => {}
        }
    }

    /// A member was at an endpoint that ended. `reason` when it had been begun there: then it is lost, unless another attempt is
    /// to be made.
    fn settle_lost_member(
        &mut self,
        (task, member): (TaskId, u32),
        endpoint: EndpointId,
        reason: Option<&str>,
        unsent: bool,
    ) {
        if let Some(reason) = reason {
            self.trace_lost(task, member, endpoint);
            return self.lose_member((task, member), endpoint, reason);
        }
        if !unsent {
            return self.not_begun(task, member, endpoint);
        }
        if let Some(record) = self.records.get_mut(&task) {
            record.steps.note(member, StepKind::Returned(endpoint));
        }
        self.feed(Event::MemberReturned {
            task,
            member,
            endpoint,
            hold: false,
        });
    }

    /// What a member did is not known, or it could not be done where it was: it is lost, unless another attempt is to be made.
    fn lose_member(&mut self, (task, member): (TaskId, u32), endpoint: EndpointId, reason: &str) {
        if self.try_again(task, member, endpoint, reason) {
            return self.feed(Event::MemberReturned {
                task,
                member,
                endpoint,
                hold: true,
            });
        }
        self.mark_lost(task, endpoint, reason);
        self.end_lost(task, member, endpoint);
    }

    /// The timeline shows an attempt that was lost from its dispatch to the loss.
    fn trace_lost(&mut self, task: TaskId, member: u32, endpoint: EndpointId) {
        let (Some(record), Some(slot)) = (self.records.get(&task), self.slot(endpoint)) else {
            return;
        };
        let mut event = member_event(record, slot, member, "lost", self.now_ns);
        event.deps = record.deps.to_vec();
        self.trace.push(&event);
        if let Some(run) = self.runs.get_mut(record.run) {
            run.push_event(event);
        }
    }

    fn mark_lost(&mut self, task: TaskId, endpoint: EndpointId, reason: &str) {
        let slot = self.endpoints.get(endpoint.0 as usize);
        if let Some(record) = self.records.get_mut(&task) {
            record.fail(FailureKind::EndpointLost, slot, reason.to_owned());
        }
    }
}

/// What the timeline shows of a member whose worker says nothing of times: all from the dispatch until now.
fn member_event(
    record: &super::TaskRecord,
    slot: &EndpointSlot,
    member: u32,
    outcome: &'static str,
    now: u64,
) -> TraceEvent {
    let part = match &record.work {
        Work::Call { members, .. } => members.get(member as usize),
        Work::Copy(_) => None,
    };
    let dispatched_ns = part.map_or(now, |part| part.dispatched_ns);
    TraceEvent {
        name: record.work.name(),
        worker: std::sync::Arc::clone(&slot.traced_as),
        pid: slot.info.pid,
        task: record.sequence,
        member,
        attempt: part.map_or(1, |part| part.attempts),
        submit_ns: record.submit_ns,
        ready_ns: dispatched_ns,
        start_ns: dispatched_ns,
        end_ns: now,
        deps: Vec::new(),
        outcome: outcome.into(),
    }
}
