//! Properties of an endpoint that ends: by force, in order, in the middle of a task.

use std::time::{Duration, Instant};

use super::probe::{register, Probe};
use super::Fixture;
use crate::endpoint::RegisterStep;
use crate::testing::fake::PATIENCE;

/// Short enough for a test, long enough for a process to end in order.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

pub(super) fn a_kill_is_one_loss(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let Some(endless) = fixture.endless() else {
        return;
    };
    for in_flight in [false, true] {
        let mut probe = Probe::with(fixture, &[task.clone(), endless.clone()]);
        if in_flight {
            assert!(probe.submit(&endless).is_ok());
            // A control behind the task may be answered or lost with it.
            probe.ask(register(&task, RegisterStep::Abort));
        }
        probe.endpoint.kill("the suite says so");
        probe.endpoint.kill("and says it twice");
        // From the kill on, also before the loss is reported.
        assert!(probe.submit(&task).is_err());
        let reason = probe.loss();
        assert!(reason.contains("the suite says so"), "{reason}");
        probe.refuses_all(&task);
        probe.endpoint.kill("once more");
        probe.endpoint.begin_close();
        let closed = probe.endpoint.finish_close(Instant::now() + PATIENCE);
        assert_eq!(closed, Ok(()));
        probe.refuses_all(&task);
    }
}

pub(super) fn a_close_is_quiet(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    assert_eq!(probe.run(&task), Ok(()));
    for _ in 0..3 {
        probe.endpoint.begin_close();
    }
    for _ in 0..3 {
        let closed = probe.endpoint.finish_close(Instant::now() + PATIENCE);
        assert_eq!(closed, Ok(()));
    }
    // It may report its own end, once.
    while let Some(event) = probe.endpoint.poll_event() {
        assert!(
            matches!(event, crate::endpoint::EndpointEvent::Lost { .. }),
            "{event:?}"
        );
        probe.silent();
    }
    probe.refuses_all(&task);
}

pub(super) fn a_close_in_a_task_is_bounded(fixture: &dyn Fixture) {
    let Some(endless) = fixture.endless() else {
        return;
    };
    let mut probe = Probe::with(fixture, std::slice::from_ref(&endless));
    assert!(probe.submit(&endless).is_ok());
    let begun = Instant::now();
    probe.endpoint.begin_close();
    let closed = probe.endpoint.finish_close(begun + CLOSE_WITHIN);
    assert_eq!(closed, Ok(()));
    // Far beyond the bound it was given, and far below for ever.
    assert!(begun.elapsed() < PATIENCE);
    probe.endpoint.kill("nothing is left to kill");
}

pub(super) fn dropping_is_enough(fixture: &dyn Fixture) {
    let task = fixture.completing();
    let mut probe = Probe::with(fixture, std::slice::from_ref(&task));
    assert!(probe.submit(&task).is_ok());
    drop(probe);
}
