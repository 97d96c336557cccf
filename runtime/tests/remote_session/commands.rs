//! What a good session is asked, and how its answers come back.

use echelon_runtime::endpoint::{
    BufferKey, ControlFailure, ControlReply, ControlRequest, OutboundTensor, Place, SubmitError,
};
use echelon_runtime::memory::{HostMemory, SharedRegion};
use echelon_runtime::Tag;
use echelon_wire::buffer::RemoteTensorDesc;
use echelon_wire::codec::{Decode, Encode};
use echelon_wire::frame::control::buffer::{AllocCommand, AllocResult, CopyHeader, CopyTo};
use echelon_wire::frame::{
    Completion, Control, ControlName, ControlReply as ReplyFrame, Features, FrameType, Hello,
    TimedCompletion,
};
use echelon_wire::id::{BufferId, Generation, Sequence, WorkerId};
use echelon_wire::limits::{MAX_COPY_FROM_BYTES, MAX_COPY_TO_BYTES, MAX_INLINE_BYTES};
use echelon_wire::task::{Carrier, TaskPayload};
use echelon_wire::tensor::{DataType, TensorMeta};

use crate::peer::{frame, hello, Parent, Session, PATIENCE, WORKER};

pub(crate) fn alloc_result(nbytes: u64) -> AllocResult {
    AllocResult {
        worker_id: WORKER,
        buffer_id: BufferId(5),
        generation: Generation(1),
        nbytes,
        remote_addr: 99,
        rkey_or_token: 0,
        ub_ldst_va: 0,
    }
}

pub(crate) const BUFFER: BufferKey = BufferKey {
    buffer: BufferId(5),
    generation: Generation(1),
};

fn inline(bytes: Vec<u8>) -> OutboundTensor {
    OutboundTensor {
        meta: TensorMeta::new(&[bytes.len() as u32], DataType::Uint8).unwrap(),
        tag: Tag::Input,
        place: Place::Inline(HostMemory::from_vec(bytes)),
    }
}

/// Answers a single TASK, and hands its payload out.
fn one_task(mut session: Session, check: impl FnOnce(&TaskPayload<'_>)) {
    let _beats = session.beat();
    let task = session.receive().unwrap();
    assert_eq!(
        (task.header.frame_type, task.header.sequence),
        (FrameType::Task, Sequence(1))
    );
    check(&TaskPayload::decode(&task.payload, Carrier::V1).unwrap());
    session.complete(Sequence(1));
    session.drain();
}

#[test]
fn a_task_carries_its_inline_bytes_and_completes() {
    let mut parent = Parent::of(PATIENCE, |session| {
        one_task(session, |task| {
            assert_eq!(task.args.scalars, [1, u64::MAX]);
            assert_eq!(&task.args.inline[..], [1, 2, 3, 9]);
            let second = task.args.sidecars[1].unwrap();
            assert_eq!(task.args.inline_bytes(&second), Some(&[9][..]));
            assert!(task.args.sidecars[2].is_none());
        });
    });
    let empty = OutboundTensor {
        meta: TensorMeta::new(&[0, 7], DataType::Int64).unwrap(),
        tag: Tag::Input,
        place: Place::Empty,
    };
    let report = parent.run(&[inline(vec![1, 2, 3]), inline(vec![9]), empty]);
    assert!(report.failure.is_none());
    assert_eq!((report.start_ns, report.end_ns), (None, None));
}

#[test]
fn tasks_that_cannot_be_expressed_are_refused_and_nothing_is_sent() {
    let mut parent = Parent::of(PATIENCE, |session| {
        one_task(session, |task| assert!(task.args.tensors.is_empty()));
    });
    let region = SharedRegion::create_memfd(64, true).unwrap();
    let local = OutboundTensor {
        place: Place::Shared {
            region,
            offset: 0,
            lease: None,
        },
        ..inline(vec![0; 8])
    };
    let half = inline(vec![0; MAX_INLINE_BYTES as usize / 2 + 1]);
    for (tensors, hint) in [
        (vec![half.clone(), half], "limit 1048576; use remote_malloc"),
        (vec![local], "remote_malloc"),
    ] {
        match parent.submit(&tensors).unwrap_err() {
            SubmitError::Refused(text) => assert!(text.contains(hint), "{text}"),
            SubmitError::Gone(gone) => panic!("{gone}"),
        }
    }
    // The sequence still is 1: see `one_task`.
    assert!(parent.run(&[]).failure.is_none());
}

#[test]
fn a_failure_comes_back_as_text_and_the_session_goes_on() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        let payload = Completion::failure(Sequence(1), "Traceback …\nValueError: für").to_bytes();
        session.send(&frame(
            FrameType::Completion,
            Sequence(1),
            &payload.unwrap(),
        ));
        session.receive().unwrap();
        session.complete(Sequence(2));
        session.drain();
    });
    assert_eq!(
        parent.run(&[]).failure.unwrap().message,
        "Traceback …\nValueError: für"
    );
    assert!(parent.run(&[]).failure.is_none());
}

