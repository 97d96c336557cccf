//! Which worker short tasks go to: the one that is awake, while there is little to do there.

use echelon_runtime::{CallableHandle, RegisterOptions, TaskArgs, Worker};

use crate::bed::{import, Bed};

/// Sub workers with deep queues, and a callable that takes so long.
fn bed(took_ns: u64) -> (Bed, CallableHandle) {
    let bed = Bed::with(4, 0, 64, Worker::builder());
    let leaf = bed.sub_task();
    for sub in &bed.subs {
        sub.takes(took_ns);
    }
    (bed, leaf)
}

/// Enough tasks, one after the other, for the callable's pace to be known everywhere.
fn get_known(bed: &Bed, leaf: &CallableHandle) {
    bed.worker
        .run_simple(|o| {
            for _ in 0..64 {
                o.submit_sub(leaf, TaskArgs::default())?;
                o.wait_all()?;
            }
            Ok(())
        })
        .unwrap();
}

/// Submits so many tasks that stay in flight, and says how many went to each worker.
fn in_flight_after(bed: &Bed, leaf: &CallableHandle, count: usize) -> Vec<usize> {
    for sub in &bed.subs {
        sub.hold_tasks();
    }
    let mut found = Vec::new();
    bed.worker
        .run_simple(|o| {
            for _ in 0..count {
                o.submit_sub(leaf, TaskArgs::default())?;
            }
            found = bed.subs.iter().map(|sub| sub.in_flight().len()).collect();
            for sub in &bed.subs {
                while sub.complete_next() {}
            }
            Ok(())
        })
        .unwrap();
    found
}

#[test]
fn short_tasks_stay_together_until_there_is_enough_to_wake_another_worker() {
    let (bed, leaf) = bed(5_000);
    get_known(&bed, &leaf);
    // 50 µs of work each, and the next worker gets its share at once.
    let mut found = in_flight_after(&bed, &leaf, 22);
    found.sort_unstable();
    assert_eq!(found, [0, 0, 11, 11]);
}

#[test]
fn tasks_that_take_longer_spread_at_once() {
    let (bed, leaf) = bed(21_000);
    get_known(&bed, &leaf);
    assert_eq!(in_flight_after(&bed, &leaf, 4), [1, 1, 1, 1]);
}

#[test]
fn a_callable_of_which_nothing_is_known_spreads_although_another_one_is_short() {
    let (bed, leaf) = bed(1_000);
    get_known(&bed, &leaf);
    let other = bed
        .worker
        .register(import("m:other"), RegisterOptions::default())
        .unwrap();
    assert_eq!(in_flight_after(&bed, &other, 4), [1, 1, 1, 1]);
}

/// A long one is on its way at the worker that the last short one went to.
#[test]
fn nothing_leans_to_a_worker_that_has_something_else_to_do() {
    let (bed, leaf) = bed(1_000);
    get_known(&bed, &leaf);
    let other = bed
        .worker
        .register(import("m:other"), RegisterOptions::default())
        .unwrap();
    for sub in &bed.subs {
        sub.hold_tasks();
    }
    bed.worker
        .run_simple(|o| {
            for _ in 0..4 {
                o.submit_sub(&other, TaskArgs::default())?;
            }
            let busy: Vec<usize> = bed.subs.iter().map(|sub| sub.in_flight().len()).collect();
            assert_eq!(busy, [1, 1, 1, 1]);
            for _ in 0..4 {
                o.submit_sub(&leaf, TaskArgs::default())?;
            }
            let both: Vec<usize> = bed.subs.iter().map(|sub| sub.in_flight().len()).collect();
            assert_eq!(both, [2, 2, 2, 2], "behind what may be long all are equal");
            for sub in &bed.subs {
                while sub.complete_next() {}
            }
            Ok(())
        })
        .unwrap();
}
