//! Remote buffers as the parent sees them: opaque handles with an owner, a generation and an access mask (design §7).
//!
//! A handle knows its worker and session, so that a handle of another `Worker` or of an earlier session is refused locally
//! (design §15.5). Slots pin the handles they name and imports pin their owner; a free asked for earlier is carried out when the
//! last pin goes.

use std::sync::Arc;

use echelon_wire::buffer::{AccessFlags, AddressSpace, RemoteTensorDesc};
use echelon_wire::frame::control::transfer::ExportResult;
use echelon_wire::id::{BufferId, Generation, ImportId, WorkerId};
use parking_lot::Mutex;

use crate::endpoint::BufferKey;
use crate::error::Error;
use crate::graph::{EndpointId, Space};
use crate::tensor::Tag;

/// What is fixed about a buffer.
#[derive(Debug)]
pub(crate) struct BufferFacts {
    /// The `Worker` that the handle belongs to.
    pub(crate) owner_uid: u64,
    /// Where the buffer or import lives.
    pub(crate) endpoint: EndpointId,
    /// NEXT_LEVEL id of that worker.
    pub(crate) worker: WorkerId,
    /// Session in which the buffer or import lives.
    pub(crate) session: u64,
    /// Session of the *owner* of the bytes.
    pub(crate) owner_session: u64,
    /// NEXT_LEVEL id of the owner of the bytes.
    pub(crate) owner_worker: WorkerId,
    pub(crate) key: BufferKey,
    /// First byte of the window in the owner's buffer (0 for an owner handle).
    pub(crate) base: u64,
    pub(crate) nbytes: u64,
    pub(crate) access: AccessFlags,
    pub(crate) address_space: AddressSpace,
    pub(crate) remote_addr: u64,
    pub(crate) rkey: u64,
    /// True for an import whose bytes are moved for each task, because its owner is on another host.
    pub(crate) fetched: bool,
    /// Set on imports: the id, and the owner's handle, which stays pinned as long as the import lives.
    pub(crate) import: Option<(ImportId, RemoteBuffer)>,
}

/// What changes about a buffer.
#[derive(Debug, Default)]
struct BufferState {
    released: bool,
    pins: u64,
    /// The free or release control was handed to the lane.
    sent: bool,
    /// It was refused before.
    refused: bool,
}

#[derive(Debug)]
struct BufferInner {
    facts: BufferFacts,
    state: Mutex<BufferState>,
}

/// A remote buffer, or the import of one. Opaque: there is no public constructor and nothing of its address shows.
#[derive(Clone)]
pub struct RemoteBuffer(Arc<BufferInner>);

impl std::fmt::Debug for RemoteBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteBuffer")
            .field("worker_id", &self.worker_id())
            .field("nbytes", &self.nbytes())
            .field("is_imported", &self.is_imported())
            .field("released", &self.released())
            .finish_non_exhaustive()
    }
}

impl RemoteBuffer {
    pub(crate) fn new(facts: BufferFacts) -> Self {
        if let Some((_, owner)) = &facts.import {
            owner.pin_raw();
        }
        Self(Arc::new(BufferInner {
            facts,
            state: Mutex::new(BufferState::default()),
        }))
    }

    pub(crate) fn facts(&self) -> &BufferFacts {
        &self.0.facts
    }

    /// NEXT_LEVEL id of the worker that the handle is used on.
    #[must_use]
    pub fn worker_id(&self) -> i32 {
        self.0.facts.worker.0
    }

    /// NEXT_LEVEL id of the worker that owns the bytes.
    #[must_use]
    pub fn owner_worker_id(&self) -> i32 {
        self.0.facts.owner_worker.0
    }

