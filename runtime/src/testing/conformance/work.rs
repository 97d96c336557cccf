//! Properties of an endpoint that lives: tasks, callables, controls.

use std::collections::HashSet;

use echelon_wire::tensor::{DataType, TensorMeta};

use super::probe::{register, Probe};
use super::{Fixture, FAILURE_TEXT};
use crate::endpoint::{
    ControlFailure, EndpointEvent, OutboundTensor, Place, RegisterStep, SubmitError,
};
use crate::memory::{Arena, HostMemory};
use crate::tensor::Tag;

pub(super) fn describes_itself(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    let info = probe.endpoint.info();
    assert!(!info.name.is_empty());
    assert!(info.capacity >= 1);
    // Whoever shares memory has no session, and the other way round.
    assert_eq!(info.shares_memory, info.session.is_none());
    assert_eq!(probe.run(&task), Ok(()));
    assert_eq!(probe.endpoint.info(), info);
}

pub(super) fn idle_polls_are_empty(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    for _ in 0..1_000 {
        probe.silent();
    }
    probe.settled(&task);
}

pub(super) fn tasks_end_once(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    let capacity = probe.endpoint.info().capacity;
    for _ in 0..10 {
        let mut tickets = HashSet::new();
        let rung = probe.bell.value();
        for _ in 0..capacity {
            let ticket = probe.submit(&task);
            let Ok(ticket) = ticket else {
                panic!("{ticket:?}")
            };
            tickets.insert(ticket);
        }
        while !tickets.is_empty() {
            match probe.event() {
                EndpointEvent::Done { ticket, report } => {
                    assert!(tickets.remove(&ticket), "{ticket:?} ended twice");
                    assert!(report.failure.is_none(), "{report:?}");
                    let known = (report.start_ns, report.end_ns);
                    assert!(known.0 <= known.1, "it ended before it started: {known:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        // Whoever sleeps on the bell would have been woken.
        assert_ne!(probe.bell.value(), rung);
    }
    probe.settled(&task);
}

pub(super) fn failures_have_their_text(fixture: &dyn Fixture) {
    let (task, fails) = (fixture.completing(), fixture.failing());
    let mut probe = Probe::with(fixture, &[task.clone(), fails.clone()]);
    for _ in 0..3 {
        let failure = probe.run(&fails).err().unwrap_or_default();
        assert!(failure.contains(FAILURE_TEXT), "{failure:?}");
        assert_eq!(probe.run(&task), Ok(()));
    }
    probe.settled(&task);
}

pub(super) fn conditions_are_kept(fixture: &dyn Fixture) {
    let (task, fails) = (fixture.completing(), fixture.failing());
    let mut probe = Probe::with(fixture, &[task.clone(), fails.clone()]);
    if !probe.endpoint.takes_conditions() {
        return;
    }
    for _ in 0..3 {
        let first = probe.submit_after(&task, &[]);
        let second = probe.submit_after(&task, &[first]);
        let failing = probe.submit_after(&fails, &[first, second]);
        let reader = probe.submit_after(&task, &[second, failing]);
        let behind = probe.submit_after(&task, &[reader]);
        let other = probe.submit_after(&task, &[second]);
        let mut told = Vec::new();
        for _ in 0..6 {
            told.push(match probe.event() {
                EndpointEvent::Done { ticket, report } => (ticket, Some(report.failure.is_none())),
                EndpointEvent::Skipped { ticket } => (ticket, None),
                other => panic!("{other:?}"),
            });
        }
        let expected = [
            (first, Some(true)),
            (second, Some(true)),
            (failing, Some(false)),
            (reader, None),
            (behind, None),
            (other, Some(true)),
        ];
        assert_eq!(told, expected);
    }
    probe.settled(&task);
}

pub(super) fn unknown_callables_fail(fixture: &dyn Fixture) {
    let (task, unknown) = (fixture.completing(), fixture.failing());
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    let failure = probe.run(&unknown).err().unwrap_or_default();
    assert!(
        !failure.is_empty() && !failure.contains(FAILURE_TEXT),
        "{failure:?}"
    );
    assert_eq!(probe.run(&task), Ok(()));
    probe.settled(&task);
}

pub(super) fn registering_twice_is_once(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, &[task.clone(), task.clone()]);
    assert_eq!(probe.run(&task), Ok(()));
    assert!(probe.remove(&task).is_ok());
    assert!(probe.run(&task).is_err());
}

pub(super) fn aborted_is_unknown(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::new(fixture);
    // Aborting what was never prepared changes nothing.
    for step in [
        RegisterStep::Abort,
        RegisterStep::Prepare,
        RegisterStep::Abort,
        RegisterStep::Abort,
    ] {
        let answer = probe.step(&task, step);
        assert!(answer.is_ok(), "{step:?}: {answer:?}");
    }
    assert!(probe.run(&task).is_err());
    probe.install(&task);
    assert_eq!(probe.run(&task), Ok(()));
}

pub(super) fn removed_is_unknown(fixture: &dyn Fixture) {
    let (task, other) = (fixture.completing(), fixture.failing());
    let mut probe = Probe::with(fixture, &[task.clone(), other.clone()]);
    for _ in 0..2 {
        // The second time there is nothing to remove, which is no error.
        assert!(probe.remove(&task).is_ok());
    }
    assert!(probe.run(&task).is_err());
    let failure = probe.run(&other).err().unwrap_or_default();
    assert!(failure.contains(FAILURE_TEXT), "{failure:?}");
    probe.install(&task);
    assert_eq!(probe.run(&task), Ok(()));
    probe.settled(&other);
}

pub(super) fn unpreparable_is_refused(fixture: &dyn Fixture) {
    let Some(missing) = fixture.unpreparable() else {
        return;
    };
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    match probe.step(&missing, RegisterStep::Prepare) {
        Err(ControlFailure::Refused(text)) => assert!(!text.is_empty()),
        other => panic!("{other:?}"),
    }
    assert!(probe.run(&missing).is_err());
    assert_eq!(probe.run(&task), Ok(()));
    probe.settled(&task);
}

pub(super) fn controls_are_answered_once(fixture: &dyn Fixture) {
    const CONTROLS: usize = 50;
    let task = fixture.completing();
    let mut probe = Probe::new(fixture);
    let rung = probe.bell.value();
    let mut asked: Vec<_> = (0..CONTROLS)
        .map(|index| {
            let step = match index % 2 {
                0 => RegisterStep::Prepare,
                _ => RegisterStep::Abort,
            };
            probe.ask(register(&task, step))
        })
        .collect();
    asked.reverse();
    while let Some(wanted) = asked.pop() {
        match probe.event() {
            // Answers keep the order of the questions.
            EndpointEvent::ControlDone { ticket, result } => {
                assert_eq!(ticket, wanted);
                assert!(result.is_ok(), "{result:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_ne!(probe.bell.value(), rung);
    probe.settled(&task);
}

pub(super) fn unsupported_is_said(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    match probe.control(fixture.unsupported()) {
        Err(ControlFailure::Unsupported { what, worker, hint }) => {
            assert!(!what.is_empty() && !hint.is_empty());
            assert_eq!(worker, probe.endpoint.info().name);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(probe.run(&task), Ok(()));
}

pub(super) fn foreign_memory_is_refused(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    let arena = Arena::create(1 << 20);
    let meta = TensorMeta::new(&[4], DataType::Uint8);
    let (Ok(arena), Ok(meta)) = (arena, meta) else {
        panic!("no memory for the test")
    };
    let place = if probe.endpoint.info().shares_memory {
        Place::Inline(HostMemory::from_vec(vec![0; 4]))
    } else {
        Place::Shared {
            region: arena.region().clone(),
            offset: 0,
            lease: None,
        }
    };
    let tensor = OutboundTensor {
        meta,
        tag: Tag::Input,
        place,
    };
    match probe.submit_with(&task, &[tensor]) {
        Err(SubmitError::Refused(text)) => assert!(!text.is_empty()),
        other => panic!("{other:?}"),
    }
    // Nothing of it is in flight.
    assert_eq!(probe.run(&task), Ok(()));
    probe.settled(&task);
}
