//! Starts that fail: what the error says, that it comes in time, and that nothing is left.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_runtime::channel::Until;
use echelon_runtime::remote::{RemoteEndpoint, StartError};
use echelon_runtime::RemoteWorkerSpec;
use echelon_wire::bootstrap::DaemonReply;
use echelon_wire::codec::Encode;
use echelon_wire::frame::{Features, FrameType, Hello, ReadyState};
use echelon_wire::id::{Sequence, SessionId, WorkerId};

use crate::peer::{accept, frame, hello, start, Bootstrap, PATIENCE, SESSION, WORKER};

const SHORT: Duration = Duration::from_millis(300);

/// Starts against a daemon that does what `script` says, and returns the error. The script is joined: it sees everything closed.
fn failing(within: Duration, script: impl FnOnce(&TcpListener) + Send + 'static) -> StartError {
    let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = daemon.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || script(&daemon));
    let Err(error) = start(&at, PATIENCE, within) else {
        panic!("it started");
    };
    thread.join().unwrap();
    error
}

fn raw_answer(bytes: Vec<u8>) -> StartError {
    failing(PATIENCE, move |daemon| {
        let mut bootstrap = Bootstrap::accept(daemon);
        bootstrap.stream.write_all(&bytes).unwrap();
        assert!(bootstrap.ended());
    })
}

#[test]
fn no_daemon_says_how_to_start_one() {
    let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = daemon.local_addr().unwrap().to_string();
    drop(daemon);
    let Err(error) = start(&at, PATIENCE, PATIENCE) else {
        panic!("it started");
    };
    assert!(matches!(error, StartError::NoDaemon(_)), "{error}");
    assert!(error.to_string().contains("echelon-worker"), "{error}");
}

#[test]
fn the_daemons_refusal_comes_back() {
    let reply = DaemonReply::Err {
        error: "ModuleNotFoundError: no_such".into(),
        pid: None,
    };
    let error = raw_answer(reply.to_frame().unwrap());
    assert!(
        matches!(&error, StartError::Refused(text) if text.contains("no_such")),
        "{error}"
    );
}

