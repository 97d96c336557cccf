//! The listeners of a session, and the accept of its one command connection (contract §2, §8).

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{
    bind, ipproto, listen, socket_with, sockopt, AddressFamily, SocketFlags, SocketType,
};

use super::lifeline::{Lifeline, Woken};

/// Peers that may wait to be accepted, each lane (contract §2).
const BACKLOG: i32 = 1;
/// Longest time that sent bytes may stay unacknowledged before the connection is taken for dead.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(30);
/// Silence after which the kernel probes an idle connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Pause between those probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered probes that end the connection.
const KEEPALIVE_PROBES: u32 = 3;

/// Listens on a free port of `address`.
///
/// # Errors
/// What the system says, e.g. that the address is not one of this host.
pub(crate) fn listener(address: Ipv4Addr) -> std::io::Result<TcpListener> {
    listener_for(address, BACKLOG)
}

/// As [`listener`], with room for `backlog` peers that wait.
///
/// # Errors
/// As [`listener`].
pub(crate) fn listener_for(address: Ipv4Addr, backlog: i32) -> std::io::Result<TcpListener> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(ipproto::TCP),
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(address, 0))?;
    listen(&socket, backlog)?;
    let listener = TcpListener::from(socket);
    // A peer that is gone again must not block the accept that its arrival woke.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The next connection, `None` when `deadline` passes or the session ends first.
///
/// # Errors
/// When waiting or accepting fails for another reason than a peer that is gone.
pub(crate) fn accept(
    listener: &TcpListener,
    lifeline: &Lifeline,
    deadline: Option<Instant>,
) -> std::io::Result<Option<TcpStream>> {
    while lifeline.wait(listener.as_fd(), PollFlags::IN, deadline)? == Woken::Ready {
        match listener.accept() {
            Ok((stream, _)) => {
                prepare(&stream)?;
                return Ok(Some(stream));
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Options of every connection of a session, accepted or dialled.
///
/// # Errors
/// What the system says to them.
pub(crate) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    // Linux does not hand the listener's non-blocking mode on, others do.
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_LIMIT.as_millis() as u32)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// For a lane to the parent: sent bytes may stay unacknowledged no longer than the session may be silent. A network that swallows
/// one lane alone is noticed by this only, because the other one goes on.
///
/// # Errors
/// What the system says.
pub(super) fn limit_unacknowledged(
    stream: &TcpStream,
    session_timeout: Duration,
) -> std::io::Result<()> {
    let limit = session_timeout.min(UNACKNOWLEDGED_LIMIT);
    // 0 would mean the system's default.
    let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
    Ok(sockopt::set_tcp_user_timeout(stream, millis)?)
}

fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | WouldBlock
    )
}

/// Writes all of `parts`, in order, before `deadline`; not stopped by the end of the session, whose last reply still goes out.
///
/// # Errors
/// `TimedOut` when the peer does not read, or what the connection reports.
pub(crate) fn write_all(
    stream: &TcpStream,
    parts: &[&[u8]],
    deadline: Instant,
) -> std::io::Result<()> {
    use std::io::{ErrorKind, Write as _};
    let mut stream_ref = stream;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            match stream_ref.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => rest = rest.split_at(count).1,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait_writable(stream, deadline)?
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn wait_writable(stream: &TcpStream, deadline: Instant) -> std::io::Result<()> {
    use rustix::event::{poll, PollFd, Timespec};
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(rest).ok();
        match poll(
            &mut [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::OUT)],
            timeout.as_ref(),
        ) {
            Ok(0) => return Err(std::io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::lifeline::Verdict;

    #[test]
    fn an_accept_ends_with_its_deadline_and_with_the_session_r_009() {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        assert!(accept(&listener, &lifeline, Some(Instant::now()))
            .expect("accepts")
            .is_none());
        lifeline.end(Verdict::Signal);
        assert!(accept(&listener, &lifeline, None)
            .expect("accepts")
            .is_none());
    }

    /// Nothing else wakes it: there is no deadline and no peer.
    #[test]
    fn the_end_of_a_session_wakes_a_thread_that_waits_for_a_peer_r_062_r_063() {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let (told, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                told.send(None).expect("somebody listens");
                told.send(Some(accept(&listener, &lifeline, None)))
            });
            assert!(ended.recv().expect("started").is_none());
            lifeline.end(Verdict::Signal);
            let accepted = ended.recv_timeout(Duration::from_secs(60));
            let accepted = accepted.expect("it woke").expect("its second word");
            assert!(accepted.expect("accepts").is_none());
        });
    }

    /// A parent of version 1 answers no HEALTH frame: when its network drops everything, the kernel is all that notices.
    #[test]
    fn the_kernel_watches_every_connection_of_a_session_r_056() {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let _peer = TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let stream = accept(&listener, &lifeline, None)
            .expect("accepts")
            .expect("a peer");
        let millis = sockopt::tcp_user_timeout(&stream).expect("a TCP socket");
        assert_eq!(u128::from(millis), UNACKNOWLEDGED_LIMIT.as_millis());
        assert!(sockopt::socket_keepalive(&stream).expect("a socket"));
        let idle = sockopt::tcp_keepidle(&stream).expect("a TCP socket");
        let interval = sockopt::tcp_keepintvl(&stream).expect("a TCP socket");
        let probes = sockopt::tcp_keepcnt(&stream).expect("a TCP socket");
        assert_eq!(
            (idle, interval, probes),
            (KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES)
        );
    }

    #[test]
    fn sent_bytes_wait_no_longer_than_a_session_may_be_silent_r_057() {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let _peer = TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let accepted = accept(&listener, &lifeline, None).expect("accepts");
        let stream = accepted.expect("a peer");
        for (timeout, millis) in [
            (Duration::from_secs(2), 2000),
            (Duration::from_secs(30 * 24 * 3600), 30_000),
            (Duration::from_micros(10), 1),
        ] {
            limit_unacknowledged(&stream, timeout).expect("set");
            assert_eq!(sockopt::tcp_user_timeout(&stream), Ok(millis));
        }
    }

    #[test]
    fn a_peer_that_does_not_read_cannot_hold_a_write_r_058() {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let _peer = TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let stream = accept(&listener, &lifeline, None)
            .expect("accepts")
            .expect("a peer");
        let data = vec![0; 64 << 20];
        let error = write_all(&stream, &[&data], Instant::now()).expect_err("nobody reads");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
