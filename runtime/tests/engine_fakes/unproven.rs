//! Registrations and removals without an answer: not eligible, cleared before the callable comes back.

use echelon_runtime::endpoint::{ControlRequest, RegisterStep};
use echelon_runtime::testing::fake::{ControlVerdict, FakeHandle};
use echelon_runtime::{CallableHandle, Error, RegisterOptions, TaskArgs};
use echelon_wire::call_config::CallConfig;

use crate::bed::{bounded, count, import, start, submit, Bed};

fn on(workers: &[i32]) -> RegisterOptions {
    RegisterOptions {
        workers: Some(workers.to_vec()),
        ..RegisterOptions::default()
    }
}

fn is_removal(control: &ControlRequest) -> bool {
    matches!(control, ControlRequest::Unregister { .. })
}

fn removals(session: &FakeHandle) -> usize {
    count(&session.controls(), is_removal)
}

fn prepares(session: &FakeHandle) -> usize {
    let prepare = |c: &ControlRequest| {
        matches!(
            c,
            ControlRequest::Register {
                step: RegisterStep::Prepare,
                ..
            }
        )
    };
    count(&session.controls(), prepare)
}

fn runs_on(bed: &Bed, handle: &CallableHandle, worker: i32) -> Result<(), Error> {
    let run = bed.worker.run_simple(|o| {
        o.submit_next_level(handle, TaskArgs::new(), CallConfig::default(), Some(worker))
            .map(drop)
    });
    run.map(drop)
}

#[test]
fn r_100_a_removal_that_was_refused_stays_a_tombstone_until_it_is_proven() {
    let bed = Bed::new(0, 2);
    let handle = bed.register("m:f", None);
    bed.remotes[0].on_control(|control| match is_removal(control) {
        true => ControlVerdict::Refuse("busy".into()),
        false => ControlVerdict::Carry,
    });
    let error = bed.worker.unregister(&handle).unwrap_err();
    assert!(matches!(error, Error::Removal { .. }), "{error:?}");
    // While the removal is refused, so is the registration: nothing is prepared, neither here nor elsewhere.
    let before = (prepares(&bed.remotes[0]), prepares(&bed.remotes[1]));
    let error = bed.worker.register(import("m:f"), on(&[0, 1])).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("remote0") && text.contains("must be gone there first"),
        "{text}"
    );
    assert_eq!(
        before,
        (prepares(&bed.remotes[0]), prepares(&bed.remotes[1]))
    );
    // The other worker is usable.
    let other = bed.worker.register(import("m:f"), on(&[1])).unwrap();
    runs_on(&bed, &other, 1).unwrap();
    let error = runs_on(&bed, &other, 0).unwrap_err();
    assert!(error.to_string().contains("was not confirmed"), "{error}");
    // Once it is proven, the callable comes back.
    bed.remotes[0].carry_controls();
    let again = bed.worker.register(import("m:f"), on(&[0])).unwrap();
    runs_on(&bed, &again, 0).unwrap();
}

#[test]
fn r_100_another_unregister_tries_the_removal_again_and_then_the_handle_is_gone() {
    let bed = Bed::new(0, 1);
    let handle = bed.register("m:f", None);
    bed.remotes[0].on_control(|_| ControlVerdict::Refuse("busy".into()));
    bed.worker.unregister(&handle).unwrap_err();
    bed.worker.unregister(&handle).unwrap_err();
    bed.remotes[0].carry_controls();
    bed.worker.unregister(&handle).unwrap();
    assert_eq!(removals(&bed.remotes[0]), 3);
    assert!(!bed.remotes[0].knows(&handle.digest()));
    let error = bed.worker.unregister(&handle).unwrap_err();
    assert!(matches!(error, Error::Handle { .. }), "{error:?}");
    assert_eq!(removals(&bed.remotes[0]), 3);
}

