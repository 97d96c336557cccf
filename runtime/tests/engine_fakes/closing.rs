//! `close()` from any thread, with anything under way: it ends, and so does whoever waits.

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::ControlVerdict;
use echelon_runtime::{
    Callable, CopySide, Error, FailureKind, RegisterOptions, RegisterScope, TaskArgs, Worker,
    WorkerState,
};

use crate::bed::{bounded, start, submit, u8s, Bed};

#[test]
fn a_close_from_another_thread_ends_a_run_that_waits() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    bed.remotes[0].hold_tasks();
    let (w, t) = (bed.worker.clone(), task.clone());
    let (told, all_submitted) = std::sync::mpsc::channel();
    let running = start(move || {
        w.run_simple(|o| {
            for _ in 0..3 {
                submit(o, &t, TaskArgs::new())?;
            }
            // A close between two submits would be the next submit's error, not the run's.
            told.send(()).unwrap();
            Ok(())
        })
    });
    bed.remotes[0].wait_tasks(1);
    all_submitted.recv().unwrap();
    let w = bed.worker.clone();
    bounded("close", move || w.close()).unwrap();
    let Err(Error::Run(error)) = running.join("run") else {
        panic!("the run must fail")
    };
    assert_eq!(error.failures[0].kind, FailureKind::EndpointLost);
    assert_eq!(error.failures[0].worker, "remote0");
    assert!(error.failures[0].message.contains("closed"), "{error}");
    let text = error.to_string();
    assert!(text.contains("another thread called close()"), "{text}");
    assert_eq!(error.failures.len() as u64 + error.cancelled, 3);
    assert_eq!(bed.worker.state(), WorkerState::Closed);
}

#[test]
fn r_130_submits_copies_and_controls_after_the_close_say_so() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let buffer = bed.malloc(0, 8);
    let host = HostMemory::from_vec(vec![0; 8]);
    let w = bed.worker.clone();
    let result = bounded("run", move || {
        w.clone().run(|o| {
            w.close()?;
            let copy = o.copy(
                CopySide::Remote {
                    buffer: buffer.clone(),
                    offset: 0,
                    meta: u8s(8),
                },
                CopySide::Host {
                    memory: host.clone(),
                    meta: u8s(8),
                },
            );
            let results = [
                submit(o, &task, TaskArgs::new()).map(drop),
                copy.map(drop),
                w.remote_free(&buffer),
                w.remote_malloc(0, 8).map(drop),
                w.remote_copy_to(&buffer, &host, 0),
                w.register(crate::bed::import("m:late"), Default::default())
                    .map(drop),
                w.run_simple(|_| Ok(())).map(drop),
            ];
            for (index, result) in results.into_iter().enumerate() {
                let told = matches!(result, Err(Error::Lifecycle { .. }));
                assert!(told, "{index}: {result:?}");
            }
            Ok::<_, Error>(())
        })
    });
    result.unwrap();
}

#[test]
fn r_130_a_close_ends_a_submit_that_waits_for_room_and_a_control_that_waits_for_its_answer() {
    let bed = Bed::with(0, 1, 1, Worker::builder().max_tasks(1));
    let task = bed.remote_task();
    bed.remotes[0].hold_tasks();
    bed.remotes[0].on_control(|_| ControlVerdict::Hold);
    let (w, t) = (bed.worker.clone(), task.clone());
    let submitting = start(move || {
        w.run_simple(|o| {
            submit(o, &t, TaskArgs::new())?;
            submit(o, &t, TaskArgs::new()).map(drop)
        })
    });
    bed.remotes[0].wait_tasks(1);
    let w = bed.worker.clone();
    let asking = start(move || w.remote_malloc(0, 8).map(drop));
    bed.remotes[0].wait_for("the alloc", |_, controls| {
        controls
            .iter()
            .any(|control| matches!(control, ControlRequest::Alloc { .. }))
    });
    let w = bed.worker.clone();
    bounded("close", move || w.close()).unwrap();
    assert!(submitting.join("run").is_err());
    let asked = asking.join("malloc");
    assert!(
        matches!(asked, Err(Error::EndpointLost { .. })),
        "{asked:?}"
    );
}

#[test]
fn r_128_close_is_idempotent_and_may_be_called_from_many_threads() {
    let bed = Bed::new(1, 1);
    let closers: Vec<_> = (0..4)
        .map(|_| {
            let w = bed.worker.clone();
            start(move || w.close())
        })
        .collect();
    for closer in closers {
        closer.join("close").unwrap();
    }
    bed.worker.close().unwrap();
    assert_eq!(bed.worker.state(), WorkerState::Closed);
}

#[test]
fn r_130_close_races_with_submits_and_nothing_hangs() {
    for round in 0..50 {
        let bed = Bed::with(1, 2, 2, Worker::builder());
        let (task, leaf) = (bed.remote_task(), bed.sub_task());
        let w = bed.worker.clone();
        let running = start(move || {
            w.run_simple(|o| {
                for _ in 0..200 {
                    submit(o, &task, TaskArgs::new())?;
                    o.submit_sub(&leaf, TaskArgs::new())?;
                }
                Ok(())
            })
        });
        bed.remotes[0].wait_tasks(1 + round % 7);
        let w = bed.worker.clone();
        bounded("close", move || w.close()).unwrap();
        drop(running.join("run"));
    }
}

