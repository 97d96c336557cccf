//! Second attempts of idempotent tasks, and time limits (R-086, design §15.15).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use echelon_runtime::endpoint::Endpoint;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{FakeHandle, FakeTask, TaskVerdict};
use echelon_runtime::testing::give_successors;
use echelon_runtime::{
    Error, FailureKind, Orchestrator, RunError, RunReport, Tag, TaskArgs, TaskOptions, Worker,
};
use echelon_wire::call_config::CallConfig;

use crate::bed::{array, bounded, submit, Bed};

const IDEMPOTENT: TaskOptions = TaskOptions {
    timeout: None,
    idempotent: true,
};

fn within(ms: u64) -> TaskOptions {
    TaskOptions {
        timeout: Some(Duration::from_millis(ms)),
        idempotent: false,
    }
}

fn run(
    bed: &Bed,
    work: impl Fn(&Orchestrator) -> Result<(), Error> + Send + 'static,
) -> Result<RunReport, RunError> {
    let worker = bed.worker.clone();
    match bounded("the run", move || worker.run_simple(|o| work(o))) {
        Ok(report) => Ok(report),
        Err(Error::Run(error)) => Err(*error),
        Err(other) => panic!("{other}"),
    }
}

/// Every process of `sub0` loses its task until `bad` of them have; what a task does is `act`, which gets the attempt's number.
/// Returns how many were begun.
fn dying(
    bed: &Bed,
    bad: usize,
    act: impl Fn(&FakeTask, usize) + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let begun = Arc::new(AtomicUsize::new(0));
    let (act, counted) = (Arc::new(act), Arc::clone(&begun));
    let rule = move |handle: &FakeHandle| {
        let (begun, act, end) = (Arc::clone(&counted), Arc::clone(&act), handle.clone());
        handle.on_task(move |task| {
            let attempt = begun.fetch_add(1, Ordering::SeqCst) + 1;
            act(task, attempt);
            if attempt > bad {
                return TaskVerdict::Done;
            }
            // A rule must not call its handle: the loss comes from another thread, after the task was taken.
            let end = end.clone();
            std::thread::spawn(move || end.lose(&format!("end {attempt}")));
            TaskVerdict::Hold
        });
    };
    rule(&bed.subs[0]);
    let world = Arc::clone(&bed.world);
    let recipe = move || {
        let (endpoint, handle) = world.local("sub0", 1);
        rule(&handle);
        Ok(endpoint as Box<dyn Endpoint>)
    };
    give_successors(&bed.worker, 0, recipe).unwrap();
    begun
}

#[test]
fn r_086_an_idempotent_task_is_tried_again_after_the_loss_of_its_worker() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let begun = dying(&bed, 2, |_, _| {});
    let report = run(&bed, move |o| {
        o.with(IDEMPOTENT)?.submit_sub(&leaf, TaskArgs::new())?;
        Ok(())
    })
    .unwrap();
    assert_eq!((report.counts["completed"], report.retried), (1, 2));
    assert_eq!(begun.load(Ordering::SeqCst), 3);
    let seen: Vec<(u32, &str)> = report
        .timeline
        .iter()
        .map(|event| (event.attempt, &*event.outcome))
        .collect();
    assert_eq!(seen, [(1, "lost"), (2, "lost"), (3, "completed")]);
    let story = report.explain(1).unwrap();
    assert!(
        story.contains("attempt 3 to sub0") && story.contains("attempt 1 as lost"),
        "{story}"
    );
    assert_eq!(bed.worker.progress().retried, 2);
}

