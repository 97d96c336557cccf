//! The conformance suite over the fake endpoints and over worker threads.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use std::sync::Arc;

use echelon_runtime::endpoint::thread::ThreadEndpoint;
use echelon_runtime::endpoint::{ControlRequest, Endpoint};
use echelon_runtime::mailbox::Bell;
use echelon_runtime::testing::conformance::{check, Fixture, FAILURE_TEXT};
use echelon_runtime::testing::fake::{FakeWorld, TaskVerdict};
use echelon_runtime::Callable;

struct Fakes {
    remote: bool,
}

impl Fixture for Fakes {
    fn start(&self) -> (Box<dyn Endpoint>, Arc<Bell>) {
        let bell = Bell::create().unwrap();
        let world = FakeWorld::new(Arc::clone(&bell));
        let (endpoint, handle) = match self.remote {
            true => world.remote(0, 1),
            false => world.local("fake", 3),
        };
        handle.on_task(|task| match &*task.callable.name {
            "m:fails" => TaskVerdict::Fail(FAILURE_TEXT.into()),
            "m:endless" => TaskVerdict::Hold,
            _ => TaskVerdict::Done,
        });
        (endpoint, bell)
    }

    fn unpreparable(&self) -> Option<Callable> {
        None
    }

    fn unsupported(&self) -> ControlRequest {
        match self.remote {
            true => ControlRequest::DropRegion { region: 1 },
            false => ControlRequest::Alloc { nbytes: 1 },
        }
    }
}

#[test]
fn a_fake_that_shares_memory() {
    check(&Fakes { remote: false });
}

#[test]
fn a_fake_session() {
    check(&Fakes { remote: true });
}

struct Threads;

impl Fixture for Threads {
    fn start(&self) -> (Box<dyn Endpoint>, Arc<Bell>) {
        let bell = Bell::create().unwrap();
        let endpoint = ThreadEndpoint::start("thread0".into(), Arc::clone(&bell)).unwrap();
        (Box::new(endpoint), bell)
    }

    fn completing(&self) -> Callable {
        Callable::native("completes", |_| Ok(()))
    }

    fn failing(&self) -> Callable {
        Callable::native("fails", |_| Err(FAILURE_TEXT.into()))
    }

    fn endless(&self) -> Option<Callable> {
        None
    }

    fn unpreparable(&self) -> Option<Callable> {
        None
    }

    fn unsupported(&self) -> ControlRequest {
        ControlRequest::Alloc { nbytes: 1 }
    }
}

#[test]
fn a_worker_thread() {
    check(&Threads);
}
