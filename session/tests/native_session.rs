//! A Rust parent of a Rust session, with the real daemon between them: nothing here is Python. The session runner is the example
//! `native_session`, served by this program.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)] // A failed unwrap is a failed test.

#[allow(dead_code)] // Its `main` is that of the example.
#[path = "../../examples/native_session.rs"]
mod example;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::harness;
use echelon_runtime::{
    Callable, CallableHandle, Error, FailureKind, RegisterOptions, RegisterScope, RemoteBuffer,
    RemoteWorkerSpec, Tag, TaskArgs, Worker,
};
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::ImportTarget;
use echelon_wire::tensor::{DataType, TensorMeta};
use rustix::process::{kill_process, Pid, Signal};

/// Bound of the wait for the daemon's end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon as a child process, ended with this value.
struct Daemon {
    child: Child,
    endpoint: String,
}

impl Daemon {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_echelon-worker"))
            .args(["--insecure-loopback", "--session-command"])
            .arg(std::env::current_exe().unwrap())
            .arg("session")
            .env("ECHELON_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let endpoint = line.trim_end().strip_prefix("listening on ").unwrap();
        Self {
            endpoint: endpoint.to_owned(),
            child,
        }
    }

    /// A worker with one session on this daemon, not inited yet.
    fn parent(&self, sub_workers: u32) -> Worker {
        let worker = Worker::builder()
            .memory_limit(Some(16 << 20))
            .build()
            .unwrap();
        let spec = RemoteWorkerSpec {
            endpoint: self.endpoint.clone(),
            num_sub_workers: sub_workers,
            ..RemoteWorkerSpec::default()
        };
        assert_eq!(worker.add_remote_worker(spec).unwrap(), 0);
        worker
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::park_timeout(Duration::from_millis(5));
        };
        assert!(status.success() || std::thread::panicking(), "{status}");
    }
}

fn register(worker: &Worker, target: &str) -> Result<CallableHandle, Error> {
    let callable = Callable::import(ImportTarget::parse(target).unwrap());
    let options = RegisterOptions {
        scope: RegisterScope::Remote,
        ..RegisterOptions::default()
    };
    worker.register(callable, options)
}

/// Runs one task over the whole buffer.
fn call(
    worker: &Worker,
    handle: &CallableHandle,
    buffer: &RemoteBuffer,
    meta: TensorMeta,
    scalar: u64,
) -> Result<(), Error> {
    let report = worker.run_simple(|orch| {
        let mut args = TaskArgs::new();
        args.add_remote(buffer, 0, meta, Tag::InOut)?
            .add_scalar(scalar)?;
        orch.submit_next_level(handle, args, CallConfig::default(), Some(0))
            .map(drop)
    });
    report.map(|report| assert_eq!(report.counts["completed"], 1))
}

fn a_native_function_changes_a_remote_buffer_in_place() {
    let daemon = Daemon::start();
    let worker = daemon.parent(0);
    let scale = register(&worker, "native:scale").unwrap();
    worker.init().unwrap();
    let buffer = worker.remote_malloc(0, 24).unwrap();
    let doubles: Vec<u8> = [1.5_f64, -2.0, 0.0]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let sent = HostMemory::from_vec(doubles);
    worker.remote_copy_to(&buffer, &sent, 0).unwrap();
    let meta = TensorMeta::new(&[3], DataType::Float64).unwrap();
    call(&worker, &scale, &buffer, meta, 3).unwrap();
    call(&worker, &scale, &buffer, meta, -2_i64 as u64).unwrap();
    let got = HostMemory::from_vec(vec![0; 24]);
    worker.remote_copy_from(&buffer, &got, 0).unwrap();
    let numbers: Vec<f64> = got
        .to_vec()
        .chunks_exact(8)
        .map(|eight| f64::from_le_bytes(eight.try_into().unwrap()))
        .collect();
    assert_eq!(numbers, [-9.0, 12.0, 0.0]);
    worker.remote_free(&buffer).unwrap();
    worker.close().unwrap();
}

fn a_native_failure_reaches_the_parent_and_the_session_goes_on() {
    let daemon = Daemon::start();
    let worker = daemon.parent(0);
    let fail = register(&worker, "native:fail").unwrap();
    let scale = register(&worker, "native:scale").unwrap();
    worker.init().unwrap();
    let buffer = worker.remote_malloc(0, 8).unwrap();
    let bytes = TensorMeta::new(&[8], DataType::Uint8).unwrap();
    for (handle, text) in [
        (&fail, "native:fail was called with [42]"),
        (&scale, "native:scale takes FLOAT32 or FLOAT64, got Uint8"),
    ] {
        let Err(Error::Run(run)) = call(&worker, handle, &buffer, bytes, 42) else {
            panic!("{text} did not come");
        };
        assert_eq!(run.failures[0].kind, FailureKind::Failed);
        assert!(run.failures[0].message.contains(text), "{run}");
        assert_eq!(
            run.failures[0].host.as_deref(),
            Some(&*daemon.endpoint),
            "{run}"
        );
    }
    let meta = TensorMeta::new(&[2], DataType::Float32).unwrap();
    call(&worker, &scale, &buffer, meta, 2).unwrap();
    worker.remote_free(&buffer).unwrap();
    worker.close().unwrap();
}

fn what_is_not_served_is_refused_with_what_is() {
    let daemon = Daemon::start();
    let worker = daemon.parent(0);
    register(&worker, "native:other").unwrap();
    let error = worker.init().unwrap_err().to_string();
    assert!(error.contains("[native:fail, native:scale]"), "{error}");
    worker.close().unwrap();
    // The same daemon serves the next parent; a function may be named after the start too.
    let worker = daemon.parent(0);
    worker.init().unwrap();
    let error = register(&worker, "native:other").unwrap_err().to_string();
    assert!(error.contains("[native:fail, native:scale]"), "{error}");
    register(&worker, "native:scale").unwrap();
    worker.close().unwrap();
}

fn a_native_runner_refuses_sub_workers_and_says_why() {
    let daemon = Daemon::start();
    let worker = daemon.parent(2);
    let error = worker.init().unwrap_err().to_string();
    assert!(error.contains("num_sub_workers is 2"), "{error}");
    assert!(error.contains("no sub workers"), "{error}");
    worker.close().unwrap();
}

type Case = (&'static str, fn());

const CASES: [Case; 4] = [
    (
        "a_native_function_changes_a_remote_buffer_in_place",
        a_native_function_changes_a_remote_buffer_in_place,
    ),
    (
        "a_native_failure_reaches_the_parent_and_the_session_goes_on",
        a_native_failure_reaches_the_parent_and_the_session_goes_on,
    ),
    (
        "what_is_not_served_is_refused_with_what_is",
        what_is_not_served_is_refused_with_what_is,
    ),
    (
        "a_native_runner_refuses_sub_workers_and_says_why",
        a_native_runner_refuses_sub_workers_and_says_why,
    ),
];

/// A harness of ours: the usual one would read the session's arguments as its own.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "session") {
        std::process::exit(example::serve(args.into_iter().skip(1)));
    }
    harness::run(CASES.iter().copied(), |_, case| case());
}
