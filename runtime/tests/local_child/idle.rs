//! A child that has nothing to do.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use echelon_runtime::{RegisterOptions, TaskArgs};

use super::{import, worker};

/// State of the main thread of a process, and how often it has gone to sleep.
fn main_thread(pid: u32) -> (String, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    let switches = field("voluntary_ctxt_switches:").parse().unwrap();
    (field("State:"), switches)
}

/// Design §5: an idle child sleeps in the kernel, and nothing wakes it.
pub(crate) fn an_idle_child_is_left_asleep() {
    let w = worker(1);
    let add = w
        .register(import("t:add"), RegisterOptions::default())
        .unwrap();
    w.init().unwrap();
    let report = w
        .run_simple(|orch| orch.submit_sub(&add, TaskArgs::new()).map(drop))
        .unwrap();
    let pid = report.timeline[0].pid;
    let (_never, pause) = channel::<()>();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (_, before) = main_thread(pid);
        assert!(pause.recv_timeout(Duration::from_millis(250)).is_err());
        // It may have been on its way to sleep when it was first looked at; how long that takes is up to the machine.
        let (state, after) = main_thread(pid);
        if before == after && state.starts_with('S') {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{state}: {before}, then {after} sleeps"
        );
    }
    w.close().unwrap();
}
