//! Identity of callables: descriptors, digests, import targets, the serialized envelope.
//!
//! `hashid = "sha256:" + lowercase hex(SHA-256(descriptor))`; the digest is the 32 raw bytes. A receiver computes the
//! digest from the descriptor again and believes no announced one.

use sha2::{Digest as _, Sha256};

use crate::codec::{Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::limits::{
    DIGEST_BYTES, MAX_CHIP_DIRECTIONS, MAX_IMPORT_TARGET_BYTES, MAX_PAYLOAD_BYTES,
    MAX_STRING_BYTES, SERIALIZED_HEADER_BYTES,
};

const HASHID_PREFIX: &str = "sha256:";
const DESCRIPTOR_VERSION: u32 = 1;
const SERIALIZED_MAGIC: [u8; 4] = *b"SPYC";
const SERIALIZED_VERSION: u8 = 1;
const SERIALIZER: u8 = 1;

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of a callable's descriptor; shown as 64 lower-case hexadecimal characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

impl Digest {
    /// Reads exactly 64 lower-case hexadecimal characters.
    ///
    /// # Errors
    /// [`IdentityError`] for any other text.
    pub fn from_hex(text: &str) -> Result<Self, IdentityError> {
        let digits = text.as_bytes();
        if digits.len() != 2 * DIGEST_BYTES {
            return Err(IdentityError::HexLength { got: digits.len() });
        }
        let mut bytes = [0; DIGEST_BYTES];
        for (index, (byte, pair)) in bytes.iter_mut().zip(digits.chunks_exact(2)).enumerate() {
            let mut value = 0;
            for digit in pair {
                let nibble = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => {
                        return Err(IdentityError::HexDigit {
                            position: 2 * index,
                        })
                    }
                };
                value = value << 4 | nibble;
            }
            *byte = value;
        }
        Ok(Self(bytes))
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// The text form of a digest, `sha256:` and 64 lower-case hexadecimal characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hashid(pub Digest);

impl Hashid {
    /// Reads the text form with its prefix.
    ///
    /// # Errors
    /// [`IdentityError`] without the prefix, for another length, upper case, blanks or other characters.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let hex = text
            .strip_prefix(HASHID_PREFIX)
            .ok_or(IdentityError::HashidPrefix)?;
        Digest::from_hex(hex).map(Self)
    }

    /// Reads the text form of a manifest, where the prefix is optional.
    ///
    /// # Errors
    /// As [`Hashid::parse`] but for the prefix.
    pub fn parse_manifest(text: &str) -> Result<Self, IdentityError> {
        Digest::from_hex(text.strip_prefix(HASHID_PREFIX).unwrap_or(text)).map(Self)
    }

    /// The digest.
    pub const fn digest(&self) -> Digest {
        self.0
    }
}

impl std::fmt::Display for Hashid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{HASHID_PREFIX}{}", self.0)
    }
}

impl std::str::FromStr for Hashid {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::parse(text)
    }
}

impl From<Digest> for Hashid {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

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
        Self::from_code(code).ok_or(DecodeError::Unknown {
            field,
            got: code.into(),
        })
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
        Self::from_code(code).ok_or(DecodeError::Unknown {
            field,
            got: code.into(),
        })
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
}

/// `module:qualname`, every component a Python identifier.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImportTarget {
    module: String,
    qualname: String,
}

impl ImportTarget {
    /// Reads a target after stripping blank, tab, CR and LF at both ends.
    ///
    /// Identifiers are Unicode ones (`XID_Start` or `_`, then `XID_Continue`), keywords count as identifiers, and
    /// nothing is normalised: two spellings are two targets.
    ///
    /// # Errors
    /// [`IdentityError`] for the first rule that is broken.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if text.len() > MAX_IMPORT_TARGET_BYTES {
            return Err(IdentityError::TargetTooLong {
                got: text.len(),
                limit: MAX_IMPORT_TARGET_BYTES,
            });
        }
        let separators = text.bytes().filter(|byte| *byte == b':').count();
        let (module, qualname) = match text.split_once(':') {
            Some(parts) if separators == 1 => parts,
            _ => return Err(IdentityError::TargetSeparators { got: separators }),
        };
        if module.is_empty() || qualname.is_empty() {
            return Err(IdentityError::TargetEmpty);
        }
        if module.starts_with('.') {
            return Err(IdentityError::TargetRelative);
        }
        if qualname.split('.').any(|component| component == "<locals>") {
            return Err(IdentityError::TargetLocal);
        }
        check_components("module", module)?;
        check_components("qualname", qualname)?;
        Ok(Self {
            module: module.to_owned(),
            qualname: qualname.to_owned(),
        })
    }

    /// Absolute module name.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Dotted attribute path within the module.
    pub fn qualname(&self) -> &str {
        &self.qualname
    }
}

