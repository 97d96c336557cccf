//! SLR3, the frame protocol between a parent and its remote sessions: bytes to values and back.
//!
//! A *frame* is a 40-byte [`FrameHeader`] and a payload. Payloads are [`Hello`], [`TaskPayload`], [`Completion`],
//! [`Control`] and [`ControlReply`]; what a control commands is in [`frame::control`]. Sessions are started by JSON
//! documents, in [`bootstrap`]. Callables are named by the hash of a descriptor, in [`callable`]. What goes beyond
//! version 1 is negotiated by [`Features`]. `docs/protocol.md` has every byte.
//!
//! The crate is pure: no sockets, threads, clocks or environment. Invariants:
//!
//! * **W-1** Decoding never panics, and never allocates more than a small multiple of the input's length.
//! * **W-2** What decodes encodes to the same bytes, with three exceptions that the contract makes: shape words beyond
//!   a tensor's rank are read as zero; an import result of 0 bytes, and a copy whose size is not that of its
//!   data, are read and never written.
//! * **W-3** A decoder consumes its input exactly; left-over bytes, unknown codes and non-zero reserved fields are errors
//!
//! * **W-4** An error names field, value and limit, and never repeats bytes of the payload.
//! * **W-5** Only [`codec`] touches positions in byte strings; only [`limits`] declares limits.

#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod buffer;
pub mod call_config;
pub mod callable;
pub mod codec;
pub mod error;
pub mod frame;
pub mod id;
pub mod limits;
pub mod order;
pub mod task;
pub mod tensor;

pub use buffer::{AccessFlags, AddressSpace, RemoteTensorDesc, TensorFlags};
pub use call_config::CallConfig;
pub use callable::{CallableKind, Digest, Hashid, ImportTarget, RegistryTarget};
pub use codec::{Decode, Encode, Reader, Writer};
pub use error::{DecodeError, EncodeError, RuleViolation};
pub use frame::{
    decode_frame, encode_frame, truncate_utf8, Completion, Control, ControlName, ControlReply,
    Credits, FailureKind, Features, Frame, FrameHeader, FrameType, Hello, ReadyState,
    TimedCompletion,
};
pub use id::{BufferId, ExportId, Generation, ImportId, Sequence, SessionId, WorkerId};
pub use task::{Carrier, TaskArgsWire, TaskPayload};
pub use tensor::{DataType, TensorMeta};
