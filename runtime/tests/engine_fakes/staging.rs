//! Large arrays of the caller: copied with no lock held, while everything else goes on (decision 0028).

use std::time::Instant;

use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{FakeHandle, FakeTask, PATIENCE};
use echelon_runtime::{
    CallableHandle, CopySide, Error, FailureKind, Orchestrator, RunEnd, RunError, RunReport, Tag,
    TaskArgs, Worker,
};

use crate::bed::{array, bounded, start, u8s, Bed, Started};
use crate::points::Points;

/// More than is copied with the lock held, and no whole number of pages.
const LARGE: usize = (1 << 20) + 7;

/// The test's name and its points; returns where another process has run it.
macro_rules! points {
    ($test:literal) => {
        match Points::of(concat!("staging::", $test)) {
            Some(points) => points,
            None => return,
        }
    };
}

fn pattern(first: u8) -> HostMemory {
    HostMemory::from_vec((0..LARGE).map(|at| (at % 251) as u8 ^ first).collect())
}

/// So many sub workers, each with one task at a time, which the test ends.
fn bed(subs: usize) -> (Bed, CallableHandle) {
    let bed = Bed::made(subs, 0, 1, Worker::builder(), FakeHandle::hold_tasks);
    let leaf = bed.sub_task();
    (bed, leaf)
}

fn sub(o: &Orchestrator, leaf: &CallableHandle, args: TaskArgs) -> Result<(), Error> {
    o.submit_sub(leaf, args).map(drop)
}

/// A run of one task in a thread of its own.
fn run_one(bed: &Bed, leaf: &CallableHandle, args: TaskArgs) -> Started<Result<RunReport, Error>> {
    let (worker, leaf) = (bed.worker.clone(), leaf.clone());
    start(move || worker.run_simple(|o| sub(o, &leaf, args)))
}

/// Waits until one of the workers has been given a task that `is_it`.
fn given<'a>(
    fakes: &'a [FakeHandle],
    what: &str,
    is_it: impl Fn(&FakeTask) -> bool,
) -> (&'a FakeHandle, FakeTask) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for fake in fakes {
            if let Some(task) = fake.in_flight().into_iter().find(&is_it) {
                return (fake, task);
            }
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::yield_now();
    }
}

/// A whole run of another thread, from its submit to its end.
fn another_run_goes_through(bed: &Bed, leaf: &CallableHandle) {
    let run = run_one(bed, leaf, TaskArgs::new());
    let (fake, task) = given(&bed.subs, "a run beside a copy", |t| t.tensors.is_empty());
    fake.complete(task.ticket);
    run.join("a run beside a copy").unwrap();
}

fn seen(fake: &FakeHandle, task: &FakeTask) -> Vec<u8> {
    fake.bytes(task, 0).unwrap().to_vec()
}

fn failed(result: Result<RunReport, Error>) -> RunError {
    match result {
        Err(Error::Run(error)) => *error,
        other => panic!("{other:?}"),
    }
}

/// The array goes to one worker; a run of another thread on the other one begins and ends meanwhile.
#[test]
fn others_submit_and_end_while_an_array_is_copied_for_a_task() {
    let points = points!("others_submit_and_end_while_an_array_is_copied_for_a_task");
    let (bed, leaf) = bed(2);
    let source = pattern(3);
    points.arm("engine.hold_stage", "fail");
    let run = run_one(&bed, &leaf, array(&source, Tag::Input));
    points.wait_hit();
    another_run_goes_through(&bed, &leaf);
    assert!(bed.subs[0].submitted().is_empty());
    points.disarm();
    bed.subs[0].wait_tasks(1);
    let task = bed.subs[0].submitted()[0].clone();
    assert!(seen(&bed.subs[0], &task) == source.to_vec());
    bed.subs[0].complete(task.ticket);
    assert_eq!(run.join("the run").unwrap().counts["completed"], 1);
}

