//! Every bound of the protocol, with its unit and its reason. No other file declares a `MAX_*`.

use std::time::Duration;

/// Version word of every frame and of HELLO.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 40;

/// Bytes of one frame payload (16 MiB): what a receiver may have to hold at once for one frame.
pub const MAX_PAYLOAD_BYTES: u32 = 16 * 1024 * 1024;

/// Smallest frame limit (payload bytes, 64 KiB) that a session may announce: below it not even a control with its longest texts
/// would fit.
pub const MIN_FRAME_LIMIT_BYTES: u32 = 64 * 1024;

/// Bytes of a general string (profile in HELLO, prefix in CallConfig).
pub const MAX_STRING_BYTES: u32 = 1024;

/// Bytes of `CallConfig.output_prefix` that are usable: the length field admits 1024, the stored field keeps one byte
/// for its terminator.
pub const MAX_OUTPUT_PREFIX_BYTES: u32 = MAX_STRING_BYTES - 1;

/// Bytes of an error message; longer ones are cut at a UTF-8 boundary.
pub const MAX_ERROR_MESSAGE_BYTES: u32 = 4096;

/// Tensors of one task (elements).
pub const MAX_TENSORS: u32 = 4096;

/// Scalars of one task (elements).
pub const MAX_SCALARS: u32 = 4096;

/// Tasks that one task may name as its conditions: what waits for more is sent when they have ended.
pub const MAX_CONDITIONS: u32 = 16;

/// Bytes of one task's inline arena (1 MiB): larger data belongs into a buffer.
pub const MAX_INLINE_BYTES: u32 = 1024 * 1024;

/// Dimensions of a tensor.
pub const MAX_TENSOR_DIMS: usize = 5;

/// Bytes of one tensor record.
pub const TENSOR_BYTES: usize = 44;

/// Bytes of one remote tensor descriptor.
pub const TENSOR_DESC_BYTES: usize = 80;

/// Bytes of a transport profile name.
pub const MAX_TRANSPORT_PROFILE_BYTES: u32 = 128;

/// Bytes of a transport or import descriptor.
pub const MAX_TRANSPORT_DESCRIPTOR_BYTES: u32 = 4096;

/// Bytes of the descriptor of a chip callable.
pub const MAX_CHIP_DESCRIPTOR_BYTES: u32 = 4096;

/// Bytes of the token that names a staged blob.
pub const MAX_STAGED_TOKEN_BYTES: u32 = 1024;

/// Bytes of a SHA-256 digest.
pub const DIGEST_BYTES: usize = 32;

/// Bytes of the fixed part of a CONTROL payload: name, version, length.
pub const CONTROL_FIXED_BYTES: u32 = 12;

/// Bytes of the fixed part of a CONTROL_REPLY payload with an empty message: sequence, name, version, code, two lengths.
pub const CONTROL_REPLY_FIXED_BYTES: u32 = 28;

/// Bytes of the header of a copy command.
pub const COPY_HEADER_BYTES: u32 = 36;

/// Data bytes that one COPY_TO_REMOTE command can carry: payload less the control's and the copy's header.
pub const MAX_COPY_TO_BYTES: u64 =
    (MAX_PAYLOAD_BYTES - CONTROL_FIXED_BYTES - COPY_HEADER_BYTES) as u64;

/// Data bytes that one COPY_FROM_REMOTE reply can carry: payload less the reply's fixed part.
pub const MAX_COPY_FROM_BYTES: u64 = (MAX_PAYLOAD_BYTES - CONTROL_REPLY_FIXED_BYTES) as u64;

/// Bytes of the JSON document that the daemon accepts and answers.
pub const MAX_JSON_BYTES: u32 = 16 * 1024 * 1024;

/// Bytes of the line on the ready pipe: an error text of 4096 bytes, all of it escaped as `\u00XX`, with room for keys.
pub const MAX_READY_LINE_BYTES: usize = 64 * 1024;

/// Bytes of an import target `module:qualname`. The v1 contract names none; no import system resolves a longer one.
pub const MAX_IMPORT_TARGET_BYTES: usize = 4096;

/// Bytes of the header of a serialized callable (`SPYC`).
pub const SERIALIZED_HEADER_BYTES: usize = 16;

/// Parameters of a chip callable's signature (elements): it cannot have more than a task has arguments.
pub const MAX_CHIP_DIRECTIONS: usize = (MAX_TENSORS + MAX_SCALARS) as usize;

