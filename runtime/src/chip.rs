//! Chips: devices that a worker process each owns, and the machine code for them (design §8). What runs it is the session crate's.

use std::sync::Arc;

use bytes::Bytes;
use echelon_wire::callable::{
    chip_descriptor, digest_of, read_signature_schema, sha256, signature_schema, CallableKind,
    ChipIdentity, Digest, Direction,
};
use echelon_wire::codec::{Encode, Reader, Writer};
use echelon_wire::frame::control::chip::{ChipBlob, ChipCallablePayload};
use echelon_wire::limits::{
    DIGEST_BYTES, MAX_CHIP_BLOB_BYTES, MAX_CHIP_DIRECTIONS, MAX_INLINE_BLOB_BYTES,
    MAX_PAYLOAD_BYTES, MAX_STRING_BYTES,
};

use crate::callable::{Callable, CallableSource};
use crate::error::Error;

/// Most devices of one worker.
pub const MAX_DEVICES: usize = 1024;

/// The runtime that machine code is made for when none is named; the contract's default (slr3-v1 §8).
pub const DEFAULT_RUNTIME: &str = "tensormap_and_ringbuffer";

/// The devices of one worker: each gets a worker process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChipDevices {
    /// What kind of device.
    pub platform: String,
    /// The runtime that its machine code is made for.
    pub runtime: String,
    /// Device numbers, each once; their order is that of the worker ids.
    pub ids: Vec<i64>,
}

impl ChipDevices {
    /// Checks what can be checked without the platform: a name, no negative number, none twice, at most 1024.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the device.
    pub fn validate(&self) -> Result<(), Error> {
        let bad = |message: String| Err(Error::argument("device_ids", message));
        if self.platform.is_empty() || self.runtime.is_empty() {
            return Err(Error::argument(
                "platform",
                "platform and runtime of the devices are not empty; \"cpu\" needs no accelerator",
            ));
        }
        if self.ids.len() > MAX_DEVICES {
            return bad(format!("{} devices, limit {MAX_DEVICES}", self.ids.len()));
        }
        let mut seen = std::collections::HashSet::new();
        for id in &self.ids {
            if *id < 0 {
                return bad(format!("there is no device {id}; they are numbered from 0"));
            }
            if !seen.insert(id) {
                return bad(format!(
                    "device {id} is named twice; one worker owns a device"
                ));
            }
        }
        Ok(())
    }
}

/// Machine code for a platform, and what it takes.
#[derive(Clone)]
pub struct ChipCode {
    platform: Arc<str>,
    runtime: Arc<str>,
    signature: Arc<[Direction]>,
    blob: Bytes,
    blob_sha256: [u8; DIGEST_BYTES],
    digest: Digest,
    /// The session's name of the blob, for the one registration that it was staged for.
    staged: Option<Bytes>,
}

impl ChipCode {
    /// Machine code with the signature it has; the identity is computed.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty blob or one over 64 MiB, an unknown platform, a name that is too long, too many parameters.
    pub fn new(
        platform: &str,
        runtime: &str,
        signature: &[Direction],
        blob: Bytes,
    ) -> Result<Self, Error> {
        if blob.is_empty() || blob.len() as u64 > MAX_CHIP_BLOB_BYTES {
            return Err(Error::argument(
                "blob",
                format!(
                    "machine code of {} bytes is outside 1..={MAX_CHIP_BLOB_BYTES}",
                    blob.len()
                ),
            ));
        }
        let blob_sha256 = sha256(&blob);
        let mut code = Self {
            platform: platform.into(),
            runtime: runtime.into(),
            signature: signature.into(),
            blob,
            blob_sha256,
            digest: Digest([0; DIGEST_BYTES]),
            staged: None,
        };
        code.digest = digest_of(&code.descriptor()?);
        Ok(code)
    }

    /// The platform that it is for.
    #[must_use]
    pub fn platform(&self) -> &str {
        &self.platform
    }

    /// The runtime that it is for.
    #[must_use]
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// What each parameter is.
    #[must_use]
    pub fn signature(&self) -> &[Direction] {
        &self.signature
    }

    /// The machine code.
    #[must_use]
    pub fn blob(&self) -> &Bytes {
        &self.blob
    }

    /// SHA-256 of the machine code.
    #[must_use]
    pub fn blob_sha256(&self) -> &[u8; DIGEST_BYTES] {
        &self.blob_sha256
    }

    /// SHA-256 of the descriptor.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The canonical descriptor (slr3-v1 §7).
    ///
    /// # Errors
    /// [`Error::Argument`] when a part is over its limit.
    pub fn descriptor(&self) -> Result<Vec<u8>, Error> {
        let identity = ChipIdentity {
            platform: &self.platform,
            runtime: &self.runtime,
            blob_sha256: self.blob_sha256,
            signature: &self.signature,
        };
        chip_descriptor(&identity).map_err(|error| Error::argument("chip", error.to_string()))
    }

    /// True when one control carries it, in a lane whose frames have `frame_bytes` of payload; a larger one is staged.
    #[must_use]
    pub fn fits_inline(&self, frame_bytes: u32) -> bool {
        let room = frame_bytes.saturating_sub(MAX_PAYLOAD_BYTES - MAX_INLINE_BLOB_BYTES);
        self.blob.len() as u64 <= room.into()
    }

    /// The same code, under the name that a session gave its staged blob.
    #[must_use]
    pub(crate) fn staged_as(&self, token: Bytes) -> Self {
        Self {
            staged: Some(token),
            ..self.clone()
        }
    }

