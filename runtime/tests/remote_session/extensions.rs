//! A session that negotiated an extension and breaks its rules loses its parent, at once and for good.

use echelon_runtime::endpoint::{
    BufferKey, ControlRequest, Endpoint, EndpointEvent, OutboundTensor, Place, Ticket,
};
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::extensions::configurations;
use echelon_runtime::Tag;
use echelon_wire::buffer::{AccessFlags, AddressSpace, RemoteTensorDesc};
use echelon_wire::codec::Encode;
use echelon_wire::frame::control::transfer::ExportResult;
use echelon_wire::frame::{
    Completion, ControlName, ControlReply, FailureKind, Features, FrameType,
};
use echelon_wire::id::{BufferId, ExportId, Generation, Sequence};
use echelon_wire::tensor::{DataType, TensorMeta};

use crate::commands::BUFFER;
use crate::peer::{completion, frame, Parent, WORKER};

/// The sets with a feature in them.
fn with(feature: Features) -> Vec<Features> {
    let mut sets = configurations();
    sets.retain(|set| set.contains(feature));
    assert!(sets.len() >= 2, "alone, and with all");
    sets
}

/// A session that takes so many requests and then answers with `bytes`.
fn answering(features: Features, requests: usize, bytes: Vec<u8>) -> Parent {
    Parent::over(features, move |mut session| {
        let _beats = session.beat();
        for _ in 0..requests {
            session.receive().unwrap();
        }
        session.send(&bytes);
        session.drain();
    })
}

fn reply(sequence: u64, name: ControlName, result: &[u8]) -> Vec<u8> {
    let payload = ControlReply::success(Sequence(sequence), name, 1, result).to_bytes();
    frame(
        FrameType::ControlReply,
        Sequence(sequence),
        &payload.unwrap(),
    )
}

fn on_buffer() -> OutboundTensor {
    let (buffer, generation) = (BUFFER.buffer, BUFFER.generation);
    OutboundTensor {
        meta: TensorMeta::new(&[8], DataType::Uint8).unwrap(),
        tag: Tag::InOut,
        place: Place::Remote(RemoteTensorDesc::remote_device(
            WORKER, buffer, generation, 0, 8,
        )),
    }
}

fn copy_from(buffer: BufferKey) -> ControlRequest {
    ControlRequest::CopyFrom {
        buffer,
        offset: 0,
        destination: HostMemory::from_vec(vec![0; 8]),
    }
}

/// `pipelining`: answers come in the order of what was asked, once each.
#[test]
fn r_071_an_answer_out_of_its_turn() {
    for features in with(Features::PIPELINING) {
        let done = |sequence| completion(features, Sequence(sequence), FailureKind::None, "");
        // The second first, one that was never asked for, the first twice.
        for (bytes, right) in [
            (done(2), 0),
            (done(9), 0),
            ([done(1), done(1)].concat(), 1),
            ([done(1), done(0)].concat(), 1),
        ] {
            let mut parent = answering(features, 3, bytes);
            for _ in 0..3 {
                parent.submit(&[]).unwrap();
            }
            for _ in 0..right {
                assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
            }
            parent.lost_for_good("answer");
        }
    }
}

/// `concurrent_control`: what concerns a task's buffer comes after the task, and tasks do not overtake each other; without it
/// nothing overtakes.
#[test]
fn r_071_an_answer_that_overtakes_where_it_may_not() {
    for features in with(Features::PIPELINING) {
        let read = reply(2, ControlName::CopyFromRemote, &[0; 8]);
        let mut parent = answering(features, 2, read.clone());
        parent.submit(&[on_buffer()]).unwrap();
        parent
            .endpoint
            .control(Ticket(50), copy_from(BUFFER))
            .unwrap();
        parent.lost_for_good("");

        let other = BufferKey {
            buffer: BufferId(6),
            generation: Generation(1),
        };
        let mut parent = answering(features, 2, read);
        parent.submit(&[on_buffer()]).unwrap();
        parent
            .endpoint
            .control(Ticket(50), copy_from(other))
            .unwrap();
        if features.contains(Features::CONCURRENT_CONTROL) {
            assert!(matches!(parent.event(), EndpointEvent::ControlDone { .. }));
        } else {
            parent.lost_for_good("");
        }
    }
}

