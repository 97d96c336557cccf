//! Runs: several at once, interrupted, failed by their own function.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::TaskVerdict;
use echelon_runtime::{Callable, Error, Interrupt, Interrupted, RunEnd, Tag, TaskArgs, Worker};
use echelon_wire::call_config::CallConfig;

use crate::bed::{array, bounded, start, submit, whole, Bed};

#[test]
fn runs_at_the_same_time_share_one_dependency_map() {
    let bed = Bed::with(0, 1, 4, Worker::builder());
    let task = bed.remote_task();
    let session = bed.remotes[0].clone();
    session.hold_tasks();
    let buffer = bed.malloc(0, 8);
    let go = |tag| {
        let (w, task, buffer) = (bed.worker.clone(), task.clone(), buffer.clone());
        start(move || w.run_simple(|o| submit(o, &task, whole(&buffer, tag)).map(drop)))
    };
    let first = go(Tag::Output);
    session.wait_tasks(1);
    let second = go(Tag::Input);
    let (w, progress) = (bed.worker.clone(), bed.worker.clone());
    bounded("the second submit", move || {
        while progress.progress().submitted < 2 {
            std::thread::yield_now();
        }
    });
    // The reader of the other run is submitted and not sent.
    assert_eq!(session.submitted().len(), 1);
    assert!(session.complete_next());
    first.join("first run").unwrap();
    session.wait_tasks(2);
    assert!(session.complete_next());
    second.join("second run").unwrap();
    drop(w);
}

#[test]
fn a_failure_poisons_the_readers_of_a_run_that_goes_on() {
    let bed = Bed::with(0, 1, 4, Worker::builder());
    let task = bed.remote_task();
    let session = bed.remotes[0].clone();
    session.hold_tasks();
    let buffer = bed.malloc(0, 8);
    let (w, t, b) = (bed.worker.clone(), task.clone(), buffer.clone());
    let first = start(move || w.run_simple(|o| submit(o, &t, whole(&b, Tag::Output)).map(drop)));
    session.wait_tasks(1);
    let result = bed.worker.run_simple(|o| {
        submit(o, &task, whole(&buffer, Tag::Input))?;
        session.fail(session.in_flight()[0].ticket, "boom");
        Ok(())
    });
    let Err(Error::Run(error)) = result else {
        panic!("{result:?}")
    };
    assert_eq!((error.failures.len(), error.skipped), (0, 1));
    assert!(first.join("first run").is_err());
    // The next run starts clean.
    session.on_task(|_| TaskVerdict::Done);
    bed.worker
        .run_simple(|o| submit(o, &task, whole(&buffer, Tag::Input)).map(drop))
        .unwrap();
}

#[test]
fn r_091_an_interrupt_cancels_kills_after_the_grace_and_leaves_the_worker_usable() {
    let builder = Worker::builder().interrupt_grace(Duration::from_millis(20));
    let bed = Bed::with(0, 2, 1, builder);
    let task = bed.remote_task();
    let session = &bed.remotes[0];
    session.hold_tasks();
    let (w, t) = (bed.worker.clone(), task.clone());
    let running = start(move || {
        w.run_simple(|o| {
            for _ in 0..5 {
                o.submit_next_level(&t, TaskArgs::new(), CallConfig::default(), Some(0))?;
            }
            Ok(())
        })
    });
    session.wait_tasks(1);
    bed.interrupt.set(true);
    let error = running.join("run").unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error:?}");
    bed.interrupt.set(false);
    assert_eq!(session.submitted().len(), 1);
    let report = bed
        .worker
        .run_simple(|o| submit(o, &task, TaskArgs::new()).map(drop))
        .unwrap();
    assert_eq!(report.counts["completed"], 1);
    let progress = bed.worker.progress();
    assert_eq!(progress.submitted, progress.finished);
}

