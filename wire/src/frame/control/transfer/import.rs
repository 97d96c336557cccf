//! Imports: what another worker takes of it.

use std::borrow::Cow;

use crate::buffer::{AccessFlags, AddressSpace};
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{
    must_not_be_negative, must_not_be_zero, DecodeError, EncodeError, RuleViolation,
};
use crate::id::{BufferId, Generation, ImportId, WorkerId};
use crate::limits::{MAX_TRANSPORT_DESCRIPTOR_BYTES, MAX_TRANSPORT_PROFILE_BYTES};

use super::ExportResult;

/// IMPORT_BUFFER: reach an export of another worker.
///
/// | type | field | rule |
/// |---|---|---|
/// | i32 | importer_worker_id | not negative |
/// | u32 | requested_access_flags | 1..=3, within those of the export |
/// | … | export | a whole [`ExportResult`] with its own reserved word |
/// | u32 | reserved | 0 |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImportRequest<'a> {
    /// Importer, which has to be the session's worker.
    pub importer_worker_id: WorkerId,
    /// What the importer wants to do.
    pub requested_access_flags: AccessFlags,
    /// The export, as its owner described it.
    pub export: ExportResult<'a>,
}

impl ImportRequest<'_> {
    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_negative("IMPORT_BUFFER.importer_worker_id", self.importer_worker_id)?;
        if !self
            .export
            .access_flags
            .contains(self.requested_access_flags)
        {
            return Err(RuleViolation::new(
                "IMPORT_BUFFER.requested_access_flags",
                self.requested_access_flags.bits(),
                "the export does not grant all of it",
            ));
        }
        Ok(())
    }
}

impl Encode for ImportRequest<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.i32(self.importer_worker_id.0);
        writer.u32(self.requested_access_flags.bits());
        self.export.encode(writer)?;
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for ImportRequest<'a> {
    const NAME: &'static str = "IMPORT_BUFFER";

    /// Takes all that is left: the last 4 bytes are the reserved word and everything before them is the export.
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let importer_worker_id = WorkerId(reader.i32("IMPORT_BUFFER.importer_worker_id")?);
        let requested_access_flags =
            AccessFlags::read(reader, "IMPORT_BUFFER.requested_access_flags")?;
        let export = ExportResult::decode(reader.take_all_but("IMPORT_BUFFER.reserved", 4)?)?;
        reader.reserved_u32("IMPORT_BUFFER.reserved")?;
        let request = Self {
            importer_worker_id,
            requested_access_flags,
            export,
        };
        request.check()?;
        Ok(request)
    }
}

/// Result of IMPORT_BUFFER. 80 bytes, the two variable fields, and the reserved word.
///
/// | type | field | rule |
/// |---|---|---|
/// | i32 | importer_worker_id | not negative |
/// | i32 | owner_worker_id | not negative |
/// | u64 | buffer_id | not 0 |
/// | u64 | generation | not 0 |
/// | u64 | import_id | not 0 |
/// | u32 | address_space | 3 or 4 |
/// | u64 | offset | the export's |
/// | u64 | nbytes | not 0 when written; not checked on receipt |
/// | u64 | remote_addr | a hint |
/// | u64 | rkey_or_token | the import id again |
/// | u64 | ub_ldst_va | |
/// | u32 | access_flags | 1..=3 |
/// | str(128) | transport_profile | |
/// | blob(4096) | import_descriptor | |
/// | u32 | reserved | 0 |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImportResult<'a> {
    /// Importer.
    pub importer_worker_id: WorkerId,
    /// Owner.
    pub owner_worker_id: WorkerId,
    /// Number of the owner's buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// Number of the import within the importer.
    pub import_id: ImportId,
    /// A window, see [`AddressSpace`].
    pub address_space: AddressSpace,
    /// First byte, absolute in the owner's buffer.
    pub offset: u64,
    /// Bytes.
    pub nbytes: u64,
    /// Address in the importer's process; nobody relies on it.
    pub remote_addr: u64,
    /// Number of the import again; a descriptor of a window carries it.
    pub rkey_or_token: u64,
    /// 0 from our sessions.
    pub ub_ldst_va: u64,
    /// What was granted.
    pub access_flags: AccessFlags,
    /// How the importer reaches it.
    pub transport_profile: Cow<'a, str>,
    /// Empty from our sessions.
    pub import_descriptor: Cow<'a, [u8]>,
}

impl ImportResult<'_> {
    /// The same result with fields of its own.
    pub fn into_owned(self) -> ImportResult<'static> {
        ImportResult {
            importer_worker_id: self.importer_worker_id,
            owner_worker_id: self.owner_worker_id,
            buffer_id: self.buffer_id,
            generation: self.generation,
            import_id: self.import_id,
            address_space: self.address_space,
            offset: self.offset,
            nbytes: self.nbytes,
            remote_addr: self.remote_addr,
            rkey_or_token: self.rkey_or_token,
            ub_ldst_va: self.ub_ldst_va,
            access_flags: self.access_flags,
            transport_profile: Cow::Owned(self.transport_profile.into_owned()),
            import_descriptor: Cow::Owned(self.import_descriptor.into_owned()),
        }
    }

    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_negative("ImportResult.importer_worker_id", self.importer_worker_id)?;
        must_not_be_negative("ImportResult.owner_worker_id", self.owner_worker_id)?;
        must_not_be_zero("ImportResult.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("ImportResult.generation", self.generation.0)?;
        must_not_be_zero("ImportResult.import_id", self.import_id.0)?;
        self.address_space
            .check_window("ImportResult.address_space")
    }
}