/// `timed_completion`: one that contradicts itself, is cut or goes on, and the completion of version 1 in its place.
#[test]
fn r_068_a_timed_completion_that_is_none() {
    let good = |kind| completion(Features::TIMED_COMPLETION, Sequence(1), kind, "text");
    let patched = |kind, at: usize, bytes: &[u8]| {
        let mut frame = good(kind);
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let resized = |len: usize| {
        let payload = &good(FailureKind::Task)[40..];
        let mut payload = payload.to_vec();
        payload.resize(len, 0);
        frame(FrameType::TimedCompletion, Sequence(1), &payload)
    };
    let whole = good(FailureKind::Task).len() - 40;
    let plain = Completion::success(Sequence(1)).to_bytes().unwrap();
    let cases = [
        ("failure_kind", patched(FailureKind::None, 48, &[1])),
        ("failure_kind", patched(FailureKind::Task, 48, &[0])),
        ("failure_kind", patched(FailureKind::Task, 52, &[0])),
        ("failure_kind", patched(FailureKind::Task, 52, &[5])),
        ("end_ns", patched(FailureKind::Task, 56, &[9])),
        ("result", patched(FailureKind::Task, 80, &[255; 4])),
        ("TIMED_COMPLETION", resized(whole - 1)),
        ("TIMED_COMPLETION", resized(whole + 1)),
        ("TIMED_COMPLETION", resized(0)),
        (
            "never gets",
            frame(FrameType::Completion, Sequence(1), &plain),
        ),
    ];
    for features in with(Features::TIMED_COMPLETION) {
        for (because, bytes) in &cases {
            let mut parent = answering(features, 1, bytes.clone());
            parent.submit(&[]).unwrap();
            parent.lost_for_good(because);
        }
    }
}

/// `conditions`: skipped without a reason, and carried out in spite of one.
#[test]
fn r_085_a_session_that_skips_what_it_may_not_or_does_not_skip() {
    for features in with(Features::CONDITIONS) {
        let done = |sequence, kind| completion(features, Sequence(sequence), kind, "text");
        for (because, first, second) in [
            ("skipped", FailureKind::Skipped, FailureKind::None),
            ("skipped", FailureKind::None, FailureKind::Skipped),
            ("carried out", FailureKind::Task, FailureKind::None),
            ("carried out", FailureKind::Endpoint, FailureKind::Task),
        ] {
            let bytes = [done(1, first), done(2, second)].concat();
            let mut parent = answering(features, 2, bytes);
            let named = parent.submit(&[]).unwrap();
            parent.submit_after(&[named]).unwrap();
            if first != FailureKind::Skipped {
                assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
            }
            parent.lost_for_good(because);
        }
        // As it has to be: skipped because of what failed.
        let bytes = [
            done(1, FailureKind::Task),
            done(2, FailureKind::Skipped),
            done(3, FailureKind::None),
        ];
        let mut parent = answering(features, 3, bytes.concat());
        let named = parent.submit(&[]).unwrap();
        let skipped = parent.submit_after(&[named]).unwrap();
        parent.submit(&[]).unwrap();
        assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
        assert!(matches!(parent.event(), EndpointEvent::Skipped { ticket } if ticket == skipped));
        assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
    }
}

/// `peer_fetch`: an export that is not reached as was asked for.
#[test]
fn r_234_an_export_that_names_no_way() {
    for features in with(Features::PEER_FETCH) {
        for (profile, descriptor) in [("sim", &b"psm_1"[..]), ("tcp", b""), ("tcp", b"psm_1")] {
            let export = ExportResult {
                owner_worker_id: WORKER,
                buffer_id: BUFFER.buffer,
                generation: BUFFER.generation,
                address_space: AddressSpace::RemoteWindow,
                offset: 0,
                nbytes: 8,
                export_id: ExportId(1),
                remote_addr: 1,
                rkey_or_token: 1,
                ub_ldst_va: 0,
                access_flags: AccessFlags::READ,
                transport_profile: profile.into(),
                transport_descriptor: descriptor.into(),
            };
            let result = export.to_bytes().unwrap();
            let bytes = reply(1, ControlName::ExportBuffer, &result);
            let mut parent = answering(features, 1, bytes);
            let ask = ControlRequest::Export {
                buffer: BUFFER,
                offset: 0,
                nbytes: 8,
                access: AccessFlags::READ,
            };
            parent.endpoint.control(Ticket(50), ask).unwrap();
            parent.lost_for_good("");
        }
    }
}

/// `peer_fence` has no result, and it is owed like every control's.
#[test]
fn r_071_a_fence_that_says_something() {
    for features in with(Features::PEER_FENCE) {
        for (name, result) in [
            (ControlName::PeerFence, &[0][..]),
            (ControlName::FreeRemoteBuffer, &[]),
        ] {
            let mut parent = answering(features, 1, reply(1, name, result));
            let fence = ControlRequest::Fence {
                buffer: BUFFER,
                importer: 5,
                lasting: true,
            };
            parent.endpoint.control(Ticket(50), fence).unwrap();
            parent.lost_for_good("");
        }
    }
}

/// What is not negotiated is not taken, whatever else is.
#[test]
fn r_068_frames_of_the_lane_between_sessions_are_none_of_the_command_lane() {
    for features in configurations() {
        for kind in [
            FrameType::PeerRead,
            FrameType::PeerData,
            FrameType::PeerDone,
            FrameType::PeerRefused,
            FrameType::Health,
            FrameType::Hello,
        ] {
            let mut parent = answering(features, 1, frame(kind, Sequence(1), &[]));
            parent.submit(&[]).unwrap();
            parent.lost_for_good("the session sent");
        }
    }
}
