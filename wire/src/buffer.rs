//! Where the bytes of a tensor are: address spaces, access rights and the 80-byte descriptor.

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::id::{BufferId, Generation, WorkerId};
use crate::task::Carrier;

/// Kind of memory a descriptor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum AddressSpace {
    /// Bytes in the inline arena of the same task.
    HostInline = 1,
    /// A buffer owned by the worker that runs the task.
    RemoteDevice = 2,
    /// A buffer of another worker, imported by the worker that runs the task.
    RemoteWindow = 3,
    /// As [`AddressSpace::RemoteWindow`], reached by load and store.
    UbLdst = 4,
    /// A range of a memory region shared by the processes of one host. Private to the mailbox: refused on the wire.
    LocalShared = 128,
}

impl AddressSpace {
    /// Code in the descriptor.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The space of a code that `carrier` admits; [`AddressSpace::LocalShared`] only in the mailbox.
    pub const fn from_code(code: u32, carrier: Carrier) -> Option<Self> {
        match (code, carrier) {
            (1, _) => Some(Self::HostInline),
            (2, _) => Some(Self::RemoteDevice),
            (3, _) => Some(Self::RemoteWindow),
            (4, _) => Some(Self::UbLdst),
            (128, Carrier::Mailbox) => Some(Self::LocalShared),
            _ => None,
        }
    }

    /// Reads the space of an exported or imported buffer, which has to be a window.
    pub(crate) fn read_window(
        reader: &mut Reader<'_>,
        field: &'static str,
    ) -> Result<Self, DecodeError> {
        let code = reader.u32(field)?;
        let space = Self::from_code(code, Carrier::Wire).ok_or(DecodeError::Unknown {
            field,
            got: code.into(),
        })?;
        space.check_window(field)?;
        Ok(space)
    }

    /// Refuses everything but the two windows.
    pub(crate) fn check_window(self, field: &'static str) -> Result<(), RuleViolation> {
        match self {
            Self::RemoteWindow | Self::UbLdst => Ok(()),
            _ => Err(RuleViolation::new(
                field,
                self.code(),
                "it must be REMOTE_WINDOW (3) or UB_LDST (4)",
            )),
        }
    }
}

/// What a holder may do with a buffer; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccessFlags(u32);

impl AccessFlags {
    /// Bit 0.
    pub const READ: Self = Self(1);
    /// Bit 1.
    pub const WRITE: Self = Self(2);
    /// Both bits.
    pub const READ_WRITE: Self = Self(3);

    /// True when every right in `other` is in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of the wire, 1..=3.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The rights of `bits`.
    ///
    /// # Errors
    /// [`RuleViolation`] when no bit or an unknown bit is set.
    pub fn from_bits(bits: u32) -> Result<Self, RuleViolation> {
        Self::named(bits, "access_flags")
    }

    fn named(bits: u32, field: &'static str) -> Result<Self, RuleViolation> {
        match bits {
            0 => Err(RuleViolation::new(
                field,
                bits,
                "at least one of read (1) and write (2) must be set",
            )),
            1..=3 => Ok(Self(bits)),
            _ => Err(RuleViolation::new(
                field,
                bits,
                "only read (1) and write (2) are defined",
            )),
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Ok(Self::named(reader.u32(field)?, field)?)
    }
}

/// What the mailbox keeps in a descriptor's flags; the wire has no such flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct LocalFlags {
    /// The tensor tag, 0..=4, when the submitter knows it.
    pub tag: Option<u8>,
    /// The child must map the range read-only.
    pub read_only: bool,
}

impl LocalFlags {
    const TAG_MASK: u64 = 0b111;
    const TAG_KNOWN: u64 = 1 << 3;
    const READ_ONLY: u64 = 1 << 4;
    const TAG_MAX: u8 = 4;

    /// The flags word: bits 0..=2 tag, bit 3 tag known, bit 4 read-only.
    ///
    /// # Errors
    /// [`RuleViolation`] when the tag is over 4.
    pub fn bits(self) -> Result<u64, RuleViolation> {
        let tag = match self.tag {
            None => 0,
            Some(tag) if tag <= Self::TAG_MAX => u64::from(tag) | Self::TAG_KNOWN,
            Some(tag) => {
                return Err(RuleViolation::new(
                    "RemoteTensorDesc.flags.tag",
                    tag,
                    "a tag is 0 to 4",
                ))
            }
        };
        Ok(tag | if self.read_only { Self::READ_ONLY } else { 0 })
    }

