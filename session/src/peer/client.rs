//! The importer's side: reads from and writes to owners, a lane to each, many requests on their way.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_runtime::memory::HostMemory;
use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::peer::{PeerRange, PeerRefused, Ticket};
use echelon_wire::frame::{FrameHeader, FrameType};
use echelon_wire::id::{BufferId, Generation, Sequence, SessionId, WorkerId};
use echelon_wire::limits::{MAX_PEER_CHUNK_BYTES, MAX_PEER_MESSAGE_BYTES, PEER_HEAD_BYTES};
use parking_lot::Mutex;

use super::fence::Mark;
use super::lane::unexpected;
use super::link::Link;
use super::PeerError;
use crate::runner::lifeline::Lifeline;

/// Requests on their way. Eight of 1 MiB keep a link of 10 Gbit/s with a round trip of 6 ms full; the answers to eight writes always fit
/// into a socket, so that two sides that only write cannot stop each other.
const IN_FLIGHT: usize = 8;
/// How long an owner may take to accept a connection, at most.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// Lanes that are kept for later; more owners than this are dialled for each task.
const KEPT_MAX: usize = 64;

/// Where the bytes of an import are, and by what right they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) session: SessionId,
    pub(crate) worker: WorkerId,
    pub(crate) address: SocketAddrV4,
    pub(crate) ticket: Ticket,
    pub(crate) buffer: BufferId,
    pub(crate) generation: Generation,
}

/// Bytes to move: those at `offset` of the owner's buffer, and where they are here.
#[derive(Debug)]
pub(super) struct Stretch<'a> {
    pub(super) source: &'a Source,
    pub(super) offset: u64,
    pub(super) memory: HostMemory,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Fetch,
    WriteBack,
}

type OwnerKey = (SessionId, WorkerId, SocketAddrV4);

/// A lane and the number of its next request.
#[derive(Debug)]
struct Dialled {
    link: Link,
    next: u32,
}

/// Lanes to owners.
#[derive(Debug)]
pub(super) struct Client {
    lifeline: Arc<Lifeline>,
    mark: Mark,
    limit: Duration,
    kept: Mutex<HashMap<OwnerKey, Dialled>>,
}

impl Client {
    pub(super) fn new(lifeline: Arc<Lifeline>, mark: Mark, limit: Duration) -> Self {
        Self {
            lifeline,
            mark,
            limit,
            kept: Mutex::default(),
        }
    }

