//! The command lane with many requests in flight: credits, answers that overtake, what is owed when.

use echelon_wire::buffer::RemoteTensorDesc;
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::Digest;
use echelon_wire::codec::Encode;
use echelon_wire::frame::control::buffer::{AllocCommand, CopyHeader, FreeCommand};
use echelon_wire::frame::control::CONTROL_VERSION;
use echelon_wire::frame::{decode_frame, Control, ControlName};
use echelon_wire::id::{BufferId, Generation};
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};
use echelon_wire::tensor::{DataType, TensorMeta};

use super::tests::{answer, completion, drain, lane_with, reply, task, ticket_of, TIMEOUT};
use super::*;
use crate::remote::replies::ReplyKind;

const MANY: Credits = Credits {
    max_commands: 8,
    max_bytes: 16 << 20,
    max_frame_bytes: 16 << 20,
};
const ME: WorkerId = WorkerId(3);
const BOTH: Features = Features::PIPELINING.union(Features::CONCURRENT_CONTROL);

/// A task that names one buffer.
fn task_on(ticket: u64, buffer: u64) -> Request {
    let mut args = TaskArgsWire::default();
    let desc = RemoteTensorDesc::remote_device(ME, BufferId(buffer), Generation(1), 0, 8);
    args.tensors
        .push(TensorMeta::new(&[2], DataType::Float32).unwrap());
    args.sidecars.push(Some(desc));
    let task = TaskPayload {
        digest: Digest([0; 32]),
        config: CallConfig::default(),
        args,
    };
    let bytes = task.to_bytes(Carrier::V1).unwrap();
    let scope = Scope::of_command(FrameType::Task, &bytes, BOTH);
    Request::task(Ticket(ticket), bytes, scope)
}

fn outgoing(name: ControlName, command: &[u8]) -> Outgoing {
    Outgoing {
        name,
        payload: Control::new(name, command).to_bytes().unwrap(),
        reply: ReplyKind::Empty,
    }
}

fn control_of(ticket: u64, outgoing: Outgoing, features: Features) -> Request {
    let scope = outgoing.scope(features);
    Request::control(Ticket(ticket), outgoing, scope)
}

const FREE: ControlName = ControlName::FreeRemoteBuffer;

fn free(ticket: u64, buffer: u64) -> Request {
    let command = FreeCommand {
        worker_id: ME,
        buffer_id: BufferId(buffer),
        generation: Generation(1),
    };
    control_of(ticket, outgoing(FREE, &command.to_bytes().unwrap()), BOTH)
}

fn complete(lane: &mut LaneState, sequence: u64) -> Result<(), LaneError> {
    answer(lane, FrameType::Completion, sequence, &completion(sequence))
}

fn freed(lane: &mut LaneState, sequence: u64, now: Instant) -> Result<(), LaneError> {
    let payload = reply(sequence, FREE, CONTROL_VERSION);
    let header = FrameHeader::new(
        FrameType::ControlReply,
        SessionId(7),
        ME,
        Sequence(sequence),
        payload.len(),
    )
    .unwrap();
    lane.on_frame(
        &Frame {
            header,
            payload: &payload,
        },
        now,
    )
}

fn tickets(lane: &mut LaneState) -> Vec<u64> {
    lane.events
        .drain(..)
        .map(|event| ticket_of(&event))
        .collect()
}

/// Waiting for credit, of commands or of bytes, has no deadline; an answer gives its credit back.
#[test]
fn requests_wait_for_credit_without_a_deadline() {
    let start = Instant::now();
    let credits = Credits {
        max_commands: 3,
        max_bytes: 100_000,
        max_frame_bytes: 100_000,
    };
    let mut lane = lane_with(credits, Features::PIPELINING);
    for (ticket, bytes) in [(1, 10), (2, 60_000), (3, 50_000), (4, 10), (5, 10)] {
        lane.enqueue(task(ticket, vec![0; bytes]), start);
    }
    let sent = drain(&mut lane, usize::MAX, start).len();
    assert_eq!(sent, 2 * 40 + 10 + 60_000, "two, then a byte too many");
    assert_eq!(lane.next_deadline(), None);
    lane.check_deadlines(start + 1000 * TIMEOUT).unwrap();
    complete(&mut lane, 1).unwrap();
    assert!(
        lane.unwritten().is_empty(),
        "50,000 more are still too many"
    );
    complete(&mut lane, 2).unwrap();
    let sent = drain(&mut lane, usize::MAX, start).len();
    assert_eq!(sent, 3 * 40 + 50_000 + 10 + 10, "and not more than three");
    for sequence in 3..=5 {
        complete(&mut lane, sequence).unwrap();
    }
    assert_eq!(tickets(&mut lane), [1, 2, 3, 4, 5]);
}

/// A session that announces more than we would ever have in flight does not make us.
#[test]
fn credits_without_end_are_not_used_up() {
    let now = Instant::now();
    let credits = Credits {
        max_commands: u32::MAX,
        max_bytes: u64::MAX,
        max_frame_bytes: 16 << 20,
    };
    let mut lane = lane_with(credits, BOTH);
    for ticket in 0..1000 {
        lane.enqueue(task_on(ticket, ticket + 1), now);
    }
    let one = 40 + task_on(1, 1).payload.len();
    assert_eq!(drain(&mut lane, usize::MAX, now).len(), 256 * one);
}

