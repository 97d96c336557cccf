//! The payload of a chip callable, verified before anything of it is kept: every hash is computed again.

use bytes::Bytes;
use echelon_runtime::ChipCode;
use echelon_wire::callable::{sha256, signature_schema, ChipDescriptor, Digest};
use echelon_wire::codec::Decode as _;
use echelon_wire::frame::control::chip::{ChipBlob, ChipCallablePayload};

use super::{backend, ChipError};

fn refused(text: String) -> ChipError {
    ChipError::Payload(text)
}

/// The machine code of an inline payload with the digest that was announced.
///
/// # Errors
/// [`ChipError`] naming what does not fit: hash, size, identity, platform, signature, or the machine code itself.
pub fn verify_inline(digest: &Digest, payload: &[u8]) -> Result<ChipCode, ChipError> {
    let payload = decode(payload)?;
    match &payload.blob {
        ChipBlob::Inline(blob) => verify(digest, &payload, Bytes::copy_from_slice(blob)),
        ChipBlob::Staged { .. } => Err(refused(
            "blob_location 2 (STAGED) is not negotiated for remote protocol v1".to_owned(),
        )),
    }
}

pub(crate) fn decode(payload: &[u8]) -> Result<ChipCallablePayload<'_>, ChipError> {
    ChipCallablePayload::decode(payload).map_err(|error| refused(error.to_string()))
}

/// The machine code `blob`, whether it came inline or staged, once everything that is said of it is true.
pub(crate) fn verify(
    digest: &Digest,
    payload: &ChipCallablePayload<'_>,
    blob: Bytes,
) -> Result<ChipCode, ChipError> {
    let hash = sha256(&blob);
    if payload.blob_size() != blob.len() as u64 {
        return Err(refused(format!(
            "blob_size is {}, and there are {} bytes",
            payload.blob_size(),
            blob.len()
        )));
    }
    if hash != payload.blob_sha256 {
        return Err(refused(format!(
            "the SHA-256 of the machine code is {}, and {} was announced",
            Digest(hash),
            Digest(payload.blob_sha256)
        )));
    }
    let computed = echelon_wire::callable::digest_of(&payload.descriptor);
    if computed != *digest {
        return Err(refused(format!(
            "digest {digest} does not match the descriptor: it is {computed}"
        )));
    }
    let descriptor = ChipDescriptor::decode(&payload.descriptor)
        .map_err(|error| refused(format!("the descriptor cannot be read: {error}")))?;
    if descriptor.blob_sha256 != hash {
        return Err(refused(
            "the descriptor is that of other machine code".to_owned(),
        ));
    }
    let signature = backend(descriptor.platform)?.describe(&blob)?;
    let schema = signature_schema(&signature).map_err(|error| refused(error.to_string()))?;
    if sha256(&schema) != descriptor.schema_sha256 {
        return Err(refused(format!(
            "the machine code declares the signature {}, and the descriptor has the hash of another",
            super::names(&signature)
        )));
    }
    let code = ChipCode::new(descriptor.platform, descriptor.runtime, &signature, blob);
    code.map_err(|error| refused(error.to_string()))
}
