//! A driver without transport: it performs the scheduler's actions on byte arrays and objects to every wrong one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use echelon_runtime::graph::*;

/// Bytes in each space of the world.
pub(crate) const SPACE_BYTES: usize = 24;

/// The spaces of the world; the last two differ in the generation alone.
pub(crate) const SPACES: [Space; 4] = [
    Space::Host,
    Space::Region(1),
    Space::Remote {
        session: 1,
        buffer: 1,
        generation: 0,
    },
    Space::Remote {
        session: 1,
        buffer: 1,
        generation: 1,
    },
];

pub(crate) type Memory = BTreeMap<Space, [u8; SPACE_BYTES]>;

pub(crate) fn memory() -> Memory {
    SPACES
        .into_iter()
        .zip(1..)
        .map(|(space, fill)| (space, [fill; SPACE_BYTES]))
        .collect()
}

/// The bytes of all accesses of a kind, in order of space and offset, each once.
pub(crate) fn bytes(accesses: &[Access], of: impl Fn(AccessMode) -> bool) -> Vec<(Space, usize)> {
    let chosen = accesses.iter().filter(|a| of(a.mode));
    let mut bytes: Vec<_> = chosen
        .flat_map(|a| (a.start..a.end).map(|i| (a.space, i as usize)))
        .collect();
    bytes.sort_unstable();
    bytes.dedup();
    bytes
}

pub(crate) fn conflict(a: &[Access], b: &[Access]) -> bool {
    a.iter().any(|x| {
        let touches = |y: &&Access| x.space == y.space && x.start.max(y.start) < x.end.min(y.end);
        b.iter()
            .filter(touches)
            .any(|y| x.mode.writes() || y.mode.writes())
    })
}

pub(crate) fn gather(memory: &Memory, accesses: &[Access]) -> Vec<u8> {
    bytes(accesses, AccessMode::reads)
        .iter()
        .map(|(space, i)| memory[space][*i])
        .collect()
}

