//! Windows into buffers of other sessions: mapped on the owner's host, local memory that is fetched into anywhere else.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddrV4;
use std::sync::Arc;

use echelon_runtime::memory::{MemoryError, SharedRegion};
use echelon_wire::buffer::{AccessFlags, RemoteTensorDesc};
use echelon_wire::codec::Decode as _;
use echelon_wire::frame::control::transfer::{ExportResult, ReleaseImport, TcpDescriptor};
use echelon_wire::frame::control::ControlName;
use echelon_wire::id::{BufferId, Generation, ImportId, WorkerId};

use super::BufferError;
use crate::config::loopback;
use crate::peer::{Fetched, Source};

/// What every segment of the profile begins with. Other files of `/dev/shm` are not for peers to name.
const NAME_PREFIX: &str = "psm_";

/// One window.
#[derive(Debug)]
pub(super) struct Import {
    /// What tasks see: the owner's segment up to the window's end, or local memory of the window's size.
    pub(super) region: Arc<SharedRegion>,
    /// Where the region's first byte is in the owner's buffer.
    pub(super) first: u64,
    /// Set when the owner is on another host.
    pub(super) fetched: Option<Arc<Fetched>>,
    /// First byte of the window in the owner's buffer.
    pub(super) offset: u64,
    pub(super) nbytes: u64,
    pub(super) access: AccessFlags,
    owner: WorkerId,
    buffer: BufferId,
    generation: Generation,
}

/// A window that can be used, not in the table yet.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) region: Arc<SharedRegion>,
    first: u64,
    access: AccessFlags,
    pub(super) fetched: Option<Arc<Fetched>>,
}

impl Opened {
    /// Maps the owner's segment, which is on this host; read-only unless write access is asked for.
    pub(super) fn map(
        export: &ExportResult<'_>,
        access: AccessFlags,
        name: &str,
    ) -> Result<Self, BufferError> {
        let control = ControlName::ImportBuffer;
        if !name.starts_with(NAME_PREFIX) {
            return Err(BufferError::Descriptor);
        }
        let end = end_of(export)?;
        let region = SharedRegion::open_posix(name, access.contains(AccessFlags::WRITE), end)
            .map_err(|source| match source {
                MemoryError::NoSuchSegment => BufferError::NotOnThisHost,
                source => BufferError::Memory { control, source },
            })?;
        Ok(Self {
            region,
            first: 0,
            access,
            fetched: None,
        })
    }

    /// Local memory for an import from another host. The tasks of a read-only import cannot write it.
    pub(super) fn fetch(
        export: &ExportResult<'_>,
        access: AccessFlags,
        descriptor: &TcpDescriptor<'_>,
    ) -> Result<Self, BufferError> {
        let control = ControlName::ImportBuffer;
        let memory = |source| BufferError::Memory { control, source };
        end_of(export)?;
        let host = loopback("the owner's host", &descriptor.host);
        let host = host.map_err(BufferError::OwnerHost)?;
        let local = SharedRegion::create_memfd(export.nbytes, true).map_err(memory)?;
        let region = if access.contains(AccessFlags::WRITE) {
            Arc::clone(&local)
        } else {
            let fd = local.read_only_fd().map_err(memory)?;
            SharedRegion::from_fd(local.id(), fd, export.nbytes, false).map_err(memory)?
        };
        let source = Source {
            session: descriptor.session_id,
            worker: export.owner_worker_id,
            address: SocketAddrV4::new(host, descriptor.port),
            ticket: descriptor.ticket,
            buffer: export.buffer_id,
            generation: export.generation,
        };
        Ok(Self {
            region,
            first: export.offset,
            access,
            fetched: Some(Arc::new(Fetched {
                source,
                local,
                base: export.offset,
            })),
        })
    }
}

fn end_of(export: &ExportResult<'_>) -> Result<u64, BufferError> {
    let (offset, nbytes) = (export.offset, export.nbytes);
    offset.checked_add(nbytes).ok_or(BufferError::Range {
        control: ControlName::ImportBuffer,
        offset,
        size: nbytes,
        nbytes: u64::MAX,
    })
}

/// The name that a descriptor of profile `sim` is.
pub(super) fn segment_name<'a>(export: &'a ExportResult<'_>) -> Result<&'a str, BufferError> {
    std::str::from_utf8(&export.transport_descriptor).map_err(|_| BufferError::Descriptor)
}

/// The descriptor of profile `tcp`.
pub(super) fn tcp_descriptor<'a>(
    export: &'a ExportResult<'_>,
) -> Result<TcpDescriptor<'a>, BufferError> {
    TcpDescriptor::decode(&export.transport_descriptor)
        .map_err(|error| BufferError::TcpDescriptor(error.to_string()))
}

/// How many released imports are remembered. A release is repeated when its answer was lost, and so soon after the first.
const RELEASED_MAX: usize = 1024;

/// The table of imports.
#[derive(Debug)]
pub(super) struct Imports {
    windows: HashMap<ImportId, Import>,
    /// The last that were released, oldest first.
    released: VecDeque<(ImportId, WorkerId, BufferId, Generation)>,
    next: u64,
}

impl Imports {
    pub(super) fn new() -> Self {
        Self {
            windows: HashMap::new(),
            released: VecDeque::new(),
            next: 1,
        }
    }

    /// Keeps a window that was opened.
    pub(super) fn insert(&mut self, export: &ExportResult<'_>, opened: Opened) -> ImportId {
        let id = ImportId(self.next);
        self.next += 1;
        let import = Import {
            region: opened.region,
            first: opened.first,
            fetched: opened.fetched,
            offset: export.offset,
            nbytes: export.nbytes,
            access: opened.access,
            owner: export.owner_worker_id,
            buffer: export.buffer_id,
            generation: export.generation,
        };
        self.windows.insert(id, import);
        id
    }

    /// The window that a tensor names: owner, buffer, generation and import id (its key) all have to agree.
    pub(super) fn find(&self, desc: &RemoteTensorDesc) -> Option<&Import> {
        self.lookup(
            ImportId(desc.rkey_or_token),
            desc.owner_worker_id,
            desc.buffer_id,
            desc.generation,
        )
    }

    /// Ends an import. Releasing it once more succeeds and does nothing: then `None` is returned.
    pub(super) fn release(
        &mut self,
        release: &ReleaseImport,
    ) -> Result<Option<Import>, BufferError> {
        let identity = (
            release.import_id,
            release.owner_worker_id,
            release.buffer_id,
            release.generation,
        );
        let (import, owner, buffer, generation) = identity;
        // Looked at before anything is removed: a release with a wrong id must not take another's window away.
        if self.lookup(import, owner, buffer, generation).is_none() {
            if self.released.contains(&identity) {
                return Ok(None);
            }
            return Err(BufferError::UnknownImport { import: import.0 });
        }
        if self.released.len() == RELEASED_MAX {
            self.released.pop_front();
        }
        self.released.push_back(identity);
        Ok(self.windows.remove(&import))
    }

    pub(super) fn len(&self) -> usize {
        self.windows.len()
    }

    fn lookup(
        &self,
        id: ImportId,
        owner: WorkerId,
        buffer: BufferId,
        generation: Generation,
    ) -> Option<&Import> {
        self.windows.get(&id).filter(|import| {
            (import.owner, import.buffer, import.generation) == (owner, buffer, generation)
        })
    }
}
