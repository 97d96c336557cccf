//! Bytes between sessions on different hosts (extension `peer_fetch`; design §7, `docs/protocol.md`).
//!
//! * as an owner: `tickets` says what importers may do, `port` listens for them and owns their threads, `lane` serves one;
//! * as an importer: `client` reads from and writes to owners, `transfers` says what a task needs before and after it;
//! * both: `link` is one connection.
//!
//! A request is checked against its ticket when it is carried out, and keeps the memory alive that it works on: freeing a buffer
//! waits for nobody, and what was being transferred is refused at the next request.

mod client;
mod fence;
mod lane;
mod link;
mod port;
mod tickets;
mod transfers;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use echelon_runtime::memory::MemoryError;
use echelon_wire::bootstrap::Manifest;
use echelon_wire::error::{DecodeError, EncodeError};
use echelon_wire::frame::peer::Refusal;
use echelon_wire::id::{SessionId, WorkerId};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::runner::lifeline::Lifeline;
use client::Client;
pub(crate) use client::Source;
use fence::{Fences, Mark};
use port::Port;
pub use tickets::TicketError;
pub(crate) use tickets::{Tickets, Window};
pub(crate) use transfers::{Fetched, Transfers, Use};

/// Why a transfer between sessions ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// The other side closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The connection failed.
    #[error("{0}")]
    Broken(std::io::Error),
    /// A frame took too long.
    #[error("no progress in time")]
    Late,
    /// This session ends.
    #[error("this session ends")]
    Ending,
    /// The owner refused.
    #[error("refused ({reason:?}): {message}")]
    Refused {
        /// Which check.
        reason: Refusal,
        /// In its words.
        message: String,
    },
    /// What came is no answer to what was asked.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// Ours is no request; a bug.
    #[error("{0}")]
    Encode(#[from] EncodeError),
    /// An answer out of turn.
    #[error("the answer is a {got:?} frame with {payload_bytes} bytes and sequence {sequence}, which was not asked for")]
    Unexpected {
        /// Its type.
        got: echelon_wire::frame::FrameType,
        /// Its payload.
        payload_bytes: u32,
        /// Its sequence.
        sequence: u64,
    },
    /// The importer was given up by the parent.
    #[error("the importer was given up, and its requests are not served any more")]
    Fenced,
    /// Mapped memory.
    #[error("{0}")]
    Memory(MemoryError),
}

impl From<Errno> for PeerError {
    fn from(errno: Errno) -> Self {
        Self::Broken(errno.into())
    }
}

/// What a session needs to know of itself to deal with others.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) session: SessionId,
    pub(crate) worker: WorkerId,
    /// Where it listens.
    pub(crate) address: Ipv4Addr,
    /// Where importers reach it.
    pub(crate) connect_host: String,
    /// How long a frame may take on its way.
    pub(crate) limit: Duration,
}

impl Identity {
    pub(crate) fn of(manifest: &Manifest, address: Ipv4Addr) -> Self {
        Self {
            session: manifest.session(),
            worker: manifest.worker(),
            address,
            connect_host: manifest.effective_connect_host().to_owned(),
            limit: manifest.session_timeout(),
        }
    }
}

/// Where importers reach this session.
#[derive(Debug, Clone)]
pub(crate) struct Reachable {
    pub(crate) session: SessionId,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A session's dealings with other sessions, in both roles.
#[derive(Debug)]
pub(crate) struct Peers {
    identity: Identity,
    lifeline: Arc<Lifeline>,
    tickets: Arc<Tickets>,
    fences: Arc<Fences>,
    port: Mutex<Option<Port>>,
    client: Client,
}

impl Peers {
    pub(crate) fn new(identity: Identity, lifeline: Arc<Lifeline>) -> Self {
        let client = Client::new(
            Arc::clone(&lifeline),
            Mark::of(identity.session),
            identity.limit,
        );
        Self {
            identity,
            lifeline,
            tickets: Arc::default(),
            fences: Arc::default(),
            port: Mutex::new(None),
            client,
        }
    }

    /// What importers may do.
    pub(crate) fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// Answers when nothing that an importer sent before is being carried out any more. `lasting`: it is never served again.
    ///
    /// # Errors
    /// As [`Fences::raise`].
    pub(crate) fn keep_away(&self, importer: SessionId, lasting: bool) -> Result<(), String> {
        self.fences.raise(importer, lasting, self.identity.limit)
    }

    /// An import was released: the lane to its owner is closed. Others of the same owner dial again.
    pub(crate) fn forget(&self, source: &Source) {
        self.client.forget(source);
    }

    /// Where importers reach this session; the first call begins to listen.
    ///
    /// # Errors
    /// What the system says to a listener or its thread.
    pub(crate) fn reachable(&self) -> std::io::Result<Reachable> {
        let mut port = self.port.lock();
        let number = match &*port {
            Some(port) => port.number(),
            None => {
                let opened = Port::open(
                    &self.identity,
                    Arc::clone(&self.tickets),
                    Arc::clone(&self.fences),
                    Arc::clone(&self.lifeline),
                )?;
                port.insert(opened).number()
            }
        };
        Ok(Reachable {
            session: self.identity.session,
            host: self.identity.connect_host.clone(),
            port: number,
        })
    }
}

#[cfg(test)]
mod tests;