/// On the way back the worker itself is free for others. Who reads the array waits for all of it, in whatever run; that its worker is
/// lost meanwhile is nothing to a task that has run.
#[test]
fn others_use_the_worker_while_a_result_is_copied_back() {
    let points = points!("others_use_the_worker_while_a_result_is_copied_back");
    let (bed, leaf) = bed(1);
    let fake = bed.subs[0].clone();
    let target = pattern(0);
    let run = run_one(&bed, &leaf, array(&target, Tag::Output));
    fake.wait_tasks(1);
    let task = fake.submitted()[0].clone();
    let written = pattern(9);
    fake.bytes(&task, 0).unwrap().copy_from(&written).unwrap();
    points.arm("engine.hold_copy", "fail");
    fake.complete(task.ticket);
    points.wait_hit();
    another_run_goes_through(&bed, &leaf);
    let reader = run_one(&bed, &leaf, array(&target, Tag::Input));
    another_run_goes_through(&bed, &leaf);
    assert_eq!(fake.submitted().len(), 3, "the reader waits");
    points.disarm();
    run.join("the run").unwrap();
    assert!(target.to_vec() == written.to_vec());
    fake.wait_tasks(4);
    let task = fake.submitted()[3].clone();
    assert!(seen(&fake, &task) == written.to_vec());
    points.arm("engine.hold_copy", "fail");
    fake.complete(task.ticket);
    reader.join("the reader").unwrap();
    assert_eq!(points.hits(), 0, "nothing was written");
    points.disarm();
}

#[test]
fn r_084_a_worker_that_is_lost_after_the_task_has_run_takes_nothing_of_it() {
    let points = points!("r_084_a_worker_that_is_lost_after_the_task_has_run_takes_nothing_of_it");
    let (bed, leaf) = bed(1);
    let fake = bed.subs[0].clone();
    let target = pattern(0);
    let run = run_one(&bed, &leaf, array(&target, Tag::InOut));
    fake.wait_tasks(1);
    let task = fake.submitted()[0].clone();
    let written = pattern(77);
    fake.bytes(&task, 0).unwrap().copy_from(&written).unwrap();
    points.arm("engine.hold_copy", "fail");
    fake.complete(task.ticket);
    points.wait_hit();
    fake.lose("killed");
    let after = run_one(&bed, &leaf, TaskArgs::new());
    assert!(matches!(
        after.join("a run without workers"),
        Err(Error::EndpointLost { .. } | Error::Run(_))
    ));
    points.disarm();
    assert_eq!(run.join("the run").unwrap().counts["completed"], 1);
    assert!(target.to_vec() == written.to_vec());
}

/// What is copied for a worker that is lost is there for the next one: it is not copied twice, and not torn by the first copy.
#[test]
fn a_worker_that_is_lost_before_the_array_has_arrived_is_followed_by_another() {
    let points =
        points!("a_worker_that_is_lost_before_the_array_has_arrived_is_followed_by_another");
    let (bed, leaf) = bed(3);
    let source = pattern(5);
    points.arm("engine.hold_stage", "fail");
    let run = run_one(&bed, &leaf, array(&source, Tag::Input));
    points.wait_hit();
    bed.subs[0].lose("killed");
    // A run that begins has seen the loss.
    another_run_goes_through(&bed, &leaf);
    points.disarm();
    let (fake, task) = given(&bed.subs[1..], "the task", |t| !t.tensors.is_empty());
    assert!(seen(fake, &task) == source.to_vec());
    fake.complete(task.ticket);
    assert_eq!(run.join("the run").unwrap().counts["completed"], 1);
}

/// Two tasks of which one waits for the other; ends when the second one was cancelled, which is at once.
fn cancelled_while_the_array_is_copied(bed: &Bed) {
    let worker = bed.worker.clone();
    bounded("the cancelled task", move || {
        while worker.progress().cancelled == 0 {
            std::thread::yield_now();
        }
    });
}

