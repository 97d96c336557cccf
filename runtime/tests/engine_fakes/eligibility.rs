//! Which submits are refused before anything is sent, and what the refusal says.

use echelon_runtime::memory::HostMemory;
use echelon_runtime::{Error, RegisterOptions, Tag, TaskArgs};
use echelon_wire::call_config::CallConfig;
use echelon_wire::tensor::{DataType, TensorMeta};

use crate::bed::{array, import, submit, u8s, whole, Bed};

fn reasons(result: Result<impl std::fmt::Debug, Error>) -> String {
    match result {
        Err(Error::NotEligible { reasons, .. }) => reasons.join("; "),
        other => panic!("{other:?}"),
    }
}

#[test]
fn r_087_the_refusal_names_each_worker_with_its_reason() {
    let bed = Bed::new(0, 3);
    let w = &bed.worker;
    let task = bed.register("m:some", Some(vec![1, 2]));
    let there = bed.malloc(1, 8);
    bed.remotes[2].lose("cable cut");
    let text = reasons(w.run_simple(|o| {
        // A round trip elsewhere: what was reported before it has been looked at.
        w.remote_malloc(0, 1)?;
        let mut args = whole(&there, Tag::Input);
        let meta = TensorMeta::new(&[1], DataType::Bool).unwrap();
        args.add_host(HostMemory::from_vec(vec![0]), meta, Tag::Input)?;
        submit(o, &task, args).map(drop)
    }));
    assert!(
        text.contains("remote0: the callable is not registered"),
        "{text}"
    );
    assert!(text.contains("remote1: argument 1 is BOOL"), "{text}");
    assert!(text.contains("remote2: is lost (cable cut)"), "{text}");
    assert!(bed.remotes.iter().all(|r| r.submitted().is_empty()));
}

#[test]
fn r_087_a_named_worker_must_be_eligible() {
    let bed = Bed::new(0, 2);
    let w = &bed.worker;
    let task = bed.register("m:one", Some(vec![1]));
    let on = |worker, args| {
        w.run_simple(|o| {
            o.submit_next_level(&task, args, CallConfig::default(), Some(worker))
                .map(drop)
        })
    };
    let text = reasons(on(0, TaskArgs::new()));
    assert!(
        text.contains("remote0: the callable is not registered"),
        "{text}"
    );
    let there = bed.malloc(0, 8);
    let text = reasons(on(1, whole(&there, Tag::Input)));
    assert!(text.contains("is on worker 0; export it there"), "{text}");
    let unknown = on(9, TaskArgs::new()).unwrap_err();
    assert!(matches!(unknown, Error::Argument { .. }), "{unknown:?}");
    on(1, TaskArgs::new()).unwrap();
    assert_eq!(bed.remotes[1].submitted().len(), 1);
}

#[test]
fn r_088_remote_memory_in_a_local_submit_is_a_type_error() {
    for subs in [0, 1] {
        let bed = Bed::new(subs, 1);
        let leaf = bed
            .worker
            .register(import("m:leaf"), RegisterOptions::default())
            .unwrap();
        let buffer = bed.malloc(0, 8);
        let args = || whole(&buffer, Tag::Input);
        let one = bed
            .worker
            .run_simple(|o| o.submit_sub(&leaf, args()).map(drop));
        let group = bed.worker.run_simple(|o| {
            o.submit_sub_group(&leaf, vec![TaskArgs::new(), args()])
                .map(drop)
        });
        for result in [one, group] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Type { .. }), "{error:?}");
            assert!(error.to_string().contains("orch.copy"), "{error}");
        }
        bed.worker.remote_free(&buffer).unwrap();
        assert_eq!(bed.remotes[0].live_buffers(), 0);
    }
}

#[test]
fn local_memory_that_a_remote_task_would_write_is_a_type_error() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    for tag in [Tag::Output, Tag::InOut, Tag::OutputExisting, Tag::NoDep] {
        let memory = HostMemory::from_vec(vec![0; 4]);
        let error = bed
            .worker
            .run_simple(|o| submit(o, &task, array(&memory, tag)).map(drop))
            .unwrap_err();
        assert!(matches!(error, Error::Type { .. }), "{tag:?}: {error:?}");
        assert!(error.to_string().contains("remote_malloc"), "{error}");
    }
}

#[test]
fn without_any_worker_of_the_kind_the_error_says_so() {
    let bed = Bed::new(0, 1);
    let leaf = bed
        .worker
        .register(import("m:leaf"), RegisterOptions::default())
        .unwrap();
    let memory = HostMemory::from_vec(vec![0; 4]);
    let text = reasons(
        bed.worker
            .run_simple(|o| o.submit_sub(&leaf, array(&memory, Tag::InOut)).map(drop)),
    );
    assert!(text.contains("no worker of that kind"), "{text}");
}

#[test]
fn inline_bytes_have_a_limit_a_task() {
    let bed = Bed::new(0, 1);
    let task = bed.remote_task();
    let half = HostMemory::from_vec(vec![0; 1 << 19]);
    let with = |extra: &[u8]| {
        let mut args = array(&half, Tag::Input);
        args.add_host(half.clone(), u8s(1 << 19), Tag::Input)
            .unwrap();
        args.add_inline(extra.to_vec().into(), u8s(extra.len() as u64), Tag::Input)
            .unwrap();
        args
    };
    bed.worker
        .run_simple(|o| submit(o, &task, with(&[])).map(drop))
        .unwrap();
    let text = reasons(
        bed.worker
            .run_simple(|o| submit(o, &task, with(&[1])).map(drop)),
    );
    assert!(
        text.contains("1048577 bytes") && text.contains("1048576"),
        "{text}"
    );
}

#[test]
fn the_worker_that_owns_most_bytes_is_preferred_while_it_has_room() {
    let bed = Bed::with(0, 3, 2, echelon_runtime::Worker::builder());
    let task = bed.remote_task();
    bed.remotes.iter().for_each(|r| r.hold_tasks());
    let memory = bed.malloc(2, 64);
    bed.worker
        .run_simple(|o| {
            submit(o, &task, whole(&memory, Tag::Input))?;
            submit(o, &task, whole(&memory, Tag::Input))?;
            assert_eq!(bed.remotes[2].in_flight().len(), 2);
            while bed.remotes[2].complete_next() {}
            Ok(())
        })
        .unwrap();
}

#[test]
fn callable_handles_are_checked_locally() {
    let (bed, other) = (Bed::new(0, 1), Bed::new(0, 1));
    let foreign = other.remote_task();
    let mine = bed.remote_task();
    bed.worker.unregister(&mine).unwrap();
    let inner = bed
        .worker
        .register(
            import("m:inner"),
            RegisterOptions {
                workers: Some(vec![0]),
                inner: true,
                ..RegisterOptions::default()
            },
        )
        .unwrap();
    for handle in [&foreign, &mine, &inner] {
        let result = bed
            .worker
            .run_simple(|o| submit(o, handle, TaskArgs::new()).map(drop));
        assert!(matches!(result, Err(Error::Handle { .. })), "{result:?}");
    }
    let twice = bed.worker.unregister(&mine);
    assert!(matches!(twice, Err(Error::Handle { .. })), "{twice:?}");
}
