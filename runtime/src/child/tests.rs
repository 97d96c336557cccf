//! A child in this process, served by a thread.

use std::os::fd::AsFd;
use std::sync::Mutex;

use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::CallableKind;
use echelon_wire::codec::Writer;
use echelon_wire::order::Conditions;
use echelon_wire::task::TaskArgsWire;

use super::records::{Done, Install, Task, DONE, INSTALL, TASK};
use super::*;
use crate::callable::HostedCallable;
use crate::mailbox::{Mailbox, ParentSide};
use crate::process::region_socket_pair;
use crate::tensor::TaskView;
use crate::worker::Orchestrator;

/// Calls in each row; the last one is not over while `open`.
#[derive(Default)]
struct Rows {
    calls: Vec<u32>,
    open: bool,
}

#[derive(Default)]
struct Host {
    rows: Arc<Mutex<Rows>>,
}

struct Counted(Arc<Mutex<Rows>>);

impl CallableHost for Host {
    fn resolve(&self, _: CallableKind, _: &[u8]) -> Result<Arc<dyn HostedCallable>, String> {
        Ok(Arc::new(Counted(Arc::clone(&self.rows))))
    }

    fn in_a_row(&self, calls: &mut dyn FnMut()) {
        {
            let mut rows = self.rows.lock().unwrap();
            rows.calls.push(0);
            rows.open = true;
        }
        calls();
        self.rows.lock().unwrap().open = false;
    }
}

impl HostedCallable for Counted {
    fn call_leaf(&self, _: TaskView) -> Result<(), String> {
        let mut rows = self.0.lock().unwrap();
        assert!(
            rows.open,
            "a callable runs in a row, also when it is the only one"
        );
        *rows.calls.last_mut().unwrap() += 1;
        Ok(())
    }

    fn call_orchestration(&self, _: &Orchestrator, _: TaskView) -> Result<(), String> {
        Err("a leaf has none".into())
    }
}

fn send(side: &mut ParentSide, kind: u32, ticket: u64, payload: &[u8]) {
    assert!(side.send(RecordHead { kind, ticket }, payload).unwrap());
}

/// Runs `count` tasks that are all in the ring before the child looks, and returns the calls of each row.
fn rows_of(count: u64) -> Vec<u32> {
    let bell = Bell::create().unwrap();
    let mut side = Mailbox::create(1 << 20, 1 << 20)
        .unwrap()
        .into_parent_side()
        .unwrap();
    let (ours, theirs) = region_socket_pair().unwrap();
    // The child's watch ends the process when this end is closed.
    std::mem::forget(ours);
    let args = ChildArgs {
        mailbox: side.fd().try_clone_to_owned().unwrap(),
        bell: bell.fd().try_clone_to_owned().unwrap(),
        socket: theirs.as_fd().try_clone_to_owned().unwrap(),
        regions: Vec::new(),
        plan: None,
        spinners: None,
    };
    let digest = Digest([7; 32]);
    let install = Install {
        inner: false,
        digest,
        kind: CallableKind::PythonImport,
        name: "m:f",
        payload: b"m:f",
    };
    send(&mut side, INSTALL, 0, &install.encode().unwrap());
    let mut record = Writer::new();
    Conditions::write(&[], &mut record).unwrap();
    let (config, none) = (CallConfig::usual(), TaskArgsWire::default());
    Task::encode(&digest, config, &none, &mut record).unwrap();
    let task = record.into_bytes();
    for ticket in 1..=count {
        send(&mut side, TASK, ticket, &task);
    }
    let host = Host::default();
    let rows = Arc::clone(&host.rows);
    let child = Child::attach(args, Arc::new(host), Worker::builder()).unwrap();
    let serving = std::thread::spawn(move || child.serve());
    let (mut payload, mut done) = (Vec::new(), 0);
    while done < count {
        let seen = bell.value();
        match side.receive(&mut payload).unwrap() {
            Some(head) if head.kind == DONE => {
                done += 1;
                assert_eq!(head.ticket, done, "in the order in which they were sent");
                let end = Done::decode(&payload).unwrap();
                assert!(end.failure.is_none() && !end.retained && end.start_ns <= end.end_ns);
            }
            Some(_) => {}
            None => assert!(bell.wait(seen, Instant::now() + Duration::from_secs(60))),
        }
    }
    side.request_shutdown();
    serving.join().unwrap().unwrap();
    let rows = rows.lock().unwrap();
    rows.calls.clone()
}

#[test]
fn tasks_that_wait_are_called_in_rows_that_end() {
    let most = task::ROW_TASKS;
    // A row also ends with time, so a machine that is very busy may call each task alone now and then.
    for _ in 0..100 {
        let rows = rows_of(200);
        assert_eq!(rows.iter().sum::<u32>(), 200);
        assert!(rows.iter().all(|calls| *calls <= most), "{rows:?}");
        if rows.len() < 200 {
            return;
        }
    }
    panic!("no two tasks were ever called in one row");
}
