//! Registrations, removals and submits from several threads at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use echelon_runtime::endpoint::{ControlRequest, RegisterStep};
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::bring_up;
use echelon_runtime::testing::fake::ControlVerdict;
use echelon_runtime::{
    CallableHandle, Error, RegisterOptions, RegisterScope, Tag, TaskArgs, Worker,
};
use echelon_wire::call_config::CallConfig;

use crate::bed::{array, import, start, submit, Bed};

fn remote() -> RegisterOptions {
    RegisterOptions {
        scope: RegisterScope::Remote,
        ..RegisterOptions::default()
    }
}

/// two registrations of one callable take turns; a step of one between those of the other would take its callable away.
#[test]
fn r_099_registrations_of_one_callable_take_turns() {
    for _ in 0..20 {
        let bed = Bed::new(0, 3);
        let workers: Vec<_> = (0..4).map(|_| bed.worker.clone()).collect();
        let threads: Vec<_> = workers
            .into_iter()
            .map(|w| {
                start(move || {
                    for _ in 0..10 {
                        let handle = w.register(import("m:f"), remote())?;
                        w.run_simple(|o| submit(o, &handle, TaskArgs::new()).map(drop))?;
                        w.unregister(&handle)?;
                    }
                    Ok::<_, Error>(())
                })
            })
            .collect();
        for thread in threads {
            thread.join("a thread").unwrap();
        }
        assert!(bed
            .remotes
            .iter()
            .all(|session| !session.knows(&import("m:f").digest)));
    }
}

/// While one thread is between two steps, another waits; it does not see half of it.
#[test]
fn r_099_nobody_sees_half_a_registration() {
    let bed = Bed::new(0, 2);
    let first = bed.register("m:f", Some(vec![0]));
    bed.remotes[1].on_control(|control| match control {
        ControlRequest::Register {
            step: RegisterStep::Commit,
            ..
        } => ControlVerdict::Hold,
        _ => ControlVerdict::Carry,
    });
    let w = bed.worker.clone();
    let second = start(move || w.register(import("m:f"), remote()));
    let commit = |_: &[_], controls: &[ControlRequest]| {
        controls.iter().any(|c| {
            matches!(
                c,
                ControlRequest::Register {
                    step: RegisterStep::Commit,
                    ..
                }
            )
        })
    };
    bed.remotes[1].wait_for("the commit", commit);
    bed.worker
        .run_simple(|o| (0..4).try_for_each(|_| submit(o, &first, TaskArgs::new()).map(drop)))
        .unwrap();
    assert!(bed.remotes[1].submitted().is_empty());
    assert!(bed.remotes[1].answer_held());
    second.join("register").unwrap();
}

/// Between its plan and its place in the graph a submit may wait for room. The callable stays until the task has ended.
#[test]
fn a_callable_stays_while_a_submit_that_names_it_waits_for_room() {
    let builder = Worker::builder().max_tasks(1);
    let bed = Bed::with(0, 1, 1, builder);
    let (busy, wanted) = (bed.register("m:busy", None), bed.register("m:f", None));
    let session = bed.remotes[0].clone();
    session.hold_tasks();
    let report = bed.worker.run_simple(|o| {
        submit(o, &busy, TaskArgs::new())?;
        session.wait_tasks(1);
        let (orch, handle) = (o.clone(), wanted.clone());
        // The table is full: this one is planned and waits.
        let submitting = start(move || submit(&orch, &handle, TaskArgs::new()));
        let (w, handle) = (bed.worker.clone(), wanted.clone());
        let removing = start(move || w.unregister(&handle));
        session.on_task(|_| echelon_runtime::testing::fake::TaskVerdict::Done);
        assert!(session.complete_next());
        let submitted = submitting.join("submit");
        removing.join("unregister")?;
        // Planned before the removal, it ran; planned after it, it was told so.
        if let Err(error) = &submitted {
            assert!(
                matches!(error, Error::Handle { .. } | Error::NotEligible { .. }),
                "{error:?}"
            );
        }
        Ok(())
    });
    assert_eq!(report.unwrap().counts["failed"], 0);
}

