//! Which bytes a task reads and writes: the only thing that dependencies are inferred from.

/// Identity of a piece of memory. Byte intervals are compared inside one space only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// The parent's own address space: intervals are addresses (plain arrays).
    Host,
    /// A local region (arena block), intervals are offsets in it.
    Region(u64),
    /// A remote buffer. An imported handle carries its owner's identity, so both views order each other; a reused
    /// buffer number differs by generation, a new session by session.
    Remote {
        /// The owner's session.
        session: u64,
        /// The buffer's number in that session.
        buffer: u64,
        /// How often the number was used before.
        generation: u64,
    },
}

/// How a task uses an interval. A tensor tagged `NO_DEP` is simply not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessMode {
    /// `INPUT`.
    Read,
    /// `OUTPUT` and `OUTPUT_EXISTING`: not ordered or poisoned by the old contents as a read would be.
    Write,
    /// `INOUT`: a read and a write.
    ReadWrite,
}

impl AccessMode {
    /// Whether the old contents matter: read-after-write edges and poison.
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether the contents change.
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// One byte interval that a task touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// The memory that `start` and `end` count in.
    pub space: Space,
    /// First byte.
    pub start: u64,
    /// First byte behind; `start == end` is empty and makes no edge, `end < start` is refused at submit.
    pub end: u64,
    /// How the bytes are used.
    pub mode: AccessMode,
}
