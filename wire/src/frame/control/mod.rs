//! CONTROL: everything a parent asks of a session but running a task. One file for each topic of commands.

pub mod buffer;
pub mod chip;
pub mod domain;
pub mod register;
pub mod stage;
pub mod transfer;

use std::borrow::Cow;

use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::frame::extension::Features;
use crate::limits::MAX_PAYLOAD_BYTES;

/// `control_version` that we send.
pub const CONTROL_VERSION: u32 = 1;

/// What a control asks for. Names from 64 on exist only after they were negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ControlName {
    /// Forget a callable, prepared or live.
    UnregisterCallable = 1,
    /// Check and load a callable without making it callable.
    PrepareRegisterCallable = 2,
    /// Make a prepared callable live.
    CommitRegisterCallable = 3,
    /// Forget a prepared callable.
    AbortRegisterCallable = 4,
    /// Check that a callable is live.
    PrepareCallable = 5,
    /// Make a buffer.
    AllocRemoteBuffer = 6,
    /// Drop a buffer.
    FreeRemoteBuffer = 7,
    /// Write into a buffer.
    CopyToRemote = 8,
    /// Read from a buffer.
    CopyFromRemote = 9,
    /// Let other workers reach a range of a buffer.
    ExportBuffer = 10,
    /// Reach a range that another worker exported.
    ImportBuffer = 11,
    /// Give an import up.
    ReleaseImport = 12,
    /// Reserved in version 1.
    CommInit = 13,
    /// Reserved in version 1.
    AllocDomain = 14,
    /// Reserved in version 1.
    ReleaseDomain = 15,
    /// The session's trace as JSON; empty command. Needs [`Features::TIMED_COMPLETION`].
    CollectTrace = 64,
    /// Announce machine code that comes in parts. Needs [`Features::STAGED_BLOBS`], as the three below.
    StageBegin = 75,
    /// The next part.
    StageAppend = 76,
    /// All parts are there: check them.
    StageSeal = 77,
    /// Forget staged machine code.
    StageDrop = 78,
    /// Keep a failed importer away from a buffer. Needs [`Features::PEER_FENCE`].
    PeerFence = 79,
}

impl ControlName {
    /// The names of version 1 in the order of their codes.
    pub const V1: [Self; 15] = [
        Self::UnregisterCallable,
        Self::PrepareRegisterCallable,
        Self::CommitRegisterCallable,
        Self::AbortRegisterCallable,
        Self::PrepareCallable,
        Self::AllocRemoteBuffer,
        Self::FreeRemoteBuffer,
        Self::CopyToRemote,
        Self::CopyFromRemote,
        Self::ExportBuffer,
        Self::ImportBuffer,
        Self::ReleaseImport,
        Self::CommInit,
        Self::AllocDomain,
        Self::ReleaseDomain,
    ];

    /// The names of [`Features::STAGED_BLOBS`].
    pub const STAGING: [Self; 4] = [
        Self::StageBegin,
        Self::StageAppend,
        Self::StageSeal,
        Self::StageDrop,
    ];

    /// Code on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The name of a code; those of extensions only when `features` has their bit.
    pub fn from_code(code: u32, features: Features) -> Option<Self> {
        if code == Self::CollectTrace.code() && features.contains(Features::TIMED_COMPLETION) {
            return Some(Self::CollectTrace);
        }
        if code == Self::PeerFence.code() && features.contains(Features::PEER_FENCE) {
            return Some(Self::PeerFence);
        }
        if features.contains(Features::STAGED_BLOBS) {
            if let Some(name) = Self::STAGING.into_iter().find(|name| name.code() == code) {
                return Some(name);
            }
        }
        Self::V1.into_iter().find(|name| name.code() == code)
    }

