//! Machine code on its way in parts (extension `staged_blobs`): announced, appended in order, sealed by its hash, used once. Pure.

use std::collections::HashMap;

use bytes::Bytes;
use echelon_wire::callable::{sha256, Digest};
use echelon_wire::frame::control::stage::{StageAppend, StageBegin};
use echelon_wire::limits::{DIGEST_BYTES, MAX_STAGED_BLOBS, MAX_STAGED_BYTES};

/// Bytes of a token.
pub(crate) const TOKEN_BYTES: usize = 16;

/// Why staging is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StagingError {
    /// As many as there may be.
    #[error("RESOURCE_EXHAUSTED: {MAX_STAGED_BLOBS} blobs are staged, which is the limit; register or drop some")]
    Count,
    /// More bytes than there may be.
    #[error("RESOURCE_EXHAUSTED: {announced} bytes would be staged, limit {MAX_STAGED_BYTES}; register or drop some")]
    Bytes {
        /// With the new blob.
        announced: u64,
    },
    /// Not a name of something staged: never was, was used, or was dropped.
    #[error("no blob is staged under this token; it serves one registration")]
    Unknown,
    /// A part in the wrong place.
    #[error("the part begins at {got}, and {expected} bytes are there; parts come in order")]
    Offset {
        /// Of the part.
        got: u64,
        /// There so far.
        expected: u64,
    },
    /// More than announced.
    #[error("{got} bytes are there with this part, and {announced} were announced")]
    TooLong {
        /// With the part.
        got: u64,
        /// By STAGE_BEGIN.
        announced: u64,
    },
    /// Sealed: nothing is added any more.
    #[error("the blob is sealed")]
    Sealed,
    /// Not sealed: it cannot be registered yet.
    #[error("the blob is not sealed; send STAGE_SEAL before it is registered")]
    NotSealed,
    /// Fewer bytes than announced.
    #[error("{got} of {announced} bytes are there; the blob was dropped")]
    Incomplete {
        /// There.
        got: u64,
        /// By STAGE_BEGIN.
        announced: u64,
    },
    /// Another hash than announced.
    #[error(
        "the SHA-256 of the bytes is {got}, and {announced} was announced; the blob was dropped"
    )]
    Hash {
        /// Of the bytes.
        got: Digest,
        /// By STAGE_BEGIN.
        announced: Digest,
    },
}

struct Staged {
    size: u64,
    sha256: [u8; DIGEST_BYTES],
    bytes: Vec<u8>,
    sealed: bool,
}

/// What one session has staged. Gone with the session.
#[derive(Default)]
pub(crate) struct Staging {
    blobs: HashMap<Vec<u8>, Staged>,
}

impl Staging {
    /// Makes room; `token` is fresh and random. No memory is taken for bytes that have not come.
    pub(crate) fn begin(
        &mut self,
        begin: &StageBegin,
        token: [u8; TOKEN_BYTES],
    ) -> Result<(), StagingError> {
        if self.blobs.len() >= MAX_STAGED_BLOBS {
            return Err(StagingError::Count);
        }
        let staged: u64 = self.blobs.values().map(|blob| blob.size).sum();
        let announced = staged + begin.blob_size;
        if announced > MAX_STAGED_BYTES {
            return Err(StagingError::Bytes { announced });
        }
        let blob = Staged {
            size: begin.blob_size,
            sha256: begin.blob_sha256,
            bytes: Vec::new(),
            sealed: false,
        };
        self.blobs.insert(token.to_vec(), blob);
        Ok(())
    }

    /// Adds the next part.
    pub(crate) fn append(&mut self, append: &StageAppend<'_>) -> Result<(), StagingError> {
        let blob = self.blobs.get_mut(append.token.as_ref());
        let blob = blob.ok_or(StagingError::Unknown)?;
        if blob.sealed {
            return Err(StagingError::Sealed);
        }
        let expected = blob.bytes.len() as u64;
        if append.offset != expected {
            return Err(StagingError::Offset {
                got: append.offset,
                expected,
            });
        }
        let got = expected + append.part.len() as u64;
        if got > blob.size {
            return Err(StagingError::TooLong {
                got,
                announced: blob.size,
            });
        }
        blob.bytes.extend_from_slice(&append.part);
        Ok(())
    }

    /// Checks the whole; what does not fit its announcement is dropped.
    pub(crate) fn seal(&mut self, token: &[u8]) -> Result<(), StagingError> {
        let blob = self.blobs.get_mut(token).ok_or(StagingError::Unknown)?;
        let (got, announced) = (blob.bytes.len() as u64, blob.size);
        let hash = sha256(&blob.bytes);
        let wrong = if got != announced {
            StagingError::Incomplete { got, announced }
        } else if hash != blob.sha256 {
            StagingError::Hash {
                got: Digest(hash),
                announced: Digest(blob.sha256),
            }
        } else {
            blob.sealed = true;
            return Ok(());
        };
        self.blobs.remove(token);
        Err(wrong)
    }