    /// Moves all of `stretches`, which belong to one owner. Moving them again does no harm, so a kept lane that turns out to be
    /// closed is replaced once.
    pub(super) fn transfer(
        &self,
        owner: &Source,
        direction: Direction,
        stretches: &[Stretch<'_>],
    ) -> Result<(), PeerError> {
        let key = (owner.session, owner.worker, owner.address);
        let kept = self.kept.lock().remove(&key);
        if let Some(mut dialled) = kept.filter(|dialled| !dialled.link.is_spent()) {
            match self.exchange(&mut dialled, direction, stretches) {
                Ok(()) => {
                    self.keep(key, dialled);
                    return Ok(());
                }
                Err(PeerError::Closed | PeerError::Broken(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let deadline = Instant::now() + self.limit.min(DIAL_LIMIT);
        let link = Link::dial(owner.address, Arc::clone(&self.lifeline), deadline)?;
        let mut dialled = Dialled { link, next: 1 };
        self.exchange(&mut dialled, direction, stretches)?;
        self.keep(key, dialled);
        Ok(())
    }

    /// Closes the lane to an owner; the next transfer dials again.
    pub(super) fn forget(&self, owner: &Source) {
        let key = (owner.session, owner.worker, owner.address);
        self.kept.lock().remove(&key);
    }

    fn keep(&self, key: OwnerKey, dialled: Dialled) {
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, dialled| !dialled.link.is_spent());
        }
        if kept.len() < KEPT_MAX {
            kept.insert(key, dialled);
        }
    }

    /// Requests as far ahead as allowed, answers in order.
    fn exchange(
        &self,
        dialled: &mut Dialled,
        direction: Direction,
        stretches: &[Stretch<'_>],
    ) -> Result<(), PeerError> {
        let mut chunks = stretches.iter().flat_map(chunks);
        let mut waiting = VecDeque::with_capacity(IN_FLIGHT);
        loop {
            while waiting.len() < IN_FLIGHT {
                let Some(chunk) = chunks.next() else { break };
                let sequence = self.mark.sequence(dialled.next);
                dialled.next = dialled.next.wrapping_add(1);
                let chunk = chunk?;
                self.request(&dialled.link, direction, sequence, &chunk)?;
                waiting.push_back((sequence, chunk));
            }
            let Some((sequence, chunk)) = waiting.pop_front() else {
                return Ok(());
            };
            self.answer(&dialled.link, direction, sequence, &chunk)?;
        }
    }

    fn request(
        &self,
        link: &Link,
        direction: Direction,
        sequence: Sequence,
        chunk: &Chunk<'_>,
    ) -> Result<(), PeerError> {
        let deadline = Instant::now() + self.limit;
        let (source, range) = (chunk.source, &chunk.range);
        let write = direction == Direction::WriteBack;
        let (frame_type, payload) = if write {
            (FrameType::PeerWrite, range.write_payload_bytes())
        } else {
            (FrameType::PeerRead, PEER_HEAD_BYTES)
        };
        let header =
            FrameHeader::new(frame_type, source.session, source.worker, sequence, payload)?;
        let mut head = header.to_array()?.to_vec();
        head.extend(range.to_bytes()?);
        link.write(&head, write, deadline)?;
        if write {
            link.write_memory(&chunk.memory, deadline)?;
        }
        Ok(())
    }

    fn answer(
        &self,
        link: &Link,
        direction: Direction,
        sequence: Sequence,
        chunk: &Chunk<'_>,
    ) -> Result<(), PeerError> {
        let deadline = Instant::now() + self.limit;
        let header = link.read_header(deadline)?;
        header.expect_identity(chunk.source.session, chunk.source.worker)?;
        let (expected, nbytes) = match direction {
            Direction::Fetch => (FrameType::PeerData, chunk.range.nbytes),
            Direction::WriteBack => (FrameType::PeerDone, 0),
        };
        if header.frame_type == FrameType::PeerRefused {
            return Err(read_refusal(link, &header, deadline));
        }
        let as_asked = header.frame_type == expected
            && header.payload_bytes == nbytes
            && header.sequence == sequence;
        if !as_asked {
            return Err(unexpected(&header));
        }
        if direction == Direction::Fetch {
            link.read_memory(&chunk.memory, deadline)?;
        }
        Ok(())
    }
}

fn read_refusal(link: &Link, header: &FrameHeader, deadline: Instant) -> PeerError {
    // Reason, length, text.
    if header.payload_bytes > 8 + MAX_PEER_MESSAGE_BYTES {
        return unexpected(header);
    }
    let mut payload = vec![0; header.payload_bytes as usize];
    if let Err(error) = link.read(&mut payload, deadline) {
        return error;
    }
    match PeerRefused::decode(&payload) {
        Ok(refused) => PeerError::Refused {
            reason: refused.reason,
            message: refused.message.into_owned(),
        },
        Err(error) => error.into(),
    }
}

/// What one request moves.
struct Chunk<'a> {
    source: &'a Source,
    range: PeerRange,
    memory: HostMemory,
}

fn chunks<'a>(stretch: &'a Stretch<'a>) -> impl Iterator<Item = Result<Chunk<'a>, PeerError>> + 'a {
    let step = MAX_PEER_CHUNK_BYTES as usize;
    (0..stretch.memory.len()).step_by(step).map(move |at| {
        let nbytes = step.min(stretch.memory.len() - at);
        let source = stretch.source;
        Ok(Chunk {
            source,
            range: PeerRange {
                ticket: source.ticket,
                buffer_id: source.buffer,
                generation: source.generation,
                offset: stretch.offset + at as u64,
                // At most the limit, which is a u32.
                nbytes: nbytes as u32,
            },
            memory: stretch
                .memory
                .slice(at, nbytes)
                .map_err(PeerError::Memory)?,
        })
    })
}