/// Side effects are at most the attempts, whatever dies.
#[test]
fn r_086_attempts_are_bounded_and_the_last_loss_is_told() {
    for most in [1, 2] {
        let bed = Bed::with(1, 0, 1, Worker::builder().max_attempts(most));
        let leaf = bed.sub_task();
        let begun = dying(&bed, usize::MAX, |_, _| {});
        let error = run(&bed, move |o| {
            o.with(IDEMPOTENT)?.submit_sub(&leaf, TaskArgs::new())?;
            Ok(())
        })
        .unwrap_err();
        assert_eq!(begun.load(Ordering::SeqCst), most as usize);
        let failure = &error.failures[0];
        assert_eq!(
            (failure.kind, failure.attempts),
            (FailureKind::EndpointLost, most)
        );
        assert!(
            failure.message.contains(&format!("end {most}")),
            "{failure}"
        );
        let story = failure.tell();
        assert_eq!(
            story.matches("dispatched").count(),
            most as usize,
            "{story}"
        );
        assert!(
            most == 1 || story.contains("to be tried again: end 1"),
            "{story}"
        );
    }
}

#[test]
fn r_086_what_is_not_idempotent_or_raised_is_not_tried_again() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let plain = leaf.clone();
    let begun = dying(&bed, 1, |_, _| {});
    let error = run(&bed, move |o| {
        o.submit_sub(&plain, TaskArgs::new()).map(drop)
    })
    .unwrap_err();
    assert_eq!(error.failures[0].kind, FailureKind::EndpointLost);
    assert_eq!(begun.load(Ordering::SeqCst), 1);

    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    bed.subs[0].on_task(|_| TaskVerdict::Fail("ValueError".into()));
    let error = run(&bed, move |o| {
        o.with(IDEMPOTENT)?.submit_sub(&leaf, TaskArgs::new())?;
        Ok(())
    })
    .unwrap_err();
    assert_eq!(
        (error.failures[0].kind, error.failures[0].attempts),
        (FailureKind::Failed, 1)
    );
    assert_eq!(bed.subs[0].submitted().len(), 1);
}

/// what was not the callable's doing ends as lost, that task only: its worker goes on, and what reads from it is skipped.
#[test]
fn r_085_a_task_that_its_worker_could_not_carry_out_is_lost_alone() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    bed.remotes[0].on_task(|task| match task.scalars.as_slice() {
        [1] => TaskVerdict::FailByInfrastructure("the owner, worker 7, is gone".into()),
        [2] => TaskVerdict::Fail("ValueError".into()),
        _ => TaskVerdict::Done,
    });
    let work = move |o: &Orchestrator| {
        for scalar in 0..4 {
            let mut args = TaskArgs::new();
            args.add_scalar(scalar)?;
            submit(o, &task, args)?;
        }
        Ok(())
    };
    let error = run(&bed, work).unwrap_err();
    assert_eq!(error.kind(), FailureKind::EndpointLost);
    let seen: Vec<_> = error
        .failures
        .iter()
        .map(|failure| (failure.sequence, failure.kind, failure.worker.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (2, FailureKind::EndpointLost, "remote0"),
            (3, FailureKind::Failed, "remote0")
        ]
    );
    assert!(error.to_string().contains("worker 7"), "{error}");
    assert_eq!(bed.remotes[0].submitted().len(), 4, "the worker goes on");
}

#[test]
fn r_086_a_task_that_its_worker_could_not_carry_out_is_tried_again_there() {
    for bad in [1, usize::MAX] {
        let bed = Bed::with(0, 1, 1, Worker::builder().max_attempts(2));
        let task = bed.remote_task();
        let begun = AtomicUsize::new(0);
        bed.remotes[0].on_task(move |_| {
            if begun.fetch_add(1, Ordering::SeqCst) < bad {
                return TaskVerdict::FailByInfrastructure("out of reach".into());
            }
            TaskVerdict::Done
        });
        let ended = run(&bed, move |o| {
            submit(&o.with(IDEMPOTENT)?, &task, TaskArgs::new()).map(drop)
        });
        assert_eq!(bed.remotes[0].submitted().len(), 2);
        match ended {
            Ok(report) => {
                assert_eq!((report.counts["completed"], report.retried), (1, 1));
                let seen: Vec<_> = report.timeline.iter().map(|e| &*e.outcome).collect();
                assert_eq!(seen, ["lost", "completed"]);
            }
            Err(error) => {
                assert_eq!(bad, usize::MAX, "{error}");
                let failure = &error.failures[0];
                assert_eq!(
                    (failure.kind, failure.attempts),
                    (FailureKind::EndpointLost, 2)
                );
            }
        }
    }
}

