//! The daemon's reply and the session's ready line.

use serde::{Deserialize, Serialize};

use super::{frame_json, parse_json, sorted_json, ManifestError};
use crate::frame::truncate_utf8;
use crate::limits::{MAX_ERROR_MESSAGE_BYTES, MAX_READY_LINE_BYTES};

/// Where a session listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPorts {
    /// Host of the command lane.
    pub command_host: String,
    /// Port of the command lane.
    pub command_port: u16,
    /// Host of the health lane.
    pub health_host: String,
    /// Port of the health lane.
    pub health_port: u16,
}

/// The daemon's answer to a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonReply {
    /// The session listens.
    Ok {
        /// Where.
        ports: SessionPorts,
        /// Process id of the session.
        pid: u32,
    },
    /// It does not.
    Err {
        /// Why.
        error: String,
        /// Process id, when the session started and reported the failure itself.
        pid: Option<u32>,
    },
}

/// The session's line on the ready pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyLine {
    /// It listens.
    Ok(SessionPorts),
    /// It does not.
    Err {
        /// Why, cut to 4096 bytes when written.
        error: String,
    },
}

/// Both replies as they are in JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RawReply {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command_host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health_host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    health_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl RawReply {
    fn ok(ports: &SessionPorts, pid: Option<u32>) -> Self {
        Self {
            ok: true,
            command_host: Some(ports.command_host.clone()),
            command_port: Some(ports.command_port),
            health_host: Some(ports.health_host.clone()),
            health_port: Some(ports.health_port),
            pid,
            error: None,
        }
    }

    fn err(error: &str, pid: Option<u32>) -> Self {
        Self {
            ok: false,
            pid,
            error: Some(error.to_owned()),
            ..Self::default()
        }
    }

    fn ports(&self) -> Result<SessionPorts, ManifestError> {
        Ok(SessionPorts {
            command_host: present(self.command_host.clone(), "command_host")?,
            command_port: present(self.command_port, "command_port")?,
            health_host: present(self.health_host.clone(), "health_host")?,
            health_port: present(self.health_port, "health_port")?,
        })
    }
}

fn present<T>(value: Option<T>, key: &'static str) -> Result<T, ManifestError> {
    value.ok_or(ManifestError::Missing { key })
}

impl DaemonReply {
    /// Reads a reply.
    ///
    /// # Errors
    /// [`ManifestError::TooLong`], [`ManifestError::Json`], [`ManifestError::Missing`].
    pub fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let raw: RawReply = parse_json(json)?;
        if raw.ok {
            return Ok(Self::Ok {
                ports: raw.ports()?,
                pid: present(raw.pid, "pid")?,
            });
        }
        Ok(Self::Err {
            error: present(raw.error, "error")?,
            pid: raw.pid,
        })
    }

    /// The reply with its length in front.
    ///
    /// # Errors
    /// [`ManifestError::TooLong`].
    pub fn to_frame(&self) -> Result<Vec<u8>, ManifestError> {
        match self {
            Self::Ok { ports, pid } => frame_json(&RawReply::ok(ports, Some(*pid))),
            Self::Err { error, pid } => frame_json(&RawReply::err(error, *pid)),
        }
    }
}

impl ReadyLine {
    /// Reads a line; its newline may be there or not.
    ///
    /// # Errors
    /// [`ManifestError::TooLong`] over 64 KiB, [`ManifestError::Json`], [`ManifestError::Missing`].
    pub fn from_line(line: &[u8]) -> Result<Self, ManifestError> {
        let (got, limit) = (line.len() as u64, MAX_READY_LINE_BYTES as u64);
        if got > limit {
            return Err(ManifestError::TooLong { got, limit });
        }
        let raw: RawReply = parse_json(line)?;
        if raw.ok {
            return Ok(Self::Ok(raw.ports()?));
        }
        Ok(Self::Err {
            error: present(raw.error, "error")?,
        })
    }

    /// The line with its newline; an error text is cut to 4096 bytes between characters.
    ///
    /// # Errors
    /// [`ManifestError::Write`], which these values do not cause.
    pub fn to_line(&self) -> Result<Vec<u8>, ManifestError> {
        let raw = match self {
            Self::Ok(ports) => RawReply::ok(ports, None),
            Self::Err { error } => {
                RawReply::err(truncate_utf8(error, MAX_ERROR_MESSAGE_BYTES as usize), None)
            }
        };
        let mut line = sorted_json(&raw)?;
        line.push(b'\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> SessionPorts {
        SessionPorts {
            command_host: "127.0.0.1".to_owned(),
            command_port: 1,
            health_host: "::1".to_owned(),
            health_port: 65535,
        }
    }

    #[test]
    fn replies_round_trip() {
        let replies = [
            DaemonReply::Ok {
                ports: ports(),
                pid: 9,
            },
            DaemonReply::Err {
                error: "größe".to_owned(),
                pid: Some(9),
            },
            DaemonReply::Err {
                error: String::new(),
                pid: None,
            },
        ];
        for reply in replies {
            let frame = reply.to_frame().expect("short");
            let (_, json) = frame.split_at(4);
            assert_eq!(DaemonReply::from_json(json), Ok(reply));
        }
    }

    #[test]
    fn lines_round_trip_and_end_with_a_newline() {
        for line in [
            ReadyLine::Ok(ports()),
            ReadyLine::Err {
                error: "a\nb".to_owned(),
            },
        ] {
            let bytes = line.to_line().expect("short");
            assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(bytes.last(), Some(&b'\n'));
            assert_eq!(ReadyLine::from_line(&bytes), Ok(line));
        }
    }

    /// The longest and worst error text still fits the line's limit.
    #[test]
    fn an_error_is_cut_and_fits() {
        let line = ReadyLine::Err {
            error: "\u{1}".repeat(10_000),
        }
        .to_line()
        .expect("short");
        let ReadyLine::Err { error } = ReadyLine::from_line(&line).expect("within the limit")
        else {
            panic!("an error");
        };
        assert_eq!(error.len(), 4096);
        assert!(ReadyLine::from_line(&vec![b' '; MAX_READY_LINE_BYTES + 1]).is_err());
    }

    #[test]
    fn missing_keys_are_named() {
        let error = DaemonReply::from_json(br#"{"ok": true, "command_host": "h"}"#);
        assert_eq!(
            error,
            Err(ManifestError::Missing {
                key: "command_port"
            })
        );
        let error = ReadyLine::from_line(br#"{"ok": false}"#);
        assert_eq!(error, Err(ManifestError::Missing { key: "error" }));
        assert!(DaemonReply::from_json(b"{}").is_err());
        assert!(ReadyLine::from_line(br#"{"ok": true, "command_port": 65536}"#).is_err());
    }
}
