//! What an owner and its zygote say to each other. Both are of one release, or part at the first word.

use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use echelon_wire::codec::{Reader, Writer};
use rustix::io::{retry_on_intr, Errno};
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// The zygote's first word: it is up, and of our release.
pub(super) fn ready() -> Vec<u8> {
    format!("zygote ready {}", env!("CARGO_PKG_VERSION")).into_bytes()
}

/// Bytes of a request, and of its arguments and descriptors in number; beyond them a child is executed.
pub(super) const REQUEST_BYTES: usize = 64 << 10;
pub(super) const DESCRIPTORS_MAX: usize = 128;
/// Descriptors that every request begins with: working directory, standard output, standard error.
pub(super) const FIRST: usize = 3;
const ARGUMENTS_MAX: u32 = 1024;

/// How one child is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) outlives_parent: bool,
    pub(super) no_new_privileges: bool,
    pub(super) umask: Option<u32>,
    pub(super) args: Vec<OsString>,
    /// Under which numbers the child finds the descriptors after the first three.
    pub(super) numbers: Vec<RawFd>,
}

impl Request {
    /// `None` when it is beyond a limit.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut writer = Writer::new();
        writer.u8(u8::from(self.outlives_parent));
        writer.u8(u8::from(self.no_new_privileges));
        writer.u8(u8::from(self.umask.is_some()));
        writer.u32(self.umask.unwrap_or(0));
        writer.u32(u32::try_from(self.args.len()).ok()?);
        for arg in &self.args {
            let limit = REQUEST_BYTES as u32;
            writer.blob("argument", arg.as_bytes(), limit).ok()?;
        }
        writer.u32(u32::try_from(self.numbers.len()).ok()?);
        for number in &self.numbers {
            writer.i32(*number);
        }
        let fits = writer.len() <= REQUEST_BYTES
            && self.args.len() <= ARGUMENTS_MAX as usize
            && self.numbers.len() + FIRST <= DESCRIPTORS_MAX;
        fits.then(|| writer.into_bytes())
    }

    /// `None` when it is no request.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let outlives_parent = reader.u8("outlives_parent").ok()? == 1;
        let no_new_privileges = reader.u8("no_new_privileges").ok()? == 1;
        let has_umask = reader.u8("has_umask").ok()? == 1;
        let umask = reader.u32("umask").ok()?;
        let mut args = Vec::new();
        for _ in 0..at_most(&mut reader, ARGUMENTS_MAX)? {
            let arg = reader.blob("argument", REQUEST_BYTES as u32).ok()?;
            args.push(OsString::from_vec(arg.to_vec()));
        }
        let mut numbers = Vec::new();
        for _ in 0..at_most(&mut reader, DESCRIPTORS_MAX as u32)? {
            let number = reader.i32("descriptor").ok()?;
            // The standard three come first in the message, and one number is one descriptor.
            if number <= 2 || numbers.contains(&number) {
                return None;
            }
            numbers.push(number);
        }
        reader.finish("zygote request").ok()?;
        Some(Self {
            outlives_parent,
            no_new_privileges,
            umask: has_umask.then_some(umask),
            args,
            numbers,
        })
    }
}

fn at_most(reader: &mut Reader<'_>, limit: u32) -> Option<u32> {
    reader.u32("count").ok().filter(|count| *count <= limit)
}

/// What came of a request. A child says it itself, as soon as it is what it was asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// The child; 0 when there is none.
    pub(super) pid: i32,
    /// 0, or why it ended, or why there is none.
    pub(super) errno: i32,
}

impl Reply {
    pub(super) fn encode(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        let (pid, errno) = bytes.split_at_mut(4);
        pid.copy_from_slice(&self.pid.to_le_bytes());
        errno.copy_from_slice(&self.errno.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let reply = Self {
            pid: reader.i32("pid").ok()?,
            errno: reader.i32("errno").ok()?,
        };
        reader.finish("zygote reply").ok()?;
        Some(reply)
    }
}

/// Sends one message with its descriptors. Never blocks: `AGAIN` when the other side does not take what it has.
pub(super) fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(message)], &mut ancillary, flags)).map(drop)
}

/// Receives one message with its descriptors, no longer than `buffer`. `None` when the other side is gone.
pub(super) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<Option<(usize, Vec<OwnedFd>)>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = match retry_on_intr(|| recvmsg(&socket, &mut parts, &mut ancillary, flags)) {
        Ok(received) => received,
        Err(Errno::CONNRESET | Errno::PIPE) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Errno::MSGSIZE);
    }
    if received.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    Ok(Some((received.bytes, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            outlives_parent: true,
            no_new_privileges: false,
            umask: Some(0o077),
            args: vec!["--mailbox".into(), OsString::from_vec(vec![0xff, 0x20])],
            numbers: vec![7, 12],
        }
    }

    #[test]
    fn a_request_comes_out_as_it_went_in() {
        let bytes = request().encode().unwrap();
        assert_eq!(Request::decode(&bytes), Some(request()));
    }

    #[test]
    fn every_part_of_a_request_and_every_byte_more_is_refused() {
        let bytes = request().encode().unwrap();
        for count in 0..bytes.len() {
            assert_eq!(Request::decode(&bytes[..count]), None, "{count}");
        }
        assert_eq!(Request::decode(&[&bytes[..], &[0]].concat()), None);
        for numbers in [vec![2], vec![-1], vec![5, 5]] {
            let wrong = Request {
                numbers,
                ..request()
            };
            assert_eq!(Request::decode(&wrong.encode().unwrap()), None);
        }
    }

    #[test]
    fn what_is_too_much_for_a_message_is_not_encoded() {
        let long = Request {
            args: vec![OsString::from_vec(vec![b'x'; REQUEST_BYTES])],
            ..request()
        };
        assert_eq!(long.encode(), None);
        let many = Request {
            numbers: (3..200).collect(),
            ..request()
        };
        assert_eq!(many.encode(), None);
    }

    #[test]
    fn a_reply_is_eight_bytes() {
        let reply = Reply { pid: 77, errno: 0 };
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        assert_eq!(Reply::decode(&[0; 7]), None);
        assert_eq!(Reply::decode(&[0; 9]), None);
    }
}