#[test]
fn r_086_another_worker_takes_over() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    bed.remotes.iter().for_each(|remote| remote.hold_tasks());
    let remotes = [bed.remotes[0].clone(), bed.remotes[1].clone()];
    let report = run(&bed, move |o| {
        submit(&o.with(IDEMPOTENT)?, &task, TaskArgs::new())?;
        let first = usize::from(remotes[0].in_flight().is_empty());
        remotes[first].lose("power");
        let other = remotes[1 - first].clone();
        other.on_task(|_| TaskVerdict::Done);
        Ok(())
    })
    .unwrap();
    assert_eq!((report.counts["completed"], report.retried), (1, 1));
}

/// Arrays are staged for each attempt: what a lost attempt left in the shadow is not what the next one reads.
#[test]
fn r_086_arrays_are_staged_again_for_each_attempt() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let bytes = |task: &FakeTask, index: usize| match &task.tensors[index].place {
        echelon_runtime::endpoint::Place::Shared { region, offset, .. } => {
            region.host(*offset, 4).unwrap()
        }
        _ => panic!("an array is in shared memory"),
    };
    dying(&bed, 1, move |task, attempt| {
        let mut input = [0; 4];
        bytes(task, 0).copy_out(0, &mut input).unwrap();
        assert_eq!(input, [7; 4], "attempt {attempt}");
        // A lost attempt scribbles over everything.
        bytes(task, 0).copy_in(0, &[99; 4]).unwrap();
        bytes(task, 1).copy_in(0, &[attempt as u8; 4]).unwrap();
    });
    let input = HostMemory::from_vec(vec![7; 4]);
    let output = HostMemory::from_vec(vec![0; 4]);
    let (of_run, result) = (input.clone(), output.clone());
    run(&bed, move |o| {
        let mut args = array(&of_run, Tag::Input);
        args.add_host(result.clone(), crate::bed::u8s(4), Tag::Output)?;
        o.with(IDEMPOTENT)?.submit_sub(&leaf, args).map(drop)
    })
    .unwrap();
    let read = |memory: &HostMemory| {
        let mut bytes = [0; 4];
        memory.copy_out(0, &mut bytes).unwrap();
        bytes
    };
    assert_eq!((read(&input), read(&output)), ([7; 4], [2; 4]));
}

#[test]
fn r_086_what_may_be_half_written_cannot_be_idempotent() {
    let bed = Bed::new(1, 2);
    let (leaf, task) = (bed.sub_task(), bed.remote_task());
    let memory = HostMemory::from_vec(vec![0; 4]);
    run(&bed, move |o| {
        let o = o.with(IDEMPOTENT)?;
        for tag in [Tag::InOut, Tag::NoDep] {
            let error = o.submit_sub(&leaf, array(&memory, tag)).unwrap_err();
            assert!(
                matches!(
                    &error,
                    Error::Argument {
                        what: "idempotent",
                        ..
                    }
                ),
                "{error}"
            );
            assert!(error.to_string().contains(tag.name()), "{error}");
        }
        o.submit_sub_group(&leaf, vec![TaskArgs::new(), TaskArgs::new()])?;
        let members = vec![TaskArgs::new(), TaskArgs::new()];
        let error = o
            .submit_next_level_group(&task, members, CallConfig::default(), None)
            .unwrap_err();
        assert!(error.to_string().contains("together"), "{error}");
        Ok(())
    })
    .unwrap();
}

