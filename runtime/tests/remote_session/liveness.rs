//! Who is alive, and what may take how long.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use echelon_runtime::endpoint::{ControlRequest, Endpoint, EndpointEvent, Ticket};
use echelon_runtime::memory::HostMemory;
use echelon_wire::codec::Encode;
use echelon_wire::frame::health::health_frame;
use echelon_wire::frame::{encode_frame, Completion, Features, FrameType, Hello};
use echelon_wire::id::{Sequence, SessionId};
use echelon_wire::limits::HEADER_BYTES;

use crate::commands::BUFFER;
use crate::peer::{frame, hello, Parent, PATIENCE, SESSION, WORKER};

const SHORT: Duration = Duration::from_secs(1);

/// longer than every bound, and it completes because HEALTH frames come.
#[test]
fn r_236_a_task_may_take_longer_than_the_session_timeout() {
    let mut parent = Parent::of(SHORT, |mut session| {
        let beats = session.beat();
        session.receive().unwrap();
        beats.last(3 * SHORT);
        session.complete(Sequence(1));
        session.drain();
    });
    assert!(parent.run(&[]).failure.is_none());
}

/// an idle command lane is no failure.
#[test]
fn r_010_an_idle_session_stays_up() {
    let (idle, ready) = channel();
    let mut parent = Parent::of(SHORT, move |mut session| {
        let beats = session.beat();
        beats.last(3 * SHORT);
        idle.send(()).unwrap();
        session.receive().unwrap();
        session.complete(Sequence(1));
        session.drain();
    });
    ready.recv_timeout(PATIENCE).unwrap();
    assert!(parent.run(&[]).failure.is_none());
}

/// the one who waits for a task is told when the health lane falls silent, although the command lane is open.
#[test]
fn r_054_silence_on_the_health_lane_wakes_who_waits_for_a_task() {
    let mut parent = Parent::of(SHORT, |mut session| {
        drop(session.beat());
        session.receive().unwrap();
        session.drain();
    });
    parent.submit(&[]).unwrap();
    parent.lost_for_good("health lane failed: no HEALTH frame");
}

#[test]
fn r_054_the_end_of_the_health_lane_counts_at_once() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        session.receive().unwrap();
        session.health.shutdown(Shutdown::Both).unwrap();
        session.drain();
    });
    parent.submit(&[]).unwrap();
    parent.lost_for_good("health lane failed: the session closed it");
}

#[test]
fn r_070_a_health_frame_of_another_session() {
    for bytes in [
        encode_frame(FrameType::Health, SessionId(8), WORKER, Sequence(1), b"").unwrap(),
        encode_frame(FrameType::Completion, SESSION, WORKER, Sequence(1), b"").unwrap(),
        vec![0; 40],
    ] {
        let parent = Parent::of(PATIENCE, move |mut session| {
            session.health.write_all(&bytes).unwrap();
            session.drain();
        });
        parent.lost_for_good("health lane failed");
    }
}

/// what arrives after the verdict is dropped.
#[test]
fn r_084_a_completion_after_the_loss_is_discarded() {
    let (lost, was_lost) = channel::<()>();
    let mut parent = Parent::of(PATIENCE, move |mut session| {
        session.receive().unwrap();
        session.health.shutdown(Shutdown::Both).unwrap();
        was_lost.recv_timeout(PATIENCE).unwrap();
        session.complete(Sequence(1));
        session.drain();
    });
    parent.submit(&[]).unwrap();
    assert!(matches!(parent.event(), EndpointEvent::Lost { .. }));
    lost.send(()).unwrap();
    parent.end_session();
    assert!(parent.endpoint.poll_event().is_none());
}

/// a control is due, also when the thread slept while the submitter wrote it.
#[test]
fn r_236_a_control_that_is_never_answered() {
    let mut parent = Parent::of(SHORT, |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        session.drain();
    });
    let alloc = ControlRequest::Alloc { nbytes: 8 };
    parent.endpoint.control(Ticket(1), alloc).unwrap();
    parent.lost_for_good("did not answer ALLOC_REMOTE_BUFFER within 1s");
}

