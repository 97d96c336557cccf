//! A data lane: bulk bytes between host memory and a session's buffer on a connection of their own (extension `data_lane`).
//!
//! It is a peer lane of the session, with the parent in the importer's place: requests that stand for themselves, each with the ticket of
//! an export that the parent made for itself. Bytes go straight between the socket and where they belong. Several requests are on
//! their way; answers come in order.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::peer::{PeerRange, PeerRefused, Refusal, Ticket};
use echelon_wire::frame::{Features, FrameHeader, FrameType};
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::limits::{
    HEADER_BYTES, MAX_PEER_CHUNK_BYTES, MAX_PEER_MESSAGE_BYTES, PEER_HEAD_BYTES,
};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::channel::{connect, Channel, PlainChannel, Step, Stop, Until};
use crate::endpoint::BufferKey;
use crate::memory::{HostMemory, MemoryError};
use crate::text;

/// Requests on their way: enough that neither side waits for the other, few enough that all answers to writes fit into a socket.
const IN_FLIGHT: usize = 8;

/// How a buffer is reached through its session's data lanes.
#[derive(Clone, Debug)]
pub(super) struct StreamRoute {
    pub(super) address: SocketAddr,
    pub(super) session: SessionId,
    pub(super) worker: WorkerId,
    pub(super) ticket: Ticket,
    pub(super) buffer: BufferKey,
}

/// Why a transfer did not end.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// No byte was moved: there is no connection, or it was closed before it was of use.
    #[error("{0}")]
    Unreachable(String),
    /// The session refused, and wrote nothing of it.
    #[error("{message}")]
    Refused { reason: Refusal, message: String },
    /// The session closed it: it may have done so while it was idle.
    #[error("the data lane was closed: {0}")]
    Closed(String),
    /// It broke in the middle: what the session still writes is not known.
    #[error("the data lane: {0}")]
    Broken(String),
    /// The endpoint ends.
    #[error("it was called off")]
    Cancelled,
}

impl StreamRoute {
    /// The session's own mark: no session imports from itself, so a fence with it ends what the parent sent.
    fn sequence(&self, count: u32) -> Sequence {
        Sequence(self.session.0 << 32 | u64::from(count))
    }
}

fn broken(error: impl std::fmt::Display) -> StreamError {
    StreamError::Broken(error.to_string())
}

/// A connection to a session.
pub(super) struct Stream {
    channel: PlainChannel,
    next: u32,
    limit: Duration,
    cancel: Arc<AtomicBool>,
}

