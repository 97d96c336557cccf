//! A driver without transport: it performs the scheduler's actions on byte arrays and objects to every wrong one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use echelon_runtime::graph::*;

use super::memory::{memory, scatter, Memory};

/// Everything the world knows of one submitted task; its number is its place in submit order.
pub(crate) struct Record {
    pub(crate) id: TaskId,
    pub(crate) spec: NodeSpec,
    pub(crate) inputs: Option<Vec<u8>>,
    pub(crate) dispatched: BTreeMap<u32, EndpointId>,
    pub(crate) results: Vec<MemberResult>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) cause: Option<usize>,
    pub(crate) cancelled: bool,
    pub(crate) chaining: Chaining,
}

impl Record {
    pub(crate) fn members(&self) -> u32 {
        match &self.spec.kind {
            NodeKind::Gang { members } => members.len() as u32,
            NodeKind::Waves { members, .. } => *members,
            NodeKind::Single { .. } | NodeKind::Copy => 1,
        }
    }

    pub(crate) fn eligible(&self, member: u32) -> &Eligible {
        match &self.spec.kind {
            NodeKind::Gang { members } => &members[member as usize],
            NodeKind::Waves { eligible, .. } | NodeKind::Single { eligible } => eligible,
            NodeKind::Copy => panic!("a copy was dispatched to an endpoint"),
        }
    }
}

/// A dispatched member, or a copy (`endpoint` is `None`).
#[derive(Clone)]
pub(crate) struct Flight {
    pub(crate) task: usize,
    pub(crate) member: u32,
    pub(crate) endpoint: Option<EndpointId>,
    /// It was sent in a chain and has not begun.
    pub(crate) queued: Option<Queued>,
}

/// What a chained member waits for on its lane.
#[derive(Clone, Default)]
pub(crate) struct Queued {
    pub(crate) conditions: Vec<usize>,
    /// One of them did not complete: the lane will skip it.
    pub(crate) unmet: bool,
}

/// What a reference must be told of, in the order it happened.
#[derive(Clone, Copy)]
pub(crate) enum Mark {
    Submitted(usize),
    RunEnded(RunId),
}

pub(crate) struct World {
    pub(crate) scheduler: Scheduler,
    pub(crate) memory: Memory,
    pub(crate) records: Vec<Record>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) flights: Vec<Flight>,
    /// Members that have run and are not reported yet, and how they will be.
    pub(crate) settling: Vec<(Flight, MemberResult)>,
    /// Reports that were given and may be given again, late.
    pub(crate) reported: Vec<Event>,
    /// Capacity of each endpoint that is up.
    pub(crate) up: BTreeMap<EndpointId, u32>,
    /// Of those, the ones that take nothing for a while.
    pub(crate) down: BTreeSet<EndpointId>,
    /// Members that came back and are held.
    pub(crate) held: Vec<(usize, u32)>,
    pub(crate) late: u64,
    pub(crate) ended: Vec<RunId>,
    /// Started and not ended.
    pub(crate) running: BTreeSet<usize>,
    pub(crate) numbers: HashMap<TaskId, usize>,
    /// Places that an endpoint has beyond its capacity while members are short.
    deeper: u32,
    pub(crate) now_ns: u64,
    /// Endpoints that take chains, and how many tasks were sent so.
    pub(crate) chains: BTreeSet<EndpointId>,
    pub(crate) chained: u64,
    noise: usize,
}

impl World {
    pub(crate) fn new(max_tasks: u32, capacities: &[u32]) -> Self {
        Self::deep(max_tasks, capacities, 0)
    }

    pub(crate) fn deep(max_tasks: u32, capacities: &[u32], deeper: u32) -> Self {
        let mut world = Self {
            scheduler: Scheduler::new(max_tasks),
            memory: memory(),
            records: Vec::new(),
            marks: Vec::new(),
            flights: Vec::new(),
            settling: Vec::new(),
            reported: Vec::new(),
            up: BTreeMap::new(),
            down: BTreeSet::new(),
            held: Vec::new(),
            late: 0,
            ended: Vec::new(),
            running: BTreeSet::new(),
            numbers: HashMap::new(),
            deeper,
            now_ns: 0,
            chains: BTreeSet::new(),
            chained: 0,
            noise: 1 << 20,
        };
        for (id, &capacity) in (0..).zip(capacities) {
            world.add_endpoint(EndpointId(id), capacity);
        }
        world
    }

