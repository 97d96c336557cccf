//! Lanes: what was sent to an endpoint in a chain begins when everything before it there has ended, or is skipped there.

use echelon_runtime::graph::*;

use super::memory::{bytes, conflict, reads, writes};
use super::world::{Flight, Queued, World};

impl World {
    /// Lets an endpoint take chains.
    pub(crate) fn chain_on(&mut self, endpoint: EndpointId) {
        self.chains.insert(endpoint);
        self.scheduler.chain_on(endpoint, true);
    }

    /// Performs `Action::Chain`.
    pub(crate) fn chain(&mut self, id: TaskId, endpoint: EndpointId) {
        let task = self.numbers[&id];
        self.check_place(endpoint);
        assert!(self.chains.contains(&endpoint), "{endpoint} takes no chain");
        let record = &self.records[task];
        // A wave of one member is a single.
        let gang = matches!(record.spec.kind, NodeKind::Gang { .. });
        let fits = record.members() == 1 && !gang && record.eligible(0).contains(endpoint);
        assert!(
            fits && record.chaining.follows && !record.cancelled,
            "{id} may not be chained"
        );
        assert!(
            record.outcome.is_none() && record.inputs.is_none() && record.dispatched.is_empty()
        );
        let told = self.scheduler.conditions(id).expect("it was sent just now");
        let mut conditions: Vec<usize> = told.iter().map(|id| self.numbers[id]).collect();
        conditions.sort_unstable();
        assert_eq!(conditions, self.producers(task), "the conditions of {id}");
        for producer in &conditions {
            let there = |f: &Flight| f.task == *producer && f.endpoint == Some(endpoint);
            assert!(
                self.flights.iter().any(there),
                "{producer} is not on the lane of {id}"
            );
            assert!(self.records[*producer].chaining.leads);
        }
        self.records[task].dispatched.insert(0, endpoint);
        let unmet = false;
        self.flights.push(Flight {
            task,
            member: 0,
            endpoint: Some(endpoint),
            queued: Some(Queued { conditions, unmet }),
        });
        self.chained += 1;
        assert_ne!(
            self.next_on_lane(self.flights.len() - 1),
            self.flights.len() - 1,
            "{id} is alone there"
        );
    }

    /// The unfinished last writers of what a task reads.
    fn producers(&self, task: usize) -> Vec<usize> {
        let mut found: Vec<usize> = bytes(&self.records[task].spec.accesses, reads)
            .iter()
            .filter_map(|byte| {
                (0..task)
                    .rev()
                    .find(|&t| bytes(&self.records[t].spec.accesses, writes).contains(byte))
            })
            .filter(|&writer| self.records[writer].outcome.is_none())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The flight whose report the lane gives next, when one for `position` is asked for.
    pub(crate) fn next_on_lane(&self, position: usize) -> usize {
        let flight = &self.flights[position];
        if flight.queued.is_none() {
            return position;
        }
        self.flights
            .iter()
            .position(|f| f.endpoint == flight.endpoint)
            .unwrap()
    }

    /// A flight left its lane: what was sent behind it knows how, and the next one begins.
    pub(crate) fn advance_lane(&mut self, gone: &Flight, result: MemberResult) {
        if gone.endpoint.is_none() {
            return;
        }
        let single = self.records[gone.task].members() == 1;
        if single && self.records[gone.task].results.len() == 1 {
            // For the lane it has ended; the scheduler hears of it afterwards.
            self.running.remove(&gone.task);
        }
        for flight in self
            .flights
            .iter_mut()
            .filter(|f| f.endpoint == gone.endpoint)
        {
            if let Some(queued) = &mut flight.queued {
                let named = queued.conditions.contains(&gone.task);
                queued.unmet |= named && result != MemberResult::Completed;
                queued.conditions.retain(|c| *c != gone.task);
            }
        }
        let first = self
            .flights
            .iter()
            .position(|f| f.endpoint == gone.endpoint);
        let Some(first) = first else {
            return;
        };
        if let Some(Queued { unmet: false, .. }) = &self.flights[first].queued {
            let task = self.flights[first].task;
            self.check_turn(task);
            self.flights[first].queued = None;
            self.begin(task);
        }
    }

    /// Everything that a chained task waits for has been carried out.
    fn check_turn(&self, task: usize) {
        let accesses = &self.records[task].spec.accesses;
        for (number, other) in self.records[..task].iter().enumerate() {
            let waits = other.outcome.is_none() && conflict(accesses, &other.spec.accesses);
            // What is skipped for good is not carried out any more.
            let over = !other.results.is_empty() || self.scheduler.is_poisoned(other.id);
            assert!(
                !waits || over,
                "{task} begins before {number} was carried out"
            );
        }
    }

    /// The lane skips the flight at `position`.
    pub(crate) fn skip_flight(&mut self, position: usize) {
        let flight = self.flights.remove(position);
        let unmet = flight.queued.as_ref().is_some_and(|queued| queued.unmet);
        assert!(unmet, "it would have begun");
        self.advance_lane(&flight, MemberResult::Lost);
        self.give_back(&flight, false);
    }

    /// Reports that a member was not carried out, or is to be tried again.
    fn give_back(&mut self, flight: &Flight, hold: bool) {
        let Some(endpoint) = flight.endpoint else {
            return;
        };
        let record = &mut self.records[flight.task];
        record.dispatched.remove(&flight.member);
        if hold {
            self.held.push((flight.task, flight.member));
        }
        self.handle(Event::MemberReturned {
            task: self.records[flight.task].id,
            member: flight.member,
            endpoint,
            hold,
        });
    }

    /// A worker dies, and is down or gone for good: as an engine tells it, member by member in the order of the lane. The first
    /// `begun` may have been begun, and are lost or tried again; the others were not, and come back.
    pub(crate) fn lose_lane(&mut self, endpoint: EndpointId, begun: usize, forever: bool) {
        if !self.up.contains_key(&endpoint) {
            return;
        }
        self.pause_endpoint(endpoint);
        for place in 0.. {
            let first = self
                .flights
                .iter()
                .position(|f| f.endpoint == Some(endpoint));
            let Some(first) = first else {
                break;
            };
            let flight = self.flights.remove(first);
            let record = &self.records[flight.task];
            let gang = matches!(record.spec.kind, NodeKind::Gang { .. });
            let poisoned = self.scheduler.is_poisoned(record.id);
            if !gang && (place >= begun || record.chaining.repeats) {
                self.give_back(&flight, place < begun && !poisoned);
                continue;
            }
            self.end(&flight, MemberResult::Lost);
            let event = self.report(&flight, MemberResult::Lost);
            self.reported.push(event);
            self.handle(event);
        }
        if forever {
            self.lose_endpoint(endpoint);
        }
    }
}