#[test]
fn a_worker_that_dies_slowly_keeps_its_tasks_until_it_is_dead() {
    let builder = Worker::builder()
        .interrupt_grace(Duration::from_millis(1))
        .close_timeout(Duration::from_secs(20));
    let bed = Bed::with(1, 0, 2, builder);
    let leaf = bed.sub_task();
    let sub = bed.subs[0].clone();
    sub.hold_tasks();
    sub.dies_slowly();
    let (w, l) = (bed.worker.clone(), leaf.clone());
    let running = start(move || w.run_simple(|o| o.submit_sub(&l, TaskArgs::new()).map(drop)));
    sub.wait_tasks(1);
    bed.interrupt.set(true);
    // The kill shows in that it takes no more work; it is dead only now.
    let (w, mut tries) = (bed.worker.clone(), 0_u64);
    bounded("the kill", move || loop {
        tries += 1;
        let gone = w.register(
            crate::bed::import(&format!("m:probe{tries}")),
            Default::default(),
        );
        if matches!(gone, Err(Error::Registration { .. })) {
            return tries;
        }
        std::thread::yield_now();
    });
    assert_eq!(bed.worker.progress().finished, 0);
    sub.lose("killed");
    assert!(matches!(running.join("run"), Err(Error::Interrupted)));
    bed.interrupt.set(false);
    assert_eq!(bed.worker.progress().finished, 1);
}

#[test]
fn nothing_is_written_into_the_callers_array_after_an_interrupt() {
    let builder = Worker::builder().interrupt_grace(Duration::from_secs(20));
    let bed = Bed::with(1, 0, 1, builder);
    let leaf = bed.sub_task();
    let sub = bed.subs[0].clone();
    sub.hold_tasks();
    let memory = HostMemory::from_vec(vec![1, 2, 3]);
    let (w, m) = (bed.worker.clone(), memory.clone());
    let running =
        start(move || w.run_simple(|o| o.submit_sub(&leaf, array(&m, Tag::InOut)).map(drop)));
    sub.wait_tasks(1);
    let task = sub.in_flight()[0].clone();
    sub.bytes(&task, 0).unwrap().copy_in(0, &[9, 9, 9]).unwrap();
    bed.interrupt.set(true);
    // Told twice: the first time ended the wait, the second time was in the grace.
    bed.interrupt.wait_told(2);
    sub.complete(task.ticket);
    assert!(matches!(running.join("run"), Err(Error::Interrupted)));
    bed.interrupt.set(false);
    assert_eq!(memory.to_vec(), [1, 2, 3]);
}

#[test]
fn readers_of_an_array_that_an_interrupted_run_was_to_write_are_skipped() {
    let builder = Worker::builder().interrupt_grace(Duration::from_secs(20));
    let bed = Bed::with(1, 0, 1, builder);
    let leaf = bed.sub_task();
    let sub = bed.subs[0].clone();
    sub.hold_tasks();
    let memory = HostMemory::from_vec(vec![1, 2, 3]);
    let (w, m, l) = (bed.worker.clone(), memory.clone(), leaf.clone());
    let first = start(move || w.run_simple(|o| o.submit_sub(&l, array(&m, Tag::InOut)).map(drop)));
    sub.wait_tasks(1);
    bed.interrupt.set(true);
    bed.interrupt.wait_told(2);
    bed.interrupt.set(false);
    let result = bed.worker.run_simple(|o| {
        o.submit_sub(&leaf, array(&memory, Tag::Input))?;
        assert!(sub.complete_next());
        Ok(())
    });
    let Err(Error::Run(error)) = result else {
        panic!("{result:?}")
    };
    assert_eq!((error.failures.len(), error.skipped), (0, 1));
    assert!(matches!(first.join("first run"), Err(Error::Interrupted)));
}

