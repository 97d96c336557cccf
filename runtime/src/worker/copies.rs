//! Copies that go on while their caller does something else.

use std::time::{Duration, Instant};

use std::sync::Arc;

use parking_lot::Mutex;

use super::Worker;
use crate::buffer::RemoteBuffer;
use crate::endpoint::ControlRequest;
use crate::engine::{ControlCell, Engine, WaitEnd};
use crate::error::Error;
use crate::graph::EndpointId;
use crate::memory::HostMemory;

/// A copy that was begun. Host memory and buffer are held until it has ended, whether or not anybody waits. One that fails and that
/// nobody waited for is told by `close()`.
pub struct PendingCopy {
    engine: Arc<Engine>,
    what: &'static str,
    endpoint: EndpointId,
    cell: ControlCell,
    /// How it ended, once somebody asked.
    ended: Mutex<Option<Result<(), Error>>>,
}

impl PendingCopy {
    /// Waits until the bytes are there; again after a timeout or an interrupt, as often as wanted.
    ///
    /// # Errors
    /// What became of the copy, as [`Worker::remote_copy_to`], each time; [`Error::Timeout`] and [`Error::Interrupted`] while it goes on.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let started = Instant::now();
        let deadline = timeout.and_then(|timeout| started.checked_add(timeout));
        let waited = self
            .engine
            .wait_until(deadline, |_| self.is_done().then_some(()));
        match waited {
            Ok(()) => self.outcome(),
            Err(WaitEnd::Deadline) => Err(Error::Timeout {
                what: self.what.to_owned(),
                limit: started.elapsed(),
                hint: "the copy goes on; wait again",
            }),
            Err(end) => Err(end.into_error()),
        }
    }

    /// True when it has ended, however it did.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ended.lock().is_some() || self.cell.lock().is_some()
    }

    fn outcome(&self) -> Result<(), Error> {
        // The engine's lock first, as where it is asked whether the copy is done.
        let core = self.engine.core.lock();
        let mut ended = self.ended.lock();
        let answer = self.cell.lock().take();
        if let Some(answer) = answer {
            let result = answer.map(drop);
            let result = result.map_err(|why| core.control_error(self.endpoint, self.what, why));
            *ended = Some(result);
        }
        ended.clone().unwrap_or(Ok(()))
    }
}

impl Drop for PendingCopy {
    fn drop(&mut self) {
        if self.ended.get_mut().is_none() {
            let mut core = self.engine.core.lock();
            core.unwatch_copy(self.what, self.endpoint, ControlCell::clone(&self.cell));
        }
    }
}

impl Worker {
    /// Begins a copy of host bytes into a buffer. It takes its place in the order of everything that uses the buffer.
    ///
    /// # Errors
    /// As [`Self::remote_copy_to`], of what can be seen at once.
    pub fn remote_copy_to_async(
        &self,
        buffer: &RemoteBuffer,
        source: &HostMemory,
        offset: u64,
    ) -> Result<PendingCopy, Error> {
        let source = source.clone();
        let request = ControlRequest::CopyTo {
            buffer: buffer.facts().key,
            offset,
            source: source.clone(),
        };
        self.begin_copy("remote_copy_to_async", buffer, &source, offset, request)
    }

    /// Begins a copy from a buffer into host memory, likewise.
    ///
    /// # Errors
    /// As [`Self::remote_copy_from`], of what can be seen at once.
    pub fn remote_copy_from_async(
        &self,
        buffer: &RemoteBuffer,
        destination: &HostMemory,
        offset: u64,
    ) -> Result<PendingCopy, Error> {
        if !destination.is_writable() {
            return Err(Error::argument(
                "host",
                "the destination is read-only; give a writable buffer",
            ));
        }
        let destination = destination.clone();
        let request = ControlRequest::CopyFrom {
            buffer: buffer.facts().key,
            offset,
            destination: destination.clone(),
        };
        self.begin_copy(
            "remote_copy_from_async",
            buffer,
            &destination,
            offset,
            request,
        )
    }

    fn begin_copy(
        &self,
        what: &'static str,
        buffer: &RemoteBuffer,
        host: &HostMemory,
        offset: u64,
        request: ControlRequest,
    ) -> Result<PendingCopy, Error> {
        let engine = self.copyable(what, buffer, offset, host.len() as u64)?;
        engine.wait_for_control_room(buffer.facts().endpoint)?;
        let asked = engine.send_control(buffer.facts().endpoint, request, Some(buffer))?;
        Ok(PendingCopy {
            engine,
            what,
            endpoint: asked.endpoint,
            cell: asked.cell,
            ended: Mutex::new(None),
        })
    }

    /// Checks what can be copied to and from.
    pub(super) fn copyable(
        &self,
        what: &'static str,
        buffer: &RemoteBuffer,
        offset: u64,
        nbytes: u64,
    ) -> Result<Arc<Engine>, Error> {
        let engine = self.engine("copy with")?;
        engine.check_owner(buffer)?;
        if buffer.is_imported() {
            return Err(Error::handle(
                "buffer",
                "this is an import; copy with the owner's handle",
            ));
        }
        buffer.check_live(what)?;
        buffer.check_range(what, offset, nbytes)?;
        Ok(engine)
    }
}
