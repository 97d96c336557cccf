//! Endpoints that are lost: what was there is lost once, the rest goes on elsewhere (R-084, R-004 of the runtime).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use echelon_runtime::testing::fake::TaskVerdict;
use echelon_runtime::{Error, FailureKind, RunError, RunReport, Tag, TaskArgs, Worker};
use echelon_wire::call_config::CallConfig;

use crate::bed::{start, submit, whole, Bed};

fn run_error(result: Result<RunReport, Error>) -> RunError {
    match result {
        Err(Error::Run(error)) => *error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn r_084_a_completion_after_the_loss_is_dropped() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    let lossy = &bed.remotes[0];
    lossy.hold_tasks();
    let error = run_error(bed.worker.run_simple(|o| {
        o.submit_next_level(&task, TaskArgs::new(), CallConfig::default(), Some(0))?;
        let ticket = lossy.in_flight()[0].ticket;
        lossy.lose("reset by peer");
        lossy.complete(ticket);
        lossy.complete(ticket);
        Ok(())
    }));
    assert_eq!(error.failures.len(), 1);
    let failure = &error.failures[0];
    assert_eq!(failure.kind, FailureKind::EndpointLost);
    assert_eq!(
        (failure.worker_id, failure.worker.as_str()),
        (Some(0), "remote0")
    );
    assert!(failure.message.contains("reset by peer"));
    assert!(failure.host.is_some());
    // The worker is usable, and the lost one is never used again.
    for _ in 0..3 {
        bed.worker
            .run_simple(|o| submit(o, &task, TaskArgs::new()).map(drop))
            .unwrap();
    }
    assert_eq!(lossy.submitted().len(), 1);
}

#[test]
fn answers_that_nobody_asked_for_settle_nothing() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    bed.remotes.iter().for_each(|r| r.hold_tasks());
    let report = bed.worker.run_simple(|o| {
        for worker in [0, 1] {
            o.submit_next_level(&task, TaskArgs::new(), CallConfig::default(), Some(worker))?;
        }
        let tickets = [0, 1].map(|i: usize| bed.remotes[i].in_flight()[0].ticket);
        // Each answers for the other's task first.
        bed.remotes[0].fail(tickets[1], "not mine");
        bed.remotes[1].fail(tickets[0], "not mine");
        // A round trip: what came before it has been looked at.
        bed.malloc(0, 1);
        bed.malloc(1, 1);
        bed.remotes[0].complete(tickets[0]);
        bed.remotes[1].complete(tickets[1]);
        Ok(())
    });
    assert_eq!(report.unwrap().counts["completed"], 2);
}

#[test]
fn a_worker_that_is_gone_draws_no_further_tasks() {
    for slowly in [false, true] {
        let bed = Bed::with(0, 2, 2, Worker::builder());
        let task = bed.remote_task();
        let dead = &bed.remotes[0];
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        dead.on_task(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            TaskVerdict::Lose("power".into())
        });
        if slowly {
            bed.remotes[1].hold_tasks();
        }
        let other = bed.remotes[1].clone();
        let completing = slowly.then(|| {
            start(move || {
                for count in 1..=40 {
                    other.wait_tasks(count);
                    assert!(other.complete_next());
                }
            })
        });
        let report = bed.worker.run_simple(|o| {
            for _ in 0..40 {
                submit(o, &task, TaskArgs::new())?;
            }
            Ok(())
        });
        // What it did not take is not lost, and it was asked for at most what it may have in flight.
        assert_eq!(report.unwrap().counts["completed"], 40);
        assert!(asked.load(Ordering::SeqCst) <= 2);
        if let Some(completing) = completing {
            completing.join("the other worker");
        }
    }
}

#[test]
fn a_chain_behind_a_lost_task_is_skipped_and_what_overwrites_runs() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let sub = Bed::new(1, 2);
    let leaf = sub.remote_task();
    let _ = (&bed, &task);
    let buffer = sub.malloc(1, 8);
    let export = sub
        .worker
        .remote_export(
            &buffer,
            0,
            None,
            echelon_wire::buffer::AccessFlags::READ_WRITE,
        )
        .unwrap();
    let window = sub.worker.remote_import(&export, 0, None).unwrap();
    sub.remotes[0].hold_tasks();
    let error = run_error(sub.worker.run_simple(|o| {
        submit(o, &leaf, whole(&window, Tag::Output))?;
        submit(o, &leaf, whole(&buffer, Tag::Input))?;
        submit(o, &leaf, whole(&buffer, Tag::InOut))?;
        submit(o, &leaf, whole(&buffer, Tag::Output))?;
        submit(o, &leaf, whole(&buffer, Tag::Input))?;
        sub.remotes[0].lose("power");
        Ok(())
    }));
    assert_eq!((error.failures.len(), error.skipped), (1, 2), "{error}");
    assert_eq!(sub.remotes[1].submitted().len(), 2);
}

#[test]
fn with_all_workers_lost_every_task_ends_and_says_why() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    bed.remotes.iter().for_each(|r| r.hold_tasks());
    let error = run_error(bed.worker.run_simple(|o| {
        for _ in 0..10 {
            submit(o, &task, TaskArgs::new())?;
        }
        bed.remotes.iter().for_each(|r| r.lose("fire"));
        Ok(())
    }));
    assert_eq!(error.failures.len(), 10);
    assert!(error
        .failures
        .iter()
        .all(|failure| failure.kind == FailureKind::EndpointLost));
    let text = bed
        .worker
        .run_simple(|o| submit(o, &task, TaskArgs::new()).map(drop))
        .unwrap_err()
        .to_string();
    assert!(text.contains("fire"), "{text}");
}

#[test]
fn a_refused_task_fails_alone() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let mut first = true;
    bed.remotes[0].on_task(move |_| match std::mem::take(&mut first) {
        true => TaskVerdict::Refuse("the payload is too large".into()),
        false => TaskVerdict::Done,
    });
    let error = run_error(bed.worker.run_simple(|o| {
        submit(o, &task, TaskArgs::new())?;
        submit(o, &task, TaskArgs::new()).map(drop)
    }));
    assert_eq!(error.failures.len(), 1);
    assert_eq!(error.failures[0].kind, FailureKind::Failed);
    assert!(error.failures[0].message.contains("too large"));
    assert_eq!(bed.remotes[0].submitted().len(), 1);
}
