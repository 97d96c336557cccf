//! A fresh endpoint in the place of a lost one, within the run.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use echelon_runtime::endpoint::{ControlRequest, Endpoint, RegisterStep};
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{ControlVerdict, FakeHandle, TaskVerdict};
use echelon_runtime::testing::give_successors;
use echelon_runtime::{
    CallableHandle, Error, FailureKind, Orchestrator, RegisterOptions, RunError, Tag, TaskArgs,
    Worker,
};
use parking_lot::Mutex;

use crate::bed::{array, bounded, import, Bed};

/// What the successors of `sub0` do, and the handles of those that were started.
#[derive(Clone)]
struct Line {
    started: Arc<Mutex<Vec<FakeHandle>>>,
    attempts: Arc<AtomicUsize>,
}

impl Line {
    fn of(
        bed: &Bed,
        capacity: u32,
        prepare: impl Fn(usize, &FakeHandle) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        let line = Self {
            started: Arc::default(),
            attempts: Arc::default(),
        };
        let (world, of_recipe) = (Arc::clone(&bed.world), line.clone());
        let recipe = move || {
            let attempt = of_recipe.attempts.fetch_add(1, Ordering::SeqCst);
            let (endpoint, handle) = world.local("sub0", capacity);
            prepare(attempt, &handle)?;
            of_recipe.started.lock().push(handle);
            Ok(endpoint as Box<dyn Endpoint>)
        };
        give_successors(&bed.worker, 0, recipe).unwrap();
        line
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }
}

fn none(o: &Orchestrator, leaf: &CallableHandle, count: usize) -> Result<(), Error> {
    (0..count).try_for_each(|_| o.submit_sub(leaf, TaskArgs::new()).map(drop))
}

fn run(
    bed: &Bed,
    work: impl Fn(&Orchestrator) -> Result<(), Error> + Send + 'static,
) -> Result<u64, RunError> {
    let worker = bed.worker.clone();
    match bounded("the run", move || worker.run_simple(|o| work(o))) {
        Ok(report) => Ok(report.counts["completed"]),
        Err(Error::Run(error)) => Err(*error),
        Err(other) => panic!("{other}"),
    }
}

/// of a thousand tasks on the only worker, the one that ran when it died is lost, and the one behind it in its
/// queue is not.
#[test]
fn r_083_one_death_in_a_thousand_tasks_loses_one() {
    let bed = Bed::with(1, 0, 2, Worker::builder());
    let leaf = bed.sub_task();
    let line = Line::of(&bed, 2, |_, _| Ok(()));
    let first = bed.subs[0].clone();
    first.hold_tasks();
    let error = run(&bed, move |o| {
        none(o, &leaf, 2)?;
        first.wait_tasks(2);
        none(o, &leaf, 998)?;
        first.lose_with_queue("killed by signal 9");
        Ok(())
    })
    .unwrap_err();
    assert_eq!(error.failures.len(), 1);
    assert_eq!(error.failures[0].kind, FailureKind::EndpointLost);
    assert_eq!(error.failures[0].sequence, 1);
    assert!(error.failures[0].message.contains("signal 9"));
    assert_eq!((error.skipped, error.cancelled), (0, 0));
    assert_eq!(line.attempts(), 1);
    let fresh = line.started.lock()[0].clone();
    assert_eq!(fresh.submitted().len(), 999);
    assert_eq!(bed.worker.workers().len(), 1);
}

#[test]
fn r_082_readers_of_the_lost_task_are_skipped_and_writers_over_it_run() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let line = Line::of(&bed, 1, |_, _| Ok(()));
    let first = bed.subs[0].clone();
    first.hold_tasks();
    let memory = HostMemory::from_vec(vec![0; 8]);
    let error = run(&bed, move |o| {
        for tag in [Tag::Output, Tag::Input, Tag::InOut, Tag::Output, Tag::Input] {
            o.submit_sub(&leaf, array(&memory, tag))?;
        }
        first.lose("power");
        Ok(())
    })
    .unwrap_err();
    assert_eq!((error.failures.len(), error.skipped), (1, 2), "{error}");
    assert_eq!(line.started.lock()[0].submitted().len(), 2);
}

