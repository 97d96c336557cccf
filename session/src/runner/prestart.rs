//! What happens before there is any socket: callables of the manifest resolved, the inner worker started (contract §8).

use std::collections::HashSet;
use std::sync::Arc;

use echelon_runtime::error::Interrupt;
use echelon_runtime::failpoint::hit;
use echelon_runtime::{
    Callable, CallableHandle, CallableHost, HostedCallable, RegisterOptions, Worker, WorkerBuilder,
};
use echelon_wire::bootstrap::{CallableEntry, Manifest};
use echelon_wire::callable::{CallableKind, Digest, ImportTarget, RegistryTarget};

use super::lifeline::Lifeline;
use crate::policy::ImportPolicy;

/// A callable of the manifest, checked.
struct Entry {
    digest: Digest,
    target: ImportTarget,
}

/// What the manifest asked for, in place.
pub(crate) struct Prepared {
    pub(crate) worker: Worker,
    pub(crate) dispatcher: Vec<(Digest, Arc<dyn HostedCallable>)>,
    pub(crate) inner: Vec<(Digest, CallableHandle)>,
}

impl Prepared {
    /// Checks every entry, resolves the dispatcher's, starts the inner worker with its own.
    ///
    /// # Errors
    /// The first cause in words; everything that was started has ended again.
    pub(crate) fn new(
        manifest: &Manifest,
        policy: &ImportPolicy,
        host: &Arc<dyn CallableHost>,
        builder: WorkerBuilder,
        lifeline: Arc<Lifeline>,
    ) -> Result<Self, String> {
        let tasks = entries(
            &manifest.remote_task_dispatcher,
            RegistryTarget::RemoteTaskDispatcher,
            policy,
        )?;
        let leaves = entries(
            &manifest.inner_l3_worker,
            RegistryTarget::InnerL3Worker,
            policy,
        )?;
        let text = |error: echelon_runtime::Error| error.to_string();
        if manifest.num_sub_workers > 0 && !builder.has_child_program() {
            return Err(format!(
                "num_sub_workers is {}, and this session runner has no Python and starts no sub workers; ask for 0, or start the \
                 daemon with --python PATH",
                manifest.num_sub_workers
            ));
        }
        let worker = builder
            .level(3)
            .inner()
            .sub_workers(manifest.num_sub_workers)
            .build()
            .map_err(text)?;
        worker.set_interrupt(lifeline as Arc<dyn Interrupt>);
        let mut dispatcher = Vec::with_capacity(tasks.len());
        let at = |point: &str| hit(point).map_err(|injected| injected.to_string());
        at("session.resolve")?;
        for entry in &tasks {
            dispatcher.push((entry.digest, resolve(host, &entry.target)?));
        }
        let mut inner = Vec::with_capacity(leaves.len());
        for entry in leaves {
            // Resolved here too: a session without sub workers reports a callable that cannot be imported all the same.
            resolve(host, &entry.target)?;
            let handle = worker
                .register(Callable::import(entry.target), RegisterOptions::default())
                .map_err(text)?;
            inner.push((entry.digest, handle));
        }
        at("session.inner")?;
        worker.init().map_err(text)?;
        Ok(Self {
            worker,
            dispatcher,
            inner,
        })
    }
}

fn resolve(
    host: &Arc<dyn CallableHost>,
    target: &ImportTarget,
) -> Result<Arc<dyn HostedCallable>, String> {
    host.resolve(CallableKind::PythonImport, target.to_string().as_bytes())
}

/// Recomputes every hashid from its target; wrong registries, kinds, digests and duplicates are refused.
fn entries(
    list: &[CallableEntry],
    registry: RegistryTarget,
    policy: &ImportPolicy,
) -> Result<Vec<Entry>, String> {
    let mut seen = HashSet::new();
    list.iter()
        .enumerate()
        .map(|(index, entry)| {
            let at =
                |reason: String| format!("manifest entry {index} of {}: {reason}", registry.name());
            let entry = check(entry, registry, policy).map_err(at)?;
            if !seen.insert(entry.digest) {
                return Err(at(format!("{} is listed twice", entry.target)));
            }
            Ok(entry)
        })
        .collect()
}

fn check(
    entry: &CallableEntry,
    registry: RegistryTarget,
    policy: &ImportPolicy,
) -> Result<Entry, String> {
    let got = entry.registry().map_err(|error| error.to_string())?;
    if got != registry {
        return Err(format!(
            "target_registry is {}, expected {}",
            got.name(),
            registry.name()
        ));
    }
    let kind = entry.callable_kind().map_err(|error| error.to_string())?;
    if kind != CallableKind::PythonImport {
        return Err(format!(
            "kind {} is not served here, only PYTHON_IMPORT",
            kind.name()
        ));
    }
    if let Some(version) = entry.payload_version.filter(|version| *version != 1) {
        return Err(format!("payload_version is {version}, expected 1"));
    }
    let target = entry.target.as_deref().ok_or("target is missing")?;
    let target = ImportTarget::parse(target).map_err(|error| error.to_string())?;
    let digest = entry.digest().map_err(|error| error.to_string())?;
    let callable = Callable::import(target.clone());
    if callable.digest != digest {
        return Err(format!(
            "hashid does not match target {target}: it is {}",
            callable.digest
        ));
    }
    policy.check(target.module())?;
    Ok(Entry { digest, target })
}