    /// Size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.0.facts.nbytes
    }

    /// REMOTE_DEVICE for an owner handle, the window space of the import otherwise.
    #[must_use]
    pub fn address_space(&self) -> AddressSpace {
        self.0.facts.address_space
    }

    /// What tasks may do with it.
    #[must_use]
    pub fn access(&self) -> AccessFlags {
        self.0.facts.access
    }

    /// True for the result of `remote_import`.
    #[must_use]
    pub fn is_imported(&self) -> bool {
        self.0.facts.import.is_some()
    }

    /// True after `remote_free` or `remote_release_import`.
    #[must_use]
    pub fn released(&self) -> bool {
        self.0.state.lock().released
    }

    /// The same buffer?
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Dependency identity: owner's session, buffer and generation (design §15.5).
    pub(crate) fn space(&self) -> Space {
        let facts = &self.0.facts;
        Space::Remote {
            session: facts.owner_session,
            buffer: facts.key.buffer.0,
            generation: facts.key.generation.0,
        }
    }

    /// Refuses a released handle.
    pub(crate) fn check_live(&self, what: &'static str) -> Result<(), Error> {
        if self.released() {
            return Err(Error::handle(
                what,
                format!(
                    "the {} on worker {} was released; make a new one",
                    self.noun(),
                    self.worker_id()
                ),
            ));
        }
        Ok(())
    }

    /// Why a session that has ended makes the handle useless: `now` tells which session is at an endpoint. The owner of an import
    /// counts too, whose bytes went with its session.
    pub(crate) fn ended(&self, now: impl Fn(EndpointId) -> Option<u64>) -> Option<String> {
        let facts = &self.0.facts;
        let owner = facts.import.as_ref().map(|(_, owner)| owner.facts());
        let ended = std::iter::once(facts)
            .chain(owner)
            .find(|facts| now(facts.endpoint) != Some(facts.session))?;
        Some(format!(
            "the {} belongs to an ended session of worker {}; allocate again",
            self.noun(),
            ended.worker
        ))
    }

    /// Refuses a tag that the access mask does not cover.
    pub(crate) fn check_tag(&self, tag: Tag) -> Result<(), Error> {
        let needed = tag.needs();
        if self.access().contains(needed) {
            return self.check_tag_across_hosts(tag);
        }
        Err(Error::handle(
            "tag",
            format!(
                "{} needs {} access and this {} on worker {} allows only {}; export it with more",
                tag.name(),
                access_name(needed),
                self.noun(),
                self.worker_id(),
                access_name(self.access()),
            ),
        ))
    }

    /// Refuses what a write-back of a range cannot do (design §15.5).
    fn check_tag_across_hosts(&self, tag: Tag) -> Result<(), Error> {
        let reason = match tag {
            _ if !self.0.facts.fetched => return Ok(()),
            Tag::NoDep => {
                "NO_DEP on an import from another host: writing it back would lose what others write meanwhile; use INOUT, or submit \
                 to the owner"
            }
            Tag::OutputExisting if !self.access().contains(AccessFlags::READ) => {
                "OUTPUT_EXISTING on an import from another host needs read access too, for what the task leaves as it is; export \
                 it readwrite, or use OUTPUT"
            }
            _ => return Ok(()),
        };
        Err(Error::handle("tag", reason))
    }

    /// Refuses a range outside the handle; overflow-safe.
    pub(crate) fn check_range(
        &self,
        what: &'static str,
        offset: u64,
        nbytes: u64,
    ) -> Result<(), Error> {
        match offset.checked_add(nbytes) {
            Some(end) if end <= self.nbytes() => Ok(()),
            _ => Err(Error::argument(
                what,
                format!(
                    "offset {offset} + {nbytes} bytes is outside the {} of {} bytes",
                    self.noun(),
                    self.nbytes()
                ),
            )),
        }
    }

    /// The descriptor of `nbytes` at `offset` (slr3-v1 §4.5).
    pub(crate) fn descriptor(&self, offset: u64, nbytes: u64) -> RemoteTensorDesc {
        let facts = &self.0.facts;
        RemoteTensorDesc {
            address_space: facts.address_space,
            owner_worker_id: facts.owner_worker,
            buffer_id: facts.key.buffer,
            offset: facts.base + offset,
            nbytes,
            remote_addr: facts.remote_addr,
            rkey_or_token: facts
                .import
                .as_ref()
                .map_or(facts.rkey, |(import, _)| import.0),
            generation: facts.key.generation,
            inline_payload_offset: 0,
            inline_payload_len: 0,
            flags: 0,
        }
    }

    fn noun(&self) -> &'static str {
        if self.is_imported() {
            "import"
        } else {
            "buffer"
        }
    }

    /// Holds a buffer that is already held by the caller.
    pub(crate) fn pin_raw(&self) {
        self.0.state.lock().pins += 1;
    }

    /// Holds the buffer for a task or a control; fails on a released one.
    pub(crate) fn pin(&self, what: &'static str) -> Result<(), Error> {
        let mut state = self.0.state.lock();
        if state.released {
            drop(state);
            return self.check_live(what);
        }
        state.pins += 1;
        Ok(())
    }

    /// Lets go of a pin. True when the physical free or release is due now.
    #[must_use]
    pub(crate) fn unpin(&self) -> bool {
        let mut state = self.0.state.lock();
        state.pins = state.pins.saturating_sub(1);
        take_due(&mut state)
    }

    /// Marks it released. True when the physical free or release is due now; a second call on a released handle is an error.
    pub(crate) fn release(&self, what: &'static str) -> Result<bool, Error> {
        let mut state = self.0.state.lock();
        if state.released {
            drop(state);
            self.check_live(what)?;
            return Ok(false);
        }
        state.released = true;
        Ok(take_due(&mut state))
    }

    /// The control failed: the release is due again at the next flush.
    pub(crate) fn release_failed(&self) {
        let mut state = self.0.state.lock();
        state.sent = false;
        state.refused = true;
    }

    /// Whether a release was refused before: then it may have been carried out all the same.
    pub(crate) fn release_was_refused(&self) -> bool {
        self.0.state.lock().refused
    }
}

