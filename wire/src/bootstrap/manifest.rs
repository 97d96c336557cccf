//! The manifest: what a parent asks of a daemon.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::{parse_json, ManifestError};
use crate::callable::{CallableKind, Digest, Hashid, RegistryTarget};
use crate::id::{SessionId, WorkerId};

/// Level of a remote worker, the only one there is.
pub const REMOTE_WORKER_LEVEL: i64 = 3;

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
    /// `sim`.
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
    /// Bound of health silence and of each read and write, in seconds; without `startup_budget_s` also of the start.
    #[serde(default = "default_timeout_s")]
    pub session_timeout_s: f64,
    /// What was left of the parent's start when it sent this, in seconds (R-001, R-002). Ours: version 1 ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup_budget_s: Option<f64>,
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
            startup_budget_s: None,
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
        if self.transport != "sim" {
            return refuse("transport", &self.transport, "the one transport is sim");
        }
        let seconds = [
            ("session_timeout_s", Some(self.session_timeout_s)),
            ("startup_budget_s", self.startup_budget_s),
        ];
        for (key, value) in seconds {
            if let Some(got) = value.filter(|value| !value.is_finite() || *value <= 0.0) {
                return refuse(key, &got, "it must be finite and more than 0 seconds");
            }
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

    /// `session_timeout_s` as a duration; 136 years stand for everything beyond, so that clocks can add it.
    pub fn session_timeout(&self) -> Duration {
        duration(self.session_timeout_s)
    }

    /// `startup_budget_s` as a duration, of a parent that has one deadline for its whole start.
    pub fn startup_budget(&self) -> Option<Duration> {
        self.startup_budget_s.map(duration)
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

fn duration(seconds: f64) -> Duration {
    const FOR_EVER: Duration = Duration::from_secs(1 << 32);
    Duration::try_from_secs_f64(seconds)
        .unwrap_or(FOR_EVER)
        .min(FOR_EVER)
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

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"{"session_id": 7, "worker_id": 0, "parent_worker_level": 4,
        "remote_worker_level": 3, "platform": "cpu", "transport": "sim"}"#;

    fn with(key: &str, value: &str) -> Result<Manifest, ManifestError> {
        let end = SMALLEST.len() - 1;
        Manifest::from_json(format!("{}, \"{key}\": {value}}}", &SMALLEST[..end]).as_bytes())
    }

    #[test]
    fn missing_keys_have_the_defaults_of_the_contract() {
        let manifest = Manifest::from_json(SMALLEST.as_bytes()).expect("valid");
        manifest.validate().expect("valid");
        let expected = Manifest {
            session_id: 7,
            platform: "cpu".to_owned(),
            ..Manifest::default()
        };
        assert_eq!(manifest, expected);
        assert_eq!(manifest.runtime, "tensormap_and_ringbuffer");
        assert!((manifest.session_timeout_s - 30.0).abs() < f64::EPSILON);
        assert_eq!(manifest.effective_connect_host(), "127.0.0.1");
    }

    #[test]
    fn null_and_unknown_keys_are_taken() {
        let manifest = with("remote_task_dispatcher", "null").expect("valid");
        assert!(manifest.remote_task_dispatcher.is_empty());
        assert!(with("inner_l3_worker", "null").is_ok());
        assert!(with("heap_ring_size", "null").is_ok());
        assert!(with("future", "{\"a\": [1]}").is_ok());
        assert!(with("session_timeout_s", "20").is_ok());
        for (value, names) in [
            ("null", vec![]),
            ("7", vec![]),
            (r#"["a", 1, "b"]"#, vec!["a", "b"]),
        ] {
            assert_eq!(
                with("feature_flags", value).expect("ignored").feature_flags,
                names
            );
        }
    }

    /// R-002: two settings, two keys; neither is derived from the other, and an absent budget is not written.
    #[test]
    fn r_002_the_budget_of_the_start_is_a_key_of_its_own() {
        for (timeout, budget) in [(1.0, None), (1.0, Some(2.5)), (600.0, Some(0.25))] {
            let manifest = Manifest {
                session_timeout_s: timeout,
                startup_budget_s: budget,
                ..Manifest::default()
            };
            let json = serde_json::to_string(&manifest).expect("JSON");
            assert_eq!(json.contains("startup_budget_s"), budget.is_some());
            let back = Manifest::from_json(json.as_bytes()).expect("valid");
            assert_eq!(back.session_timeout(), Duration::from_secs_f64(timeout));
            assert_eq!(back.startup_budget(), budget.map(Duration::from_secs_f64));
        }
    }

    #[test]
    fn required_keys_are_required() {
        for key in [
            "session_id",
            "worker_id",
            "parent_worker_level",
            "platform",
            "transport",
        ] {
            let renamed = SMALLEST.replace(&format!("\"{key}\""), "\"other\"");
            assert!(Manifest::from_json(renamed.as_bytes()).is_err(), "{key}");
        }
    }

    #[test]
    fn the_daemon_refuses_by_name() {
        type Change = fn(&mut Manifest);
        let changed = |change: Change| {
            let platform = "cpu".to_owned();
            let mut manifest = Manifest {
                session_id: 7,
                platform,
                ..Manifest::default()
            };
            change(&mut manifest);
            manifest.validate()
        };
        assert_eq!(changed(|_| ()), Ok(()));
        assert!(changed(|m| m.transport = "tcp".to_owned()).is_err());
        let cases: [(&str, Change); 11] = [
            ("session_id", |m| m.session_id = 0),
            ("worker_id", |m| m.worker_id = -1),
            ("remote_worker_level", |m| m.remote_worker_level = 4),
            ("platform", |m| m.platform.clear()),
            ("transport", |m| m.transport = "rdma\n".repeat(99)),
            ("session_timeout_s", |m| m.session_timeout_s = 0.0),
            ("session_timeout_s", |m| m.session_timeout_s = f64::NAN),
            ("session_timeout_s", |m| m.session_timeout_s = f64::INFINITY),
            ("startup_budget_s", |m| m.startup_budget_s = Some(-1.0)),
            ("startup_budget_s", |m| m.startup_budget_s = Some(f64::NAN)),
            ("startup_budget_s", |m| {
                m.startup_budget_s = Some(f64::INFINITY);
            }),
        ];
        for (key, change) in cases {
            let error = changed(change).expect_err(key).to_string();
            assert!(
                error.contains(key) && error.len() < 300 && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[test]
    fn entries_name_what_is_wrong() {
        let entry = CallableEntry {
            hashid: "0".repeat(64),
            kind: "PYTHON_IMPORT".to_owned(),
            target_registry: "INNER_L3_WORKER".to_owned(),
            target: Some("m:f".to_owned()),
            payload_version: None,
            payload_hex: None,
        };
        assert_eq!(entry.digest(), Ok(Digest([0; 32])));
        assert_eq!(entry.callable_kind(), Ok(CallableKind::PythonImport));
        assert_eq!(entry.registry(), Ok(RegistryTarget::InnerL3Worker));
        let json = serde_json::to_string(&entry).expect("JSON");
        assert!(!json.contains("payload"), "{json}");
        let bad = CallableEntry {
            hashid: "0".to_owned(),
            kind: "python_import".to_owned(),
            target_registry: String::new(),
            ..entry
        };
        assert!(bad.digest().is_err() && bad.callable_kind().is_err() && bad.registry().is_err());
    }
}
