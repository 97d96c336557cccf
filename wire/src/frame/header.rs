//! The 40-byte frame header.

use crate::codec::{Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::frame::extension::Features;
use crate::id::{Sequence, SessionId, WorkerId};
use crate::limits::{HEADER_BYTES, MAX_PAYLOAD_BYTES, PROTOCOL_VERSION};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"SLR3";

/// Offset of `payload_bytes` in the header.
const PAYLOAD_BYTES_AT: usize = 32;

/// What a frame is. Types from 64 on exist only after they were negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FrameType {
    /// Session to parent, first on the command lane.
    Hello = 1,
    /// Parent to session: run a callable.
    Task = 2,
    /// Parent to session: everything else.
    Control = 3,
    /// Session to parent: answer to CONTROL.
    ControlReply = 4,
    /// Session to parent: answer to TASK.
    Completion = 5,
    /// Session to parent on the health lane.
    Health = 6,
    /// Parent to session: end.
    Shutdown = 7,
    /// Session to parent: answer to TASK with times, see [`Features::TIMED_COMPLETION`].
    TimedCompletion = 64,
    /// Importer to owner on a peer lane: send me these bytes, see [`Features::PEER_FETCH`].
    PeerRead = 65,
    /// Importer to owner on a peer lane: take these bytes.
    PeerWrite = 66,
    /// Owner to importer: the answer to a read, raw bytes.
    PeerData = 67,
    /// Owner to importer: the answer to a write, empty.
    PeerDone = 68,
    /// Owner to importer: the answer to either when it is not done.
    PeerRefused = 69,
}

impl FrameType {
    /// Code in the header.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The type of a code; those of extensions only when `features` has their bit.
    pub const fn from_code(code: u32, features: Features) -> Option<Self> {
        match code {
            1 => Some(Self::Hello),
            2 => Some(Self::Task),
            3 => Some(Self::Control),
            4 => Some(Self::ControlReply),
            5 => Some(Self::Completion),
            6 => Some(Self::Health),
            7 => Some(Self::Shutdown),
            64 if features.contains(Features::TIMED_COMPLETION) => Some(Self::TimedCompletion),
            65..=69 if features.contains(Features::PEER_FETCH) => Self::of_peer_lane(code),
            _ => None,
        }
    }

    const fn of_peer_lane(code: u32) -> Option<Self> {
        match code {
            65 => Some(Self::PeerRead),
            66 => Some(Self::PeerWrite),
            67 => Some(Self::PeerData),
            68 => Some(Self::PeerDone),
            69 => Some(Self::PeerRefused),
            _ => None,
        }
    }
}

/// A frame's header.
///
/// | offset | type | field | rule |
/// |---:|---|---|---|
/// | 0 | 4 bytes | magic | `SLR3` |
/// | 4 | u32 | version | 1 |
/// | 8 | u32 | frame_type | 1..=7, negotiated ones from 64 on |
/// | 12 | u64 | session_id | |
/// | 20 | i32 | worker_id | |
/// | 24 | u64 | sequence | |
/// | 32 | u32 | payload_bytes | at most 16 MiB |
/// | 36 | u32 | flags | 0 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    /// What the frame is.
    pub frame_type: FrameType,
    /// Session the frame belongs to; the receiver compares it before it looks at the payload.
    pub session_id: SessionId,
    /// Worker the frame belongs to; compared likewise.
    pub worker_id: WorkerId,
    /// Number of the command, or a copy of it in the answer.
    pub sequence: Sequence,
    /// Bytes that follow the header.
    pub payload_bytes: u32,
    /// Reserved, 0.
    pub flags: u32,
}