/// The same as a race: a task that was accepted never finds its callable gone.
#[test]
fn a_task_that_was_accepted_never_finds_its_callable_gone() {
    for round in 0..60_u64 {
        let bed = Bed::with(2, 0, 2, Worker::builder());
        let memory = HostMemory::from_vec(vec![0; 1 << 12]);
        let leaf = bed.sub_task();
        let stop = Arc::new(AtomicBool::new(false));
        let (w, handle, told) = (bed.worker.clone(), leaf.clone(), Arc::clone(&stop));
        let running = start(move || {
            w.run_simple(|o| {
                for _ in 0..100_000 {
                    // Staging widens the gap between plan and admission.
                    match o.submit_sub(&handle, array(&memory, Tag::Input)) {
                        Ok(_) => told.store(true, Ordering::Release),
                        Err(Error::Handle { .. } | Error::NotEligible { .. }) => return Ok(()),
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            })
        });
        bed.subs[0].wait_tasks(1 + (round % 5) as usize);
        bed.worker.unregister(&leaf).unwrap();
        let report = running.join("run").unwrap();
        assert_eq!(report.counts["failed"], 0, "round {round}");
        assert!(stop.load(Ordering::Acquire));
    }
}

/// A fresh worker gets everything that is registered for it: each is tried, what failed is told and is not eligible, and what it
/// brought and nobody wants any more is removed.
#[test]
fn a_fresh_worker_gets_what_is_registered_and_nothing_else() {
    let bed = Bed::new(0, 2);
    let [good, bad, other] = ["m:good", "m:bad", "m:other"].map(|name| bed.register(name, None));
    let elsewhere = bed.register("m:elsewhere", Some(vec![1]));
    let gone = bed.register("m:gone", None);
    bed.worker.unregister(&gone).unwrap();
    bed.remotes[0].lose("power");
    let (endpoint, fresh) = bed.world.remote(0, 1);
    fresh.on_control(|control| match control {
        ControlRequest::Register { callable, .. } if &*callable.name == "m:bad" => {
            ControlVerdict::Refuse("the module is gone".into())
        }
        _ => ControlVerdict::Carry,
    });
    let failed = bring_up(&bed.worker, 0, endpoint, &[import("m:gone")]).unwrap();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].to_string().contains("m:bad"), "{failed:?}");
    for (handle, known) in [
        (&good, true),
        (&bad, false),
        (&other, true),
        (&elsewhere, false),
        (&gone, false),
    ] {
        assert_eq!(fresh.knows(&handle.digest()), known, "{}", handle.name());
    }
    let removal = |c: &ControlRequest| matches!(c, ControlRequest::Unregister { digest, .. } if *digest == gone.digest());
    assert!(fresh.controls().iter().any(removal));
    let run = |handle: &CallableHandle| {
        bed.worker.run_simple(|o| {
            o.submit_next_level(handle, TaskArgs::new(), CallConfig::default(), Some(0))
                .map(drop)
        })
    };
    run(&other).unwrap();
    let error = run(&bad).unwrap_err();
    assert!(matches!(error, Error::NotEligible { .. }), "{error:?}");
    // Registered again, it heals.
    fresh.carry_controls();
    run(&bed.register("m:bad", None)).unwrap();
}

/// A registration and a fresh worker at the same time: whichever comes first, the worker has the callable afterwards.
#[test]
fn a_registration_does_not_miss_a_worker_that_comes_up_meanwhile() {
    for round in 0..100 {
        let bed = Bed::new(0, 2);
        bed.remotes[0].lose("power");
        let (w, v) = (bed.worker.clone(), bed.worker.clone());
        let (endpoint, fresh) = bed.world.remote(0, 1);
        let registering = start(move || {
            (0..4)
                .map(|n| w.register(import(&format!("m:f{n}")), remote()))
                .collect::<Result<Vec<_>, _>>()
        });
        if round % 2 == 0 {
            bed.remotes[1].wait_for("a control", move |_, controls| {
                controls.len() > round / 2 % 8
            });
        }
        let coming = start(move || bring_up(&v, 0, endpoint, &[]));
        let handles = registering.join("the registrations").unwrap();
        assert!(coming.join("the fresh worker").unwrap().is_empty());
        assert!(
            handles.iter().all(|handle| fresh.knows(&handle.digest())),
            "round {round}"
        );
    }
}
