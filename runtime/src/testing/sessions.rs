//! Remote endpoints for the conformance suite: the test gives what a daemon and its session do.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_wire::frame::Features;
use parking_lot::Mutex;

use super::conformance::Fixture;
use crate::channel::Until;
use crate::endpoint::{ControlRequest, Endpoint};
use crate::mailbox::Bell;
use crate::remote::{RemoteEndpoint, RemoteWorkerSpec};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Sessions end by themselves when their endpoint has: joining them, on drop, proves it.
pub struct Sessions {
    serve: fn(&TcpListener),
    unsupported: ControlRequest,
    offered: Features,
    started: Mutex<Vec<JoinHandle<()>>>,
}

impl Sessions {
    /// `serve` is the part of the daemon for one bootstrap, and of its session; it returns when that has ended. The parent offers
    /// `offered`, and cannot ask for `unsupported`.
    pub fn new(serve: fn(&TcpListener), unsupported: ControlRequest, offered: Features) -> Self {
        Self {
            serve,
            unsupported,
            offered,
            started: Mutex::default(),
        }
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for session in self.started.get_mut().drain(..) {
            let ended = session.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a session failed"
            );
        }
    }
}

impl Fixture for Sessions {
    fn start(&self) -> (Box<dyn Endpoint>, Arc<Bell>) {
        let started = || -> Result<_, Box<dyn std::error::Error>> {
            let daemon = TcpListener::bind("127.0.0.1:0")?;
            let spec = RemoteWorkerSpec {
                endpoint: daemon.local_addr()?.to_string(),
                ..RemoteWorkerSpec::default()
            };
            let serve = self.serve;
            let session = std::thread::spawn(move || serve(&daemon));
            self.started.lock().push(session);
            let bell = Bell::create()?;
            let mut manifest = spec.manifest(7, 3, 4, TIMEOUT, Vec::new(), Vec::new());
            manifest.feature_flags = self
                .offered
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect();
            let ringing = Arc::clone(&bell);
            let ring = Arc::new(move || ringing.ring());
            let until = Until::new(Instant::now() + TIMEOUT);
            let endpoint = RemoteEndpoint::start(&spec, manifest, TIMEOUT, ring, &until)?;
            Ok((Box::new(endpoint) as Box<dyn Endpoint>, bell))
        };
        started().unwrap_or_else(|error| panic!("the session did not start: {error}"))
    }

    fn unsupported(&self) -> ControlRequest {
        self.unsupported.clone()
    }
}
