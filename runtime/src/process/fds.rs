//! Descriptors on their way to another process: inherited by number, or sent over a socket pair.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use rustix::event::{poll, PollFd, PollFlags};
use rustix::net::{
    recvmsg, sendmsg, socketpair, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage,
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::ProcessError;

/// A pair of connected sockets that keeps message boundaries: ours, and the child's.
///
/// # Errors
/// [`ProcessError::Os`].
pub fn region_socket_pair() -> Result<(OwnedFd, OwnedFd), ProcessError> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(ProcessError::os("socketpair"))
}

/// Sends one message with one descriptor. Never blocks.
///
/// # Errors
/// [`ProcessError::Os`]; `EAGAIN` when the other side has not taken earlier ones.
pub fn send_fd(socket: impl AsFd, message: &[u8], fd: BorrowedFd<'_>) -> Result<(), ProcessError> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space above was made for exactly this message.
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(fits);
    sendmsg(
        socket,
        &[IoSlice::new(message)],
        &mut ancillary,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )
    .map(drop)
    .map_err(ProcessError::os("sendmsg"))
}

/// Receives one message with at most one descriptor; `None` at end of file or when `deadline` passes.
///
/// # Errors
/// [`ProcessError::Os`].
pub fn recv_fd(
    socket: impl AsFd,
    message: &mut [u8],
    deadline: Instant,
) -> Result<Option<(usize, Option<OwnedFd>)>, ProcessError> {
    if !wait_readable(socket.as_fd(), deadline)? {
        return Ok(None);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(message)];
    let received = recvmsg(
        socket,
        &mut parts,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )
    .map_err(ProcessError::os("recvmsg"))?;
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            // Further descriptors, if any, are closed as they are dropped.
            for received in fds {
                fd.get_or_insert(received);
            }
        }
    }
    if received.bytes == 0 && fd.is_none() {
        return Ok(None);
    }
    Ok(Some((received.bytes, fd)))
}

/// Waits until the socket is readable or closed. False at the deadline.
fn wait_readable(socket: BorrowedFd<'_>, deadline: Instant) -> Result<bool, ProcessError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.try_into().ok();
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) if deadline <= Instant::now() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(ProcessError::os("poll")(errno)),
        }
    }
}

/// Takes over a descriptor that was inherited under a number from the command line. Each number may be taken once.
///
/// # Errors
/// [`ProcessError::NotInherited`] when nothing is open under it, or it is one of the standard three.
pub fn take_inherited_fd(raw: RawFd) -> Result<OwnedFd, ProcessError> {
    if raw <= 2 {
        return Err(ProcessError::NotInherited(raw));
    }
    // SAFETY: F_SETFD on an integer touches no memory; it fails on a number that is not open.
    if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(ProcessError::NotInherited(raw));
    }
    // SAFETY: the number is open, as the call above showed, and it came from the command line, where the starter names descriptors
    // that it left open for this process alone; nothing else in this process knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (ours, theirs) = region_socket_pair().unwrap();
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        send_fd(&ours, b"hello", fd.as_fd()).unwrap();
        std::fs::File::from(fd).write_all(b"content").unwrap();
        let mut message = [0; 16];
        let (count, fd) = recv_fd(&theirs, &mut message, soon()).unwrap().unwrap();
        assert_eq!(&message[..count], b"hello");
        let (mut file, mut text) = (std::fs::File::from(fd.unwrap()), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[test]
    fn the_end_and_the_deadline_are_not_messages() {
        let (ours, theirs) = region_socket_pair().unwrap();
        assert!(recv_fd(&theirs, &mut [0; 4], Instant::now())
            .unwrap()
            .is_none());
        drop(ours);
        assert!(recv_fd(&theirs, &mut [0; 4], soon()).unwrap().is_none());
    }

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        assert!(matches!(
            take_inherited_fd(2),
            Err(ProcessError::NotInherited(2))
        ));
        assert!(matches!(
            take_inherited_fd(1 << 20),
            Err(ProcessError::NotInherited(_))
        ));
    }
}
