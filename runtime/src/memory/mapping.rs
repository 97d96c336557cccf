//! A file descriptor mapped into this process. `unsafe` lives here.

use std::os::fd::{AsRawFd, BorrowedFd};

use memmap2::{MmapOptions, MmapRaw};

use super::MemoryError;

/// A `MAP_SHARED` mapping of the first `len` bytes of a file.
///
/// Another process may write the same pages at any moment, so this type gives out raw pointers and checked copies, and
/// never a slice.
#[derive(Debug)]
pub struct Mapping {
    raw: MmapRaw,
    writable: bool,
}

impl Mapping {
    /// Maps the first `len` bytes of `fd`, `PROT_READ` only unless `writable`. Swap space is not reserved ahead:
    /// pages are allocated in the file, by `fallocate`, before they are used.
    ///
    /// # Errors
    /// [`MemoryError::BadSize`] for zero or a length that no address space holds, [`MemoryError::Os`] when `mmap` fails.
    pub fn new(fd: BorrowedFd<'_>, len: u64, writable: bool) -> Result<Self, MemoryError> {
        let bad_size = MemoryError::BadSize {
            len,
            max: isize::MAX as u64,
        };
        let size = usize::try_from(len)
            .ok()
            .filter(|size| *size > 0 && isize::try_from(*size).is_ok());
        let size = size.ok_or(bad_size)?;
        let mut options = MmapOptions::new();
        options.len(size).no_reserve_swap();
        let raw = if writable {
            options.map_raw(fd.as_raw_fd())
        } else {
            options.map_raw_read_only(fd.as_raw_fd())
        }
        .map_err(MemoryError::io("mmap"))?;
        Ok(Self { raw, writable })
    }

    /// Number of bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Never true: a mapping has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.len() == 0
    }

    /// True when it was mapped `PROT_WRITE`.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Address of the first byte. Writing through it is allowed only when [`Mapping::is_writable`]; it dangles once the
    /// mapping is dropped.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.raw.as_mut_ptr()
    }
}
