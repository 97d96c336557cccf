//! Where a session listens for importers: one thread that accepts, one for each lane, all joined with the port.
//!
//! A lane that was never of use gives way to a new one, then one that is idle: whoever occupies lanes keeps nobody out.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_wire::frame::peer::Refusal;
use echelon_wire::id::Sequence;

use super::fence::Fences;
use super::lane::{refusal, Service, Stage};
use super::link::Link;
use super::{Identity, PeerError, Tickets};
use crate::runner::lifeline::{Lifeline, Verdict};
use crate::runner::listen::{accept, listener_for};

/// Lanes at a time, each with a thread. An importer has one to each owner.
const LANES_MAX: usize = 64;
/// Importers that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener and its threads.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    lifeline: Arc<Lifeline>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Listens on a free port of the session's address.
    pub(super) fn open(
        identity: &Identity,
        tickets: Arc<Tickets>,
        fences: Arc<Fences>,
        lifeline: Arc<Lifeline>,
    ) -> std::io::Result<Self> {
        let listener = listener_for(identity.address, BACKLOG)?;
        let number = listener.local_addr()?.port();
        let mut lanes = Lanes {
            identity: identity.clone(),
            tickets,
            fences,
            lifeline: Arc::clone(&lifeline),
            open: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("peer accept".to_owned())
            .spawn(move || lanes.accept_all(&listener))?;
        Ok(Self {
            number,
            lifeline,
            thread: Some(thread),
        })
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // The port goes with the session; its threads end only with it.
        self.lifeline.end(Verdict::Closed);
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// One lane, as the accepting thread sees it.
struct Lane {
    /// The connection is closed when its thread ends.
    stream: Weak<TcpStream>,
    stage: Arc<Stage>,
    thread: JoinHandle<()>,
}

impl Lane {
    /// Ends the lane. It notices at once, because it waits for nothing but its connection.
    fn end(self) {
        if let Some(stream) = self.stream.upgrade() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = self.thread.join();
    }
}

struct Lanes {
    identity: Identity,
    tickets: Arc<Tickets>,
    fences: Arc<Fences>,
    lifeline: Arc<Lifeline>,
    /// In the order in which they were accepted.
    open: Vec<Lane>,
}

impl Lanes {
    fn accept_all(&mut self, listener: &TcpListener) {
        // Asked each time: with peers that always wait, the listener is always ready.
        while self.lifeline.verdict().is_none() {
            match accept(listener, &self.lifeline, None) {
                Ok(Some(stream)) => self.admit(stream),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "an importer could not be accepted");
                    // Perhaps a lane's descriptor is what it wants.
                    self.make_room();
                    if self.lifeline.wait_for_end(Instant::now() + ACCEPT_PAUSE) {
                        break;
                    }
                }
            }
        }
        for lane in self.open.drain(..) {
            lane.end();
        }
    }

    fn admit(&mut self, stream: TcpStream) {
        self.join_ended();
        if self.open.len() >= LANES_MAX && !self.make_room() {
            return self.turn_away(stream);
        }
        if let Err(error) = self.start(stream) {
            tracing::warn!(%error, "an importer could not be served");
        }
    }

    fn start(&mut self, stream: TcpStream) -> std::io::Result<()> {
        let stream = Arc::new(stream);
        let stage = Arc::new(Stage::new());
        let weak = Arc::downgrade(&stream);
        let listed = self.fences.list(&stream);
        let link = Link::new(stream, Arc::clone(&self.lifeline));
        let (identity, tickets) = (self.identity.clone(), Arc::clone(&self.tickets));
        let seen = Arc::clone(&stage);
        let thread = std::thread::Builder::new()
            .name("peer lane".to_owned())
            .spawn(move || {
                let service = Service {
                    link: &link,
                    session: identity.session,
                    worker: identity.worker,
                    tickets: &tickets,
                    listed: &listed,
                    stage: &seen,
                    limit: identity.limit,
                };
                match service.run() {
                    Ok(()) | Err(PeerError::Closed | PeerError::Ending) => {}
                    Err(error) => tracing::info!(%error, "a peer lane ends"),
                }
            })?;
        self.open.push(Lane {
            stream: weak,
            stage,
            thread,
        });
        Ok(())
    }

    fn join_ended(&mut self) {
        let (ended, open) = self
            .open
            .drain(..)
            .partition(|lane| lane.thread.is_finished());
        self.open = open;
        let ended: Vec<Lane> = ended;
        for lane in ended {
            lane.end();
        }
    }

    /// Ends the oldest lane that was never of use, else the oldest that is idle. False when all are busy.
    fn make_room(&mut self) -> bool {
        let oldest = |stage: u8| self.open.iter().position(|lane| lane.stage.get() == stage);
        let Some(at) = oldest(Stage::UNPROVEN).or_else(|| oldest(Stage::IDLE)) else {
            return false;
        };
        self.open.remove(at).end();
        true
    }

    /// Best effort: an importer that does not get to read it sees its connection closed.
    fn turn_away(&self, stream: TcpStream) {
        let text =
            format!("{LANES_MAX} importers are being served, limit {LANES_MAX}; try again later");
        let (session, worker) = (self.identity.session, self.identity.worker);
        let link = Link::new(Arc::new(stream), Arc::clone(&self.lifeline));
        if let Ok(frame) = refusal(session, worker, Sequence(0), Refusal::Busy, &text) {
            // A fresh connection takes that much at once, and is not waited for.
            let _ = link.write(&frame, false, Instant::now());
        }
    }
}
