//! What a parent asks of a child besides tasks.

use echelon_wire::codec::Reader;

use super::records::{self, Answer, Install, Remove};
use super::{Child, ChildError};
use crate::callable::Callable;
use crate::mailbox::RecordHead;
use crate::worker::{RegisterOptions, Worker};

impl Child {
    /// Carries out what is not a task, and answers.
    pub(super) fn control(&mut self, head: RecordHead, payload: &[u8]) -> Result<(), ChildError> {
        let bad = |error: &dyn std::fmt::Display| ChildError::Record {
            kind: head.kind,
            message: error.to_string(),
        };
        let mut result = Vec::new();
        let answer: Result<(), String> = match head.kind {
            records::INSTALL => {
                let install = Install::decode(payload).map_err(|error| bad(&error))?;
                self.install(&install)
            }
            records::REMOVE => {
                let remove = Remove::decode(payload).map_err(|error| bad(&error))?;
                self.remove(&remove)
            }
            records::DROP_REGION => {
                let id = Reader::new(payload)
                    .u64("DROP_REGION.id")
                    .map_err(|error| bad(&error))?;
                self.regions
                    .drop_region(id)
                    .map_err(|error| error.to_string())
            }
            records::COLLECT_TRACE => match self.inner().map(Worker::trace_json) {
                Some(Ok(json)) => {
                    result = json;
                    Ok(())
                }
                Some(Err(error)) => Err(error.to_string()),
                None => Err("a leaf has no inner workers".into()),
            },
            kind => {
                return Err(ChildError::Record {
                    kind,
                    message: "unknown kind".into(),
                })
            }
        };
        let answer = match &answer {
            Ok(()) => Answer(Ok(&result)),
            Err(text) => Answer(Err(text)),
        };
        // A trace beyond every limit is an answer that says so, not the end of the child.
        let bytes = answer
            .encode()
            .or_else(|error| Answer(Err(&error.to_string())).encode());
        let bytes = bytes.map_err(|error| bad(&error))?;
        self.send(records::ANSWER, head.ticket, &bytes)
    }

    fn install(&mut self, install: &Install<'_>) -> Result<(), String> {
        if !install.inner {
            let callable = self.host.resolve(install.kind, install.payload)?;
            self.callables.insert(install.digest, callable);
            return Ok(());
        }
        let worker = self.inner().ok_or("a leaf has no inner workers")?;
        if self.of_parent.contains_key(&install.digest) {
            return Ok(());
        }
        let callable = Callable::from_payload(install.kind, install.name, install.payload)?;
        let handle = worker
            .register(callable, RegisterOptions::default())
            .map_err(|error| error.to_string())?;
        self.of_parent.insert(install.digest, handle);
        Ok(())
    }

    fn remove(&mut self, remove: &Remove) -> Result<(), String> {
        if !remove.inner {
            self.callables.remove(&remove.digest);
            return Ok(());
        }
        let worker = self.inner().ok_or("a leaf has no inner workers")?;
        // Not there is what was asked for. Kept until it is gone everywhere below.
        if let Some(handle) = self.of_parent.get(&remove.digest) {
            worker
                .unregister(handle)
                .map_err(|error| error.to_string())?;
            self.of_parent.remove(&remove.digest);
        }
        Ok(())
    }
}
