//! The conformance suite over real child processes: this program is its own child.
#![allow(clippy::unwrap_used, missing_docs)] // A failed unwrap is a failed test.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_runtime::child::{Child, ChildArgs};
use echelon_runtime::endpoint::local::{LocalEndpoint, LocalSpec};
use echelon_runtime::endpoint::{ControlRequest, Endpoint};
use echelon_runtime::mailbox::Bell;
use echelon_runtime::process::Keeper;
use echelon_runtime::testing::conformance::{Fixture, FAILURE_TEXT, PROPERTIES};
use echelon_runtime::testing::harness;
use echelon_runtime::{CallableHost, ChildProgram, HostedCallable, Orchestrator, TaskView, Worker};
use echelon_wire::callable::CallableKind;

/// What this program can call when it is a child.
struct Host;

struct Hosted(String);

impl CallableHost for Host {
    fn resolve(&self, _: CallableKind, payload: &[u8]) -> Result<Arc<dyn HostedCallable>, String> {
        let name = String::from_utf8_lossy(payload).into_owned();
        match name.as_str() {
            "m:missing" => Err("ModuleNotFoundError: No module named 'm'".into()),
            _ => Ok(Arc::new(Hosted(name))),
        }
    }
}

impl HostedCallable for Hosted {
    fn call_leaf(&self, _: TaskView) -> Result<(), String> {
        match self.0.as_str() {
            "m:fails" => Err(format!("Traceback\n{FAILURE_TEXT}")),
            "m:endless" => loop {
                std::thread::park();
            },
            _ => Ok(()),
        }
    }

    fn call_orchestration(&self, _: &Orchestrator, _: TaskView) -> Result<(), String> {
        Err("no orchestration here".into())
    }
}

struct Children(Arc<Keeper>);

impl Fixture for Children {
    fn start(&self) -> (Box<dyn Endpoint>, Arc<Bell>) {
        let bell = Bell::create().unwrap();
        let spec = LocalSpec {
            about: None,
            name: "local/sub0".into(),
            program: ChildProgram::Custom {
                program: std::env::current_exe().unwrap(),
                args: vec!["child".into()],
            },
            env: Vec::new(),
            regions: Vec::new(),
            plan: None,
            is_parent: false,
            ready_by: Instant::now() + Duration::from_secs(20),
        };
        let endpoint = LocalEndpoint::start(spec, &self.0, Arc::clone(&bell)).unwrap();
        (Box::new(endpoint), bell)
    }

    fn unsupported(&self) -> ControlRequest {
        ControlRequest::Alloc { nbytes: 1 }
    }
}

/// A harness of ours: the usual one would read the child's arguments as its own.
fn main() {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "child") {
        let args = ChildArgs::parse(args.into_iter().skip(1)).unwrap();
        let child = Child::attach(args, Arc::new(Host), Worker::builder()).unwrap();
        child.serve().unwrap();
        return;
    }
    harness::run(PROPERTIES, |name, property| {
        let keeper = Arc::new(Keeper::start().unwrap());
        property(&Children(Arc::clone(&keeper)));
        let bound = Instant::now() + Duration::from_secs(20);
        keeper.stop(bound).unwrap();
        let left = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        assert!(left.is_err(), "{name} left a child: {left:?}");
    });
}
