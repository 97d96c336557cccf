//! The points of `init()` that native programs alone come by, and the others that need no process. In a program of its own: what is
//! armed is armed for the whole process.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use echelon_runtime::{Callable, RegisterOptions, Worker, WorkerState};

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

/// The variable is set for a child: nothing may change the environment of a process with threads.
fn in_a_process_of_its_own() {
    let file = std::env::temp_dir().join(format!("echelon-points-{}", std::process::id()));
    let child = Command::new(std::env::current_exe().unwrap())
        .arg("--nocapture")
        .env(VARIABLE, file)
        .status();
    assert!(child.unwrap().success());
}

#[test]
fn r_015_a_native_start_fails_at_every_step_and_leaves_nothing() {
    let Some(file) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return in_a_process_of_its_own();
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
    let mut hits = file.into_os_string();
    hits.push(".hit");
    let text = std::fs::read_to_string(&hits).unwrap();
    std::fs::remove_file(&hits).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), POINTS);
}
