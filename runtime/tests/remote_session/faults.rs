//! Answers that do not fit: the endpoint is lost at the first one, for good.

use echelon_runtime::endpoint::{ControlRequest, Endpoint, EndpointEvent, Ticket};
use echelon_runtime::memory::HostMemory;
use echelon_wire::codec::Encode;
use echelon_wire::frame::{Completion, ControlName, ControlReply as ReplyFrame, FrameType};
use echelon_wire::id::Sequence;
use echelon_wire::limits::MAX_PAYLOAD_BYTES;

use crate::commands::{alloc_result, wrong_alloc_results, BUFFER};
use crate::peer::{frame, Parent, PATIENCE};

/// A session that answers its first request with `bytes`.
fn answering(bytes: Vec<u8>) -> Parent {
    Parent::of(PATIENCE, move |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        session.send(&bytes);
        session.drain();
    })
}

fn completion() -> Vec<u8> {
    let payload = Completion::failure(Sequence(1), "text").to_bytes().unwrap();
    frame(FrameType::Completion, Sequence(1), &payload)
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = completion();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// One wrong field at a time, header and payload.
#[test]
fn r_068_r_070_r_071_a_completion_with_a_wrong_field() {
    let over = (MAX_PAYLOAD_BYTES + 1).to_le_bytes();
    let cases: [(&str, Vec<u8>); 13] = [
        ("frame.magic", patched(0, b"X")),
        ("frame.version", patched(4, &3_u32.to_le_bytes())),
        ("frame.frame_type", patched(8, &99_u32.to_le_bytes())),
        // Timed completions were not negotiated.
        ("frame.frame_type", patched(8, &64_u32.to_le_bytes())),
        ("never gets", patched(8, &2_u32.to_le_bytes())),
        ("frame.session_id", patched(12, &8_u64.to_le_bytes())),
        ("frame.worker_id", patched(20, &4_i32.to_le_bytes())),
        ("sequence 2", patched(24, &2_u64.to_le_bytes())),
        ("frame.payload_bytes", patched(32, &over)),
        ("frame.flags", patched(36, &1_u32.to_le_bytes())),
        ("COMPLETION.sequence", patched(40, &2_u64.to_le_bytes())),
        (
            "COMPLETION.error_message",
            patched(52, &5_u32.to_le_bytes()),
        ),
        ("COMPLETION.error_message", patched(56, &[0xff])),
    ];
    for (because, bytes) in cases {
        let mut parent = answering(bytes);
        parent.submit(&[]).unwrap();
        parent.lost_for_good(because);
    }
}

#[test]
fn r_071_a_control_is_not_answered_by_anything_else() {
    let name = ControlName::AllocRemoteBuffer;
    let reply = |sequence: u64, name, version| {
        let result = alloc_result(64).to_bytes().unwrap();
        let payload = ReplyFrame::success(Sequence(sequence), name, version, result).to_bytes();
        frame(FrameType::ControlReply, Sequence(1), &payload.unwrap())
    };
    for (because, bytes) in [
        ("Completion", completion()),
        ("CONTROL_REPLY.sequence", reply(2, name, 1)),
        (
            "CONTROL_REPLY.control_name",
            reply(1, ControlName::FreeRemoteBuffer, 1),
        ),
        ("CONTROL_REPLY.control_version", reply(1, name, 2)),
        ("CONTROL_REPLY.control_name", {
            // A name that version 1 does not know.
            let mut bytes = reply(1, name, 1);
            bytes[48..52].copy_from_slice(&64_u32.to_le_bytes());
            bytes
        }),
    ] {
        let mut parent = answering(bytes);
        let alloc = ControlRequest::Alloc { nbytes: 64 };
        parent.endpoint.control(Ticket(1), alloc).unwrap();
        parent.lost_for_good(because);
    }
}

/// A session that answers its first control with this result.
fn resulting(name: ControlName, result: Vec<u8>, request: ControlRequest) -> Parent {
    let payload = ReplyFrame::success(Sequence(1), name, 1, result).to_bytes();
    let mut parent = answering(frame(
        FrameType::ControlReply,
        Sequence(1),
        &payload.unwrap(),
    ));
    parent.endpoint.control(Ticket(1), request).unwrap();
    parent
}

#[test]
fn results_that_are_not_what_was_asked_for() {
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
    let mut parent = answering([completion(), completion()].concat());
    parent.submit(&[]).unwrap();
    assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
    parent.lost_for_good("nothing of that kind was in flight");
}

#[test]
fn an_answer_to_nothing() {
    Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        session.send(&completion());
        session.drain();
    })
    .lost_for_good("nothing of that kind was in flight");
}

/// the end of the stream, wherever it comes.
#[test]
fn r_060_the_stream_ends_anywhere() {
    let bytes = completion();
    for cut in [0, 1, 39, 40, 41, bytes.len() - 1] {
        let part = bytes[..cut].to_vec();
        let mut parent = Parent::of(PATIENCE, move |mut session| {
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

#[test]
fn r_060_one_byte_at_a_time_is_fine() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        session.command.set_nodelay(true).unwrap();
        let _beats = session.beat();
        session.receive().unwrap();
        for byte in completion() {
            session.send(&[byte]);
        }
        session.drain();
    });
    assert_eq!(parent.run(&[]).failure.unwrap().message, "text");
}

/// What a session says about a failure ends up on somebody's terminal.
#[test]
fn r_079_texts_of_a_session_are_bounded_and_escaped() {
    let hostile = format!("\u{1b}[2J\r{}", "\u{7}".repeat(4000));
    let name = ControlName::AllocRemoteBuffer;
    let payload = Completion::failure(Sequence(1), &hostile).to_bytes();
    let mut parent = answering(frame(FrameType::Completion, Sequence(1), &payload.unwrap()));
    parent.submit(&[]).unwrap();
    let EndpointEvent::Done { report, .. } = parent.event() else {
        panic!("the task did not end");
    };
    let task_text = report.failure.unwrap().message;
    let payload = ReplyFrame::failure(Sequence(1), name, 1, &hostile).to_bytes();
    let mut parent = answering(frame(
        FrameType::ControlReply,
        Sequence(1),
        &payload.unwrap(),
    ));
    let result = parent.control(ControlRequest::Alloc { nbytes: 64 });
    for text in [task_text, result.unwrap_err().to_string()] {
        assert!(text.contains("\\u{1b}[2J\\r\\u{7}"), "{text}");
        assert!(!text.contains(char::is_control) && text.len() < 5000);
    }
}

/// One over the limit is no text that is cut, it is a broken frame; so is one that is not UTF-8.
#[test]
fn r_079_an_endless_text_or_one_that_is_none_ends_the_session() {
    let with_text = |bytes: &[u8]| {
        let mut payload = [&1_u64.to_le_bytes()[..], &1_i32.to_le_bytes()].concat();
        payload.extend((bytes.len() as u32).to_le_bytes());
        payload.extend(bytes);
        frame(FrameType::Completion, Sequence(1), &payload)
    };
    for bytes in [vec![b'x'; 4097], vec![b'x'; 1 << 20], b"a\xffb".to_vec()] {
        let mut parent = answering(with_text(&bytes));
        parent.submit(&[]).unwrap();
        parent.lost_for_good("COMPLETION.error_message");
    }
}
