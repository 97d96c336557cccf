//! Ends: in order, by force, and what is left.

use std::time::{Duration, Instant};

use echelon_runtime::endpoint::{Endpoint, EndpointEvent, SubmitError};
use echelon_wire::frame::FrameType;
use echelon_wire::id::Sequence;

use crate::peer::{Parent, PATIENCE};

/// SHUTDOWN with the next sequence, then the end of the stream; `finish_close` waits for the session.
#[test]
fn r_240_shutdown_then_the_end() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let beats = session.beat();
        session.receive().unwrap();
        session.complete(Sequence(1));
        let last = session.receive().unwrap();
        assert_eq!(
            (last.header.frame_type, last.header.sequence),
            (FrameType::Shutdown, Sequence(2))
        );
        assert!(last.payload.is_empty());
        assert!(session.receive().is_none());
        // Both lanes end when the session does.
        drop(beats);
    });
    assert!(parent.run(&[]).failure.is_none());
    parent.endpoint.begin_close();
    assert!(matches!(parent.submit(&[]), Err(SubmitError::Gone(_))));
    parent
        .endpoint
        .finish_close(Instant::now() + PATIENCE)
        .unwrap();
    assert_eq!(parent.lost(), "it was closed");
    parent.end_session();
}

/// A task that ends after the close began still says how.
#[test]
fn an_answer_during_the_close_is_delivered() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        assert_eq!(
            session.receive().unwrap().header.frame_type,
            FrameType::Shutdown
        );
        session.complete(Sequence(1));
    });
    parent.submit(&[]).unwrap();
    parent.endpoint.begin_close();
    assert!(matches!(parent.event(), EndpointEvent::Done { .. }));
    parent
        .endpoint
        .finish_close(Instant::now() + PATIENCE)
        .unwrap();
}

/// a session that ignores SHUTDOWN does not keep the close from ending.
#[test]
fn r_240_a_session_that_does_not_end() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        session.drain();
        // It read the end, and still holds the lane until the parent has gone.
        let _ = std::io::copy(&mut session.health, &mut std::io::sink());
    });
    parent.endpoint.begin_close();
    parent
        .endpoint
        .finish_close(Instant::now() + Duration::from_millis(200))
        .unwrap();
    assert_eq!(parent.lost(), "it was closed and did not end in time");
}

#[test]
fn killing_it_ends_the_work_at_once() {
    let mut parent = Parent::of(PATIENCE, |mut session| {
        let _beats = session.beat();
        session.receive().unwrap();
        session.drain();
    });
    parent.submit(&[]).unwrap();
    parent.endpoint.kill("the run was interrupted");
    parent.lost_for_good("the run was interrupted");
}

#[test]
fn closing_twice_and_after_a_loss() {
    let mut parent = Parent::of(PATIENCE, drop);
    let _ = parent.lost();
    for _ in 0..2 {
        parent.endpoint.begin_close();
        parent
            .endpoint
            .finish_close(Instant::now() + PATIENCE)
            .unwrap();
    }
}
