//! The endpoints' conformance suite over a real session process: this program is its own session runner.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)] // A failed unwrap is a failed test.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, IntoRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::testing::conformance::{FAILURE_TEXT, PROPERTIES};
use echelon_runtime::testing::extensions::configurations;
use echelon_runtime::testing::harness;
use echelon_runtime::testing::sessions::Sessions;
use echelon_runtime::Worker;
use echelon_session::NativeHost;
use echelon_wire::bootstrap::{json_len, DaemonReply, ReadyLine};

/// The session's side: manifest on stdin, ready line on stdout.
fn session() -> i32 {
    // What is inherited is above the standard three and open across exec.
    let manifest = rustix::io::dup(std::io::stdin().as_fd()).unwrap();
    let ready = rustix::io::dup(std::io::stdout().as_fd()).unwrap();
    let args = [
        "--manifest-fd".to_owned(),
        manifest.into_raw_fd().to_string(),
        "--ready-fd".to_owned(),
        ready.into_raw_fd().to_string(),
    ];
    let host = NativeHost::new()
        .with("m:completes", |_, _| Ok(()))
        .with("m:fails", |_, _| Err(FAILURE_TEXT.into()))
        .with("m:endless", |_, _| loop {
            std::thread::park();
        });
    echelon_session::session_main(args.into_iter(), Arc::new(host), Worker::builder())
}

/// The daemon's side for one session; ends when the session has.
fn daemon(listener: &TcpListener) {
    let (mut parent, _) = listener.accept().unwrap();
    let mut prefix = [0; 4];
    parent.read_exact(&mut prefix).unwrap();
    let mut json = vec![0; json_len(prefix).unwrap()];
    parent.read_exact(&mut json).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("session")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&json).unwrap();
    let mut line = Vec::new();
    let mut ready = BufReader::new(child.stdout.take().unwrap());
    ready.read_until(b'\n', &mut line).unwrap();
    let reply = match ReadyLine::from_line(&line).unwrap() {
        ReadyLine::Ok(ports) => DaemonReply::Ok {
            ports,
            pid: child.id(),
        },
        ReadyLine::Err { error } => DaemonReply::Err { error, pid: None },
    };
    parent.write_all(&reply.to_frame().unwrap()).unwrap();
    drop(parent);
    child.wait().unwrap();
}

/// A harness of ours: the usual one would read the session's arguments as its own.
fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "session") {
        std::process::exit(session());
    }
    harness::run(PROPERTIES, |_, property| {
        // No extension changes what an endpoint does. Beside each other: a session that has to be ended by force takes its time.
        std::thread::scope(|scope| {
            for offered in configurations() {
                let over = std::thread::Builder::new().name(format!("{:?}", offered.names()));
                let unsupported = ControlRequest::DropRegion { region: 1 };
                let sessions = Sessions::new(daemon, unsupported, offered);
                over.spawn_scoped(scope, move || property(&sessions))
                    .unwrap();
            }
        });
    });
}