/// What a task writes: every byte depends on all inputs, on the task and on the position.
pub(crate) fn scatter(memory: &mut Memory, accesses: &[Access], inputs: &[u8], salt: usize) {
    let mut state = inputs.iter().fold(salt as u64 + 1, |s, &b| {
        (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    for (space, i) in bytes(accesses, AccessMode::writes) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        memory.get_mut(&space).unwrap()[i] = (state >> 33) as u8;
    }
}

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
}

impl Record {
    fn members(&self) -> u32 {
        match &self.spec.kind {
            NodeKind::Gang { members } => members.len() as u32,
            NodeKind::Waves { members, .. } => *members,
            NodeKind::Single { .. } | NodeKind::Copy => 1,
        }
    }

    fn eligible(&self, member: u32) -> &Eligible {
        match &self.spec.kind {
            NodeKind::Gang { members } => &members[member as usize],
            NodeKind::Waves { eligible, .. } | NodeKind::Single { eligible } => eligible,
            NodeKind::Copy => panic!("a copy was dispatched to an endpoint"),
        }
    }
}

/// A dispatched member, or a copy (`endpoint` is `None`).
#[derive(Clone, Copy)]
pub(crate) struct Flight {
    pub(crate) task: usize,
    pub(crate) member: u32,
    pub(crate) endpoint: Option<EndpointId>,
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
    /// Reports that were given and may be given again, late.
    pub(crate) reported: Vec<Event>,
    /// Capacity of each endpoint that is up.
    pub(crate) up: BTreeMap<EndpointId, u32>,
    pub(crate) late: u64,
    pub(crate) ended: Vec<RunId>,
    /// Started and not ended.
    running: BTreeSet<usize>,
    numbers: HashMap<TaskId, usize>,
    noise: usize,
}

impl World {
    pub(crate) fn new(max_tasks: u32, capacities: &[u32]) -> Self {
        let mut world = Self {
            scheduler: Scheduler::new(max_tasks),
            memory: memory(),
            records: Vec::new(),
            marks: Vec::new(),
            flights: Vec::new(),
            reported: Vec::new(),
            up: BTreeMap::new(),
            late: 0,
            ended: Vec::new(),
            running: BTreeSet::new(),
            numbers: HashMap::new(),
            noise: 1 << 20,
        };
        for (id, &capacity) in (0..).zip(capacities) {
            world.add_endpoint(EndpointId(id), capacity);
        }
        world
    }

    pub(crate) fn submit(&mut self, spec: NodeSpec) -> Result<usize, SubmitError> {
        let mut out = Vec::new();
        let before = self.scheduler.stats();
        let id = match self.scheduler.submit(spec.clone(), &mut out) {
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
        });
        self.perform(&out);
        Ok(number)
    }

    pub(crate) fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        self.scheduler.handle(event, &mut out);
        self.perform(&out);
    }

    pub(crate) fn add_endpoint(&mut self, endpoint: EndpointId, capacity: u32) {
        self.up.insert(endpoint, capacity);
        self.handle(Event::EndpointAdded { endpoint, capacity });
    }

    pub(crate) fn lose_endpoint(&mut self, endpoint: EndpointId) {
        self.up.remove(&endpoint);
        let (lost, kept) = self
            .flights
            .drain(..)
            .partition(|f| f.endpoint == Some(endpoint));
        self.flights = kept;
        for flight in lost {
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
                record.outcome.is_some() || record.inputs.is_some(),
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
        let flight = self.flights.remove(position);
        self.end(flight, result);
        let event = self.report(flight, result);
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
        while !self.flights.is_empty() {
            let position = pick(self.flights.len());
            self.report_flight(position, MemberResult::Completed);
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

    fn report(&self, flight: Flight, result: MemberResult) -> Event {
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
    fn end(&mut self, flight: Flight, result: MemberResult) {
        let record = &mut self.records[flight.task];
        record.results.push(result);
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

    /// Nobody may have changed what a running task reads and does not write itself.
    fn check_inputs(&self, accesses: &[Access], inputs: &[u8]) {
        let written = bytes(accesses, AccessMode::writes);
        for (byte, &value) in bytes(accesses, AccessMode::reads).iter().zip(inputs) {
            if written.binary_search(byte).is_err() {
                assert_eq!(
                    self.memory[&byte.0][byte.1], value,
                    "an input changed while its reader ran"
                );
            }
        }
    }

    fn perform(&mut self, actions: &[Action]) {
        let mut gangs: BTreeMap<usize, u32> = BTreeMap::new();
        for &action in actions {
            match action {
                Action::Dispatch {
                    task,
                    member,
                    endpoint,
                } => {
                    let number = self.dispatch(task, member, endpoint);
                    if matches!(self.records[number].spec.kind, NodeKind::Gang { .. }) {
                        *gangs.entry(number).or_default() += 1;
                    }
                }
                Action::StartCopy { task } => {
                    let task = self.numbers[&task];
                    assert_eq!(self.records[task].spec.kind, NodeKind::Copy);
                    self.begin(task);
                    self.flights.push(Flight {
                        task,
                        member: 0,
                        endpoint: None,
                    });
                }
                Action::Finished {
                    task,
                    run,
                    outcome,
                    cause,
                } => self.finished(task, run, outcome, cause),
            }
        }
        for (task, members) in gangs {
            assert_eq!(
                members,
                self.records[task].members(),
                "a gang was dispatched in parts"
            );
        }
        self.check();
    }

    fn dispatch(&mut self, id: TaskId, member: u32, endpoint: EndpointId) -> usize {
        let task = self.numbers[&id];
        let capacity = *self
            .up
            .get(&endpoint)
            .expect("a member was dispatched to a lost endpoint");
        let busy = self
            .flights
            .iter()
            .filter(|f| f.endpoint == Some(endpoint))
            .count();
        assert!(busy < capacity as usize, "{endpoint} has no room");
        let record = &self.records[task];
        assert!(member < record.members() && record.eligible(member).contains(endpoint));
        assert!(
            !record.dispatched.contains_key(&member),
            "member {member} of {id} was dispatched twice"
        );
        assert!(
            record.results.iter().all(|r| *r == MemberResult::Completed),
            "dispatched after a failure"
        );
        let gang = matches!(record.spec.kind, NodeKind::Gang { .. });
        assert!(
            !gang || record.dispatched.values().all(|e| *e != endpoint),
            "a gang shares an endpoint"
        );
        if record.inputs.is_none() {
            self.begin(task);
        }
        self.records[task].dispatched.insert(member, endpoint);
        self.flights.push(Flight {
            task,
            member,
            endpoint: Some(endpoint),
        });
        task
    }

    /// First start of a task: takes its inputs and makes what it will overwrite unreadable.
    fn begin(&mut self, task: usize) {
        let accesses = self.records[task].spec.accesses.clone();
        for other in &self.running {
            let other_accesses = &self.records[*other].spec.accesses;
            assert!(
                !conflict(&accesses, other_accesses),
                "{task} runs beside {other}"
            );
        }
        self.running.insert(task);
        assert_eq!(
            self.records[task].outcome, None,
            "{task} starts after its end"
        );
        self.records[task].inputs = Some(gather(&self.memory, &accesses));
        let read = bytes(&accesses, AccessMode::reads);
        for byte in bytes(&accesses, AccessMode::writes) {
            if read.binary_search(&byte).is_err() {
                self.memory.get_mut(&byte.0).unwrap()[byte.1] ^= 0xa5;
            }
        }
    }

    fn finished(&mut self, id: TaskId, run: RunId, outcome: Outcome, cause: Option<TaskId>) {
        let task = self.numbers[&id];
        let in_flight = self.flights.iter().any(|f| f.task == task);
        let possible = self.can_be_placed(task);
        let record = &mut self.records[task];
        assert_eq!(record.outcome, None, "{id} ended twice (R-083)");
        assert_eq!((record.id, record.spec.run), (id, run));
        assert!(!in_flight, "{id} ended with a member in flight");
        let worst = record
            .results
            .iter()
            .map(|&r| Outcome::from(r))
            .max()
            .unwrap_or(Outcome::Completed);
        let complete = record.results.len() == record.members() as usize;
        match outcome {
            Outcome::Completed => assert!(worst == outcome && complete),
            Outcome::Failed => assert_eq!(worst, outcome),
            Outcome::EndpointLost => assert!(worst == outcome || !possible, "{id} could still run"),
            Outcome::Skipped => assert!(record.inputs.is_none(), "a skipped task had been started"),
            Outcome::Cancelled => {
                assert!(record.cancelled && !complete && worst == Outcome::Completed)
            }
        }
        assert_eq!(cause.is_some(), outcome == Outcome::Skipped);
        record.outcome = Some(outcome);
        self.running.remove(&task);
        record.cause = cause.map(|cause| self.numbers[&cause]);
    }

    /// Whether the members of a task not dispatched yet could ever be placed, by trying everything.
    pub(crate) fn can_be_placed(&self, task: usize) -> bool {
        self.placeable(&self.records[task].spec.kind)
    }

    pub(crate) fn placeable(&self, kind: &NodeKind) -> bool {
        fn assign(world: &World, members: &[Eligible], used: &mut Vec<EndpointId>) -> bool {
            let Some((first, rest)) = members.split_first() else {
                return true;
            };
            first.ids().iter().any(|id| {
                if used.contains(id) || !world.up.contains_key(id) {
                    return false;
                }
                used.push(*id);
                let found = assign(world, rest, used);
                used.pop();
                found
            })
        }
        match kind {
            NodeKind::Copy => true,
            NodeKind::Gang { members } => assign(self, members, &mut Vec::new()),
            NodeKind::Single { eligible } | NodeKind::Waves { eligible, .. } => {
                assign(self, std::slice::from_ref(eligible), &mut Vec::new())
            }
        }
    }
}
