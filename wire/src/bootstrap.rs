//! The JSON documents that start a session: the manifest, the daemon's reply, the runner's ready line.
//!
//! The one part of the protocol that is JSON by contract. Between parent and daemon a document is preceded by its length
//! (`u32`, little-endian, at most 16 MiB); the ready line ends with a newline. Unknown keys are ignored.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::callable::{CallableKind, Digest, Hashid, IdentityError, RegistryTarget};
use crate::frame::truncate_utf8;
use crate::id::{SessionId, WorkerId};
use crate::limits::{MAX_ERROR_MESSAGE_BYTES, MAX_JSON_BYTES, MAX_READY_LINE_BYTES};

/// Level of a remote worker, the only one there is.
pub const REMOTE_WORKER_LEVEL: i64 = 3;

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

/// A callable that the session installs before it takes commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallableEntry {
    /// 64 hexadecimal characters, with or without `sha256:`.
    pub hashid: String,
    /// `PYTHON_IMPORT`, `CHIP_CALLABLE` or `PYTHON_SERIALIZED`.
    pub kind: String,
    /// `REMOTE_TASK_DISPATCHER` or `INNER_L3_WORKER`.
    pub target_registry: String,
    /// `module:qualname` of an importable callable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Version of the payload; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_version: Option<u32>,
    /// Payload of any other callable, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_hex: Option<String>,
}

impl CallableEntry {
    /// The digest of `hashid`.
    ///
    /// # Errors
    /// [`ManifestError::Identity`].
    pub fn digest(&self) -> Result<Digest, ManifestError> {
        Hashid::parse_manifest(&self.hashid)
            .map(|hashid| hashid.digest())
            .map_err(|source| ManifestError::Identity {
                key: "hashid",
                source,
            })
    }

    /// The kind by name.
    ///
    /// # Errors
    /// [`ManifestError::Value`] for an unknown name.
    pub fn callable_kind(&self) -> Result<CallableKind, ManifestError> {
        CallableKind::from_name(&self.kind)
            .ok_or_else(|| ManifestError::value("kind", &self.kind, "it is not a kind of callable"))
    }

    /// The table by name.
    ///
    /// # Errors
    /// [`ManifestError::Value`] for an unknown name.
    pub fn registry(&self) -> Result<RegistryTarget, ManifestError> {
        RegistryTarget::from_name(&self.target_registry).ok_or_else(|| {
            ManifestError::value(
                "target_registry",
                &self.target_registry,
                "it is not a registry",
            )
        })
    }
}

/// What a parent sends to a daemon to have a session started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Drawn at random by the parent, not 0.
    pub session_id: u64,
    /// The worker's stable number under its parent, not negative.
    pub worker_id: i32,
    /// At least 4; not checked.
    pub parent_worker_level: i64,
    /// 3.
    pub remote_worker_level: i64,
    /// What the session runs on, not empty.
    pub platform: String,
    /// `sim` or `tcp`.
    pub transport: String,
    /// Name of the runtime.
    #[serde(default = "default_runtime")]
    pub runtime: String,
    /// Devices of the session.
    #[serde(default)]
    pub device_ids: Vec<i64>,
    /// Sub workers of the session.
    #[serde(default)]
    pub num_sub_workers: u32,
    /// Bytes of each heap ring; `None` is the session's default.
    #[serde(default)]
    pub heap_ring_size: Option<u64>,
    /// Bound of each step of starting and of accepting the command connection, in seconds.
    #[serde(default = "default_timeout_s")]
    pub session_timeout_s: f64,
    /// Address the session listens on.
    #[serde(default = "default_listen_host")]
    pub listen_host: String,
    /// Address the parent connects to; `listen_host` when absent.
    #[serde(default)]
    pub connect_host: Option<String>,
    /// Callables for TASK frames.
    #[serde(default, deserialize_with = "null_as_default")]
    pub remote_task_dispatcher: Vec<CallableEntry>,
    /// Callables for the session's own worker.
    #[serde(default, deserialize_with = "null_as_default")]
    pub inner_l3_worker: Vec<CallableEntry>,
    /// Names of extensions that the parent offers; unknown ones are ignored.
    #[serde(default, deserialize_with = "names_only")]
    pub feature_flags: Vec<String>,
}

impl Default for Manifest {
    /// A manifest with the defaults of every optional key; the required ones are not valid yet.
    fn default() -> Self {
        Self {
            session_id: 0,
            worker_id: 0,
            parent_worker_level: REMOTE_WORKER_LEVEL + 1,
            remote_worker_level: REMOTE_WORKER_LEVEL,
            platform: String::new(),
            transport: "sim".to_owned(),
            runtime: default_runtime(),
            device_ids: Vec::new(),
            num_sub_workers: 0,
            heap_ring_size: None,
            session_timeout_s: default_timeout_s(),
            listen_host: default_listen_host(),
            connect_host: None,
            remote_task_dispatcher: Vec::new(),
            inner_l3_worker: Vec::new(),
            feature_flags: Vec::new(),
        }
    }
}

impl Manifest {
    /// The daemon's rules.
    ///
    /// # Errors
    /// [`ManifestError::Value`] with the first key that is refused.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let refuse =
            |key, got: &dyn std::fmt::Display, rule| Err(ManifestError::value(key, got, rule));
        if self.session_id == 0 {
            return refuse("session_id", &self.session_id, "it must not be 0");
        }
        if self.worker_id < 0 {
            return refuse("worker_id", &self.worker_id, "it must not be negative");
        }
        if self.remote_worker_level != REMOTE_WORKER_LEVEL {
            let got = self.remote_worker_level;
            return refuse("remote_worker_level", &got, "a remote worker has level 3");
        }
        if self.platform.is_empty() {
            return refuse("platform", &"empty", "name a platform");
        }
        if !matches!(self.transport.as_str(), "sim" | "tcp") {
            return refuse(
                "transport",
                &self.transport,
                "known transports are sim and tcp",
            );
        }
        if !self.session_timeout_s.is_finite() || self.session_timeout_s <= 0.0 {
            let got = self.session_timeout_s;
            return refuse(
                "session_timeout_s",
                &got,
                "it must be finite and more than 0 seconds",
            );
        }
        Ok(())
    }

    /// Reads a manifest. Its values are not validated yet, see [`Manifest::validate`].
    ///
    /// # Errors
    /// [`ManifestError::TooLong`], [`ManifestError::Json`].
    pub fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        parse_json(json)
    }

    /// The session's identity.
    pub const fn session(&self) -> SessionId {
        SessionId(self.session_id)
    }

    /// The worker's identity.
    pub const fn worker(&self) -> WorkerId {
        WorkerId(self.worker_id)
    }

    /// Address the parent connects to: `connect_host`, else `listen_host`.
    pub fn effective_connect_host(&self) -> &str {
        self.connect_host.as_deref().unwrap_or(&self.listen_host)
    }
}

fn default_runtime() -> String {
    "tensormap_and_ringbuffer".to_owned()
}

const fn default_timeout_s() -> f64 {
    30.0
}

fn default_listen_host() -> String {
    "127.0.0.1".to_owned()
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Version 1 ignores the key whatever it holds, so everything that is not a list of names counts as no name.
fn names_only<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Array(items) => items,
        _ => Vec::new(),
    };
    Ok(names
        .into_iter()
        .filter_map(|name| match name {
            serde_json::Value::String(name) => Some(name),
            _ => None,
        })
        .collect())
}

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