/// A control's time begins when it is sent, not when it is queued behind a task.
#[test]
fn r_236_a_control_behind_a_long_task_is_not_late() {
    let mut parent = Parent::of(SHORT, |mut session| {
        let beats = session.beat();
        session.receive().unwrap();
        beats.last(2 * SHORT);
        session.complete(Sequence(1));
        session.receive().unwrap();
        session.reply(
            Sequence(2),
            echelon_wire::frame::ControlName::FreeRemoteBuffer,
            &[],
        );
        session.drain();
    });
    parent.submit(&[]).unwrap();
    let free = ControlRequest::Free { buffer: BUFFER };
    parent.endpoint.control(Ticket(9), free).unwrap();
    assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
    assert!(matches!(
        parent.event(),
        EndpointEvent::ControlDone {
            ticket: Ticket(9),
            result: Ok(_)
        }
    ));
}

/// a healthy session that takes no bytes.
#[test]
fn r_058_a_session_that_stops_reading() {
    let (release, released) = channel::<()>();
    let mut parent = Parent::of(SHORT, move |session| {
        let _beats = session.beat();
        // Until the parent has given up: nothing is read.
        let _ = released.recv_timeout(PATIENCE);
    });
    for ticket in 1..=2 {
        let copy = ControlRequest::CopyTo {
            buffer: BUFFER,
            offset: 0,
            source: HostMemory::from_vec(vec![1; 16_000_000]),
        };
        parent.endpoint.control(Ticket(ticket), copy).unwrap();
    }
    let reason = parent.lost();
    assert!(
        reason.contains("took no bytes") || reason.contains("broke"),
        "{reason}"
    );
    release.send(()).unwrap();
}

/// a frame that drips is refused however steadily it does.
#[test]
fn r_061_a_frame_that_drips() {
    let mut parent = Parent::of(SHORT, |mut session| {
        let beats = session.beat();
        session.receive().unwrap();
        let payload = Completion::success(Sequence(1)).to_bytes().unwrap();
        for byte in frame(FrameType::Completion, Sequence(1), &payload) {
            session.send(&[byte]);
            beats.last(SHORT / 8);
        }
        session.drain();
    });
    parent.submit(&[]).unwrap();
    parent.lost_for_good("begun and not ended");
}

/// `health_echo`: each HEALTH frame comes back with its sequence, also while a task runs; without the extension nothing does.
#[test]
fn health_frames_are_answered_when_that_was_accepted() {
    for features in [Features::NONE, Features::HEALTH_ECHO] {
        let answered = !features.is_empty();
        let hello = Hello {
            feature_flags: features.bits(),
            ..hello()
        };
        let (hand_over, health) = channel();
        let mut parent = Parent::with_hello(PATIENCE, hello, move |mut session| {
            session.receive().unwrap();
            for sequence in [1, 2, 7, u64::MAX] {
                let beat = health_frame(SESSION, WORKER, Sequence(sequence)).unwrap();
                session.health.write_all(&beat).unwrap();
                if answered {
                    let mut answer = [0; HEADER_BYTES];
                    session.health.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, beat);
                }
            }
            session.complete(Sequence(1));
            // Ends in order when it is told to; the parent reads the end of this lane after all that was sent above.
            session.receive().unwrap();
            session.health.shutdown(Shutdown::Write).unwrap();
            hand_over.send(session.health).unwrap();
        });
        assert!(parent.run(&[]).failure.is_none());
        let ended = parent.endpoint.finish_close(Instant::now() + PATIENCE);
        assert_eq!(ended, Ok(()));
        drop(parent);
        // Nothing else came, whatever was sent above.
        let mut rest = Vec::new();
        health.recv().unwrap().read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }
}

/// the stop itself wakes who waits for the lane and the lane's own threads. No bound of this session is shorter than an hour,
/// so nothing else could.
#[test]
fn r_063_a_stop_wakes_the_waiters_by_itself() {
    let mut parent = Parent::of(Duration::from_secs(3600), |mut session| {
        session.receive().unwrap();
        session.drain();
    });
    parent.submit(&[]).unwrap();
    parent.endpoint.kill("told to stop");
    parent.sleep_until_rung();
    assert!(parent.lost().contains("told to stop"));
    let joined = parent.endpoint.finish_close(Instant::now() + PATIENCE);
    assert_eq!(joined, Ok(()), "a thread of the lanes still waits");
}
