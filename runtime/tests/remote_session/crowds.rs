//! Many requests in flight, and waiters that read the lane themselves.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_runtime::endpoint::{Endpoint, EndpointEvent, OutboundTensor, Place, SubmitError};
use echelon_runtime::mailbox::Bell;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::Tag;
use echelon_wire::codec::Encode;
use echelon_wire::frame::{Completion, Credits, Features, FrameType, Hello};
use echelon_wire::id::Sequence;
use echelon_wire::tensor::{DataType, TensorMeta};

use crate::peer::{frame, hello, Parent, Session, PATIENCE};

const MANY: u64 = 64;

/// A session with room for many requests.
fn roomy(timeout: Duration, script: impl FnOnce(Session) + Send + 'static) -> Parent {
    let pipelined = Hello {
        feature_flags: Features::PIPELINING.bits(),
        ..hello()
    };
    let credits = Credits {
        max_commands: 128,
        max_bytes: 1 << 30,
        max_frame_bytes: 16 << 20,
    };
    Parent::with_credits(timeout, pipelined, Some(credits), script)
}

fn completion(sequence: u64) -> Vec<u8> {
    let sequence = Sequence(sequence);
    let payload = Completion::success(sequence).to_bytes().unwrap();
    frame(FrameType::Completion, sequence, &payload)
}

/// What the parent makes of `answers`, given after all requests came, in pieces of these sizes: tickets that were completed in
/// order, then the reason of a loss if there was one.
fn outcome(answers: Vec<u8>, pieces: &'static [usize]) -> (u64, Option<String>) {
    let mut parent = roomy(PATIENCE, move |mut session| {
        let _beats = session.beat();
        for sequence in 1..=MANY {
            assert_eq!(
                session.receive().unwrap().header.sequence,
                Sequence(sequence)
            );
        }
        let mut rest = answers.as_slice();
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*piece));
            let sent = session
                .command
                .write_all(now)
                .and_then(|()| session.command.flush());
            if now.is_empty() || sent.is_err() {
                break;
            }
            rest = later;
        }
        session.drain();
    });
    let tickets: Vec<_> = (0..MANY).map(|_| parent.submit(&[]).unwrap()).collect();
    for (done, wanted) in (0..).zip(tickets) {
        match parent.event() {
            EndpointEvent::Done { ticket, report } => {
                assert_eq!(ticket, wanted);
                assert!(report.failure.is_none());
            }
            EndpointEvent::Lost { reason, .. } => {
                assert!(parent.endpoint.poll_event().is_none(), "told once");
                return (done, Some(reason));
            }
            other => panic!("{other:?}"),
        }
    }
    (MANY, None)
}

/// answers of many requests, however they are cut.
#[test]
fn r_060_a_crowd_of_answers_arrives_whole() {
    let all: Vec<u8> = (1..=MANY).flat_map(completion).collect();
    for pieces in [&[usize::MAX][..], &[1][..], &[39, 41, 57][..], &[4096][..]] {
        assert_eq!(outcome(all.clone(), pieces), (MANY, None));
    }
}

/// a lane that ends amid many requests: what was answered was answered, and the loss is told once.
#[test]
fn r_084_a_lane_that_ends_amid_many_requests() {
    // Nothing, some of them, some and a part of the next.
    for (whole, part) in [(0, 0), (20, 0), (20, 17), (20, 47)] {
        let mut parent = roomy(PATIENCE, move |mut session| {
            let _beats = session.beat();
            for _ in 0..MANY {
                session.receive().unwrap();
            }
            let mut bytes: Vec<u8> = (1..=whole).flat_map(completion).collect();
            bytes.extend_from_slice(&completion(whole + 1)[..part]);
            session.send(&bytes);
            // Its command lane ends; the health lane, which would end it at any time, goes on.
            session.command.shutdown(std::net::Shutdown::Write).unwrap();
            session.drain();
        });
        for _ in 0..MANY {
            parent.submit(&[]).unwrap();
        }
        for _ in 0..whole {
            assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
        }
        parent.lost_for_good("");
    }
}