/// Bytes of a chip callable's machine code, inline or staged (64 MiB).
pub const MAX_CHIP_BLOB_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of inline machine code that one PREPARE_REGISTER control carries for certain: a frame's payload less every fixed part
/// and the longest descriptor.
pub const MAX_INLINE_BLOB_BYTES: u32 = MAX_PAYLOAD_BYTES - 8 * 1024;

/// Data bytes of one STAGE_APPEND in the `staged_blobs` extension.
pub const MAX_STAGE_PART_BYTES: u32 = MAX_PAYLOAD_BYTES - 4 * 1024;

/// Blobs that one session keeps staged at a time, in the making or sealed (elements).
pub const MAX_STAGED_BLOBS: usize = 16;

/// Bytes that one session keeps staged at a time, as announced by STAGE_BEGIN (128 MiB).
pub const MAX_STAGED_BYTES: u64 = 2 * MAX_CHIP_BLOB_BYTES;

/// Bytes of the result of a task in the `timed_completion` extension (1 MiB), the same as a task may send inline.
pub const MAX_RESULT_BYTES: u32 = MAX_INLINE_BYTES;

/// Bytes of the ticket that admits an importer to a range of a buffer: 256 random bits cannot be guessed.
pub const PEER_TICKET_BYTES: usize = 32;

/// Bytes of the head of a request between sessions.
pub const PEER_HEAD_BYTES: usize = 64;

/// Data bytes of one request between sessions (1 MiB): enough that its head does not count, little enough that a check of the
/// ticket is never far away.
pub const MAX_PEER_CHUNK_BYTES: u32 = 1024 * 1024;

/// Bytes of the text of a refusal between sessions.
pub const MAX_PEER_MESSAGE_BYTES: u32 = MAX_STRING_BYTES;

/// Bytes of a host in a peer descriptor: a numeric address or a host name fits.
pub const MAX_PEER_HOST_BYTES: u32 = 255;

/// Bytes of the name of a POSIX segment: what a file system takes for one name.
pub const MAX_SEGMENT_NAME_BYTES: u32 = 255;

/// Pause between two HEALTH frames of a session; a health timeout has to be longer.
pub const HEALTH_PERIOD: Duration = Duration::from_millis(200);

const _: () = assert!(MAX_COPY_TO_BYTES == 16_777_168);
const _: () = assert!(MAX_COPY_FROM_BYTES == 16_777_188);
const _: () = assert!(MAX_PEER_CHUNK_BYTES < MAX_PAYLOAD_BYTES - PEER_HEAD_BYTES as u32);
// The largest peer descriptor fits an export's.
const _: () = assert!(
    8 + PEER_TICKET_BYTES as u32 + 4 + MAX_PEER_HOST_BYTES + 4 + 4 + MAX_SEGMENT_NAME_BYTES + 4
        < MAX_TRANSPORT_DESCRIPTOR_BYTES
);
const _: () = assert!(MAX_READY_LINE_BYTES < MAX_JSON_BYTES as usize);
const _: () = assert!(MAX_READY_LINE_BYTES > 6 * MAX_ERROR_MESSAGE_BYTES as usize + 1024);
// The largest task fits a frame: digest, call config, counts, tensors with sidecars, scalars, arena.
const _: () = assert!(
    DIGEST_BYTES as u64
        + 32
        + MAX_OUTPUT_PREFIX_BYTES as u64
        + 12
        + MAX_TENSORS as u64 * (TENSOR_BYTES as u64 + 1 + TENSOR_DESC_BYTES as u64)
        + MAX_SCALARS as u64 * 8
        + MAX_INLINE_BYTES as u64
        <= MAX_PAYLOAD_BYTES as u64
);
// Inline machine code with the longest descriptor fits a control, and a part of a staged blob with the longest token does.
const _: () = assert!(MAX_INLINE_BLOB_BYTES + MAX_CHIP_DESCRIPTOR_BYTES + 256 <= MAX_PAYLOAD_BYTES);
const _: () = assert!(MAX_STAGE_PART_BYTES + MAX_STAGED_TOKEN_BYTES + 256 <= MAX_PAYLOAD_BYTES);
// The largest timed completion fits a frame.
const _: () = assert!(40 + MAX_ERROR_MESSAGE_BYTES + MAX_RESULT_BYTES < MAX_PAYLOAD_BYTES);
