//! Peers that behave badly towards the daemon: none of them is another parent's problem.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use echelon_wire::bootstrap::{frame_json, DaemonReply, Manifest};
use echelon_wire::limits::MAX_JSON_BYTES;
use rustix::net::sockopt::set_socket_linger;

use crate::bed::{eventually, manifest, refused, reply, Case, Daemon};

pub(crate) const CASES: &[Case] = &[
    (
        "what_may_not_be_served_is_refused_with_status_2_r_197",
        what_may_not_be_served_is_refused_with_status_2_r_197,
    ),
    (
        "garbage_gets_a_bounded_refusal_or_none_r_034",
        garbage_gets_a_bounded_refusal_or_none_r_034,
    ),
    (
        "a_length_out_of_range_is_refused_before_anything_else_comes_r_034",
        a_length_out_of_range_is_refused_before_anything_else_comes_r_034,
    ),
    (
        "connections_that_do_not_go_on_are_refused_in_the_end_r_035",
        connections_that_do_not_go_on_are_refused_in_the_end_r_035,
    ),
    (
        "silent_peers_delay_nobody_r_035_r_237",
        silent_peers_delay_nobody_r_035_r_237,
    ),
    (
        "a_policy_of_imports_admits_no_machine_code_r_202",
        a_policy_of_imports_admits_no_machine_code_r_202,
    ),
    (
        "large_requests_that_never_come_delay_no_ordinary_one_r_035",
        large_requests_that_never_come_delay_no_ordinary_one_r_035,
    ),
    (
        "a_reset_before_the_reply_reclaims_the_runner_r_033",
        a_reset_before_the_reply_reclaims_the_runner_r_033,
    ),
    (
        "limits_are_refused_before_a_runner_exists_r_048",
        limits_are_refused_before_a_runner_exists_r_048,
    ),
    (
        "a_listen_host_beyond_loopback_is_refused_r_197",
        a_listen_host_beyond_loopback_is_refused_r_197,
    ),
    (
        "a_timeout_that_no_clock_can_add_harms_nobody_r_003",
        a_timeout_that_no_clock_can_add_harms_nobody_r_003,
    ),
];

fn what_may_not_be_served_is_refused_with_status_2_r_197() {
    for (args, word) in [
        (["--host", "127.0.0.1"].as_slice(), "--insecure-loopback"),
        (
            ["--insecure-loopback", "--host", "0.0.0.0"].as_slice(),
            "loopback",
        ),
        (
            ["--insecure-loopback", "--session-command"].as_slice(),
            "--session-command",
        ),
        (
            ["--insecure-loopback", "--max-sessions", "0"].as_slice(),
            "--max-sessions",
        ),
    ] {
        let (status, text) = refused(args);
        assert_eq!(status, Some(2), "{args:?}: {text}");
        assert!(text.contains(word), "{text}");
    }
}

fn garbage_gets_a_bounded_refusal_or_none_r_034() {
    let daemon = Daemon::start("serve", &[]);
    let framed = |json: &[u8]| [&u32::try_from(json.len()).unwrap().to_le_bytes(), json].concat();
    let nested = framed(&[b'['; 100_000]);
    for bytes in [
        b"".as_slice(),
        b"\x10\0",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\x01{}",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &framed(b"{}"),
        &framed(b"[1, 2]"),
        &framed(b"\xff\xfe"),
        &nested,
    ] {
        if let Some(reply) = daemon.exchange(bytes) {
            let text = format!("{reply:?}");
            assert!(text.starts_with("Err") && text.len() < 5000, "{text}");
        }
    }
    assert!(daemon.children().is_empty());
    assert_eq!(daemon.session().task("m:noop"), "");
}

/// The connections stay open: a daemon that waited for what was announced would say something else, or nothing.
fn a_length_out_of_range_is_refused_before_anything_else_comes_r_034() {
    let daemon = Daemon::start("serve", &[]);
    for length in [0, MAX_JSON_BYTES + 1, u32::MAX] {
        let mut stream = daemon.connect();
        stream.write_all(&length.to_le_bytes()).unwrap();
        let text = format!("{:?}", reply(&mut stream).unwrap());
        assert!(
            text.contains(&format!("announces {length} bytes")),
            "{text}"
        );
    }
}

