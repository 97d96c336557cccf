//! Descriptors: the bytes whose hash is the identity.

use super::serialized::{SERIALIZED_VERSION, SERIALIZER};
use super::{sha256, CallableKind, IdentityError, ImportTarget};
use crate::codec::{Reader, Writer};
use crate::error::{DecodeError, EncodeError, RuleViolation};
use crate::frame::truncate_utf8;
use crate::limits::{DIGEST_BYTES, MAX_CHIP_DIRECTIONS, MAX_STRING_BYTES};

pub(super) const DESCRIPTOR_VERSION: u32 = 1;

/// Descriptor of an importable Python callable: version, kind, module, qualname.
pub fn import_descriptor(target: &ImportTarget) -> Vec<u8> {
    let mut writer = descriptor_head(CallableKind::PythonImport);
    put_prefixed(&mut writer, target.module().as_bytes());
    put_prefixed(&mut writer, target.qualname().as_bytes());
    writer.into_bytes()
}

/// Descriptor of a serialized Python callable. `payload_sha256` is the hash of the serializer's bytes alone, without the
/// envelope of [`super::encode_serialized`].
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

    /// Name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "SCALAR",
            Self::In => "IN",
            Self::Out => "OUT",
            Self::InOut => "INOUT",
        }
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

/// The signature of schema bytes.
///
/// # Errors
/// [`DecodeError`] for another version, too many parameters, an unknown direction, or bytes left over.
pub fn read_signature_schema(schema: &[u8]) -> Result<Vec<Direction>, DecodeError> {
    let mut reader = Reader::new(schema);
    let version = reader.u32("ChipSchema.version")?;
    DecodeError::known(
        (version == DESCRIPTOR_VERSION).then_some(()),
        "ChipSchema.version",
        version,
    )?;
    let count = reader.u32("ChipSchema.count")?;
    if count as usize > MAX_CHIP_DIRECTIONS {
        return Err(RuleViolation::new(
            "ChipSchema.count",
            count,
            "a task has at most 8192 arguments",
        )
        .into());
    }
    let mut signature = Vec::new();
    for _ in 0..count {
        let code = reader.u32("ChipSchema.direction")?;
        signature.push(DecodeError::known(
            Direction::from_code(code),
            "ChipSchema.direction",
            code,
        )?);
    }
    reader.finish("ChipSchema")?;
    Ok(signature)
}

/// Descriptor of a chip callable: version, kind, architecture, platform, runtime, hash of the code, hash of the schema.
///
/// # Errors
/// [`IdentityError::Platform`] for an unknown platform, [`IdentityError::Encode`] for a name over 1024 bytes or too many
/// parameters.
pub fn chip_descriptor(identity: &ChipIdentity<'_>) -> Result<Vec<u8>, IdentityError> {
    let arch = chip_arch(identity.platform).ok_or_else(|| IdentityError::Platform {
        platform: truncate_utf8(identity.platform, 64).to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_devices_share_the_architecture() {
        assert_eq!(chip_arch("a2a3sim"), Some("a2a3"));
        assert_eq!(chip_arch("a5"), Some("a5"));
        assert_eq!(chip_arch(""), Some(""));
        assert_eq!(chip_arch("A5"), None);
        let identity = ChipIdentity {
            platform: "b9",
            runtime: "",
            blob_sha256: [0; DIGEST_BYTES],
            signature: &[],
        };
        let error = chip_descriptor(&identity).expect_err("unknown");
        assert!(error.to_string().contains("\"b9\""), "{error}");
        let other = ChipIdentity {
            platform: "a5sim",
            ..identity
        };
        let same_arch = ChipIdentity {
            platform: "a5",
            ..identity
        };
        assert_ne!(chip_descriptor(&other), chip_descriptor(&same_arch));
    }

    #[test]
    fn a_signature_is_part_of_the_identity() {
        let identity = |signature| ChipIdentity {
            platform: "cpu",
            runtime: "",
            blob_sha256: [0; DIGEST_BYTES],
            signature,
        };
        assert_ne!(
            chip_descriptor(&identity(&[Direction::In])),
            chip_descriptor(&identity(&[Direction::Out]))
        );
        let long = vec![Direction::Scalar; MAX_CHIP_DIRECTIONS + 1];
        assert!(matches!(
            chip_descriptor(&identity(&long)),
            Err(IdentityError::Encode(_))
        ));
    }

    #[test]
    fn a_schema_is_read_as_it_was_written_and_nothing_else_is() {
        let signature = [
            Direction::Scalar,
            Direction::In,
            Direction::Out,
            Direction::InOut,
        ];
        let schema = signature_schema(&signature).expect("valid");
        assert_eq!(read_signature_schema(&schema), Ok(signature.to_vec()));
        for end in 0..schema.len() {
            assert!(read_signature_schema(&schema[..end]).is_err(), "{end}");
        }
        for (at, value) in [(0, 2), (4, 5), (4, 0xff), (8, 4)] {
            let mut bad = schema.clone();
            bad[at] = value;
            assert!(read_signature_schema(&bad).is_err(), "{at}");
        }
    }
}
