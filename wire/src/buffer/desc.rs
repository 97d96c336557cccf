//! The 80-byte descriptor of a tensor argument.

use super::{AddressSpace, TensorFlags};
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{
    must_be_zero, must_not_be_negative, must_not_be_zero, DecodeError, EncodeError, RuleViolation,
};
use crate::frame::Features;
use crate::id::{BufferId, Generation, WorkerId};
use crate::task::Carrier;

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
/// | 72 | u64 | flags: 0 in version 1; [`TensorFlags`] with `task_tags` and in the mailbox |
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
    /// The tensor's tag where the carrier has it, else 0.
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
        flags: TensorFlags,
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

    /// The same descriptor with a tag, as `task_tags` has it.
    ///
    /// # Errors
    /// [`RuleViolation`] when the tag is over 4.
    pub fn with_tag(self, tag: u8) -> Result<Self, RuleViolation> {
        let flags = TensorFlags {
            tag: Some(tag),
            read_only: false,
        };
        Ok(Self {
            flags: flags.bits()?,
            ..self
        })
    }

    /// The flags of the descriptor.
    ///
    /// # Errors
    /// As [`TensorFlags::from_bits`].
    pub fn tensor_flags(&self) -> Result<TensorFlags, RuleViolation> {
        TensorFlags::from_bits(self.flags)
    }

    /// The rules for a descriptor within a task whose arena has `inline_len` bytes.
    ///
    /// # Errors
    /// [`RuleViolation`] for the first broken rule.
    pub fn check(&self, inline_len: u64, carrier: Carrier) -> Result<(), RuleViolation> {
        match carrier {
            Carrier::Wire(_) => {
                TensorFlags::check_wire(self.flags, carrier.has(Features::TASK_TAGS))?;
            }
            Carrier::Mailbox => drop(self.tensor_flags()?),
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
            AddressSpace::LocalShared if carrier != Carrier::Mailbox => Err(RuleViolation::new(
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
        let address_space = DecodeError::known(
            AddressSpace::from_code(code, carrier),
            "RemoteTensorDesc.address_space",
            code,
        )?;
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
        Self::read_for(reader, Carrier::V1)
    }
}
