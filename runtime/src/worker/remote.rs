//! Remote buffers: malloc, copy, export, import, free (design §7).

use echelon_wire::buffer::{AccessFlags, AddressSpace};
use echelon_wire::id::WorkerId;

use super::Worker;
use crate::buffer::{
    access_name, buffer_key, BufferFacts, ExportFacts, RemoteBuffer, RemoteExport,
};
use crate::endpoint::{ControlReply, ControlRequest};
use crate::engine::{Asked, ControlCell, CopySide, Engine};
use crate::error::Error;
use crate::graph::EndpointId;
use crate::memory::HostMemory;

/// A pin for the time of a call.
struct Pinned<'a> {
    engine: &'a Engine,
    buffer: &'a RemoteBuffer,
}

impl<'a> Pinned<'a> {
    fn take(
        engine: &'a Engine,
        buffer: &'a RemoteBuffer,
        what: &'static str,
    ) -> Result<Self, Error> {
        engine.check_owner(buffer)?;
        buffer.pin(what)?;
        Ok(Self { engine, buffer })
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.engine.core.lock().unpin(self.buffer.clone());
    }
}

impl Worker {
    /// Allocates a zeroed buffer of `nbytes` on a remote worker.
    ///
    /// # Errors
    /// [`Error::Argument`] for 0 bytes or an unknown worker, [`Error::Remote`] when the session refuses (its limits),
    /// [`Error::EndpointLost`].
    pub fn remote_malloc(&self, worker: i32, nbytes: u64) -> Result<RemoteBuffer, Error> {
        if nbytes == 0 {
            return Err(Error::argument(
                "nbytes",
                "0 is outside 1..; a buffer has at least one byte",
            ));
        }
        let engine = self.engine("allocate on")?;
        self.flush_releases(&engine);
        let endpoint = engine.remote_endpoint(worker)?;
        let request = ControlRequest::Alloc { nbytes };
        let (reply, session) =
            engine.control_of_session(endpoint, "remote_malloc", request, None)?;
        match reply {
            ControlReply::Allocated {
                buffer,
                remote_addr,
                rkey,
            } => Ok(RemoteBuffer::new(BufferFacts {
                owner_uid: engine.uid,
                endpoint,
                worker: WorkerId(worker),
                session,
                owner_session: session,
                owner_worker: WorkerId(worker),
                key: buffer,
                base: 0,
                nbytes,
                access: AccessFlags::READ_WRITE,
                address_space: AddressSpace::RemoteDevice,
                remote_addr,
                rkey,
                fetched: false,
                import: None,
            })),
            _ => Err(unexpected("remote_malloc")),
        }
    }

    /// Frees a buffer: at once, or when the last task and import that use it have ended.
    ///
    /// # Errors
    /// [`Error::Handle`] for a released, foreign or imported handle.
    pub fn remote_free(&self, buffer: &RemoteBuffer) -> Result<(), Error> {
        if buffer.is_imported() {
            return Err(Error::handle(
                "buffer",
                "this is an import; end it with remote_release_import",
            ));
        }
        self.release(buffer, "remote_free")
    }

    /// Ends an import: at once, or when the last task that uses it has ended.
    ///
    /// # Errors
    /// [`Error::Handle`] for a released, foreign or owner handle.
    pub fn remote_release_import(&self, import: &RemoteBuffer) -> Result<(), Error> {
        if !import.is_imported() {
            return Err(Error::handle(
                "import",
                "this is an owner's handle; free it with remote_free",
            ));
        }
        self.release(import, "remote_release_import")
    }

