//! The JSON documents that start a session: the manifest, the daemon's reply, the runner's ready line.
//!
//! The one part of the protocol that is JSON by contract. Between parent and daemon a document is preceded by its length
//! (`u32`, little-endian, at most 16 MiB); the ready line ends with a newline. Unknown keys are ignored.

mod manifest;
mod reply;

pub use manifest::{CallableEntry, Manifest, REMOTE_WORKER_LEVEL};
pub use reply::{DaemonReply, ReadyLine, SessionPorts};

use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::callable::IdentityError;
use crate::frame::truncate_utf8;
use crate::limits::MAX_JSON_BYTES;

/// The byte by which a parent that sent a `startup_budget_s` tells the daemon that both lanes are connected, before it closes.
pub const CONNECTED: u8 = 1;

/// What is wrong with a bootstrap document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The document is over the limit; refused before it is read.
    #[error("bootstrap document has {got} bytes, limit {limit}")]
    TooLong {
        /// Bytes.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// The document is not JSON of the expected shape.
    #[error("bootstrap document is not valid at line {line} column {column} ({category} error)")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// `syntax`, `data`, `eof` or `io`.
        category: &'static str,
    },
    /// A value has no JSON form.
    #[error("bootstrap document cannot be written: {reason}")]
    Write {
        /// What the serializer says.
        reason: String,
    },
    /// A key has a value that is refused.
    #[error("manifest `{key}` is {got}: {rule}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value, shortened and escaped.
        got: String,
        /// What it should be.
        rule: &'static str,
    },
    /// A callable's identity is wrong.
    #[error("manifest `{key}`: {source}")]
    Identity {
        /// The key.
        key: &'static str,
        /// What is wrong.
        source: IdentityError,
    },
    /// A key is missing in a reply.
    #[error("bootstrap reply has no `{key}`")]
    Missing {
        /// The key.
        key: &'static str,
    },
}

impl ManifestError {
    fn value(key: &'static str, got: impl std::fmt::Display, rule: &'static str) -> Self {
        let got = got.to_string();
        let got = truncate_utf8(&got, 64).escape_debug().to_string();
        Self::Value { key, got, rule }
    }

    fn json(error: &serde_json::Error) -> Self {
        let category = match error.classify() {
            serde_json::error::Category::Io => "io",
            serde_json::error::Category::Syntax => "syntax",
            serde_json::error::Category::Data => "data",
            serde_json::error::Category::Eof => "eof",
        };
        Self::Json {
            line: error.line(),
            column: error.column(),
            category,
        }
    }
}

/// A document with its length in front, keys sorted.
///
/// # Errors
/// [`ManifestError::TooLong`] over 16 MiB; [`ManifestError::Write`] when the value has no JSON form.
pub fn frame_json(value: &impl Serialize) -> Result<Vec<u8>, ManifestError> {
    let json = sorted_json(value)?;
    let length = check_json_len(json.len() as u64)?;
    let mut frame = Vec::with_capacity(4 + json.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// Bytes of the document that follows a length, refused over the limit before any memory is taken.
///
/// # Errors
/// [`ManifestError::TooLong`] over 16 MiB.
pub fn json_len(prefix: [u8; 4]) -> Result<usize, ManifestError> {
    check_json_len(u32::from_le_bytes(prefix).into()).map(|length| length as usize)
}

/// Reads a document.
///
/// # Errors
/// [`ManifestError::TooLong`], [`ManifestError::Json`]; neither repeats what the document says.
pub fn parse_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, ManifestError> {
    check_json_len(json.len() as u64)?;
    serde_json::from_slice(json).map_err(|error| ManifestError::json(&error))
}

fn check_json_len(got: u64) -> Result<u32, ManifestError> {
    match u32::try_from(got) {
        Ok(length) if length <= MAX_JSON_BYTES => Ok(length),
        _ => Err(ManifestError::TooLong {
            got,
            limit: MAX_JSON_BYTES.into(),
        }),
    }
}

/// JSON with sorted keys: `serde_json`'s own map sorts them.
fn sorted_json(value: &impl Serialize) -> Result<Vec<u8>, ManifestError> {
    serde_json::to_value(value)
        .and_then(|value| serde_json::to_vec(&value))
        .map_err(|error| ManifestError::Write {
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_their_length_in_front_and_sorted_keys() {
        let reply = DaemonReply::Err {
            error: "no".to_owned(),
            pid: None,
        };
        let frame = reply.to_frame().expect("short");
        assert_eq!(frame, b"\x19\0\0\0{\"error\":\"no\",\"ok\":false}");
        assert_eq!(json_len([0x19, 0, 0, 0]), Ok(25));
    }

    /// Nothing that a peer wrote appears in the error.
    #[test]
    fn json_errors_do_not_repeat_the_document() {
        let error = parse_json::<u32>(b"\"secret\"").expect_err("not a number");
        assert_eq!(
            error.to_string(),
            "bootstrap document is not valid at line 1 column 8 (data error)"
        );
        let deep = "[".repeat(100_000);
        assert!(matches!(
            parse_json::<serde_json::Value>(deep.as_bytes()),
            Err(ManifestError::Json { .. })
        ));
    }
}
