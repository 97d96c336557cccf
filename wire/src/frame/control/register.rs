//! Commands about callables.

use std::borrow::Cow;

use crate::callable::{CallableKind, Digest, RegistryTarget};
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::limits::MAX_PAYLOAD_BYTES;

/// `payload_version` that we send and that a session accepts.
pub const PAYLOAD_VERSION: u32 = 1;

/// Names a callable: UNREGISTER, COMMIT_REGISTER, ABORT_REGISTER, PREPARE. 40 bytes.
///
/// | type | field |
/// |---|---|
/// | u32 | target_registry |
/// | u32 | callable_kind |
/// | 32 bytes | digest |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DigestCommand {
    /// Which table.
    pub target_registry: RegistryTarget,
    /// How the callable was delivered.
    pub callable_kind: CallableKind,
    /// Which callable.
    pub digest: Digest,
}

impl Encode for DigestCommand {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        writer.u32(self.target_registry.code());
        writer.u32(self.callable_kind.code());
        writer.raw(&self.digest.0);
        Ok(())
    }
}

impl<'a> Decode<'a> for DigestCommand {
    const NAME: &'static str = "DigestCommand";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            target_registry: RegistryTarget::read(reader, "DigestCommand.target_registry")?,
            callable_kind: CallableKind::read(reader, "DigestCommand.callable_kind")?,
            digest: Digest(reader.array("DigestCommand.digest")?),
        })
    }
}

/// Delivers a callable: PREPARE_REGISTER. 48 bytes and the payload.
///
/// | type | field | rule |
/// |---|---|---|
/// | u32 | target_registry | |
/// | u32 | callable_kind | |
/// | 32 bytes | digest | the session computes it again |
/// | u32 | payload_version | not 0; a session accepts 1 |
/// | blob(16 MiB) | payload | by kind |
///
/// Which pairs of table and kind a session accepts is its own rule, not one of the codec.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegisterCommand<'a> {
    /// Which table.
    pub target_registry: RegistryTarget,
    /// How the callable is delivered.
    pub callable_kind: CallableKind,
    /// Identity that the payload must have.
    pub digest: Digest,
    /// Version of the payload.
    pub payload_version: u32,
    /// Import target as text, envelope of a serialized object, or chip payload.
    pub payload: Cow<'a, [u8]>,
}

impl<'a> RegisterCommand<'a> {
    /// A command with our payload version.
    pub fn new(
        target_registry: RegistryTarget,
        callable_kind: CallableKind,
        digest: Digest,
        payload: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        Self {
            target_registry,
            callable_kind,
            digest,
            payload_version: PAYLOAD_VERSION,
            payload: payload.into(),
        }
    }

    /// The command that commits, aborts or unregisters the same callable.
    pub const fn digest_command(&self) -> DigestCommand {
        DigestCommand {
            target_registry: self.target_registry,
            callable_kind: self.callable_kind,
            digest: self.digest,
        }
    }

    /// The same command with a payload of its own.
    pub fn into_owned(self) -> RegisterCommand<'static> {
        RegisterCommand {
            target_registry: self.target_registry,
            callable_kind: self.callable_kind,
            digest: self.digest,
            payload_version: self.payload_version,
            payload: Cow::Owned(self.payload.into_owned()),
        }
    }
}

fn check_payload_version(version: u32) -> Result<(), RuleViolation> {
    if version == 0 {
        return Err(RuleViolation::new(
            "RegisterCommand.payload_version",
            version,
            "a version must not be 0",
        ));
    }
    Ok(())
}

impl Encode for RegisterCommand<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        check_payload_version(self.payload_version)?;
        self.digest_command().encode(writer)?;
        writer.u32(self.payload_version);
        writer.blob("RegisterCommand.payload", &self.payload, MAX_PAYLOAD_BYTES)
    }
}

impl<'a> Decode<'a> for RegisterCommand<'a> {
    const NAME: &'static str = "RegisterCommand";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let target_registry = RegistryTarget::read(reader, "RegisterCommand.target_registry")?;
        let callable_kind = CallableKind::read(reader, "RegisterCommand.callable_kind")?;
        let digest = Digest(reader.array("RegisterCommand.digest")?);
        let payload_version = reader.u32("RegisterCommand.payload_version")?;
        check_payload_version(payload_version)?;
        let payload = Cow::Borrowed(reader.blob("RegisterCommand.payload", MAX_PAYLOAD_BYTES)?);
        Ok(Self {
            target_registry,
            callable_kind,
            digest,
            payload_version,
            payload,
        })
    }
}