    fn release(&self, buffer: &RemoteBuffer, what: &'static str) -> Result<(), Error> {
        let engine = self.engine("free a buffer of")?;
        engine.check_owner(buffer)?;
        let cell = ControlCell::default();
        {
            let mut core = engine.core.lock();
            core.check_open("free a buffer of")?;
            if !buffer.release(what)? {
                return Ok(());
            }
            core.send_release(buffer.clone(), Some(ControlCell::clone(&cell)));
        }
        // Whatever comes of the wait, the engine keeps the buffer's state: a refused release is tried again.
        let facts = buffer.facts();
        let asked = Asked {
            endpoint: facts.endpoint,
            session: Some(facts.session),
            cell,
        };
        match engine.await_control(asked, what, None) {
            Ok(_) | Err(Error::EndpointLost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sends again what could not be released before.
    pub(crate) fn flush_releases(&self, engine: &Engine) {
        engine.core.lock().flush_releases();
    }

    /// Copies host bytes into a buffer; returns when they have arrived.
    ///
    /// # Errors
    /// [`Error::Handle`], [`Error::Argument`] for a range outside the buffer, [`Error::Remote`], [`Error::EndpointLost`].
    pub fn remote_copy_to(
        &self,
        buffer: &RemoteBuffer,
        source: &HostMemory,
        offset: u64,
    ) -> Result<(), Error> {
        self.copy_direct(buffer, source, offset, true)
    }

    /// Copies from a buffer into host memory; returns when it is there.
    ///
    /// # Errors
    /// As [`Self::remote_copy_to`]; [`Error::Argument`] also for read-only memory.
    pub fn remote_copy_from(
        &self,
        buffer: &RemoteBuffer,
        destination: &HostMemory,
        offset: u64,
    ) -> Result<(), Error> {
        if !destination.is_writable() {
            return Err(Error::argument(
                "host",
                "the destination is read-only; give a writable buffer",
            ));
        }
        self.copy_direct(buffer, destination, offset, false)
    }

    fn copy_direct(
        &self,
        buffer: &RemoteBuffer,
        host: &HostMemory,
        offset: u64,
        to: bool,
    ) -> Result<(), Error> {
        let what = if to {
            "remote_copy_to"
        } else {
            "remote_copy_from"
        };
        let nbytes = host.len() as u64;
        let engine = self.copyable(what, buffer, offset, nbytes)?;
        let _pin = Pinned::take(&engine, buffer, what)?;
        let CopySide::Remote(range) = CopySide::of_buffer(buffer, offset, nbytes) else {
            return Ok(());
        };
        let limit = engine.copy_step(range.endpoint, to);
        let mut done = 0;
        loop {
            // Each step may be answered before its wait asks for the first time.
            engine.interrupt.check().map_err(|_| Error::Interrupted)?;
            let step = (nbytes - done).min(limit);
            // Offsets within this process's memory fit `usize`.
            let part = host.slice(done as usize, step as usize)?;
            let (endpoint, request) = if to {
                range.write(done, part)
            } else {
                range.read(done, part)
            };
            engine.control_pinning(endpoint, what, request, buffer)?;
            done += step;
            if done >= nbytes {
                return Ok(());
            }
        }
    }

    /// Makes a range of an owned buffer importable by other workers. `nbytes: None` = to the end.
    ///
    /// # Errors
    /// [`Error::Handle`] for imports and released handles, [`Error::Argument`] for an empty range or one outside.
    pub fn remote_export(
        &self,
        buffer: &RemoteBuffer,
        offset: u64,
        nbytes: Option<u64>,
        access: AccessFlags,
    ) -> Result<RemoteExport, Error> {
        let engine = self.engine("export from")?;
        if buffer.is_imported() {
            return Err(Error::handle(
                "buffer",
                "an import cannot be exported again; export the owner's handle",
            ));
        }
        buffer.check_live("remote_export")?;
        let nbytes = nbytes.unwrap_or_else(|| buffer.nbytes().saturating_sub(offset));
        buffer.check_range("remote_export", offset, nbytes)?;
        if nbytes == 0 {
            return Err(Error::argument("nbytes", "the exported range is empty"));
        }
        let _pin = Pinned::take(&engine, buffer, "remote_export")?;
        let facts = buffer.facts();
        let request = ControlRequest::Export {
            buffer: facts.key,
            offset,
            nbytes,
            access,
        };
        match engine.control_pinning(facts.endpoint, "remote_export", request, buffer)? {
            ControlReply::Exported(result) => {
                let agrees = result.buffer_id == facts.key.buffer
                    && result.generation == facts.key.generation
                    && (result.offset, result.nbytes) == (offset, nbytes);
                if !agrees {
                    return Err(Error::Remote {
                        worker: engine.worker_name(facts.endpoint),
                        what: "remote_export",
                        message: "its answer describes another range than the one asked for".into(),
                    });
                }
                Ok(RemoteExport::new(ExportFacts {
                    owner: buffer.clone(),
                    result: *result,
                    access,
                }))
            }
            _ => Err(unexpected("remote_export")),
        }
    }

    /// Imports an export on another worker. `access: None` = all that the export allows.
    ///
    /// # Errors
    /// [`Error::Handle`] for an export of another `Worker` or whose owner was freed, or for more access than exported;
    /// [`Error::Remote`] when the session cannot reach the bytes.
    pub fn remote_import(
        &self,
        export: &RemoteExport,
        worker: i32,
        access: Option<AccessFlags>,
    ) -> Result<RemoteBuffer, Error> {
        let engine = self.engine("import on")?;
        let facts = export.facts();
        let access = access.unwrap_or(facts.access);
        if !facts.access.contains(access) {
            return Err(Error::handle(
                "export",
                format!(
                    "{} access asked for, and the export allows {}",
                    access_name(access),
                    access_name(facts.access)
                ),
            ));
        }
        let endpoint = engine.remote_endpoint(worker)?;
        if endpoint == facts.owner.facts().endpoint {
            return Err(Error::argument(
                "worker",
                format!("worker {worker} owns the buffer; use the owner's handle there"),
            ));
        }
        // The owner is held before the import exists, and let go again when it fails.
        let _pin = Pinned::take(&engine, &facts.owner, "remote_import")?;
        let request = ControlRequest::Import {
            export: Box::new(facts.result.clone()),
            access,
        };
        let (reply, session) =
            engine.control_of_session(endpoint, "remote_import", request, Some(&facts.owner))?;
        match reply {
            ControlReply::Imported(result) => {
                let owner = facts.owner.facts();
                Ok(RemoteBuffer::new(BufferFacts {
                    owner_uid: engine.uid,
                    endpoint,
                    worker: WorkerId(worker),
                    session,
                    owner_session: owner.owner_session,
                    owner_worker: owner.owner_worker,
                    key: buffer_key(owner.key.buffer.0, owner.key.generation.0),
                    base: facts.result.offset,
                    nbytes: facts.result.nbytes,
                    access,
                    address_space: result.address_space,
                    remote_addr: result.remote_addr,
                    rkey: result.rkey_or_token,
                    fetched: result.transport_profile == "tcp",
                    import: Some((result.import_id, facts.owner.clone())),
                }))
            }
            _ => Err(unexpected("remote_import")),
        }
    }
}

impl Engine {
    /// Endpoint of a remote worker id. Its session may be another one when something is sent there.
    fn remote_endpoint(&self, worker: i32) -> Result<EndpointId, Error> {
        let core = self.core.lock();
        let endpoint = core.endpoint_of(worker)?;
        let session = core.slot(endpoint).and_then(|slot| slot.info.session);
        session.map(|_| endpoint).ok_or_else(|| {
            Error::argument(
                "worker",
                format!("worker {worker} is local: use orch.alloc, its memory is shared"),
            )
        })
    }

    pub(crate) fn worker_name(&self, endpoint: EndpointId) -> String {
        self.core
            .lock()
            .slot(endpoint)
            .map_or_else(String::new, |slot| slot.info.name.clone())
    }
}

fn unexpected(what: &'static str) -> Error {
    Error::Remote {
        worker: "the worker".into(),
        what,
        // Not the answer itself: a descriptor in it would tell how its owner is reached.
        message: "the answer belongs to another kind of request".into(),
    }
}
