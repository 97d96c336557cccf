//! Identity of callables: descriptors, digests, import targets, the serialized envelope.
//!
//! `hashid = "sha256:" + lowercase hex(SHA-256(descriptor))`; the digest is the 32 raw bytes. A receiver computes the
//! digest from the descriptor again and believes no announced one.

mod chip_identity;
mod descriptor;
mod digest;
mod serialized;
mod target;

pub use chip_identity::ChipDescriptor;
pub use descriptor::{
    chip_arch, chip_descriptor, import_descriptor, read_signature_schema, serialized_descriptor,
    signature_schema, ChipIdentity, Direction,
};
pub use digest::{digest_of, sha256, Digest, Hashid};
pub use serialized::{decode_serialized, encode_serialized};
pub use target::{is_identifier, ImportTarget};

use crate::codec::Reader;
use crate::error::{DecodeError, EncodeError};

/// How a callable is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum CallableKind {
    /// Machine code for a device.
    ChipCallable = 1,
    /// A serialized Python object.
    PythonSerialized = 2,
    /// A name that the receiver imports.
    PythonImport = 3,
}

impl CallableKind {
    /// Code on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The kind of a code.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::ChipCallable),
            2 => Some(Self::PythonSerialized),
            3 => Some(Self::PythonImport),
            _ => None,
        }
    }

    /// Name in manifests and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChipCallable => "CHIP_CALLABLE",
            Self::PythonSerialized => "PYTHON_SERIALIZED",
            Self::PythonImport => "PYTHON_IMPORT",
        }
    }

    /// The kind of a [`CallableKind::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::ChipCallable,
            Self::PythonSerialized,
            Self::PythonImport,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
    }

    pub(crate) fn read(reader: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let code = reader.u32(field)?;
        DecodeError::known(Self::from_code(code), field, code)
    }
}

/// Which table of the session a callable is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum RegistryTarget {
    /// What TASK frames may call.
    RemoteTaskDispatcher = 1,
    /// What the session's own worker may call.
    InnerL3Worker = 2,
}

impl RegistryTarget {
    /// Code on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The table of a code.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::RemoteTaskDispatcher),
            2 => Some(Self::InnerL3Worker),
            _ => None,
        }
    }

    /// Name in manifests and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RemoteTaskDispatcher => "REMOTE_TASK_DISPATCHER",
            Self::InnerL3Worker => "INNER_L3_WORKER",
        }
    }

    /// The table of a [`RegistryTarget::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::RemoteTaskDispatcher, Self::InnerL3Worker]
            .into_iter()
            .find(|target| target.name() == name)
    }

    pub(crate) fn read(reader: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let code = reader.u32(field)?;
        DecodeError::known(Self::from_code(code), field, code)
    }
}

/// What is wrong with the text of an identity. Messages never hold more than one component of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// No `sha256:` in front.
    #[error("hashid does not begin with \"sha256:\"")]
    HashidPrefix,
    /// Not 64 characters.
    #[error("hashid has {got} characters after the prefix, expected 64")]
    HexLength {
        /// Bytes found.
        got: usize,
    },
    /// Something else than `0-9a-f`.
    #[error("hashid has a character other than 0-9 and a-f at or after position {position}")]
    HexDigit {
        /// Position of the pair of characters, from 0.
        position: usize,
    },
    /// The target is longer than any import system resolves.
    #[error("import target has {got} bytes, limit {limit}")]
    TargetTooLong {
        /// Bytes found.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// Not exactly one `:`.
    #[error("import target has {got} ':' separators, expected one, as in \"module:qualname\"")]
    TargetSeparators {
        /// Separators found.
        got: usize,
    },
    /// A side of the `:` is empty.
    #[error("import target has an empty module or qualname; write \"module:qualname\"")]
    TargetEmpty,
    /// The module begins with a dot.
    #[error("import target has a relative module; write its absolute name")]
    TargetRelative,
    /// A function inside a function.
    #[error("import target names a local function (`<locals>`); move it to module level")]
    TargetLocal,
    /// A component between dots is empty.
    #[error("import target has an empty component in its {part}")]
    TargetEmptyComponent {
        /// `module` or `qualname`.
        part: &'static str,
    },
    /// A component is not an identifier.
    #[error(
        "import target has a component in its {part} that is not an identifier: {component:?}"
    )]
    TargetComponent {
        /// `module` or `qualname`.
        part: &'static str,
        /// The component, shortened to 64 bytes.
        component: String,
    },
    /// The platform has no architecture.
    #[error("platform {platform:?} is unknown; use a2a3, a2a3sim, a5, a5sim, cpu or cuda")]
    Platform {
        /// The platform, shortened to 64 bytes.
        platform: String,
    },
    /// A part of a descriptor is over its limit.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
