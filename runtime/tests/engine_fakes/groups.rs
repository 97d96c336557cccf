//! Groups: gangs of NEXT_LEVEL workers, waves of sub workers.

use std::sync::Arc;

use echelon_runtime::endpoint::Place;
use echelon_runtime::mailbox::Bell;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{FakeWorld, TaskVerdict};
use echelon_runtime::testing::{worker_over, Role};
use echelon_runtime::{
    CallableHandle, Error, NoInterrupt, Orchestrator, RegisterOptions, Tag, TaskArgs, TaskHandle,
    Worker,
};
use echelon_wire::buffer::AccessFlags;
use echelon_wire::call_config::CallConfig;

use crate::bed::{array, import, u8s, whole, Bed};

fn gang(
    orch: &Orchestrator,
    callable: &CallableHandle,
    args: Vec<TaskArgs>,
    workers: Option<Vec<i32>>,
) -> Result<TaskHandle, Error> {
    orch.submit_next_level_group(callable, args, CallConfig::default(), workers)
}

fn scalars(count: u64) -> Vec<TaskArgs> {
    (0..count)
        .map(|value| {
            let mut args = TaskArgs::new();
            args.add_scalar(value).unwrap();
            args
        })
        .collect()
}

#[test]
fn a_gang_starts_all_at_once_on_distinct_workers() {
    let bed = Bed::new(0, 3);
    let task = bed.remote_task();
    bed.remotes.iter().for_each(|r| r.hold_tasks());
    let report = bed
        .worker
        .run_simple(|o| {
            // One worker is busy: the gang waits for it, and does not start in part.
            o.submit_next_level(&task, TaskArgs::new(), CallConfig::default(), Some(1))?;
            gang(o, &task, scalars(3), None)?;
            let sent: Vec<usize> = bed.remotes.iter().map(|r| r.submitted().len()).collect();
            assert_eq!(sent, [0, 1, 0]);
            assert!(bed.remotes[1].complete_next());
            for (remote, count) in bed.remotes.iter().zip([1, 2, 1]) {
                remote.wait_tasks(count);
            }
            let mut members: Vec<u64> = bed
                .remotes
                .iter()
                .map(|r| r.in_flight()[0].scalars[0])
                .collect();
            members.sort_unstable();
            assert_eq!(members, [0, 1, 2]);
            assert!(bed.remotes.iter().all(|r| r.complete_next()));
            Ok(())
        })
        .unwrap();
    assert_eq!(report.counts["completed"], 2);
}

#[test]
fn named_members_go_where_they_are_named() {
    let bed = Bed::new(0, 3);
    let task = bed.remote_task();
    bed.worker
        .run_simple(|o| gang(o, &task, scalars(2), Some(vec![2, 0])).map(drop))
        .unwrap();
    assert_eq!(bed.remotes[2].submitted()[0].scalars, [0]);
    assert_eq!(bed.remotes[0].submitted()[0].scalars, [1]);
    for workers in [vec![0, 0], vec![1]] {
        let error = bed
            .worker
            .run_simple(|o| gang(o, &task, scalars(2), Some(workers)).map(drop));
        let refused = matches!(
            error,
            Err(Error::NotEligible { .. } | Error::Argument { .. })
        );
        assert!(refused, "{error:?}");
    }
}

#[test]
fn a_gang_larger_than_the_workers_is_refused_at_submit() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    let error = bed
        .worker
        .run_simple(|o| gang(o, &task, scalars(3), None).map(drop));
    assert!(matches!(error, Err(Error::NotEligible { .. })), "{error:?}");
    let none = bed
        .worker
        .run_simple(|o| gang(o, &task, Vec::new(), None).map(drop));
    assert!(matches!(none, Err(Error::Argument { .. })), "{none:?}");
}

#[test]
fn members_that_write_what_another_touches_are_refused() {
    let bed = Bed::new(0, 2);
    let w = &bed.worker;
    let task = bed.remote_task();
    let owner = bed.malloc(0, 16);
    let export = w
        .remote_export(&owner, 0, None, AccessFlags::READ_WRITE)
        .unwrap();
    let import = w.remote_import(&export, 1, None).unwrap();
    let part = |buffer, offset, tag| {
        let mut args = TaskArgs::new();
        args.add_remote(buffer, offset, u8s(8), tag).unwrap();
        args
    };
    let cases = [
        // (tag of the first at 0..8, tag and offset of the second, allowed)
        (Tag::Output, Tag::Output, 8, true),
        (Tag::Output, Tag::Output, 7, false),
        (Tag::Input, Tag::InOut, 7, false),
        (Tag::OutputExisting, Tag::Input, 0, false),
        (Tag::Input, Tag::Input, 0, true),
        (Tag::Output, Tag::NoDep, 0, true),
    ];
    for (first, second, offset, allowed) in cases {
        let members = vec![part(&owner, 0, first), part(&import, offset, second)];
        let result = w.run_simple(|o| gang(o, &task, members, None).map(drop));
        match result {
            Ok(_) => assert!(
                allowed,
                "{first:?} and {second:?} at {offset} were let through"
            ),
            Err(error) => {
                assert!(!allowed, "{first:?} and {second:?} at {offset}: {error}");
                assert!(error.to_string().contains("members 0 and 1"), "{error}");
            }
        }
    }
}

