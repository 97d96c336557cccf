//! Real child processes behind mailboxes: this program is its own child.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod faults;
mod host;
mod idle;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use echelon_runtime::child::{Child, ChildArgs};
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::harness;
use echelon_runtime::{
    Callable, ChildProgram, Error, FailureKind, RegisterOptions, Tag, TaskArgs, Worker,
};
use echelon_wire::callable::ImportTarget;
use echelon_wire::tensor::{DataType, TensorMeta};

use faults::{
    parent_to_be_killed, r_039_children_end_when_their_parent_is_killed,
    r_041_a_child_that_dies_at_any_point_of_the_protocol_is_noticed,
    r_045_a_stopped_child_does_not_keep_the_worker_from_closing,
    section_15_6_memory_is_not_reused_while_a_child_has_a_view_of_it,
    section_15_8_children_outlive_the_thread_that_called_init,
};
use host::Host;
use idle::an_idle_child_is_left_asleep;

fn program() -> ChildProgram {
    ChildProgram::Custom {
        program: std::env::current_exe().unwrap(),
        args: vec!["child".into()],
    }
}

fn import(name: &str) -> Callable {
    Callable::import(ImportTarget::parse(name).unwrap())
}

fn worker(subs: u32) -> Worker {
    Worker::builder()
        .sub_workers(subs)
        .child_program(program())
        .memory_limit(Some(64 << 20))
        .build()
        .unwrap()
}

fn u8s(count: u32) -> TensorMeta {
    TensorMeta::new(&[count], DataType::Uint8).unwrap()
}

