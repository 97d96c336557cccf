//! Runners that fail, hang, are killed or outlive their daemon.

use std::io::Write as _;

use echelon_wire::bootstrap::{frame_json, DaemonReply, Manifest, CONNECTED};
use echelon_wire::buffer::AccessFlags;
use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::control::buffer::{AllocCommand, AllocResult, CopyHeader};
use echelon_wire::frame::control::transfer::{ExportRequest, ExportResult};
use echelon_wire::frame::control::{Control, ControlName};
use echelon_wire::frame::FrameType;
use rustix::process::Signal;

use crate::bed::{eventually, exists, manifest, signal, Case, Daemon, Parent};

pub(crate) const CASES: &[Case] = &[
    (
        "a_runner_that_is_never_ready_is_killed_in_time_r_011",
        a_runner_that_is_never_ready_is_killed_in_time_r_011,
    ),
    (
        "what_a_runner_that_is_never_ready_has_started_ends_with_it_r_011",
        what_a_runner_that_is_never_ready_has_started_ends_with_it_r_011,
    ),
    (
        "a_runner_that_exits_early_is_named_with_its_last_words_r_012",
        a_runner_that_exits_early_is_named_with_its_last_words_r_012,
    ),
    (
        "a_ready_line_that_is_none_is_refused",
        a_ready_line_that_is_none_is_refused,
    ),
    (
        "a_manifest_that_cannot_be_served_is_refused_with_its_reason_r_097",
        a_manifest_that_cannot_be_served_is_refused_with_its_reason_r_097,
    ),
    (
        "the_parents_budget_bounds_a_runner_that_is_never_ready_r_001_r_002",
        the_parents_budget_bounds_a_runner_that_is_never_ready_r_001_r_002,
    ),
    (
        "the_parents_budget_bounds_both_accepts_r_005_r_009",
        the_parents_budget_bounds_both_accepts_r_005_r_009,
    ),
    (
        "a_parent_that_gives_up_leaves_no_session_r_016",
        a_parent_that_gives_up_leaves_no_session_r_016,
    ),
    (
        "a_runner_nobody_connects_to_ends_by_itself_r_009",
        a_runner_nobody_connects_to_ends_by_itself_r_009,
    ),
    (
        "a_killed_runner_leaves_no_zombie_and_no_segment_r_032_r_125",
        a_killed_runner_leaves_no_zombie_and_no_segment_r_032_r_125,
    ),
    (
        "sigterm_ends_the_daemon_with_its_sessions_r_051",
        sigterm_ends_the_daemon_with_its_sessions_r_051,
    ),
    (
        "a_session_outlives_a_killed_daemon_and_ends_with_its_parent_r_040",
        a_session_outlives_a_killed_daemon_and_ends_with_its_parent_r_040,
    ),
    (
        "a_session_without_a_daemon_ends_although_its_task_does_not_r_040",
        a_session_without_a_daemon_ends_although_its_task_does_not_r_040,
    ),
    (
        "a_parent_that_reads_nothing_does_not_hold_its_session_r_058",
        a_parent_that_reads_nothing_does_not_hold_its_session_r_058,
    ),
    (
        "a_callable_that_panics_fails_and_the_session_goes_on",
        a_callable_that_panics_fails_and_the_session_goes_on,
    ),
    (
        "a_session_ends_although_its_task_does_not",
        a_session_ends_although_its_task_does_not,
    ),
    (
        "shutdown_in_any_form_ends_a_session",
        shutdown_in_any_form_ends_a_session,
    ),
    (
        "two_hundred_sessions_leave_nothing_r_032",
        two_hundred_sessions_leave_nothing_r_032,
    ),
];

fn a_runner_that_is_never_ready_is_killed_in_time_r_011() {
    let daemon = Daemon::start("silent", &[]);
    let text = daemon.refusal(&Manifest {
        session_timeout_s: 0.2,
        ..manifest()
    });
    assert!(text.contains("not ready within 200ms"), "{text}");
    assert!(daemon.children().is_empty());
}

fn what_a_runner_that_is_never_ready_has_started_ends_with_it_r_011() {
    let noted = std::env::temp_dir().join(format!("echelon-group-{}", std::process::id()));
    let daemon = Daemon::start(&format!("starts:{}", noted.display()), &[]);
    // How long it takes to start a process is not known: the bound grows until the runner comes to it.
    let child = [0.5, 2.0, 8.0].into_iter().find_map(|session_timeout_s| {
        let text = daemon.refusal(&Manifest {
            session_timeout_s,
            ..manifest()
        });
        assert!(text.contains("not ready within"), "{text}");
        std::fs::read_to_string(&noted).ok()
    });
    let child = child.expect("the runner has started a process");
    std::fs::remove_file(&noted).unwrap();
    let child: u32 = child.parse().unwrap();
    eventually("the end of what it has started", || !exists(child));
    assert!(daemon.children().is_empty());
}