impl FrameHeader {
    /// A header for a payload of `payload_bytes` bytes.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] over 16 MiB.
    pub fn new(
        frame_type: FrameType,
        session_id: SessionId,
        worker_id: WorkerId,
        sequence: Sequence,
        payload_bytes: usize,
    ) -> Result<Self, EncodeError> {
        let too_long = EncodeError::TooLong {
            field: "frame.payload_bytes",
            got: payload_bytes as u64,
            limit: MAX_PAYLOAD_BYTES.into(),
        };
        match u32::try_from(payload_bytes) {
            Ok(payload_bytes) if payload_bytes <= MAX_PAYLOAD_BYTES => Ok(Self {
                frame_type,
                session_id,
                worker_id,
                sequence,
                payload_bytes,
                flags: 0,
            }),
            _ => Err(too_long),
        }
    }

    /// First check of a stream reader: bytes of the payload that follows, refused over the limit before any memory is
    /// taken. Everything else is checked by [`FrameHeader::decode`], which the reader may call at once.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`].
    pub fn payload_len(header: &[u8; HEADER_BYTES]) -> Result<usize, DecodeError> {
        let mut reader = Reader::new(header);
        reader.take("frame", PAYLOAD_BYTES_AT)?;
        let payload_bytes = reader.u32("frame.payload_bytes")?;
        check_payload_bytes(payload_bytes)?;
        Ok(payload_bytes as usize)
    }

    /// Reads the header of a version 1 frame from the first 40 bytes of `bytes`.
    ///
    /// # Errors
    /// As [`FrameHeader::decode_with`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_with(bytes, Features::NONE)
    }

    /// Reads the header from the first 40 bytes of `bytes`; `features` are the accepted extensions.
    ///
    /// # Errors
    /// [`DecodeError`] for the first that fails of: length, magic, version, frame type, flags, payload over the limit.
    pub fn decode_with(bytes: &[u8], features: Features) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.require("frame.header", HEADER_BYTES as u64)?;
        if reader.array("frame.magic")? != MAGIC {
            return Err(DecodeError::BadMagic {
                field: "frame.magic",
            });
        }
        let version = reader.u32("frame.version")?;
        if version != PROTOCOL_VERSION {
            return Err(DecodeError::Mismatch {
                field: "frame.version",
                got: version.into(),
                expected: PROTOCOL_VERSION.into(),
            });
        }
        let code = reader.u32("frame.frame_type")?;
        let frame_type = DecodeError::known(
            FrameType::from_code(code, features),
            "frame.frame_type",
            code,
        )?;
        let session_id = SessionId(reader.u64("frame.session_id")?);
        let worker_id = WorkerId(reader.i32("frame.worker_id")?);
        let sequence = Sequence(reader.u64("frame.sequence")?);
        let payload_bytes = reader.u32("frame.payload_bytes")?;
        reader.reserved_u32("frame.flags")?;
        check_payload_bytes(payload_bytes)?;
        Ok(Self {
            frame_type,
            session_id,
            worker_id,
            sequence,
            payload_bytes,
            flags: 0,
        })
    }

    /// Demands that the frame belongs to that session and worker, before anybody looks at the payload.
    ///
    /// # Errors
    /// [`DecodeError::Mismatch`].
    pub fn expect_identity(
        &self,
        session_id: SessionId,
        worker_id: WorkerId,
    ) -> Result<(), DecodeError> {
        if self.session_id != session_id {
            return Err(DecodeError::Mismatch {
                field: "frame.session_id",
                got: self.session_id.0.into(),
                expected: session_id.0.into(),
            });
        }
        if self.worker_id != worker_id {
            return Err(DecodeError::Mismatch {
                field: "frame.worker_id",
                got: self.worker_id.0.into(),
                expected: worker_id.0.into(),
            });
        }
        Ok(())
    }

    /// The header as an array, for vectored writes.
    ///
    /// # Errors
    /// As its encoding.
    pub fn to_array(&self) -> Result<[u8; HEADER_BYTES], EncodeError> {
        let mut writer = Writer::with_capacity(HEADER_BYTES);
        self.encode(&mut writer)?;
        let mut header = [0; HEADER_BYTES];
        for (to, from) in header.iter_mut().zip(writer.as_bytes()) {
            *to = *from;
        }
        Ok(header)
    }
}

