//! Which remote worker: what `add_remote_worker` takes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use echelon_wire::bootstrap::{CallableEntry, Manifest, REMOTE_WORKER_LEVEL};
use serde::{Deserialize, Serialize};

use super::OFFERED;
use crate::chip::ChipDevices;

/// Most sub workers one session may be asked for.
pub(crate) const MAX_SUB_WORKERS: u32 = 1024;

/// A session to be started on a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteWorkerSpec {
    /// `host:port` of the daemon; the host is a numeric IPv4 address or `localhost`.
    pub endpoint: String,
    /// What the session runs on: `cpu`, or any name that the daemon knows.
    pub platform: String,
    /// The profile that HELLO must name; `sim` is the only one.
    pub transport: String,
    /// Name of the runtime on the platform.
    pub runtime: String,
    /// Devices of the session.
    pub device_ids: Vec<i64>,
    /// Sub workers of the session, 0..=1024.
    pub num_sub_workers: u32,
    /// Where the session listens; the daemon's host when `None`.
    pub session_listen_host: Option<String>,
    /// Allow the session to listen on every address of its host.
    pub allow_wildcard_session_bind: bool,
    /// False: this worker never maps memory of another, nor another its memory; what is imported is fetched over the network, and
    /// bulk copies go there too, also where both are on one host. True lets them find out: they map what they prove to be on one host.
    pub same_host: bool,
}

impl Default for RemoteWorkerSpec {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            platform: "cpu".into(),
            transport: "sim".into(),
            runtime: "tensormap_and_ringbuffer".into(),
            device_ids: Vec::new(),
            num_sub_workers: 0,
            session_listen_host: None,
            allow_wildcard_session_bind: false,
            same_host: true,
        }
    }
}

/// A specification that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not `host:port`.
    #[error("endpoint {0:?} is not host:port with a numeric IPv4 address or localhost and a port of 1..=65535")]
    Endpoint(String),
    /// A name that must not be empty.
    #[error("{0} is empty; name one")]
    Empty(&'static str),
    /// A transport that is not known.
    #[error("transport {0:?} is not known; use \"sim\"")]
    Transport(String),
    /// Too many sub workers.
    #[error("num_sub_workers is {0}, limit {MAX_SUB_WORKERS}")]
    SubWorkers(u32),
    /// Devices that cannot be.
    #[error("{0}")]
    Devices(String),
    /// A session that every host could reach.
    #[error("session_listen_host {0} is open to every network; set allow_wildcard_session_bind if that is wanted")]
    Wildcard(String),
    /// A listen host that is no address.
    #[error("session_listen_host {0:?} is not a numeric IPv4 address or localhost")]
    ListenHost(String),
}

/// A numeric IPv4 address; `localhost` is 127.0.0.1. Nothing is looked up: a resolver has no deadline.
pub(crate) fn host_address(host: &str) -> Option<Ipv4Addr> {
    match host {
        "localhost" => Some(Ipv4Addr::LOCALHOST),
        _ => host.parse().ok(),
    }
}

impl RemoteWorkerSpec {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn validate(&self) -> Result<(), SpecError> {
        self.daemon_address()?;
        for (name, value) in [("platform", &self.platform), ("runtime", &self.runtime)] {
            if value.is_empty() {
                return Err(SpecError::Empty(name));
            }
        }
        if self.transport != "sim" {
            return Err(SpecError::Transport(self.transport.clone()));
        }
        if self.num_sub_workers > MAX_SUB_WORKERS {
            return Err(SpecError::SubWorkers(self.num_sub_workers));
        }
        let devices = ChipDevices {
            platform: self.platform.clone(),
            runtime: self.runtime.clone(),
            ids: self.device_ids.clone(),
        };
        devices
            .validate()
            .map_err(|error| SpecError::Devices(error.to_string()))?;
        let Some(host) = &self.session_listen_host else {
            return Ok(());
        };
        if matches!(host.as_str(), "0.0.0.0" | "::") && !self.allow_wildcard_session_bind {
            return Err(SpecError::Wildcard(host.clone()));
        }
        host_address(host)
            .map(drop)
            .ok_or_else(|| SpecError::ListenHost(host.clone()))
    }

