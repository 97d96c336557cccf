//! The buffers of a session: its own and those it imported (contract §5, design §7).
//!
//! The table belongs to the session; when it goes, every segment goes with it. Texts end with the words of the
//! contract's recorded cases.

mod error;
mod import;
mod owned;

use std::sync::Arc;

use echelon_runtime::memory::{HostMemory, MemoryError, SharedRegion};
use echelon_wire::buffer::{AccessFlags, AddressSpace, RemoteTensorDesc};
use echelon_wire::codec::Encode as _;
use echelon_wire::frame::control::buffer::{AllocResult, CopyHeader, FreeCommand};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ImportResult, ReleaseImport, TcpDescriptor,
};
use echelon_wire::frame::control::ControlName;
use echelon_wire::id::WorkerId;
use echelon_wire::limits::MAX_COPY_FROM_BYTES;

use rustix::process::{getrlimit, Resource};

use crate::peer::{Fetched, Reachable, Tickets, Window};
pub use error::BufferError;
use import::{segment_name, tcp_descriptor, Imports, Opened};
use owned::Owned;

/// The one transport profile of version 1: shared memory of one host.
const SIM: &str = "sim";
/// Buffers and imports of one session, together; fewer where the process may have fewer descriptors.
const HANDLES_MAX: u64 = 65_536;

/// Where the bytes of a task's tensor are.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) region: Arc<SharedRegion>,
    /// First byte in the region.
    pub(crate) offset: u64,
    /// What a task may do with it.
    pub(crate) access: AccessFlags,
    /// `the buffer` or `the import`, for texts.
    pub(crate) what: &'static str,
    /// Set for an import from another host: its bytes have to be moved.
    pub(crate) fetched: Option<Arc<Fetched>>,
}

/// An import that was released.
#[derive(Debug)]
pub(crate) struct Released {
    /// What the inner workers are to drop.
    pub(crate) region: Arc<SharedRegion>,
    /// Set when it was from another host.
    pub(crate) fetched: Option<Arc<Fetched>>,
}

/// All buffers of a session.
#[derive(Debug)]
pub(crate) struct Buffers {
    worker: WorkerId,
    handles_max: u64,
    owned: Owned,
    imports: Imports,
    tickets: Arc<Tickets>,
}

impl Buffers {
    /// Tables for `worker` with at most `bytes_max` bytes in buffers, and in imports from other hosts. Published names begin with
    /// `name_prefix`; `tickets` is what importers on other hosts may do.
    pub(crate) fn new(
        worker: WorkerId,
        bytes_max: u64,
        name_prefix: String,
        tickets: Arc<Tickets>,
    ) -> Self {
        Self {
            worker,
            tickets,
            handles_max: handles_max(),
            owned: Owned::new(bytes_max, name_prefix),
            imports: Imports::new(),
        }
    }

    pub(crate) fn alloc(&mut self, nbytes: u64) -> Result<AllocResult, BufferError> {
        self.check_handles()?;
        let (buffer_id, generation, buffer) = self.owned.alloc(nbytes)?;
        Ok(AllocResult {
            worker_id: self.worker,
            buffer_id,
            generation,
            nbytes,
            remote_addr: opaque_address(&buffer.region, 0),
            rkey_or_token: 0,
            ub_ldst_va: 0,
        })
    }

    /// Frees a buffer; of an unknown one it succeeds. Returns the region that went, for the inner workers to drop.
    pub(crate) fn free(
        &mut self,
        command: &FreeCommand,
    ) -> Result<Option<Arc<SharedRegion>>, BufferError> {
        self.check_worker(ControlName::FreeRemoteBuffer, command.worker_id)?;
        let region = self.owned.free(command.buffer_id, command.generation);
        if region.is_some() {
            self.tickets.revoke(command.buffer_id);
        }
        Ok(region)
    }

    /// The memory that a copy of `got` bytes writes.
    pub(crate) fn target(&self, header: &CopyHeader, got: u64) -> Result<HostMemory, BufferError> {
        let control = ControlName::CopyToRemote;
        self.check_worker(control, header.worker_id)?;
        let buffer = self
            .owned
            .get(control, header.buffer_id, header.generation)?;
        if got != header.size {
            let size = header.size;
            return Err(BufferError::DataLength { got, size });
        }
        check_range(control, header.offset, header.size, buffer.nbytes)?;
        let target = buffer.region.host(header.offset, header.size);
        target.map_err(|source| BufferError::Memory { control, source })
    }

