//! `init()` with daemons that do not answer: bounded, called off together, interruptible.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use echelon_runtime::{
    ChildProgram, Error, RegisterOptions, RegisterScope, RemoteWorkerSpec, Worker, WorkerState,
};
use echelon_wire::bootstrap::{json_len, Manifest};

use crate::bed::{bounded, import, start, Switch};

/// Far beyond the tests' patience: whoever waits for it hangs.
const LONG: Duration = Duration::from_secs(3_600);

/// A daemon that takes connections and says nothing.
fn silent() -> (TcpListener, RemoteWorkerSpec) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = at(&listener);
    (listener, spec)
}

fn at(listener: &TcpListener) -> RemoteWorkerSpec {
    RemoteWorkerSpec {
        endpoint: listener.local_addr().unwrap().to_string(),
        ..RemoteWorkerSpec::default()
    }
}

fn worker(startup: Duration, specs: &[RemoteWorkerSpec]) -> Worker {
    let builder = Worker::builder().memory_limit(Some(1 << 20));
    let worker = builder.startup_timeout(startup).build().unwrap();
    for spec in specs {
        worker.add_remote_worker(spec.clone()).unwrap();
    }
    worker
}

#[test]
fn r_001_a_daemon_that_says_nothing_fails_the_start_at_its_deadline() {
    let (_daemon, spec) = silent();
    let w = worker(Duration::from_millis(50), std::slice::from_ref(&spec));
    let starting = w.clone();
    let error = bounded("init", move || starting.init()).unwrap_err();
    assert!(matches!(error, Error::Startup { .. }), "{error:?}");
    assert!(error.to_string().contains(&spec.endpoint), "{error}");
    assert!(matches!(w.state(), WorkerState::Failed(_)));
    w.close().unwrap();
}

/// What a parent asks of a daemon.
fn manifest_of(daemon: &TcpListener) -> (TcpStream, Manifest) {
    let (mut stream, _) = daemon.accept().unwrap();
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).unwrap();
    let mut json = vec![0; json_len(prefix).unwrap()];
    stream.read_exact(&mut json).unwrap();
    (stream, Manifest::from_json(&json).unwrap())
}

/// Three daemons that never answer: all are asked for at once, each is told what is left of the one budget and not more, and the
/// whole start ends with it. The liveness bound goes along unchanged and changes nothing.
#[test]
fn r_001_r_002_many_slow_daemons_share_one_budget() {
    let budget = Duration::from_secs(2);
    for liveness in [0.5, 900.0] {
        let (daemons, specs): (Vec<_>, Vec<_>) = (0..3).map(|_| silent()).unzip();
        let builder = Worker::builder()
            .memory_limit(Some(1 << 20))
            .startup_timeout(budget)
            .remote_session_timeout(Duration::from_secs_f64(liveness));
        let w = builder.build().unwrap();
        for spec in specs {
            w.add_remote_worker(spec).unwrap();
        }
        let starting = start(move || w.init());
        // Held open: a daemon that closes would be another failure. All three are here before the first is given up.
        let asked: Vec<_> = daemons.iter().map(manifest_of).collect();
        for (_, manifest) in &asked {
            let left = manifest.startup_budget().expect("a budget");
            assert!(left <= budget && !left.is_zero(), "{left:?}");
            assert!((manifest.session_timeout_s - liveness).abs() < f64::EPSILON);
        }
        let error = starting.join("init").unwrap_err().to_string();
        assert!(error.contains("startup_timeout_s"), "{error}");
        for (mut stream, _) in asked {
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "called off");
        }
    }
}

/// One after the other, each with a budget of its own, the second would not be asked before the first has used up an hour.
#[test]
fn r_001_no_session_waits_for_another_to_be_asked_for() {
    let (daemons, specs): (Vec<_>, Vec<_>) = (0..3).map(|_| silent()).unzip();
    let w = worker(LONG, &specs);
    let starting = start({
        let w = w.clone();
        move || w.init()
    });
    let asked = bounded("the request for every session", move || {
        daemons.iter().map(manifest_of).collect::<Vec<_>>()
    });
    bounded("close", move || w.close()).unwrap();
    let error = starting.join("init").unwrap_err();
    assert!(error.to_string().contains("close()"), "{error}");
    drop(asked);
}

/// nobody waits for the rest of a start that has failed.
#[test]
fn the_first_failure_calls_the_other_starts_off_and_is_the_error() {
    let (_daemon, spec) = silent();
    let nobody = {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        at(&gone)
    };
    let w = worker(LONG, &[spec, nobody.clone()]);
    let starting = w.clone();
    let error = bounded("init", move || starting.init()).unwrap_err();
    assert!(error.to_string().contains(&nobody.endpoint), "{error}");
    assert!(error.to_string().contains("no daemon"), "{error}");
    w.close().unwrap();
}

#[test]
fn r_093_an_interrupt_ends_the_start() {
    let (daemon, spec) = silent();
    let w = worker(LONG, &[spec]);
    let interrupt = Arc::new(Switch::default());
    w.set_interrupt(Arc::clone(&interrupt) as _);
    let starting = start({
        let w = w.clone();
        move || w.init()
    });
    // It is inside: its connection is here.
    let _inside = daemon.accept().unwrap();
    interrupt.set(true);
    let error = starting.join("init").unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error:?}");
    assert!(matches!(w.state(), WorkerState::Failed(_)));
    w.close().unwrap();
}

