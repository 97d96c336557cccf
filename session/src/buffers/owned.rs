//! Buffers that this session allocated.

use std::collections::HashMap;
use std::sync::Arc;

use echelon_runtime::memory::{MemoryError, SharedRegion};
use echelon_wire::frame::control::ControlName;
use echelon_wire::id::{BufferId, ExportId, Generation};

use super::BufferError;

/// Ids are never used twice within a session, so one generation is enough (contract §5).
const GENERATION: Generation = Generation(1);

/// One buffer.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) region: Arc<SharedRegion>,
    pub(super) nbytes: u64,
}

/// The table of buffers.
#[derive(Debug)]
pub(super) struct Owned {
    buffers: HashMap<BufferId, Buffer>,
    /// Freed, and their names could not be removed yet. Their memory is still in use, so it counts.
    leaving: Vec<Buffer>,
    next: u64,
    exports: u64,
    bytes: u64,
    bytes_max: u64,
    name_prefix: String,
}

impl Owned {
    pub(super) fn new(bytes_max: u64, name_prefix: String) -> Self {
        Self {
            buffers: HashMap::new(),
            leaving: Vec::new(),
            next: 1,
            exports: 0,
            bytes: 0,
            bytes_max,
            name_prefix,
        }
    }

    /// A new buffer of zeroes, its pages allocated, so that using it cannot fail later.
    pub(super) fn alloc(
        &mut self,
        nbytes: u64,
    ) -> Result<(BufferId, Generation, &Buffer), BufferError> {
        self.withdraw_leaving();
        let exhausted = self.exhausted(nbytes);
        self.reserve(nbytes)?;
        let region = match SharedRegion::create_posix(nbytes) {
            // A container may have a tiny /dev/shm. Such a buffer serves everything but export.
            Err(MemoryError::NoSpace { .. }) => SharedRegion::create_memfd(nbytes, true),
            other => other,
        };
        let region = region.inspect_err(|_| self.unreserve(nbytes));
        let region = region.map_err(|error| match error {
            MemoryError::NoSpace { .. } | MemoryError::BadSize { .. } => exhausted,
            source => BufferError::Memory {
                control: ControlName::AllocRemoteBuffer,
                source,
            },
        })?;
        let id = BufferId(self.next);
        self.next += 1;
        let buffer = self
            .buffers
            .entry(id)
            .insert_entry(Buffer { region, nbytes })
            .into_mut();
        Ok((id, GENERATION, buffer))
    }

    pub(super) fn free(
        &mut self,
        id: BufferId,
        generation: Generation,
    ) -> Option<Arc<SharedRegion>> {
        self.find(id, generation)?;
        let buffer = self.buffers.remove(&id)?;
        let region = Arc::clone(&buffer.region);
        self.leaving.push(buffer);
        self.withdraw_leaving();
        Some(region)
    }

    /// Takes the names of freed buffers away, at once (contract §5, FREE); a view somewhere may keep the memory. What fails is
    /// tried again with every buffer that comes or goes, and by each region's drop.
    fn withdraw_leaving(&mut self) {
        let mut left = Vec::new();
        for buffer in self.leaving.drain(..) {
            match buffer.region.withdraw() {
                Ok(()) => self.bytes -= buffer.nbytes,
                Err(error) => {
                    tracing::warn!(%error, "the name of a freed buffer could not be removed; it is tried again");
                    left.push(buffer);
                }
            }
        }
        self.leaving = left;
    }

    pub(super) fn find(&self, id: BufferId, generation: Generation) -> Option<&Buffer> {
        self.buffers.get(&id).filter(|_| generation == GENERATION)
    }

    pub(super) fn get(
        &self,
        control: ControlName,
        id: BufferId,
        generation: Generation,
    ) -> Result<&Buffer, BufferError> {
        let unknown = BufferError::UnknownBuffer {
            control,
            buffer: id.0,
            generation: generation.0,
        };
        self.find(id, generation).ok_or(unknown)
    }

    /// Gives the buffer its name, which all its exports share.
    pub(super) fn publish(
        &mut self,
        id: BufferId,
        generation: Generation,
    ) -> Result<String, BufferError> {
        let control = ControlName::ExportBuffer;
        let buffer = self.get(control, id, generation)?;
        let name = buffer.region.publish_as(&self.name_prefix);
        name.map_err(|source| match source {
            MemoryError::NotPublishable => BufferError::Private { buffer: id.0 },
            source => BufferError::Memory { control, source },
        })
    }

    /// The number of a new export.
    pub(super) fn next_export(&mut self) -> ExportId {
        self.exports += 1;
        ExportId(self.exports)
    }

    /// Counts memory against the session's limit: a buffer's, or that of an import from another host.
    pub(super) fn reserve(&mut self, nbytes: u64) -> Result<(), BufferError> {
        match self.bytes.checked_add(nbytes) {
            Some(total) if total <= self.bytes_max => self.bytes = total,
            _ => return Err(self.exhausted(nbytes)),
        }
        Ok(())
    }

    /// What was reserved is in use no more.
    pub(super) fn unreserve(&mut self, nbytes: u64) {
        self.bytes -= nbytes;
    }

    fn exhausted(&self, requested: u64) -> BufferError {
        BufferError::Resource {
            what: "bytes",
            requested,
            in_use: self.bytes,
            limit: self.bytes_max,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.buffers.len() + self.leaving.len()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Views of a buffer may outlive the table; its name does not.
        for buffer in self.buffers.values().chain(&self.leaving) {
            if let Err(error) = buffer.region.withdraw() {
                tracing::warn!(%error, "the name of a buffer could not be removed at the session's end");
            }
        }
    }
}
