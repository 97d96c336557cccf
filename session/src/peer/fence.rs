//! Importers that failed: what they sent before is served no more (extension `peer_fence`).
//!
//! Bytes of a write-back may lie in the owner's sockets when the importer is gone, and the parent goes on with other tasks on the same
//! buffer. Before it does, it asks for a fence: lanes of the importer are closed, and the answer comes when none of them writes.
//! An importer is known by the upper half of the sequences of its requests.

use std::collections::{HashMap, HashSet};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use echelon_wire::id::{Sequence, SessionId};
use parking_lot::{Condvar, Mutex};

use super::PeerError;

/// Importers that are given up for good, in one session.
const GIVEN_UP_MAX: usize = 65_536;

/// What an importer's requests carry of its session: the lower half of its number. 0 is no importer that can be fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mark(u32);

impl Mark {
    pub(super) fn of(session: SessionId) -> Self {
        // The half is what is wanted.
        Self(session.0 as u32)
    }

    fn in_sequence(sequence: Sequence) -> Self {
        Self((sequence.0 >> 32) as u32)
    }

    /// The sequence of the importer's request `count`.
    pub(super) fn sequence(self, count: u32) -> Sequence {
        Sequence(u64::from(self.0) << 32 | u64::from(count))
    }
}

#[derive(Debug)]
struct Lane {
    stream: Weak<TcpStream>,
    mark: Option<Mark>,
    /// Within a request.
    working: bool,
    /// Importers whose requests on this lane came before their fence.
    refused: Vec<Mark>,
}

#[derive(Debug, Default)]
struct State {
    lanes: HashMap<u64, Lane>,
    next: u64,
    given_up: HashSet<Mark>,
}

/// The lanes of a session, and who is kept away.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    state: Mutex<State>,
    changed: Condvar,
}

/// A lane in the list, until it is dropped.
#[derive(Debug)]
pub(super) struct Listed {
    fences: Arc<Fences>,
    number: u64,
}

impl Fences {
    pub(super) fn list(self: &Arc<Self>, stream: &Arc<TcpStream>) -> Listed {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let lane = Lane {
            stream: Arc::downgrade(stream),
            mark: None,
            working: false,
            refused: Vec::new(),
        };
        state.lanes.insert(number, lane);
        Listed {
            fences: Arc::clone(self),
            number,
        }
    }

    /// Ends the lanes of an importer, and waits until none of them is within a request. `lasting`: it gets no other.
    ///
    /// # Errors
    /// In words: that a lane did not end within `limit`, or that there are too many importers.
    pub(crate) fn raise(
        &self,
        importer: SessionId,
        lasting: bool,
        limit: Duration,
    ) -> Result<(), String> {
        let mark = Mark::of(importer);
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        if lasting && !state.given_up.contains(&mark) {
            if state.given_up.len() >= GIVEN_UP_MAX {
                return Err(format!(
                    "RESOURCE_EXHAUSTED: {GIVEN_UP_MAX} importers were given up, limit {GIVEN_UP_MAX}; start a new session"
                ));
            }
            state.given_up.insert(mark);
        }
        for lane in state.lanes.values_mut() {
            if lane.mark.is_none() || lane.mark == Some(mark) {
                lane.refused.push(mark);
            }
            if lane.mark == Some(mark) {
                if let Some(stream) = lane.stream.upgrade() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
        }
        let writes = |state: &State| {
            let mut lanes = state.lanes.values();
            lanes.any(|lane| lane.mark == Some(mark) && lane.working)
        };
        while writes(&state) {
            if self.changed.wait_until(&mut state, deadline).timed_out() && writes(&state) {
                return Err(format!(
                    "a lane of importer {importer} did not end within {limit:?}"
                ));
            }
        }
        Ok(())
    }
}

impl Listed {
    /// A request with this sequence begins; it ends when the result is dropped.
    ///
    /// # Errors
    /// [`PeerError::Fenced`] when its importer was given up.
    pub(super) fn enter(&self, sequence: Sequence) -> Result<Working<'_>, PeerError> {
        let mark = Mark::in_sequence(sequence);
        let mut state = self.fences.state.lock();
        let given_up = state.given_up.contains(&mark);
        let lane = state.lanes.get_mut(&self.number);
        let lane = lane.filter(|lane| !given_up && !lane.refused.contains(&mark));
        let lane = lane.ok_or(PeerError::Fenced)?;
        (lane.mark, lane.working) = (Some(mark), true);
        Ok(Working(self))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.fences.state.lock().lanes.remove(&self.number);
        self.fences.changed.notify_all();
    }
}