#[test]
fn allocate_copy_there_and_back_and_free() {
    let data: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
    let sent = data.clone();
    let mut parent = Parent::of(PATIENCE, move |mut session| {
        let _beats = session.beat();
        let mut stored = Vec::new();
        while let Some(got) = session.receive() {
            let control = Control::decode_with(&got.payload, Features::NONE).unwrap();
            let result = match control.name {
                ControlName::AllocRemoteBuffer => {
                    let asked = AllocCommand::decode(&control.command).unwrap().nbytes;
                    alloc_result(asked).to_bytes().unwrap()
                }
                ControlName::CopyToRemote => {
                    stored = control.command[36..].to_vec();
                    Vec::new()
                }
                ControlName::CopyFromRemote => stored.clone(),
                ControlName::FreeRemoteBuffer => Vec::new(),
                other => panic!("{other:?}"),
            };
            session.reply(got.header.sequence, control.name, &result);
        }
        assert!(stored == sent);
    });
    let made = parent
        .control(ControlRequest::Alloc { nbytes: 200_000 })
        .unwrap();
    assert!(matches!(
        made,
        ControlReply::Allocated {
            buffer: BUFFER,
            remote_addr: 99,
            rkey: 0
        }
    ));
    let source = HostMemory::from_vec(data.clone());
    parent
        .control(ControlRequest::CopyTo {
            buffer: BUFFER,
            offset: 0,
            source,
        })
        .unwrap();
    let destination = HostMemory::from_vec(vec![0; data.len()]);
    let copy = ControlRequest::CopyFrom {
        buffer: BUFFER,
        offset: 0,
        destination: destination.clone(),
    };
    parent.control(copy).unwrap();
    assert!(destination.to_vec() == data);
    parent
        .control(ControlRequest::Free { buffer: BUFFER })
        .unwrap();
}

#[test]
fn a_copy_is_one_frame_as_far_as_a_frame_holds_it_and_several_beyond() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        let (mut to, mut from) = (Vec::new(), Vec::new());
        while to.len() + from.len() < 6 {
            let got = session.receive().unwrap();
            let control = Control::decode(&got.payload).unwrap();
            if control.name == ControlName::CopyToRemote {
                let copy = CopyTo::decode(&control.command).unwrap();
                assert_eq!(copy.header.size, copy.data.len() as u64);
                to.push((copy.header.offset, copy.header.size));
                session.reply(got.header.sequence, control.name, &[]);
            } else {
                let copy = CopyHeader::decode(&control.command).unwrap();
                from.push((copy.offset, copy.size));
                let result = vec![3; copy.size as usize];
                session.reply(got.header.sequence, control.name, &result);
            }
        }
        let parts = |most: u64| vec![(5, most), (5, most), (5 + most, 1)];
        assert_eq!(to, parts(MAX_COPY_TO_BYTES));
        assert_eq!(from, parts(MAX_COPY_FROM_BYTES));
        session.drain();
    });
    for nbytes in [MAX_COPY_TO_BYTES, MAX_COPY_TO_BYTES + 1] {
        let outcome = parent.control(ControlRequest::CopyTo {
            buffer: BUFFER,
            offset: 5,
            source: HostMemory::from_vec(vec![1; nbytes as usize]),
        });
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    for nbytes in [MAX_COPY_FROM_BYTES, MAX_COPY_FROM_BYTES + 1] {
        let destination = HostMemory::from_vec(vec![0; nbytes as usize]);
        let outcome = parent.control(ControlRequest::CopyFrom {
            buffer: BUFFER,
            offset: 5,
            destination: destination.clone(),
        });
        assert!(outcome.is_ok(), "{outcome:?}");
        assert!(destination.to_vec().iter().all(|byte| *byte == 3));
    }
}

