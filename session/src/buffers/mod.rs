//! The buffers of a session: its own and those it imported (contract §5, design §7).
//!
//! The table belongs to the session; when it goes, every segment goes with it. Texts end with the words of the
//! contract's recorded cases.

mod import;
mod owned;

use std::sync::Arc;

use echelon_runtime::memory::{MemoryError, SharedRegion};
use echelon_wire::buffer::{AccessFlags, AddressSpace, RemoteTensorDesc};
use echelon_wire::frame::control::buffer::{AllocResult, CopyHeader, FreeCommand};
use echelon_wire::frame::control::transfer::{
    ExportRequest, ExportResult, ImportRequest, ImportResult, ReleaseImport,
};
use echelon_wire::frame::control::ControlName;
use echelon_wire::id::WorkerId;
use echelon_wire::limits::MAX_COPY_FROM_BYTES;

use rustix::process::{getrlimit, Resource};

use import::Imports;
use owned::Owned;

/// The one transport profile of version 1: shared memory of one host.
const PROFILE: &str = "sim";
/// Buffers and imports of one session, together; fewer where the process may have fewer descriptors.
const HANDLES_MAX: u64 = 65_536;

/// Why a buffer command is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The command names another worker.
    #[error("this session is worker {own}, not {got}: {control} worker mismatch")]
    WorkerMismatch {
        /// Which control.
        control: ControlName,
        /// Worker named.
        got: WorkerId,
        /// Worker of this session.
        own: WorkerId,
    },
    /// No such buffer, or another generation of it.
    #[error("buffer {buffer} generation {generation} was freed or never allocated: {control} names unknown buffer")]
    UnknownBuffer {
        /// Which control.
        control: ControlName,
        /// Buffer id.
        buffer: u64,
        /// Generation.
        generation: u64,
    },
    /// The range does not lie inside the buffer.
    #[error("{size} bytes at offset {offset} of a buffer of {nbytes} bytes: {control} range exceeds buffer")]
    Range {
        /// Which control.
        control: ControlName,
        /// First byte.
        offset: u64,
        /// Bytes.
        size: u64,
        /// Size of the buffer.
        nbytes: u64,
    },
    /// COPY_TO carries another number of bytes than it says.
    #[error("the command carries {got} bytes and announces {size}: COPY_TO_REMOTE data length does not match size")]
    DataLength {
        /// Bytes carried.
        got: u64,
        /// Bytes announced.
        size: u64,
    },
    /// COPY_FROM of more than one reply holds.
    #[error("COPY_FROM_REMOTE size is {size}, limit {MAX_COPY_FROM_BYTES}; split the copy")]
    ReplyTooLarge {
        /// Bytes asked for.
        size: u64,
    },
    /// A limit of the session, or of the machine.
    #[error("RESOURCE_EXHAUSTED: {requested} {what} asked for, {in_use} in use, limit {limit}; free buffers first")]
    Resource {
        /// Unit.
        what: &'static str,
        /// Asked for.
        requested: u64,
        /// In use.
        in_use: u64,
        /// The limit.
        limit: u64,
    },
    /// The buffer lies in memory of this session alone.
    #[error(
        "/dev/shm had no room for buffer {buffer} when it was made, so no other session can map it; \
         make room there and allocate it anew: EXPORT_BUFFER of a private buffer"
    )]
    Private {
        /// Buffer id.
        buffer: u64,
    },
    /// The profile is not one that this session has.
    #[error("{got:?} was asked for: {control} transport_profile is not supported by sim")]
    Profile {
        /// Which control.
        control: ControlName,
        /// Profile named, shortened.
        got: String,
    },
    /// The requested access is more than the export gives.
    #[error("IMPORT_BUFFER access {requested} exceeds the export's access {exported}")]
    Access {
        /// Bits asked for.
        requested: u32,
        /// Bits of the export.
        exported: u32,
    },
    /// The descriptor is not the name of a segment.
    #[error("IMPORT_BUFFER transport_descriptor is not a segment name of profile sim")]
    Descriptor,
    /// No such import.
    #[error("import {import} was released or never made: RELEASE_IMPORT names unknown import")]
    UnknownImport {
        /// Import id.
        import: u64,
    },
    /// A tensor of a task names a buffer of another worker without importing it.
    #[error("remote TASK descriptor names a different worker without an imported buffer handle")]
    ForeignDevice,
    /// A tensor of a task names nothing that is here.
    #[error("remote TASK descriptor names an unknown or stale buffer/import generation")]
    UnknownTensor,
    /// A tensor of a task reaches outside.
    #[error("remote TASK descriptor range exceeds buffer/import")]
    TensorRange,
    /// Shared memory failed.
    #[error("{control}: {source}")]
    Memory {
        /// Which control.
        control: ControlName,
        /// Why.
        source: MemoryError,
    },
}

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
}

