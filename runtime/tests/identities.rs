//! Identities are drawn by the process that owns what they name: no two processes ever draw the same.

use std::collections::HashSet;
use std::process::Command;

use echelon_runtime::memory::{random_id, SharedRegion};

const PROCESSES: usize = 1_000;
const IDS_EACH: usize = 64;
/// Set in the processes that draw.
const DRAW: &str = "ECHELON_TEST_DRAW_IDS";

fn drawn() -> Vec<u64> {
    let region = SharedRegion::create_memfd(4096, false).expect("memory");
    let ids = (1..IDS_EACH).map(|_| random_id().expect("the kernel has random numbers"));
    ids.chain([region.id()]).collect()
}

/// The other half of the test below, in a process of its own; by itself it draws and compares within one process.
#[test]
#[allow(clippy::print_stdout)] // The parent reads it.
fn a_process_draws() {
    let ids = drawn();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), IDS_EACH);
    if std::env::var_os(DRAW).is_some() {
        for id in ids {
            println!("id {id:016x}");
        }
    }
}

#[test]
fn r_121_identities_of_many_processes_never_collide() {
    let program = std::env::current_exe().expect("this test");
    let mut seen: HashSet<u64> = drawn().into_iter().collect();
    for _ in 0..PROCESSES {
        let output = Command::new(&program)
            .args([
                "--exact",
                "a_process_draws",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DRAW, "1")
            .output()
            .expect("this test starts again");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        let ids: Vec<u64> = text
            .lines()
            .filter_map(|line| u64::from_str_radix(line.rsplit_once("id ")?.1, 16).ok())
            .collect();
        assert_eq!(ids.len(), IDS_EACH, "{text}");
        for id in ids {
            assert_ne!(id, 0);
            assert!(seen.insert(id), "{id:x} was drawn twice");
        }
    }
    assert_eq!(seen.len(), (PROCESSES + 1) * IDS_EACH);
}