    /// The sealed bytes, which leave: a token serves once.
    pub(crate) fn take(&mut self, token: &[u8]) -> Result<Bytes, StagingError> {
        match self.blobs.get(token) {
            None => Err(StagingError::Unknown),
            Some(blob) if !blob.sealed => Err(StagingError::NotSealed),
            Some(_) => {
                let taken = self.blobs.remove(token);
                Ok(taken.map(|blob| blob.bytes).unwrap_or_default().into())
            }
        }
    }

    /// Forgets what is staged; of something unknown it succeeds.
    pub(crate) fn drop_blob(&mut self, token: &[u8]) {
        self.blobs.remove(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use echelon_wire::limits::MAX_CHIP_BLOB_BYTES;

    const TOKEN: [u8; TOKEN_BYTES] = [7; TOKEN_BYTES];

    fn begun(blob: &[u8]) -> Staging {
        let mut staging = Staging::default();
        let begin = StageBegin {
            blob_size: blob.len() as u64,
            blob_sha256: sha256(blob),
        };
        staging.begin(&begin, TOKEN).expect("room");
        staging
    }

    fn part<'a>(offset: u64, bytes: &'a [u8]) -> StageAppend<'a> {
        StageAppend {
            token: TOKEN.to_vec().into(),
            offset,
            part: bytes.into(),
        }
    }

    #[test]
    fn parts_in_order_make_the_blob_and_a_token_serves_once() {
        let mut staging = begun(b"machine code");
        staging.append(&part(0, b"machine")).expect("fits");
        staging.append(&part(7, b" code")).expect("fits");
        assert_eq!(staging.take(&TOKEN), Err(StagingError::NotSealed));
        staging.seal(&TOKEN).expect("whole");
        assert_eq!(staging.append(&part(12, b"!")), Err(StagingError::Sealed));
        assert_eq!(staging.take(b"other"), Err(StagingError::Unknown));
        assert_eq!(staging.take(&TOKEN).expect("sealed"), &b"machine code"[..]);
        assert_eq!(staging.take(&TOKEN), Err(StagingError::Unknown));
    }

    #[test]
    fn what_is_not_what_was_announced_is_dropped_r_105() {
        let mut staging = begun(b"machine code");
        staging.append(&part(0, b"machine c0de")).expect("fits");
        assert!(matches!(
            staging.seal(&TOKEN),
            Err(StagingError::Hash { .. })
        ));
        assert_eq!(staging.seal(&TOKEN), Err(StagingError::Unknown));
        let mut staging = begun(b"machine code");
        staging.append(&part(0, b"mach")).expect("fits");
        let short = StagingError::Incomplete {
            got: 4,
            announced: 12,
        };
        assert_eq!(staging.seal(&TOKEN), Err(short));
        assert_eq!(staging.take(&TOKEN), Err(StagingError::Unknown));
    }

    #[test]
    fn a_part_in_the_wrong_place_or_beyond_the_end_is_refused() {
        let mut staging = begun(b"machine code");
        for offset in [1, 12, u64::MAX] {
            assert!(matches!(
                staging.append(&part(offset, b"m")),
                Err(StagingError::Offset { expected: 0, .. })
            ));
        }
        let long = StagingError::TooLong {
            got: 13,
            announced: 12,
        };
        assert_eq!(staging.append(&part(0, b"machine codes")), Err(long));
        staging.append(&part(0, b"machine code")).expect("fits");
        staging.seal(&TOKEN).expect("whole");
    }

    #[test]
    fn count_and_bytes_are_bounded_and_a_drop_makes_room() {
        let mut staging = Staging::default();
        let of = |blob_size| StageBegin {
            blob_size,
            blob_sha256: [0; DIGEST_BYTES],
        };
        for n in 0..MAX_STAGED_BLOBS {
            staging.begin(&of(1), [n as u8; 16]).expect("room");
        }
        assert_eq!(staging.begin(&of(1), [99; 16]), Err(StagingError::Count));
        staging.drop_blob(&[0; 16]);
        staging.drop_blob(&[0; 16]);
        staging.begin(&of(1), [99; 16]).expect("room");
        let mut staging = Staging::default();
        staging
            .begin(&of(MAX_CHIP_BLOB_BYTES), [1; 16])
            .expect("room");
        staging
            .begin(&of(MAX_CHIP_BLOB_BYTES), [2; 16])
            .expect("room");
        let announced = MAX_STAGED_BYTES + 1;
        let full = StagingError::Bytes { announced };
        assert_eq!(staging.begin(&of(1), [3; 16]), Err(full));
    }
}