/// Peers that send nothing, or a part of a request and then nothing, are told so and let go by the daemon, not by themselves.
fn connections_that_do_not_go_on_are_refused_in_the_end_r_035() {
    let daemon = Daemon::start("serve", &[]);
    let silent: Vec<_> = [b"".as_slice(), b"\x64", b"\x64\0\0\0", b"\x64\0\0\0{"]
        .map(|bytes| {
            let mut stream = daemon.connect();
            stream.write_all(bytes).unwrap();
            stream
        })
        .into();
    for mut stream in silent {
        let text = format!("{:?}", reply(&mut stream).unwrap());
        assert!(text.contains("did not arrive within"), "{text}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "still open");
    }
    assert!(daemon.children().is_empty());
}

fn silent_peers_delay_nobody_r_035_r_237() {
    let daemon = Daemon::start("serve", &[]);
    let silent: Vec<_> = (0..64_usize)
        .map(|number| {
            let mut stream = daemon.connect();
            stream
                .write_all(b"\x64\0\0\0{"[..number % 6].as_ref())
                .unwrap();
            stream
        })
        .collect();
    assert_eq!(daemon.session().task("m:noop"), "");
    drop(silent);
}

fn a_policy_of_imports_admits_no_machine_code_r_202() {
    let daemon = Daemon::start("serve", &["--allow-import", "m"]);
    let with_device = Manifest {
        device_ids: vec![0],
        ..manifest()
    };
    let text = daemon.refusal(&with_device);
    assert!(
        text.contains("device_ids") && text.contains("--allow-import"),
        "{text}"
    );
    assert!(daemon.children().is_empty());
    assert_eq!(daemon.session().task("m:noop"), "");
}

fn large_requests_that_never_come_delay_no_ordinary_one_r_035() {
    let daemon = Daemon::start("serve", &[]);
    let announced: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = daemon.connect();
            stream.write_all(&MAX_JSON_BYTES.to_le_bytes()).unwrap();
            stream.write_all(&[b' '; 1000]).unwrap();
            stream
        })
        .collect();
    // Served while they are still waited for: none has been refused yet.
    assert_eq!(daemon.session().task("m:noop"), "");
    for mut stream in announced {
        stream.set_nonblocking(true).unwrap();
        let said = stream.read(&mut [0]).unwrap_err();
        assert_eq!(said.kind(), std::io::ErrorKind::WouldBlock);
    }
}

fn a_reset_before_the_reply_reclaims_the_runner_r_033() {
    let permission = std::env::temp_dir().join(format!("echelon-daemon-{}", std::process::id()));
    let daemon = Daemon::start(&format!("late:{}", permission.display()), &[]);
    let mut stream = daemon.connect();
    stream.write_all(&frame_json(&manifest()).unwrap()).unwrap();
    eventually("the runner's start", || !daemon.children().is_empty());
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    std::fs::write(&permission, "").unwrap();
    // Its own deadline is a minute away: only the daemon can have ended it.
    eventually("the runner's end", || daemon.children().is_empty());
    let text = daemon.session().task("m:noop");
    std::fs::remove_file(&permission).unwrap();
    assert_eq!(text, "");
}

fn limits_are_refused_before_a_runner_exists_r_048() {
    let daemon = Daemon::start("serve", &["--max-sessions", "1", "--max-sub-workers", "3"]);
    let crowd = Manifest {
        num_sub_workers: 10_000,
        ..manifest()
    };
    let text = daemon.refusal(&crowd);
    assert!(
        text.contains("RESOURCE_EXHAUSTED") && text.contains("limit 3"),
        "{text}"
    );
    assert!(daemon.children().is_empty());
    let first = daemon.session();
    let text = daemon.refusal(&manifest());
    assert!(
        text.contains("RESOURCE_EXHAUSTED") && text.contains("limit 1"),
        "{text}"
    );
    drop(first);
    eventually("the first session's end", || daemon.children().is_empty());
    eventually("a free place", || {
        matches!(daemon.ask(&manifest()), DaemonReply::Ok { .. })
    });
}

fn a_listen_host_beyond_loopback_is_refused_r_197() {
    let daemon = Daemon::start("serve", &[]);
    for host in ["0.0.0.0", "::", "192.0.2.1", "example.invalid"] {
        let wide = Manifest {
            listen_host: host.to_owned(),
            ..manifest()
        };
        assert!(daemon.refusal(&wide).contains("listen_host"));
    }
    assert!(daemon.children().is_empty());
}

fn a_timeout_that_no_clock_can_add_harms_nobody_r_003() {
    let daemon = Daemon::start("serve", &[]);
    for session_timeout_s in [1e19, f64::MAX] {
        let patient = Manifest {
            session_timeout_s,
            ..manifest()
        };
        assert!(matches!(daemon.ask(&patient), DaemonReply::Ok { .. }));
    }
    let hasty = Manifest {
        session_timeout_s: 0.0,
        ..manifest()
    };
    assert!(daemon.refusal(&hasty).contains("session_timeout_s"));
}
