//! The command lane without a socket: what goes out, what comes back, what ends it.

use echelon_wire::codec::Encode;
use echelon_wire::frame::control::CONTROL_VERSION;
use echelon_wire::frame::{decode_frame, ControlName, FailureKind};
use proptest::prelude::*;

use super::*;
use crate::remote::replies::ReplyKind;

pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
const PREPARE: ControlName = ControlName::PrepareCallable;

fn lane(max_commands: u32, features: Features) -> LaneState {
    let credits = Credits {
        max_commands,
        ..Credits::ONE
    };
    lane_with(credits, features)
}

pub(super) fn lane_with(credits: Credits, features: Features) -> LaneState {
    LaneState::new(LaneConfig {
        session: SessionId(7),
        worker: WorkerId(3),
        features,
        timeout: TIMEOUT,
        credits,
    })
}

pub(super) fn task(ticket: u64, payload: Vec<u8>) -> Request {
    Request::task(Ticket(ticket), payload, Scope::IN_ORDER)
}

fn control(ticket: u64) -> Request {
    let outgoing = Outgoing {
        name: PREPARE,
        payload: vec![1; 12],
        reply: ReplyKind::Empty,
    };
    Request::control(Ticket(ticket), outgoing, Scope::IN_ORDER)
}

/// Takes all that is to be written, at most `step` bytes at a time.
pub(super) fn drain(lane: &mut LaneState, step: usize, now: Instant) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let next: Vec<u8> = lane
            .unwritten()
            .iter()
            .flat_map(|piece| piece.to_vec())
            .take(step)
            .collect();
        if next.is_empty() {
            return out;
        }
        lane.wrote(next.len(), now);
        out.extend(next);
    }
}

pub(super) fn answer(
    lane: &mut LaneState,
    kind: FrameType,
    sequence: u64,
    payload: &[u8],
) -> Result<(), LaneError> {
    let header = FrameHeader::new(
        kind,
        SessionId(7),
        WorkerId(3),
        Sequence(sequence),
        payload.len(),
    )
    .unwrap();
    lane.on_frame(&Frame { header, payload }, Instant::now())
}

pub(super) fn completion(sequence: u64) -> Vec<u8> {
    Completion::success(Sequence(sequence)).to_bytes().unwrap()
}

pub(super) fn reply(sequence: u64, name: ControlName, version: u32) -> Vec<u8> {
    ReplyFrame::success(Sequence(sequence), name, version, Vec::new())
        .to_bytes()
        .unwrap()
}

pub(super) fn ticket_of(event: &EndpointEvent) -> u64 {
    match event {
        EndpointEvent::Done { ticket, .. }
        | EndpointEvent::Skipped { ticket }
        | EndpointEvent::ControlDone { ticket, .. } => ticket.0,
        EndpointEvent::Lost { .. } => panic!("a state never says Lost"),
    }
}

#[test]
fn one_request_is_in_flight_and_sequences_count_from_1() {
    let now = Instant::now();
    let mut lane = lane(1, Features::NONE);
    lane.enqueue(task(10, vec![5; 6000]), now);
    lane.enqueue(control(11), now);
    let first = drain(&mut lane, usize::MAX, now);
    let frame = decode_frame(&first).unwrap();
    assert_eq!(
        (frame.header.frame_type, frame.header.sequence),
        (FrameType::Task, Sequence(1))
    );
    assert!(frame.payload == [5; 6000]);
    answer(&mut lane, FrameType::Completion, 1, &completion(1)).unwrap();
    let second = drain(&mut lane, usize::MAX, now);
    let frame = decode_frame(&second).unwrap();
    assert_eq!(
        (frame.header.frame_type, frame.header.sequence),
        (FrameType::Control, Sequence(2))
    );
    answer(
        &mut lane,
        FrameType::ControlReply,
        2,
        &reply(2, PREPARE, CONTROL_VERSION),
    )
    .unwrap();
    assert_eq!(
        lane.events.iter().map(ticket_of).collect::<Vec<_>>(),
        [10, 11]
    );
}

