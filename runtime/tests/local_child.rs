//! Real child processes behind mailboxes: this program is its own child.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use echelon_runtime::child::{Child, ChildArgs};
use echelon_runtime::memory::HostMemory;
use echelon_runtime::Tensor;
use echelon_runtime::{
    Callable, CallableHost, ChildProgram, Error, FailureKind, HostedCallable, Orchestrator,
    RegisterOptions, Tag, TaskArgs, TaskView, Worker,
};
use echelon_wire::callable::{CallableKind, ImportTarget};
use echelon_wire::tensor::{DataType, TensorMeta};
use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

/// What a child keeps beyond its task.
static KEPT: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

/// What this program as a child can call, by qualname.
struct Host;

struct Hosted(String);

impl CallableHost for Host {
    fn resolve(
        &self,
        _kind: CallableKind,
        payload: &[u8],
    ) -> Result<Arc<dyn HostedCallable>, String> {
        let name = String::from_utf8_lossy(payload).into_owned();
        match name.as_str() {
            "t:die_at_install" => std::process::abort(),
            large if large.len() > 1000 => Ok(Arc::new(Hosted(format!("{} bytes", large.len())))),
            "t:missing" => Err("ModuleNotFoundError: No module named 't'".into()),
            _ => Ok(Arc::new(Hosted(name))),
        }
    }
}

impl HostedCallable for Hosted {
    fn call_leaf(&self, view: TaskView) -> Result<(), String> {
        match self.0.as_str() {
            "t:fail" => Err(format!("Traceback\nValueError: {}", view.scalars[0])),
            "t:die" => std::process::abort(),
            "t:keep" => {
                KEPT.lock().unwrap().extend(view.tensors);
                Ok(())
            }
            "t:let_go" => {
                KEPT.lock().unwrap().clear();
                Ok(())
            }
            "t:die_later" => {
                let memory = view.tensors[0].memory().unwrap();
                std::thread::spawn(move || loop {
                    if memory.to_vec()[0] == 99 {
                        std::process::abort();
                    }
                    std::thread::yield_now();
                });
                Ok(())
            }
            "t:spin" => loop {
                std::thread::park();
            },
            _ => {
                for tensor in view.tensors.iter().filter(|tensor| !tensor.is_read_only()) {
                    let memory = tensor.memory().map_err(|error| error.to_string())?;
                    let bytes: Vec<u8> = memory
                        .to_vec()
                        .iter()
                        .map(|byte| byte.wrapping_add(1))
                        .collect();
                    memory
                        .copy_in(0, &bytes)
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            }
        }
    }

    fn call_orchestration(&self, orch: &Orchestrator, view: TaskView) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        if self.0.ends_with(" bytes") {
            return Err(self.0.clone());
        }
        let leaf = orch.worker().find_handle("t:add").map_err(text)?;
        for tensor in &view.tensors {
            let mut args = TaskArgs::new();
            args.add_tensor(tensor, Tag::InOut).map_err(text)?;
            orch.submit_sub(&leaf, args).map_err(text)?;
        }
        Ok(())
    }
}

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
    for _ in 0..3 {
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
    }
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

