//! Remote buffers of fake sessions, over memory of this process.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use echelon_wire::buffer::{AccessFlags, AddressSpace, RemoteTensorDesc};
use echelon_wire::frame::control::transfer::{ExportResult, ImportResult};
use echelon_wire::id::{BufferId, ExportId, Generation, ImportId, WorkerId};
use parking_lot::Mutex;

use super::unsupported;
use crate::endpoint::{
    BufferKey, ControlFailure, ControlReply, ControlRequest, OutboundTensor, Place,
};
use crate::mailbox::Bell;
use crate::memory::HostMemory;

/// What fake sessions of one test share: the bell, the exported bytes, and a list of what must never happen.
pub struct FakeWorld {
    bell: Arc<Bell>,
    buffers: Mutex<HashMap<(WorkerId, BufferKey), HostMemory>>,
    /// Imports by owner: as long as there is one, the owner's buffer must stay.
    imports: Mutex<HashMap<(WorkerId, BufferKey), u64>>,
    violations: Mutex<Vec<String>>,
    apart: AtomicBool,
}

impl FakeWorld {
    /// A world whose fakes ring `bell`.
    #[must_use]
    pub fn new(bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            bell,
            buffers: Mutex::default(),
            imports: Mutex::default(),
            violations: Mutex::default(),
            apart: AtomicBool::new(false),
        })
    }

    /// From now on imports are fetched, as between hosts.
    pub fn put_apart(&self) {
        self.apart.store(true, Ordering::SeqCst);
    }

    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Frees of what was in use, and uses of what was freed.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    fn violation(&self, text: String) {
        self.violations.lock().push(text);
    }
}

struct Window {
    owner: WorkerId,
    key: BufferKey,
    offset: u64,
    bytes: HostMemory,
}

/// The buffers and imports of one session.
pub(super) struct Buffers {
    worker: WorkerId,
    world: Arc<FakeWorld>,
    owned: HashMap<BufferKey, HostMemory>,
    imports: HashMap<ImportId, Window>,
    /// Imports that were released: doing so again is harmless.
    released: HashSet<(ImportId, WorkerId, BufferKey)>,
    next: u64,
}