/// The budget of the start and the liveness bound are two settings: the first alone bounds a start.
fn the_parents_budget_bounds_a_runner_that_is_never_ready_r_001_r_002() {
    let daemon = Daemon::start("silent", &[]);
    let refusal = |budget| {
        let manifest = Manifest {
            session_timeout_s: 9e9,
            startup_budget_s: Some(budget),
            ..manifest()
        };
        match daemon.ask_holding(&manifest).1 {
            DaemonReply::Err { error, .. } => error,
            DaemonReply::Ok { .. } => panic!("a session was started"),
        }
    };
    let text = refusal(0.2);
    assert!(text.contains("not ready within 200ms"), "{text}");
    assert!(text.contains("raise startup_timeout_s"), "{text}");
    assert!(daemon.children().is_empty());
    let text = refusal(0.0);
    assert!(text.contains("startup_budget_s"), "{text}");
}

/// Even a parent that told the daemon that it has connected: without the command lane, and without the health lane.
fn the_parents_budget_bounds_both_accepts_r_005_r_009() {
    let daemon = Daemon::start("serve", &[]);
    let hasty = Manifest {
        session_timeout_s: 9e9,
        startup_budget_s: Some(4.0),
        ..manifest()
    };
    for connects in [false, true] {
        let (mut asked, reply) = daemon.ask_holding(&hasty);
        let DaemonReply::Ok { ports, pid } = reply else {
            panic!("{reply:?}")
        };
        let half = connects.then(|| Parent::connect(hasty.clone(), &ports, pid));
        asked.write_all(&[CONNECTED]).unwrap();
        eventually("its end", || daemon.children().is_empty());
        drop(half);
    }
}

/// A parent that gives up says nothing: its connection ends, before the reply or after, and that ends the session at once.
fn a_parent_that_gives_up_leaves_no_session_r_016() {
    let patient = Manifest {
        session_timeout_s: 9e9,
        startup_budget_s: Some(9e9),
        ..manifest()
    };
    let silent = Daemon::start("silent", &[]);
    let mut early = silent.connect();
    early.write_all(&frame_json(&patient).unwrap()).unwrap();
    eventually("its runner", || !silent.children().is_empty());
    drop(early);
    eventually("its end", || silent.children().is_empty());
    let serving = Daemon::start("serve", &[]);
    for last in [&[][..], &[CONNECTED + 1]] {
        let (mut late, reply) = serving.ask_holding(&patient);
        assert!(matches!(reply, DaemonReply::Ok { .. }), "{reply:?}");
        assert!(!serving.children().is_empty());
        late.write_all(last).unwrap();
        drop(late);
        eventually("its end", || serving.children().is_empty());
    }
}

fn a_runner_that_exits_early_is_named_with_its_last_words_r_012() {
    let daemon = Daemon::start("fails", &[]);
    let text = daemon.refusal(&manifest());
    assert!(
        text.contains("exited with status 3") && text.ends_with("the reason of it all"),
        "{text}"
    );
}

fn a_ready_line_that_is_none_is_refused() {
    let daemon = Daemon::start("junk", &[]);
    let text = daemon.refusal(&manifest());
    assert!(text.contains("ready line"), "{text}");
}

fn a_manifest_that_cannot_be_served_is_refused_with_its_reason_r_097() {
    let daemon = Daemon::start("serve", &[]);
    let with = |change: fn(&mut Manifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        daemon.refusal(&manifest)
    };
    for (change, reason) in [
        (
            (|manifest| manifest.remote_task_dispatcher[0].target = Some("m:other".to_owned()))
                as fn(&mut Manifest),
            "does not match",
        ),
        (
            |manifest| {
                let twice = manifest.remote_task_dispatcher[0].clone();
                manifest.remote_task_dispatcher.push(twice);
            },
            "twice",
        ),
        (
            |manifest| {
                let entry = &mut manifest.remote_task_dispatcher[0];
                entry.target = Some("m:missing".to_owned());
                entry.hashid = crate::bed::digest("m:missing").to_string();
            },
            "--python",
        ),
    ] {
        let text = with(change);
        assert!(text.contains(reason), "{text}");
        eventually("its end", || daemon.children().is_empty());
    }
}

fn a_runner_nobody_connects_to_ends_by_itself_r_009() {
    let daemon = Daemon::start("serve", &[]);
    daemon.ask(&Manifest {
        session_timeout_s: 1.0,
        ..manifest()
    });
    eventually("its end", || daemon.children().is_empty());
}

