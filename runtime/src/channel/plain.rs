//! Plain TCP: the channel of peers that know only version 1, on loopback (`--insecure-loopback`).

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    recv, sendmsg, sockopt, AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown,
    SocketFlags, SocketType,
};

use super::until::{Stop, Until};
use super::{Channel, Step};

/// A TCP connection that never blocks and sends without delay.
#[derive(Debug)]
pub struct PlainChannel {
    socket: OwnedFd,
    peer: SocketAddr,
}

impl PlainChannel {
    /// Takes a connected socket over. From now on it is non-blocking for life, sends small frames at once
    /// (TCP_NODELAY), and fails when data stays unacknowledged for `unacknowledged` (TCP_USER_TIMEOUT, R-056).
    ///
    /// # Errors
    /// What the kernel says to the options.
    pub fn new(stream: TcpStream, unacknowledged: Duration) -> io::Result<Self> {
        let peer = stream.peer_addr()?;
        stream.set_nonblocking(true)?;
        Self::adopt(stream.into(), peer, unacknowledged)
    }

    fn adopt(socket: OwnedFd, peer: SocketAddr, unacknowledged: Duration) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        // The option counts milliseconds in 32 bits; 0 would mean the system's default.
        let millis = u32::try_from(unacknowledged.as_millis())
            .unwrap_or(u32::MAX)
            .max(1);
        sockopt::set_tcp_user_timeout(&socket, millis)?;
        Ok(Self { socket, peer })
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Channel for PlainChannel {
    fn try_read(&self, into: &mut [u8]) -> io::Result<Step> {
        loop {
            return match recv(&self.socket, &mut *into, RecvFlags::empty()) {
                Ok((0, _)) => Ok(Step::Ended),
                Ok((count, _)) => Ok(Step::Moved(count)),
                Err(Errno::AGAIN) => Ok(Step::Blocked),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<Step> {
        loop {
            return match sendmsg(
                &self.socket,
                parts,
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            ) {
                Ok(0) => Ok(Step::Blocked),
                Ok(count) => Ok(Step::Moved(count)),
                Err(Errno::AGAIN) => Ok(Step::Blocked),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn finish_writing(&self) {
        // It fails only when the connection is gone already, which the reader will see.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }

    fn shutdown(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The deadline passed: the host does not answer.
    #[error("{peer} did not answer in time; is the address right, and does a firewall drop the packets?")]
    Late {
        /// Whom we dialled.
        peer: SocketAddr,
    },
    /// The start was called off.
    #[error("connecting to {peer} was called off")]
    Cancelled {
        /// Whom we dialled.
        peer: SocketAddr,
    },
    /// Refused, no route, and the like.
    #[error("cannot connect to {peer}: {source}")]
    Os {
        /// Whom we dialled.
        peer: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
}

impl ConnectError {
    /// True when nobody listens there.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Os { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// Dials `peer`; the whole of it is bounded by `until`.
///
/// # Errors
/// [`ConnectError`].
pub fn connect(
    peer: SocketAddr,
    unacknowledged: Duration,
    until: &Until,
) -> Result<PlainChannel, ConnectError> {
    let os = |source: io::Error| ConnectError::Os { peer, source };
    let stopped = |stop| match stop {
        Stop::Late => ConnectError::Late { peer },
        Stop::Cancelled => ConnectError::Cancelled { peer },
    };
    until.remaining().map_err(stopped)?;
    let family = if peer.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(|e| os(e.into()))?;
    match rustix::net::connect(&socket, &peer) {
        Ok(()) => {}
        // EINTR: the attempt goes on in the background, as with EINPROGRESS.
        Err(Errno::INPROGRESS | Errno::INTR) => {
            until
                .wait(socket.as_fd(), PollFlags::OUT)
                .map_err(stopped)?;
            sockopt::socket_error(&socket)
                .map_err(|e| os(e.into()))?
                .map_err(|e| os(e.into()))?;
        }
        Err(errno) => return Err(os(errno.into())),
    }
    PlainChannel::adopt(socket, peer, unacknowledged).map_err(os)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::AtomicBool;
    use std::sync::Arc;
    use std::time::Instant;

    fn pair() -> (PlainChannel, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let until = Until::new(Instant::now() + Duration::from_secs(10));
        let peer = listener.local_addr().expect("bound");
        let channel = connect(peer, Duration::from_secs(10), &until).expect("connects");
        let (stream, _) = listener.accept().expect("accepts");
        (channel, stream)
    }

    fn wait_readable(channel: &PlainChannel) {
        let until = Until::new(Instant::now() + Duration::from_secs(10));
        until
            .wait(channel.as_fd(), PollFlags::IN)
            .expect("readable in time");
    }

    #[test]
    fn reads_into_the_given_destination_and_sees_the_end() {
        let (channel, mut peer) = pair();
        let mut into = [0; 8];
        assert_eq!(channel.try_read(&mut into).expect("open"), Step::Blocked);
        peer.write_all(b"abc").expect("writes");
        wait_readable(&channel);
        assert_eq!(
            channel.try_read(&mut into[2..]).expect("open"),
            Step::Moved(3)
        );
        assert_eq!(&into, b"\0\0abc\0\0\0");
        drop(peer);
        wait_readable(&channel);
        assert_eq!(channel.try_read(&mut into).expect("orderly"), Step::Ended);
    }

    /// a peer that stops reading makes a write `Blocked`, never a thread stuck in the kernel.
    #[test]
    fn r_058_a_full_window_does_not_block() {
        let (channel, peer) = pair();
        let chunk = vec![7; 1 << 20];
        let mut sent = 0;
        while let Step::Moved(count) = channel.try_write(&[IoSlice::new(&chunk)]).expect("open") {
            sent += count;
        }
        assert!(sent > 0);
        drop(peer);
    }

    /// writing to a peer that is gone is an error and no signal.
    #[test]
    fn r_059_no_sigpipe() {
        let (channel, peer) = pair();
        drop(peer);
        wait_readable(&channel);
        let mut failed = false;
        // The first write may still be taken; the reset that it provokes makes a later one fail.
        for _ in 0..1000 {
            match channel.try_write(&[IoSlice::new(b"x")]) {
                Ok(_) => {
                    let until = Until::new(Instant::now() + Duration::from_secs(10));
                    until
                        .wait(channel.as_fd(), PollFlags::IN)
                        .expect("the end is visible");
                }
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
        assert!(failed, "the peer's end was never reported");
    }

    /// Without it a network that drops everything would be noticed by the health lane alone.
    #[test]
    fn r_056_the_kernel_knows_how_long_data_may_stay_unacknowledged() {
        let (channel, _peer) = pair();
        let millis = sockopt::tcp_user_timeout(&channel.socket).expect("a TCP socket");
        assert_eq!(millis, 10_000);
    }

    #[test]
    fn half_close_reaches_the_peer_while_reading_goes_on() {
        let (channel, mut peer) = pair();
        channel.finish_writing();
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).expect("orderly end");
        peer.write_all(b"late")
            .expect("the other direction is open");
        wait_readable(&channel);
        let mut into = [0; 4];
        assert_eq!(channel.try_read(&mut into).expect("open"), Step::Moved(4));
    }

    #[test]
    fn nobody_listens_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let peer = listener.local_addr().expect("bound");
        drop(listener);
        let until = Until::new(Instant::now() + Duration::from_secs(10));
        let error = connect(peer, Duration::from_secs(1), &until).expect_err("nobody there");
        assert!(error.is_refused(), "{error}");
    }

    /// a hop that comes after the deadline does not start.
    #[test]
    fn r_005_a_passed_deadline_dials_nobody() {
        let until = Until::new(Instant::now());
        let peer = "127.0.0.1:9".parse().expect("address");
        assert!(matches!(
            connect(peer, Duration::from_secs(1), &until),
            Err(ConnectError::Late { .. })
        ));
    }

    #[test]
    fn a_cancelled_start_dials_nobody() {
        let flag = Arc::new(AtomicBool::new(true));
        let until = Until::new(Instant::now() + Duration::from_secs(10)).or_cancelled(flag);
        let peer = "127.0.0.1:9".parse().expect("address");
        assert!(matches!(
            connect(peer, Duration::from_secs(1), &until),
            Err(ConnectError::Cancelled { .. })
        ));
    }
}
