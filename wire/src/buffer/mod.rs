//! Where the bytes of a tensor are: address spaces, access rights and the 80-byte descriptor.

mod desc;
mod tensor_flags;

pub use desc::RemoteTensorDesc;
pub use tensor_flags::TensorFlags;

use crate::codec::Reader;
use crate::error::{DecodeError, RuleViolation};
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
        let space = DecodeError::known(Self::from_code(code, Carrier::V1), field, code)?;
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
