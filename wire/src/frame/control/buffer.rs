//! Commands about a worker's own buffers: alloc, free, copy.

use std::borrow::Cow;

use super::{ControlName, CONTROL_VERSION};
use crate::buffer::AddressSpace;
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{must_not_be_zero, DecodeError, EncodeError, RuleViolation};
use crate::id::{BufferId, Generation, WorkerId};
use crate::limits::{COPY_HEADER_BYTES, MAX_COPY_FROM_BYTES, MAX_COPY_TO_BYTES, MAX_PAYLOAD_BYTES};
use crate::task::Carrier;

/// ALLOC_REMOTE_BUFFER: `u64` size in bytes, not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AllocCommand {
    /// Size in bytes.
    pub nbytes: u64,
}

impl Encode for AllocCommand {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        must_not_be_zero("ALLOC_REMOTE_BUFFER.nbytes", self.nbytes)?;
        writer.u64(self.nbytes);
        Ok(())
    }
}

impl<'a> Decode<'a> for AllocCommand {
    const NAME: &'static str = "ALLOC_REMOTE_BUFFER";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let nbytes = reader.u64("ALLOC_REMOTE_BUFFER.nbytes")?;
        must_not_be_zero("ALLOC_REMOTE_BUFFER.nbytes", nbytes)?;
        Ok(Self { nbytes })
    }
}

/// Result of ALLOC_REMOTE_BUFFER, 56 bytes.
///
/// | type | field | rule |
/// |---|---|---|
/// | i32 | worker_id | the session's |
/// | u64 | buffer_id | not 0 |
/// | u64 | generation | not 0 |
/// | i32 | address_space | 2, REMOTE_DEVICE |
/// | u64 | nbytes | not 0, the size asked for |
/// | u64 | remote_addr | a hint |
/// | u64 | rkey_or_token | 0 |
/// | u64 | ub_ldst_va | 0 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AllocResult {
    /// Owner.
    pub worker_id: WorkerId,
    /// Number of the buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// Size in bytes.
    pub nbytes: u64,
    /// Address in the owner's process; nobody relies on it.
    pub remote_addr: u64,
    /// 0 from our sessions.
    pub rkey_or_token: u64,
    /// 0 from our sessions.
    pub ub_ldst_va: u64,
}

impl AllocResult {
    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_zero("AllocResult.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("AllocResult.generation", self.generation.0)?;
        must_not_be_zero("AllocResult.nbytes", self.nbytes)
    }

    /// What a parent demands: its own worker, and the size it asked for.
    ///
    /// # Errors
    /// [`DecodeError::Mismatch`].
    pub fn expect(&self, worker_id: WorkerId, nbytes: u64) -> Result<(), DecodeError> {
        if self.worker_id != worker_id {
            return Err(DecodeError::Mismatch {
                field: "AllocResult.worker_id",
                got: self.worker_id.0.into(),
                expected: worker_id.0.into(),
            });
        }
        if self.nbytes != nbytes {
            return Err(DecodeError::Mismatch {
                field: "AllocResult.nbytes",
                got: self.nbytes.into(),
                expected: nbytes.into(),
            });
        }
        Ok(())
    }
}

impl Encode for AllocResult {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.i32(self.worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u32(AddressSpace::RemoteDevice.code());
        writer.u64(self.nbytes);
        writer.u64(self.remote_addr);
        writer.u64(self.rkey_or_token);
        writer.u64(self.ub_ldst_va);
        Ok(())
    }
}

impl<'a> Decode<'a> for AllocResult {
    const NAME: &'static str = "AllocResult";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        const SPACE: &str = "AllocResult.address_space";
        let worker_id = WorkerId(reader.i32("AllocResult.worker_id")?);
        let buffer_id = BufferId(reader.u64("AllocResult.buffer_id")?);
        let generation = Generation(reader.u64("AllocResult.generation")?);
        let code = reader.u32(SPACE)?;
        match AddressSpace::from_code(code, Carrier::V1) {
            Some(AddressSpace::RemoteDevice) => {}
            Some(_) => {
                let rule = "a new buffer must be REMOTE_DEVICE (2)";
                return Err(RuleViolation::new(SPACE, code, rule).into());
            }
            None => {
                return Err(DecodeError::Unknown {
                    field: SPACE,
                    got: code.into(),
                })
            }
        }
        let result = Self {
            worker_id,
            buffer_id,
            generation,
            nbytes: reader.u64("AllocResult.nbytes")?,
            remote_addr: reader.u64("AllocResult.remote_addr")?,
            rkey_or_token: reader.u64("AllocResult.rkey_or_token")?,
            ub_ldst_va: reader.u64("AllocResult.ub_ldst_va")?,
        };
        result.check()?;
        Ok(result)
    }
}

/// FREE_REMOTE_BUFFER, 20 bytes: `i32` worker, `u64` buffer, `u64` generation. Freeing an unknown buffer succeeds, so
/// the codec demands nothing of the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FreeCommand {
    /// Owner, which has to be the session's worker.
    pub worker_id: WorkerId,
    /// Number of the buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
}

