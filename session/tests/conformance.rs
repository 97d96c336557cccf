//! The endpoints' conformance suite over a real session process: this program is its own session runner.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)] // A failed unwrap is a failed test.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, IntoRawFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_runtime::channel::Until;
use echelon_runtime::endpoint::{ControlRequest, Endpoint};
use echelon_runtime::mailbox::Bell;
use echelon_runtime::remote::RemoteEndpoint;
use echelon_runtime::testing::conformance::{Fixture, FAILURE_TEXT, PROPERTIES};
use echelon_runtime::testing::harness;
use echelon_runtime::{RemoteWorkerSpec, Worker};
use echelon_session::NativeHost;
use echelon_wire::bootstrap::{json_len, DaemonReply, ReadyLine};

const TIMEOUT: Duration = Duration::from_secs(20);

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

/// Sessions end by themselves when their endpoint has: joining them proves it.
#[derive(Default)]
struct Sessions(Mutex<Vec<JoinHandle<()>>>);

impl Drop for Sessions {
    fn drop(&mut self) {
        for session in self.0.get_mut().unwrap().drain(..) {
            let ended = session.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

impl Fixture for Sessions {
    fn start(&self) -> (Box<dyn Endpoint>, Arc<Bell>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = RemoteWorkerSpec {
            endpoint: listener.local_addr().unwrap().to_string(),
            ..RemoteWorkerSpec::default()
        };
        let session = std::thread::spawn(move || daemon(&listener));
        self.0.lock().unwrap().push(session);
        let bell = Bell::create().unwrap();
        let manifest = spec.manifest(7, 3, 4, TIMEOUT, Vec::new(), Vec::new());
        let ringing = Arc::clone(&bell);
        let ring = Arc::new(move || ringing.ring());
        let until = Until::new(Instant::now() + TIMEOUT);
        let endpoint = RemoteEndpoint::start(&spec, manifest, TIMEOUT, ring, &until).unwrap();
        (Box::new(endpoint), bell)
    }

    fn unsupported(&self) -> ControlRequest {
        ControlRequest::DropRegion { region: 1 }
    }
}

/// A harness of ours: the usual one would read the session's arguments as its own.
fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "session") {
        std::process::exit(session());
    }
    harness::run(PROPERTIES, |_, property| property(&Sessions::default()));
}
