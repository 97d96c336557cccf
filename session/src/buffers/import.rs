//! Windows into buffers of other sessions on this host.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use echelon_runtime::memory::SharedRegion;
use echelon_wire::buffer::{AccessFlags, RemoteTensorDesc};
use echelon_wire::frame::control::transfer::{ExportResult, ReleaseImport};
use echelon_wire::frame::control::ControlName;
use echelon_wire::id::{BufferId, Generation, ImportId, WorkerId};

use super::BufferError;

/// What every segment of the profile begins with. Other files of `/dev/shm` are not for peers to name.
const NAME_PREFIX: &str = "psm_";

/// One window.
#[derive(Debug)]
pub(super) struct Import {
    /// The owner's segment from its first byte to the window's end.
    pub(super) region: Arc<SharedRegion>,
    /// First byte of the window in the owner's buffer.
    pub(super) offset: u64,
    pub(super) nbytes: u64,
    pub(super) access: AccessFlags,
    owner: WorkerId,
    buffer: BufferId,
    generation: Generation,
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

    /// Maps what was exported; read-only unless write access is asked for.
    pub(super) fn open(
        &mut self,
        export: &ExportResult<'_>,
        access: AccessFlags,
    ) -> Result<(ImportId, Arc<SharedRegion>), BufferError> {
        let control = ControlName::ImportBuffer;
        let name = std::str::from_utf8(&export.transport_descriptor).ok();
        let name = name
            .filter(|name| name.starts_with(NAME_PREFIX))
            .ok_or(BufferError::Descriptor)?;
        let (offset, nbytes) = (export.offset, export.nbytes);
        let range = BufferError::Range {
            control,
            offset,
            size: nbytes,
            nbytes: u64::MAX,
        };
        let end = offset.checked_add(nbytes).ok_or(range)?;
        let region = SharedRegion::open_posix(name, access.contains(AccessFlags::WRITE), end)
            .map_err(|source| BufferError::Memory { control, source })?;
        let id = ImportId(self.next);
        self.next += 1;
        let import = Import {
            region: Arc::clone(&region),
            offset,
            nbytes,
            access,
            owner: export.owner_worker_id,
            buffer: export.buffer_id,
            generation: export.generation,
        };
        self.windows.insert(id, import);
        Ok((id, region))
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
    ) -> Result<Option<Arc<SharedRegion>>, BufferError> {
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
        Ok(self.windows.remove(&import).map(|window| window.region))
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