impl Encode for FreeCommand {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        writer.i32(self.worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        Ok(())
    }
}

impl<'a> Decode<'a> for FreeCommand {
    const NAME: &'static str = "FREE_REMOTE_BUFFER";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            worker_id: WorkerId(reader.i32("FREE_REMOTE_BUFFER.worker_id")?),
            buffer_id: BufferId(reader.u64("FREE_REMOTE_BUFFER.buffer_id")?),
            generation: Generation(reader.u64("FREE_REMOTE_BUFFER.generation")?),
        })
    }
}

/// What is copied: 36 bytes, alone in COPY_FROM_REMOTE, before the data in COPY_TO_REMOTE.
///
/// | type | field |
/// |---|---|
/// | i32 | worker_id |
/// | u64 | buffer_id |
/// | u64 | generation |
/// | u64 | offset, bytes |
/// | u64 | size, bytes |
///
/// A size of 0 is legal, also at the end of the buffer. As a [`Decode`] it is the command COPY_FROM_REMOTE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyHeader {
    /// Owner, which has to be the session's worker.
    pub worker_id: WorkerId,
    /// Number of the buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// First byte in the buffer.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl CopyHeader {
    /// First byte after the range.
    ///
    /// # Errors
    /// [`RuleViolation`] when it exceeds `nbytes`, the size of the buffer, or `u64`.
    pub fn check_range(&self, nbytes: u64) -> Result<u64, RuleViolation> {
        match self.offset.checked_add(self.size) {
            Some(end) if end <= nbytes => Ok(end),
            _ => Err(RuleViolation::new(
                "CopyHeader.offset",
                self.offset,
                "offset + size must lie within the buffer",
            )),
        }
    }

    /// Demands that the reply to COPY_FROM_REMOTE fits a frame.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] over 16,777,188 bytes.
    pub const fn check_copy_from(&self) -> Result<(), EncodeError> {
        if self.size > MAX_COPY_FROM_BYTES {
            return Err(EncodeError::TooLong {
                field: "COPY_FROM_REMOTE.size",
                got: self.size,
                limit: MAX_COPY_FROM_BYTES,
            });
        }
        Ok(())
    }

    /// The CONTROL payload of a COPY_TO_REMOTE up to its data, 48 bytes, for data that is written separately.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] over 16,777,168 bytes.
    pub fn encode_copy_to_head(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        check_copy_to(self.size)?;
        writer.u32(ControlName::CopyToRemote.code());
        writer.u32(CONTROL_VERSION);
        // The size was checked, so the sum is below the limit and fits every usize.
        let length = COPY_HEADER_BYTES as usize + self.size as usize;
        writer.length("COPY_TO_REMOTE", length, MAX_PAYLOAD_BYTES)?;
        self.encode(writer)
    }
}

const fn check_copy_to(size: u64) -> Result<(), EncodeError> {
    if size > MAX_COPY_TO_BYTES {
        return Err(EncodeError::TooLong {
            field: "COPY_TO_REMOTE.size",
            got: size,
            limit: MAX_COPY_TO_BYTES,
        });
    }
    Ok(())
}

impl Encode for CopyHeader {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        writer.i32(self.worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u64(self.offset);
        writer.u64(self.size);
        Ok(())
    }
}

impl<'a> Decode<'a> for CopyHeader {
    const NAME: &'static str = "COPY_FROM_REMOTE";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            worker_id: WorkerId(reader.i32("CopyHeader.worker_id")?),
            buffer_id: BufferId(reader.u64("CopyHeader.buffer_id")?),
            generation: Generation(reader.u64("CopyHeader.generation")?),
            offset: reader.u64("CopyHeader.offset")?,
            size: reader.u64("CopyHeader.size")?,
        })
    }
}

/// COPY_TO_REMOTE: the header, then data to the end of the command.
///
/// Decoding does not compare `size` with the data: a session first looks for worker and buffer, then calls
/// [`CopyTo::check_size`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CopyTo<'a> {
    /// Where to.
    pub header: CopyHeader,
    /// What.
    pub data: Cow<'a, [u8]>,
}

impl CopyTo<'_> {
    /// Demands that the data has the announced size.
    ///
    /// # Errors
    /// [`RuleViolation`].
    pub fn check_size(&self) -> Result<(), RuleViolation> {
        if self.data.len() as u64 != self.header.size {
            return Err(RuleViolation::new(
                "COPY_TO_REMOTE.size",
                self.header.size,
                "it must equal the data's length",
            ));
        }
        Ok(())
    }
}

impl Encode for CopyTo<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check_size()?;
        check_copy_to(self.header.size)?;
        self.header.encode(writer)?;
        writer.raw(&self.data);
        Ok(())
    }
}

impl<'a> Decode<'a> for CopyTo<'a> {
    const NAME: &'static str = "COPY_TO_REMOTE";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let header = CopyHeader::read(reader)?;
        Ok(Self {
            header,
            data: Cow::Borrowed(reader.rest()),
        })
    }
}
