//! One connection between two sessions: whole frames with a deadline each, bytes straight between socket and mapped memory.

use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use echelon_runtime::memory::{HostMemory, MemoryError};
use echelon_wire::frame::{Features, FrameHeader};
use echelon_wire::limits::HEADER_BYTES;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{sockopt, AddressFamily, SocketFlags, SocketType};

use super::PeerError;
use crate::runner::lifeline::{Lifeline, Woken};
use crate::runner::listen::prepare;

/// A connection; every wait on it ends with its deadline and with the session.
#[derive(Debug)]
pub(super) struct Link {
    stream: Arc<TcpStream>,
    lifeline: Arc<Lifeline>,
}

impl Link {
    pub(super) fn new(stream: Arc<TcpStream>, lifeline: Arc<Lifeline>) -> Self {
        Self { stream, lifeline }
    }

    /// Connects to an owner.
    pub(super) fn dial(
        address: SocketAddrV4,
        lifeline: Arc<Lifeline>,
        deadline: Instant,
    ) -> Result<Self, PeerError> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let family = AddressFamily::INET;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let dialled = rustix::net::connect(&socket, &address);
        let link = Self::new(Arc::new(TcpStream::from(socket)), lifeline);
        match dialled {
            Ok(()) => {}
            // EINTR: the attempt goes on in the background, as with EINPROGRESS.
            Err(Errno::INPROGRESS | Errno::INTR) => {
                link.wait(PollFlags::OUT, deadline)?;
                sockopt::socket_error(&*link.stream)??;
            }
            Err(errno) => return Err(errno.into()),
        }
        prepare(&link.stream).map_err(PeerError::Broken)?;
        Ok(link)
    }

    /// Waits until there is something to read, or the end of the stream.
    pub(super) fn wait_readable(&self, deadline: Instant) -> Result<(), PeerError> {
        self.wait(PollFlags::IN, deadline)
    }

    /// True when the other side has closed it, or sent what nobody asked for: not to be used again.
    pub(super) fn is_spent(&self) -> bool {
        let mut byte = [0];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        !matches!(
            rustix::net::recv(&*self.stream, &mut byte, flags),
            Err(Errno::AGAIN | Errno::INTR)
        )
    }

    /// Reads a frame's header. Nothing of its payload is taken.
    pub(super) fn read_header(&self, deadline: Instant) -> Result<FrameHeader, PeerError> {
        let mut bytes = [0; HEADER_BYTES];
        self.read(&mut bytes, deadline)?;
        Ok(FrameHeader::decode_with(&bytes, Features::PEER_FETCH)?)
    }

    /// Fills `into`.
    pub(super) fn read(&self, into: &mut [u8], deadline: Instant) -> Result<(), PeerError> {
        let mut rest = into;
        while !rest.is_empty() {
            let flags = rustix::net::RecvFlags::empty();
            let step = rustix::net::recv(&*self.stream, &mut *rest, flags).map(|(count, _)| count);
            let count = self.moved(step, PollFlags::IN, deadline)?;
            rest = rest.split_at_mut(count).1;
        }
        Ok(())
    }

    /// Fills all of `into` from the socket, without a copy.
    pub(super) fn read_memory(
        &self,
        into: &HostMemory,
        deadline: Instant,
    ) -> Result<(), PeerError> {
        let mut done = 0;
        while done < into.len() {
            let step = into.read_from(self.stream.as_fd(), done, into.len() - done);
            done += self.moved(errno(step)?, PollFlags::IN, deadline)?;
        }
        Ok(())
    }

    /// Writes `bytes`. With `more`, what follows at once goes into the same packet.
    pub(super) fn write(
        &self,
        bytes: &[u8],
        more: bool,
        deadline: Instant,
    ) -> Result<(), PeerError> {
        let mut flags = rustix::net::SendFlags::NOSIGNAL;
        flags.set(rustix::net::SendFlags::MORE, more);
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = rustix::net::send(&*self.stream, rest, flags);
            let count = self.moved(step, PollFlags::OUT, deadline)?;
            rest = rest.split_at(count).1;
        }
        Ok(())
    }

    /// Writes all of `from` to the socket, without a copy.
    pub(super) fn write_memory(
        &self,
        from: &HostMemory,
        deadline: Instant,
    ) -> Result<(), PeerError> {
        let mut done = 0;
        while done < from.len() {
            let step = from.send_to(self.stream.as_fd(), done, from.len() - done);
            done += self.moved(errno(step)?, PollFlags::OUT, deadline)?;
        }
        Ok(())
    }

    /// What one system call moved; waits when it moved nothing because it would have blocked.
    fn moved(
        &self,
        step: Result<usize, Errno>,
        events: PollFlags,
        deadline: Instant,
    ) -> Result<usize, PeerError> {
        match step {
            Ok(0) => Err(PeerError::Closed),
            Ok(count) => Ok(count),
            Err(Errno::INTR) => Ok(0),
            Err(Errno::AGAIN) => self.wait(events, deadline).map(|()| 0),
            Err(errno) => Err(errno.into()),
        }
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), PeerError> {
        match self
            .lifeline
            .wait(self.stream.as_fd(), events, Some(deadline))
        {
            Ok(Woken::Ready) => Ok(()),
            Ok(Woken::Ending) => Err(PeerError::Ending),
            Ok(Woken::Deadline) => Err(PeerError::Late),
            Err(error) => Err(PeerError::Broken(error)),
        }
    }
}

/// What the system said to a copy between socket and memory; our own ranges are checked before.
fn errno(step: Result<usize, MemoryError>) -> Result<Result<usize, Errno>, PeerError> {
    match step {
        Ok(count) => Ok(Ok(count)),
        Err(MemoryError::Os { errno, .. }) => Ok(Err(errno)),
        Err(other) => Err(PeerError::Memory(other)),
    }
}