/// anything that does not answer the request in flight ends the lane.
#[test]
fn r_071_answers_that_do_not_fit() {
    let version = CONTROL_VERSION;
    let to_task: [(FrameType, u64, Vec<u8>); 6] = [
        (FrameType::Completion, 2, completion(1)),
        (FrameType::Completion, 1, completion(2)),
        (FrameType::Completion, 1, completion(1)[..15].to_vec()),
        (FrameType::Completion, 1, [completion(1), vec![0]].concat()),
        (FrameType::ControlReply, 1, reply(1, PREPARE, version)),
        (FrameType::Health, 1, Vec::new()),
    ];
    for (kind, sequence, payload) in to_task {
        let mut lane = lane(1, Features::NONE);
        lane.enqueue(task(1, Vec::new()), Instant::now());
        answer(&mut lane, kind, sequence, &payload).unwrap_err();
        assert!(lane.events.is_empty());
    }
    let to_control: [(FrameType, u64, Vec<u8>); 5] = [
        (FrameType::ControlReply, 1, reply(2, PREPARE, version)),
        (FrameType::ControlReply, 2, reply(1, PREPARE, version)),
        (
            FrameType::ControlReply,
            1,
            reply(1, ControlName::ExportBuffer, version),
        ),
        (FrameType::ControlReply, 1, reply(1, PREPARE, version + 1)),
        (FrameType::Completion, 1, completion(1)),
    ];
    for (kind, sequence, payload) in to_control {
        let mut lane = lane(1, Features::NONE);
        lane.enqueue(control(1), Instant::now());
        answer(&mut lane, kind, sequence, &payload).unwrap_err();
        assert!(lane.events.is_empty());
    }
}

/// a second answer to one request is an error and no second event.
#[test]
fn r_071_a_duplicate_is_refused() {
    let mut lane = lane(1, Features::NONE);
    lane.enqueue(task(1, Vec::new()), Instant::now());
    answer(&mut lane, FrameType::Completion, 1, &completion(1)).unwrap();
    assert_eq!(
        answer(&mut lane, FrameType::Completion, 1, &completion(1)),
        Err(LaneError::Unasked(FrameType::Completion))
    );
    assert_eq!(lane.events.len(), 1);
}

/// a task that was sent has no deadline; a control has, from when its last byte was written.
#[test]
fn r_236_only_a_control_is_due() {
    let start = Instant::now();
    let later = start + 1000 * TIMEOUT;
    let mut lane = lane(1, Features::NONE);
    lane.enqueue(task(1, Vec::new()), start);
    lane.enqueue(control(2), start);
    drain(&mut lane, 7, start);
    assert_eq!(lane.next_deadline(), None);
    lane.check_deadlines(later).unwrap();
    answer(&mut lane, FrameType::Completion, 1, &completion(1)).unwrap();
    drain(&mut lane, usize::MAX, later);
    assert_eq!(lane.next_deadline(), Some(later + TIMEOUT));
    lane.check_deadlines(later + TIMEOUT - Duration::from_millis(1))
        .unwrap();
    assert!(matches!(
        lane.check_deadlines(later + TIMEOUT),
        Err(LaneError::Silent { .. })
    ));
}

/// bytes that the peer does not take are an error after the bound.
#[test]
fn r_058_a_write_that_does_not_move_is_due() {
    let start = Instant::now();
    let mut lane = lane(1, Features::NONE);
    lane.enqueue(task(1, vec![0; 9000]), start);
    lane.wrote(4000, start + TIMEOUT / 2);
    lane.check_deadlines(start + TIMEOUT).unwrap();
    assert_eq!(
        lane.check_deadlines(start + 2 * TIMEOUT),
        Err(LaneError::Stalled(TIMEOUT))
    );
    drain(&mut lane, usize::MAX, start + TIMEOUT);
    lane.check_deadlines(start + 1000 * TIMEOUT).unwrap();
}

/// SHUTDOWN has the next sequence, and what was not begun stays unsent.
#[test]
fn r_240_shutdown_comes_last() {
    let now = Instant::now();
    let mut lane = lane(1, Features::NONE);
    lane.enqueue(task(1, Vec::new()), now);
    lane.enqueue(task(2, Vec::new()), now);
    lane.shut_down(now);
    let bytes = drain(&mut lane, usize::MAX, now);
    let frame = decode_frame(&bytes[40..]).unwrap();
    assert_eq!(
        (frame.header.frame_type, frame.header.sequence),
        (FrameType::Shutdown, Sequence(2))
    );
    answer(&mut lane, FrameType::Completion, 1, &completion(1)).unwrap();
    assert!(lane.unwritten().is_empty());
}

#[test]
fn a_request_over_the_frame_limit_fails_alone() {
    let now = Instant::now();
    let mut lane = lane(1, Features::NONE);
    lane.enqueue(task(1, vec![0; (16 << 20) + 1]), now);
    lane.enqueue(task(2, Vec::new()), now);
    assert!(
        matches!(&lane.events[0], EndpointEvent::Done { ticket: Ticket(1), report } if report.failure.is_some())
    );
    let bytes = drain(&mut lane, usize::MAX, now);
    assert_eq!(decode_frame(&bytes).unwrap().header.sequence, Sequence(1));
}

