//! A pinned range of bytes of this process. `unsafe` lives here.

use std::any::Any;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;

use super::{MemoryError, SharedRegion};

const WHAT: &str = "host memory";

/// A range of bytes of this process that stays where it is as long as this value or a clone of it lives.
///
/// The bytes may be shared with other processes or with foreign code (numpy), so no reference to them is ever formed:
/// they are copied in and out, or passed to the kernel by address. Concurrent writers give torn bytes, not undefined
/// control flow. Clones are cheap and name the same bytes.
#[derive(Clone)]
pub struct HostMemory {
    ptr: *mut u8,
    len: usize,
    writable: bool,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointer is only an address; `owner`, which is Send and Sync, keeps the bytes behind it alive from any thread,
// and all accesses go through raw copies that assume nothing about other writers.
unsafe impl Send for HostMemory {}
// SAFETY: as above; `&HostMemory` gives no access that `HostMemory` in another thread would not give.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Pins foreign memory.
    ///
    /// # Safety
    /// As long as `owner` lives, the `len` bytes at `ptr` must stay mapped and readable, and writable if `writable`. No
    /// `&mut` to them may exist meanwhile, and if `writable` no `&` either.
    #[must_use]
    pub unsafe fn from_raw(
        ptr: *mut u8,
        len: usize,
        writable: bool,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            ptr,
            len,
            writable,
            owner,
        }
    }

    /// Takes a vector over; writable.
    #[must_use]
    pub fn from_vec(mut bytes: Vec<u8>) -> Self {
        let (ptr, len) = (bytes.as_mut_ptr(), bytes.len());
        // The heap block of a vector does not move with it, and the vector inside the Arc is never looked at again.
        Self {
            ptr,
            len,
            writable: true,
            owner: Arc::new(bytes),
        }
    }

    /// Pins immutable bytes; read-only.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        let (ptr, len) = (bytes.as_ptr().cast_mut(), bytes.len());
        Self {
            ptr,
            len,
            writable: false,
            owner: Arc::new(bytes),
        }
    }

    /// All bytes of a region, which stays mapped as long as the result.
    pub(super) fn of_region(region: &Arc<SharedRegion>) -> Self {
        let mapping = region.mapping();
        let (ptr, len, writable) = (mapping.as_ptr(), mapping.len(), mapping.is_writable());
        Self {
            ptr,
            len,
            writable,
            owner: Arc::clone(region) as _,
        }
    }

    /// The same bytes, kept alive by `owner` in addition to what keeps them alive now.
    #[must_use]
    pub fn with_owner(self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        let owner = Arc::new((self.owner, owner));
        Self { owner, ..self }
    }

    /// The same bytes, read-only.
    #[must_use]
    pub fn as_read_only(self) -> Self {
        Self {
            writable: false,
            ..self
        }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when the bytes may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Address of the first byte; dangling but never null when empty. For identity and for foreign views.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), MemoryError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(MemoryError::OutOfRange {
                what: WHAT,
                offset: offset as u64,
                len: len as u64,
                size: self.len as u64,
            }),
        }
    }

    fn check_writable(&self) -> Result<(), MemoryError> {
        if self.writable {
            Ok(())
        } else {
            Err(MemoryError::ReadOnly { what: WHAT })
        }
    }

    /// `len` of the bytes from `offset` on, pinned by the same owner.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<Self, MemoryError> {
        self.check(offset, len)?;
        // SAFETY: `check` has proven that `offset` is at most `len` of the same allocation.
        let ptr = unsafe { self.ptr.add(offset) };
        Ok(Self {
            ptr,
            len,
            writable: self.writable,
            owner: Arc::clone(&self.owner),
        })
    }

    /// True when both name a common byte.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (start, other_start) = (self.ptr as usize, other.ptr as usize);
        start < other_start + other.len && other_start < start + self.len
    }

    /// Copies bytes from `offset` on into `destination`, as many as it holds.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn copy_out(&self, offset: usize, destination: &mut [u8]) -> Result<(), MemoryError> {
        self.check(offset, destination.len())?;
        // SAFETY: the source range was checked and is kept by `owner`; `destination` is exclusive to us, so they cannot overlap
        // unless the caller broke `from_raw`'s contract. Concurrent writers tear bytes only.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.ptr.add(offset),
                destination.as_mut_ptr(),
                destination.len(),
            );
        }
        Ok(())
    }

    /// Copies `source` to `offset`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::ReadOnly`].
    pub fn copy_in(&self, offset: usize, source: &[u8]) -> Result<(), MemoryError> {
        self.check_writable()?;
        self.check(offset, source.len())?;
        // SAFETY: the destination range was checked, is writable and kept by `owner`. `copy` allows that `source` overlaps it.
        unsafe { std::ptr::copy(source.as_ptr(), self.ptr.add(offset), source.len()) };
        Ok(())
    }

    /// Copies all of `source` over all of this; the ranges may overlap.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`], [`MemoryError::ReadOnly`].
    pub fn copy_from(&self, source: &Self) -> Result<(), MemoryError> {
        self.check_writable()?;
        if self.len != source.len {
            return Err(MemoryError::LengthMismatch {
                source_len: source.len as u64,
                destination_len: self.len as u64,
            });
        }
        // SAFETY: both ranges are `len` bytes long and pinned by their owners, the destination is writable.
        unsafe { std::ptr::copy(source.ptr, self.ptr, self.len) };
        Ok(())
    }

    /// Has the kernel map the pages now, all at once: that is several times faster than a fault for each. What is in them stays. Only a
    /// help: a kernel that cannot do it is no error.
    pub fn prefault(&self) {
        const PAGE: usize = 4096;
        let start = self.ptr as usize / PAGE * PAGE;
        let len = self.ptr as usize + self.len - start;
        if self.writable && self.len > 0 {
            // SAFETY: the pages hold bytes that `owner` keeps mapped and that may be written. Populating changes no byte.
            unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_POPULATE_WRITE) };
        }
    }

    /// Sets all bytes to zero.
    ///
    /// # Errors
    /// [`MemoryError::ReadOnly`].
    pub fn zero(&self) -> Result<(), MemoryError> {
        self.check_writable()?;
        // SAFETY: the range is pinned by `owner` and writable.
        unsafe { std::ptr::write_bytes(self.ptr, 0, self.len) };
        Ok(())
    }

    /// A copy of the bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_to(&mut bytes);
        bytes
    }

    /// Appends a copy of the bytes, which are written once and not zeroed before.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.reserve_exact(self.len);
        let start = bytes.len();
        // SAFETY: there is room for `len` more, the source is pinned and no part of a vector that we have exclusively, and all
        // `len` bytes are initialised before `set_len`.
        unsafe {
            std::ptr::copy_nonoverlapping(self.ptr, bytes.as_mut_ptr().add(start), self.len);
            bytes.set_len(start + self.len);
        }
    }

    /// One `send` of bytes from `offset` on to a socket, straight from where they are. Returns how many were taken. A peer that is
    /// gone is an error and no signal.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::Os`] (`EAGAIN` and `EINTR` included).
    pub fn send_to(
        &self,
        socket: BorrowedFd<'_>,
        offset: usize,
        len: usize,
    ) -> Result<usize, MemoryError> {
        self.check(offset, len)?;
        // SAFETY: the kernel reads at most `len` checked bytes that `owner` keeps mapped.
        let done = unsafe {
            libc::send(
                socket.as_raw_fd(),
                self.ptr.add(offset).cast(),
                len,
                libc::MSG_NOSIGNAL,
            )
        };
        transferred("send", done)
    }

    /// Writes all bytes to a file from `offset` on.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub(super) fn write_at(&self, fd: BorrowedFd<'_>, offset: u64) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < self.len {
            let left = self.len - done;
            let at = i64::try_from(offset + done as u64).unwrap_or(i64::MAX);
            // SAFETY: the kernel reads at most `left` bytes that `owner` keeps mapped.
            let step = unsafe { libc::pwrite(fd.as_raw_fd(), self.ptr.add(done).cast(), left, at) };
            match transferred("pwrite", step) {
                Ok(0) => return Err(MemoryError::os("pwrite")(Errno::IO)),
                Ok(count) => done += count,
                Err(MemoryError::Os {
                    errno: Errno::INTR, ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One `read` of at most `len` bytes from a descriptor to `offset`, straight to where they belong. Zero is end of file.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::ReadOnly`], [`MemoryError::Os`] (`EAGAIN` and `EINTR` included).
    pub fn read_from(
        &self,
        fd: BorrowedFd<'_>,
        offset: usize,
        len: usize,
    ) -> Result<usize, MemoryError> {
        self.check_writable()?;
        self.check(offset, len)?;
        // SAFETY: the kernel writes at most `len` checked, writable bytes that `owner` keeps mapped.
        let done = unsafe { libc::read(fd.as_raw_fd(), self.ptr.add(offset).cast(), len) };
        transferred("read", done)
    }
}

fn transferred(call: &'static str, done: libc::ssize_t) -> Result<usize, MemoryError> {
    usize::try_from(done).map_err(|_| MemoryError::io(call)(std::io::Error::last_os_error()))
}

impl fmt::Debug for HostMemory {
    // Neither address nor contents: values of this type end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory")
            .field("len", &self.len)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn copies_are_checked_and_exact() {
        let memory = HostMemory::from_vec(vec![1, 2, 3, 4]);
        let mut out = [0; 2];
        memory.copy_out(1, &mut out).unwrap();
        assert_eq!(out, [2, 3]);
        memory.copy_in(2, &[9, 8]).unwrap();
        assert_eq!(memory.to_vec(), [1, 2, 9, 8]);
        assert!(matches!(
            memory.copy_out(3, &mut out),
            Err(MemoryError::OutOfRange {
                offset: 3,
                len: 2,
                size: 4,
                ..
            })
        ));
        assert!(matches!(
            memory.copy_in(usize::MAX, &[1]),
            Err(MemoryError::OutOfRange { .. })
        ));
        assert!(matches!(
            memory.slice(2, usize::MAX),
            Err(MemoryError::OutOfRange { .. })
        ));
    }

    #[test]
    fn slices_share_bytes_and_outlive_their_origin() {
        let memory = HostMemory::from_vec(vec![0; 8]);
        let tail = memory.slice(6, 2).unwrap();
        memory.copy_in(7, &[5]).unwrap();
        drop(memory);
        assert_eq!(tail.to_vec(), [0, 5]);
        assert!(tail.slice(2, 0).unwrap().is_empty());
        let head = tail.slice(0, 1).unwrap();
        assert!(matches!(
            head.copy_from(&tail),
            Err(MemoryError::LengthMismatch {
                source_len: 2,
                destination_len: 1
            })
        ));
    }

    #[test]
    fn read_only_bytes_are_never_written() {
        let memory = HostMemory::from_bytes(Bytes::from_static(b"abc"));
        let read_only = MemoryError::ReadOnly { what: WHAT };
        assert_eq!(memory.copy_in(0, b"x"), Err(read_only.clone()));
        assert_eq!(memory.zero(), Err(read_only.clone()));
        assert_eq!(
            memory.copy_from(&HostMemory::from_vec(vec![1, 2, 3])),
            Err(read_only.clone())
        );
        assert_eq!(
            HostMemory::from_vec(vec![1])
                .as_read_only()
                .copy_in(0, b"x"),
            Err(read_only)
        );
        assert_eq!(memory.to_vec(), b"abc");
    }

    #[test]
    fn overlapping_copy_keeps_the_bytes_right() {
        let memory = HostMemory::from_vec(vec![1, 2, 3, 4, 5]);
        memory
            .slice(1, 4)
            .unwrap()
            .copy_from(&memory.slice(0, 4).unwrap())
            .unwrap();
        assert_eq!(memory.to_vec(), [1, 1, 2, 3, 4]);
    }

    #[test]
    fn bytes_travel_through_a_descriptor_without_a_buffer() {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let source = HostMemory::from_bytes(Bytes::from_static(b"hello"));
        assert_eq!(source.send_to(writer.as_fd(), 1, 4), Ok(4));
        let sink = HostMemory::from_vec(vec![0; 8]);
        assert_eq!(sink.read_from(reader.as_fd(), 2, 6), Ok(4));
        assert_eq!(sink.to_vec(), b"\0\0ello\0\0");
        assert!(matches!(
            sink.read_from(reader.as_fd(), 8, 1),
            Err(MemoryError::OutOfRange { .. })
        ));
        assert!(matches!(
            source.read_from(reader.as_fd(), 0, 1),
            Err(MemoryError::ReadOnly { .. })
        ));
        drop(writer);
        assert_eq!(sink.read_from(reader.as_fd(), 0, 1), Ok(0));
        let gone = source.send_to(reader.as_fd(), 0, 1).unwrap_err();
        assert_eq!(gone, MemoryError::os("send")(Errno::PIPE));
    }
}
