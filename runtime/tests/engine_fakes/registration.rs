//! Registration on several workers: all or nothing, whichever step fails where.

use echelon_runtime::endpoint::{ControlRequest, RegisterStep};
use echelon_runtime::testing::fake::{ControlVerdict, TaskVerdict};
use echelon_runtime::{Error, RegisterOptions, RegisterScope, TaskArgs};
use echelon_wire::call_config::CallConfig;

use crate::bed::{bounded, count, import, start, submit, Bed};

const WORKERS: usize = 3;

fn remote() -> RegisterOptions {
    RegisterOptions {
        scope: RegisterScope::Remote,
        ..RegisterOptions::default()
    }
}

fn is_step(control: &ControlRequest, wanted: RegisterStep) -> bool {
    matches!(control, ControlRequest::Register { step, .. } if *step == wanted)
}

#[test]
fn r_098_a_failure_at_any_step_of_any_worker_undoes_the_rest() {
    let ways: [fn() -> ControlVerdict; 3] = [
        || ControlVerdict::Refuse("no module".into()),
        || ControlVerdict::CarryAndRefuse("no module".into()),
        || ControlVerdict::Lose("died".into()),
    ];
    for step in [RegisterStep::Prepare, RegisterStep::Commit] {
        for k in 0..WORKERS {
            for (way, verdict) in ways.iter().enumerate() {
                let bed = Bed::new(0, WORKERS);
                let at = (step, k, way);
                let verdict = *verdict;
                bed.remotes[k].on_control(move |control| match is_step(control, step) {
                    true => verdict(),
                    false => ControlVerdict::Carry,
                });
                let error = bed.worker.register(import("m:f"), remote()).unwrap_err();
                assert!(
                    matches!(error, Error::Registration { .. }),
                    "{at:?}: {error:?}"
                );
                assert!(error.to_string().contains(&format!("remote{k}")), "{error}");
                assert!(bed.worker.find_handle("m:f").is_err());
                // Nobody keeps it, prepared or live.
                for (index, session) in bed.remotes.iter().enumerate() {
                    let lost = index == k && way == 2;
                    assert!(
                        lost || !session.knows(&import("m:f").digest),
                        "{at:?}: {index}"
                    );
                }
                // The others are usable, and the same callable can be registered there.
                bed.remotes[k].carry_controls();
                let others: Vec<i32> = (0..WORKERS as i32).filter(|id| *id != k as i32).collect();
                let options = RegisterOptions {
                    workers: Some(others),
                    ..remote()
                };
                let handle = bed.worker.register(import("m:f"), options).unwrap();
                bed.worker
                    .run_simple(|o| submit(o, &handle, TaskArgs::new()).map(drop))
                    .unwrap();
            }
        }
    }
}

#[test]
fn r_101_every_undo_is_tried_also_when_one_of_them_fails() {
    let bed = Bed::new(0, WORKERS);
    bed.remotes[2].on_control(|control| match is_step(control, RegisterStep::Commit) {
        true => ControlVerdict::Refuse("late".into()),
        false => ControlVerdict::Carry,
    });
    bed.remotes[0].on_control(|control| match control {
        ControlRequest::Unregister { .. } => ControlVerdict::Refuse("busy".into()),
        _ => ControlVerdict::Carry,
    });
    bed.worker.register(import("m:f"), remote()).unwrap_err();
    assert!(!bed.remotes[1].knows(&import("m:f").digest));
    // Where undoing failed the callable may still be live; it is not eligible there.
    assert!(bed.remotes[0].knows(&import("m:f").digest));
    bed.remotes[2].carry_controls();
    let options = RegisterOptions {
        workers: Some(vec![1]),
        ..remote()
    };
    let handle = bed.worker.register(import("m:f"), options).unwrap();
    let error = bed.worker.run_simple(|o| {
        o.submit_next_level(&handle, TaskArgs::new(), CallConfig::default(), Some(0))
            .map(drop)
    });
    assert!(matches!(error, Err(Error::NotEligible { .. })), "{error:?}");
}

#[test]
fn a_second_registration_that_fails_does_not_take_the_first_away() {
    for step in [RegisterStep::Prepare, RegisterStep::Commit] {
        let bed = Bed::new(0, 2);
        let options = RegisterOptions {
            workers: Some(vec![0]),
            ..remote()
        };
        let first = bed.worker.register(import("m:f"), options).unwrap();
        bed.remotes[1].on_control(move |control| match is_step(control, step) {
            true => ControlVerdict::Refuse("no".into()),
            false => ControlVerdict::Carry,
        });
        bed.worker.register(import("m:f"), remote()).unwrap_err();
        bed.worker
            .run_simple(|o| submit(o, &first, TaskArgs::new()).map(drop))
            .unwrap();
        assert_eq!(bed.remotes[0].submitted().len(), 1);
    }
}

#[test]
fn a_callable_stays_until_its_last_handle_is_unregistered() {
    let bed = Bed::new(0, 2);
    let first = bed.worker.register(import("m:f"), remote()).unwrap();
    let second = bed.worker.register(import("m:f"), remote()).unwrap();
    bed.worker.unregister(&first).unwrap();
    bed.worker
        .run_simple(|o| submit(o, &second, TaskArgs::new()).map(drop))
        .unwrap();
    bed.worker.unregister(&second).unwrap();
    for session in &bed.remotes {
        let removals = count(&session.controls(), |c| {
            matches!(c, ControlRequest::Unregister { .. })
        });
        assert_eq!(removals, 1);
        assert!(!session.knows(&import("m:f").digest));
    }
    assert!(bed.worker.find_handle("m:f").is_err());
}

#[test]
fn tasks_submitted_before_an_unregister_still_run() {
    let bed = Bed::new(0, 1);
    let handle = bed.worker.register(import("m:f"), remote()).unwrap();
    let session = bed.remotes[0].clone();
    session.hold_tasks();
    let w = bed.worker.clone();
    let report = bed
        .worker
        .run_simple(|o| {
            for _ in 0..3 {
                submit(o, &handle, TaskArgs::new())?;
            }
            let removing = start({
                let handle = handle.clone();
                move || w.unregister(&handle)
            });
            // From now on it is refused; what was submitted is not.
            bounded("the refusal", {
                let (o, handle) = (o.clone(), handle.clone());
                move || while submit(&o, &handle, TaskArgs::new()).is_ok() {}
            });
            session.on_task(|_| TaskVerdict::Done);
            assert!(session.complete_next());
            removing.join("unregister").unwrap();
            Ok(())
        })
        .unwrap();
    assert!(report.counts["completed"] >= 3);
    assert_eq!(report.counts["failed"], 0);
}

#[test]
fn an_unregister_that_is_refused_names_the_worker_and_the_callable_is_not_eligible() {
    let bed = Bed::new(0, 2);
    let handle = bed.worker.register(import("m:f"), remote()).unwrap();
    bed.remotes[0].on_control(|_| ControlVerdict::Refuse("busy".into()));
    let error = bed.worker.unregister(&handle).unwrap_err().to_string();
    assert!(
        error.contains("remote0") && error.contains("busy"),
        "{error}"
    );
    assert!(!bed.remotes[1].knows(&import("m:f").digest));
    let again = bed
        .worker
        .run_simple(|o| submit(o, &handle, TaskArgs::new()).map(drop));
    assert!(matches!(again, Err(Error::Handle { .. })), "{again:?}");
}