/// what no frame of the lane holds fails alone, with both numbers.
#[test]
fn r_081_a_smaller_frame_limit_is_kept() {
    let now = Instant::now();
    let credits = Credits {
        max_frame_bytes: 65_536,
        ..MANY
    };
    let mut lane = lane_with(credits, Features::PIPELINING);
    lane.enqueue(task(1, vec![0; 65_537]), now);
    lane.enqueue(task(2, vec![0; 65_536]), now);
    let Some(EndpointEvent::Done { report, .. }) = lane.events.pop_front() else {
        panic!("no end");
    };
    let text = report.failure.unwrap().message;
    assert!(text.contains("65537") && text.contains("65536"), "{text}");
    let bytes = drain(&mut lane, usize::MAX, now);
    assert_eq!(decode_frame(&bytes).unwrap().header.sequence, Sequence(1));
}

/// with several requests in flight an answer is still that of one of them, of its kind, once, and in order where order counts.
#[test]
fn r_071_reordered_repeated_and_foreign_answers() {
    let ready = |features: Features| {
        let now = Instant::now();
        let mut lane = lane_with(MANY, features);
        let free_9 = if features == BOTH {
            free(3, 9)
        } else {
            let outgoing = outgoing(FREE, &[]);
            control_of(3, outgoing, features)
        };
        for request in [task_on(1, 5), task_on(2, 6), free_9, free(4, 5)] {
            lane.enqueue(request, now);
        }
        drain(&mut lane, usize::MAX, now);
        lane
    };
    let now = Instant::now();
    // The second task before the first; an unknown one; a task answered as a control and the reverse.
    assert!(complete(&mut ready(BOTH), 2).is_err());
    assert!(complete(&mut ready(BOTH), 7).is_err());
    assert!(freed(&mut ready(BOTH), 1, now).is_err());
    assert!(complete(&mut ready(BOTH), 3).is_err());
    // What names the first task's buffer stays behind it.
    assert!(freed(&mut ready(BOTH), 4, now).is_err());
    // Without the extension nothing overtakes.
    assert!(freed(&mut ready(Features::PIPELINING), 3, now).is_err());
    // Twice.
    let mut lane = ready(BOTH);
    freed(&mut lane, 3, now).unwrap();
    assert!(freed(&mut lane, 3, now).is_err());
    assert_eq!(tickets(&mut lane), [3]);
    // The one good way.
    let mut lane = ready(BOTH);
    freed(&mut lane, 3, now).unwrap();
    complete(&mut lane, 1).unwrap();
    freed(&mut lane, 4, now).unwrap();
    complete(&mut lane, 2).unwrap();
    assert_eq!(tickets(&mut lane), [3, 1, 4, 2]);
    assert_eq!(
        complete(&mut lane, 2),
        Err(LaneError::Unasked(FrameType::Completion))
    );
}

/// behind a task of any length only what need not wait for it is owed.
#[test]
fn r_236_r_241_what_waits_for_a_task_is_not_late() {
    let start = Instant::now();
    let hours = start + 10_000 * TIMEOUT;
    let mut lane = lane_with(MANY, BOTH);
    lane.enqueue(task_on(1, 5), start);
    lane.enqueue(free(2, 5), start);
    // Waits for the free, which waits for the task.
    lane.enqueue(control_of(3, alloc(), BOTH), start);
    drain(&mut lane, 7, start);
    assert_eq!(lane.next_deadline(), None);
    lane.check_deadlines(hours).unwrap();
    lane.enqueue(task_on(4, 6), hours);
    let read = CopyHeader {
        worker_id: ME,
        buffer_id: BufferId(7),
        generation: Generation(1),
        offset: 0,
        size: 0,
    };
    let read = outgoing(ControlName::CopyFromRemote, &read.to_bytes().unwrap());
    lane.enqueue(control_of(5, read, BOTH), hours);
    drain(&mut lane, usize::MAX, hours);
    // Sent a moment ago, and nothing before it concerns buffer 7.
    assert_eq!(lane.next_deadline(), Some(hours + TIMEOUT));
    lane.check_deadlines(hours + TIMEOUT).unwrap_err();
}

fn alloc() -> Outgoing {
    let command = AllocCommand { nbytes: 8 }.to_bytes().unwrap();
    outgoing(ControlName::AllocRemoteBuffer, &command)
}

/// A session carries out one control at a time: each is owed from when those before it were answered, and silence is silence.
#[test]
fn each_answer_gives_the_next_one_its_time() {
    let start = Instant::now();
    let later = start + TIMEOUT - Duration::from_millis(1);
    let mut lane = lane_with(MANY, BOTH);
    for ticket in 1..=3 {
        lane.enqueue(free(ticket, ticket), start);
    }
    drain(&mut lane, usize::MAX, start);
    freed(&mut lane, 1, later).unwrap();
    assert_eq!(lane.next_deadline(), Some(later + TIMEOUT));
    // What comes after does not give those before it more time.
    lane.enqueue(free(4, 4), later);
    drain(&mut lane, usize::MAX, later);
    let mut lost = later + TIMEOUT / 2;
    freed(&mut lane, 4, lost).unwrap();
    lost = later + TIMEOUT;
    assert!(matches!(
        lane.check_deadlines(lost),
        Err(LaneError::Silent { .. })
    ));
}
