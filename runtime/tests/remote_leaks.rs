//! endpoints that come and go leave no thread and no descriptor. A program of its own: it counts those of the whole process.
#![allow(clippy::unwrap_used, dead_code, missing_docs)] // A failed unwrap is a failed test.

#[path = "remote_session/peer.rs"]
mod peer;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use echelon_runtime::endpoint::Endpoint;
use peer::{start, Bootstrap, Parent, PATIENCE};

const ROUNDS: usize = 100;

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

fn threads_and_descriptors() -> (usize, usize) {
    (count("/proc/self/task"), count("/proc/self/fd"))
}

/// A session that is used, closed in order, killed, lost or dropped, by turns; and a start that fails.
fn round(turn: usize) {
    let mut parent = Parent::of(PATIENCE, move |mut session| {
        let beats = session.beat();
        while let Some(got) = session.receive() {
            if turn % 4 == 2 {
                break;
            }
            session.complete(got.header.sequence);
        }
        drop(beats);
    });
    parent.submit(&[]).unwrap();
    let _ = parent.event();
    match turn % 4 {
        0 => parent
            .endpoint
            .finish_close(Instant::now() + PATIENCE)
            .unwrap(),
        1 => parent.endpoint.kill("by turns"),
        _ => {}
    }
    drop(parent);
    let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = daemon.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || drop(Bootstrap::accept(&daemon)));
    assert!(start(&at, PATIENCE, Duration::from_secs(5)).is_err());
    thread.join().unwrap();
}

#[test]
fn r_055_nothing_is_left_of_endpoints_that_came_and_went() {
    // Whatever is made once.
    round(0);
    let before = threads_and_descriptors();
    (0..ROUNDS).for_each(round);
    // A thread that was joined may still be on its way out of the kernel.
    let until = Instant::now() + PATIENCE;
    while threads_and_descriptors() != before && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(threads_and_descriptors(), before);
}
