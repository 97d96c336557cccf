//! Conditions on a lane, byte by byte (extension `conditions`): the test is the parent.

use echelon_runtime::testing::extensions::configurations;
use echelon_wire::bootstrap::Manifest;
use echelon_wire::call_config::CallConfig;
use echelon_wire::codec::{Decode as _, Writer};
use echelon_wire::frame::{Completion, FailureKind, Features, FrameType, TimedCompletion};
use echelon_wire::order::Conditions;
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};

use crate::bed::{digest, eventually, manifest, Case, Daemon, Parent};

pub(crate) const CASES: &[Case] = &[
    (
        "a_task_runs_only_after_what_it_names_completed",
        a_task_runs_only_after_what_it_names_completed,
    ),
    (
        "a_condition_that_names_no_earlier_task_ends_its_session_alone",
        a_condition_that_names_no_earlier_task_ends_its_session_alone,
    ),
    (
        "without_the_extension_a_task_begins_with_its_digest",
        without_the_extension_a_task_begins_with_its_digest,
    ),
];

const NEEDED: [&str; 3] = ["pipelining", "timed_completion", "conditions"];

fn offering(daemon: &Daemon, features: &[&str]) -> Parent {
    daemon.session_of(Manifest {
        feature_flags: features.iter().map(ToString::to_string).collect(),
        ..manifest()
    })
}

fn task(target: &str) -> Vec<u8> {
    let task = TaskPayload {
        digest: digest(target),
        config: CallConfig::default(),
        args: TaskArgsWire::default(),
    };
    task.to_bytes(Carrier::V1).unwrap()
}

/// Sends a task with conditions as they are, also such as nobody would encode.
fn send(parent: &mut Parent, target: &str, conditions: &[u64]) -> u64 {
    let mut payload = (conditions.len() as u32).to_le_bytes().to_vec();
    payload.extend(conditions.iter().flat_map(|number| number.to_le_bytes()));
    payload.extend(task(target));
    parent.send(FrameType::Task, &payload)
}

fn answers(parent: &mut Parent, count: usize) -> Vec<(u64, FailureKind)> {
    let answer = |_| {
        let payload = parent.receive().1;
        let done = TimedCompletion::decode(&payload).unwrap();
        (done.sequence.0, done.failure_kind)
    };
    (0..count).map(answer).collect()
}

fn a_task_runs_only_after_what_it_names_completed() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = offering(&daemon, &NEEDED);
    let first = send(&mut parent, "m:noop", &[]);
    let second = send(&mut parent, "m:noop", &[first]);
    let failing = send(&mut parent, "m:missing", &[second]);
    let reader = send(&mut parent, "m:noop", &[second, failing]);
    let behind = send(&mut parent, "m:noop", &[reader]);
    let other = send(&mut parent, "m:noop", &[first, second]);
    let expected = [
        (first, FailureKind::None),
        (second, FailureKind::None),
        (failing, FailureKind::Task),
        (reader, FailureKind::Skipped),
        (behind, FailureKind::Skipped),
        (other, FailureKind::None),
    ];
    assert_eq!(answers(&mut parent, 6), expected);
}

fn a_condition_that_names_no_earlier_task_ends_its_session_alone() {
    let daemon = Daemon::start("serve", &[]);
    let mut neighbour = offering(&daemon, &NEEDED);
    let kept = send(&mut neighbour, "m:noop", &[]);
    assert_eq!(answers(&mut neighbour, 1), [(kept, FailureKind::None)]);
    // Tasks 1 and 2 are done; the next one is 3. None, itself, later ones, one of nobody, repeated, out of order, too many.
    let many: Vec<u64> = (1..=17).collect();
    let wrong: [&[u64]; 8] = [
        &[0],
        &[3],
        &[4],
        &[u64::MAX],
        &[1, 1],
        &[2, 1],
        &[1, 3],
        &many,
    ];
    for conditions in wrong {
        let mut parent = offering(&daemon, &NEEDED);
        for _ in 0..2 {
            send(&mut parent, "m:noop", &[]);
        }
        answers(&mut parent, 2);
        send(&mut parent, "m:noop", conditions);
        parent.expect_end();
        eventually("its end", || daemon.children().len() == 1);
    }
    // Cut in the middle of its conditions.
    let mut parent = offering(&daemon, &NEEDED);
    parent.send(FrameType::Task, &[1, 0, 0, 0, 1, 0]);
    parent.expect_end();
    let next = send(&mut neighbour, "m:noop", &[kept]);
    assert_eq!(answers(&mut neighbour, 1), [(next, FailureKind::None)]);
}

/// Whatever else was negotiated.
fn without_the_extension_a_task_begins_with_its_digest() {
    let daemon = Daemon::start("serve", &["--allow-serialized"]);
    let without = configurations();
    let mut without = without
        .into_iter()
        .filter(|f| !f.contains(Features::CONDITIONS))
        .collect::<Vec<_>>();
    // Everything but conditions, too.
    let others = without.iter().fold(Features::NONE, |all, f| all.union(*f));
    without.push(others);
    for features in without {
        let mut parent = offering(&daemon, &features.names());
        let error_code = |parent: &mut Parent| {
            let (header, payload) = parent.receive();
            match header.frame_type {
                FrameType::TimedCompletion => TimedCompletion::decode(&payload).unwrap().error_code,
                _ => Completion::decode(&payload).unwrap().error_code,
            }
        };
        parent.send(FrameType::Task, &task("m:noop"));
        assert_eq!(error_code(&mut parent), 0, "{:?}", features.names());
        // Taken for a digest that nobody has: the task fails, the session goes on.
        let mut writer = Writer::new();
        Conditions::write(&[1], &mut writer).unwrap();
        writer.raw(&task("m:noop"));
        parent.send(FrameType::Task, writer.as_bytes());
        assert_eq!(error_code(&mut parent), 1, "{:?}", features.names());
        parent.send(FrameType::Task, &task("m:noop"));
        assert_eq!(error_code(&mut parent), 0, "{:?}", features.names());
    }
}
