//! Frames: a header and a payload. One file for each type; this one puts header and payload together.

pub mod completion;
pub mod control;
pub mod control_reply;
pub mod credits;
pub mod extension;
pub mod header;
pub mod health;
pub mod hello;
pub mod peer;
pub mod shutdown;
pub mod task;

pub use completion::{truncate_utf8, Completion};
pub use control::{Control, ControlName};
pub use control_reply::ControlReply;
pub use credits::Credits;
pub use extension::{FailureKind, Features, TimedCompletion};
pub use header::{FrameHeader, FrameType, MAGIC};
pub use hello::{Hello, ReadyState};

use crate::codec::{Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError};
use crate::id::{Sequence, SessionId, WorkerId};
use crate::limits::{HEADER_BYTES, MAX_PAYLOAD_BYTES};

/// Offset of `payload_bytes` in a header.
const PAYLOAD_BYTES_AT: usize = 32;

/// A header and the bytes after it; the payload is decoded by the type that the header names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: FrameHeader,
    /// Exactly `header.payload_bytes` bytes.
    pub payload: &'a [u8],
}

/// A whole frame around `payload`.
///
/// # Errors
/// [`EncodeError::TooLong`] when the payload is over 16 MiB.
pub fn encode_frame(
    frame_type: FrameType,
    session_id: SessionId,
    worker_id: WorkerId,
    sequence: Sequence,
    payload: &[u8],
) -> Result<Vec<u8>, EncodeError> {
    let header = FrameHeader::new(frame_type, session_id, worker_id, sequence, payload.len())?;
    let mut writer = Writer::with_capacity(HEADER_BYTES + payload.len());
    header.encode(&mut writer)?;
    writer.raw(payload);
    Ok(writer.into_bytes())
}

/// Appends a whole frame whose payload is written in place by `payload`; nothing is copied.
///
/// # Errors
/// The error of `payload`, or [`EncodeError::TooLong`] when it wrote over 16 MiB. The writer then holds a partial frame.
pub fn write_frame(
    writer: &mut Writer,
    frame_type: FrameType,
    session_id: SessionId,
    worker_id: WorkerId,
    sequence: Sequence,
    payload: impl FnOnce(&mut Writer) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = writer.len();
    FrameHeader::new(frame_type, session_id, worker_id, sequence, 0)?.encode(writer)?;
    payload(writer)?;
    let payload_bytes = writer.len().saturating_sub(start + HEADER_BYTES);
    match u32::try_from(payload_bytes) {
        Ok(value) if value <= MAX_PAYLOAD_BYTES => {
            writer.patch_u32(start + PAYLOAD_BYTES_AT, value);
            Ok(())
        }
        _ => Err(EncodeError::TooLong {
            field: "frame.payload_bytes",
            got: payload_bytes as u64,
            limit: MAX_PAYLOAD_BYTES.into(),
        }),
    }
}

/// Splits `bytes`, which have to be one whole version 1 frame.
///
/// # Errors
/// As [`decode_frame_with`].
pub fn decode_frame(bytes: &[u8]) -> Result<Frame<'_>, DecodeError> {
    decode_frame_with(bytes, Features::NONE)
}

/// Splits `bytes`, which have to be one whole frame; `features` are the accepted extensions.
///
/// # Errors
/// As [`FrameHeader::decode_with`], then [`DecodeError::Mismatch`] when the payload has another length than announced.
pub fn decode_frame_with(bytes: &[u8], features: Features) -> Result<Frame<'_>, DecodeError> {
    let header = FrameHeader::decode_with(bytes, features)?;
    let mut reader = Reader::new(bytes);
    reader.take("frame.header", HEADER_BYTES)?;
    let payload = reader.rest();
    if payload.len() as u64 != u64::from(header.payload_bytes) {
        return Err(DecodeError::Mismatch {
            field: "frame.payload_bytes",
            got: header.payload_bytes.into(),
            expected: payload.len() as i128,
        });
    }
    Ok(Frame { header, payload })
}

/// What a session answers, as a failed COMPLETION, to a frame of a type that only sessions send.
pub fn unsupported_frame_message(frame_type: FrameType) -> String {
    format!("unsupported remote frame type {}", frame_type.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: (SessionId, WorkerId, Sequence) = (SessionId(3), WorkerId(1), Sequence(8));

    #[test]
    fn a_frame_written_in_place_is_the_same_frame() {
        let (session, worker, sequence) = IDS;
        let copied = encode_frame(FrameType::Completion, session, worker, sequence, b"payload");
        let mut writer = Writer::from_vec(b"before".to_vec());
        write_frame(
            &mut writer,
            FrameType::Completion,
            session,
            worker,
            sequence,
            |writer| {
                writer.raw(b"payload");
                Ok(())
            },
        )
        .expect("short");
        assert_eq!(
            writer.as_bytes().strip_prefix(b"before"),
            Some(&copied.expect("short")[..])
        );
    }

    #[test]
    fn a_frame_written_in_place_has_the_same_limit() {
        let (session, worker, sequence) = IDS;
        let mut writer = Writer::new();
        let written = write_frame(
            &mut writer,
            FrameType::Task,
            session,
            worker,
            sequence,
            |writer| {
                writer.raw(&vec![0; MAX_PAYLOAD_BYTES as usize + 1]);
                Ok(())
            },
        );
        assert!(matches!(written, Err(EncodeError::TooLong { .. })));
    }

    /// frames of another session or worker are told apart before the payload is looked at.
    #[test]
    fn r_070_frames_of_others_are_refused() {
        let (session, worker, sequence) = IDS;
        let bytes = encode_frame(FrameType::Health, session, worker, sequence, &[]).expect("short");
        let header = decode_frame(&bytes).expect("valid").header;
        header.expect_identity(session, worker).expect("its own");
        assert!(header.expect_identity(SessionId(4), worker).is_err());
        assert!(header.expect_identity(session, WorkerId(2)).is_err());
        health::check_health(&header, session, worker).expect("its own");
        let task = FrameHeader {
            frame_type: FrameType::Task,
            ..header
        };
        assert!(health::check_health(&task, session, worker).is_err());
    }

    #[test]
    fn health_and_shutdown_are_bare_headers() {
        let (session, worker, sequence) = IDS;
        let frames = [
            (
                FrameType::Health,
                health::health_frame(session, worker, sequence),
            ),
            (
                FrameType::Shutdown,
                shutdown::shutdown_frame(session, worker, sequence),
            ),
        ];
        for (frame_type, frame) in frames {
            let expected = encode_frame(frame_type, session, worker, sequence, &[]).expect("short");
            assert_eq!(frame.expect("short").as_slice(), expected);
        }
    }

    #[test]
    fn failure_texts_are_those_of_version_1() {
        assert_eq!(
            unsupported_frame_message(FrameType::Health),
            "unsupported remote frame type 6"
        );
        assert_eq!(
            task::failure_prefix(WorkerId(3), &[0xab, 0xcd], Sequence(9)),
            "remote worker_id=3 hashid=abcd sequence=9: "
        );
        assert_eq!(
            control_reply::failure_prefix(WorkerId(3), Sequence(9)),
            "remote worker_id=3 control sequence=9: "
        );
    }
}
