//! The runtime below a child that has a plan.

use std::collections::HashMap;

use echelon_wire::callable::{CallableKind, Digest};

use super::{injected, ChildError};
use crate::callable::Callable;
use crate::chip::ChipCode;
use crate::error::Error;
use crate::worker::{CallableHandle, LevelPlan, Worker, WorkerBuilder};

/// The runtime below, with the handles of what the parent registered for it.
pub(super) fn start_inner(
    json: &[u8],
    builder: WorkerBuilder,
) -> Result<(Worker, HashMap<Digest, CallableHandle>), ChildError> {
    let inner = |error: Error| ChildError::Inner(error.to_string());
    let mut plan: LevelPlan =
        serde_json::from_slice(json).map_err(|error| ChildError::Inner(error.to_string()))?;
    let entries = std::mem::take(&mut plan.inner);
    let worker = plan.into_worker(builder.inner()).map_err(inner)?;
    let mut of_parent = HashMap::new();
    for entry in entries {
        let callable = entry.callable().map_err(inner)?;
        let digest = callable.digest;
        if of_parent.contains_key(&digest) {
            continue;
        }
        let handle = worker.register(callable, entry.options).map_err(inner)?;
        of_parent.insert(digest, handle);
    }
    injected("child.inner")?;
    worker.init().map_err(inner)?;
    Ok((worker, of_parent))
}

impl Callable {
    /// The callable of a kind and payload that came from a parent, for registering it further down.
    ///
    /// # Errors
    /// The text of what is wrong with it.
    pub fn from_payload(kind: CallableKind, name: &str, payload: &[u8]) -> Result<Self, String> {
        match kind {
            CallableKind::PythonImport => {
                let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
                let target = echelon_wire::callable::ImportTarget::parse(text)
                    .map_err(|error| error.to_string())?;
                Ok(Self::import(target))
            }
            CallableKind::PythonSerialized => Ok(Self::serialized(name, payload.to_vec().into())),
            CallableKind::ChipCallable => {
                Ok(Self::chip(name, ChipCode::from_local_payload(payload)?))
            }
        }
    }
}