/// All buffers of a session.
#[derive(Debug)]
pub(crate) struct Buffers {
    worker: WorkerId,
    handles_max: u64,
    owned: Owned,
    imports: Imports,
}

impl Buffers {
    /// Tables for `worker` with at most `bytes_max` bytes in buffers. Published names begin with `name_prefix`.
    pub(crate) fn new(worker: WorkerId, bytes_max: u64, name_prefix: String) -> Self {
        Self {
            worker,
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
        Ok(self.owned.free(command.buffer_id, command.generation))
    }

    pub(crate) fn copy_to(&self, header: &CopyHeader, data: &[u8]) -> Result<(), BufferError> {
        let control = ControlName::CopyToRemote;
        self.check_worker(control, header.worker_id)?;
        let buffer = self
            .owned
            .get(control, header.buffer_id, header.generation)?;
        if data.len() as u64 != header.size {
            return Err(BufferError::DataLength {
                got: data.len() as u64,
                size: header.size,
            });
        }
        check_range(control, header.offset, header.size, buffer.nbytes)?;
        let target = buffer.region.host(header.offset, header.size);
        target
            .and_then(|target| target.copy_in(0, data))
            .map_err(|source| BufferError::Memory { control, source })
    }

    pub(crate) fn copy_from(&self, header: &CopyHeader) -> Result<Vec<u8>, BufferError> {
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
        source
            .map(|source| source.to_vec())
            .map_err(|source| BufferError::Memory { control, source })
    }

    pub(crate) fn export(
        &mut self,
        request: &ExportRequest<'_>,
    ) -> Result<ExportResult<'static>, BufferError> {
        let control = ControlName::ExportBuffer;
        self.check_worker(control, request.owner_worker_id)?;
        let buffer = self
            .owned
            .get(control, request.buffer_id, request.generation)?;
        check_range(control, request.offset, request.nbytes, buffer.nbytes)?;
        if !request.transport_profile.is_empty() {
            check_profile(control, &request.transport_profile)?;
        }
        let remote_addr = opaque_address(&buffer.region, request.offset);
        let (export_id, name) = self.owned.publish(request.buffer_id, request.generation)?;
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
            transport_profile: PROFILE.into(),
            transport_descriptor: name.into_bytes().into(),
        })
    }

    pub(crate) fn import(
        &mut self,
        request: &ImportRequest<'_>,
    ) -> Result<ImportResult<'static>, BufferError> {
        let control = ControlName::ImportBuffer;
        self.check_worker(control, request.importer_worker_id)?;
        let export = &request.export;
        check_profile(control, &export.transport_profile)?;
        let (requested, exported) = (request.requested_access_flags, export.access_flags);
        if !exported.contains(requested) {
            return Err(BufferError::Access {
                requested: requested.bits(),
                exported: exported.bits(),
            });
        }
        self.check_handles()?;
        let (import_id, region) = self.imports.open(export, requested)?;
        Ok(ImportResult {
            importer_worker_id: self.worker,
            owner_worker_id: export.owner_worker_id,
            buffer_id: export.buffer_id,
            generation: export.generation,
            import_id,
            address_space: export.address_space,
            offset: export.offset,
            nbytes: export.nbytes,
            remote_addr: opaque_address(&region, export.offset),
            rkey_or_token: import_id.0,
            ub_ldst_va: 0,
            access_flags: requested,
            transport_profile: PROFILE.into(),
            import_descriptor: Vec::new().into(),
        })
    }

    /// Releases an import. Returns the region that went, for the inner workers to drop; none when it went before.
    pub(crate) fn release(
        &mut self,
        release: &ReleaseImport,
    ) -> Result<Option<Arc<SharedRegion>>, BufferError> {
        self.check_worker(ControlName::ReleaseImport, release.importer_worker_id)?;
        self.imports.release(release)
    }

    /// Where a tensor of a task is (contract §4.5 steps 3 to 6). The offset of an import is absolute in the owner's buffer
    /// an import without write access is mapped so that writing faults.
    pub(crate) fn locate(&self, desc: &RemoteTensorDesc) -> Result<Place, BufferError> {
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
            offset: desc.offset,
            access,
            what,
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

fn check_profile(control: ControlName, profile: &str) -> Result<(), BufferError> {
    if profile == PROFILE {
        return Ok(());
    }
    Err(BufferError::Profile {
        control,
        got: profile.chars().take(32).collect(),
    })
}

#[cfg(test)]
mod tests;
