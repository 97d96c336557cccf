//! Members that have run and whose results are still on their way to where others look for them.

use echelon_runtime::graph::*;

use super::reference::compare;
use super::world::World;

const RUN: RunId = RunId(1);
const ONE: EndpointId = EndpointId(0);

impl World {
    /// The flight at `position` has run, and what it wrote is not there yet. False when it may not end like this: it has not
    /// begun, is a copy, or others are sent behind it.
    pub(crate) fn run_flight(&mut self, position: usize, result: MemberResult) -> bool {
        let flight = &self.flights[position];
        let leads = self.records[flight.task].chaining.leads;
        let Some(endpoint) = flight.endpoint.filter(|_| !leads) else {
            return false;
        };
        if flight.queued.is_some() {
            return false;
        }
        let flight = self.flights.remove(position);
        self.advance_lane(&flight, result);
        let event = Event::MemberRan {
            task: self.records[flight.task].id,
            member: flight.member,
            endpoint,
        };
        self.settling.push((flight, result));
        self.reported.push(event);
        self.handle(event);
        true
    }

    /// What a member wrote has arrived.
    pub(crate) fn settle(&mut self, position: usize) {
        let (flight, result) = self.settling.remove(position);
        self.end(&flight, result);
        self.handle(Event::MemberSettled {
            task: self.records[flight.task].id,
            result,
        });
    }
}

fn task(mode: AccessMode) -> NodeSpec {
    let eligible = Eligible::one(ONE);
    NodeSpec {
        run: RUN,
        kind: NodeKind::Single { eligible },
        accesses: vec![Access {
            space: Space::Host,
            start: 0,
            end: 4,
            mode,
        }],
        prefer: None,
    }
}

/// Its place goes to another task at once, its readers wait, and the loss of the endpoint does not concern it any more.
#[test]
fn a_member_that_has_run_holds_no_place_and_keeps_its_readers_waiting() {
    let mut world = World::new(100, &[1]);
    let writer = world.submit(task(AccessMode::Write)).unwrap();
    let reader = world.submit(task(AccessMode::Read)).unwrap();
    let free = NodeSpec {
        accesses: Vec::new(),
        ..task(AccessMode::Read)
    };
    let other = world.submit(free).unwrap();
    assert_eq!(world.flights.len(), 1);
    assert!(world.run_flight(0, MemberResult::Completed));
    assert_eq!(
        (world.flights[0].task, world.outcome(writer)),
        (other, None)
    );
    assert!(world.scheduler.runnable_or_running() >= 2);
    world.lose_endpoint(ONE);
    assert_eq!(world.outcome(other), Some(Outcome::EndpointLost));
    assert_eq!((world.outcome(writer), world.outcome(reader)), (None, None));
    world.add_endpoint(ONE, 1);
    world.settle(0);
    assert_eq!(world.outcome(writer), Some(Outcome::Completed));
    assert_eq!(world.flights[0].task, reader);
    world.drain(|_| 0);
    compare(&world);
}

#[test]
fn r_084_what_could_not_arrive_fails_the_task_and_a_second_word_changes_nothing() {
    let mut world = World::new(100, &[1]);
    let writer = world.submit(task(AccessMode::Write)).unwrap();
    let reader = world.submit(task(AccessMode::Read)).unwrap();
    let id = world.records[writer].id;
    assert!(world.run_flight(0, MemberResult::Failed));
    world.cancel(RUN);
    assert_eq!(world.outcome(reader), Some(Outcome::Cancelled));
    world.settle(0);
    assert_eq!(world.outcome(writer), Some(Outcome::Failed));
    let again = Event::MemberSettled {
        task: id,
        result: MemberResult::Completed,
    };
    world.report_again(again);
    world.report_again(Event::MemberRan {
        task: id,
        member: 0,
        endpoint: ONE,
    });
    world.drain(|_| 0);
}
