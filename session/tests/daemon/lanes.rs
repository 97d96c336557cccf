//! Many commands on one lane (`pipelining`), and controls while a task runs (`concurrent_control`), byte by byte: the test is the
//! parent, and it decides when a task ends.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use echelon_runtime::{Orchestrator, TaskView};
use echelon_wire::bootstrap::Manifest;
use echelon_wire::buffer::{AccessFlags, RemoteTensorDesc};
use echelon_wire::call_config::CallConfig;
use echelon_wire::codec::{Decode as _, Encode};
use echelon_wire::frame::control::buffer::{
    AllocCommand, AllocResult, CopyHeader, CopyTo, FreeCommand,
};
use echelon_wire::frame::control::transfer::ExportRequest;
use echelon_wire::frame::{Control, ControlName, ControlReply, FrameType};
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};
use echelon_wire::tensor::{DataType, TensorMeta};
use rustix::fs::{mknodat, FileType, Mode, CWD};

use crate::bed::{digest, eventually, manifest, Case, Daemon, Parent};

pub(crate) const CASES: &[Case] = &[
    (
        "buffers_are_served_while_a_task_runs_r_241",
        buffers_are_served_while_a_task_runs_r_241,
    ),
    (
        "what_concerns_the_task_waits_for_it_r_241",
        what_concerns_the_task_waits_for_it_r_241,
    ),
    (
        "with_pipelining_alone_the_order_is_kept",
        with_pipelining_alone_the_order_is_kept,
    ),
    (
        "a_parent_beyond_its_credits_loses_its_session",
        a_parent_beyond_its_credits_loses_its_session,
    ),
    (
        "a_repeated_sequence_ends_the_session_with_pipelining",
        a_repeated_sequence_ends_the_session_with_pipelining,
    ),
    (
        "a_parent_that_reads_none_of_many_answers_loses_its_session_r_058",
        a_parent_that_reads_none_of_many_answers_loses_its_session_r_058,
    ),
    (
        "the_end_of_the_lane_ends_a_session_with_both_threads_at_work",
        the_end_of_the_lane_ends_a_session_with_both_threads_at_work,
    ),
];

/// Commands that a session announces to take.
const CREDITS: u64 = 256;

/// The name of a callable that waits and then fills.
pub(crate) const FILLS: &str = "m:fills";

/// Waits for a byte in the fifo that `output_prefix` names, then fills tensor 0 with it.
pub(crate) fn fills(_: &Orchestrator, view: TaskView) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut fifo = File::open(&view.config.output_prefix).map_err(text)?;
    let mut byte = [0];
    fifo.read_exact(&mut byte).map_err(text)?;
    let memory = view.tensors[0]
        .memory()
        .map_err(|error| error.to_string())?;
    let filled = memory.copy_in(0, &[byte[0]; 8]);
    filled.map_err(|error| error.to_string())
}

/// A fifo that holds a task until it is written. Open here for both ways, so that nobody waits for the other to open it.
struct Gate(PathBuf, File);