    /// The flags of a word.
    ///
    /// # Errors
    /// [`RuleViolation`] for unknown bits, a tag over 4, or a tag that is not marked as known.
    pub fn from_bits(bits: u64) -> Result<Self, RuleViolation> {
        let bad = |rule| Err(RuleViolation::new("RemoteTensorDesc.flags", bits, rule));
        if bits & !(Self::TAG_MASK | Self::TAG_KNOWN | Self::READ_ONLY) != 0 {
            return bad("only bits 0 to 4 are defined in the mailbox");
        }
        let tag = (bits & Self::TAG_MASK) as u8;
        let known = bits & Self::TAG_KNOWN != 0;
        if tag > Self::TAG_MAX {
            return bad("a tag is 0 to 4");
        }
        if tag != 0 && !known {
            return bad("a tag needs bit 3");
        }
        Ok(Self {
            tag: known.then_some(tag),
            read_only: bits & Self::READ_ONLY != 0,
        })
    }
}

/// Where the bytes of one tensor argument are.
///
/// | offset | type | field |
/// |---:|---|---|
/// | 0 | u32 | address_space |
/// | 4 | i32 | owner_worker_id |
/// | 8 | u64 | buffer_id |
/// | 16 | u64 | offset, bytes |
/// | 24 | u64 | nbytes |
/// | 32 | u64 | remote_addr, a hint that nobody relies on |
/// | 40 | u64 | rkey_or_token (the import id in a window) |
/// | 48 | u64 | generation |
/// | 56 | u64 | inline_payload_offset, bytes in the arena |
/// | 64 | u64 | inline_payload_len, bytes |
/// | 72 | u64 | flags: 0 on the wire; [`LocalFlags`] in the mailbox |
///
/// Decoding the record alone checks only the address space; [`RemoteTensorDesc::check`] has the rules of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemoteTensorDesc {
    /// Kind of memory.
    pub address_space: AddressSpace,
    /// Worker that owns the buffer; 0 for inline and local memory.
    pub owner_worker_id: WorkerId,
    /// Buffer in its owner, non-zero; the region id for local memory; 0 for inline.
    pub buffer_id: BufferId,
    /// First byte, absolute in the owner's buffer or in the region.
    pub offset: u64,
    /// Length in bytes.
    pub nbytes: u64,
    /// Address in the owner, never used to reach the memory.
    pub remote_addr: u64,
    /// Import id for windows, else 0.
    pub rkey_or_token: u64,
    /// Generation of the buffer, non-zero; 0 for inline and local memory.
    pub generation: Generation,
    /// First byte in the inline arena; 0 unless inline.
    pub inline_payload_offset: u64,
    /// Length in the inline arena; equals `nbytes` when inline, else 0.
    pub inline_payload_len: u64,
    /// 0 on the wire.
    pub flags: u64,
}

impl RemoteTensorDesc {
    /// `nbytes` bytes of the task's inline arena from `inline_offset` on.
    pub const fn host_inline(inline_offset: u64, nbytes: u64) -> Self {
        Self {
            address_space: AddressSpace::HostInline,
            owner_worker_id: WorkerId(0),
            buffer_id: BufferId(0),
            offset: 0,
            nbytes,
            remote_addr: 0,
            rkey_or_token: 0,
            generation: Generation(0),
            inline_payload_offset: inline_offset,
            inline_payload_len: nbytes,
            flags: 0,
        }
    }

    /// `nbytes` bytes of a buffer that the running worker owns, from `offset` on.
    pub const fn remote_device(
        owner: WorkerId,
        buffer: BufferId,
        generation: Generation,
        offset: u64,
        nbytes: u64,
    ) -> Self {
        Self {
            address_space: AddressSpace::RemoteDevice,
            owner_worker_id: owner,
            buffer_id: buffer,
            generation,
            offset,
            inline_payload_offset: 0,
            inline_payload_len: 0,
            ..Self::host_inline(0, nbytes)
        }
    }