/// Waits for the end of a process that is not our child.
fn wait_gone(pid: u32, within: Duration) -> bool {
    let Ok(fd) = pidfd_open(raw_pid(pid), PidfdFlags::empty()) else {
        return true;
    };
    let timeout = within.try_into().unwrap();
    let mut fds = [rustix::event::PollFd::new(
        &fd,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
}

fn raw_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

fn signal(pid: u32, signal: Signal) {
    let fd = pidfd_open(raw_pid(pid), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&fd, signal).unwrap();
}

/// Five points of the mailbox protocol: before READY, idle, at an install, in a task, after its completion.
fn r_041_a_child_that_dies_at_any_point_of_the_protocol_is_noticed() {
    let early = ChildProgram::Custom {
        program: std::env::current_exe().unwrap(),
        args: vec!["dies-early".into()],
    };
    let w = Worker::builder()
        .sub_workers(1)
        .child_program(early)
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    let error = w.init().unwrap_err().to_string();
    assert!(
        error.contains("signal 6") && error.contains("before it was ready"),
        "{error}"
    );
    w.close().unwrap();

    let w = worker(1);
    let register = |name: &str| w.register(import(name), RegisterOptions::default());
    let add = register("t:add").unwrap();
    let (die, die_later) = (register("t:die").unwrap(), register("t:die_later").unwrap());
    w.init().unwrap();
    let works = || {
        w.run_simple(|orch| orch.submit_sub(&add, TaskArgs::new()).map(drop))
            .map(drop)
    };
    // Idle: the next run finds it dead or replaces it before it submits; both are an end within the deadline.
    works().unwrap();
    let idle = w.workers()[0].pid;
    signal(idle, Signal::KILL);
    assert!(wait_gone(idle, Duration::from_secs(10)));
    if let Err(error) = works() {
        assert!(error.to_string().contains("lost"), "{error}");
    }
    works().unwrap();
    // At an install.
    let error = register("t:die_at_install").unwrap_err().to_string();
    assert!(error.contains("signal 6"), "{error}");
    if let Err(error) = works() {
        assert!(error.to_string().contains("lost"), "{error}");
    }
    works().unwrap();
    // In a task.
    let ran = w.run_simple(|orch| orch.submit_sub(&die, TaskArgs::new()).map(drop));
    assert!(ran.unwrap_err().to_string().contains("signal 6"));
    works().unwrap();
    // After the completion: the task has completed, and stays so.
    let (tensor, _) = w
        .run(|orch| {
            let tensor = orch.alloc(u8s(8))?;
            tensor.memory()?.zero().map_err(Error::from)?;
            let mut args = TaskArgs::new();
            args.add_tensor(&tensor, Tag::InOut)?;
            orch.submit_sub(&die_later, args)?;
            Ok::<_, Error>(tensor)
        })
        .unwrap();
    let late = w.workers()[0].pid;
    tensor.memory().unwrap().copy_in(0, &[99]).unwrap();
    assert!(wait_gone(late, Duration::from_secs(10)));
    if let Err(error) = works() {
        assert!(error.to_string().contains("lost"), "{error}");
    }
    works().unwrap();
    w.close().unwrap();
}

fn r_045_a_stopped_child_does_not_keep_the_worker_from_closing() {
    let w = Worker::builder()
        .sub_workers(3)
        .child_program(program())
        .memory_limit(Some(1 << 20))
        .close_timeout(Duration::from_millis(1500))
        .build()
        .unwrap();
    w.init().unwrap();
    let pids: Vec<u32> = w.workers().iter().map(|info| info.pid).collect();
    signal(pids[0], Signal::STOP);
    w.close().unwrap();
    for pid in pids {
        assert!(
            pidfd_open(raw_pid(pid), PidfdFlags::empty()).is_err(),
            "{pid} was not reaped"
        );
    }
}

fn r_039_children_end_when_their_parent_is_killed() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .arg("parent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(parent.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let pids: Vec<u32> = line
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert_eq!(pids.len(), 2, "{line}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    for pid in pids {
        assert!(
            wait_gone(pid, Duration::from_secs(2)),
            "{pid} outlived its parent"
        );
    }
}

/// A process with two children, one of them in a task that never ends; prints their ids and waits to be killed.
fn parent_to_be_killed() {
    let w = worker(2);
    let spin = w
        .register(import("t:spin"), RegisterOptions::default())
        .unwrap();
    w.init().unwrap();
    let pids: Vec<String> = w
        .workers()
        .iter()
        .map(|info| info.pid.to_string())
        .collect();
    let _ = w.run_simple(|orch| {
        orch.submit_sub(&spin, TaskArgs::new())?;
        println!("{}", pids.join(" "));
        Ok(())
    });
}

fn section_15_8_children_outlive_the_thread_that_called_init() {
    let w = worker(1);
    let add = w
        .register(import("t:add"), RegisterOptions::default())
        .unwrap();
    let theirs = w.clone();
    std::thread::spawn(move || theirs.init().unwrap())
        .join()
        .unwrap();
    let pid = w.workers()[0].pid;
    for _ in 0..3 {
        w.run_simple(|orch| orch.submit_sub(&add, TaskArgs::new()).map(drop))
            .unwrap();
    }
    assert_eq!(w.workers()[0].pid, pid);
    w.close().unwrap();
}

fn section_15_6_memory_is_not_reused_while_a_child_has_a_view_of_it() {
    let w = Worker::builder()
        .sub_workers(1)
        .child_program(program())
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    let register = |name: &str| {
        w.register(import(name), RegisterOptions::default())
            .unwrap()
    };
    let (keep, let_go) = (register("t:keep"), register("t:let_go"));
    w.init().unwrap();
    let whole = u8s(1 << 20);
    w.run_simple(|orch| {
        let mut args = TaskArgs::new();
        args.add_tensor(&orch.alloc(whole)?, Tag::Output)?;
        orch.submit_sub(&keep, args).map(drop)
    })
    .unwrap();
    let take = || w.run_simple(|orch| orch.alloc(whole).map(drop));
    let error = take().unwrap_err().to_string();
    assert!(error.contains("1048576"), "{error}");
    w.run_simple(|orch| orch.submit_sub(&let_go, TaskArgs::new()).map(drop))
        .unwrap();
    // The release follows the completion of the task that let go.
    let deadline = Instant::now() + Duration::from_secs(20);
    while take().is_err() {
        assert!(Instant::now() < deadline, "the memory never came back");
        w.run_simple(|orch| orch.submit_sub(&let_go, TaskArgs::new()).map(drop))
            .unwrap();
    }
    w.close().unwrap();
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

const TESTS: [Test; 12] = [
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

/// A small harness: the usual one would read the child's arguments as its own. Speaks what cargo and nextest ask for.
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
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    if has("--list") {
        for (name, _) in TESTS.iter().filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return;
    }
    let wanted: Vec<&OsString> = args
        .iter()
        .filter(|arg| !arg.to_string_lossy().starts_with('-'))
        .collect();
    let mut passed = 0;
    for (name, test) in TESTS {
        if !wanted.is_empty()
            && !wanted
                .iter()
                .any(|part| name.contains(&*part.to_string_lossy()))
        {
            continue;
        }
        let before = open_fds();
        test();
        assert_eq!(open_fds(), before, "{name} left descriptors open");
        let children = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        assert!(children.is_err(), "{name} left a child: {children:?}");
        println!("test {name} ... ok");
        passed += 1;
    }
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}
