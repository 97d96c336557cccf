//! What happens before there is any socket: callables of the manifest resolved, the inner worker started (contract §8).

use std::collections::HashSet;
use std::sync::Arc;

use echelon_runtime::error::Interrupt;
use echelon_runtime::failpoint::hit;
use echelon_runtime::{
    Callable, CallableHandle, CallableHost, ChipDevices, RegisterOptions, Worker, WorkerBuilder,
};
use echelon_wire::bootstrap::{CallableEntry, Manifest};
use echelon_wire::callable::{CallableKind, Digest, RegistryTarget};

use super::callables::{identify, resolve, Hosted, Rules};
use super::chip;
use super::lifeline::Lifeline;

/// What the manifest asked for, in place.
pub(crate) struct Prepared {
    pub(crate) worker: Worker,
    pub(crate) dispatcher: Vec<(Digest, Hosted)>,
    pub(crate) inner: Vec<(Digest, CallableHandle)>,
    pub(crate) chips: Option<ChipDevices>,
}

impl Prepared {
    /// Checks every entry, resolves the dispatcher's, starts the inner worker with its own.
    ///
    /// # Errors
    /// The first cause in words; everything that was started has ended again.
    pub(crate) fn new(
        manifest: &Manifest,
        rules: Rules<'_>,
        host: &Arc<dyn CallableHost>,
        mut builder: WorkerBuilder,
        lifeline: Arc<Lifeline>,
    ) -> Result<Self, String> {
        let tasks = entries(
            &manifest.remote_task_dispatcher,
            RegistryTarget::RemoteTaskDispatcher,
            rules,
        )?;
        let leaves = entries(
            &manifest.inner_l3_worker,
            RegistryTarget::InnerL3Worker,
            rules,
        )?;
        let text = |error: echelon_runtime::Error| error.to_string();
        if manifest.num_sub_workers > 0 && !builder.has_child_program() {
            return Err(format!(
                "num_sub_workers is {}, and this session runner has no Python and starts no sub workers; ask for 0, or start the \
                 daemon with --python PATH",
                manifest.num_sub_workers
            ));
        }
        let chips = chip::devices(manifest)?;
        let chip_callables = chip::entries(manifest, chips.as_ref())?;
        if let Some(devices) = &chips {
            builder = builder.chips(devices.clone());
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
        for callable in &tasks {
            dispatcher.push((callable.digest, resolve(host, callable)?));
        }
        let mut inner = Vec::with_capacity(leaves.len());
        for callable in leaves {
            // Resolved here too: a session without sub workers reports a callable that cannot be imported all the same.
            resolve(host, &callable)?;
            let digest = callable.digest;
            let handle = worker
                .register(callable, RegisterOptions::default())
                .map_err(text)?;
            inner.push((digest, handle));
        }
        for callable in chip_callables {
            let digest = callable.digest;
            let handle = worker.register(callable, RegisterOptions::default());
            inner.push((digest, handle.map_err(text)?));
        }
        at("session.inner")?;
        worker.init().map_err(text)?;
        Ok(Self {
            worker,
            dispatcher,
            inner,
            chips,
        })
    }
}

/// Recomputes every hashid from what is delivered; wrong registries, kinds, digests and duplicates are refused.
fn entries(
    list: &[CallableEntry],
    registry: RegistryTarget,
    rules: Rules<'_>,
) -> Result<Vec<Callable>, String> {
    let mut seen = HashSet::new();
    list.iter()
        .enumerate()
        .filter(|(_, entry)| !chip::is_entry(entry, registry))
        .map(|(index, entry)| {
            let at =
                |reason: String| format!("manifest entry {index} of {}: {reason}", registry.name());
            let callable = check(entry, registry, rules).map_err(at)?;
            if !seen.insert(callable.digest) {
                return Err(at(format!("{} is listed twice", callable.name)));
            }
            Ok(callable)
        })
        .collect()
}

fn check(
    entry: &CallableEntry,
    registry: RegistryTarget,
    rules: Rules<'_>,
) -> Result<Callable, String> {
    let got = entry.registry().map_err(|error| error.to_string())?;
    if got != registry {
        return Err(format!(
            "target_registry is {}, expected {}",
            got.name(),
            registry.name()
        ));
    }
    let kind = entry.callable_kind().map_err(|error| error.to_string())?;
    if let Some(version) = entry.payload_version.filter(|version| *version != 1) {
        return Err(format!("payload_version is {version}, expected 1"));
    }
    let digest = entry.digest().map_err(|error| error.to_string())?;
    let payload = match kind {
        CallableKind::PythonImport => {
            let target = entry.target.as_deref().ok_or("target is missing")?;
            target.as_bytes().to_vec()
        }
        _ => bytes_of_hex(
            entry
                .payload_hex
                .as_deref()
                .ok_or("payload_hex is missing")?,
        )?,
    };
    identify(kind, &digest, &payload, rules)
}

/// Hexadecimal digits of either case, two a byte.
fn bytes_of_hex(text: &str) -> Result<Vec<u8>, String> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some((digit(high)? << 4 | digit(low)?) as u8),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
    bytes.ok_or_else(|| "payload_hex is not pairs of hexadecimal digits".to_owned())
}
