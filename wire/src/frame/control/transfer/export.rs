//! Exports: what an owner offers.

use std::borrow::Cow;

use crate::buffer::{AccessFlags, AddressSpace};
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{
    must_not_be_negative, must_not_be_zero, DecodeError, EncodeError, RuleViolation,
};
use crate::id::{BufferId, ExportId, Generation, WorkerId};
use crate::limits::{MAX_TRANSPORT_DESCRIPTOR_BYTES, MAX_TRANSPORT_PROFILE_BYTES};

/// EXPORT_BUFFER: lets others reach a range of a buffer.
///
/// | type | field | rule |
/// |---|---|---|
/// | i32 | owner_worker_id | not negative |
/// | u64 | buffer_id | not 0 |
/// | u64 | generation | not 0 |
/// | u64 | offset | absolute in the buffer |
/// | u64 | nbytes | not 0; offset + nbytes within `u64` |
/// | u32 | access_flags | 1..=3 |
/// | str(128) | transport_profile | |
/// | u32 | reserved | 0 |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExportRequest<'a> {
    /// Owner.
    pub owner_worker_id: WorkerId,
    /// Number of the buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// First byte, absolute in the owner's buffer.
    pub offset: u64,
    /// Bytes.
    pub nbytes: u64,
    /// What importers may do at most.
    pub access_flags: AccessFlags,
    /// How importers reach it: "" or "sim" on one host, "tcp" across hosts.
    pub transport_profile: Cow<'a, str>,
}

impl ExportRequest<'_> {
    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_negative("EXPORT_BUFFER.owner_worker_id", self.owner_worker_id)?;
        must_not_be_zero("EXPORT_BUFFER.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("EXPORT_BUFFER.generation", self.generation.0)?;
        must_not_be_zero("EXPORT_BUFFER.nbytes", self.nbytes)?;
        if self.offset.checked_add(self.nbytes).is_none() {
            return Err(RuleViolation::new(
                "EXPORT_BUFFER.offset",
                self.offset,
                "offset + nbytes must not exceed 2^64-1",
            ));
        }
        Ok(())
    }
}

impl Encode for ExportRequest<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.i32(self.owner_worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u64(self.offset);
        writer.u64(self.nbytes);
        writer.u32(self.access_flags.bits());
        let profile = "EXPORT_BUFFER.transport_profile";
        writer.str(
            profile,
            &self.transport_profile,
            MAX_TRANSPORT_PROFILE_BYTES,
        )?;
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for ExportRequest<'a> {
    const NAME: &'static str = "EXPORT_BUFFER";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let request = Self {
            owner_worker_id: WorkerId(reader.i32("EXPORT_BUFFER.owner_worker_id")?),
            buffer_id: BufferId(reader.u64("EXPORT_BUFFER.buffer_id")?),
            generation: Generation(reader.u64("EXPORT_BUFFER.generation")?),
            offset: reader.u64("EXPORT_BUFFER.offset")?,
            nbytes: reader.u64("EXPORT_BUFFER.nbytes")?,
            access_flags: AccessFlags::read(reader, "EXPORT_BUFFER.access_flags")?,
            transport_profile: Cow::Borrowed(reader.str(
                "EXPORT_BUFFER.transport_profile",
                MAX_TRANSPORT_PROFILE_BYTES,
            )?),
        };
        reader.reserved_u32("EXPORT_BUFFER.reserved")?;
        request.check()?;
        Ok(request)
    }
}