    pub(crate) fn submit(&mut self, spec: NodeSpec) -> Result<usize, SubmitError> {
        self.submit_chained(spec, Chaining::default())
    }

    pub(crate) fn submit_chained(
        &mut self,
        spec: NodeSpec,
        chaining: Chaining,
    ) -> Result<usize, SubmitError> {
        let mut out = Vec::new();
        self.scheduler.advance(self.now_ns);
        let before = self.scheduler.stats();
        let id = match self
            .scheduler
            .submit_chained(spec.clone(), chaining, &mut out)
        {
            Ok(id) => id,
            Err(error) => {
                assert!(out.is_empty(), "a refused submit asked for {out:?}");
                assert_eq!(
                    Stats {
                        eligible_sets: before.eligible_sets,
                        ..self.scheduler.stats()
                    },
                    before
                );
                self.check();
                return Err(error);
            }
        };
        let number = self.records.len();
        self.marks.push(Mark::Submitted(number));
        assert!(
            self.numbers.insert(id, number).is_none(),
            "{id} was given twice"
        );
        self.records.push(Record {
            id,
            spec,
            inputs: None,
            dispatched: BTreeMap::new(),
            results: Vec::new(),
            outcome: None,
            cause: None,
            cancelled: false,
            chaining,
        });
        self.perform(&out);
        Ok(number)
    }