#[test]
fn one_member_that_fails_fails_the_gang_and_its_readers_once() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    let buffers = [0, 1].map(|id| bed.malloc(id, 8));
    bed.remotes[1].on_task(|_| TaskVerdict::Fail("boom".into()));
    let result = bed.worker.run_simple(|o| {
        let members = buffers.iter().map(|b| whole(b, Tag::Output)).collect();
        gang(o, &task, members, Some(vec![0, 1]))?;
        // Reads what the member that completed wrote: the gang is one node, and it failed.
        crate::bed::submit(o, &task, whole(&buffers[0], Tag::Input)).map(drop)
    });
    let Err(Error::Run(error)) = result else {
        panic!("{result:?}")
    };
    assert_eq!((error.failures.len(), error.skipped), (1, 1));
    assert_eq!(error.failures[0].worker_id, Some(1));
}

#[test]
fn a_member_whose_worker_is_lost_fails_the_gang() {
    let bed = Bed::new(0, 2);
    let task = bed.remote_task();
    bed.remotes.iter().for_each(|r| r.hold_tasks());
    let result = bed.worker.run_simple(|o| {
        gang(o, &task, scalars(2), None)?;
        bed.remotes[0].lose("power");
        assert!(bed.remotes[1].complete_next());
        Ok(())
    });
    let Err(Error::Run(error)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(error.failures.len(), 1);
    assert_eq!(error.failures[0].worker, "remote0");
}

#[test]
fn waves_run_more_members_than_workers_and_a_failure_skips_the_rest() {
    let bed = Bed::new(2, 0);
    let leaf = bed.sub_task();
    let report = bed
        .worker
        .run_simple(|o| o.submit_sub_group(&leaf, scalars(7)).map(drop))
        .unwrap();
    assert_eq!(report.tasks_per_worker.values().sum::<u64>(), 7);
    let before: usize = bed.subs.iter().map(|s| s.submitted().len()).sum();
    bed.subs
        .iter()
        .for_each(|s| s.on_task(|_| TaskVerdict::Fail("boom".into())));
    let result = bed
        .worker
        .run_simple(|o| o.submit_sub_group(&leaf, scalars(50)).map(drop));
    let Err(Error::Run(error)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(error.failures.len(), 1);
    let sent: usize = bed.subs.iter().map(|s| s.submitted().len()).sum();
    assert!(sent - before <= 4, "{} members were sent", sent - before);
}

/// Design §15.23: one call, members on a local child and on sessions; each has its bytes in the way that it needs.
#[test]
fn section_15_23_a_gang_spans_local_and_remote_members() {
    let bell = Bell::create().unwrap();
    let world = FakeWorld::new(Arc::clone(&bell));
    let (local, on_local) = world.local("worker0", 1);
    let (remote, on_remote) = world.remote(1, 1);
    let worker = worker_over(
        Worker::builder().memory_limit(Some(1 << 20)),
        Arc::new(NoInterrupt),
        bell,
        vec![
            (local, Role::LocalNextLevel),
            (remote, Role::RemoteNextLevel),
        ],
    )
    .unwrap();
    let options = RegisterOptions {
        workers: Some(vec![0, 1]),
        ..RegisterOptions::default()
    };
    let task = worker.register(import("m:task"), options).unwrap();
    let memory = [1, 2].map(|byte| HostMemory::from_vec(vec![byte; 8]));
    let members = || memory.iter().map(|m| array(m, Tag::Input)).collect();
    for handle in [&on_local, &on_remote] {
        handle.hold_tasks();
    }
    for workers in [Some(vec![0, 1]), Some(vec![1, 0]), None] {
        let report = worker.run_simple(|o| {
            gang(o, &task, members(), workers.clone())?;
            let error = gang(o, &task, scalars(3), None).unwrap_err();
            assert!(error.to_string().contains('3'), "{error}");
            // Both were sent before either ends.
            let sent = [
                on_local.in_flight()[0].clone(),
                on_remote.in_flight()[0].clone(),
            ];
            assert!(matches!(sent[0].tensors[0].place, Place::Shared { .. }));
            assert!(matches!(sent[1].tensors[0].place, Place::Inline(_)));
            assert!(on_local.complete_next() && on_remote.complete_next());
            Ok(())
        });
        assert_eq!(report.unwrap().counts["completed"], 1);
    }
    // A member that is lost takes the whole gang along, once.
    let error = worker.run_simple(|o| {
        gang(o, &task, members(), None)?;
        on_remote.lose("power");
        assert!(on_local.complete_next());
        Ok(())
    });
    match error {
        Err(Error::Run(error)) => assert_eq!(error.failures.len(), 1),
        other => panic!("{other:?}"),
    }
    worker.close().unwrap();
}