/// a task whose array was on its way is not begun.
#[test]
fn r_091_an_interrupt_while_an_array_is_copied_cancels_the_task() {
    let points = points!("r_091_an_interrupt_while_an_array_is_copied_cancels_the_task");
    let (bed, leaf) = bed(1);
    let memory = pattern(1);
    points.arm("engine.hold_stage", "fail");
    let (worker, task) = (bed.worker.clone(), leaf.clone());
    let run = start(move || {
        worker.run_simple(|o| {
            sub(o, &task, array(&memory, Tag::InOut))?;
            sub(o, &task, array(&memory, Tag::Input))
        })
    });
    points.wait_hit();
    bed.interrupt.set(true);
    cancelled_while_the_array_is_copied(&bed);
    bed.interrupt.set(false);
    points.disarm();
    let result = run.join("the run");
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert!(bed.subs[0].submitted().is_empty());
    another_run_goes_through(&bed, &leaf);
}

#[test]
fn a_function_that_fails_cancels_what_is_copied_for_its_tasks() {
    let points = points!("a_function_that_fails_cancels_what_is_copied_for_its_tasks");
    let (bed, leaf) = bed(1);
    let memory = pattern(1);
    points.arm("engine.hold_stage", "fail");
    let (worker, task) = (bed.worker.clone(), leaf.clone());
    let run = start(move || {
        let ended: Result<((), _), RunEnd<String>> = worker.run(|o| {
            sub(o, &task, array(&memory, Tag::InOut)).unwrap();
            sub(o, &task, array(&memory, Tag::Input)).unwrap();
            Err("no".to_owned())
        });
        ended.map(drop)
    });
    // The copy may have been called off before its first step.
    cancelled_while_the_array_is_copied(&bed);
    points.disarm();
    let ended = run.join("the run");
    assert!(matches!(ended, Err(RunEnd::Function(_))), "{ended:?}");
    assert_eq!(bed.worker.progress().cancelled, 2);
    assert!(bed.subs[0].submitted().is_empty());
}

/// Whoever closes waits until an array is whole; a task whose array was not copied yet is not begun.
#[test]
fn r_128_a_close_lets_a_result_arrive() {
    let points = points!("r_128_a_close_lets_a_result_arrive");
    let (bed, leaf) = bed(1);
    let fake = bed.subs[0].clone();
    let target = pattern(0);
    let run = run_one(&bed, &leaf, array(&target, Tag::Output));
    fake.wait_tasks(1);
    let task = fake.submitted()[0].clone();
    let written = pattern(9);
    fake.bytes(&task, 0).unwrap().copy_from(&written).unwrap();
    points.arm("engine.hold_copy", "fail");
    fake.complete(task.ticket);
    points.wait_hit();
    let unsent = run_one(&bed, &leaf, array(&pattern(2), Tag::Input));
    let worker = bed.worker.clone();
    let close = start(move || worker.close());
    // It was told to end, and the copy is still held.
    fake.wait_until_gone();
    points.disarm();
    close.join("close").unwrap();
    assert_eq!(run.join("the run").unwrap().counts["completed"], 1);
    assert!(target.to_vec() == written.to_vec());
    assert!(unsent.join("the other run").is_err());
}

#[test]
fn a_copy_that_fails_fails_its_task_and_skips_its_readers() {
    let points = points!("a_copy_that_fails_fails_its_task_and_skips_its_readers");
    for (point, tag) in [("engine.stage", Tag::InOut), ("engine.copy", Tag::Output)] {
        let (bed, leaf) = bed(1);
        let fake = bed.subs[0].clone();
        let target = pattern(0);
        points.arm(point, "fail");
        let (worker, task, memory) = (bed.worker.clone(), leaf.clone(), target.clone());
        let run = start(move || {
            worker.run_simple(|o| {
                sub(o, &task, array(&memory, tag))?;
                sub(o, &task, array(&memory, Tag::Input))?;
                sub(o, &task, TaskArgs::new())
            })
        });
        if point == "engine.copy" {
            fake.wait_tasks(1);
            assert!(fake.complete_next());
        }
        points.wait_hit();
        let others = usize::from(point == "engine.copy");
        fake.wait_tasks(others + 1);
        assert!(fake.complete_next());
        let error = failed(run.join("the run"));
        assert_eq!((error.failures.len(), error.skipped), (1, 1), "{error}");
        assert_eq!(error.failures[0].kind, FailureKind::Failed);
        assert!(error.failures[0].message.contains(point), "{error}");
        assert!(target.to_vec() == pattern(0).to_vec());
        points.disarm();
    }
}

