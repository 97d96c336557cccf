//! Descriptors on their way to another process: inherited by number, or sent over a socket pair.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::{retry_on_intr, Errno};
use rustix::net::{
    recvmsg, sendmsg, socketpair, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage,
    RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

use super::{ChildSpec, ProcessError};

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

/// Sends one message with one descriptor. Never blocks: `Ok(false)` when the other side has not taken enough of the earlier
/// ones.
///
/// # Errors
/// [`ProcessError::Os`], `EPIPE` when the other side is gone.
pub fn send_fd(
    socket: impl AsFd,
    message: &[u8],
    fd: BorrowedFd<'_>,
) -> Result<bool, ProcessError> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space above was made for exactly this message.
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(fits);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(message)], &mut ancillary, flags)) {
        Ok(_) => Ok(true),
        // TOOMANYREFS: too many descriptors of this user are on their way; all of them drain.
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::TOOMANYREFS) => Ok(false),
        Err(errno) => Err(ProcessError::os("sendmsg")(errno)),
    }
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
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = match retry_on_intr(|| recvmsg(&socket, &mut parts, &mut ancillary, flags)) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::CONNRESET | Errno::PIPE) => return Ok(None),
        Err(errno) => return Err(ProcessError::os("recvmsg")(errno)),
    };
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ProcessError::os("recvmsg (a message too long)")(
            Errno::MSGSIZE,
        ));
    }
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
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(ProcessError::os("poll")(errno)),
        }
    }
}

/// Numbers that were taken over: one descriptor has one owner.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes over a descriptor that was inherited under a number from the command line, and keeps it from this process's own
/// children. Once for each number, at the start, before anything else could have been opened under it.
///
/// # Errors
/// [`ProcessError::NotInherited`] when nothing is open under it, it is one of the standard three, was opened by this
/// process itself, or was taken over before.
pub fn take_inherited_fd(raw: RawFd) -> Result<OwnedFd, ProcessError> {
    let refused = || ProcessError::NotInherited(raw);
    let mut taken = TAKEN.lock();
    if raw <= 2 || taken.contains(&raw) {
        return Err(refused());
    }
    // SAFETY: F_GETFD on an integer touches no memory; it fails on a number that is not open.
    let flags = unsafe { libc::fcntl(raw, libc::F_GETFD) };
    // What this process opened is marked to close at exec; only what was inherited is not. A failure has all bits set.
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(refused());
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(refused());
    }
    taken.insert(raw);
    // SAFETY: the number is open, was inherited, and `TAKEN` sees to it that it gets one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// In a process that was forked off and has closed what it does not need: what was taken over before is not taken here.
pub(super) fn forget_taken() {
    TAKEN.lock().clear();
}

/// A descriptor of `spec.fds`, for as long as the start of that child takes.
pub(super) fn borrowed(_spec: &ChildSpec, raw: RawFd) -> BorrowedFd<'_> {
    // SAFETY: who asks for a child keeps its descriptors open until the start has returned ([`ChildSpec::fds`]).
    unsafe { BorrowedFd::borrow_raw(raw) }
}

/// Opens `/dev/null` under every standard number that is closed. A process that was started without them would otherwise
/// open its segments there, and a child would find its standard streams in their place.
pub(super) fn occupy_standard_numbers() {
    for raw in 0..=2 {
        // SAFETY: system calls on integers and on a constant string; `open` takes the lowest free number, which is `raw`, and
        // nobody closes it again.
        unsafe {
            if libc::fcntl(raw, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
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
    fn a_receiver_that_does_not_receive_blocks_nobody() {
        let (ours, theirs) = region_socket_pair().unwrap();
        let mut sent = 0;
        while send_fd(&ours, &[7; 1000], theirs.as_fd()).unwrap() {
            sent += 1;
            assert!(sent < 100_000);
        }
        assert!(sent > 0);
        assert!(recv_fd(&theirs, &mut [0; 10], soon()).is_err());
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
    fn a_number_that_is_not_open_or_our_own_is_refused() {
        assert!(matches!(
            take_inherited_fd(2),
            Err(ProcessError::NotInherited(2))
        ));
        assert!(matches!(
            take_inherited_fd(1 << 20),
            Err(ProcessError::NotInherited(_))
        ));
        let (own, _other) = region_socket_pair().unwrap();
        assert!(take_inherited_fd(std::os::fd::AsRawFd::as_raw_fd(&own)).is_err());
    }
}
