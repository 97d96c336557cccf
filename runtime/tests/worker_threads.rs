//! The whole engine over worker threads: no Python, no processes.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A failed unwrap is a failed test.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use echelon_runtime::memory::HostMemory;
use echelon_runtime::{
    Callable, CallableHandle, CopySide, Error, FailureKind, RegisterOptions, RunEnd, Tag, TaskArgs,
    TaskView, Tensor, Worker, WorkerState,
};
use echelon_wire::tensor::{DataType, TensorMeta};

fn worker(threads: u32) -> Worker {
    Worker::builder()
        .threads(threads)
        .memory_limit(Some(64 << 20))
        .build()
        .unwrap()
}

fn doubled(view: TaskView) -> Result<(), String> {
    let mut bytes = view.tensors[0].memory().unwrap().to_vec();
    for byte in &mut bytes {
        *byte = byte.wrapping_mul(2);
    }
    view.tensors[0]
        .memory()
        .unwrap()
        .copy_in(0, &bytes)
        .map_err(|error| error.to_string())
}

fn u8s(count: u32) -> TensorMeta {
    TensorMeta::new(&[count], DataType::Uint8).unwrap()
}

#[test]
fn a_chain_over_one_tensor_runs_in_order() {
    let w = worker(3);
    let double = w
        .register(
            Callable::native("double", doubled),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let (tensor, report) = w
        .run(|orch| {
            let tensor = orch.alloc(u8s(4))?;
            tensor
                .memory()?
                .copy_in(0, &[1, 2, 3, 4])
                .map_err(Error::from)?;
            for _ in 0..5 {
                let mut args = TaskArgs::new();
                args.add_tensor(&tensor, Tag::InOut)?;
                orch.submit_sub(&double, args)?;
            }
            Ok::<_, Error>(tensor)
        })
        .unwrap();
    assert_eq!(tensor.memory().unwrap().to_vec(), [32, 64, 96, 128]);
    assert_eq!(report.counts["completed"], 5);
    assert_eq!(report.tasks_per_worker.values().sum::<u64>(), 5);
    assert_eq!(report.timeline[4].deps, [4]);
    w.close().unwrap();
    assert_eq!(w.state(), WorkerState::Closed);
    w.close().unwrap();
}

#[test]
fn an_array_of_the_parent_is_staged_in_and_copied_back() {
    let w = worker(2);
    let double = w
        .register(
            Callable::native("double", doubled),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let array = HostMemory::from_vec(vec![1, 2, 3]);
    w.run_simple(|orch| {
        for _ in 0..3 {
            let mut args = TaskArgs::new();
            args.add_host(array.clone(), u8s(3), Tag::InOut)?;
            orch.submit_sub(&double, args)?;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(array.to_vec(), [8, 16, 24]);
    w.close().unwrap();
}

#[test]
fn r_082_a_failure_skips_readers_only_and_is_reported_with_its_text() {
    let w = worker(2);
    let fails = w
        .register(
            Callable::native("fails", |_| Err("no luck".into())),
            RegisterOptions::default(),
        )
        .unwrap();
    let ran = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&ran);
    let counts = w
        .register(
            Callable::native("counts", move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let error = w
        .run_simple(|orch| {
            let (poisoned, other) = (orch.alloc(u8s(8))?, orch.alloc(u8s(8))?);
            for (callable, tensor, tag) in [
                (&fails, &poisoned, Tag::Output),
                (&counts, &poisoned, Tag::Input),
                (&counts, &other, Tag::InOut),
                (&counts, &poisoned, Tag::Output),
                (&counts, &poisoned, Tag::Input),
            ] {
                let mut args = TaskArgs::new();
                args.add_tensor(tensor, tag)?;
                orch.submit_sub(callable, args)?;
            }
            Ok(())
        })
        .unwrap_err();
    let Error::Run(error) = error else {
        panic!("{error}")
    };
    assert_eq!(ran.load(Ordering::SeqCst), 3);
    assert_eq!((error.skipped, error.failures.len()), (1, 1));
    assert_eq!(error.failures[0].kind, FailureKind::Failed);
    assert_eq!(error.failures[0].sequence, 1);
    assert!(error.to_string().contains("no luck"), "{error}");
    // The worker is usable.
    w.run_simple(|orch| orch.submit_sub(&counts, TaskArgs::new()).map(drop))
        .unwrap();
    w.close().unwrap();
}

#[test]
fn copies_are_nodes_of_the_graph() {
    let w = worker(1);
    let double = w
        .register(
            Callable::native("double", doubled),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let out = HostMemory::from_vec(vec![0; 2]);
    w.run_simple(|orch| {
        let tensor = orch.alloc(u8s(2))?;
        tensor.memory()?.copy_in(0, &[5, 6]).map_err(Error::from)?;
        let mut args = TaskArgs::new();
        args.add_tensor(&tensor, Tag::InOut)?;
        orch.submit_sub(&double, args)?;
        orch.copy(
            CopySide::Host {
                memory: out.clone(),
                meta: u8s(2),
            },
            CopySide::Tensor(tensor),
        )?;
        Ok(())
    })
    .unwrap();
    assert_eq!(out.to_vec(), [10, 12]);
    w.close().unwrap();
}

#[test]
fn the_error_of_the_function_comes_back_unchanged_and_cancels() {
    let w = worker(1);
    w.init().unwrap();
    let end = w.run(|_| Err::<(), _>("mine")).unwrap_err();
    assert!(matches!(end, RunEnd::Function("mine")));
    w.close().unwrap();
}

#[test]
fn calls_in_the_wrong_state_say_what_to_do() {
    let w = worker(1);
    let error = w.run_simple(|_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("call init() first"), "{error}");
    w.init().unwrap();
    assert!(matches!(w.init().unwrap_err(), Error::Lifecycle { .. }));
    w.close().unwrap();
    assert!(matches!(
        w.run_simple(|_| Ok(())).unwrap_err(),
        Error::Lifecycle { .. }
    ));
}

/// A worker whose table and memory hold little, READY, and a callable that does nothing.
fn small_table() -> (Worker, CallableHandle) {
    let w = Worker::builder()
        .threads(2)
        .max_tasks(16)
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    let noop = w
        .register(
            Callable::native("noop", |_| Ok(())),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    (w, noop)
}

#[test]
fn r_083_a_run_of_many_small_tasks_is_bounded_by_the_table() {
    let (w, noop) = small_table();
    let report = w
        .run_simple(|orch| {
            for _ in 0..2_000 {
                let mut args = TaskArgs::new();
                args.add_host(
                    HostMemory::from_vec(vec![0; 65_536]),
                    u8s(65_536),
                    Tag::Input,
                )?;
                orch.submit_sub(&noop, args)?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(report.counts["completed"], 2_000);
    w.close().unwrap();
}

#[test]
fn alloc_beyond_the_limit_with_nothing_running_is_an_error_with_the_limit() {
    let w = Worker::builder()
        .threads(1)
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    w.init().unwrap();
    let error = w
        .run_simple(|orch| orch.alloc(u8s(2 << 20)).map(drop))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Resource {
                requested: 2_097_152,
                ..
            }
        ),
        "{error:?}"
    );
    w.close().unwrap();
}

#[test]
fn a_tensor_of_an_ended_scope_is_refused() {
    let w = worker(1);
    let noop = w
        .register(
            Callable::native("noop", |_| Ok(())),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let error = w
        .run_simple(|orch| {
            orch.scope_begin();
            let tensor = orch.alloc(u8s(1))?;
            orch.scope_end()?;
            let mut args = TaskArgs::new();
            args.add_tensor(&tensor, Tag::Input)?;
            orch.submit_sub(&noop, args).map(drop)
        })
        .unwrap_err();
    assert!(matches!(error, Error::Handle { .. }), "{error:?}");
    w.close().unwrap();
}

#[test]
fn progress_is_made_while_nobody_waits() {
    let w = worker(1);
    let double = w
        .register(
            Callable::native("double", doubled),
            RegisterOptions::default(),
        )
        .unwrap();
    let (told, done) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let tell = w
        .register(
            Callable::native("tell", move |_| {
                told.lock()
                    .unwrap()
                    .send(())
                    .map_err(|error| error.to_string())
            }),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    w.run_simple(|orch| {
        let tensor = orch.alloc(u8s(1))?;
        for callable in [&double, &double, &tell] {
            let mut args = TaskArgs::new();
            args.add_tensor(&tensor, Tag::InOut)?;
            orch.submit_sub(callable, args)?;
        }
        // This thread does not enter the runtime until the chain has finished.
        done.recv_timeout(std::time::Duration::from_secs(20))
            .expect("the chain must finish by itself");
        Ok(())
    })
    .unwrap();
    w.close().unwrap();
}

fn plus_one(view: TaskView) -> Result<(), String> {
    let memory = view.tensors[0].memory().map_err(|e| e.to_string())?;
    let mut byte = [0];
    memory.copy_out(0, &mut byte).map_err(|e| e.to_string())?;
    memory.copy_in(0, &[byte[0] + 1]).map_err(|e| e.to_string())
}

fn on(tensor: &Tensor) -> TaskArgs {
    let mut args = TaskArgs::new();
    args.add_tensor(tensor, Tag::InOut).unwrap();
    args
}

#[test]
fn a_batch_is_so_many_single_submits_in_order() {
    let w = worker(3);
    let plus_one = w
        .register(
            Callable::native("plus_one", plus_one),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let (tensor, report) = w
        .run(|orch| {
            let tensor = orch.alloc(u8s(1))?;
            tensor.memory()?.zero()?;
            let handles = orch.submit_sub_many(&plus_one, &vec![on(&tensor); 200])?;
            let numbers: Vec<u64> = handles.iter().map(|handle| handle.sequence).collect();
            assert_eq!(numbers, (1..=200).collect::<Vec<_>>());
            assert!(orch.submit_sub_many(&plus_one, &[])?.is_empty());
            Ok::<_, Error>(tensor)
        })
        .unwrap();
    assert_eq!(tensor.memory().unwrap().to_vec(), [200]);
    assert_eq!(report.counts["completed"], 200);
    w.close().unwrap();
}

#[test]
fn what_stands_before_a_refused_entry_of_a_batch_is_submitted() {
    let w = worker(2);
    let plus_one = w
        .register(
            Callable::native("plus_one", plus_one),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let (tensor, report) = w
        .run(|orch| {
            let tensor = orch.alloc(u8s(1))?;
            tensor.memory()?.zero()?;
            orch.scope_begin();
            let ended = orch.alloc(u8s(1))?;
            orch.scope_end()?;
            let mut batch = vec![on(&tensor); 150];
            batch[70] = on(&ended);
            let error = orch.submit_sub_many(&plus_one, &batch).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("args_list[70]: tensor: its scope"),
                "{text}"
            );
            assert!(matches!(error, Error::InBatch { index: 70, .. }));
            Ok::<_, Error>(tensor)
        })
        .unwrap();
    assert_eq!(tensor.memory().unwrap().to_vec(), [70]);
    assert_eq!(report.counts["completed"], 70);
    w.close().unwrap();
}

#[test]
fn a_batch_waits_for_room_in_the_table_and_for_memory() {
    let (w, noop) = small_table();
    let mut args = TaskArgs::new();
    let array = HostMemory::from_vec(vec![0; 65_536]);
    args.add_host(array, u8s(65_536), Tag::Input).unwrap();
    let report = w
        .run_simple(|orch| orch.submit_sub_many(&noop, &vec![args; 500]).map(drop))
        .unwrap();
    assert_eq!(report.counts["completed"], 500);
    w.close().unwrap();
}

#[test]
fn a_submit_that_would_wait_for_room_can_be_asked_not_to() {
    let w = Worker::builder().threads(1).max_tasks(1).build().unwrap();
    let (go, gate) = std::sync::mpsc::channel();
    let gate = std::sync::Mutex::new(gate);
    let waits = w
        .register(
            Callable::native("waits", move |_| {
                gate.lock()
                    .unwrap()
                    .recv_timeout(std::time::Duration::from_secs(60))
                    .map_err(|error| error.to_string())
            }),
            RegisterOptions::default(),
        )
        .unwrap();
    w.init().unwrap();
    let report = w
        .run_simple(|orch| {
            let first = orch.try_submit_sub(&waits, &TaskArgs::new())?;
            assert_eq!(first.map(|handle| handle.sequence), Some(1));
            let second = orch.try_submit_sub(&waits, &TaskArgs::new())?;
            assert_eq!(second, None, "the table has one place");
            go.send(()).unwrap();
            go.send(()).unwrap();
            let second = orch.submit_sub(&waits, TaskArgs::new())?;
            assert_eq!(second.sequence, 2);
            Ok(())
        })
        .unwrap();
    assert_eq!(report.counts["completed"], 2);
    w.close().unwrap();
}
