//! The payload of PREPARE_REGISTER for a chip callable.

use std::borrow::Cow;

use crate::callable::sha256;
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::limits::{
    DIGEST_BYTES, MAX_CHIP_DESCRIPTOR_BYTES, MAX_PAYLOAD_BYTES, MAX_STAGED_TOKEN_BYTES,
};

/// Where the machine code is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ChipBlob<'a> {
    /// In the payload (location 1); its length is `blob_size`.
    Inline(Cow<'a, [u8]>),
    /// Staged before (location 2); sessions of version 1 refuse it.
    Staged {
        /// Length of the machine code in bytes.
        blob_size: u64,
        /// What names it, 1 to 1024 bytes.
        token: Cow<'a, [u8]>,
    },
}

const INLINE: u32 = 1;
const STAGED: u32 = 2;

/// A chip callable: its descriptor and its machine code.
///
/// | type | field | rule |
/// |---|---|---|
/// | blob(4096) | descriptor_bytes | |
/// | u32 | blob_location | 1 inline, 2 staged |
/// | u64 | blob_size | not 0 |
/// | 32 bytes | blob_sha256 | verified by the session, [`ChipCallablePayload::check_hash`] |
/// | blob(16 MiB) | inline_blob | inline: blob_size bytes; staged: empty |
/// | blob(1024) | staged_blob_token | inline: empty; staged: not empty |
/// | u32 | reserved | 0 |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChipCallablePayload<'a> {
    /// Descriptor, see [`crate::callable::chip_descriptor`].
    pub descriptor: Cow<'a, [u8]>,
    /// SHA-256 of the machine code.
    pub blob_sha256: [u8; DIGEST_BYTES],
    /// The machine code or where it is.
    pub blob: ChipBlob<'a>,
}

impl<'a> ChipCallablePayload<'a> {
    /// A payload that carries its machine code.
    pub fn inline(descriptor: impl Into<Cow<'a, [u8]>>, blob: impl Into<Cow<'a, [u8]>>) -> Self {
        let blob = blob.into();
        Self {
            descriptor: descriptor.into(),
            blob_sha256: sha256(&blob),
            blob: ChipBlob::Inline(blob),
        }
    }

    /// Length of the machine code in bytes.
    pub fn blob_size(&self) -> u64 {
        match &self.blob {
            ChipBlob::Inline(blob) => blob.len() as u64,
            ChipBlob::Staged { blob_size, .. } => *blob_size,
        }
    }

    /// False when inline machine code has another hash than announced.
    pub fn check_hash(&self) -> bool {
        match &self.blob {
            ChipBlob::Inline(blob) => sha256(blob) == self.blob_sha256,
            ChipBlob::Staged { .. } => true,
        }
    }
}

fn check_size(size: u64) -> Result<(), RuleViolation> {
    if size == 0 {
        return Err(RuleViolation::new(
            "CHIP_CALLABLE.blob_size",
            size,
            "there must be machine code",
        ));
    }
    Ok(())
}

impl Encode for ChipCallablePayload<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        const TOKEN: &str = "CHIP_CALLABLE.staged_blob_token";
        check_size(self.blob_size())?;
        let (location, inline, token): (u32, &[u8], &[u8]) = match &self.blob {
            ChipBlob::Inline(blob) => (INLINE, blob, &[]),
            ChipBlob::Staged { token, .. } if token.is_empty() => {
                return Err(RuleViolation::new(TOKEN, 0, "its length must not be 0").into());
            }
            ChipBlob::Staged { token, .. } => (STAGED, &[], token),
        };
        writer.blob(
            "CHIP_CALLABLE.descriptor_bytes",
            &self.descriptor,
            MAX_CHIP_DESCRIPTOR_BYTES,
        )?;
        writer.u32(location);
        writer.u64(self.blob_size());
        writer.raw(&self.blob_sha256);
        writer.blob("CHIP_CALLABLE.inline_blob", inline, MAX_PAYLOAD_BYTES)?;
        writer.blob(TOKEN, token, MAX_STAGED_TOKEN_BYTES)?;
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for ChipCallablePayload<'a> {
    const NAME: &'static str = "CHIP_CALLABLE";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let descriptor = Cow::Borrowed(
            reader.blob("CHIP_CALLABLE.descriptor_bytes", MAX_CHIP_DESCRIPTOR_BYTES)?,
        );
        let location = reader.u32("CHIP_CALLABLE.blob_location")?;
        let blob_size = reader.u64("CHIP_CALLABLE.blob_size")?;
        let blob_sha256 = reader.array("CHIP_CALLABLE.blob_sha256")?;
        let inline = reader.blob("CHIP_CALLABLE.inline_blob", MAX_PAYLOAD_BYTES)?;
        let token = reader.blob("CHIP_CALLABLE.staged_blob_token", MAX_STAGED_TOKEN_BYTES)?;
        reader.reserved_u32("CHIP_CALLABLE.reserved")?;
        check_size(blob_size)?;
        let blob = blob_of(location, blob_size, inline, token)?;
        Ok(Self {
            descriptor,
            blob_sha256,
            blob,
        })
    }
}

fn blob_of<'a>(
    location: u32,
    blob_size: u64,
    inline: &'a [u8],
    token: &'a [u8],
) -> Result<ChipBlob<'a>, DecodeError> {
    match location {
        INLINE if inline.len() as u64 == blob_size && token.is_empty() => {
            Ok(ChipBlob::Inline(Cow::Borrowed(inline)))
        }
        INLINE => Err(RuleViolation::new(
            "CHIP_CALLABLE.blob_size",
            blob_size,
            "inline machine code has blob_size bytes and no token",
        )
        .into()),
        STAGED if inline.is_empty() && !token.is_empty() => Ok(ChipBlob::Staged {
            blob_size,
            token: Cow::Borrowed(token),
        }),
        STAGED => Err(RuleViolation::new(
            "CHIP_CALLABLE.blob_location",
            location,
            "staged machine code has a token and no inline bytes",
        )
        .into()),
        got => Err(DecodeError::Unknown {
            field: "CHIP_CALLABLE.blob_location",
            got: got.into(),
        }),
    }
}
