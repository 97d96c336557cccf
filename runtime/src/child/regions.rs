//! The regions a child has mapped: inherited arenas, and buffers whose descriptors came later over the socket (design §15.1).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::memory::SharedRegion;
use crate::process::{recv_fd, ProcessError};

/// A region message: id, length, writable. 24 bytes.
pub(crate) const REGION_MESSAGE_BYTES: usize = 24;

/// What goes with a descriptor over the socket.
pub(crate) fn region_message(region: &SharedRegion) -> [u8; REGION_MESSAGE_BYTES] {
    let mut message = [0; REGION_MESSAGE_BYTES];
    message[..8].copy_from_slice(&region.id().to_le_bytes());
    message[8..16].copy_from_slice(&region.len().to_le_bytes());
    message[16..].copy_from_slice(&u64::from(region.is_writable()).to_le_bytes());
    message
}

/// Why a region is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegionError {
    #[error(
        "region {0:x} was not sent by the parent in time; the mailbox and the socket disagree"
    )]
    Missing(u64),
    #[error("the region message has {0} bytes, not {REGION_MESSAGE_BYTES}, or no descriptor")]
    BadMessage(usize),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
}

/// All regions of this child.
pub(crate) struct RegionTable {
    regions: HashMap<u64, Arc<SharedRegion>>,
    socket: Arc<OwnedFd>,
}

impl RegionTable {
    pub(crate) fn new(inherited: &[Arc<SharedRegion>], socket: Arc<OwnedFd>) -> Self {
        let regions = inherited
            .iter()
            .map(|region| (region.id(), Arc::clone(region)))
            .collect();
        Self { regions, socket }
    }

    /// The region, read from the socket if it is new: the parent sends the descriptor before the first record that names it.
    pub(crate) fn get(
        &mut self,
        id: u64,
        deadline: Instant,
    ) -> Result<Arc<SharedRegion>, RegionError> {
        while !self.regions.contains_key(&id) {
            if !self.receive(deadline)? {
                return Err(RegionError::Missing(id));
            }
        }
        self.regions
            .get(&id)
            .cloned()
            .ok_or(RegionError::Missing(id))
    }

    /// Takes one region from the socket; false at the deadline or at its end.
    fn receive(&mut self, deadline: Instant) -> Result<bool, RegionError> {
        let mut message = [0; REGION_MESSAGE_BYTES];
        let Some((count, fd)) = recv_fd(&*self.socket, &mut message, deadline)? else {
            return Ok(false);
        };
        let (Some(fd), REGION_MESSAGE_BYTES) = (fd, count) else {
            return Err(RegionError::BadMessage(count));
        };
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&message[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let region = SharedRegion::from_fd(word(0), fd, word(8), word(16) != 0)?;
        self.regions.insert(region.id(), region);
        Ok(true)
    }

    /// Forgets a region; it is unmapped when no view of it is left. One that was sent and never used is still in the socket.
    ///
    /// # Errors
    /// As [`RegionTable::get`].
    pub(crate) fn drop_region(&mut self, id: u64) -> Result<(), RegionError> {
        while !self.regions.contains_key(&id) && self.receive(Instant::now())? {}
        self.regions.remove(&id);
        Ok(())
    }

    /// The regions that children of this child are to inherit.
    pub(crate) fn inherited(&self) -> Vec<Arc<SharedRegion>> {
        self.regions.values().cloned().collect()
    }
}