impl Gate {
    fn new(name: &str) -> Self {
        let file = format!("echelon-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(file);
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let both = File::options().read(true).write(true).open(&path);
        Self(path, both.unwrap())
    }

    fn open(&self, byte: u8) {
        (&self.1).write_all(&[byte]).unwrap();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn offering(daemon: &Daemon, features: &[&str]) -> Parent {
    daemon.session_of(Manifest {
        feature_flags: features.iter().map(ToString::to_string).collect(),
        ..manifest()
    })
}

const BOTH: [&str; 2] = ["pipelining", "concurrent_control"];

fn alloc(parent: &mut Parent) -> AllocResult {
    let result = parent.control(ControlName::AllocRemoteBuffer, &AllocCommand { nbytes: 8 });
    AllocResult::decode(&result).unwrap()
}

fn header(buffer: &AllocResult, size: u64) -> CopyHeader {
    CopyHeader {
        worker_id: buffer.worker_id,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
        offset: 0,
        size,
    }
}

/// Sends a control and reads no answer.
fn ask(parent: &mut Parent, name: ControlName, command: &impl Encode) -> u64 {
    let control = Control::of(name, command).unwrap();
    parent.send(FrameType::Control, &control.to_bytes().unwrap())
}

fn ask_to_free(parent: &mut Parent, buffer: &AllocResult) -> u64 {
    let command = FreeCommand {
        worker_id: buffer.worker_id,
        buffer_id: buffer.buffer_id,
        generation: buffer.generation,
    };
    ask(parent, ControlName::FreeRemoteBuffer, &command)
}

fn submit(parent: &mut Parent, gate: &Gate, buffer: &AllocResult) -> u64 {
    let (owner, id, generation) = (buffer.worker_id, buffer.buffer_id, buffer.generation);
    let desc = RemoteTensorDesc::remote_device(owner, id, generation, 0, 8);
    let task = TaskPayload {
        digest: digest(FILLS),
        config: CallConfig {
            output_prefix: gate.0.to_str().unwrap().to_owned(),
            ..CallConfig::default()
        },
        args: TaskArgsWire {
            tensors: vec![TensorMeta::new(&[2], DataType::Float32).unwrap()],
            sidecars: vec![Some(desc)],
            ..TaskArgsWire::default()
        },
    };
    parent.send(FrameType::Task, &task.to_bytes(Carrier::V1).unwrap())
}

/// The next answer: its sequence, and the bytes of a reply.
fn answer(parent: &mut Parent) -> (u64, Vec<u8>) {
    let (header, payload) = parent.receive();
    let result = match header.frame_type {
        FrameType::ControlReply => {
            let reply = ControlReply::decode(&payload).unwrap();
            assert_eq!(reply.error_code, 0, "{}", reply.error_message);
            reply.result.into_owned()
        }
        FrameType::Completion => {
            assert_eq!(payload[8..12], [0; 4], "a failure");
            Vec::new()
        }
        other => panic!("{other:?}"),
    };
    (header.sequence.0, result)
}

/// All that a parent does with a buffer of its own is answered before the task that runs.
fn buffers_are_served_while_a_task_runs_r_241() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = offering(&daemon, &BOTH);
    let used = alloc(&mut parent);
    let gate = Gate::new("beside");
    let task = submit(&mut parent, &gate, &used);
    let own = alloc(&mut parent);
    let write = CopyTo {
        header: header(&own, 5),
        data: b"hello".as_slice().into(),
    };
    parent.control(ControlName::CopyToRemote, &write);
    let read = parent.control(ControlName::CopyFromRemote, &header(&own, 5));
    assert_eq!(read, b"hello");
    let export = ExportRequest {
        owner_worker_id: own.worker_id,
        buffer_id: own.buffer_id,
        generation: own.generation,
        offset: 0,
        nbytes: 8,
        access_flags: AccessFlags::READ,
        transport_profile: "sim".into(),
    };
    parent.control(ControlName::ExportBuffer, &export);
    let free = ask_to_free(&mut parent, &own);
    assert_eq!(answer(&mut parent).0, free);
    gate.open(7);
    assert_eq!(answer(&mut parent).0, task);
    let read = parent.control(ControlName::CopyFromRemote, &header(&used, 8));
    assert_eq!(read, [7; 8]);
}

/// A copy and a free of what the task uses come after it and see what it did; so does the task behind them.
fn what_concerns_the_task_waits_for_it_r_241() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = offering(&daemon, &BOTH);
    let (one, other) = (alloc(&mut parent), alloc(&mut parent));
    let third = alloc(&mut parent);
    let gates = [Gate::new("first"), Gate::new("second")];
    let task = submit(&mut parent, &gates[0], &one);
    let read = ask(&mut parent, ControlName::CopyFromRemote, &header(&one, 8));
    let free = ask_to_free(&mut parent, &one);
    let next = submit(&mut parent, &gates[1], &other);
    let again = ask(&mut parent, ControlName::CopyFromRemote, &header(&other, 8));
    // The first answer of all is that of the one command that need not wait, which was sent last.
    let beside = ask(&mut parent, ControlName::CopyFromRemote, &header(&third, 8));
    assert_eq!(answer(&mut parent), (beside, vec![0; 8]));
    gates[0].open(3);
    assert_eq!(answer(&mut parent), (task, Vec::new()));
    assert_eq!(answer(&mut parent), (read, vec![3; 8]));
    assert_eq!(answer(&mut parent), (free, Vec::new()));
    gates[1].open(4);
    assert_eq!(answer(&mut parent), (next, Vec::new()));
    assert_eq!(answer(&mut parent), (again, vec![4; 8]));
}

fn with_pipelining_alone_the_order_is_kept() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = offering(&daemon, &["pipelining"]);
    let (used, other) = (alloc(&mut parent), alloc(&mut parent));
    let gate = Gate::new("order");
    let first = submit(&mut parent, &gate, &used);
    for _ in 0..20 {
        ask(&mut parent, ControlName::CopyFromRemote, &header(&other, 8));
    }
    gate.open(1);
    for sequence in first..=first + 20 {
        assert_eq!(answer(&mut parent).0, sequence);
    }
}