/// `orch.copy` within this process likewise.
#[test]
fn others_go_on_while_memory_is_copied_here() {
    let points = points!("others_go_on_while_memory_is_copied_here");
    let (bed, leaf) = bed(1);
    let (from, to) = (pattern(4), pattern(0));
    let side = |memory: &HostMemory| CopySide::Host {
        memory: memory.clone(),
        meta: u8s(memory.len() as u64),
    };
    points.arm("engine.hold_copy", "fail");
    let (worker, sides) = (bed.worker.clone(), (side(&to), side(&from)));
    let run = start(move || worker.run_simple(|o| o.copy(sides.0, sides.1).map(drop)));
    points.wait_hit();
    another_run_goes_through(&bed, &leaf);
    points.disarm();
    run.join("the copy").unwrap();
    assert!(to.to_vec() == from.to_vec());
    // Ranges that overlap, in steps that are smaller than they are.
    let len = 9 << 20;
    let whole = HostMemory::from_vec((0..len).map(|at| (at % 253) as u8).collect());
    let before = whole.to_vec();
    let (to, from) = (whole.slice(5, len - 5), whole.slice(0, len - 5));
    let (to, from) = (to.unwrap(), from.unwrap());
    bed.worker
        .run_simple(|o| o.copy(side(&to), side(&from)).map(drop))
        .unwrap();
    assert!(to.to_vec() == before[..len - 5]);
}

/// A task that was to follow others on their lane while its array is copied: they end meanwhile, well or not.
#[test]
fn r_082_what_follows_others_is_sent_by_what_became_of_them() {
    let points = points!("r_082_what_follows_others_is_sent_by_what_became_of_them");
    for well in [true, false] {
        let prepare = |fake: &FakeHandle| {
            fake.takes_conditions();
            fake.hold_tasks();
        };
        let bed = Bed::made(1, 0, 5, Worker::builder(), prepare);
        let (leaf, fake) = (bed.sub_task(), bed.subs[0].clone());
        points.arm("engine.hold_stage", "fail");
        let result = bed.worker.run_simple(|o| {
            let cell = o.alloc(u8s(8))?;
            let on_cell = |tag| -> Result<TaskArgs, Error> {
                let mut args = TaskArgs::new();
                args.add_tensor(&cell, tag)?;
                Ok(args)
            };
            sub(o, &leaf, on_cell(Tag::Output)?)?;
            let mut args = on_cell(Tag::Input)?;
            args.add_host(pattern(1), u8s(LARGE as u64), Tag::Input)?;
            sub(o, &leaf, args)?;
            points.wait_hit();
            // It is behind the writer, and nothing goes behind it before it is sent.
            sub(o, &leaf, on_cell(Tag::Output)?)?;
            assert_eq!(fake.submitted().len(), 1);
            let first = fake.submitted()[0].ticket;
            match well {
                true => fake.complete(first),
                false => fake.fail(first, "broken"),
            }
            let worker = bed.worker.clone();
            bounded("the end of the first task", move || {
                while worker.progress().finished == 0 {
                    std::thread::yield_now();
                }
            });
            points.disarm();
            fake.wait_tasks(2);
            assert!(fake.complete_next());
            if well {
                fake.wait_tasks(3);
                assert!(fake.complete_next());
            }
            Ok(())
        });
        let tensors: Vec<usize> = fake.submitted().iter().map(|t| t.tensors.len()).collect();
        if well {
            assert_eq!(result.unwrap().counts["completed"], 3);
            assert_eq!(tensors, [1, 2, 1]);
        } else {
            let error = failed(result);
            assert_eq!((error.failures.len(), error.skipped), (1, 1));
            assert_eq!(tensors, [1, 1], "what reads a failed result is not sent");
        }
        assert!(fake.submitted().iter().all(|task| task.after.is_empty()));
    }
}