impl std::fmt::Display for ImportTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.module, self.qualname)
    }
}

impl std::str::FromStr for ImportTarget {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::parse(text)
    }
}

fn check_components(part: &'static str, path: &str) -> Result<(), IdentityError> {
    for component in path.split('.') {
        if component.is_empty() {
            return Err(IdentityError::TargetEmptyComponent { part });
        }
        if !is_identifier(component) {
            let component = crate::frame::truncate_utf8(component, 64).to_owned();
            return Err(IdentityError::TargetComponent { part, component });
        }
    }
    Ok(())
}

/// True for what Python's `str.isidentifier` accepts.
///
/// Python builds its tables from the same two derived properties, of the Unicode version it ships; a character that is
/// newer than the interpreter passes here and fails at import, with the importer's error.
pub fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return false;
    };
    (first == '_' || unicode_ident::is_xid_start(first))
        && characters.all(unicode_ident::is_xid_continue)
}

/// Digest of a descriptor.
pub fn digest_of(descriptor: &[u8]) -> Digest {
    Digest(sha256(descriptor))
}

/// Descriptor of an importable Python callable: version, kind, module, qualname.
pub fn import_descriptor(target: &ImportTarget) -> Vec<u8> {
    let mut writer = descriptor_head(CallableKind::PythonImport);
    put_prefixed(&mut writer, target.module.as_bytes());
    put_prefixed(&mut writer, target.qualname.as_bytes());
    writer.into_bytes()
}

/// Descriptor of a serialized Python callable. `payload_sha256` is the hash of the serializer's bytes alone, without the
/// envelope of [`encode_serialized`].
pub fn serialized_descriptor(payload_sha256: &[u8; DIGEST_BYTES]) -> Vec<u8> {
    let mut writer = descriptor_head(CallableKind::PythonSerialized);
    writer.u32(u32::from(SERIALIZED_VERSION));
    writer.u32(u32::from(SERIALIZER));
    put_prefixed(&mut writer, payload_sha256);
    writer.into_bytes()
}

/// How a parameter of a chip callable is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Direction {
    /// A scalar.
    Scalar = 0,
    /// A tensor that is read.
    In = 1,
    /// A tensor that is written.
    Out = 2,
    /// A tensor that is read and written.
    InOut = 3,
}

impl Direction {
    /// Code in the schema.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The direction of a code.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Scalar),
            1 => Some(Self::In),
            2 => Some(Self::Out),
            3 => Some(Self::InOut),
            _ => None,
        }
    }
}

/// What goes into the identity of a chip callable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChipIdentity<'a> {
    /// Platform name, see [`chip_arch`].
    pub platform: &'a str,
    /// Runtime name.
    pub runtime: &'a str,
    /// SHA-256 of the machine code.
    pub blob_sha256: [u8; DIGEST_BYTES],
    /// One entry for each parameter, in order.
    pub signature: &'a [Direction],
}

/// Architecture of a platform: a simulated device has that of the real one. `cpu` and `cuda` are platforms of Echelon
/// that the v1 contract does not know; no v1 peer is offered one.
pub fn chip_arch(platform: &str) -> Option<&'static str> {
    match platform {
        "" => Some(""),
        "a2a3" | "a2a3sim" => Some("a2a3"),
        "a5" | "a5sim" => Some("a5"),
        "cpu" => Some("cpu"),
        "cuda" => Some("cuda"),
        _ => None,
    }
}

/// Schema bytes of a signature: version, count, one direction for each parameter.
///
/// # Errors
/// [`EncodeError::TooLong`] over 8192 parameters.
pub fn signature_schema(signature: &[Direction]) -> Result<Vec<u8>, EncodeError> {
    let mut writer = Writer::new();
    writer.u32(DESCRIPTOR_VERSION);
    writer.length(
        "ChipIdentity.signature",
        signature.len(),
        MAX_CHIP_DIRECTIONS as u32,
    )?;
    for direction in signature {
        writer.u32(direction.code());
    }
    Ok(writer.into_bytes())
}