#[test]
fn r_079_a_daemons_text_is_bounded_and_escaped() {
    let reply = DaemonReply::Err {
        error: format!("\u{1b}[31mno\r\n{}", "x".repeat(1 << 20)),
        pid: None,
    };
    let text = raw_answer(reply.to_frame().unwrap()).to_string();
    assert!(
        text.contains("\\u{1b}[31mno\\r\n") && text.len() < 5000,
        "{text}"
    );
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn answers_that_are_no_answers() {
    let framed = |json: &[u8]| [&(json.len() as u32).to_le_bytes(), json].concat();
    for bytes in [
        u32::MAX.to_le_bytes().to_vec(),
        framed(b"not json"),
        framed(b"[]"),
        framed(br#"{"ok": true}"#),
        framed(br#"{"ok": true, "command_host": "127.0.0.1", "command_port": 65536, "health_host": "127.0.0.1", "health_port": 1, "pid": 1}"#),
    ] {
        let error = raw_answer(bytes);
        assert!(matches!(error, StartError::Reply(_)), "{error}");
    }
}

#[test]
fn r_005_a_daemon_that_is_silent_or_goes_away() {
    let error = failing(SHORT, |daemon| {
        assert!(Bootstrap::accept(daemon).ended());
    });
    assert!(matches!(error, StartError::Late { .. }), "{error}");
    let error = failing(PATIENCE, |daemon| drop(Bootstrap::accept(daemon)));
    assert!(matches!(error, StartError::Broken { .. }), "{error}");
}

/// R-230: nobody sends us elsewhere.
#[test]
fn r_230_a_session_on_another_host_is_not_dialled() {
    for host in ["127.0.0.2", "10.0.0.1", "example.org", "::1", ""] {
        let error = failing(PATIENCE, move |daemon| {
            let mut bootstrap = Bootstrap::accept(daemon);
            bootstrap.answer(host, 9, 9);
            assert!(bootstrap.ended());
        });
        let refused = matches!(error, StartError::Elsewhere { .. } | StartError::Reply(_));
        assert!(refused, "{host}: {error}");
    }
}

/// R-230: unless we asked it to listen there.
#[test]
fn r_230_the_asked_for_host_is_dialled() {
    let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = RemoteWorkerSpec {
        endpoint: daemon.local_addr().unwrap().to_string(),
        session_listen_host: Some("127.0.0.2".into()),
        ..RemoteWorkerSpec::default()
    };
    let thread = std::thread::spawn(move || {
        let mut bootstrap = Bootstrap::accept(&daemon);
        assert_eq!(bootstrap.manifest.listen_host, "127.0.0.2");
        let there = TcpListener::bind("127.0.0.2:0").unwrap();
        bootstrap.answer("127.0.0.2", there.local_addr().unwrap().port(), 9);
        // Dialled; what follows is not this test's.
        drop(accept(&there));
    });
    let manifest = spec.manifest(SESSION.0, WORKER.0, 4, PATIENCE, Vec::new(), Vec::new());
    let until = Until::new(Instant::now() + PATIENCE);
    let outcome = RemoteEndpoint::start(&spec, manifest, PATIENCE, Arc::new(|| {}), &until);
    thread.join().unwrap();
    assert!(matches!(
        outcome.err(),
        Some(StartError::Broken { what: "HELLO", .. })
    ));
}

/// Starts against a session that says `bytes` first. It sees its connection closed afterwards.
fn greeting(bytes: Vec<u8>, within: Duration) -> StartError {
    failing(within, move |daemon| {
        let mut bootstrap = Bootstrap::accept(daemon);
        let command = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = command.local_addr().unwrap().port();
        // A health lane that nobody serves: it must not be dialled before READY.
        bootstrap.answer("127.0.0.1", port, 9);
        let mut command = accept(&command);
        command.write_all(&bytes).unwrap();
        // The parent closes: in order, or by reset when it had bytes left.
        assert!(matches!(command.read(&mut [0; 16]), Ok(0) | Err(_)));
    })
}

#[test]
fn r_013_a_hello_that_does_not_fit() {
    let ready = hello();
    let wrong = [
        Hello {
            session_id: SessionId(8),
            ..ready.clone()
        },
        Hello {
            worker_id: WorkerId(4),
            ..ready.clone()
        },
        Hello {
            ready_state: ReadyState::NotReady,
            ..ready.clone()
        },
        Hello {
            comm_profile: "rdma".into(),
            ..ready.clone()
        },
        Hello {
            feature_flags: Features::PIPELINING.bits(),
            ..ready
        },
    ];
    for hello in wrong {
        let bytes = frame(FrameType::Hello, Sequence(0), &hello.to_bytes().unwrap());
        let error = greeting(bytes, PATIENCE);
        assert!(matches!(error, StartError::Handshake(_)), "{error}");
    }
    let other = frame(FrameType::Completion, Sequence(0), &[0; 16]);
    let error = greeting(other, PATIENCE);
    assert!(matches!(error, StartError::Handshake(_)), "{error}");
    let error = greeting(
        b"HTTP/1.1 400 Bad Request\r\n\r\n............".to_vec(),
        PATIENCE,
    );
    assert!(matches!(error, StartError::Frame(_)), "{error}");
    let part = frame(FrameType::Hello, Sequence(0), &[0; 40])[..50].to_vec();
    let error = greeting(part, SHORT);
    assert!(
        matches!(error, StartError::Late { what: "HELLO" }),
        "{error}"
    );
}

/// A session of another protocol version is refused at its first frame, by both numbers and with what to do.
#[test]
fn r_025_a_session_of_another_protocol_version() {
    let mut bytes = frame(FrameType::Hello, Sequence(0), &hello().to_bytes().unwrap());
    bytes[4..8].copy_from_slice(&2_u32.to_le_bytes());
    let error = greeting(bytes, PATIENCE).to_string();
    assert!(
        error.contains("frame.version") && error.contains("releases"),
        "{error}"
    );
}

/// R-015: the command lane is closed again when the health lane cannot be had.
#[test]
fn r_015_no_health_lane() {
    let error = failing(PATIENCE, |daemon| {
        let mut bootstrap = Bootstrap::accept(daemon);
        let [command, health] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [&command, &health].map(|l| l.local_addr().unwrap().port());
        drop(health);
        bootstrap.answer("127.0.0.1", ports[0], ports[1]);
        let mut command = accept(&command);
        let bytes = hello().to_bytes().unwrap();
        command
            .write_all(&frame(FrameType::Hello, Sequence(0), &bytes))
            .unwrap();
        assert!(matches!(command.read(&mut [0; 64]), Ok(0) | Err(_)));
    });
    assert!(
        matches!(
            error,
            StartError::Connect {
                what: "the health lane",
                ..
            }
        ),
        "{error}"
    );
}

/// R-022: a start that is called off ends long before its deadline.
#[test]
fn r_022_a_start_that_is_called_off() {
    let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = RemoteWorkerSpec {
        endpoint: daemon.local_addr().unwrap().to_string(),
        ..RemoteWorkerSpec::default()
    };
    let flag = Arc::new(AtomicBool::new(false));
    let off = Arc::clone(&flag);
    let thread = std::thread::spawn(move || {
        let bootstrap = Bootstrap::accept(&daemon);
        off.store(true, Ordering::Relaxed);
        assert!(bootstrap.ended());
    });
    let manifest = spec.manifest(SESSION.0, WORKER.0, 4, PATIENCE, Vec::new(), Vec::new());
    let until = Until::new(Instant::now() + 100 * PATIENCE).or_cancelled(flag);
    let outcome = RemoteEndpoint::start(&spec, manifest, PATIENCE, Arc::new(|| {}), &until);
    assert!(matches!(outcome.err(), Some(StartError::Cancelled)));
    thread.join().unwrap();
}