    /// `nbytes` bytes of region `region` of this host's shared memory, from `offset` on. For the mailbox only.
    ///
    /// # Errors
    /// [`RuleViolation`] when the tag is over 4.
    pub fn local_shared(
        region: u64,
        offset: u64,
        nbytes: u64,
        flags: LocalFlags,
    ) -> Result<Self, RuleViolation> {
        Ok(Self {
            address_space: AddressSpace::LocalShared,
            buffer_id: BufferId(region),
            offset,
            inline_payload_offset: 0,
            inline_payload_len: 0,
            flags: flags.bits()?,
            ..Self::host_inline(0, nbytes)
        })
    }

    /// First byte after the range, `None` when it exceeds `u64`.
    pub const fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.nbytes)
    }

    /// The mailbox flags of the descriptor.
    ///
    /// # Errors
    /// As [`LocalFlags::from_bits`].
    pub fn local_flags(&self) -> Result<LocalFlags, RuleViolation> {
        LocalFlags::from_bits(self.flags)
    }

    /// The rules for a descriptor within a task whose arena has `inline_len` bytes.
    ///
    /// # Errors
    /// [`RuleViolation`] for the first broken rule.
    pub fn check(&self, inline_len: u64, carrier: Carrier) -> Result<(), RuleViolation> {
        match carrier {
            Carrier::Wire => must_be_zero(
                "RemoteTensorDesc.flags",
                self.flags,
                "flags are reserved in version 1",
            )?,
            Carrier::Mailbox => drop(self.local_flags()?),
        }
        if self.end().is_none() {
            return Err(RuleViolation::new(
                "RemoteTensorDesc.offset",
                self.offset,
                "offset + nbytes must not exceed 2^64-1",
            ));
        }
        match self.address_space {
            AddressSpace::HostInline => self.check_inline(inline_len),
            AddressSpace::LocalShared if carrier == Carrier::Wire => Err(RuleViolation::new(
                "RemoteTensorDesc.address_space",
                self.address_space.code(),
                "memory shared on one host cannot be named on the wire",
            )),
            AddressSpace::LocalShared => self.check_local(),
            AddressSpace::RemoteDevice | AddressSpace::RemoteWindow | AddressSpace::UbLdst => {
                self.check_remote()
            }
        }
    }

    fn check_inline(&self, inline_len: u64) -> Result<(), RuleViolation> {
        const RULE: &str = "it must be 0 for HOST_INLINE";
        must_be_zero(
            "RemoteTensorDesc.owner_worker_id",
            self.owner_worker_id.0,
            RULE,
        )?;
        must_be_zero("RemoteTensorDesc.buffer_id", self.buffer_id.0, RULE)?;
        must_be_zero("RemoteTensorDesc.remote_addr", self.remote_addr, RULE)?;
        must_be_zero("RemoteTensorDesc.rkey_or_token", self.rkey_or_token, RULE)?;
        must_be_zero("RemoteTensorDesc.generation", self.generation.0, RULE)?;
        if self.inline_payload_len != self.nbytes {
            return Err(RuleViolation::new(
                "RemoteTensorDesc.inline_payload_len",
                self.inline_payload_len,
                "it must equal nbytes for HOST_INLINE",
            ));
        }
        match self
            .inline_payload_offset
            .checked_add(self.inline_payload_len)
        {
            Some(end) if end <= inline_len => Ok(()),
            _ => Err(RuleViolation::new(
                "RemoteTensorDesc.inline_payload_offset",
                self.inline_payload_offset,
                "the range must lie within the inline arena",
            )),
        }
    }

    fn check_remote(&self) -> Result<(), RuleViolation> {
        const INLINE: &str = "it must be 0 unless HOST_INLINE";
        must_be_zero(
            "RemoteTensorDesc.inline_payload_offset",
            self.inline_payload_offset,
            INLINE,
        )?;
        must_be_zero(
            "RemoteTensorDesc.inline_payload_len",
            self.inline_payload_len,
            INLINE,
        )?;
        must_not_be_negative("RemoteTensorDesc.owner_worker_id", self.owner_worker_id)?;
        must_not_be_zero("RemoteTensorDesc.buffer_id", self.buffer_id.0)?;
        must_not_be_zero("RemoteTensorDesc.generation", self.generation.0)
    }

    fn check_local(&self) -> Result<(), RuleViolation> {
        const RULE: &str = "it must be 0 for memory shared on one host";
        must_be_zero(
            "RemoteTensorDesc.owner_worker_id",
            self.owner_worker_id.0,
            RULE,
        )?;
        must_be_zero("RemoteTensorDesc.remote_addr", self.remote_addr, RULE)?;
        must_be_zero("RemoteTensorDesc.rkey_or_token", self.rkey_or_token, RULE)?;
        must_be_zero("RemoteTensorDesc.generation", self.generation.0, RULE)?;
        must_be_zero(
            "RemoteTensorDesc.inline_payload_offset",
            self.inline_payload_offset,
            RULE,
        )?;
        must_be_zero(
            "RemoteTensorDesc.inline_payload_len",
            self.inline_payload_len,
            RULE,
        )
    }

    /// Reads the 80 bytes; `carrier` decides which address spaces exist.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Unknown`].
    pub fn read_for(reader: &mut Reader<'_>, carrier: Carrier) -> Result<Self, DecodeError> {
        let code = reader.u32("RemoteTensorDesc.address_space")?;
        let address_space = AddressSpace::from_code(code, carrier).ok_or(DecodeError::Unknown {
            field: "RemoteTensorDesc.address_space",
            got: code.into(),
        })?;
        Ok(Self {
            address_space,
            owner_worker_id: WorkerId(reader.i32("RemoteTensorDesc.owner_worker_id")?),
            buffer_id: BufferId(reader.u64("RemoteTensorDesc.buffer_id")?),
            offset: reader.u64("RemoteTensorDesc.offset")?,
            nbytes: reader.u64("RemoteTensorDesc.nbytes")?,
            remote_addr: reader.u64("RemoteTensorDesc.remote_addr")?,
            rkey_or_token: reader.u64("RemoteTensorDesc.rkey_or_token")?,
            generation: Generation(reader.u64("RemoteTensorDesc.generation")?),
            inline_payload_offset: reader.u64("RemoteTensorDesc.inline_payload_offset")?,
            inline_payload_len: reader.u64("RemoteTensorDesc.inline_payload_len")?,
            flags: reader.u64("RemoteTensorDesc.flags")?,
        })
    }

    /// Appends the 80 bytes as they are. Whether the carrier may hold them is the business of the task's check.
    pub(crate) fn put(&self, writer: &mut Writer) {
        writer.u32(self.address_space.code());
        writer.i32(self.owner_worker_id.0);
        writer.u64(self.buffer_id.0);
        writer.u64(self.offset);
        writer.u64(self.nbytes);
        writer.u64(self.remote_addr);
        writer.u64(self.rkey_or_token);
        writer.u64(self.generation.0);
        writer.u64(self.inline_payload_offset);
        writer.u64(self.inline_payload_len);
        writer.u64(self.flags);
    }
}

