//! Commands that stage machine code in parts (extension `staged_blobs`).
//!
//! STAGE_BEGIN announces size and hash and is answered with a token; STAGE_APPEND brings the parts in order; STAGE_SEAL has the whole
//! checked. PREPARE_REGISTER then names the token, which serves one registration. STAGE_DROP forgets it.

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::limits::{
    DIGEST_BYTES, MAX_CHIP_BLOB_BYTES, MAX_STAGED_TOKEN_BYTES, MAX_STAGE_PART_BYTES,
};

/// Announces machine code: STAGE_BEGIN. 40 bytes.
///
/// | type | field | rule |
/// |---|---|---|
/// | u64 | blob_size | 1 to 64 MiB |
/// | 32 bytes | blob_sha256 | STAGE_SEAL compares it |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StageBegin {
    /// Bytes that all parts have together.
    pub blob_size: u64,
    /// Their SHA-256.
    pub blob_sha256: [u8; DIGEST_BYTES],
}

impl StageBegin {
    fn check(&self) -> Result<(), RuleViolation> {
        if self.blob_size == 0 || self.blob_size > MAX_CHIP_BLOB_BYTES {
            return Err(RuleViolation::new(
                "STAGE_BEGIN.blob_size",
                self.blob_size,
                "machine code has 1 to 67108864 bytes",
            ));
        }
        Ok(())
    }
}

impl Encode for StageBegin {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.u64(self.blob_size);
        writer.raw(&self.blob_sha256);
        Ok(())
    }
}

impl<'a> Decode<'a> for StageBegin {
    const NAME: &'static str = "STAGE_BEGIN";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let begin = Self {
            blob_size: reader.u64("STAGE_BEGIN.blob_size")?,
            blob_sha256: reader.array("STAGE_BEGIN.blob_sha256")?,
        };
        begin.check()?;
        Ok(begin)
    }
}

/// Names what is staged: the result of STAGE_BEGIN, and the command of STAGE_SEAL and STAGE_DROP.
///
/// | type | field | rule |
/// |---|---|---|
/// | blob(1024) | token | not empty; no meaning to a parent |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StageToken<'a> {
    /// The name.
    pub token: Cow<'a, [u8]>,
}

fn write_token(writer: &mut Writer, token: &[u8]) -> Result<(), EncodeError> {
    check_token(token)?;
    writer.blob("StageToken.token", token, MAX_STAGED_TOKEN_BYTES)
}

fn read_token<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, [u8]>, DecodeError> {
    let token = reader.blob("StageToken.token", MAX_STAGED_TOKEN_BYTES)?;
    check_token(token)?;
    Ok(token.into())
}

fn check_token(token: &[u8]) -> Result<(), RuleViolation> {
    if token.is_empty() {
        return Err(RuleViolation::new(
            "StageToken.token",
            0_u64,
            "a token is not empty",
        ));
    }
    Ok(())
}

impl Encode for StageToken<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        write_token(writer, &self.token)
    }
}

impl<'a> Decode<'a> for StageToken<'a> {
    const NAME: &'static str = "StageToken";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            token: read_token(reader)?,
        })
    }
}

/// The next part: STAGE_APPEND.
///
/// | type | field | rule |
/// |---|---|---|
/// | blob(1024) | token | not empty |
/// | u64 | offset | the bytes that are there already |
/// | blob(16 MiB - 4 KiB) | part | not empty |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StageAppend<'a> {
    /// What STAGE_BEGIN answered.
    pub token: Cow<'a, [u8]>,
    /// Where the part belongs: parts come in order.
    pub offset: u64,
    /// The bytes.
    pub part: Cow<'a, [u8]>,
}

impl StageAppend<'_> {
    fn check(&self) -> Result<(), RuleViolation> {
        if self.part.is_empty() {
            return Err(RuleViolation::new(
                "STAGE_APPEND.part",
                0_u64,
                "a part is not empty",
            ));
        }
        Ok(())
    }
}

impl Encode for StageAppend<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        write_token(writer, &self.token)?;
        writer.u64(self.offset);
        writer.blob("STAGE_APPEND.part", &self.part, MAX_STAGE_PART_BYTES)
    }
}

impl<'a> Decode<'a> for StageAppend<'a> {
    const NAME: &'static str = "STAGE_APPEND";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let append = Self {
            token: read_token(reader)?,
            offset: reader.u64("STAGE_APPEND.offset")?,
            part: reader
                .blob("STAGE_APPEND.part", MAX_STAGE_PART_BYTES)?
                .into(),
        };
        append.check()?;
        Ok(append)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_cut_is_refused<T>(value: &T, again: impl Fn(&[u8]) -> Option<T>)
    where
        T: Encode + PartialEq + std::fmt::Debug,
    {
        let bytes = value.to_bytes().expect("valid");
        assert_eq!(again(&bytes).as_ref(), Some(value));
        for end in 0..bytes.len() {
            assert_eq!(again(&bytes[..end]), None, "{end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(again(&longer), None);
    }

    #[test]
    fn commands_are_read_as_they_were_written() {
        let begin = StageBegin {
            blob_size: MAX_CHIP_BLOB_BYTES,
            blob_sha256: [3; DIGEST_BYTES],
        };
        every_cut_is_refused(&begin, |bytes| StageBegin::decode(bytes).ok());
        let token = StageToken {
            token: vec![1; 16].into(),
        };
        every_cut_is_refused(&token, |bytes| {
            let token = StageToken::decode(bytes).ok()?.token.into_owned();
            Some(StageToken {
                token: token.into(),
            })
        });
        let append = StageAppend {
            token: vec![1; 16].into(),
            offset: 9,
            part: vec![5; 3].into(),
        };
        every_cut_is_refused(&append, |bytes| {
            let read = StageAppend::decode(bytes).ok()?;
            Some(StageAppend {
                token: read.token.into_owned().into(),
                offset: read.offset,
                part: read.part.into_owned().into(),
            })
        });
    }

    #[test]
    fn sizes_outside_the_limits_are_refused() {
        for blob_size in [0, MAX_CHIP_BLOB_BYTES + 1, u64::MAX] {
            let begin = StageBegin {
                blob_size,
                blob_sha256: [0; DIGEST_BYTES],
            };
            assert!(begin.to_bytes().is_err());
            let bytes = [&blob_size.to_le_bytes()[..], &[0; 32]].concat();
            assert!(StageBegin::decode(&bytes).is_err());
        }
        for token in [vec![], vec![0; MAX_STAGED_TOKEN_BYTES as usize + 1]] {
            assert!(StageToken {
                token: token.into()
            }
            .to_bytes()
            .is_err());
        }
        let empty = StageAppend {
            token: vec![1].into(),
            offset: 0,
            part: Cow::Borrowed(&[]),
        };
        assert!(empty.to_bytes().is_err());
    }
}
