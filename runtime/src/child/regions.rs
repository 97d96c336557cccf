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
    #[error("region {0:x} was not sent by the parent; the mailbox and the socket disagree")]
    Missing(u64),
    #[error(
        "region {id:x} came a second time as {len} bytes, writable {writable}; it is {known_len} bytes, writable {known_writable} \
         here: the parent has mixed up two regions"
    )]
    Conflict {
        id: u64,
        len: u64,
        writable: bool,
        known_len: u64,
        known_writable: bool,
    },
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
    /// The region that was asked for last: the tensors of most tasks are all in one arena.
    last: Option<Arc<SharedRegion>>,
    socket: Arc<OwnedFd>,
}

impl RegionTable {
    pub(crate) fn new(inherited: &[Arc<SharedRegion>], socket: Arc<OwnedFd>) -> Self {
        let regions = inherited
            .iter()
            .map(|region| (region.id(), Arc::clone(region)))
            .collect();
        Self {
            regions,
            last: None,
            socket,
        }
    }

    /// The region, read from the socket if it is new: the parent sends the descriptor before the first record that names it,
    /// so it is there already and nothing is waited for.
    pub(crate) fn get(&mut self, id: u64) -> Result<Arc<SharedRegion>, RegionError> {
        if let Some(last) = self.last.as_ref().filter(|last| last.id() == id) {
            return Ok(Arc::clone(last));
        }
        while !self.regions.contains_key(&id) {
            if !self.receive()? {
                return Err(RegionError::Missing(id));
            }
        }
        let found = self.regions.get(&id).ok_or(RegionError::Missing(id))?;
        self.last = Some(Arc::clone(found));
        Ok(Arc::clone(found))
    }

    /// Takes one region from the socket; false when none is there.
    fn receive(&mut self) -> Result<bool, RegionError> {
        let mut message = [0; REGION_MESSAGE_BYTES];
        let Some((count, fd)) = recv_fd(&*self.socket, &mut message, Instant::now())? else {
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
        let (id, len, writable) = (word(0), word(8), word(16) != 0);
        // What tasks have views of stays what it was; the same once more is no news.
        if let Some(known) = self.regions.get(&id) {
            let (known_len, known_writable) = (known.len(), known.is_writable());
            if (known_len, known_writable) == (len, writable) {
                return Ok(true);
            }
            return Err(RegionError::Conflict {
                id,
                len,
                writable,
                known_len,
                known_writable,
            });
        }
        let region = SharedRegion::from_fd(id, fd, len, writable)?;
        self.regions.insert(id, region);
        Ok(true)
    }

    /// Forgets a region; it is unmapped when no view of it is left. One that was sent and never used is still in the socket.
    ///
    /// # Errors
    /// As [`RegionTable::get`].
    pub(crate) fn drop_region(&mut self, id: u64) -> Result<(), RegionError> {
        while !self.regions.contains_key(&id) && self.receive()? {}
        self.regions.remove(&id);
        self.last = None;
        Ok(())
    }

    /// The regions that children of this child are to inherit.
    pub(crate) fn inherited(&self) -> Vec<Arc<SharedRegion>> {
        self.regions.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{region_socket_pair, send_fd};

    /// Sends `region` under words of the test's own.
    fn send(socket: &OwnedFd, region: &SharedRegion, id: u64, len: u64, writable: bool) {
        let words = [id, len, u64::from(writable)];
        let message: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        assert!(send_fd(socket, &message, region.fd()).unwrap());
    }

    #[test]
    fn r_120_a_second_region_under_the_same_identity_is_refused_and_the_first_stays() {
        let (parent, child) = region_socket_pair().unwrap();
        let mut table = RegionTable::new(&[], Arc::new(child));
        let first = SharedRegion::create_memfd(8192, true).unwrap();
        let other = SharedRegion::create_memfd(8192, true).unwrap();
        send(&parent, &first, 7, 8192, true);
        first.host(0, 1).unwrap().copy_in(0, b"a").unwrap();
        let seen = table.get(7).unwrap();
        for (len, writable) in [(4096, true), (8192, false)] {
            send(&parent, &other, 7, len, writable);
            // The next one that is asked for is behind it on the socket.
            let error = table.get(8).unwrap_err();
            assert!(
                matches!(error, RegionError::Conflict { id: 7, .. }),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains(&len.to_string()) && text.contains("8192"),
                "{text}"
            );
        }
        send(&parent, &other, 7, 8192, true);
        send(&parent, &other, 8, 8192, true);
        assert!(table.get(8).is_ok(), "the same once more is no conflict");
        let still = table.get(7).unwrap();
        assert!(Arc::ptr_eq(&seen, &still));
        assert_eq!(still.host(0, 1).unwrap().to_vec(), b"a");
    }

    #[test]
    fn r_120_a_region_smaller_than_it_is_said_to_be_is_refused() {
        let (parent, child) = region_socket_pair().unwrap();
        let mut table = RegionTable::new(&[], Arc::new(child));
        let region = SharedRegion::create_memfd(4096, true).unwrap();
        send(&parent, &region, 7, 4097, true);
        let error = table.get(7).unwrap_err();
        assert!(matches!(error, RegionError::Memory(_)), "{error}");
        assert!(error.to_string().contains("4097"), "{error}");
    }
}