impl Encode for RemoteTensorDesc {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        if self.address_space == AddressSpace::LocalShared {
            return Err(RuleViolation::new(
                "RemoteTensorDesc.address_space",
                self.address_space.code(),
                "memory shared on one host cannot be named on the wire",
            )
            .into());
        }
        self.put(writer);
        Ok(())
    }
}

impl<'a> Decode<'a> for RemoteTensorDesc {
    const NAME: &'static str = "RemoteTensorDesc";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Self::read_for(reader, Carrier::Wire)
    }
}

pub(crate) fn must_be_zero(
    field: &'static str,
    got: impl Into<i128>,
    rule: &'static str,
) -> Result<(), RuleViolation> {
    match got.into() {
        0 => Ok(()),
        got => Err(RuleViolation { field, got, rule }),
    }
}

pub(crate) fn must_not_be_zero(field: &'static str, got: u64) -> Result<(), RuleViolation> {
    if got == 0 {
        return Err(RuleViolation::new(field, got, "it must not be 0"));
    }
    Ok(())
}

pub(crate) fn must_not_be_negative(
    field: &'static str,
    worker: WorkerId,
) -> Result<(), RuleViolation> {
    if worker.0 < 0 {
        return Err(RuleViolation::new(
            field,
            worker.0,
            "a worker id must not be negative",
        ));
    }
    Ok(())
}
