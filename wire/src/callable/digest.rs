//! Digests and their text form.

use sha2::{Digest as _, Sha256};

use super::IdentityError;
use crate::limits::DIGEST_BYTES;

const HASHID_PREFIX: &str = "sha256:";

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

/// Digest of a descriptor.
pub fn digest_of(descriptor: &[u8]) -> Digest {
    Digest(sha256(descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "afe9336fbd69f14037ca230a819ae27f0eb9bdc44aa803356586ee7a811e3610";

    #[test]
    fn a_hashid_is_its_text() {
        let text = format!("sha256:{HEX}");
        let hashid = Hashid::parse(&text).expect("valid");
        assert_eq!(hashid.to_string(), text);
        assert_eq!(hashid.digest().to_string(), HEX);
        assert_eq!(Hashid::parse_manifest(HEX), Ok(hashid));
        assert_eq!(Hashid::parse_manifest(&text), Ok(hashid));
    }

    /// Blanks that a lenient parser skips, upper case, other lengths and other characters are refused.
    #[test]
    fn other_texts_are_refused() {
        assert_eq!(Hashid::parse(HEX), Err(IdentityError::HashidPrefix));
        let cases = [
            HEX.to_uppercase(),
            format!("{} ", &HEX[..63]),
            format!("af {}", &HEX[3..]),
            HEX[..62].to_owned(),
            format!("{HEX}00"),
            format!("é{}", &HEX[2..]),
            format!("+{}", &HEX[1..]),
            String::new(),
        ];
        for hex in cases {
            assert!(Hashid::parse(&format!("sha256:{hex}")).is_err(), "{hex:?}");
            assert!(Hashid::parse_manifest(&hex).is_err(), "{hex:?}");
        }
        assert!(Hashid::parse(&format!("SHA256:{HEX}")).is_err());
        assert!(Hashid::parse(&format!("sha256:sha256:{}", &HEX[7..])).is_err());
    }
}
