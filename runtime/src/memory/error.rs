//! What can go wrong with memory.

use rustix::io::Errno;

/// A failed operation on shared or pinned memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A range does not lie inside what it is taken from.
    #[error("{len} bytes at offset {offset} do not lie inside {what} of {size} bytes")]
    OutOfRange {
        /// What the range was taken from.
        what: &'static str,
        /// First byte asked for.
        offset: u64,
        /// Number of bytes asked for.
        len: u64,
        /// Bytes there are.
        size: u64,
    },
    /// Two ranges that must have one length have two.
    #[error("source has {source_len} bytes and destination has {destination_len}; a copy needs equal lengths")]
    LengthMismatch {
        /// Length of the source.
        source_len: u64,
        /// Length of the destination.
        destination_len: u64,
    },
    /// A write to memory that was opened read-only.
    #[error("{what} is read-only; open it writable, or ask its owner for write access")]
    ReadOnly {
        /// What was to be written.
        what: &'static str,
    },
    /// The limit of an arena is reached (design §15.7).
    #[error(
        "{requested} bytes do not fit: {in_use} of {limit} bytes are in use; free tensors or raise memory_limit"
    )]
    Exhausted {
        /// Bytes asked for.
        requested: u64,
        /// The arena's limit in bytes.
        limit: u64,
        /// Bytes handed out at the moment.
        in_use: u64,
    },
    /// The system has no pages left for a segment.
    #[error("the system cannot provide {requested} bytes of shared memory ({errno}); free memory or lower memory_limit")]
    NoSpace {
        /// Bytes asked for.
        requested: u64,
        /// What the kernel said.
        errno: Errno,
    },
    /// A size that no segment can have: zero, or beyond the address space.
    #[error("{len} bytes is no size for a shared segment; it must be between 1 and {max}")]
    BadSize {
        /// The size.
        len: u64,
        /// The largest possible.
        max: u64,
    },
    /// A segment's real size is below what was claimed for it.
    #[error("segment has {size} bytes, but {claimed} were claimed for it")]
    TooSmall {
        /// Bytes that the file has.
        size: u64,
        /// Bytes that it should have.
        claimed: u64,
    },
    /// A name that no segment can have.
    #[error("segment name is not 1 to 255 characters of letters, digits, '_', '-', '.'")]
    BadName,
    /// A name that nobody published, or whose owner has withdrawn it.
    #[error("there is no segment of that name; its owner may have freed it or ended")]
    NoSuchSegment,
    /// The region cannot be published under a name: it is a memfd, or belongs to another process.
    #[error("a region that this process did not create as a POSIX segment cannot be published")]
    NotPublishable,
    /// Any other failure of a system call.
    #[error("{call} failed: {errno}")]
    Os {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl MemoryError {
    /// For `map_err`: names the call that failed.
    pub(crate) fn os(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Os { call, errno }
    }

    /// For calls of std and memmap2.
    pub(crate) fn io(call: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Os {
            call,
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        }
    }
}
