//! Answers that do not fit: the endpoint is lost at the first one, for good.

use echelon_runtime::endpoint::{ControlRequest, Endpoint, EndpointEvent, Ticket};
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::extensions::configurations;
use echelon_wire::codec::Encode;
use echelon_wire::frame::{
    ControlName, ControlReply as ReplyFrame, FailureKind, Features, FrameType,
};
use echelon_wire::id::Sequence;
use echelon_wire::limits::{HEADER_BYTES, MAX_PAYLOAD_BYTES};

use crate::commands::{alloc_result, wrong_alloc_results, BUFFER};
use crate::peer::{completion, frame, Parent};

/// A session that answers its first request with `bytes`.
fn answering(features: Features, bytes: Vec<u8>) -> Parent {
    Parent::over(features, move |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        session.send(&bytes);
        session.drain();
    })
}

fn failed(features: Features) -> Vec<u8> {
    completion(features, Sequence(1), FailureKind::Task, "text")
}

/// Where the length of its text is.
fn text_at(features: Features) -> usize {
    if features.contains(Features::TIMED_COMPLETION) {
        72
    } else {
        52
    }
}

/// One wrong field at a time, header and payload.
#[test]
fn r_068_r_070_r_071_a_completion_with_a_wrong_field() {
    for features in configurations() {
        let patched = |at: usize, bytes: &[u8]| {
            let mut frame = failed(features);
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let over = (MAX_PAYLOAD_BYTES + 1).to_le_bytes();
        // The completion that was not negotiated.
        let (other, because) = if features.contains(Features::TIMED_COMPLETION) {
            (5_u32, "never gets")
        } else {
            (64, "frame.frame_type")
        };
        let text = text_at(features);
        let cases: [(&str, Vec<u8>); 13] = [
            ("frame.magic", patched(0, b"X")),
            ("frame.version", patched(4, &3_u32.to_le_bytes())),
            ("frame.frame_type", patched(8, &99_u32.to_le_bytes())),
            (because, patched(8, &other.to_le_bytes())),
            ("never gets", patched(8, &2_u32.to_le_bytes())),
            ("frame.session_id", patched(12, &8_u64.to_le_bytes())),
            ("frame.worker_id", patched(20, &4_i32.to_le_bytes())),
            ("sequence 2", patched(24, &2_u64.to_le_bytes())),
            ("frame.payload_bytes", patched(32, &over)),
            ("frame.flags", patched(36, &1_u32.to_le_bytes())),
            ("sequence", patched(40, &2_u64.to_le_bytes())),
            ("COMPLETION.", patched(text, &5_u32.to_le_bytes())),
            ("COMPLETION.error_message", patched(text + 4, &[0xff])),
        ];
        for (because, bytes) in cases {
            let mut parent = answering(features, bytes);
            parent.submit(&[]).unwrap();
            parent.lost_for_good(because);
        }
    }
}

#[test]
fn r_071_a_control_is_not_answered_by_anything_else() {
    for features in configurations() {
        is_not_answered_by_anything_else(features);
    }
}

fn is_not_answered_by_anything_else(features: Features) {
    let name = ControlName::AllocRemoteBuffer;
    let reply = |sequence: u64, name, version| {
        let result = alloc_result(64).to_bytes().unwrap();
        let payload = ReplyFrame::success(Sequence(sequence), name, version, result).to_bytes();
        frame(FrameType::ControlReply, Sequence(1), &payload.unwrap())
    };
    for (because, bytes) in [
        ("Completion", failed(features)),
        ("CONTROL_REPLY.sequence", reply(2, name, 1)),
        (
            "CONTROL_REPLY.control_name",
            reply(1, ControlName::FreeRemoteBuffer, 1),
        ),
        ("CONTROL_REPLY.control_version", reply(1, name, 2)),
        ("CONTROL_REPLY.control_name", {
            // A name that nobody knows.
            let mut bytes = reply(1, name, 1);
            bytes[48..52].copy_from_slice(&90_u32.to_le_bytes());
            bytes
        }),
    ] {
        let mut parent = answering(features, bytes);
        let alloc = ControlRequest::Alloc { nbytes: 64 };
        parent.endpoint.control(Ticket(1), alloc).unwrap();
        parent.lost_for_good(because);
    }
}

/// A session that answers its first control with this result.
fn resulting(
    features: Features,
    name: ControlName,
    result: Vec<u8>,
    request: ControlRequest,
) -> Parent {
    let payload = ReplyFrame::success(Sequence(1), name, 1, result).to_bytes();
    let bytes = frame(FrameType::ControlReply, Sequence(1), &payload.unwrap());
    let mut parent = answering(features, bytes);
    parent.endpoint.control(Ticket(1), request).unwrap();
    parent
}

#[test]
fn results_that_are_not_what_was_asked_for() {
    for features in configurations() {
        not_what_was_asked_for(features);
    }
}

fn not_what_was_asked_for(features: Features) {
    let resulting = |name, result, request| resulting(features, name, result, request);
    let alloc = ControlRequest::Alloc { nbytes: 64 };
    for wrong in wrong_alloc_results() {
        let result = wrong.to_bytes().unwrap();
        resulting(ControlName::AllocRemoteBuffer, result, alloc.clone())
            .lost_for_good("does not fit");
    }
    let right = alloc_result(64).to_bytes().unwrap();
    // Buffer id, generation, address space.
    for zeroed in [4..12, 12..20, 20..24] {
        let mut result = right.clone();
        result[zeroed].fill(0);
        resulting(ControlName::AllocRemoteBuffer, result, alloc.clone())
            .lost_for_good("AllocResult");
    }
    for len in [0, 55, 57] {
        let mut result = right.clone();
        result.resize(len, 0);
        resulting(ControlName::AllocRemoteBuffer, result, alloc.clone())
            .lost_for_good("AllocResult");
    }
    resulting(
        ControlName::FreeRemoteBuffer,
        vec![0],
        ControlRequest::Free { buffer: BUFFER },
    )
    .lost_for_good("where none belong");
    for len in [0, 7, 9] {
        let destination = HostMemory::from_vec(vec![5; 8]);
        let copy = ControlRequest::CopyFrom {
            buffer: BUFFER,
            offset: 0,
            destination: destination.clone(),
        };
        resulting(ControlName::CopyFromRemote, vec![1; len], copy).lost_for_good("8 were asked");
        assert_eq!(destination.to_vec(), [5; 8], "nothing of it was written");
    }
}

#[test]
fn r_071_a_second_completion_is_no_second_event() {
    for features in configurations() {
        let mut parent = answering(features, [failed(features), failed(features)].concat());
        parent.submit(&[]).unwrap();
        assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
        parent.lost_for_good("nothing of that kind was in flight");
    }
}

#[test]
fn an_answer_to_nothing() {
    for features in configurations() {
        Parent::over(features, move |mut session| {
            let _beats = session.beat();
            session.send(&failed(features));
            session.drain();
        })
        .lost_for_good("nothing of that kind was in flight");
    }
}

/// the end of the stream, wherever it comes.
#[test]
fn r_060_the_stream_ends_anywhere() {
    for features in configurations() {
        let bytes = failed(features);
        for cut in [0, 1, 39, 40, 41, bytes.len() - 1] {
            let part = bytes[..cut].to_vec();
            let mut parent = Parent::over(features, move |mut session| {
                let _beats = session.beat();
                session.receive().unwrap();
                session.send(&part);
                session.command.shutdown(std::net::Shutdown::Write).unwrap();
                session.drain();
            });
            parent.submit(&[]).unwrap();
            parent.lost_for_good("the session closed its command lane");
        }
    }
}

#[test]
fn r_060_one_byte_at_a_time_is_fine() {
    for features in configurations() {
        let mut parent = Parent::over(features, move |mut session| {
            session.command.set_nodelay(true).unwrap();
            let _beats = session.beat();
            session.receive().unwrap();
            for byte in failed(features) {
                session.send(&[byte]);
            }
            session.drain();
        });
        assert_eq!(parent.run(&[]).failure.unwrap().message, "text");
    }
}

/// What a session says about a failure ends up on somebody's terminal.
#[test]
fn r_079_texts_of_a_session_are_bounded_and_escaped() {
    for features in configurations() {
        let hostile = format!("\u{1b}[2J\r{}", "\u{7}".repeat(4000));
        let name = ControlName::AllocRemoteBuffer;
        let bytes = completion(features, Sequence(1), FailureKind::Task, &hostile);
        let mut parent = answering(features, bytes);
        parent.submit(&[]).unwrap();
        let EndpointEvent::Done { report, .. } = parent.event() else {
            panic!("the task did not end");
        };
        let task_text = report.failure.unwrap().message;
        let payload = ReplyFrame::failure(Sequence(1), name, 1, &hostile).to_bytes();
        let bytes = frame(FrameType::ControlReply, Sequence(1), &payload.unwrap());
        let mut parent = answering(features, bytes);
        let result = parent.control(ControlRequest::Alloc { nbytes: 64 });
        for text in [task_text, result.unwrap_err().to_string()] {
            assert!(text.contains("\\u{1b}[2J\\r\\u{7}"), "{text}");
            assert!(!text.contains(char::is_control) && text.len() < 5000);
        }
    }
}

/// One over the limit is no text that is cut, it is a broken frame; so is one that is not UTF-8.
#[test]
fn r_079_an_endless_text_or_one_that_is_none_ends_the_session() {
    for features in configurations() {
        let with_text = |bytes: &[u8]| {
            let empty = completion(features, Sequence(1), FailureKind::Task, "");
            let (head, rest) = empty.split_at(text_at(features));
            let length = (bytes.len() as u32).to_le_bytes();
            let mut frame = [head, &length, bytes, &rest[4..]].concat();
            let payload = (frame.len() - HEADER_BYTES) as u32;
            frame[32..36].copy_from_slice(&payload.to_le_bytes());
            frame
        };
        for bytes in [vec![b'x'; 4097], vec![b'x'; 1 << 20], b"a\xffb".to_vec()] {
            let mut parent = answering(features, with_text(&bytes));
            parent.submit(&[]).unwrap();
            parent.lost_for_good("COMPLETION.error_message");
        }
    }
}