fn take_due(state: &mut BufferState) -> bool {
    let due = state.released && state.pins == 0 && !state.sent;
    if due {
        state.sent = true;
    }
    due
}

/// `read`, `write` or `readwrite`.
#[must_use]
pub fn access_name(access: AccessFlags) -> &'static str {
    match (
        access.contains(AccessFlags::READ),
        access.contains(AccessFlags::WRITE),
    ) {
        (true, true) => "readwrite",
        (true, false) => "read",
        (false, true) => "write",
        (false, false) => "no",
    }
}

/// What `remote_export` returns: enough to import, nothing to look at.
#[derive(Clone)]
pub struct RemoteExport(Arc<ExportFacts>);

pub(crate) struct ExportFacts {
    pub(crate) owner: RemoteBuffer,
    pub(crate) result: ExportResult<'static>,
    pub(crate) access: AccessFlags,
}

impl std::fmt::Debug for RemoteExport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteExport")
            .field("owner_worker_id", &self.owner_worker_id())
            .field("offset", &self.offset())
            .field("nbytes", &self.nbytes())
            .finish_non_exhaustive()
    }
}

impl RemoteExport {
    pub(crate) fn new(facts: ExportFacts) -> Self {
        Self(Arc::new(facts))
    }

    pub(crate) fn facts(&self) -> &ExportFacts {
        &self.0
    }

    /// NEXT_LEVEL id of the owner.
    #[must_use]
    pub fn owner_worker_id(&self) -> i32 {
        self.0.owner.worker_id()
    }

    /// First byte in the owner's buffer.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.result.offset
    }

    /// Size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.0.result.nbytes
    }

    /// What importers may ask for.
    #[must_use]
    pub fn access(&self) -> AccessFlags {
        self.0.access
    }

    /// How importers reach the bytes: `sim`, shared memory of one host, or `tcp`, which from other hosts is a connection to the owner.
    #[must_use]
    pub fn transport_profile(&self) -> &str {
        &self.0.result.transport_profile
    }
}

/// Identity of a buffer from raw numbers of the wire.
pub(crate) fn buffer_key(buffer: u64, generation: u64) -> BufferKey {
    BufferKey {
        buffer: BufferId(buffer),
        generation: Generation(generation),
    }
}