/// What an owner says about an export; an importer gets it as it is. 76 bytes, the two variable fields, and the
/// reserved word.
///
/// | type | field | rule |
/// |---|---|---|
/// | i32 | owner_worker_id | not negative |
/// | u64 | buffer_id | not 0 |
/// | u64 | generation | not 0 |
/// | u32 | address_space | 3 or 4 |
/// | u64 | offset | absolute in the owner's buffer |
/// | u64 | nbytes | not 0 |
/// | u64 | export_id | not 0 |
/// | u64 | remote_addr | a hint |
/// | u64 | rkey_or_token | |
/// | u64 | ub_ldst_va | |
/// | u32 | access_flags | 1..=3 |
/// | str(128) | transport_profile | |
/// | blob(4096) | transport_descriptor | by profile: for "sim" the name of a POSIX segment, for "tcp" a [`super::TcpDescriptor`] |
/// | u32 | reserved | 0 |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExportResult<'a> {
    /// Owner.
    pub owner_worker_id: WorkerId,
    /// Number of the buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// A window, see [`AddressSpace`].
    pub address_space: AddressSpace,
    /// First byte, absolute in the owner's buffer.
    pub offset: u64,
    /// Bytes.
    pub nbytes: u64,
    /// Number of the export within its owner.
    pub export_id: ExportId,
    /// Address in the owner's process; nobody relies on it.
    pub remote_addr: u64,
    /// Number of the export again, from our sessions.
    pub rkey_or_token: u64,
    /// 0 from our sessions.
    pub ub_ldst_va: u64,
    /// What importers may do at most.
    pub access_flags: AccessFlags,
    /// How importers reach it.
    pub transport_profile: Cow<'a, str>,
    /// Where importers find it.
    pub transport_descriptor: Cow<'a, [u8]>,
}

impl ExportResult<'_> {
    /// The same description with fields of its own.
    pub fn into_owned(self) -> ExportResult<'static> {
        ExportResult {
            owner_worker_id: self.owner_worker_id,
            buffer_id: self.buffer_id,
            generation: self.generation,
            address_space: self.address_space,
            offset: self.offset,
            nbytes: self.nbytes,
            export_id: self.export_id,
            remote_addr: self.remote_addr,
            rkey_or_token: self.rkey_or_token,
            ub_ldst_va: self.ub_ldst_va,
            access_flags: self.access_flags,
            transport_profile: Cow::Owned(self.transport_profile.into_owned()),
            transport_descriptor: Cow::Owned(self.transport_descriptor.into_owned()),
        }
    }

    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_negative("ExportResult.owner_worker_id", self.owner_worker_id)?;
        must_not_be_zero("ExportResult.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("ExportResult.generation", self.generation.0)?;
        self.address_space
            .check_window("ExportResult.address_space")?;
        must_not_be_zero("ExportResult.nbytes", self.nbytes)?;
        must_not_be_zero("ExportResult.export_id", self.export_id.0)
    }
}

impl Encode for ExportResult<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.i32(self.owner_worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u32(self.address_space.code());
        writer.u64(self.offset);
        writer.u64(self.nbytes);
        writer.u64(self.export_id.0);
        writer.u64(self.remote_addr);
        writer.u64(self.rkey_or_token);
        writer.u64(self.ub_ldst_va);
        writer.u32(self.access_flags.bits());
        let (profile, descriptor) = (
            "ExportResult.transport_profile",
            "ExportResult.transport_descriptor",
        );
        writer.str(
            profile,
            &self.transport_profile,
            MAX_TRANSPORT_PROFILE_BYTES,
        )?;
        writer.blob(
            descriptor,
            &self.transport_descriptor,
            MAX_TRANSPORT_DESCRIPTOR_BYTES,
        )?;
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for ExportResult<'a> {
    const NAME: &'static str = "ExportResult";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let result = Self {
            owner_worker_id: WorkerId(reader.i32("ExportResult.owner_worker_id")?),
            buffer_id: BufferId(reader.u64("ExportResult.buffer_id")?),
            generation: Generation(reader.u64("ExportResult.generation")?),
            address_space: AddressSpace::read_window(reader, "ExportResult.address_space")?,
            offset: reader.u64("ExportResult.offset")?,
            nbytes: reader.u64("ExportResult.nbytes")?,
            export_id: ExportId(reader.u64("ExportResult.export_id")?),
            remote_addr: reader.u64("ExportResult.remote_addr")?,
            rkey_or_token: reader.u64("ExportResult.rkey_or_token")?,
            ub_ldst_va: reader.u64("ExportResult.ub_ldst_va")?,
            access_flags: AccessFlags::read(reader, "ExportResult.access_flags")?,
            transport_profile: Cow::Borrowed(reader.str(
                "ExportResult.transport_profile",
                MAX_TRANSPORT_PROFILE_BYTES,
            )?),
            transport_descriptor: Cow::Borrowed(reader.blob(
                "ExportResult.transport_descriptor",
                MAX_TRANSPORT_DESCRIPTOR_BYTES,
            )?),
        };
        reader.reserved_u32("ExportResult.reserved")?;
        result.check()?;
        Ok(result)
    }
}
