//! The daemon and its runners as real processes: this program is its own daemon and its own session runner.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)] // A failed unwrap is a failed test.

mod bed;
mod chains;
mod lanes;
mod neighbours;
mod runners;
mod tags;

use std::io::Write as _;
use std::sync::Arc;

use echelon_runtime::testing::harness;
use echelon_runtime::Worker;
use echelon_session::NativeHost;

/// What a runner of a test does.
fn session(mode: &str, args: Vec<String>) -> i32 {
    // `late:PATH` serves once PATH exists.
    let mode = match mode.strip_prefix("late:") {
        Some(path) => {
            bed::eventually("the permission to be ready", || {
                std::path::Path::new(path).exists()
            });
            "serve"
        }
        None => mode,
    };
    // `starts:PATH` starts a process in its own group, notes its number at PATH and is silent.
    let mode = match mode.strip_prefix("starts:") {
        Some(path) => {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            let mut child = command.args(["session", "silent"]).spawn().unwrap();
            let unfinished = format!("{path}.part");
            std::fs::write(&unfinished, child.id().to_string()).unwrap();
            std::fs::rename(unfinished, path).unwrap();
            child.wait().unwrap();
            "silent"
        }
        None => mode,
    };
    match mode {
        "serve" => {
            let host = NativeHost::new()
                .with("m:noop", |_, _| Ok(()))
                .with(tags::DESCRIBES, tags::describes)
                .with(lanes::FILLS, lanes::fills)
                .with("m:prints", |_, _| {
                    // More than a pipe holds; a failed write panics.
                    println!("{}", "x".repeat(1 << 20));
                    Ok(())
                })
                .with("m:panics", |_, _| panic!("on purpose"))
                .with("m:endless", |_, _| loop {
                    std::thread::park();
                });
            echelon_session::session_main(args.into_iter(), Arc::new(host), Worker::builder())
        }
        "silent" => loop {
            std::thread::park();
        },
        "fails" => {
            eprintln!("first line\nthe reason of it all");
            3
        }
        "junk" => {
            let at = args.iter().position(|arg| arg == "--ready-fd").unwrap() + 1;
            let path = format!("/proc/self/fd/{}", args[at]);
            let mut ready = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            ready.write_all(b"certainly not JSON\n").unwrap();
            0
        }
        other => panic!("no mode {other}"),
    }
}

/// A harness of ours: the usual one would read the daemon's arguments as its own.
fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("daemon") => std::process::exit(echelon_session::daemon_main(args, None)),
        Some("session") => {
            let mode = args.next().unwrap();
            std::process::exit(session(&mode, args.collect()));
        }
        _ => {}
    }
    let cases = neighbours::CASES
        .iter()
        .chain(runners::CASES)
        .chain(tags::CASES)
        .chain(lanes::CASES)
        .chain(chains::CASES);
    harness::run(cases.copied(), |_, case| case());
}
