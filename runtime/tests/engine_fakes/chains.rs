//! Chains: tasks that are sent before what they wait for has ended on their worker (design §15.18).

use echelon_runtime::endpoint::Ticket;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{FakeHandle, FakeTask};
use echelon_runtime::{
    Error, FailureKind, Orchestrator, RunError, RunReport, Tag, TaskArgs, Worker,
};

use crate::bed::{array, start, submit, whole, Bed};

/// One sub worker or one session that holds its tasks, five at a time, and takes conditions.
fn bed(subs: usize, remotes: usize) -> Bed {
    let prepare = |fake: &FakeHandle| {
        fake.takes_conditions();
        fake.hold_tasks();
    };
    Bed::made(subs, remotes, 5, Worker::builder(), prepare)
}

fn tickets(tasks: &[FakeTask]) -> Vec<Ticket> {
    tasks.iter().map(|task| task.ticket).collect()
}

fn failed(result: Result<RunReport, Error>) -> RunError {
    match result {
        Err(Error::Run(error)) => *error,
        other => panic!("{other:?}"),
    }
}

/// Each link names the one before it, and nothing else.
#[test]
fn a_chain_is_sent_link_by_link_with_its_conditions() {
    let bed = bed(0, 1);
    let (task, buffer) = (bed.remote_task(), bed.malloc(0, 8));
    let fake = bed.remotes[0].clone();
    bed.worker
        .run_simple(|o| {
            for _ in 0..3 {
                submit(o, &task, whole(&buffer, Tag::InOut))?;
            }
            submit(o, &task, whole(&buffer, Tag::Output))?;
            submit(o, &task, TaskArgs::new())?;
            let sent = fake.submitted();
            let t = tickets(&sent);
            let after: Vec<_> = sent.iter().map(|task| task.after.clone()).collect();
            assert_eq!(after, [vec![], vec![t[0]], vec![t[1]], vec![], vec![]]);
            while fake.complete_next() {}
            Ok(())
        })
        .unwrap();
}

/// the skipped links name the root, and are not counted as attempts.
#[test]
fn r_082_what_a_worker_skipped_names_the_task_that_failed() {
    let bed = bed(0, 1);
    let (task, buffer) = (bed.remote_task(), bed.malloc(0, 8));
    let fake = bed.remotes[0].clone();
    let error = failed(bed.worker.run_simple(|o| {
        for _ in 0..3 {
            submit(o, &task, whole(&buffer, Tag::InOut))?;
        }
        let sent = tickets(&fake.submitted());
        fake.fail(sent[0], "broken");
        fake.skip(sent[1]);
        fake.skip(sent[2]);
        Ok(())
    }));
    assert_eq!((error.failures.len(), error.skipped), (1, 2));
    assert_eq!(error.failures[0].kind, FailureKind::Failed);
    for affected in &error.affected {
        assert_eq!(
            (affected.kind, affected.cause),
            (FailureKind::Skipped, Some(1))
        );
    }
    assert_eq!(fake.submitted().len(), 3);
}

/// A worker that skips without a reason gets the task once more, alone.
#[test]
fn what_was_skipped_without_a_reason_is_sent_again() {
    let bed = bed(0, 1);
    let (task, buffer) = (bed.remote_task(), bed.malloc(0, 8));
    let fake = bed.remotes[0].clone();
    let run = start({
        let (worker, task) = (bed.worker.clone(), task.clone());
        move || {
            worker.run_simple(|o| {
                submit(o, &task, whole(&buffer, Tag::InOut))?;
                submit(o, &task, whole(&buffer, Tag::InOut)).map(drop)
            })
        }
    });
    fake.wait_tasks(2);
    let sent = tickets(&fake.submitted());
    fake.complete(sent[0]);
    fake.skip(sent[1]);
    fake.wait_tasks(3);
    assert!(fake.submitted()[2].after.is_empty());
    fake.complete(fake.submitted()[2].ticket);
    assert_eq!(run.join("the run").unwrap().counts["completed"], 2);
}

/// a lost worker had begun the first link; the others were skipped or had not begun.
#[test]
fn r_084_a_lost_worker_loses_the_link_that_it_had_begun() {
    for known in [false, true] {
        let bed = bed(0, 1);
        let (task, buffer) = (bed.remote_task(), bed.malloc(0, 8));
        let fake = bed.remotes[0].clone();
        let error = failed(bed.worker.run_simple(|o| {
            for _ in 0..3 {
                submit(o, &task, whole(&buffer, Tag::InOut))?;
            }
            if known {
                fake.lose_with_queue("gone");
            } else {
                fake.lose("gone");
            }
            Ok(())
        }));
        let lost: Vec<u64> = error.failures.iter().map(|f| f.sequence).collect();
        assert_eq!((lost, error.skipped), (vec![1], 2), "known {known}");
    }
}

/// Decision 0004: the results of a link over an array are in the array only when the parent has copied them back.
#[test]
fn nothing_is_sent_behind_a_task_whose_results_are_copied_back() {
    let bed = bed(1, 0);
    let task = bed.sub_task();
    let fake = bed.subs[0].clone();
    let memory = HostMemory::from_vec(vec![0; 8]);
    let writable = HostMemory::from_vec(vec![0; 8]);
    bed.worker
        .run_simple(|o| {
            let sub = |o: &Orchestrator, args| o.submit_sub(&task, args).map(drop);
            sub(o, array(&writable, Tag::InOut))?;
            sub(o, array(&writable, Tag::Input))?;
            // What only reads is not copied back.
            sub(o, array(&memory, Tag::Input))?;
            assert_eq!(fake.submitted().len(), 2);
            while fake.complete_next() {}
            fake.wait_tasks(3);
            assert!(fake.submitted()[2].after.is_empty());
            while fake.complete_next() {}
            Ok(())
        })
        .unwrap();
}