/// Closes the worker when it goes.
struct ClosesWhenDropped(Worker);

impl Drop for ClosesWhenDropped {
    fn drop(&mut self) {
        self.0.close().unwrap();
    }
}

#[test]
fn r_106_a_callable_that_closes_the_worker_when_it_is_dropped_does_no_harm() {
    let worker = Worker::builder()
        .threads(1)
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    let closes = ClosesWhenDropped(worker.clone());
    let callable = Callable::native("holds", move |_| {
        let _held = &closes;
        Ok(())
    });
    let handle = worker.register(callable, Default::default()).unwrap();
    drop(handle);
    worker.init().unwrap();
    let w = worker.clone();
    bounded("close", move || w.close()).unwrap();
    assert_eq!(worker.state(), WorkerState::Closed);
}

#[test]
fn r_102_close_races_with_registrations_and_nothing_hangs() {
    for round in 0..50 {
        let bed = Bed::new(0, 3);
        let w = bed.worker.clone();
        let registering = start(move || {
            for count in 0..100 {
                let callable = crate::bed::import(&format!("m:f{count}"));
                let options = RegisterOptions {
                    scope: RegisterScope::Remote,
                    ..RegisterOptions::default()
                };
                match w.register(callable, options) {
                    Ok(handle) if count % 2 == 0 => w.unregister(&handle)?,
                    other => drop(other?),
                }
            }
            Ok::<_, Error>(())
        });
        bed.remotes[round % 3].wait_for("a control", |_, controls| controls.len() > round);
        let w = bed.worker.clone();
        bounded("close", move || w.close()).unwrap();
        drop(registering.join("the registrations"));
    }
}

/// A close() that could not end everything says what is left, keeps exactly that, and a later one goes on with it: nothing that
/// has ended is ended again.
#[test]
fn r_133_r_131_r_122_what_is_left_is_named_kept_and_ended_later() {
    let bed = Bed::new(1, 3);
    let task = bed.remote_task();
    bed.remotes[1].on_close(|attempt| match attempt {
        1 | 2 => Err(format!("remote1 does not end, attempt {attempt}")),
        _ => Ok(()),
    });
    let closes = || bed.remotes.iter().map(|remote| remote.closes());
    for attempt in 1..=2 {
        let Err(Error::Close { survivors }) = bed.worker.close() else {
            panic!("it cannot have ended")
        };
        assert_eq!(
            survivors,
            [format!("remote1 does not end, attempt {attempt}")]
        );
        assert_eq!(bed.worker.state(), WorkerState::Closing);
        assert_eq!(closes().collect::<Vec<_>>(), [1, attempt, 1]);
        let refused = bed
            .worker
            .run_simple(|o| submit(o, &task, TaskArgs::new()).map(drop));
        assert!(
            matches!(refused, Err(Error::Lifecycle { .. })),
            "{refused:?}"
        );
    }
    for _ in 0..2 {
        bed.worker.close().unwrap();
        assert_eq!(bed.worker.state(), WorkerState::Closed);
        assert_eq!(closes().collect::<Vec<_>>(), [1, 3, 1]);
    }
    assert_eq!(bed.subs[0].closes(), 1);
}

/// Callers at the same time take turns at what is left; the state is terminal once, and for all.
#[test]
fn r_128_many_threads_close_while_resources_fail() {
    let bed = Bed::new(2, 3);
    for (remote, failures) in bed.remotes.iter().zip([0, 1, 3]) {
        remote.on_close(move |attempt| {
            if attempt <= failures {
                return Err(format!("attempt {attempt} of {failures}"));
            }
            Ok(())
        });
    }
    let closers: Vec<_> = (0..6)
        .map(|_| {
            let w = bed.worker.clone();
            start(move || w.close())
        })
        .collect();
    let results: Vec<_> = closers.into_iter().map(|c| c.join("close")).collect();
    let failed = results.iter().filter(|result| result.is_err()).count();
    assert_eq!(
        failed, 3,
        "one for each turn that left something: {results:?}"
    );
    assert_eq!(bed.worker.state(), WorkerState::Closed);
    let closes: Vec<u32> = bed.remotes.iter().map(|remote| remote.closes()).collect();
    assert_eq!(closes, [1, 2, 4]);
}

/// What ends may call close() again, on the same thread: it is told at once, and the outer call alone decides the state.
#[test]
fn r_128_close_from_inside_close_waits_for_nothing_and_decides_nothing() {
    let bed = Bed::new(0, 2);
    let w = bed.worker.clone();
    bed.remotes[0].on_close(move |_| {
        w.close().unwrap();
        assert_eq!(w.state(), WorkerState::Closing);
        Ok(())
    });
    let w = bed.worker.clone();
    bounded("close", move || w.close()).unwrap();
    assert_eq!(bed.worker.state(), WorkerState::Closed);
    assert_eq!(bed.remotes[1].closes(), 1);
    // The rule holds the worker, and the worker the fake.
    bed.remotes[0].on_close(|_| Ok(()));
}