/// Tasks go to the fresh worker when it has the callables, not before.
#[test]
fn callables_are_installed_before_tasks_go_there() {
    let bed = Bed::new(1, 0);
    let leaves: Vec<_> = ["m:a", "m:b"]
        .map(|name| {
            bed.worker
                .register(import(name), RegisterOptions::default())
                .unwrap()
        })
        .into();
    let line = Line::of(&bed, 1, |_, handle| {
        handle.on_control(|_| ControlVerdict::Hold);
        Ok(())
    });
    let first = bed.subs[0].clone();
    first.on_task(|_| TaskVerdict::Lose("power".into()));
    let of_line = line.clone();
    let completed = run(&bed, move |o| {
        for leaf in &leaves {
            none(o, leaf, 1)?;
        }
        let fresh = loop {
            if let Some(fresh) = of_line.started.lock().first() {
                break fresh.clone();
            }
            std::thread::yield_now();
        };
        for answered in 0..4 {
            fresh.wait_for("the installs", |_, controls| controls.len() == 4);
            assert!(
                fresh.submitted().is_empty(),
                "after {answered} of 4 answers"
            );
            assert!(fresh.answer_held());
        }
        Ok(())
    });
    // What was never taken is not lost.
    assert_eq!(completed.unwrap(), 2);
}

#[test]
fn a_callable_that_cannot_be_installed_again_fails_its_own_tasks_only() {
    let bed = Bed::new(1, 0);
    let [good, bad] = ["m:good", "m:bad"].map(|name| {
        bed.worker
            .register(import(name), RegisterOptions::default())
            .unwrap()
    });
    Line::of(&bed, 1, |_, handle| {
        handle.on_control(|control| match control {
            ControlRequest::Register {
                step: RegisterStep::Prepare,
                callable,
                ..
            } if &*callable.name == "m:bad" => ControlVerdict::Refuse("the module is gone".into()),
            _ => ControlVerdict::Carry,
        });
        Ok(())
    });
    // The end comes when all are submitted: a submit after the refusal would be refused itself.
    let first = bed.subs[0].clone();
    first.hold_tasks();
    let error = run(&bed, move |o| {
        none(o, &bad, 2)?;
        none(o, &good, 3)?;
        first.lose("power");
        Ok(())
    })
    .unwrap_err();
    assert_eq!(error.failures.len(), 2, "{error}");
    assert!(error.failures[0].message.contains("power"), "{error}");
    assert!(
        error.failures[1].message.contains("the module is gone"),
        "{error}"
    );
}

/// A place whose processes die one after the other is given up, with the last reason, and the next run tries again.
#[test]
fn what_dies_again_and_again_is_not_started_for_ever() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let line = Line::of(&bed, 1, |attempt, handle| {
        let healthy = attempt >= 2;
        let end = handle.clone();
        handle.on_task(move |_| match healthy {
            true => TaskVerdict::Done,
            false => TaskVerdict::Lose(format!("end {attempt} by signal 11")),
        });
        drop(end);
        Ok(())
    });
    let first = bed.subs[0].clone();
    first.hold_tasks();
    let again = leaf.clone();
    let error = run(&bed, move |o| {
        none(o, &leaf, 10)?;
        first.lose("the first end");
        Ok(())
    })
    .unwrap_err();
    assert_eq!(line.attempts(), 2, "three ends, two starts");
    assert_eq!(error.failures.len(), 10);
    assert!(error.failures[0].message.contains("the first end"));
    for failure in &error.failures[1..] {
        assert_eq!(failure.kind, FailureKind::EndpointLost);
        assert!(failure.message.contains("end 1 by signal 11"), "{failure}");
        assert!(failure.message.contains("number 3"), "{failure}");
    }
    assert_eq!(run(&bed, move |o| none(o, &again, 10)).unwrap(), 10);
    assert_eq!(line.attempts(), 3);
}

#[test]
fn an_answered_task_makes_up_for_earlier_ends() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    // Each process answers one task and dies of the second.
    let mortal = |handle: &FakeHandle| {
        let mut tasks = 0;
        handle.on_task(move |_| {
            tasks += 1;
            match tasks {
                1 => TaskVerdict::Done,
                _ => TaskVerdict::Lose("of its second task".into()),
            }
        });
    };
    let line = Line::of(&bed, 1, move |_, handle| {
        mortal(handle);
        Ok(())
    });
    mortal(&bed.subs[0]);
    // `Lose` takes nothing: a task that was refused by a dying process waits for the next one.
    assert_eq!(run(&bed, move |o| none(o, &leaf, 20)).unwrap(), 20);
    assert_eq!(line.attempts(), 19);
}