impl Encode for ImportResult<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        must_not_be_zero("ImportResult.nbytes", self.nbytes)?;
        writer.i32(self.importer_worker_id.0);
        writer.i32(self.owner_worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u64(self.import_id.0);
        writer.u32(self.address_space.code());
        writer.u64(self.offset);
        writer.u64(self.nbytes);
        writer.u64(self.remote_addr);
        writer.u64(self.rkey_or_token);
        writer.u64(self.ub_ldst_va);
        writer.u32(self.access_flags.bits());
        let (profile, descriptor) = (
            "ImportResult.transport_profile",
            "ImportResult.import_descriptor",
        );
        writer.str(
            profile,
            &self.transport_profile,
            MAX_TRANSPORT_PROFILE_BYTES,
        )?;
        writer.blob(
            descriptor,
            &self.import_descriptor,
            MAX_TRANSPORT_DESCRIPTOR_BYTES,
        )?;
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for ImportResult<'a> {
    const NAME: &'static str = "ImportResult";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let result = Self {
            importer_worker_id: WorkerId(reader.i32("ImportResult.importer_worker_id")?),
            owner_worker_id: WorkerId(reader.i32("ImportResult.owner_worker_id")?),
            buffer_id: BufferId(reader.u64("ImportResult.buffer_id")?),
            generation: Generation(reader.u64("ImportResult.generation")?),
            import_id: ImportId(reader.u64("ImportResult.import_id")?),
            address_space: AddressSpace::read_window(reader, "ImportResult.address_space")?,
            offset: reader.u64("ImportResult.offset")?,
            nbytes: reader.u64("ImportResult.nbytes")?,
            remote_addr: reader.u64("ImportResult.remote_addr")?,
            rkey_or_token: reader.u64("ImportResult.rkey_or_token")?,
            ub_ldst_va: reader.u64("ImportResult.ub_ldst_va")?,
            access_flags: AccessFlags::read(reader, "ImportResult.access_flags")?,
            transport_profile: Cow::Borrowed(reader.str(
                "ImportResult.transport_profile",
                MAX_TRANSPORT_PROFILE_BYTES,
            )?),
            import_descriptor: Cow::Borrowed(reader.blob(
                "ImportResult.import_descriptor",
                MAX_TRANSPORT_DESCRIPTOR_BYTES,
            )?),
        };
        reader.reserved_u32("ImportResult.reserved")?;
        result.check()?;
        Ok(result)
    }
}

/// RELEASE_IMPORT, 36 bytes: `i32` importer and `i32` owner (not negative), `u64` buffer, generation and import (not
/// 0), `u32` reserved 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReleaseImport {
    /// Importer, which has to be the session's worker.
    pub importer_worker_id: WorkerId,
    /// Owner of the buffer.
    pub owner_worker_id: WorkerId,
    /// Number of the owner's buffer.
    pub buffer_id: BufferId,
    /// Its generation.
    pub generation: Generation,
    /// Number of the import.
    pub import_id: ImportId,
}

impl ReleaseImport {
    /// In the error of a session that does not know the import. Who repeats a release learns from it that the first one worked.
    pub const UNKNOWN: &'static str = "RELEASE_IMPORT names unknown import";

    fn check(&self) -> Result<(), RuleViolation> {
        must_not_be_negative("RELEASE_IMPORT.importer_worker_id", self.importer_worker_id)?;
        must_not_be_negative("RELEASE_IMPORT.owner_worker_id", self.owner_worker_id)?;
        must_not_be_zero("RELEASE_IMPORT.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("RELEASE_IMPORT.generation", self.generation.0)?;
        must_not_be_zero("RELEASE_IMPORT.import_id", self.import_id.0)
    }
}

impl Encode for ReleaseImport {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        self.check()?;
        writer.i32(self.importer_worker_id.0);
        writer.i32(self.owner_worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.generation.0);
        writer.u64(self.import_id.0);
        writer.u32(0);
        Ok(())
    }
}

impl<'a> Decode<'a> for ReleaseImport {
    const NAME: &'static str = "RELEASE_IMPORT";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let release = Self {
            importer_worker_id: WorkerId(reader.i32("RELEASE_IMPORT.importer_worker_id")?),
            owner_worker_id: WorkerId(reader.i32("RELEASE_IMPORT.owner_worker_id")?),
            buffer_id: BufferId(reader.u64("RELEASE_IMPORT.buffer_id")?),
            generation: Generation(reader.u64("RELEASE_IMPORT.generation")?),
            import_id: ImportId(reader.u64("RELEASE_IMPORT.import_id")?),
        };
        reader.reserved_u32("RELEASE_IMPORT.reserved")?;
        release.check()?;
        Ok(release)
    }
}