    /// The daemon's address.
    ///
    /// # Errors
    /// [`SpecError::Endpoint`].
    pub fn daemon_address(&self) -> Result<SocketAddr, SpecError> {
        let bad = || SpecError::Endpoint(self.endpoint.clone());
        let (host, port) = self.endpoint.split_once(':').ok_or_else(bad)?;
        let address = host_address(host).ok_or_else(bad)?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port: u16 = port
            .parse()
            .ok()
            .filter(|port| *port != 0 && digits)
            .ok_or_else(bad)?;
        Ok(SocketAddr::new(IpAddr::V4(address), port))
    }

    /// The host part, as the contract's peers expect it in a manifest.
    fn host(&self) -> String {
        let host = self.endpoint.split(':').next().unwrap_or_default();
        host_address(host).map_or_else(|| host.to_owned(), |address| address.to_string())
    }

    /// What the daemon is sent (slr3-v1 §8).
    #[must_use]
    pub fn manifest(
        &self,
        session_id: u64,
        worker_id: i32,
        parent_level: u32,
        session_timeout: Duration,
        dispatcher: Vec<CallableEntry>,
        inner: Vec<CallableEntry>,
    ) -> Manifest {
        Manifest {
            session_id,
            worker_id,
            parent_worker_level: i64::from(parent_level),
            remote_worker_level: REMOTE_WORKER_LEVEL,
            platform: self.platform.clone(),
            transport: self.transport.clone(),
            runtime: self.runtime.clone(),
            device_ids: self.device_ids.clone(),
            num_sub_workers: self.num_sub_workers,
            heap_ring_size: None,
            session_timeout_s: session_timeout.as_secs_f64(),
            // Set when it is sent, to what is left then.
            startup_budget_s: None,
            listen_host: self
                .session_listen_host
                .clone()
                .unwrap_or_else(|| self.host()),
            connect_host: Some(self.host()),
            remote_task_dispatcher: dispatcher,
            inner_l3_worker: inner,
            feature_flags: OFFERED.iter().map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(endpoint: &str) -> RemoteWorkerSpec {
        RemoteWorkerSpec {
            endpoint: endpoint.into(),
            ..RemoteWorkerSpec::default()
        }
    }

    /// a specification is one address, so no list of addresses can spend a budget each.
    #[test]
    fn r_007_r_008_only_numeric_addresses_and_localhost() {
        assert!(spec("127.0.0.1:7070").validate().is_ok());
        assert_eq!(
            spec("localhost:1").daemon_address().unwrap().to_string(),
            "127.0.0.1:1"
        );
        for bad in [
            "",
            "host",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "::1:80",
            "example.org:80",
            "127.0.0.1:+7",
        ] {
            assert!(
                matches!(spec(bad).validate(), Err(SpecError::Endpoint(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_wildcard_must_be_asked_for() {
        let mut open = RemoteWorkerSpec {
            session_listen_host: Some("0.0.0.0".into()),
            ..spec("127.0.0.1:1")
        };
        assert!(matches!(open.validate(), Err(SpecError::Wildcard(_))));
        open.allow_wildcard_session_bind = true;
        assert!(open.validate().is_ok());
    }

    #[test]
    fn names_of_platforms_that_we_do_not_know_are_fine() {
        let spec = RemoteWorkerSpec {
            platform: "a2a3sim".into(),
            ..spec("127.0.0.1:1")
        };
        assert!(spec.validate().is_ok());
        let manifest = spec.manifest(7, 3, 4, Duration::from_secs(30), vec![], vec![]);
        assert!(manifest.validate().is_ok());
        assert_eq!(manifest.effective_connect_host(), "127.0.0.1");
    }
}