#[test]
fn a_timed_completion_reports_times_where_it_was_accepted() {
    let done = TimedCompletion {
        sequence: Sequence(1),
        error_code: 1,
        failure_kind: FailureKind::Task,
        start_ns: 5,
        end_ns: 9,
        error_message: "boom".into(),
        result: Vec::new().into(),
    };
    let payload = done.to_bytes().unwrap();
    let mut lane = lane(1, Features::TIMED_COMPLETION);
    lane.enqueue(task(1, Vec::new()), Instant::now());
    answer(&mut lane, FrameType::TimedCompletion, 1, &payload).unwrap();
    let Some(EndpointEvent::Done { report, .. }) = lane.events.pop_front() else {
        panic!("no completion");
    };
    assert_eq!((report.start_ns, report.end_ns), (Some(5), Some(9)));
    assert_eq!(report.failure.unwrap().message, "boom");
}

/// only what the callable did is its fault.
#[test]
fn r_085_a_timed_completion_says_whose_fault_it_is() {
    for (kind, infrastructure) in [
        (FailureKind::Task, false),
        (FailureKind::Endpoint, true),
        (FailureKind::Skipped, true),
        (FailureKind::Cancelled, true),
    ] {
        let done = TimedCompletion {
            sequence: Sequence(1),
            error_code: 1,
            failure_kind: kind,
            start_ns: 5,
            end_ns: 9,
            error_message: "boom".into(),
            result: Vec::new().into(),
        };
        let mut lane = lane(1, Features::TIMED_COMPLETION);
        lane.enqueue(task(1, Vec::new()), Instant::now());
        let payload = done.to_bytes().unwrap();
        answer(&mut lane, FrameType::TimedCompletion, 1, &payload).unwrap();
        let Some(EndpointEvent::Done { report, .. }) = lane.events.pop_front() else {
            panic!("no completion");
        };
        let failure = report.failure.unwrap();
        assert_eq!(failure.infrastructure, infrastructure, "{kind:?}");
        assert!(failure.message.ends_with("boom"), "{}", failure.message);
    }
}

proptest! {
    /// whatever is asked for and however the socket cuts the bytes, each request is sent once, in order, with
    /// sequences that count from 1, never more in flight than allowed, and is answered once.
    #[test]
    fn r_083_every_request_is_sent_and_answered_once(
        kinds in prop::collection::vec(any::<bool>(), 1..40),
        limit in 1_u32..5,
        step in 1_usize..5000,
        large in 0_usize..9000,
    ) {
        let now = Instant::now();
        let mut lane = lane(limit, Features::NONE);
        for (ticket, is_task) in (0..).zip(&kinds) {
            lane.enqueue(if *is_task { task(ticket, vec![0; large]) } else { control(ticket) }, now);
        }
        let mut sequence = 0;
        while lane.events.len() < kinds.len() {
            let bytes = drain(&mut lane, step, now);
            let mut rest = bytes.as_slice();
            let mut batch = Vec::new();
            while !rest.is_empty() {
                let header = FrameHeader::decode(rest).unwrap();
                let (frame, after) = rest.split_at(HEADER + header.payload_bytes as usize);
                batch.push(decode_frame(frame).unwrap().header);
                rest = after;
            }
            prop_assert!(!batch.is_empty() && batch.len() <= limit as usize);
            for header in batch {
                sequence += 1;
                prop_assert_eq!(header.sequence, Sequence(sequence));
                let is_task = kinds[sequence as usize - 1];
                prop_assert_eq!(header.frame_type == FrameType::Task, is_task);
                if is_task {
                    answer(&mut lane, FrameType::Completion, sequence, &completion(sequence)).unwrap();
                } else {
                    let payload = reply(sequence, PREPARE, CONTROL_VERSION);
                    answer(&mut lane, FrameType::ControlReply, sequence, &payload).unwrap();
                }
            }
        }
        let tickets: Vec<u64> = lane.events.iter().map(ticket_of).collect();
        prop_assert_eq!(tickets, (0..kinds.len() as u64).collect::<Vec<_>>());
        prop_assert_eq!(lane.next_deadline(), None);
    }

    /// no payload of an answer makes it panic.
    #[test]
    fn r_067_arbitrary_answers_are_events_or_errors(
        payload in prop::collection::vec(any::<u8>(), 0..80),
        to_control in any::<bool>(),
    ) {
        let mut lane = lane(1, Features::NONE);
        let request = if to_control { control(1) } else { task(1, Vec::new()) };
        lane.enqueue(request, Instant::now());
        let kind = if to_control { FrameType::ControlReply } else { FrameType::Completion };
        let outcome = answer(&mut lane, kind, 1, &payload);
        prop_assert_eq!(outcome.is_ok(), lane.events.len() == 1);
    }
}

const HEADER: usize = echelon_wire::limits::HEADER_BYTES;
