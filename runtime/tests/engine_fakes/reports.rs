//! What a run says of its failures: kinds, bounds, stories, counters.

use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::TaskVerdict;
use echelon_runtime::{Error, FailureKind, Orchestrator, RunError, Tag, TaskArgs, Worker};

use crate::bed::{array, start, Bed};

fn failed(bed: &Bed, work: impl FnOnce(&Orchestrator) -> Result<(), Error>) -> RunError {
    match bed.worker.run_simple(work) {
        Err(Error::Run(error)) => *error,
        other => panic!("{other:?}"),
    }
}

/// a run with very many failures lists the first hundred and says how many more there were.
#[test]
fn r_080_the_list_of_failures_is_bounded_and_says_what_it_leaves_out() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    bed.subs[0].on_task(|task| {
        TaskVerdict::Fail(format!("rank {} {}", task.scalars[0], "x".repeat(4096)))
    });
    let error = failed(&bed, |o| {
        for rank in 0..250 {
            let memory = HostMemory::from_vec(vec![0; 8]);
            let mut args = array(&memory, Tag::Output);
            args.add_scalar(rank)?;
            o.submit_sub(&leaf, args)?;
            o.submit_sub(&leaf, array(&memory, Tag::Input))?;
        }
        Ok(())
    });
    assert_eq!((error.failures.len(), error.failures_dropped), (100, 150));
    assert_eq!((error.affected.len(), error.skipped), (100, 250));
    let text = error.to_string();
    assert!(text.len() < 10_000, "{}", text.len());
    assert!(
        text.contains("249 more tasks failed, 150 of them not listed, 250 were skipped"),
        "{text}"
    );
    assert!(error.undefined_ranges.len() <= 17);
    assert!(error
        .undefined_ranges
        .last()
        .unwrap()
        .contains("ranges more"));
}

/// each kind is told apart in the report and in the counters.
#[test]
fn r_085_kinds_are_told_apart() {
    let bed = Bed::new(2, 0);
    let leaf = bed.sub_task();
    let (bad, dying) = (bed.subs[0].clone(), bed.subs[1].clone());
    let held = HostMemory::from_vec(vec![0; 8]);
    for sub in [&bad, &dying] {
        sub.hold_tasks();
    }
    let error = failed(&bed, |o| {
        o.submit_sub(&leaf, array(&held, Tag::Output))?;
        o.submit_sub(&leaf, TaskArgs::new())?;
        o.submit_sub(&leaf, array(&held, Tag::Input))?;
        bad.fail(bad.in_flight()[0].ticket, "ValueError: broken");
        dying.lose("killed by signal 9");
        Ok(())
    });
    let kinds: Vec<_> = error
        .failures
        .iter()
        .map(|f| (f.sequence, f.kind))
        .collect();
    assert_eq!(
        kinds,
        [(1, FailureKind::Failed), (2, FailureKind::EndpointLost)]
    );
    let skipped = &error.affected[0];
    assert_eq!(
        (skipped.sequence, skipped.kind, skipped.cause),
        (3, FailureKind::Skipped, Some(1))
    );
    assert_eq!(error.kind(), FailureKind::Failed);
    let progress = bed.worker.progress();
    assert_eq!(
        (progress.failed, progress.lost, progress.skipped),
        (1, 1, 1)
    );
    let story = error.failures[0].tell();
    for word in ["submitted", "dispatched to sub0", "answered", "as failed"] {
        assert!(
            story.contains(word) || story.contains(&word.replace(' ', "  ")),
            "{word}: {story}"
        );
    }
    assert!(
        skipped.tell().contains("waits for tasks [1]"),
        "{}",
        skipped.tell()
    );
}

/// a task that is never begun leaves no counter behind: the table has its place back.
#[test]
fn r_090_skipped_tasks_give_their_places_back() {
    let bed = Bed::with(1, 0, 1, Worker::builder().max_tasks(4));
    let leaf = bed.sub_task();
    bed.subs[0].on_task(|_| TaskVerdict::Fail("broken".into()));
    for round in 1..=3 {
        let memory = HostMemory::from_vec(vec![0; 8]);
        let error = failed(&bed, |o| {
            o.submit_sub(&leaf, array(&memory, Tag::Output))?;
            for _ in 0..20 {
                o.submit_sub(&leaf, array(&memory, Tag::InOut))?;
            }
            Ok(())
        });
        assert_eq!((error.failures.len(), error.skipped), (1, 20));
        let progress = bed.worker.progress();
        assert_eq!(
            (progress.submitted, progress.finished),
            (21 * round, 21 * round)
        );
    }
}

#[test]
fn a_run_that_only_reads_what_another_left_undefined_is_skipped_as_a_whole() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    bed.subs[0].on_task(|_| TaskVerdict::Fail("broken".into()));
    let memory = HostMemory::from_vec(vec![0; 8]);
    failed(&bed, |o| {
        o.submit_sub(&leaf, array(&memory, Tag::Output))?;
        o.wait_all()?;
        let inner = failed(&bed, |o| {
            o.submit_sub(&leaf, array(&memory, Tag::Input)).map(drop)
        });
        assert!(inner.failures.is_empty());
        assert_eq!(
            (inner.kind(), inner.affected.len()),
            (FailureKind::Skipped, 1)
        );
        assert!(inner.to_string().contains("another run"), "{inner}");
        Ok(())
    });
}

#[test]
fn a_run_that_is_ended_by_close_says_so() {
    let bed = Bed::new(1, 0);
    let leaf = bed.sub_task();
    bed.subs[0].hold_tasks();
    let (worker, sub) = (bed.worker.clone(), bed.subs[0].clone());
    let running = start(move || {
        worker.run_simple(|o| {
            o.submit_sub(&leaf, TaskArgs::new())?;
            o.submit_sub(&leaf, TaskArgs::new()).map(drop)
        })
    });
    sub.wait_tasks(1);
    bed.worker.close().unwrap();
    match running.join("the run") {
        Err(Error::Run(error)) => {
            assert!(error.failures[0].hint.contains("close()"), "{error}");
            assert_eq!(error.affected[0].kind, FailureKind::Cancelled);
        }
        // The second submit may have met the closed worker.
        Err(Error::Lifecycle { .. }) => {}
        other => panic!("{other:?}"),
    }
}