    /// Name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnregisterCallable => "UNREGISTER_CALLABLE",
            Self::PrepareRegisterCallable => "PREPARE_REGISTER_CALLABLE",
            Self::CommitRegisterCallable => "COMMIT_REGISTER_CALLABLE",
            Self::AbortRegisterCallable => "ABORT_REGISTER_CALLABLE",
            Self::PrepareCallable => "PREPARE_CALLABLE",
            Self::AllocRemoteBuffer => "ALLOC_REMOTE_BUFFER",
            Self::FreeRemoteBuffer => "FREE_REMOTE_BUFFER",
            Self::CopyToRemote => "COPY_TO_REMOTE",
            Self::CopyFromRemote => "COPY_FROM_REMOTE",
            Self::ExportBuffer => "EXPORT_BUFFER",
            Self::ImportBuffer => "IMPORT_BUFFER",
            Self::ReleaseImport => "RELEASE_IMPORT",
            Self::CommInit => "COMM_INIT",
            Self::AllocDomain => "ALLOC_DOMAIN",
            Self::ReleaseDomain => "RELEASE_DOMAIN",
            Self::CollectTrace => "COLLECT_TRACE",
            Self::StageBegin => "STAGE_BEGIN",
            Self::StageAppend => "STAGE_APPEND",
            Self::StageSeal => "STAGE_SEAL",
            Self::StageDrop => "STAGE_DROP",
            Self::PeerFence => "PEER_FENCE",
        }
    }

    pub(crate) fn read(
        reader: &mut Reader<'_>,
        field: &'static str,
        features: Features,
    ) -> Result<Self, DecodeError> {
        let code = reader.u32(field)?;
        DecodeError::known(Self::from_code(code, features), field, code)
    }
}

impl std::fmt::Display for ControlName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A control and its command.
///
/// | type | field | rule |
/// |---|---|---|
/// | u32 | control_name | 1..=15, negotiated ones from 64 on |
/// | u32 | control_version | not 0; echoed by the reply |
/// | blob(16 MiB) | command_bytes | by name |
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Control<'a> {
    /// What is asked for.
    pub name: ControlName,
    /// Version of the command; any but 0 is accepted and echoed.
    pub version: u32,
    /// The command, decoded by the types of this folder.
    pub command: Cow<'a, [u8]>,
}

impl<'a> Control<'a> {
    /// A control of our version.
    pub fn new(name: ControlName, command: impl Into<Cow<'a, [u8]>>) -> Self {
        Self {
            name,
            version: CONTROL_VERSION,
            command: command.into(),
        }
    }

    /// A control of our version whose command is `command`.
    ///
    /// # Errors
    /// The command's.
    pub fn of(name: ControlName, command: &impl Encode) -> Result<Self, EncodeError> {
        Ok(Self {
            name,
            version: CONTROL_VERSION,
            command: Cow::Owned(command.to_bytes()?),
        })
    }

    /// Reads a control that fills `bytes` exactly; `features` are the accepted extensions.
    ///
    /// # Errors
    /// [`DecodeError`] for the first field that is wrong.
    pub fn decode_with(bytes: &'a [u8], features: Features) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let control = Self::read_with(&mut reader, features)?;
        reader.finish(Self::NAME)?;
        Ok(control)
    }

    /// The same control with a command of its own.
    pub fn into_owned(self) -> Control<'static> {
        Control {
            name: self.name,
            version: self.version,
            command: Cow::Owned(self.command.into_owned()),
        }
    }

    fn read_with(reader: &mut Reader<'a>, features: Features) -> Result<Self, DecodeError> {
        let name = ControlName::read(reader, "CONTROL.control_name", features)?;
        let version = reader.u32("CONTROL.control_version")?;
        check_version(version)?;
        let command = Cow::Borrowed(reader.blob("CONTROL.command_bytes", MAX_PAYLOAD_BYTES)?);
        Ok(Self {
            name,
            version,
            command,
        })
    }
}

fn check_version(version: u32) -> Result<(), RuleViolation> {
    if version == 0 {
        return Err(RuleViolation::new(
            "CONTROL.control_version",
            version,
            "a version must not be 0",
        ));
    }
    Ok(())
}

impl Encode for Control<'_> {
    fn encode(&self, writer: &mut Writer) -> Result<(), EncodeError> {
        check_version(self.version)?;
        writer.u32(self.name.code());
        writer.u32(self.version);
        writer.blob("CONTROL.command_bytes", &self.command, MAX_PAYLOAD_BYTES)
    }
}

impl<'a> Decode<'a> for Control<'a> {
    const NAME: &'static str = "CONTROL";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Self::read_with(reader, Features::NONE)
    }
}
