//! Callables on their way in: by manifest or by control, checked before anything of them runs; and the tables they end in
//! (contract §5, §7, R-097, R-104, R-105).

use std::sync::Arc;

use echelon_runtime::{Callable, CallableHost, HostedCallable, RegisterOptions};
use echelon_wire::callable::{
    decode_serialized, CallableKind, Digest, Hashid, ImportTarget, RegistryTarget,
};
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand, PAYLOAD_VERSION};
use echelon_wire::frame::Features;

use super::command::Session;
use super::control::{text, Outcome};
use crate::policy::ImportPolicy;
use crate::registry::{RegistryError, CALLABLES_MAX};

/// A callable of the dispatcher, and how it was delivered.
pub(crate) struct Hosted {
    pub(crate) kind: CallableKind,
    pub(crate) callable: Arc<dyn HostedCallable>,
}

/// What this session takes.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    policy: &'a ImportPolicy,
    features: Features,
}

impl<'a> Rules<'a> {
    pub(super) fn new(policy: &'a ImportPolicy, features: Features) -> Self {
        Self { policy, features }
    }
}

/// The callable that a payload delivers. Nothing of it has run yet; its digest is the one that was announced.
///
/// # Errors
/// In words: a kind that was not negotiated, a payload that is none, another digest, a module that may not be imported.
pub(super) fn identify(
    kind: CallableKind,
    announced: &Digest,
    payload: &[u8],
    rules: Rules<'_>,
) -> Result<Callable, String> {
    let callable = match kind {
        CallableKind::PythonImport => {
            let target = std::str::from_utf8(payload).map_err(text)?;
            let target = ImportTarget::parse(target).map_err(text)?;
            let module = target.module().to_owned();
            let callable = Callable::import(target);
            check_digest(announced, &callable)?;
            rules.policy.check(&module)?;
            callable
        }
        CallableKind::PythonSerialized
            if rules.features.contains(Features::SERIALIZED_CALLABLES) =>
        {
            let bytes = decode_serialized(payload).map_err(text)?;
            // The envelope has no name.
            let name = Hashid(*announced).to_string();
            let callable = Callable::serialized(&name, bytes.to_vec().into());
            check_digest(announced, &callable)?;
            callable
        }
        CallableKind::PythonSerialized => {
            return Err("PYTHON_SERIALIZED is not negotiated for remote protocol v1".to_owned())
        }
        CallableKind::ChipCallable => {
            return Err("CHIP_CALLABLE: this session has no chip workers".to_owned())
        }
    };
    Ok(callable)
}

fn check_digest(announced: &Digest, callable: &Callable) -> Result<(), String> {
    if callable.digest == *announced {
        return Ok(());
    }
    let what = match callable.kind {
        CallableKind::PythonImport => format!("target {}", callable.name),
        _ => "the payload".to_owned(),
    };
    Err(format!(
        "digest {announced} does not match {what}: it is {}",
        callable.digest
    ))
}

/// Imports or unpickles it. This runs the user's code.
pub(super) fn resolve(host: &Arc<dyn CallableHost>, callable: &Callable) -> Result<Hosted, String> {
    let (kind, payload) = callable.payload().map_err(text)?;
    let callable = host.resolve(kind, &payload)?;
    Ok(Hosted { kind, callable })
}

impl Session {
    pub(super) fn prepare(&mut self, command: &RegisterCommand<'_>) -> Outcome {
        let kind = command.callable_kind;
        let dispatcher = command.target_registry == RegistryTarget::RemoteTaskDispatcher;
        if dispatcher && kind == CallableKind::ChipCallable {
            return Err(
                "REMOTE_TASK_DISPATCHER only accepts PYTHON_IMPORT in protocol v1".to_owned(),
            );
        }
        if kind == CallableKind::ChipCallable {
            return self.prepare_chip(command);
        }
        if command.payload_version != PAYLOAD_VERSION {
            return Err(format!(
                "payload_version is {}, expected {PAYLOAD_VERSION}",
                command.payload_version
            ));
        }
        let (digest, payload) = (command.digest, &command.payload);
        let rules = Rules::new(&self.policy, self.features);
        let callable = identify(kind, &digest, payload, rules)?;
        if !dispatcher {
            self.check_room(&digest)?;
        }
        let hosted = resolve(&self.host, &callable)?;
        let kept = if dispatcher {
            self.dispatcher.prepare(digest, hosted)
        } else {
            self.prepared_inner.prepare(digest, callable)
        };
        kept.map_err(text)?;
        Ok(Vec::new())
    }