    pub(crate) fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        self.scheduler.advance(self.now_ns);
        self.scheduler.handle(event, &mut out);
        self.perform(&out);
    }

    pub(crate) fn add_endpoint(&mut self, endpoint: EndpointId, capacity: u32) {
        self.up.insert(endpoint, capacity);
        self.down.remove(&endpoint);
        let depth = self.deepest(endpoint);
        self.handle(Event::EndpointAdded {
            endpoint,
            capacity,
            depth,
        });
    }

    /// Most members that may ever be in flight at an endpoint that is up.
    pub(crate) fn deepest(&self, endpoint: EndpointId) -> u32 {
        self.up[&endpoint] + self.deeper
    }

    /// The endpoint takes nothing until it is added again, whether it was up or lost.
    pub(crate) fn pause_endpoint(&mut self, endpoint: EndpointId) {
        self.up.entry(endpoint).or_insert(1);
        self.down.insert(endpoint);
        self.handle(Event::EndpointDown { endpoint });
    }

    /// A member in flight comes back: as a task that had not started when its worker died.
    pub(crate) fn return_flight(&mut self, position: usize, hold: bool) {
        let flight = self.flights[position].clone();
        let Some(endpoint) = flight.endpoint else {
            return self.report_flight(position, MemberResult::Lost);
        };
        self.flights.remove(position);
        self.advance_lane(&flight, MemberResult::Lost);
        let record = &mut self.records[flight.task];
        if matches!(record.spec.kind, NodeKind::Gang { .. }) {
            self.end(&flight, MemberResult::Lost);
        } else {
            record.dispatched.remove(&flight.member);
            if hold {
                self.held.push((flight.task, flight.member));
            }
        }
        self.handle(Event::MemberReturned {
            task: self.records[flight.task].id,
            member: flight.member,
            endpoint,
            hold,
        });
    }

    /// A held member waits for a place from now on, if its task is still there.
    pub(crate) fn release(&mut self, position: usize) {
        let (task, member) = self.held.remove(position);
        self.handle(Event::MemberReleased {
            task: self.records[task].id,
            member,
        });
    }

    /// Brings back what is down and releases what is held.
    pub(crate) fn mend(&mut self) {
        while let Some(endpoint) = self.down.first().copied() {
            self.add_endpoint(endpoint, self.up[&endpoint]);
        }
        while !self.held.is_empty() {
            self.release(0);
        }
    }

    pub(crate) fn lose_endpoint(&mut self, endpoint: EndpointId) {
        self.up.remove(&endpoint);
        self.down.remove(&endpoint);
        let (lost, kept) = self
            .flights
            .drain(..)
            .partition(|f| f.endpoint == Some(endpoint));
        self.flights = kept;
        let lost: Vec<Flight> = lost;
        for flight in &lost {
            self.end(flight, MemberResult::Lost);
            self.reported
                .push(self.report(flight, MemberResult::Completed));
        }
        self.handle(Event::EndpointLost { endpoint });
    }

    pub(crate) fn cancel(&mut self, run: RunId) {
        let unfinished = self
            .records
            .iter_mut()
            .filter(|r| r.spec.run == run && r.outcome.is_none());
        unfinished.for_each(|record| record.cancelled = true);
        self.handle(Event::CancelRun { run });
        for record in self.records.iter().filter(|r| r.spec.run == run) {
            assert!(
                record.outcome.is_some()
                    || record.inputs.is_some()
                    || !record.dispatched.is_empty(),
                "{} was not cancelled at once",
                record.id
            );
        }
    }

    pub(crate) fn end_run(&mut self, run: RunId) {
        self.marks.push(Mark::RunEnded(run));
        self.ended.push(run);
        self.handle(Event::RunEnded { run });
        assert!(self.scheduler.poisoned_ranges(run).is_empty());
    }

    /// Reports the flight at `position` with `result`.
    pub(crate) fn report_flight(&mut self, position: usize, result: MemberResult) {
        let position = self.next_on_lane(position);
        if self.flights[position].queued.is_some() {
            return self.skip_flight(position);
        }
        let flight = self.flights.remove(position);
        self.end(&flight, result);
        self.advance_lane(&flight, result);
        let event = self.report(&flight, result);
        self.reported.push(event);
        self.handle(event);
    }

    /// Gives a report a second time; it must change nothing but a counter.
    pub(crate) fn report_again(&mut self, event: Event) {
        let before = self.scheduler.stats();
        self.late += 1;
        self.handle(event);
        let late_reports = before.late_reports + 1;
        assert_eq!(
            self.scheduler.stats(),
            Stats {
                late_reports,
                ..before
            }
        );
    }

    /// Completes what is in flight, always at the position that `pick` chooses, until nothing is.
    pub(crate) fn drain(&mut self, mut pick: impl FnMut(usize) -> usize) {
        self.mend();
        while !(self.flights.is_empty() && self.settling.is_empty()) {
            let position = pick(self.flights.len() + self.settling.len());
            match position.checked_sub(self.flights.len()) {
                Some(position) => self.settle(position),
                None => self.report_flight(position, MemberResult::Completed),
            }
        }
        assert_eq!(
            self.scheduler.live(),
            0,
            "tasks are left and nothing is in flight"
        );
    }

    pub(crate) fn outcome(&self, task: usize) -> Option<Outcome> {
        self.records[task].outcome
    }

    pub(crate) fn check(&self) {
        self.scheduler.check_invariants().unwrap();
    }

    pub(crate) fn report(&self, flight: &Flight, result: MemberResult) -> Event {
        let (task, member) = (self.records[flight.task].id, flight.member);
        match flight.endpoint {
            Some(endpoint) => Event::MemberDone {
                task,
                member,
                endpoint,
                result,
            },
            None => Event::CopyDone { task, ok: result },
        }
    }

    /// The memory effect of a member's end: its results, or rubbish.
    pub(crate) fn end(&mut self, flight: &Flight, result: MemberResult) {
        let record = &mut self.records[flight.task];
        record.results.push(result);
        if flight.queued.is_some() {
            return;
        }
        let inputs = record
            .inputs
            .clone()
            .expect("a member ends after its start");
        let accesses = record.spec.accesses.clone();
        self.check_inputs(&accesses, &inputs);
        if result == MemberResult::Completed {
            scatter(&mut self.memory, &accesses, &inputs, flight.task);
        } else {
            self.noise += 1;
            scatter(&mut self.memory, &accesses, &[], self.noise);
        }
    }
}
