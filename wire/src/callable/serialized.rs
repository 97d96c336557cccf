//! The envelope of a serialized callable.

use crate::codec::{Reader, Writer};
use crate::error::{DecodeError, EncodeError};
use crate::limits::{MAX_PAYLOAD_BYTES, SERIALIZED_HEADER_BYTES};

const SERIALIZED_MAGIC: [u8; 4] = *b"SPYC";
pub(super) const SERIALIZED_VERSION: u8 = 1;
pub(super) const SERIALIZER: u8 = 1;

/// Wraps a serializer's bytes: `SPYC`, version 1, serializer 1, 16 bits of flags (0), 64 bits of size, the bytes.
///
/// # Errors
/// [`EncodeError::TooLong`] when the result would not fit a register command (16 MiB).
pub fn encode_serialized(payload: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let limit = serialized_limit();
    if payload.len() as u64 > limit {
        return Err(EncodeError::TooLong {
            field: "Serialized.size",
            got: payload.len() as u64,
            limit,
        });
    }
    let mut writer = Writer::with_capacity(SERIALIZED_HEADER_BYTES + payload.len());
    writer.raw(&SERIALIZED_MAGIC);
    writer.u8(SERIALIZED_VERSION);
    writer.u8(SERIALIZER);
    writer.u16(0);
    writer.u64(payload.len() as u64);
    writer.raw(payload);
    Ok(writer.into_bytes())
}

/// The serializer's bytes within an envelope of [`encode_serialized`].
///
/// # Errors
/// [`DecodeError`] for another magic, version, serializer or flag, or when the size is not that of the rest.
pub fn decode_serialized(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(bytes);
    if reader.array("Serialized.magic")? != SERIALIZED_MAGIC {
        return Err(DecodeError::BadMagic {
            field: "Serialized.magic",
        });
    }
    for (field, expected) in [
        ("Serialized.version", SERIALIZED_VERSION),
        ("Serialized.serializer", SERIALIZER),
    ] {
        let got = reader.u8(field)?;
        if got != expected {
            return Err(DecodeError::Mismatch {
                field,
                got: got.into(),
                expected: expected.into(),
            });
        }
    }
    if reader.u16("Serialized.flags")? != 0 {
        return Err(DecodeError::NonZeroReserved {
            field: "Serialized.flags",
        });
    }
    let size = reader.u64("Serialized.size")?;
    let limit = serialized_limit();
    if size > limit {
        return Err(DecodeError::TooLong {
            field: "Serialized.size",
            got: size,
            limit,
        });
    }
    reader.require("Serialized.payload", size)?;
    let payload = reader.rest();
    match (payload.len() as u64).checked_sub(size) {
        Some(0) => Ok(payload),
        surplus => Err(DecodeError::Trailing {
            what: "Serialized",
            count: surplus.unwrap_or_default(),
        }),
    }
}

fn serialized_limit() -> u64 {
    u64::from(MAX_PAYLOAD_BYTES) - SERIALIZED_HEADER_BYTES as u64
}