/// A request that is carried out.
#[derive(Debug)]
pub(super) struct Working<'a>(&'a Listed);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let Listed { fences, number } = self.0;
        if let Some(lane) = fences.state.lock().lanes.get_mut(number) {
            lane.working = false;
        }
        fences.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::TcpListener;

    const LONG: Duration = Duration::from_secs(60);
    const IMPORTER: SessionId = SessionId(0x1_0000_0007);
    const OTHER: SessionId = SessionId(8);

    fn connection() -> (Arc<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let far = TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let (near, _) = listener.accept().expect("accepts");
        (Arc::new(near), far)
    }

    #[test]
    fn a_fence_waits_for_the_request_that_is_carried_out_and_ends_its_lane() {
        let fences = Arc::new(Fences::default());
        let (near, mut far) = connection();
        let lane = fences.list(&near);
        let working = lane.enter(Mark::of(IMPORTER).sequence(1)).expect("served");
        let (told, raised) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| told.send(fences.raise(IMPORTER, false, LONG)));
            // The lane is closed before the fence waits.
            assert_eq!(far.read(&mut [0]).expect("reads"), 0);
            assert!(raised.try_recv().is_err(), "a request is being carried out");
            drop(working);
            raised.recv_timeout(LONG).expect("answers").expect("raised");
        });
        let again = lane.enter(Mark::of(IMPORTER).sequence(2));
        assert!(matches!(again, Err(PeerError::Fenced)));
        // It may dial again.
        let (near, _far) = connection();
        assert!(fences
            .list(&near)
            .enter(Mark::of(IMPORTER).sequence(1))
            .is_ok());
    }

    #[test]
    fn a_lane_that_has_not_spoken_yet_is_refused_when_it_turns_out_to_be_the_importer_s() {
        let fences = Arc::new(Fences::default());
        let ((one, _one), (two, _two)) = (connection(), connection());
        let (early, other) = (fences.list(&one), fences.list(&two));
        fences.raise(IMPORTER, false, LONG).expect("raised");
        let refused = early.enter(Mark::of(IMPORTER).sequence(1));
        assert!(matches!(refused, Err(PeerError::Fenced)));
        assert!(other.enter(Mark::of(OTHER).sequence(1)).is_ok());
    }

    #[test]
    fn an_importer_that_is_lost_is_never_served_again_and_nobody_else_is_harmed() {
        let fences = Arc::new(Fences::default());
        let ((one, _one), (two, _two)) = (connection(), connection());
        let other = fences.list(&one);
        drop(other.enter(Mark::of(OTHER).sequence(1)).expect("served"));
        fences.raise(IMPORTER, true, LONG).expect("raised");
        let late = fences.list(&two);
        let refused = late.enter(Mark::of(IMPORTER).sequence(1));
        assert!(matches!(refused, Err(PeerError::Fenced)));
        assert!(other.enter(Mark::of(OTHER).sequence(2)).is_ok());
        assert!(late.enter(Sequence(5)).is_ok(), "without a mark");
    }

    #[test]
    fn a_lane_that_does_not_end_is_an_error_within_the_limit() {
        let fences = Arc::new(Fences::default());
        let (near, _far) = connection();
        let lane = fences.list(&near);
        let _working = lane.enter(Mark::of(IMPORTER).sequence(1)).expect("served");
        let raised = fences.raise(IMPORTER, true, Duration::ZERO);
        assert!(raised
            .expect_err("it is still there")
            .contains("did not end"));
    }
}