/// more answers than there were requests, in one write with the good ones.
#[test]
fn r_071_a_flood_of_answers_ends_the_session_only() {
    let flood: Vec<u8> = (1..=10_000).flat_map(completion).collect();
    let mut parent = roomy(PATIENCE, move |mut session| {
        let _beats = session.beat();
        for _ in 0..MANY {
            session.receive().unwrap();
        }
        session.send(&flood);
        session.drain();
    });
    for _ in 0..MANY {
        parent.submit(&[]).unwrap();
    }
    let answered = std::iter::from_fn(|| match parent.event() {
        EndpointEvent::Done { .. } => Some(()),
        EndpointEvent::Lost { reason, .. } => {
            assert!(reason.contains("Completion"), "{reason}");
            None
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(answered.count() as u64, MANY);
    parent.end_session();
}

fn block(len: usize) -> OutboundTensor {
    let meta = TensorMeta::new(&[len as u32], DataType::Uint8).unwrap();
    OutboundTensor {
        meta,
        tag: Tag::Input,
        place: Place::Inline(HostMemory::from_bytes(vec![7; len].into())),
    }
}

/// a session that stops reading: nobody who submits is held up, and the write's own bound ends it, although HEALTH comes.
#[test]
fn r_058_a_session_that_reads_nothing_of_a_crowd() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let mut parent = roomy(Duration::from_secs(1), move |session| {
        let _beats = session.beat();
        // Until the parent has given up: nothing is read.
        let _ = released.recv_timeout(PATIENCE);
    });
    let large = [block(512 << 10)];
    for at in 0..2 * MANY {
        // Small ones between them, so that what waits for company is there too.
        let tensors = if at % 2 == 0 { &[][..] } else { &large };
        match parent.submit(tensors) {
            Ok(_) => {}
            // It was lost meanwhile, which is what is waited for.
            Err(SubmitError::Gone(_)) => break,
            Err(other) => panic!("{other}"),
        }
    }
    let reason = parent.lost();
    assert!(
        reason.contains("took no bytes") || reason.contains("broke"),
        "{reason}"
    );
    release.send(()).unwrap();
}

/// Waits as a thread inside `run` does: reads the lane itself.
fn wait_at(bell: &Bell, parent: &mut Parent) -> EndpointEvent {
    let by = Instant::now() + PATIENCE;
    loop {
        let seen = bell.seen();
        if let Some(event) = parent.endpoint.poll_event() {
            return event;
        }
        assert!(Instant::now() < by, "no event");
        let _rung = bell.wait_beside(seen, by, false);
    }
}

/// A waiter that reads gets each answer, and a loss that only the health lane shows ends its sleep.
#[test]
fn r_057_a_waiter_that_reads_hears_of_the_health_lane() {
    let mut parent = roomy(PATIENCE, |mut session| {
        let beats = session.beat();
        for sequence in 1..=10 {
            session.receive().unwrap();
            session.send(&completion(sequence));
        }
        session.receive().unwrap();
        // The command lane stays as it is: nothing comes there.
        drop(beats);
        session.health.shutdown(std::net::Shutdown::Both).unwrap();
        session.drain();
    });
    let bell = Bell::create().unwrap();
    bell.add_source(parent.endpoint.source()).unwrap();
    for _ in 0..10 {
        parent.submit(&[]).unwrap();
        assert!(matches!(
            wait_at(&bell, &mut parent),
            EndpointEvent::Done { .. }
        ));
    }
    parent.submit(&[]).unwrap();
    let began = Instant::now();
    match wait_at(&bell, &mut parent) {
        EndpointEvent::Lost { reason, .. } => assert!(reason.contains("health"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(
        began.elapsed() < PATIENCE / 2,
        "it was woken, not timed out"
    );
}

/// Two waiters at one lane, one of which only hears the bell: each event reaches one of them, and none is lost.
#[test]
fn r_092_a_follower_takes_over_from_a_leader_that_leaves() {
    let mut parent = roomy(PATIENCE, |mut session| {
        let _beats = session.beat();
        for sequence in 1..=200 {
            session.receive().unwrap();
            session.send(&completion(sequence));
        }
        session.drain();
    });
    let bell = Bell::create().unwrap();
    bell.add_source(parent.endpoint.source()).unwrap();
    let far = Arc::clone(&bell);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    // It leads now and then, and never looks for events.
    let other = std::thread::spawn(move || {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let _rung =
                far.wait_beside(far.seen(), Instant::now() + Duration::from_millis(1), false);
            far.ring();
        }
    });
    for _ in 0..200 {
        parent.submit(&[]).unwrap();
        assert!(matches!(
            wait_at(&bell, &mut parent),
            EndpointEvent::Done { .. }
        ));
    }
    drop(stop);
    other.join().unwrap();
}