    /// The contract's payload (slr3-v1 §5): staged when it was staged, else inline.
    ///
    /// # Errors
    /// [`Error::Argument`] when it is larger than one control carries.
    pub fn payload(&self) -> Result<Vec<u8>, Error> {
        let blob = match &self.staged {
            Some(token) => ChipBlob::Staged {
                blob_size: self.blob.len() as u64,
                token: token.as_ref().into(),
            },
            None => ChipBlob::Inline(self.blob.as_ref().into()),
        };
        let payload = ChipCallablePayload {
            descriptor: self.descriptor()?.into(),
            blob_sha256: self.blob_sha256,
            blob,
        };
        payload
            .to_bytes()
            .map_err(|error| Error::argument("chip", error.to_string()))
    }

    /// What a process of this host is given: platform, runtime, schema and blob. Of any size that [`Self::new`] takes.
    pub(crate) fn local_payload(&self) -> Result<Vec<u8>, Error> {
        let text =
            |error: echelon_wire::error::EncodeError| Error::argument("chip", error.to_string());
        let mut writer = Writer::with_capacity(64 + self.blob.len());
        writer
            .str("chip.platform", &self.platform, MAX_STRING_BYTES)
            .map_err(text)?;
        writer
            .str("chip.runtime", &self.runtime, MAX_STRING_BYTES)
            .map_err(text)?;
        let schema = signature_schema(&self.signature).map_err(text)?;
        writer
            .blob("chip.schema", &schema, SCHEMA_LIMIT)
            .map_err(text)?;
        writer
            .blob("chip.blob", &self.blob, MAX_CHIP_BLOB_BYTES as u32)
            .map_err(text)?;
        Ok(writer.into_bytes())
    }

    /// Reads what a parent on this host sent.
    ///
    /// # Errors
    /// The text of what is wrong with it.
    pub fn from_local_payload(payload: &[u8]) -> Result<Self, String> {
        let text = |error: echelon_wire::error::DecodeError| error.to_string();
        let mut reader = Reader::new(payload);
        let platform = reader
            .str("chip.platform", MAX_STRING_BYTES)
            .map_err(text)?;
        let runtime = reader.str("chip.runtime", MAX_STRING_BYTES).map_err(text)?;
        let schema = reader.blob("chip.schema", SCHEMA_LIMIT).map_err(text)?;
        let blob = reader
            .blob("chip.blob", MAX_CHIP_BLOB_BYTES as u32)
            .map_err(text)?;
        reader.finish("chip").map_err(text)?;
        let signature = read_signature_schema(schema).map_err(text)?;
        Self::new(platform, runtime, &signature, Bytes::copy_from_slice(blob))
            .map_err(|error| error.to_string())
    }
}

const SCHEMA_LIMIT: u32 = 8 + 4 * MAX_CHIP_DIRECTIONS as u32;

impl std::fmt::Debug for ChipCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChipCode")
            .field("platform", &self.platform)
            .field("signature", &self.signature)
            .field("blob_bytes", &self.blob.len())
            .finish_non_exhaustive()
    }
}

impl Callable {
    /// The callable of machine code, named `name` in messages.
    #[must_use]
    pub fn chip(name: &str, code: ChipCode) -> Self {
        Self {
            digest: code.digest,
            kind: CallableKind::ChipCallable,
            name: name.into(),
            source: CallableSource::Chip(Arc::new(code)),
        }
    }

    /// The machine code of a chip callable.
    #[must_use]
    pub fn chip_code(&self) -> Option<&ChipCode> {
        match &self.source {
            CallableSource::Chip(code) => Some(code),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> ChipCode {
        let signature = [Direction::In, Direction::Scalar, Direction::Out];
        ChipCode::new("cpu", "r", &signature, Bytes::from_static(b"code")).unwrap()
    }

    #[test]
    fn devices_are_named_once_and_from_zero() {
        let devices = |ids: &[i64]| ChipDevices {
            platform: "cpu".into(),
            runtime: DEFAULT_RUNTIME.into(),
            ids: ids.to_vec(),
        };
        assert!(devices(&[]).validate().is_ok());
        assert!(devices(&[3, 0]).validate().is_ok());
        for (ids, named) in [(vec![0, 7, 7], "device 7"), (vec![-1], "device -1")] {
            let text = devices(&ids).validate().unwrap_err().to_string();
            assert!(text.contains(named), "{text}");
        }
        let many: Vec<i64> = (0..=MAX_DEVICES as i64).collect();
        assert!(devices(&many).validate().is_err());
        let nameless = ChipDevices {
            platform: String::new(),
            ..devices(&[0])
        };
        assert!(nameless.validate().is_err());
    }

    #[test]
    fn a_local_payload_has_the_same_identity_at_its_other_end() {
        let code = code();
        let payload = code.local_payload().unwrap();
        let read = ChipCode::from_local_payload(&payload).unwrap();
        assert_eq!(read.digest(), code.digest());
        assert_eq!(
            (read.signature(), read.blob()),
            (code.signature(), code.blob())
        );
        for end in 0..payload.len() {
            assert!(ChipCode::from_local_payload(&payload[..end]).is_err());
        }
    }

    #[test]
    fn every_part_is_in_the_identity() {
        let blob = || Bytes::from_static(b"code");
        let other = [
            ChipCode::new("cuda", "r", code().signature(), blob()),
            ChipCode::new("cpu", "s", code().signature(), blob()),
            ChipCode::new("cpu", "r", &[Direction::In], blob()),
            ChipCode::new("cpu", "r", code().signature(), Bytes::from_static(b"c0de")),
        ];
        for other in other {
            assert_ne!(other.unwrap().digest(), code().digest());
        }
        assert!(ChipCode::new("abacus", "r", &[], blob()).is_err());
        assert!(ChipCode::new("cpu", "r", &[], Bytes::new()).is_err());
    }
}
