//! Commands about buffers that other workers reach: export, import, release.

use std::borrow::Cow;

use crate::buffer::{must_not_be_negative, must_not_be_zero, AccessFlags, AddressSpace};
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::id::{BufferId, ExportId, Generation, ImportId, WorkerId};
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
    /// How importers reach it: "" or "sim" on one host.
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
/// | blob(4096) | transport_descriptor | by profile; for "sim" the name of a POSIX segment |
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