/// Descriptor of a chip callable: version, kind, architecture, platform, runtime, hash of the code, hash of the schema.
///
/// # Errors
/// [`EncodeError`] for an unknown platform, a name over 1024 bytes or too many parameters.
pub fn chip_descriptor(identity: &ChipIdentity<'_>) -> Result<Vec<u8>, EncodeError> {
    let arch = chip_arch(identity.platform).ok_or(RuleViolation {
        field: "ChipIdentity.platform",
        got: identity.platform.len() as i128,
        rule: "a name of that length is none of a2a3, a2a3sim, a5, a5sim, cpu, cuda",
    })?;
    let schema = signature_schema(identity.signature)?;
    let mut writer = descriptor_head(CallableKind::ChipCallable);
    writer.str("ChipIdentity.arch", arch, MAX_STRING_BYTES)?;
    writer.str("ChipIdentity.platform", identity.platform, MAX_STRING_BYTES)?;
    writer.str("ChipIdentity.runtime", identity.runtime, MAX_STRING_BYTES)?;
    put_prefixed(&mut writer, &identity.blob_sha256);
    put_prefixed(&mut writer, &sha256(&schema));
    Ok(writer.into_bytes())
}

fn descriptor_head(kind: CallableKind) -> Writer {
    let mut writer = Writer::new();
    writer.u32(DESCRIPTOR_VERSION);
    writer.u32(kind.code());
    writer
}

/// Length and bytes. The callers' inputs are digests and the parts of an import target, both bounded by their types, so
/// the length always fits.
fn put_prefixed(writer: &mut Writer, bytes: &[u8]) {
    writer.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    writer.raw(bytes);
}

/// Wraps a serializer's bytes: `SPYC`, version 1, serializer 1, 16 bits of flags (0), 64 bits of size, the bytes.
///
/// # Errors
/// [`EncodeError::TooLong`] when the result would not fit a register command (16 MiB).
pub fn encode_serialized(payload: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let limit = serialized_limit();
    if payload.len() as u64 > limit {
        return Err(EncodeError::TooLong {
            field: "Serialized.size",
            got: payload.len() as u64,
            limit,
        });
    }
    let mut writer = Writer::with_capacity(SERIALIZED_HEADER_BYTES + payload.len());
    writer.raw(&SERIALIZED_MAGIC);
    writer.u8(SERIALIZED_VERSION);
    writer.u8(SERIALIZER);
    writer.u16(0);
    writer.u64(payload.len() as u64);
    writer.raw(payload);
    Ok(writer.into_bytes())
}

/// The serializer's bytes within an envelope of [`encode_serialized`].
///
/// # Errors
/// [`DecodeError`] for another magic, version, serializer or flag, or when the size is not that of the rest.
pub fn decode_serialized(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(bytes);
    if reader.array("Serialized.magic")? != SERIALIZED_MAGIC {
        return Err(DecodeError::BadMagic {
            field: "Serialized.magic",
        });
    }
    for (field, expected) in [
        ("Serialized.version", SERIALIZED_VERSION),
        ("Serialized.serializer", SERIALIZER),
    ] {
        let got = reader.u8(field)?;
        if got != expected {
            return Err(DecodeError::Mismatch {
                field,
                got: got.into(),
                expected: expected.into(),
            });
        }
    }
    if reader.u16("Serialized.flags")? != 0 {
        return Err(DecodeError::NonZeroReserved {
            field: "Serialized.flags",
        });
    }
    let size = reader.u64("Serialized.size")?;
    let limit = serialized_limit();
    if size > limit {
        return Err(DecodeError::TooLong {
            field: "Serialized.size",
            got: size,
            limit,
        });
    }
    reader.require("Serialized.payload", size)?;
    let payload = reader.rest();
    match (payload.len() as u64).checked_sub(size) {
        Some(0) => Ok(payload),
        surplus => Err(DecodeError::Trailing {
            what: "Serialized",
            count: surplus.unwrap_or_default(),
        }),
    }
}

fn serialized_limit() -> u64 {
    u64::from(MAX_PAYLOAD_BYTES) - SERIALIZED_HEADER_BYTES as u64
}