impl Buffers {
    pub(super) fn new(worker: WorkerId, world: Arc<FakeWorld>) -> Self {
        Self {
            worker,
            world,
            owned: HashMap::new(),
            imports: HashMap::new(),
            released: HashSet::new(),
            next: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.owned.len() + self.imports.len()
    }

    /// The session is gone, and everything of it.
    pub(super) fn clear(&mut self) {
        for key in std::mem::take(&mut self.owned).into_keys() {
            self.world.buffers.lock().remove(&(self.worker, key));
        }
        for window in std::mem::take(&mut self.imports).into_values() {
            self.forget_import(&window);
        }
    }

    fn forget_import(&self, window: &Window) {
        let mut imports = self.world.imports.lock();
        if let Some(count) = imports.get_mut(&(window.owner, window.key)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Says so when a task names what is not there: the parent must never let that happen.
    pub(super) fn check_live(&self, tensor: &OutboundTensor) -> Result<(), String> {
        let found = self.resolve(tensor).map(drop);
        if let Err(text) = &found {
            self.world.violation(format!("a task was sent: {text}"));
        }
        found
    }

    /// The bytes that a task would see.
    pub(super) fn resolve(&self, tensor: &OutboundTensor) -> Result<HostMemory, String> {
        match &tensor.place {
            Place::Empty => Ok(HostMemory::from_vec(Vec::new())),
            Place::Inline(memory) => Ok(memory.clone()),
            Place::Shared { region, offset, .. } => region
                .host(*offset, tensor.meta.nbytes().unwrap_or(0))
                .map_err(|error| error.to_string()),
            Place::Remote(desc) => self.resolve_remote(desc),
        }
    }

    fn resolve_remote(&self, desc: &RemoteTensorDesc) -> Result<HostMemory, String> {
        let key = BufferKey {
            buffer: desc.buffer_id,
            generation: desc.generation,
        };
        let (bytes, base) = if desc.address_space == AddressSpace::RemoteDevice {
            let bytes = self
                .owned
                .get(&key)
                .filter(|_| desc.owner_worker_id == self.worker);
            (bytes, 0)
        } else {
            let window = self.imports.get(&ImportId(desc.rkey_or_token));
            let window = window.filter(|w| (w.owner, w.key) == (desc.owner_worker_id, key));
            (window.map(|w| &w.bytes), window.map_or(0, |w| w.offset))
        };
        let bytes = bytes.ok_or_else(|| format!("{key:?} is not here"))?;
        let offset = desc.offset.checked_sub(base);
        let offset =
            offset.ok_or_else(|| format!("offset {} is before the window", desc.offset))?;
        bytes
            .slice(offset as usize, desc.nbytes as usize)
            .map_err(|error| error.to_string())
    }

    fn names(&self, tensor: &OutboundTensor, key: BufferKey, import: Option<ImportId>) -> bool {
        let Place::Remote(desc) = &tensor.place else {
            return false;
        };
        let same = (desc.buffer_id, desc.generation) == (key.buffer, key.generation);
        same && match import {
            None => desc.address_space == AddressSpace::RemoteDevice,
            Some(import) => desc.rkey_or_token == import.0,
        }
    }

    pub(super) fn carry(
        &mut self,
        name: &str,
        request: ControlRequest,
        in_flight: &[&OutboundTensor],
    ) -> Result<ControlReply, ControlFailure> {
        if self.worker.0 < 0 {
            return Err(unsupported(name, "a remote buffer"));
        }
        match request {
            ControlRequest::Alloc { nbytes } => self.alloc(nbytes),
            ControlRequest::Free { buffer } => Ok(self.free(name, buffer, in_flight)),
            ControlRequest::CopyTo {
                buffer,
                offset,
                source,
            } => {
                let part = self.part(buffer, offset, source.len())?;
                copied(part.copy_from(&source))
            }
            ControlRequest::CopyFrom {
                buffer,
                offset,
                destination,
            } => {
                let part = self.part(buffer, offset, destination.len())?;
                copied(destination.copy_from(&part))
            }
            ControlRequest::Export {
                buffer,
                offset,
                nbytes,
                access,
            } => self.export(buffer, offset, nbytes, access),
            ControlRequest::Import { export, access } => self.import(&export, access),
            ControlRequest::ReleaseImport {
                owner,
                buffer,
                import,
            } => self.release(name, owner, buffer, import, in_flight),
            ControlRequest::Fence { .. } => Ok(ControlReply::Done),
            _ => Err(unsupported(name, "that control")),
        }
    }

    fn alloc(&mut self, nbytes: u64) -> Result<ControlReply, ControlFailure> {
        if nbytes > 1 << 30 {
            return Err(ControlFailure::Refused(format!(
                "{nbytes} bytes, limit 1 GiB"
            )));
        }
        self.next += 1;
        let key = BufferKey {
            buffer: BufferId(self.next),
            generation: Generation(1),
        };
        let bytes = HostMemory::from_vec(vec![0; nbytes as usize]);
        self.world
            .buffers
            .lock()
            .insert((self.worker, key), bytes.clone());
        self.owned.insert(key, bytes);
        Ok(ControlReply::Allocated {
            buffer: key,
            remote_addr: 0xfa_ce00,
            rkey: 0,
        })
    }

    fn free(&mut self, name: &str, key: BufferKey, in_flight: &[&OutboundTensor]) -> ControlReply {
        let uses = |tensor: &&&OutboundTensor| self.names(tensor, key, None);
        let users = in_flight.iter().filter(uses).count();
        let imports = self.world.imports.lock();
        let importers = imports.get(&(self.worker, key)).copied().unwrap_or(0);
        drop(imports);
        if users > 0 || importers > 0 {
            self.world.violation(format!(
                "{name}: {key:?} was freed with {users} tasks and {importers} imports on it"
            ));
        }
        self.owned.remove(&key);
        self.world.buffers.lock().remove(&(self.worker, key));
        ControlReply::Done
    }

    fn export(
        &mut self,
        key: BufferKey,
        offset: u64,
        nbytes: u64,
        access: AccessFlags,
    ) -> Result<ControlReply, ControlFailure> {
        self.part(key, offset, nbytes as usize)?;
        self.next += 1;
        Ok(ControlReply::Exported(Box::new(ExportResult {
            owner_worker_id: self.worker,
            buffer_id: key.buffer,
            generation: key.generation,
            address_space: AddressSpace::RemoteWindow,
            offset,
            nbytes,
            export_id: ExportId(self.next),
            remote_addr: 0xfa_ce00,
            rkey_or_token: self.next,
            ub_ldst_va: 0,
            access_flags: access,
            transport_profile: Cow::Borrowed("sim"),
            transport_descriptor: Cow::Borrowed(b"fake"),
        })))
    }

    fn part(&self, key: BufferKey, offset: u64, len: usize) -> Result<HostMemory, ControlFailure> {
        let bytes = self.owned.get(&key).ok_or_else(|| {
            self.world
                .violation(format!("a control names {key:?}, which is not here"));
            ControlFailure::Refused(format!("{key:?} is not here"))
        })?;
        bytes
            .slice(offset as usize, len)
            .map_err(|error| ControlFailure::Refused(error.to_string()))
    }

    fn import(
        &mut self,
        export: &ExportResult<'static>,
        access: AccessFlags,
    ) -> Result<ControlReply, ControlFailure> {
        let key = BufferKey {
            buffer: export.buffer_id,
            generation: export.generation,
        };
        let owner = export.owner_worker_id;
        let whole = self.world.buffers.lock().get(&(owner, key)).cloned();
        let refused = |text: String| ControlFailure::Refused(text);
        let whole = whole.ok_or_else(|| refused(format!("{key:?} of {owner:?} does not open")))?;
        let bytes = whole
            .slice(export.offset as usize, export.nbytes as usize)
            .map_err(|error| refused(error.to_string()))?;
        self.next += 1;
        let import = ImportId(self.next);
        *self.world.imports.lock().entry((owner, key)).or_default() += 1;
        self.imports.insert(
            import,
            Window {
                owner,
                key,
                offset: export.offset,
                bytes,
            },
        );
        Ok(ControlReply::Imported(Box::new(ImportResult {
            importer_worker_id: self.worker,
            owner_worker_id: owner,
            buffer_id: export.buffer_id,
            generation: export.generation,
            import_id: import,
            address_space: AddressSpace::RemoteWindow,
            offset: export.offset,
            nbytes: export.nbytes,
            remote_addr: 0,
            rkey_or_token: import.0,
            ub_ldst_va: 0,
            access_flags: access,
            transport_profile: Cow::Borrowed(match self.world.apart.load(Ordering::SeqCst) {
                true => "tcp",
                false => "sim",
            }),
            import_descriptor: Cow::Borrowed(b""),
        })))
    }

    fn release(
        &mut self,
        name: &str,
        owner: WorkerId,
        key: BufferKey,
        import: ImportId,
        in_flight: &[&OutboundTensor],
    ) -> Result<ControlReply, ControlFailure> {
        if in_flight
            .iter()
            .any(|tensor| self.names(tensor, key, Some(import)))
        {
            self.world.violation(format!(
                "{name}: {import:?} was released while a task uses it"
            ));
        }
        // An unknown import is an error, unlike an unknown buffer (slr3-v1 §5).
        match self.imports.remove(&import) {
            Some(window) if (window.owner, window.key) == (owner, key) => {
                self.forget_import(&window);
                self.released.insert((import, owner, key));
                Ok(ControlReply::Done)
            }
            None if self.released.contains(&(import, owner, key)) => Ok(ControlReply::Done),
            _ => Err(ControlFailure::Refused(format!("there is no {import:?}"))),
        }
    }
}

fn copied(result: Result<(), crate::memory::MemoryError>) -> Result<ControlReply, ControlFailure> {
    result
        .map(|()| ControlReply::Done)
        .map_err(|error| ControlFailure::Refused(error.to_string()))
}