fn a_killed_runner_leaves_no_zombie_and_no_segment_r_032_r_125() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session();
    let alloc = parent.control(
        ControlName::AllocRemoteBuffer,
        &AllocCommand { nbytes: 4096 },
    );
    let buffer = AllocResult::decode(&alloc).unwrap();
    let request = ExportRequest {
        owner_worker_id: buffer.worker_id,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        offset: 0,
        nbytes: 4096,
        access_flags: AccessFlags::READ,
        transport_profile: "sim".into(),
    };
    let export = parent.control(ControlName::ExportBuffer, &request);
    let export = ExportResult::decode(&export).unwrap();
    let name = std::str::from_utf8(&export.transport_descriptor).unwrap();
    let segment = std::path::Path::new("/dev/shm").join(name);
    assert!(segment.exists());
    signal(parent.pid, Signal::KILL);
    parent.expect_end();
    eventually("its reaping", || !exists(parent.pid));
    eventually("the end of its segment", || !segment.exists());
    assert_eq!(daemon.session().task("m:noop"), "");
}

fn sigterm_ends_the_daemon_with_its_sessions_r_051() {
    let mut daemon = Daemon::start("serve", &[]);
    let (mut idle, mut busy) = (daemon.session(), daemon.session());
    busy.submit("m:endless");
    signal(daemon.pid(), Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    idle.expect_end();
    busy.expect_end();
    assert!(!exists(idle.pid) && !exists(busy.pid));
}

fn a_session_outlives_a_killed_daemon_and_ends_with_its_parent_r_040() {
    let mut daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session();
    signal(daemon.pid(), Signal::KILL);
    daemon.wait();
    assert_eq!(parent.task("m:noop"), "");
    assert_eq!(parent.task("m:prints"), "", "nobody reads what it prints");
    let pid = parent.pid;
    drop(parent);
    eventually("its end with its parent", || has_ended(pid));
}

/// Its complaints go to a pipe that nobody reads any more.
fn a_session_without_a_daemon_ends_although_its_task_does_not_r_040() {
    let mut daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session();
    signal(daemon.pid(), Signal::KILL);
    daemon.wait();
    parent.submit("m:endless");
    let pid = parent.pid;
    drop(parent);
    eventually("its end by force", || has_ended(pid));
}

/// True when it runs no more. Whoever adopted it may take its time to reap it.
fn has_ended(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.is_empty() || state.contains(") Z ")
}

fn a_parent_that_reads_nothing_does_not_hold_its_session_r_058() {
    const NBYTES: u64 = 12 << 20;
    let daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session_of(Manifest {
        session_timeout_s: 3.0,
        ..manifest()
    });
    let alloc = parent.control(
        ControlName::AllocRemoteBuffer,
        &AllocCommand { nbytes: NBYTES },
    );
    let buffer = AllocResult::decode(&alloc).unwrap();
    let copy = CopyHeader {
        worker_id: buffer.worker_id,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        offset: 0,
        size: NBYTES,
    };
    let copy = Control::of(ControlName::CopyFromRemote, &copy).unwrap();
    for _ in 0..4 {
        parent.send(FrameType::Control, &copy.to_bytes().unwrap());
    }
    eventually("its end", || daemon.children().is_empty());
}

fn a_callable_that_panics_fails_and_the_session_goes_on() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session();
    let text = parent.task("m:panics");
    assert!(
        text.contains("panicked") && text.contains("on purpose"),
        "{text}"
    );
    assert_eq!(parent.task("m:noop"), "");
}

fn a_session_ends_although_its_task_does_not() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session();
    parent.submit("m:endless");
    drop(parent);
    eventually("its end", || daemon.children().is_empty());
}

fn shutdown_in_any_form_ends_a_session() {
    let daemon = Daemon::start("serve", &[]);
    for payload in [b"".as_slice(), b"junk"] {
        let mut parent = daemon.session();
        parent.send(FrameType::Shutdown, payload);
        parent.expect_end();
        eventually("its reaping", || !exists(parent.pid));
    }
}

fn two_hundred_sessions_leave_nothing_r_032() {
    let daemon = Daemon::start("serve", &[]);
    let mut before = None;
    for number in 0..200 {
        let mut parent = daemon.session();
        parent.send(FrameType::Shutdown, b"");
        parent.expect_end();
        eventually("its reaping", || !exists(parent.pid));
        if number == 9 {
            before = Some(daemon.size());
        }
    }
    eventually("an idle daemon", || daemon.children().is_empty());
    // The daemon lets go of the last one after it was reaped.
    let before = before.unwrap();
    eventually("descriptors and threads as before", || {
        let after = daemon.size();
        after.0 <= before.0 && after.1 <= before.1
    });
}