    /// The memory that a copy reads.
    pub(crate) fn source(&self, header: &CopyHeader) -> Result<HostMemory, BufferError> {
        let control = ControlName::CopyFromRemote;
        self.check_worker(control, header.worker_id)?;
        let buffer = self
            .owned
            .get(control, header.buffer_id, header.generation)?;
        check_range(control, header.offset, header.size, buffer.nbytes)?;
        if header.size > MAX_COPY_FROM_BYTES {
            return Err(BufferError::ReplyTooLarge { size: header.size });
        }
        let source = buffer.region.host(header.offset, header.size);
        source.map_err(|source| BufferError::Memory { control, source })
    }

    /// Exports a range. `reachable` is set where importers on other hosts are served.
    pub(crate) fn export(
        &mut self,
        request: &ExportRequest<'_>,
        reachable: Option<Reachable>,
    ) -> Result<ExportResult<'static>, BufferError> {
        let control = ControlName::ExportBuffer;
        self.check_worker(control, request.owner_worker_id)?;
        let buffer = self
            .owned
            .get(control, request.buffer_id, request.generation)?;
        check_range(control, request.offset, request.nbytes, buffer.nbytes)?;
        let profile = &*request.transport_profile;
        let remote_addr = opaque_address(&buffer.region, request.offset);
        let key = (request.buffer_id, request.generation);
        let (profile, descriptor) = match reachable {
            Some(reachable) if profile == TcpDescriptor::PROFILE => {
                let published = self.owned.publish(key.0, key.1);
                let descriptor = self.tcp_descriptor(request, reachable, published)?;
                (TcpDescriptor::PROFILE, descriptor)
            }
            _ if profile.is_empty() || profile == SIM => {
                (SIM, self.owned.publish(key.0, key.1)?.into_bytes())
            }
            _ => return Err(unsupported(control, profile)),
        };
        let export_id = self.owned.next_export();
        Ok(ExportResult {
            owner_worker_id: self.worker,
            buffer_id: request.buffer_id,
            generation: request.generation,
            address_space: AddressSpace::RemoteWindow,
            offset: request.offset,
            nbytes: request.nbytes,
            export_id,
            remote_addr,
            rkey_or_token: export_id.0,
            ub_ldst_va: 0,
            access_flags: request.access_flags,
            transport_profile: profile.into(),
            transport_descriptor: descriptor.into(),
        })
    }

    /// Where importers find the range. A buffer that cannot have a name is there for those on other hosts all the same.
    fn tcp_descriptor(
        &self,
        request: &ExportRequest<'_>,
        reachable: Reachable,
        published: Result<String, BufferError>,
    ) -> Result<Vec<u8>, BufferError> {
        let control = ControlName::ExportBuffer;
        let key = (request.buffer_id, request.generation);
        let buffer = self.owned.get(control, key.0, key.1)?;
        let window = Window {
            offset: request.offset,
            nbytes: request.nbytes,
            access: request.access_flags,
        };
        let descriptor = TcpDescriptor {
            session_id: reachable.session,
            ticket: self.tickets.grant(&buffer.region, key, window)?,
            host: reachable.host.into(),
            port: reachable.port,
            segment: published.unwrap_or_default().into(),
        };
        let bytes = descriptor.to_bytes();
        bytes.map_err(|error| BufferError::TcpDescriptor(error.to_string()))
    }

    /// Imports a window. `fetches` says whether one from another host can be served.
    pub(crate) fn import(
        &mut self,
        request: &ImportRequest<'_>,
        fetches: bool,
    ) -> Result<ImportResult<'static>, BufferError> {
        let control = ControlName::ImportBuffer;
        self.check_worker(control, request.importer_worker_id)?;
        let export = &request.export;
        let (requested, exported) = (request.requested_access_flags, export.access_flags);
        if !exported.contains(requested) {
            return Err(BufferError::Access {
                requested: requested.bits(),
                exported: exported.bits(),
            });
        }
        self.check_handles()?;
        let opened = match &*export.transport_profile {
            SIM => Opened::map(export, requested, segment_name(export)?)?,
            TcpDescriptor::PROFILE if fetches => self.open_tcp(export, requested)?,
            other => return Err(unsupported(control, other)),
        };
        let profile = match opened.fetched {
            Some(_) => TcpDescriptor::PROFILE,
            None => SIM,
        };
        let remote_addr = opaque_address(&opened.region, export.offset);
        let import_id = self.imports.insert(export, opened);
        Ok(ImportResult {
            importer_worker_id: self.worker,
            owner_worker_id: export.owner_worker_id,
            buffer_id: export.buffer_id,
            generation: export.generation,
            import_id,
            address_space: export.address_space,
            offset: export.offset,
            nbytes: export.nbytes,
            remote_addr,
            rkey_or_token: import_id.0,
            ub_ldst_va: 0,
            access_flags: requested,
            transport_profile: profile.into(),
            import_descriptor: Vec::new().into(),
        })
    }

    /// A segment that can be opened is on this host: its name is random and only its owner makes it. Else the bytes are fetched, into
    /// memory that counts against the session's limit from now on.
    fn open_tcp(
        &mut self,
        export: &ExportResult<'_>,
        access: AccessFlags,
    ) -> Result<Opened, BufferError> {
        let descriptor = tcp_descriptor(export)?;
        if !descriptor.segment.is_empty() {
            match Opened::map(export, access, &descriptor.segment) {
                // Not there, or there for another user: on another host, as far as this session can tell.
                Err(
                    BufferError::NotOnThisHost
                    | BufferError::Memory {
                        source: MemoryError::Os { .. },
                        ..
                    },
                ) => {}
                mapped => return mapped,
            }
        }
        self.owned.reserve(export.nbytes)?;
        Opened::fetch(export, access, &descriptor)
            .inspect_err(|_| self.owned.unreserve(export.nbytes))
    }

    /// Releases an import. Returns what went; nothing when it went before.
    pub(crate) fn release(
        &mut self,
        release: &ReleaseImport,
    ) -> Result<Option<Released>, BufferError> {
        self.check_worker(ControlName::ReleaseImport, release.importer_worker_id)?;
        let released = self.imports.release(release)?.map(|import| {
            if import.fetched.is_some() {
                self.owned.unreserve(import.nbytes);
            }
            Released {
                region: import.region,
                fetched: import.fetched,
            }
        });
        Ok(released)
    }

    /// Where a tensor of a task is (contract §4.5 steps 3 to 6). The offset of an import is absolute in the owner's buffer
    /// an import without write access is mapped so that writing faults.
    pub(crate) fn locate(&self, desc: &RemoteTensorDesc) -> Result<Place, BufferError> {
        let mut fetched = None;
        let mut first = 0;
        let (region, start, nbytes, access, what) = match desc.address_space {
            AddressSpace::RemoteDevice if desc.owner_worker_id == self.worker => {
                let buffer = self
                    .owned
                    .find(desc.buffer_id, desc.generation)
                    .ok_or(BufferError::UnknownTensor)?;
                let access = AccessFlags::READ_WRITE;
                (&buffer.region, 0, buffer.nbytes, access, "the buffer")
            }
            AddressSpace::RemoteWindow | AddressSpace::UbLdst => {
                let import = self.imports.find(desc).ok_or(BufferError::UnknownTensor)?;
                let (start, nbytes) = (import.offset, import.nbytes);
                first = import.first;
                fetched = import.fetched.clone();
                (&import.region, start, nbytes, import.access, "the import")
            }
            _ => return Err(BufferError::ForeignDevice),
        };
        let end = desc
            .offset
            .checked_add(desc.nbytes)
            .ok_or(BufferError::TensorRange)?;
        // The window's end was checked against overflow when it was made.
        if desc.offset < start || end > start + nbytes {
            return Err(BufferError::TensorRange);
        }
        Ok(Place {
            region: Arc::clone(region),
            offset: desc.offset - first,
            access,
            what,
            fetched,
        })
    }

    fn check_worker(&self, control: ControlName, got: WorkerId) -> Result<(), BufferError> {
        if got != self.worker {
            return Err(BufferError::WorkerMismatch {
                control,
                got,
                own: self.worker,
            });
        }
        Ok(())
    }

    fn check_handles(&self) -> Result<(), BufferError> {
        let in_use = (self.owned.len() + self.imports.len()) as u64;
        if in_use >= self.handles_max {
            return Err(BufferError::Resource {
                what: "buffer handle(s)",
                requested: 1,
                in_use,
                limit: self.handles_max,
            });
        }
        Ok(())
    }
}

/// Each buffer and import holds a descriptor. A quarter of what the process may have is for everything else: a session that runs
/// out of descriptors could not even start a worker anew.
fn handles_max() -> u64 {
    let descriptors = getrlimit(Resource::Nofile).current;
    descriptors.map_or(HANDLES_MAX, |limit| HANDLES_MAX.min(limit / 4 * 3))
}

/// What stands for an address in replies: unique, not zero, and of no use to anybody. Sessions ignore it.
fn opaque_address(region: &SharedRegion, offset: u64) -> u64 {
    region.id().wrapping_add(offset)
}

fn check_range(
    control: ControlName,
    offset: u64,
    size: u64,
    nbytes: u64,
) -> Result<(), BufferError> {
    match offset.checked_add(size) {
        Some(end) if end <= nbytes => Ok(()),
        _ => Err(BufferError::Range {
            control,
            offset,
            size,
            nbytes,
        }),
    }
}

fn unsupported(control: ControlName, profile: &str) -> BufferError {
    BufferError::Profile {
        control,
        got: profile.chars().take(32).collect(),
    }
}

#[cfg(test)]
mod tests;