fn tasks_run_in_children_on_shared_memory() {
    let w = worker(2);
    let add = w
        .register(import("t:add"), RegisterOptions::default())
        .unwrap();
    w.init().unwrap();
    let array = HostMemory::from_vec(vec![1, 2, 3]);
    let report = w
        .run_simple(|orch| {
            for _ in 0..100 {
                let mut args = TaskArgs::new();
                args.add_host(array.clone(), u8s(3), Tag::InOut)?;
                orch.submit_sub(&add, args)?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(array.to_vec(), [101, 102, 103]);
    assert_eq!(report.counts["completed"], 100);
    assert!(report
        .timeline
        .iter()
        .all(|event| event.pid != 0 && event.start_ns <= event.end_ns));
    // Registered after the start, and allocated after the start.
    let late = w
        .register(import("t:late"), RegisterOptions::default())
        .unwrap();
    w.run_simple(|orch| {
        let mut args = TaskArgs::new();
        args.add_tensor(&orch.alloc(u8s(1 << 20))?, Tag::Output)?;
        orch.submit_sub(&late, args).map(drop)
    })
    .unwrap();
    w.close().unwrap();
}

fn a_failure_comes_back_with_its_traceback() {
    let w = worker(1);
    let fail = w
        .register(import("t:fail"), RegisterOptions::default())
        .unwrap();
    w.init().unwrap();
    let error = w
        .run_simple(|orch| {
            let mut args = TaskArgs::new();
            args.add_scalar(42)?;
            orch.submit_sub(&fail, args).map(drop)
        })
        .unwrap_err();
    assert!(error.to_string().contains("ValueError: 42"), "{error}");
    let error = w
        .register(import("t:missing"), RegisterOptions::default())
        .unwrap_err();
    assert!(error.to_string().contains("No module named 't'"), "{error}");
    w.close().unwrap();
}

fn r_235_a_dead_child_is_an_endpoint_loss_and_is_replaced() {
    let w = worker(1);
    let die = w
        .register(import("t:die"), RegisterOptions::default())
        .unwrap();
    let add = w
        .register(import("t:add"), RegisterOptions::default())
        .unwrap();
    w.init().unwrap();
    let mut descriptors = Vec::new();
    for _ in 0..4 {
        let error = w
            .run_simple(|orch| orch.submit_sub(&die, TaskArgs::new()).map(drop))
            .unwrap_err();
        let Error::Run(run) = error else {
            panic!("{error}")
        };
        assert_eq!(run.failures[0].kind, FailureKind::EndpointLost);
        assert!(run.failures[0].message.contains("signal 6"), "{run}");
        w.run_simple(|orch| orch.submit_sub(&add, TaskArgs::new()).map(drop))
            .unwrap();
        descriptors.push(std::fs::read_dir("/proc/self/fd").unwrap().count());
    }
    // Nothing is held of those that were replaced.
    assert!(
        descriptors.iter().all(|count| *count == descriptors[0]),
        "{descriptors:?}"
    );
    w.close().unwrap();
}

fn a_child_that_cannot_start_fails_init_with_the_cause() {
    let program = ChildProgram::Custom {
        program: "/bin/false".into(),
        args: vec![],
    };
    let w = Worker::builder()
        .sub_workers(1)
        .child_program(program)
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    let error = w.init().unwrap_err();
    assert!(
        error.to_string().contains("status 1 before it was ready"),
        "{error}"
    );
    w.close().unwrap();
}

fn a_local_child_with_a_runtime_of_its_own_forwards_its_tensors() {
    let child = Worker::builder()
        .level(3)
        .sub_workers(2)
        .child_program(program())
        .memory_limit(Some(16 << 20))
        .build();
    let child = child.unwrap();
    let w = worker(0);
    let id = w.add_worker(&child).unwrap();
    let fan = w
        .register(import("t:fan"), RegisterOptions::default())
        .unwrap();
    w.register(
        import("t:add"),
        RegisterOptions {
            inner: true,
            ..RegisterOptions::default()
        },
    )
    .unwrap();
    w.init().unwrap();
    let (tensor, report) = w
        .run(|orch| {
            let tensor = orch.alloc(u8s(4))?;
            tensor.memory()?.copy_in(0, &[9; 4]).map_err(Error::from)?;
            for _ in 0..3 {
                let mut args = TaskArgs::new();
                args.add_tensor(&tensor, Tag::InOut)?;
                orch.submit_next_level(&fan, args, Default::default(), Some(id))?;
            }
            Ok::<_, Error>(tensor)
        })
        .unwrap();
    assert_eq!(tensor.memory().unwrap().to_vec(), [12; 4]);
    let inner: u64 = report
        .tasks_per_worker
        .iter()
        .filter(|(name, _)| name.contains("worker0/sub"))
        .map(|(_, n)| n)
        .sum();
    assert_eq!(inner, 3, "{:?}", report.tasks_per_worker);
    w.close().unwrap();
}

fn close_ends_a_child_in_the_middle_of_a_task() {
    let w = Worker::builder()
        .sub_workers(1)
        .child_program(program())
        .memory_limit(Some(1 << 20))
        .close_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let spin = w
        .register(import("t:spin"), RegisterOptions::default())
        .unwrap();
    w.init().unwrap();
    let (started, wait) = std::sync::mpsc::channel();
    let other = w.clone();
    let thread = std::thread::spawn(move || {
        other.run_simple(|orch| {
            orch.submit_sub(&spin, TaskArgs::new())?;
            started.send(()).unwrap();
            Ok(())
        })
    });
    wait.recv().unwrap();
    w.close().unwrap();
    assert!(thread.join().unwrap().is_err());
}

fn a_callable_and_a_timeline_may_be_larger_than_a_mailbox() {
    let child = Worker::builder()
        .level(3)
        .sub_workers(1)
        .child_program(program())
        .memory_limit(Some(16 << 20))
        .build()
        .unwrap();
    let w = worker(0);
    let id = w.add_worker(&child).unwrap();
    let large = Callable::serialized("large", vec![b'x'; 3 << 20].into());
    let large = w.register(large, RegisterOptions::default()).unwrap();
    let fan = w
        .register(import("t:fan"), RegisterOptions::default())
        .unwrap();
    let inner = RegisterOptions {
        inner: true,
        ..RegisterOptions::default()
    };
    w.register(import("t:add"), inner).unwrap();
    w.init().unwrap();
    let report = w
        .run_simple(|orch| {
            orch.submit_next_level(&large, TaskArgs::new(), Default::default(), Some(id))
                .map(drop)
        })
        .unwrap_err();
    assert!(report.to_string().contains("3145728 bytes"), "{report}");
    // More events than any ring of the mailbox could take in one record.
    let report = w
        .run_simple(|orch| {
            let tensor = orch.alloc(u8s(4))?;
            for _ in 0..20 {
                let mut args = TaskArgs::new();
                for _ in 0..100 {
                    args.add_tensor(&tensor, Tag::InOut)?;
                }
                orch.submit_next_level(&fan, args, Default::default(), Some(id))?;
            }
            Ok(())
        })
        .unwrap();
    let inner: u64 = report
        .tasks_per_worker
        .iter()
        .filter(|(name, _)| name.contains("worker0/sub"))
        .map(|(_, n)| n)
        .sum();
    assert_eq!(inner, 2000, "{:?}", report.tasks_per_worker);
    w.close().unwrap();
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

type Test = (&'static str, fn());

const TESTS: [Test; 13] = [
    ("an_idle_child_is_left_asleep", an_idle_child_is_left_asleep),
    (
        "r_041_a_child_that_dies_at_any_point_of_the_protocol_is_noticed",
        r_041_a_child_that_dies_at_any_point_of_the_protocol_is_noticed,
    ),
    (
        "r_045_a_stopped_child_does_not_keep_the_worker_from_closing",
        r_045_a_stopped_child_does_not_keep_the_worker_from_closing,
    ),
    (
        "r_039_children_end_when_their_parent_is_killed",
        r_039_children_end_when_their_parent_is_killed,
    ),
    (
        "section_15_8_children_outlive_the_thread_that_called_init",
        section_15_8_children_outlive_the_thread_that_called_init,
    ),
    (
        "section_15_6_memory_is_not_reused_while_a_child_has_a_view_of_it",
        section_15_6_memory_is_not_reused_while_a_child_has_a_view_of_it,
    ),
    (
        "a_callable_and_a_timeline_may_be_larger_than_a_mailbox",
        a_callable_and_a_timeline_may_be_larger_than_a_mailbox,
    ),
    (
        "tasks_run_in_children_on_shared_memory",
        tasks_run_in_children_on_shared_memory,
    ),
    (
        "a_failure_comes_back_with_its_traceback",
        a_failure_comes_back_with_its_traceback,
    ),
    (
        "r_235_a_dead_child_is_an_endpoint_loss_and_is_replaced",
        r_235_a_dead_child_is_an_endpoint_loss_and_is_replaced,
    ),
    (
        "a_child_that_cannot_start_fails_init_with_the_cause",
        a_child_that_cannot_start_fails_init_with_the_cause,
    ),
    (
        "a_local_child_with_a_runtime_of_its_own_forwards_its_tensors",
        a_local_child_with_a_runtime_of_its_own_forwards_its_tensors,
    ),
    (
        "close_ends_a_child_in_the_middle_of_a_task",
        close_ends_a_child_in_the_middle_of_a_task,
    ),
];

/// A harness of ours: the usual one would read the child's arguments as its own.
fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "child") {
        let args = ChildArgs::parse(args.into_iter().skip(1)).unwrap();
        let inner = Worker::builder().child_program(program());
        Child::attach(args, Arc::new(Host), inner)
            .unwrap()
            .serve()
            .unwrap();
        return;
    }
    if args.first().is_some_and(|first| first == "dies-early") {
        std::process::abort();
    }
    if args.first().is_some_and(|first| first == "parent") {
        return parent_to_be_killed();
    }
    harness::run(TESTS.iter().copied(), |name, test| {
        let before = open_fds();
        test();
        assert_eq!(open_fds(), before, "{name} left descriptors open");
        let children = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        assert!(children.is_err(), "{name} left a child: {children:?}");
    });
}
