//! The descriptor of a chip callable, read back: what a session knows of it besides the machine code.

use super::descriptor::DESCRIPTOR_VERSION;
use super::{chip_arch, CallableKind};
use crate::codec::{Decode, Reader};
use crate::error::{DecodeError, RuleViolation};
use crate::limits::{DIGEST_BYTES, MAX_STRING_BYTES};

/// The fields of [`super::chip_descriptor`].
///
/// | type | field | rule |
/// |---|---|---|
/// | u32 | version | 1 |
/// | u32 | kind | 1 |
/// | str(1024) | arch | that of the platform |
/// | str(1024) | platform | known |
/// | str(1024) | runtime | |
/// | blob(32) | blob_sha256 | 32 bytes |
/// | blob(32) | schema_sha256 | 32 bytes |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChipDescriptor<'a> {
    /// Platform name; it has an architecture, see [`chip_arch`].
    pub platform: &'a str,
    /// Runtime name.
    pub runtime: &'a str,
    /// SHA-256 of the machine code.
    pub blob_sha256: [u8; DIGEST_BYTES],
    /// SHA-256 of the signature's schema bytes.
    pub schema_sha256: [u8; DIGEST_BYTES],
}

impl<'a> Decode<'a> for ChipDescriptor<'a> {
    const NAME: &'static str = "ChipDescriptor";

    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        for (field, wanted) in [
            ("ChipDescriptor.version", DESCRIPTOR_VERSION),
            ("ChipDescriptor.kind", CallableKind::ChipCallable.code()),
        ] {
            let got = reader.u32(field)?;
            DecodeError::known((got == wanted).then_some(()), field, got)?;
        }
        let arch = reader.str("ChipDescriptor.arch", MAX_STRING_BYTES)?;
        let platform = reader.str("ChipDescriptor.platform", MAX_STRING_BYTES)?;
        if chip_arch(platform) != Some(arch) {
            return Err(RuleViolation::new(
                "ChipDescriptor.arch",
                arch.len() as u64,
                "it is not the architecture of the platform, or the platform is unknown",
            )
            .into());
        }
        Ok(Self {
            platform,
            runtime: reader.str("ChipDescriptor.runtime", MAX_STRING_BYTES)?,
            blob_sha256: hash(reader, "ChipDescriptor.blob_sha256")?,
            schema_sha256: hash(reader, "ChipDescriptor.schema_sha256")?,
        })
    }
}

fn hash(reader: &mut Reader<'_>, field: &'static str) -> Result<[u8; DIGEST_BYTES], DecodeError> {
    let bytes = reader.blob(field, DIGEST_BYTES as u32)?;
    bytes
        .try_into()
        .map_err(|_| RuleViolation::new(field, bytes.len() as u64, "a SHA-256 has 32 bytes").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callable::{chip_descriptor, sha256, signature_schema, ChipIdentity, Direction};

    #[test]
    fn a_descriptor_is_read_as_it_was_written_and_nothing_else_is() {
        let signature = [Direction::In, Direction::Scalar];
        for platform in ["cpu", "cuda", "a2a3sim", "a5", ""] {
            let identity = ChipIdentity {
                platform,
                runtime: "r",
                blob_sha256: [7; DIGEST_BYTES],
                signature: &signature,
            };
            let bytes = chip_descriptor(&identity).expect("valid");
            let read = ChipDescriptor::decode(&bytes).expect("its own");
            assert_eq!((read.platform, read.runtime), (platform, "r"));
            assert_eq!(read.blob_sha256, [7; DIGEST_BYTES]);
            let schema = signature_schema(&signature).expect("valid");
            assert_eq!(read.schema_sha256, sha256(&schema));
            for end in 0..bytes.len() {
                assert!(ChipDescriptor::decode(&bytes[..end]).is_err(), "{end}");
            }
            for at in [0, 4] {
                let mut bad = bytes.clone();
                bad[at] = 9;
                assert!(ChipDescriptor::decode(&bad).is_err());
            }
        }
    }

    #[test]
    fn another_platforms_architecture_is_refused() {
        let identity = ChipIdentity {
            platform: "a5",
            runtime: "",
            blob_sha256: [0; DIGEST_BYTES],
            signature: &[],
        };
        let mut bytes = chip_descriptor(&identity).expect("valid");
        // The first `a5` is the architecture.
        bytes[13] = b'6';
        assert!(ChipDescriptor::decode(&bytes).is_err());
    }
}