/// An interrupt ends what waits for another attempt, too.
#[test]
fn a_held_attempt_is_cancelled_with_its_run() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    let interrupt = Arc::clone(&bed.interrupt);
    let begun = dying(&bed, usize::MAX, move |_, _| interrupt.set(true));
    let worker = bed.worker.clone();
    let ended = bounded("the run", move || {
        worker.run_simple(|o| {
            o.with(IDEMPOTENT)?
                .submit_sub(&leaf, TaskArgs::new())
                .map(drop)
        })
    });
    assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
    assert!(begun.load(Ordering::SeqCst) <= 3);
    let progress = bed.worker.progress();
    assert_eq!(progress.finished, 1);
    bed.interrupt.set(false);
}

#[test]
fn section_15_15_a_task_out_of_time_loses_its_worker_and_says_so() {
    let bed = Bed::new(1, 1);
    let (leaf, task) = (bed.sub_task(), bed.remote_task());
    bed.subs[0].hold_tasks();
    bed.remotes[0].hold_tasks();
    let error = run(&bed, move |o| {
        let o = o.with(within(5))?;
        o.submit_sub(&leaf, TaskArgs::new())?;
        submit(&o, &task, TaskArgs::new()).map(drop)
    })
    .unwrap_err();
    assert_eq!(error.failures.len(), 2);
    for failure in &error.failures {
        assert_eq!(failure.kind, FailureKind::EndpointLost);
        assert!(failure.message.contains("timeout_s of 0.005"), "{failure}");
    }
}

/// This process may have stood still: what has come meanwhile is read before any time is found to have passed.
#[test]
fn section_15_15_a_task_whose_answer_nobody_has_read_yet_was_in_time() {
    let bed = Bed::new(1, 1);
    let (leaf, task) = (bed.sub_task(), bed.remote_task());
    bed.subs[0].on_task(|_| TaskVerdict::DoneUnread);
    bed.remotes[0].on_task(|_| TaskVerdict::DoneUnread);
    let report = run(&bed, move |o| {
        let o = o.with(within(5))?;
        o.submit_sub(&leaf, TaskArgs::new())?;
        submit(&o, &task, TaskArgs::new()).map(drop)
    });
    assert!(report.is_ok(), "{report:?}");
}

/// A task spends its time when it runs, not while it waits behind another in the worker's queue.
#[test]
fn section_15_15_time_in_the_queue_of_a_worker_does_not_count() {
    let bed = Bed::with(2, 0, 2, Worker::builder());
    let leaf = bed.sub_task();
    bed.subs.iter().for_each(|sub| sub.hold_tasks());
    let (first, second) = (bed.subs[0].clone(), bed.subs[1].clone());
    let error = run(&bed, move |o| {
        // One to each, then a short one behind the first.
        o.submit_sub(&leaf, TaskArgs::new())?;
        o.with(within(40))?.submit_sub(&leaf, TaskArgs::new())?;
        o.with(within(1))?.submit_sub(&leaf, TaskArgs::new())?;
        let slow = first.in_flight()[0].ticket;
        assert_eq!((first.in_flight().len(), second.in_flight().len()), (2, 1));
        // When the other worker's task is out of its time, the time of the short one has long passed.
        second.wait_until_gone();
        assert_eq!(first.in_flight().len(), 2);
        first.complete(slow);
        Ok(())
    })
    .unwrap_err();
    let lost: Vec<u64> = error
        .failures
        .iter()
        .map(|failure| failure.sequence)
        .collect();
    assert_eq!(lost, [2, 3]);
    assert!(error.failures[1].message.contains("timeout_s of 0.001"));
}

#[test]
fn a_time_limit_outside_its_range_is_refused() {
    let bed = Bed::new(1, 0);
    run(&bed, |o| {
        for timeout in [Duration::ZERO, Duration::from_secs(40 * 24 * 3600)] {
            let options = TaskOptions {
                timeout: Some(timeout),
                ..TaskOptions::default()
            };
            assert!(o.with(options).is_err());
        }
        Ok(())
    })
    .unwrap();
}