#[test]
fn an_error_of_the_function_cancels_what_has_not_started() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let session = bed.remotes[0].clone();
    session.hold_tasks();
    let (w, s) = (bed.worker.clone(), session.clone());
    let end = bounded("run", move || {
        w.run(|o| {
            for _ in 0..10 {
                submit(o, &task, TaskArgs::new()).map_err(|error| error.to_string())?;
            }
            assert!(s.complete_next());
            s.wait_tasks(2);
            // One has ended and one is held; when the other eight are cancelled, the one may end too.
            let w = o.worker().clone();
            drop(start(move || {
                while w.progress().finished < 9 {
                    std::thread::yield_now();
                }
                s.complete_next()
            }));
            Err::<(), _>("mine".to_owned())
        })
    });
    assert!(matches!(end, Err(RunEnd::Function(text)) if text == "mine"));
    assert_eq!(session.submitted().len(), 2);
}

#[test]
fn r_094_a_function_that_panics_leaves_the_worker_usable() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        bed.worker.run_simple(|o| {
            submit(o, &task, TaskArgs::new())?;
            panic!("of the function")
        })
    }));
    assert!(caught.is_err());
    bed.worker
        .run_simple(|o| submit(o, &task, TaskArgs::new()).map(drop))
        .unwrap();
}

#[test]
fn an_orchestrator_is_refused_after_its_run() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let (kept, _) = bed.worker.run(|o| Ok::<_, Error>(o.clone())).unwrap();
    let error = submit(&kept, &task, TaskArgs::new()).unwrap_err();
    assert!(matches!(error, Error::Lifecycle { .. }), "{error:?}");
}

#[test]
fn r_092_r_244_waits_end_by_the_bell_and_not_by_a_period() {
    const RUNNERS: u64 = 4;
    const RUNS: u64 = 500;
    let asked = Arc::new(AtomicU64::new(0));
    let worker = Worker::builder()
        .threads(2)
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    worker.set_interrupt(Arc::new(Asked(Arc::clone(&asked))));
    let noop = Callable::native("noop", |_| Ok(()));
    let noop = worker.register(noop, Default::default()).unwrap();
    worker.init().unwrap();
    let before = asked.load(Ordering::SeqCst);
    let runners: Vec<_> = (0..RUNNERS)
        .map(|_| {
            let (w, noop) = (worker.clone(), noop.clone());
            start(move || {
                for _ in 0..RUNS {
                    w.run_simple(|o| {
                        o.submit_sub(&noop, TaskArgs::new())?;
                        o.submit_sub(&noop, TaskArgs::new()).map(drop)
                    })
                    .unwrap();
                }
            })
        })
        .collect();
    runners.into_iter().for_each(|runner| runner.join("runs"));
    // A wait asks after 50 ms without its event: a lost wake-up would show here. A few are a busy machine's.
    let asked = asked.load(Ordering::SeqCst) - before;
    assert!(asked < RUNNERS * RUNS / 20, "{asked} waits were not woken");
    worker.close().unwrap();
}

/// Counts how often a wait asks whether to go on.
struct Asked(Arc<AtomicU64>);

impl Interrupt for Asked {
    fn check(&self) -> Result<(), Interrupted> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_report_does_not_wait_for_a_worker_that_is_busy_for_another_run() {
    let bed = Bed::with(0, 1, 2, Worker::builder());
    let task = bed.remote_task();
    let session = bed.remotes[0].clone();
    session.hold_tasks();
    session.on_control(|_| echelon_runtime::testing::fake::ControlVerdict::Hold);
    let (w, t) = (bed.worker.clone(), task.clone());
    let long = start(move || w.run_simple(|o| submit(o, &t, TaskArgs::new()).map(drop)));
    session.wait_tasks(1);
    let report = bed.worker.run_simple(|o| {
        submit(o, &task, TaskArgs::new())?;
        session.complete(session.in_flight()[1].ticket);
        Ok(())
    });
    assert_eq!(report.unwrap().counts["completed"], 1);
    let asked = session.controls();
    let asked = asked
        .iter()
        .filter(|c| matches!(c, ControlRequest::CollectTrace));
    assert_eq!(asked.count(), 0);
    session.carry_controls();
    assert!(session.complete_next());
    long.join("the long run").unwrap();
}