impl Stream {
    pub(super) fn dial(
        address: SocketAddr,
        limit: Duration,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, StreamError> {
        let until = Until::new(Instant::now() + limit).or_cancelled(Arc::clone(&cancel));
        let channel = connect(address, limit, &until);
        let channel = channel.map_err(|error| StreamError::Unreachable(error.to_string()))?;
        Ok(Self {
            channel,
            next: 1,
            limit,
            cancel,
        })
    }

    /// True when the session has closed it: not to be used again.
    pub(super) fn is_spent(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let seen = rustix::net::recv(self.channel.as_fd(), &mut [0], flags);
        !matches!(seen, Err(Errno::AGAIN | Errno::INTR))
    }

    /// Moves all of `memory` to or from `offset` of the buffer.
    pub(super) fn transfer(
        &mut self,
        route: &StreamRoute,
        to_remote: bool,
        offset: u64,
        memory: &HostMemory,
    ) -> Result<(), StreamError> {
        let (step, len) = (MAX_PEER_CHUNK_BYTES as usize, memory.len());
        let (mut asked, mut waiting) = (0, VecDeque::with_capacity(IN_FLIGHT));
        loop {
            while waiting.len() < IN_FLIGHT && asked < len {
                let nbytes = step.min(len - asked);
                let part = memory.slice(asked, nbytes).map_err(broken)?;
                let sequence = route.sequence(self.next);
                self.next = self.next.wrapping_add(1);
                self.request(route, to_remote, sequence, offset + asked as u64, &part)?;
                waiting.push_back((sequence, part));
                asked += nbytes;
            }
            let Some((sequence, part)) = waiting.pop_front() else {
                return Ok(());
            };
            self.answer(route, to_remote, sequence, &part)?;
        }
    }

    fn request(
        &self,
        route: &StreamRoute,
        to_remote: bool,
        sequence: Sequence,
        offset: u64,
        part: &HostMemory,
    ) -> Result<(), StreamError> {
        let range = PeerRange {
            ticket: route.ticket,
            buffer_id: route.buffer.buffer,
            generation: route.buffer.generation,
            offset,
            // At most the limit, which is a u32.
            nbytes: part.len() as u32,
        };
        let (kind, payload) = if to_remote {
            (FrameType::PeerWrite, range.write_payload_bytes())
        } else {
            (FrameType::PeerRead, PEER_HEAD_BYTES)
        };
        let header = FrameHeader::new(kind, route.session, route.worker, sequence, payload);
        let mut head = header
            .and_then(|header| header.to_array())
            .map_err(broken)?
            .to_vec();
        head.extend(range.to_bytes().map_err(broken)?);
        self.write(&head)?;
        if to_remote {
            self.move_bytes(part, PollFlags::OUT)?;
        }
        Ok(())
    }

    fn answer(
        &self,
        route: &StreamRoute,
        to_remote: bool,
        sequence: Sequence,
        part: &HostMemory,
    ) -> Result<(), StreamError> {
        let mut bytes = [0; HEADER_BYTES];
        self.read(&mut bytes)?;
        let header = FrameHeader::decode_with(&bytes, Features::PEER_FETCH).map_err(broken)?;
        let identity = header.expect_identity(route.session, route.worker);
        identity.map_err(broken)?;
        let (expected, nbytes) = if to_remote {
            (FrameType::PeerDone, 0)
        } else {
            (FrameType::PeerData, part.len() as u32)
        };
        // Reason, length, text.
        let most = 8 + MAX_PEER_MESSAGE_BYTES;
        if header.frame_type == FrameType::PeerRefused && header.payload_bytes <= most {
            let mut payload = vec![0; header.payload_bytes as usize];
            self.read(&mut payload)?;
            let refused = PeerRefused::decode(&payload).map_err(broken)?;
            return Err(StreamError::Refused {
                reason: refused.reason,
                message: text::of_peer(&refused.message),
            });
        }
        if (header.frame_type, header.payload_bytes, header.sequence)
            != (expected, nbytes, sequence)
        {
            return Err(StreamError::Broken(format!(
                "its answer is a {:?} frame with {} bytes and sequence {}, and {expected:?} with {nbytes} bytes and sequence {sequence} \
                 was due",
                header.frame_type, header.payload_bytes, header.sequence
            )));
        }
        if to_remote {
            return Ok(());
        }
        self.move_bytes(part, PollFlags::IN)
    }

    /// Fills `part` from the socket (`IN`), or sends it (`OUT`), without another copy.
    fn move_bytes(&self, part: &HostMemory, way: PollFlags) -> Result<(), StreamError> {
        let (mut done, mut until) = (0, self.until());
        while done < part.len() {
            let (fd, left) = (self.channel.as_fd(), part.len() - done);
            let step = if way == PollFlags::IN {
                part.read_from(fd, done, left)
            } else {
                part.send_to(fd, done, left)
            };
            match step {
                Ok(0) => return Err(closed()),
                Ok(count) => {
                    done += count;
                    until = self.until();
                }
                Err(MemoryError::Os {
                    errno: Errno::INTR, ..
                }) => {}
                Err(MemoryError::Os {
                    errno: Errno::AGAIN,
                    ..
                }) => self.wait(&until, way)?,
                Err(MemoryError::Os { errno, .. }) => return Err(failed(errno.into())),
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }

    fn write(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        let until = self.until();
        while !bytes.is_empty() {
            match self.channel.try_write(&[IoSlice::new(bytes)]) {
                Ok(Step::Moved(count)) => bytes = &bytes[count..],
                Ok(Step::Blocked) => self.wait(&until, PollFlags::OUT)?,
                Ok(Step::Ended) => return Err(closed()),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn read(&self, mut into: &mut [u8]) -> Result<(), StreamError> {
        let until = self.until();
        while !into.is_empty() {
            match self.channel.try_read(into) {
                Ok(Step::Moved(count)) => into = &mut into[count..],
                Ok(Step::Blocked) => self.wait(&until, PollFlags::IN)?,
                Ok(Step::Ended) => return Err(closed()),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Something has to move within the limit; how long all of it takes is up to its size.
    fn until(&self) -> Until {
        Until::new(Instant::now() + self.limit).or_cancelled(Arc::clone(&self.cancel))
    }

    fn wait(&self, until: &Until, way: PollFlags) -> Result<(), StreamError> {
        until
            .wait(self.channel.as_fd(), way)
            .map_err(|stop| match stop {
                Stop::Late => StreamError::Broken(format!("nothing moved for {:?}", self.limit)),
                Stop::Cancelled => StreamError::Cancelled,
            })
    }
}

fn closed() -> StreamError {
    StreamError::Closed("the session ended it".into())
}

fn failed(error: std::io::Error) -> StreamError {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    match error.kind() {
        ConnectionReset | BrokenPipe => StreamError::Closed(error.to_string()),
        _ => broken(error),
    }
}