fn check_payload_bytes(payload_bytes: u32) -> Result<(), DecodeError> {
    if payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(DecodeError::TooLong {
            field: "frame.payload_bytes",
            got: payload_bytes.into(),
            limit: MAX_PAYLOAD_BYTES.into(),
        });
    }
    Ok(())
}

impl Encode for FrameHeader {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        if self.flags != 0 {
            return Err(RuleViolation::new(
                "frame.flags",
                self.flags,
                "flags are reserved in version 1",
            )
            .into());
        }
        if self.payload_bytes > MAX_PAYLOAD_BYTES {
            return Err(EncodeError::TooLong {
                field: "frame.payload_bytes",
                got: self.payload_bytes.into(),
                limit: MAX_PAYLOAD_BYTES.into(),
            });
        }
        writer.raw(&MAGIC);
        writer.u32(PROTOCOL_VERSION);
        writer.u32(self.frame_type.code());
        writer.u64(self.session_id.0);
        writer.i32(self.worker_id.0);
        writer.u64(self.sequence.0);
        writer.u32(self.payload_bytes);
        writer.u32(self.flags);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; HEADER_BYTES] {
        FrameHeader::new(FrameType::Task, SessionId(7), WorkerId(3), Sequence(9), 5)
            .and_then(|header| header.to_array())
            .expect("encodes")
    }

    /// the order in which a wrong header is refused: each step repairs the first fault.
    #[test]
    fn checks_have_the_order_of_the_contract() {
        let mut bytes = header();
        bytes[0] = b'X';
        bytes[4] = 2;
        bytes[8] = 8;
        bytes[36] = 1;
        bytes[35] = 0xff;
        let field = |bytes: &[u8]| match FrameHeader::decode(bytes) {
            Err(
                DecodeError::Truncated { field, .. }
                | DecodeError::BadMagic { field }
                | DecodeError::Mismatch { field, .. }
                | DecodeError::Unknown { field, .. }
                | DecodeError::NonZeroReserved { field }
                | DecodeError::TooLong { field, .. },
            ) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(&bytes[..39]), "frame.header");
        assert_eq!(field(&bytes), "frame.magic");
        bytes[0] = b'S';
        assert_eq!(field(&bytes), "frame.version");
        bytes[4] = 1;
        assert_eq!(field(&bytes), "frame.frame_type");
        bytes[8] = 7;
        assert_eq!(field(&bytes), "frame.flags");
        bytes[36] = 0;
        assert_eq!(field(&bytes), "frame.payload_bytes");
        bytes[35] = 0;
        assert!(FrameHeader::decode(&bytes).is_ok());
    }

    /// and refuses one over the limit, whatever else the header says.
    #[test]
    fn a_stream_reader_learns_the_length_first() {
        let mut bytes = header();
        bytes[0] = b'X';
        assert_eq!(FrameHeader::payload_len(&bytes), Ok(5));
        bytes[32..36].copy_from_slice(&(MAX_PAYLOAD_BYTES + 1).to_le_bytes());
        assert!(matches!(
            FrameHeader::payload_len(&bytes),
            Err(DecodeError::TooLong { .. })
        ));
    }

    #[test]
    fn extension_types_exist_after_negotiation_only() {
        let mut bytes = header();
        bytes[8] = 64;
        assert_eq!(
            FrameHeader::decode(&bytes),
            Err(DecodeError::Unknown {
                field: "frame.frame_type",
                got: 64
            })
        );
        let header =
            FrameHeader::decode_with(&bytes, Features::TIMED_COMPLETION).expect("negotiated");
        assert_eq!(header.frame_type, FrameType::TimedCompletion);
        assert!(FrameHeader::decode_with(&bytes, Features::PIPELINING).is_err());
        for code in 65..=70_u8 {
            bytes[8] = code;
            let peer = FrameHeader::decode_with(&bytes, Features::PEER_FETCH);
            assert_eq!(
                peer.ok().map(|header| header.frame_type.code()),
                (code < 70).then_some(code.into())
            );
            assert!(FrameHeader::decode_with(&bytes, Features::TIMED_COMPLETION).is_err());
        }
    }
}
