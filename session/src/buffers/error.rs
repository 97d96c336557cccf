//! Why a buffer command is refused. Texts end with the words of the contract's recorded cases.

use echelon_runtime::memory::MemoryError;
use echelon_wire::frame::control::transfer::ReleaseImport;
use echelon_wire::frame::control::ControlName;
use echelon_wire::id::WorkerId;
use echelon_wire::limits::MAX_COPY_FROM_BYTES;

use crate::peer::TicketError;

/// Why a buffer command is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The command names another worker.
    #[error("this session is worker {own}, not {got}: {control} worker mismatch")]
    WorkerMismatch {
        /// Which control.
        control: ControlName,
        /// Worker named.
        got: WorkerId,
        /// Worker of this session.
        own: WorkerId,
    },
    /// No such buffer, or another generation of it.
    #[error("buffer {buffer} generation {generation} was freed or never allocated: {control} names unknown buffer")]
    UnknownBuffer {
        /// Which control.
        control: ControlName,
        /// Buffer id.
        buffer: u64,
        /// Generation.
        generation: u64,
    },
    /// The range does not lie inside the buffer.
    #[error("{size} bytes at offset {offset} of a buffer of {nbytes} bytes: {control} range exceeds buffer")]
    Range {
        /// Which control.
        control: ControlName,
        /// First byte.
        offset: u64,
        /// Bytes.
        size: u64,
        /// Size of the buffer.
        nbytes: u64,
    },
    /// COPY_TO carries another number of bytes than it says.
    #[error("the command carries {got} bytes and announces {size}: COPY_TO_REMOTE data length does not match size")]
    DataLength {
        /// Bytes carried.
        got: u64,
        /// Bytes announced.
        size: u64,
    },
    /// COPY_FROM of more than one reply holds.
    #[error("COPY_FROM_REMOTE size is {size}, limit {MAX_COPY_FROM_BYTES}; split the copy")]
    ReplyTooLarge {
        /// Bytes asked for.
        size: u64,
    },
    /// A limit of the session, or of the machine.
    #[error("RESOURCE_EXHAUSTED: {requested} {what} asked for, {in_use} in use, limit {limit}; free buffers first")]
    Resource {
        /// Unit.
        what: &'static str,
        /// Asked for.
        requested: u64,
        /// In use.
        in_use: u64,
        /// The limit.
        limit: u64,
    },
    /// The buffer lies in memory of this session alone.
    #[error(
        "/dev/shm had no room for buffer {buffer} when it was made, so no other session can map it; \
         make room there and allocate it anew: EXPORT_BUFFER of a private buffer"
    )]
    Private {
        /// Buffer id.
        buffer: u64,
    },
    /// The profile is not one that this session has.
    #[error("{got:?} was asked for: {control} transport_profile is not supported by sim")]
    Profile {
        /// Which control.
        control: ControlName,
        /// Profile named, shortened.
        got: String,
    },
    /// The requested access is more than the export gives.
    #[error("IMPORT_BUFFER access {requested} exceeds the export's access {exported}")]
    Access {
        /// Bits asked for.
        requested: u32,
        /// Bits of the export.
        exported: u32,
    },
    /// The owner's segment is not here.
    #[error(
        "IMPORT_BUFFER: there is no segment of that name on this host: its owner has freed it, has ended, or is on another \
         host; across hosts owner and importer both need peer_fetch"
    )]
    NotOnThisHost,
    /// The owner's host cannot be dialled.
    #[error("IMPORT_BUFFER: {0}")]
    OwnerHost(String),
    /// The descriptor of profile `tcp` does not decode.
    #[error("IMPORT_BUFFER transport_descriptor is not one of profile tcp: {0}")]
    TcpDescriptor(String),
    /// The owner cannot listen for importers.
    #[error("EXPORT_BUFFER: {0}")]
    Listen(std::io::Error),
    /// There is no ticket for the export.
    #[error("EXPORT_BUFFER: {0}")]
    Ticket(#[from] TicketError),
    /// The descriptor is not the name of a segment.
    #[error("IMPORT_BUFFER transport_descriptor is not a segment name of profile sim")]
    Descriptor,
    /// No such import.
    #[error(
        "import {import} was released or never made: {}",
        ReleaseImport::UNKNOWN
    )]
    UnknownImport {
        /// Import id.
        import: u64,
    },
    /// A tensor of a task names a buffer of another worker without importing it.
    #[error("remote TASK descriptor names a different worker without an imported buffer handle")]
    ForeignDevice,
    /// A tensor of a task names nothing that is here.
    #[error("remote TASK descriptor names an unknown or stale buffer/import generation")]
    UnknownTensor,
    /// A tensor of a task reaches outside.
    #[error("remote TASK descriptor range exceeds buffer/import")]
    TensorRange,
    /// Shared memory failed.
    #[error("{control}: {source}")]
    Memory {
        /// Which control.
        control: ControlName,
        /// Why.
        source: MemoryError,
    },
}