    /// What the inner worker has registered is bounded like any other table of callables.
    pub(super) fn check_room(&self, digest: &Digest) -> Result<(), String> {
        let limit = CALLABLES_MAX;
        if self.inner.len() >= limit && !self.inner.contains_key(digest) {
            return Err(RegistryError::Full { limit }.to_string());
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, command: &DigestCommand) -> Outcome {
        let (digest, kind) = (command.digest, command.callable_kind);
        let mismatch = || Err("COMMIT_REGISTER_CALLABLE target/kind mismatch".to_owned());
        let chip = kind == CallableKind::ChipCallable
            && command.target_registry == RegistryTarget::InnerL3Worker;
        if !chip && !self.takes(kind) {
            return mismatch();
        }
        if command.target_registry == RegistryTarget::RemoteTaskDispatcher {
            if self.dispatcher.prepared(&digest).map_err(text)?.kind != kind {
                return mismatch();
            }
            self.dispatcher.commit(digest).map_err(text)?;
            return Ok(Vec::new());
        }
        let callable = self.prepared_inner.prepared(&digest).map_err(text)?.clone();
        if callable.kind != kind {
            return mismatch();
        }
        let options = RegisterOptions::default();
        let handle = self.worker.register(callable, options).map_err(text)?;
        self.prepared_inner.abort(&digest);
        if let Some(replaced) = self.inner.insert(digest, handle) {
            // The same callable under a second handle: the first one is let go, the callable stays.
            self.worker.unregister(&replaced).map_err(text)?;
        }
        Ok(Vec::new())
    }

    /// The kinds that this parent may register.
    fn takes(&self, kind: CallableKind) -> bool {
        let serialized = self.features.contains(Features::SERIALIZED_CALLABLES);
        kind == CallableKind::PythonImport || (kind == CallableKind::PythonSerialized && serialized)
    }

    pub(super) fn abort(&mut self, command: &DigestCommand) -> Outcome {
        match command.target_registry {
            RegistryTarget::RemoteTaskDispatcher => self.dispatcher.abort(&command.digest),
            RegistryTarget::InnerL3Worker => self.prepared_inner.abort(&command.digest),
        }
        Ok(Vec::new())
    }

    pub(super) fn unregister(&mut self, command: &DigestCommand) -> Outcome {
        let digest = &command.digest;
        if command.target_registry == RegistryTarget::RemoteTaskDispatcher {
            self.dispatcher.unregister(digest);
            return Ok(Vec::new());
        }
        self.prepared_inner.abort(digest);
        if let Some(handle) = self.inner.get(digest) {
            // Kept until it is gone everywhere below: the parent asks again, and must not be told that it is.
            self.worker.unregister(handle).map_err(text)?;
            self.inner.remove(digest);
        }
        Ok(Vec::new())
    }

    pub(super) fn prepare_callable(&self, command: &DigestCommand) -> Outcome {
        let dispatcher = command.target_registry == RegistryTarget::RemoteTaskDispatcher;
        if !dispatcher || !self.takes(command.callable_kind) {
            return Err("PREPARE_CALLABLE target/kind mismatch".to_owned());
        }
        match self.dispatcher.live(&command.digest) {
            Some(_) => Ok(Vec::new()),
            None => Err(format!(
                "PREPARE_CALLABLE digest {} is not registered",
                command.digest
            )),
        }
    }
}