#[test]
fn r_100_a_tombstone_goes_with_its_worker() {
    let bed = Bed::new(0, 2);
    let handle = bed.register("m:f", None);
    bed.remotes[0].on_control(|control| match is_removal(control) {
        true => ControlVerdict::Refuse("busy".into()),
        false => ControlVerdict::Carry,
    });
    bed.worker.unregister(&handle).unwrap_err();
    bed.remotes[0].lose("died");
    let scope = RegisterOptions {
        scope: echelon_runtime::RegisterScope::Remote,
        ..RegisterOptions::default()
    };
    // The loss is taken in by whoever drives next.
    let w = bed.worker.clone();
    bounded("the loss", move || while runs_nothing(&w) {});
    bed.worker.register(import("m:f"), scope).unwrap();
    bed.worker.unregister(&handle).unwrap();
}

/// True while the first worker is not known to be lost.
fn runs_nothing(worker: &echelon_runtime::Worker) -> bool {
    worker.remote_malloc(0, 1).is_ok()
}

/// A register that is interrupted does not wait for anybody; what it sent is undone behind it, and the late answers prove it.
#[test]
fn r_098_an_interrupted_registration_is_undone_without_waiting() {
    for step in [RegisterStep::Prepare, RegisterStep::Commit] {
        let bed = Bed::new(0, 2);
        let held = move |c: &ControlRequest| matches!(c, ControlRequest::Register { step: s, .. } if *s == step);
        // From the step on, the worker is busy: nothing is answered any more.
        let mut busy = false;
        bed.remotes[1].on_control(move |control| {
            busy |= held(control);
            match busy {
                true => ControlVerdict::Hold,
                false => ControlVerdict::Carry,
            }
        });
        let w = bed.worker.clone();
        let registering = start(move || w.register(import("m:f"), on(&[0, 1])));
        bed.remotes[1].wait_for("the step", move |_, controls| controls.iter().any(held));
        bed.interrupt.set(true);
        let error = registering.join("register").unwrap_err();
        bed.interrupt.set(false);
        assert!(matches!(error, Error::Interrupted), "{step:?}: {error:?}");
        assert!(bed.worker.find_handle("m:f").is_err());
        // The undoing was sent to both; the busy one takes it when it comes to it.
        while bed.remotes[1].answer_held() {}
        for session in &bed.remotes {
            assert!(!session.knows(&import("m:f").digest), "{step:?}");
        }
        bed.remotes[1].carry_controls();
        let again = bed.worker.register(import("m:f"), on(&[0, 1])).unwrap();
        runs_on(&bed, &again, 1).unwrap();
    }
}

#[test]
fn an_unregister_that_is_interrupted_while_a_task_runs_has_done_nothing() {
    let bed = Bed::new(0, 1);
    let handle = bed.register("m:f", None);
    bed.remotes[0].hold_tasks();
    let session = bed.remotes[0].clone();
    let (w, h) = (bed.worker.clone(), handle.clone());
    let report = bed.worker.run_simple(|o| {
        submit(o, &handle, TaskArgs::new())?;
        let removing = start(move || w.unregister(&h));
        session.wait_tasks(1);
        bed.interrupt.wait_told(0);
        bed.interrupt.set(true);
        bed.interrupt.wait_told(1);
        let ended = removing.join("unregister");
        bed.interrupt.set(false);
        assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
        assert_eq!(removals(&session), 0);
        // As before: it can be found, and submitted.
        assert_eq!(bed.worker.find_handle("m:f")?.digest(), handle.digest());
        submit(o, &handle, TaskArgs::new())?;
        while session.complete_next() {}
        session.on_task(|_| echelon_runtime::testing::fake::TaskVerdict::Done);
        Ok(())
    });
    assert_eq!(report.unwrap().counts["completed"], 2);
    bed.worker.unregister(&handle).unwrap();
    assert_eq!(removals(&session), 1);
}

/// with several workers that do not confirm, each is asked and each is named.
#[test]
fn r_101_every_worker_is_asked_to_remove_and_each_that_does_not_is_named() {
    let bed = Bed::new(0, 3);
    let handle = bed.register("m:f", None);
    for index in [0, 2] {
        bed.remotes[index].on_control(|_| ControlVerdict::CarryAndRefuse("busy".into()));
    }
    let text = bed.worker.unregister(&handle).unwrap_err().to_string();
    assert!(
        text.contains("remote0") && text.contains("remote2") && !text.contains("remote1"),
        "{text}"
    );
    assert!(bed.remotes.iter().all(|session| removals(session) == 1));
}
