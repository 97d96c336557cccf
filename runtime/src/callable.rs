//! Callables: what may be called, under which identity.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use echelon_wire::callable::{CallableKind, Digest, ImportTarget};

use crate::chip::ChipCode;
use crate::tensor::TaskView;
use crate::worker::Orchestrator;

/// A Rust closure that worker threads run: the leaf of a tree without Python.
pub type NativeFn = dyn Fn(TaskView) -> Result<(), String> + Send + Sync;

/// How a worker gets hold of the code.
#[derive(Clone)]
pub enum CallableSource {
    /// `module:qualname`, imported where it runs.
    Import(ImportTarget),
    /// cloudpickle bytes, for local callables that have no import path. Same host only.
    Serialized(Bytes),
    /// A closure of this process, for worker threads only.
    Native(Arc<NativeFn>),
    /// Machine code for a device.
    Chip(Arc<ChipCode>),
}

impl std::fmt::Debug for CallableSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Import(target) => write!(f, "Import({target})"),
            Self::Serialized(bytes) => write!(f, "Serialized({} bytes)", bytes.len()),
            Self::Native(_) => f.write_str("Native"),
            Self::Chip(code) => code.fmt(f),
        }
    }
}

/// A callable with its identity (slr3-v1 §7).
#[derive(Clone, Debug)]
pub struct Callable {
    /// SHA-256 of the canonical descriptor.
    pub digest: Digest,
    /// Which descriptor.
    pub kind: CallableKind,
    /// For messages and timelines: the import path, or the function's name.
    pub name: Arc<str>,
    /// The code.
    pub source: CallableSource,
}

impl Callable {
    /// The callable of an import path.
    #[must_use]
    pub fn import(target: ImportTarget) -> Self {
        let digest =
            echelon_wire::callable::digest_of(&echelon_wire::callable::import_descriptor(&target));
        let name = target.to_string().into();
        Self {
            digest,
            kind: CallableKind::PythonImport,
            name,
            source: CallableSource::Import(target),
        }
    }

    /// The callable of serialized bytes (cloudpickle), named `name` in messages.
    #[must_use]
    pub fn serialized(name: &str, payload: Bytes) -> Self {
        let digest = {
            let hash = echelon_wire::callable::sha256(&payload);
            echelon_wire::callable::digest_of(&echelon_wire::callable::serialized_descriptor(&hash))
        };
        Self {
            digest,
            kind: CallableKind::PythonSerialized,
            name: name.into(),
            source: CallableSource::Serialized(payload),
        }
    }

    /// A native closure named `name`; the name is its identity within one process.
    pub fn native<F>(name: &str, function: F) -> Self
    where
        F: Fn(TaskView) -> Result<(), String> + Send + Sync + 'static,
    {
        let digest = echelon_wire::callable::digest_of(format!("native:{name}").as_bytes());
        Self {
            digest,
            kind: CallableKind::PythonImport,
            name: name.into(),
            source: CallableSource::Native(Arc::new(function)),
        }
    }
}

/// Resolves callables in a process that hosts them: a child or a session runner. The Python crate implements it.
pub trait CallableHost: Send + Sync {
    /// Imports or unpickles the callable.
    ///
    /// # Errors
    /// The text of the failure with its traceback: no such module, no such attribute, not callable, refused by policy.
    fn resolve(
        &self,
        kind: CallableKind,
        payload: &[u8],
    ) -> Result<Arc<dyn HostedCallable>, String>;

    /// Runs `calls`, which calls several of its callables and waits for nothing itself. A host whose calls need something that
    /// is dear to take, such as an interpreter's lock, takes it once for all of them.
    fn in_a_row(&self, calls: &mut dyn FnMut()) {
        calls();
    }
}

/// Resolved callables by digest.
pub(crate) type CallableTable =
    HashMap<Digest, Arc<dyn HostedCallable>, BuildHasherDefault<DigestHasher>>;

/// The first bytes of a digest: it is a hash already, and nobody gains by digests that collide in his own table.
#[derive(Default)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A resolved callable.
pub trait HostedCallable: Send + Sync {
    /// Calls it as a leaf: `fn(args)`.
    ///
    /// # Errors
    /// The traceback of what it raised.
    fn call_leaf(&self, view: TaskView) -> Result<(), String>;

    /// Calls it as an orchestration function: `fn(orch, args, cfg)`.
    ///
    /// # Errors
    /// The traceback of what it raised.
    fn call_orchestration(&self, orchestrator: &Orchestrator, view: TaskView)
        -> Result<(), String>;
}
