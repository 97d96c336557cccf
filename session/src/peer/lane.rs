//! The owner's side of one peer lane: requests in order, an answer each.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use echelon_runtime::memory::HostMemory;
use echelon_wire::buffer::AccessFlags;
use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::peer::{PeerRange, PeerRefused, Refusal};
use echelon_wire::frame::{truncate_utf8, FrameHeader, FrameType};
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::limits::{MAX_PEER_MESSAGE_BYTES, PEER_HEAD_BYTES};

use super::fence::Listed;
use super::link::Link;
use super::{PeerError, Tickets};

/// How long a lane may take until a first request of it was carried out. Whoever only occupies a lane does not have it for long.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a lane may be idle. An importer dials again when it needs to.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a refused write that are taken off the socket at a time.
const DISCARD_BYTES: usize = 16 * 1024;

/// What a lane is doing, for whoever has to make room for another.
#[derive(Debug)]
pub(super) struct Stage(AtomicU8);

impl Stage {
    /// Nothing of it was carried out yet.
    pub(super) const UNPROVEN: u8 = 0;
    /// Between two requests.
    pub(super) const IDLE: u8 = 1;
    /// Within a request.
    pub(super) const BUSY: u8 = 2;

    pub(super) fn new() -> Self {
        Self(AtomicU8::new(Self::UNPROVEN))
    }

    pub(super) fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, stage: u8) {
        self.0.store(stage, Ordering::Relaxed);
    }
}

/// Serves one lane until it ends.
pub(super) struct Service<'a> {
    pub(super) link: &'a Link,
    pub(super) session: SessionId,
    pub(super) worker: WorkerId,
    pub(super) tickets: &'a Tickets,
    pub(super) listed: &'a Listed,
    pub(super) stage: &'a Stage,
    /// How long a frame may take on its way.
    pub(super) limit: Duration,
}

impl Service<'_> {
    /// Answers requests until the importer closes the lane, or breaks it.
    pub(super) fn run(&self) -> Result<(), PeerError> {
        let opened = Instant::now();
        loop {
            let proven = self.stage.get() != Stage::UNPROVEN;
            let until = if proven {
                self.stage.set(Stage::IDLE);
                Instant::now() + IDLE_LIMIT
            } else {
                opened + FIRST_REQUEST_LIMIT
            };
            self.link.wait_readable(until)?;
            // Something to read does not stop the clock: a lane that is only ever refused ends too.
            if Instant::now() > until {
                return Err(PeerError::Late);
            }
            let deadline = if proven {
                self.stage.set(Stage::BUSY);
                Instant::now() + self.limit
            } else {
                until.min(Instant::now() + self.limit)
            };
            if self.serve_one(deadline)? {
                self.stage.set(Stage::BUSY);
            }
        }
    }

    /// One request. True when it was carried out, false when it was refused and the lane goes on.
    fn serve_one(&self, deadline: Instant) -> Result<bool, PeerError> {
        let header = self.link.read_header(deadline)?;
        if let Err(error) = header.expect_identity(self.session, self.worker) {
            self.refuse(header.sequence, Refusal::Identity, &error.to_string())?;
            return Err(error.into());
        }
        let needed = match header.frame_type {
            FrameType::PeerRead => AccessFlags::READ,
            FrameType::PeerWrite => AccessFlags::WRITE,
            _ => return Err(unexpected(&header)),
        };
        // Until the answer is written: a fence waits for it.
        let _working = self.listed.enter(header.sequence)?;
        let range = self.read_range(&header, deadline)?;
        let memory = match self.tickets.admit(&range, needed) {
            Ok(memory) => memory,
            Err((reason, message)) => {
                if needed == AccessFlags::WRITE {
                    self.discard(range.nbytes as usize, deadline)?;
                }
                self.refuse(header.sequence, reason, &message)?;
                return Ok(false);
            }
        };
        if needed == AccessFlags::WRITE {
            self.link.read_memory(&memory, deadline)?;
            self.answer(FrameType::PeerDone, header.sequence, None)?;
        } else {
            self.answer(FrameType::PeerData, header.sequence, Some(&memory))?;
        }
        Ok(true)
    }

    /// The head of a request; its lengths agree with the header's before anything else is read.
    fn read_range(&self, header: &FrameHeader, deadline: Instant) -> Result<PeerRange, PeerError> {
        let payload = header.payload_bytes as usize;
        let write = header.frame_type == FrameType::PeerWrite;
        if payload < PEER_HEAD_BYTES || (!write && payload != PEER_HEAD_BYTES) {
            return Err(unexpected(header));
        }
        let mut head = [0; PEER_HEAD_BYTES];
        self.link.read(&mut head, deadline)?;
        let range = PeerRange::decode(&head)?;
        if write && payload != range.write_payload_bytes() {
            return Err(unexpected(header));
        }
        Ok(range)
    }

    /// Takes the data of a refused write off the lane, so that the next request is found.
    fn discard(&self, mut left: usize, deadline: Instant) -> Result<(), PeerError> {
        let mut scratch = [0; DISCARD_BYTES];
        while left > 0 {
            let step = left.min(scratch.len());
            let (part, _) = scratch.split_at_mut(step);
            self.link.read(part, deadline)?;
            left -= step;
        }
        Ok(())
    }

    fn answer(
        &self,
        frame_type: FrameType,
        sequence: Sequence,
        data: Option<&HostMemory>,
    ) -> Result<(), PeerError> {
        let deadline = Instant::now() + self.limit;
        let nbytes = data.map_or(0, HostMemory::len);
        let header = FrameHeader::new(frame_type, self.session, self.worker, sequence, nbytes)?;
        self.link
            .write(&header.to_array()?, data.is_some(), deadline)?;
        data.map_or(Ok(()), |memory| self.link.write_memory(memory, deadline))
    }

    fn refuse(&self, sequence: Sequence, reason: Refusal, message: &str) -> Result<(), PeerError> {
        let frame = refusal(self.session, self.worker, sequence, reason, message)?;
        self.link.write(&frame, false, Instant::now() + self.limit)
    }
}

/// A whole PEER_REFUSED frame.
pub(super) fn refusal(
    session: SessionId,
    worker: WorkerId,
    sequence: Sequence,
    reason: Refusal,
    message: &str,
) -> Result<Vec<u8>, PeerError> {
    let message = truncate_utf8(message, MAX_PEER_MESSAGE_BYTES as usize).into();
    let payload = PeerRefused { reason, message }.to_bytes()?;
    let kind = FrameType::PeerRefused;
    Ok(echelon_wire::frame::encode_frame(
        kind, session, worker, sequence, &payload,
    )?)
}

/// A frame that has no place where it came.
pub(super) fn unexpected(header: &FrameHeader) -> PeerError {
    PeerError::Unexpected {
        got: header.frame_type,
        payload_bytes: header.payload_bytes,
        sequence: header.sequence.0,
    }
}