/// A close() during init() calls it off: both end, in a bound, with one terminal state.
#[test]
fn r_021_a_close_during_the_start_calls_it_off() {
    let (daemon, spec) = silent();
    let w = worker(LONG, &[spec]);
    let starting = start({
        let w = w.clone();
        move || w.init()
    });
    let _inside = daemon.accept().unwrap();
    let second = w.init().unwrap_err().to_string();
    assert!(second.contains("another thread"), "{second}");
    let early = w.run_simple(|_| Ok(())).unwrap_err().to_string();
    assert!(early.contains("starting"), "{early}");
    let late = w.add_remote_worker(at(&daemon)).unwrap_err();
    assert!(matches!(late, Error::Lifecycle { .. }), "{late}");
    let closing = w.clone();
    bounded("close", move || closing.close()).unwrap();
    let error = starting.join("init").unwrap_err().to_string();
    assert!(error.contains("close() was called"), "{error}");
    assert_eq!(w.state(), WorkerState::Closed);
    w.close().unwrap();
}

/// A close() that cannot wait for the roll-back says so, and a later one finds everything done.
#[test]
fn r_021_a_close_without_time_says_that_init_still_rolls_back() {
    let (daemon, spec) = silent();
    let builder = Worker::builder().memory_limit(Some(1 << 20));
    let builder = builder.startup_timeout(LONG);
    let w = builder
        .close_timeout(Duration::from_millis(1))
        .build()
        .unwrap();
    w.add_remote_worker(spec).unwrap();
    let starting = start({
        let w = w.clone();
        move || w.init()
    });
    let _inside = daemon.accept().unwrap();
    let closing = w.clone();
    match bounded("close", move || closing.close()) {
        Ok(()) => {}
        Err(error) => assert!(error.to_string().contains("rolls back"), "{error}"),
    }
    assert!(starting.join("init").is_err());
    w.close().unwrap();
}

/// Names and reasons of what fails the start because nobody can run it; `None` when the start goes on, to a program that cannot be
/// started: whoever tries says so.
fn unmet(
    specs: &[RemoteWorkerSpec],
    subs: u32,
    asked: &[(&str, RegisterOptions)],
) -> Option<(String, String)> {
    let builder = Worker::builder()
        .memory_limit(Some(1 << 20))
        .startup_timeout(Duration::from_millis(50))
        .child_program(ChildProgram::Custom {
            program: "/nonexistent/program".into(),
            args: Vec::new(),
        })
        .sub_workers(subs);
    let w = builder.build().unwrap();
    for spec in specs {
        w.add_remote_worker(spec.clone()).unwrap();
    }
    for (name, options) in asked {
        w.register(import(name), options.clone()).unwrap();
    }
    match w.init() {
        Err(Error::Registration { callable, message }) => Some((callable, message)),
        Err(Error::Startup { .. } | Error::Process(_)) => None,
        other => panic!("{other:?}"),
    }
}

/// a callable that no worker could ever run fails the start before anything is started, with every one that is unmet.
#[test]
fn r_024_what_nobody_can_run_fails_the_start_before_there_is_a_process() {
    let (daemon, spec) = silent();
    let with_subs = RemoteWorkerSpec {
        num_sub_workers: 1,
        ..spec.clone()
    };
    let local = RegisterOptions::default;
    let remote = || RegisterOptions {
        scope: RegisterScope::Remote,
        ..local()
    };
    let inner = |options: RegisterOptions| RegisterOptions {
        inner: true,
        ..options
    };
    let on = |ids: &[i32]| RegisterOptions {
        workers: Some(ids.to_vec()),
        ..local()
    };
    let none: &[RemoteWorkerSpec] = &[];
    let one = std::slice::from_ref(&spec);
    let able = std::slice::from_ref(&with_subs);
    // Nobody: every one of them is named.
    let (names, message) = unmet(none, 0, &[("m:a", local()), ("m:b", remote())]).unwrap();
    assert_eq!(names, "m:a, m:b");
    assert!(
        message.contains("num_sub_workers") && message.contains("add_remote_worker"),
        "{message}"
    );
    for (specs, subs, options, reason) in [
        (one, 0, local(), "local"),
        (none, 1, remote(), "remote"),
        (one, 1, inner(local()), "inner=True"),
        (one, 1, inner(remote()), "inner=True"),
        (one, 1, inner(on(&[0])), "worker 0"),
        (able, 1, on(&[]), "workers=[]"),
    ] {
        let (name, message) = unmet(specs, subs, &[("m:a", options.clone())]).unwrap();
        assert_eq!(name, "m:a");
        assert!(message.contains(reason), "{options:?}: {message}");
    }
    drop(daemon);
    // Somebody: the start goes on, to what cannot be started here.
    for (specs, subs, options) in [
        (none, 1, local()),
        (one, 1, local()),
        (one, 0, remote()),
        (one, 0, on(&[0])),
        (able, 0, inner(on(&[0]))),
        (able, 0, inner(remote())),
    ] {
        assert_eq!(unmet(specs, subs, &[("m:a", options)]), None);
    }
}