/// The session announces 64 commands; the one after them ends it, whatever runs.
fn a_parent_beyond_its_credits_loses_its_session() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = offering(&daemon, &["pipelining"]);
    let used = alloc(&mut parent);
    let gate = Gate::new("credits");
    let first = submit(&mut parent, &gate, &used);
    for _ in 1..CREDITS {
        ask_to_free(&mut parent, &used);
    }
    gate.open(1);
    for sequence in first..first + CREDITS {
        assert_eq!(
            answer(&mut parent).0,
            sequence,
            "so many are within credits"
        );
    }
    let used = alloc(&mut parent);
    submit(&mut parent, &gate, &used);
    for _ in 0..CREDITS {
        ask_to_free(&mut parent, &used);
    }
    // The task never ends.
    eventually("its end", || daemon.children().is_empty());
}

fn a_repeated_sequence_ends_the_session_with_pipelining() {
    let daemon = Daemon::start("serve", &[]);
    for back in [1, 2] {
        let mut parent = offering(&daemon, &["pipelining"]);
        let used = alloc(&mut parent);
        alloc(&mut parent);
        parent.rewind(back);
        ask_to_free(&mut parent, &used);
        parent.expect_end();
        eventually("its end", || daemon.children().is_empty());
    }
}

/// Answers of both threads wait for a parent that reads none: the bound of one write is the session's.
fn a_parent_that_reads_none_of_many_answers_loses_its_session_r_058() {
    const NBYTES: u64 = 12 << 20;
    let daemon = Daemon::start("serve", &[]);
    let mut parent = daemon.session_of(Manifest {
        session_timeout_s: 3.0,
        feature_flags: BOTH.map(str::to_owned).to_vec(),
        ..manifest()
    });
    let small = alloc(&mut parent);
    let command = AllocCommand { nbytes: NBYTES };
    let large = parent.control(ControlName::AllocRemoteBuffer, &command);
    let large = AllocResult::decode(&large).unwrap();
    let gates = [Gate::new("stalled"), Gate::new("also")];
    submit(&mut parent, &gates[0], &small);
    for _ in 0..4 {
        ask(
            &mut parent,
            ControlName::CopyFromRemote,
            &header(&large, NBYTES),
        );
    }
    gates[0].open(1);
    for _ in 0..3 {
        parent.submit("m:noop");
    }
    eventually("its end", || daemon.children().is_empty());
}

/// What was sent before the end of the lane is still carried out, by both threads; then the session is gone.
fn the_end_of_the_lane_ends_a_session_with_both_threads_at_work() {
    let daemon = Daemon::start("serve", &[]);
    let mut parent = offering(&daemon, &BOTH);
    let (used, other) = (alloc(&mut parent), alloc(&mut parent));
    let gate = Gate::new("end");
    submit(&mut parent, &gate, &used);
    for _ in 0..10 {
        ask(&mut parent, ControlName::CopyFromRemote, &header(&other, 8));
        ask(&mut parent, ControlName::CopyFromRemote, &header(&used, 8));
    }
    drop(parent);
    gate.open(1);
    eventually("its end", || daemon.children().is_empty());
}
