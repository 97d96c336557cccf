//! The points of `init()` that native programs alone come by, and the others that need no process. In a program of its own: what is
//! armed is armed for the whole process.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_runtime::{Callable, Error, RegisterOptions, Worker, WorkerState};

const VARIABLE: &str = "ECHELON_FAILPOINTS";

const POINTS: [&str; 9] = [
    "init.keeper",
    "init.bell",
    "init.arena",
    "init.thread",
    "init.thread.1",
    "init.driver",
    "init.register",
    "init.confirm",
    "init.commit",
];

fn worker() -> Worker {
    let builder = Worker::builder().threads(2).memory_limit(Some(1 << 20));
    let worker = builder.build().unwrap();
    let callable = Callable::native("nothing", |_| Ok(()));
    worker
        .register(callable, RegisterOptions::default())
        .unwrap();
    worker
}

fn threads_and_descriptors() -> (usize, usize) {
    let count = |what: &str| {
        let entries = std::fs::read_dir(Path::new("/proc/self").join(what));
        entries.unwrap().count()
    };
    (count("task"), count("fd"))
}

/// The variable is set for a child, which runs this test alone: nothing may change the environment of a process with threads.
fn in_a_process_of_its_own(test: &str) {
    let file = std::env::temp_dir().join(format!("echelon-points-{}-{test}", std::process::id()));
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(VARIABLE, &file)
        .status();
    assert!(child.unwrap().success());
    let _ = std::fs::remove_file(hits(&file));
}

fn hits(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".hit");
    name.into()
}

/// Starts `worker` in another thread, and returns when it hangs at its last step, with everything up.
fn held_at_commit(file: &Path, worker: &Worker) -> JoinHandle<Result<(), Error>> {
    let _ = std::fs::remove_file(hits(file));
    std::fs::write(file, "init.commit hang\n").unwrap();
    let theirs = worker.clone();
    let starting = std::thread::spawn(move || theirs.init());
    while !hits(file).exists() {
        assert!(!starting.is_finished(), "{:?}", starting.join());
        std::thread::park_timeout(Duration::from_millis(5));
    }
    starting
}

#[test]
fn r_015_a_native_start_fails_at_every_step_and_leaves_nothing() {
    let Some(file) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return in_a_process_of_its_own(
            "r_015_a_native_start_fails_at_every_step_and_leaves_nothing",
        );
    };
    // What the first start opens once and for all (the standard numbers, if they were closed) is not a leak.
    let first = worker();
    first.init().unwrap();
    first.close().unwrap();
    for point in POINTS {
        let before = threads_and_descriptors();
        std::fs::write(&file, format!("{point} fail\n")).unwrap();
        let failing = worker();
        let error = failing.init().unwrap_err().to_string();
        assert!(error.contains(point), "{point}: {error}");
        assert!(matches!(failing.state(), WorkerState::Failed(_)), "{point}");
        failing.close().unwrap();
        assert_eq!(threads_and_descriptors(), before, "{point}");
        std::fs::remove_file(&file).unwrap();
        let next = worker();
        next.init().unwrap();
        next.close().unwrap();
    }
    let text = std::fs::read_to_string(hits(&file)).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), POINTS);
}

/// The thread that was to say READY does not run until the deadline has passed, or until somebody calls the start off.
#[test]
fn r_006_what_is_late_or_called_off_at_the_last_step_is_rolled_back() {
    let Some(file) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return in_a_process_of_its_own(
            "r_006_what_is_late_or_called_off_at_the_last_step_is_rolled_back",
        );
    };
    let first = worker();
    first.init().unwrap();
    first.close().unwrap();
    let before = threads_and_descriptors();
    let limit = Duration::from_secs(3);
    let late = Worker::builder().threads(2).memory_limit(Some(1 << 20));
    let late = late.startup_timeout(limit).build().unwrap();
    let starting = held_at_commit(&file, &late);
    let passed = Instant::now() + limit;
    while let Some(rest) = passed.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(rest);
    }
    assert_eq!(late.state(), WorkerState::Starting);
    std::fs::remove_file(&file).unwrap();
    let error = starting.join().unwrap().unwrap_err().to_string();
    assert!(
        error.contains("startup_timeout_s of 3s has passed"),
        "{error}"
    );
    assert!(matches!(late.state(), WorkerState::Failed(_)));
    assert_eq!(threads_and_descriptors(), before);
    late.close().unwrap();

    let unwanted = Worker::builder().threads(2).memory_limit(Some(1 << 20));
    let unwanted = unwanted.close_timeout(Duration::from_secs(2));
    let unwanted = unwanted.build().unwrap();
    let starting = held_at_commit(&file, &unwanted);
    // It can wait no longer for a start that hangs, and has called it off.
    let error = unwanted.close().unwrap_err().to_string();
    assert!(error.contains("still rolls back"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let error = starting.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("close() was called"), "{error}");
    unwanted.close().unwrap();
    assert_eq!(threads_and_descriptors(), before);
}