#[test]
fn a_start_that_fails_counts_as_an_end_and_its_text_is_told() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let line = Line::of(&bed, 1, |_, _| {
        Err(Error::Startup {
            worker: "sub0".into(),
            message: "no more processes".into(),
        })
    });
    let first = bed.subs[0].clone();
    first.hold_tasks();
    let error = run(&bed, move |o| {
        none(o, &leaf, 3)?;
        first.lose("power");
        Ok(())
    })
    .unwrap_err();
    assert_eq!((line.attempts(), error.failures.len()), (2, 3));
    let text = error.failures[1].to_string();
    assert!(text.contains("no more processes"), "{text}");
}

#[test]
fn close_while_a_fresh_worker_is_being_installed() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let line = Line::of(&bed, 1, |_, handle| {
        handle.on_control(|_| ControlVerdict::Hold);
        Ok(())
    });
    bed.subs[0].on_task(|_| TaskVerdict::Lose("power".into()));
    let worker = bed.worker.clone();
    let running = crate::bed::start(move || worker.run_simple(|o| none(o, &leaf, 3)));
    loop {
        if let Some(fresh) = line.started.lock().first() {
            fresh.wait_for("the install", |_, controls| !controls.is_empty());
            break;
        }
        std::thread::yield_now();
    }
    let worker = bed.worker.clone();
    bounded("close", move || worker.close()).unwrap();
    assert!(running.join("the run").is_err());
}

/// Ctrl-C: a worker that is killed after the grace is followed by a fresh one, and that does not count against the place.
#[test]
fn a_kill_after_an_interrupt_is_followed_by_a_fresh_worker() {
    let builder = Worker::builder().interrupt_grace(std::time::Duration::from_millis(1));
    let bed = Bed::with(1, 0, 1, builder);
    let leaf = bed.sub_task();
    let line = Line::of(&bed, 1, |_, handle| {
        handle.hold_tasks();
        Ok(())
    });
    bed.subs[0].hold_tasks();
    for round in 1..=5 {
        let (worker, leaf) = (bed.worker.clone(), leaf.clone());
        let interrupt = Arc::clone(&bed.interrupt);
        let ended = bounded("the run", move || {
            worker.run_simple(|o| {
                none(o, &leaf, 2)?;
                interrupt.set(true);
                Ok(())
            })
        });
        assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
        bed.interrupt.set(false);
        let (worker, leaf) = (bed.worker.clone(), import("m:other"));
        // A round trip through the fresh one.
        bounded("a registration", move || {
            worker.register(leaf, RegisterOptions::default())
        })
        .unwrap();
        assert_eq!(line.attempts(), round);
    }
}

/// What was not installed again is not eligible, and registering it again heals the place; a place that was given up gets what
/// was registered meanwhile when the next run fills it again.
#[test]
fn r_099_a_fresh_worker_has_what_was_registered_while_its_place_was_empty() {
    let bed = Bed::new(1, 0);
    let register = |name: &str| {
        bed.worker
            .register(import(name), RegisterOptions::default())
            .unwrap()
    };
    let bad = register("m:bad");
    let line = Line::of(&bed, 1, |attempt, handle| {
        handle.on_control(move |control| match control {
            ControlRequest::Register { callable, .. }
                if attempt == 0 && &*callable.name == "m:bad" =>
            {
                ControlVerdict::Refuse("not now".into())
            }
            _ => ControlVerdict::Carry,
        });
        Ok(())
    });
    bed.subs[0].on_task(|_| TaskVerdict::Lose("power".into()));
    let leaf = bad.clone();
    run(&bed, move |o| none(o, &leaf, 1)).unwrap_err();
    let leaf = bad.clone();
    let refused = bed
        .worker
        .run_simple(move |o| none(o, &leaf, 1))
        .unwrap_err();
    assert!(refused.to_string().contains("not now"), "{refused}");
    line.started.lock()[0].carry_controls();
    let again = register("m:bad");
    assert_eq!(run(&bed, move |o| none(o, &again, 1)).unwrap(), 1);
    // Now it dies until its place is given up.
    let deadly = register("m:deadly");
    Line::of(&bed, 1, |attempt, handle| {
        if attempt < 2 {
            handle.on_task(|_| TaskVerdict::Lose("again".into()));
        }
        Ok(())
    });
    line.started.lock()[0].on_task(|_| TaskVerdict::Lose("again".into()));
    run(&bed, move |o| none(o, &deadly, 1)).unwrap_err();
    let late = register("m:late");
    assert_eq!(run(&bed, move |o| none(o, &late, 1)).unwrap(), 1);
}
