//! Starting remote sessions: side by side, under one deadline, and called off together by the first failure or an interrupt.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{unbounded, Receiver, RecvTimeoutError};
use echelon_wire::bootstrap::{CallableEntry, Manifest};
use echelon_wire::callable::{CallableKind, Digest, Hashid, ImportTarget, RegistryTarget};

use super::builder::random_u64;
use super::chips::{chip_entry, chips_of_manifest};
use super::init::startup;
use super::reach::Registration;
use super::{Child, Worker};
use crate::callable::CallableSource;
use crate::channel::Until;
use crate::endpoint::Endpoint;
use crate::engine::Engine;
use crate::error::Error;
use crate::remote::{RemoteEndpoint, RemoteWorkerSpec, StartError};

/// How often the interrupt check is asked meanwhile.
const INTERRUPT_PERIOD: Duration = Duration::from_millis(50);

/// A session to start: its NEXT_LEVEL id, where, and with what.
pub(super) type Wanted<'a> = (i32, &'a RemoteWorkerSpec, Manifest);

/// A session that is up, with its NEXT_LEVEL id and its daemon's address.
pub(super) type Started = (i32, RemoteEndpoint, String);

/// How one start ended.
type Outcome<'a> = (
    i32,
    &'a RemoteWorkerSpec,
    Result<RemoteEndpoint, StartError>,
);

impl Worker {
    /// Starts all remote sessions, and does `meanwhile` in this thread. Whatever fails first is the error, and the others are
    /// called off.
    pub(super) fn start_remotes(
        &self,
        engine: &Engine,
        children: &[Child],
        registrations: &[Registration],
        deadline: Instant,
        meanwhile: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Vec<Started>, Error> {
        let wanted = self.wanted(children, registrations, |_| true)?;
        let cancel = Arc::new(AtomicBool::new(false));
        self.start_sessions(engine, wanted, deadline, cancel, meanwhile)
    }

    /// What is to be started: the remote workers among `children` with an id that is `asked` for.
    pub(super) fn wanted<'a>(
        &self,
        children: &'a [Child],
        registrations: &[Registration],
        asked: impl Fn(i32) -> bool,
    ) -> Result<Vec<Wanted<'a>>, Error> {
        let mut wanted = Vec::new();
        for (child, id) in children.iter().zip(0..) {
            if let Child::Remote(spec) = child {
                if asked(id) {
                    wanted.push((id, spec, self.manifest(id, spec, child, registrations)?));
                }
            }
        }
        Ok(wanted)
    }

    /// Starts these sessions. All are called off by the first that fails, by an interrupt, by `cancel`, and by `meanwhile`.
    pub(super) fn start_sessions(
        &self,
        engine: &Engine,
        wanted: Vec<Wanted<'_>>,
        deadline: Instant,
        cancel: Arc<AtomicBool>,
        meanwhile: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Vec<Started>, Error> {
        let timeout = self.0.settings.remote_session_timeout;
        let (tell, told) = unbounded();
        let (mut started, error) = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (id, spec, manifest) in wanted {
                let (tell, bell) = (tell.clone(), Arc::clone(&engine.bell));
                let until = Until::new(deadline).or_cancelled(Arc::clone(&cancel));
                threads.push(scope.spawn(move || {
                    let of_lane = Arc::clone(&bell);
                    let ring = Arc::new(move || of_lane.ring());
                    let started = RemoteEndpoint::start(spec, manifest, timeout, ring, &until);
                    let started = started.and_then(|endpoint| {
                        let added = bell.add_source(endpoint.source());
                        added.map(|()| endpoint).map_err(StartError::Thread)
                    });
                    // The receiver waits for every sender.
                    let _ = tell.send((id, spec, started));
                }));
            }
            drop(tell);
            let failed = meanwhile().err();
            let (started, mut error) = gather(engine, &told, &cancel, failed);
            if threads.into_iter().any(|thread| thread.join().is_err()) {
                error.get_or_insert_with(|| {
                    startup("a remote session", "its starting thread panicked")
                });
            }
            (started, error)
        });
        let Some(error) = error else {
            return Ok(started);
        };
        let bound = Instant::now() + self.0.settings.close_timeout;
        for (_, endpoint, _) in &mut started {
            endpoint.begin_close();
        }
        for (_, endpoint, _) in &mut started {
            if let Err(survivor) = endpoint.finish_close(bound) {
                tracing::error!(survivor, "could not be ended after a failed start");
            }
        }
        Err(error)
    }

    fn manifest(
        &self,
        id: i32,
        spec: &RemoteWorkerSpec,
        child: &Child,
        registrations: &[Registration],
    ) -> Result<Manifest, Error> {
        let in_manifest = chips_of_manifest(id, child, registrations);
        let entries = |inner: bool| -> Vec<CallableEntry> {
            let mut seen = std::collections::HashSet::new();
            registrations
                .iter()
                .filter(|r| r.options.inner == inner && r.includes(id, child))
                .filter(|r| seen.insert(r.handle.callable.digest))
                .filter_map(|r| match &r.handle.callable.source {
                    CallableSource::Import(target) => {
                        Some(entry(&r.handle.callable.digest, target, inner))
                    }
                    CallableSource::Chip(code) if in_manifest.contains(&code.digest()) => {
                        chip_entry(code)
                    }
                    _ => None,
                })
                .collect()
        };
        // 63 bits: the contract's peers read it as a signed integer (slr3-v1 §8).
        let session_id = (random_u64()? >> 1).max(1);
        let settings = &self.0.settings;
        Ok(spec.manifest(
            session_id,
            id,
            settings.level,
            settings.remote_session_timeout,
            entries(false),
            entries(true),
        ))
    }
}

/// Takes every outcome; the first failure, or an interrupt, calls the rest off. All threads end within their deadline.
fn gather(
    engine: &Engine,
    told: &Receiver<Outcome<'_>>,
    cancel: &AtomicBool,
    mut first: Option<Error>,
) -> (Vec<Started>, Option<Error>) {
    let mut started = Vec::new();
    loop {
        if first.is_some() {
            cancel.store(true, Ordering::Relaxed);
        }
        match told.recv_timeout(INTERRUPT_PERIOD) {
            Ok((id, spec, Ok(endpoint))) => started.push((id, endpoint, spec.endpoint.clone())),
            Ok((id, spec, Err(error))) => {
                first.get_or_insert_with(|| startup(&format!("{id} ({})", spec.endpoint), error));
            }
            Err(RecvTimeoutError::Timeout) if first.is_none() => {
                first = engine.interrupt.check().err().map(|_| Error::Interrupted);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return (started, first),
        }
    }
}

/// The manifest's entry of an import path (slr3-v1 §8).
fn entry(digest: &Digest, target: &ImportTarget, inner: bool) -> CallableEntry {
    let registry = if inner {
        RegistryTarget::InnerL3Worker
    } else {
        RegistryTarget::RemoteTaskDispatcher
    };
    CallableEntry {
        hashid: Hashid(*digest).to_string(),
        kind: CallableKind::PythonImport.name().to_owned(),
        target_registry: registry.name().to_owned(),
        target: Some(target.to_string()),
        payload_version: Some(1),
        payload_hex: None,
    }
}