#[test]
fn a_refused_control_is_an_error_and_the_session_goes_on() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        let refusal =
            ReplyFrame::failure(Sequence(1), ControlName::AllocRemoteBuffer, 1, "no room");
        let payload = refusal.to_bytes().unwrap();
        session.send(&frame(FrameType::ControlReply, Sequence(1), &payload));
        session.receive().unwrap();
        session.complete(Sequence(2));
        session.drain();
    });
    let refused = parent.control(ControlRequest::Alloc { nbytes: 8 });
    assert!(matches!(refused, Err(ControlFailure::Refused(text)) if text == "no room"));
    assert!(parent.run(&[]).failure.is_none());
    let unsupported = parent.control(ControlRequest::CollectTrace);
    assert!(
        matches!(unsupported, Err(ControlFailure::Unsupported { worker, .. }) if worker == "remote3")
    );
}

#[test]
fn accepted_extensions_are_used() {
    let offered = Features::TIMED_COMPLETION.bits();
    let extended = Hello {
        feature_flags: offered,
        ..hello()
    };
    let mut parent = Parent::with_hello(PATIENCE, extended, |mut session| {
        let offers = &session.manifest.feature_flags;
        assert!(offers.contains(&"timed_completion".to_owned()));
        let _beats = session.beat();
        session.receive().unwrap();
        let done = TimedCompletion {
            sequence: Sequence(1),
            error_code: 0,
            failure_kind: echelon_wire::frame::FailureKind::None,
            start_ns: 10,
            end_ns: 20,
            error_message: "".into(),
            result: Vec::new().into(),
        };
        let payload = done.to_bytes().unwrap();
        session.send(&frame(FrameType::TimedCompletion, Sequence(1), &payload));
        session.receive().unwrap();
        session.reply(Sequence(2), ControlName::CollectTrace, b"[]");
        session.drain();
    });
    let report = parent.run(&[]);
    assert_eq!((report.start_ns, report.end_ns), (Some(10), Some(20)));
    let trace = parent.control(ControlRequest::CollectTrace).unwrap();
    assert!(matches!(trace, ControlReply::Trace(bytes) if bytes == b"[]"));
}

#[test]
fn requests_wait_for_their_turn_and_keep_their_order() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        for sequence in 1..=50 {
            let got = session.receive().unwrap();
            assert_eq!(got.header.sequence, Sequence(sequence));
            // One in flight: nothing more may have been sent.
            session.command.set_nonblocking(true).unwrap();
            assert!(session.command.peek(&mut [0]).is_err());
            session.command.set_nonblocking(false).unwrap();
            session.complete(Sequence(sequence));
        }
        session.drain();
    });
    let tickets: Vec<_> = (0..50).map(|_| parent.submit(&[]).unwrap()).collect();
    for wanted in tickets {
        match parent.event() {
            echelon_runtime::endpoint::EndpointEvent::Done { ticket, .. } => {
                assert_eq!(ticket, wanted);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What the parent relies on in a result must be what it asked for.
pub(crate) fn wrong_alloc_results() -> Vec<AllocResult> {
    let right = alloc_result(64);
    vec![
        AllocResult {
            worker_id: WorkerId(4),
            ..right
        },
        AllocResult {
            nbytes: 63,
            ..right
        },
    ]
}

/// tags travel in the descriptors of a session that accepted `task_tags`, and in no other.
#[test]
fn r_109_tags_travel_when_they_were_accepted() {
    for features in [Features::NONE, Features::TASK_TAGS] {
        let carrier = Carrier::Wire(features);
        let hello = Hello {
            feature_flags: features.bits(),
            ..hello()
        };
        let mut parent = Parent::with_hello(PATIENCE, hello, move |mut session| {
            let _beats = session.beat();
            let task = session.receive().unwrap();
            let task_args = TaskPayload::decode(&task.payload, carrier).unwrap().args;
            let flags: Vec<Option<u64>> = task_args
                .sidecars
                .iter()
                .map(|desc| desc.map(|desc| desc.flags))
                .collect();
            let tag = |code: u64| Some(if features.is_empty() { 0 } else { 8 | code });
            assert_eq!(
                flags,
                [tag(0), tag(0), tag(1), tag(2), tag(3), tag(4), None]
            );
            session.complete(Sequence(1));
            session.drain();
        });
        let mut tensors = vec![inline(vec![1; 8])];
        tensors.extend(Tag::ALL.map(|tag| OutboundTensor {
            tag,
            place: Place::Remote(RemoteTensorDesc::remote_device(
                WORKER,
                BufferId(5),
                Generation(1),
                0,
                8,
            )),
            ..inline(vec![0; 8])
        }));
        tensors.push(OutboundTensor {
            meta: TensorMeta::new(&[0], DataType::Uint8).unwrap(),
            tag: Tag::Output,
            place: Place::Empty,
        });
        assert!(parent.run(&tensors).failure.is_none());
    }
}
