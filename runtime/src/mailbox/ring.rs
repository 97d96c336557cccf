//! A single-producer single-consumer ring of variable-size records.
//!
//! A record is `{u32 len, u32 kind, u64 ticket, len bytes}`, little-endian, padded to 8. It never wraps: what does not fit
//! before the end of the ring is preceded by a pad record `{u32 len, u32 PAD}` that fills the rest. Positions count
//! bytes since the start and never fall; the place in the ring is the position modulo the capacity.
//!
//! The logic is generic over [`Cells`], so that loom can run it on its own atomics.

use std::sync::atomic::Ordering;

use super::{MailboxError, Word64};
use crate::memory::HostMemory;

/// Bytes of a record before its payload.
pub const RECORD_HEAD_BYTES: usize = 16;
/// Kind of the records that fill the end of the ring; the first 8 bytes of a record always fit.
const PAD: u32 = u32::MAX;
const PAD_HEAD_BYTES: u64 = 8;
const ALIGN: u64 = 8;

/// The memory of a ring: two positions and the bytes.
pub trait Cells {
    /// Size of the ring in bytes, a multiple of 8.
    fn capacity(&self) -> u64;
    /// Bytes ever written, with acquire ordering.
    fn head(&self) -> u64;
    /// Publishes what was written, with release ordering. Producer only.
    fn set_head(&self, head: u64);
    /// Bytes ever read, with acquire ordering.
    fn tail(&self) -> u64;
    /// Gives room back, with release ordering. Consumer only.
    fn set_tail(&self, tail: u64);
    /// Copies `bytes` to `at`, which the caller has checked to be inside.
    ///
    /// # Errors
    /// When it is not inside after all.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), MailboxError>;
    /// Copies bytes from `at`, which the caller has checked to be inside.
    ///
    /// # Errors
    /// When it is not inside after all.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), MailboxError>;
}

/// A ring in shared memory.
#[derive(Debug)]
pub struct SharedCells {
    head: Word64,
    tail: Word64,
    data: HostMemory,
}

impl SharedCells {
    pub(super) fn new(head: Word64, tail: Word64, data: HostMemory) -> Self {
        Self { head, tail, data }
    }
}

impl Cells for SharedCells {
    fn capacity(&self) -> u64 {
        self.data.len() as u64
    }

    fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    fn set_head(&self, head: u64) {
        self.head.store(head, Ordering::Release);
    }

    fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    fn set_tail(&self, tail: u64) {
        self.tail.store(tail, Ordering::Release);
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), MailboxError> {
        Ok(self.data.copy_in(at as usize, bytes)?)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), MailboxError> {
        Ok(self.data.copy_out(at as usize, bytes)?)
    }
}

/// What a record is, besides its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// What kind; the two sides agree on the numbers. `u32::MAX` is taken.
    pub kind: u32,
    /// To what it belongs.
    pub ticket: u64,
}

/// The largest payload that a ring of `capacity` bytes takes: one record is at most half of the ring, so that a ring that is
/// not empty for ever always gets room for it, wherever the end falls.
#[must_use]
pub fn payload_max(capacity: u64) -> u64 {
    (capacity / 2).saturating_sub(RECORD_HEAD_BYTES as u64)
}

fn record_bytes(payload: u64) -> u64 {
    (RECORD_HEAD_BYTES as u64 + payload).next_multiple_of(ALIGN)
}

/// The writing end.
#[derive(Debug)]
pub struct Producer<C> {
    cells: C,
    head: u64,
    /// Where that is in the ring.
    at: u64,
    /// The consumer's position when we last looked.
    tail_seen: u64,
}

impl<C: Cells> Producer<C> {
    /// The writing end of a ring. It starts where the ring stands, which for a new one is zero.
    pub fn new(cells: C) -> Self {
        let (head, tail_seen) = (cells.head(), cells.tail());
        let at = head % cells.capacity();
        Self {
            cells,
            head,
            at,
            tail_seen,
        }
    }

    /// The largest payload it takes, in bytes.
    pub fn payload_max(&self) -> u64 {
        payload_max(self.cells.capacity())
    }

    /// Writes one record and publishes it. `Ok(false)` when there is no room now.
    ///
    /// # Errors
    /// [`MailboxError::RecordTooLarge`], and [`MailboxError::Corrupt`] when the consumer's position cannot be.
    pub fn push(&mut self, head: RecordHead, payload: &[u8]) -> Result<bool, MailboxError> {
        let len = payload.len() as u64;
        let limit = self.payload_max().min(u64::from(u32::MAX));
        if len > limit {
            return Err(MailboxError::RecordTooLarge { len, limit });
        }
        let capacity = self.cells.capacity();
        let need = record_bytes(len);
        let to_end = capacity - self.at;
        let pad = if need > to_end { to_end } else { 0 };
        if !self.has_room(pad + need)? {
            return Ok(false);
        }
        if pad > 0 {
            let mut bytes = [0; PAD_HEAD_BYTES as usize];
            bytes[..4].copy_from_slice(&((pad - PAD_HEAD_BYTES) as u32).to_le_bytes());
            bytes[4..].copy_from_slice(&PAD.to_le_bytes());
            self.cells.write(self.at, &bytes)?;
        }
        let at = if pad > 0 { 0 } else { self.at };
        let mut bytes = [0; RECORD_HEAD_BYTES];
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&head.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&head.ticket.to_le_bytes());
        self.cells.write(at, &bytes)?;
        self.cells.write(at + RECORD_HEAD_BYTES as u64, payload)?;
        self.at = if at + need == capacity { 0 } else { at + need };
        self.head += pad + need;
        self.cells.set_head(self.head);
        Ok(true)
    }

    /// Where the next record begins; a record has been taken when the consumer stands at its end or behind it.
    pub fn position(&self) -> u64 {
        self.head
    }

    /// How far the consumer has read, or everything when what it says cannot be.
    pub fn taken(&self) -> u64 {
        let tail = self.cells.tail();
        if self.tail_seen <= tail && tail <= self.head {
            tail
        } else {
            self.head
        }
    }

    fn has_room(&mut self, need: u64) -> Result<bool, MailboxError> {
        let capacity = self.cells.capacity();
        if self.head - self.tail_seen + need <= capacity {
            return Ok(true);
        }
        let tail = self.cells.tail();
        let possible = self.tail_seen <= tail && tail <= self.head && tail % ALIGN == 0;
        if !possible {
            let must = "between its last value and the producer's position, a multiple of 8";
            return Err(MailboxError::Corrupt {
                what: "the consumer's position",
                value: tail,
                must,
            });
        }
        self.tail_seen = tail;
        Ok(self.head - tail + need <= capacity)
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer<C> {
    cells: C,
    tail: u64,
    /// Where that is in the ring.
    at: u64,
    /// The producer's position when we last looked.
    head_seen: u64,
}

impl<C: Cells> Consumer<C> {
    /// The reading end of a ring. It starts where the ring stands.
    pub fn new(cells: C) -> Self {
        let tail = cells.tail();
        let at = tail % cells.capacity();
        Self {
            cells,
            tail,
            at,
            head_seen: tail,
        }
    }

    /// True when there is nothing to read now, in one look.
    pub fn is_empty(&self) -> bool {
        self.tail == self.head_seen && self.cells.head() == self.tail
    }

    /// Reads the next record: its payload replaces the contents of `payload`. `Ok(None)` when there is none now.
    ///
    /// # Errors
    /// [`MailboxError::Corrupt`] when a position, a length or a pad cannot be. The ring is of no use then.
    pub fn pop(&mut self, payload: &mut Vec<u8>) -> Result<Option<RecordHead>, MailboxError> {
        // At most one pad precedes a record, and a pad ends exactly at the end of the ring: two rounds are enough.
        for _ in 0..2 {
            if self.tail == self.head_seen && !self.look()? {
                return Ok(None);
            }
            let capacity = self.cells.capacity();
            let (at, available) = (self.at, self.head_seen - self.tail);
            let to_end = capacity - at;
            let mut start = [0; PAD_HEAD_BYTES as usize];
            self.cells.read(at, &mut start)?;
            let (len, kind) = split_u32(start);
            if kind == PAD {
                if PAD_HEAD_BYTES + u64::from(len) != to_end || to_end > available {
                    let must = "exactly the rest of the ring";
                    return Err(MailboxError::Corrupt {
                        what: "the length of a pad",
                        value: len.into(),
                        must,
                    });
                }
                self.advance(to_end);
                continue;
            }
            let whole = record_bytes(len.into());
            if whole > available || whole > to_end || u64::from(len) > payload_max(capacity) {
                let must = "at most what was published, and half of the ring";
                return Err(MailboxError::Corrupt {
                    what: "the length of a record",
                    value: len.into(),
                    must,
                });
            }
            let mut ticket = [0; 8];
            self.cells.read(at + PAD_HEAD_BYTES, &mut ticket)?;
            payload.resize(len as usize, 0);
            self.cells.read(at + RECORD_HEAD_BYTES as u64, payload)?;
            self.advance(whole);
            return Ok(Some(RecordHead {
                kind,
                ticket: u64::from_le_bytes(ticket),
            }));
        }
        let must = "followed by a record";
        Err(MailboxError::Corrupt {
            what: "a pad",
            value: self.tail,
            must,
        })
    }

    /// Takes notice of what the producer has published; true when there is something to read.
    fn look(&mut self) -> Result<bool, MailboxError> {
        let head = self.cells.head();
        let possible = head >= self.head_seen
            && head - self.tail <= self.cells.capacity()
            && head % ALIGN == 0;
        if !possible {
            let must = "at most one ring ahead of the consumer, a multiple of 8";
            return Err(MailboxError::Corrupt {
                what: "the producer's position",
                value: head,
                must,
            });
        }
        self.head_seen = head;
        Ok(head != self.tail)
    }

    /// Goes on by bytes that were checked to end inside the ring.
    fn advance(&mut self, bytes: u64) {
        let at = self.at + bytes;
        self.at = if at == self.cells.capacity() { 0 } else { at };
        self.tail += bytes;
        self.cells.set_tail(self.tail);
    }
}

fn split_u32(bytes: [u8; 8]) -> (u32, u32) {
    let both = u64::from_le_bytes(bytes);
    // The low half is the first field: the record is little-endian.
    (both as u32, (both >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SharedRegion;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::Arc;

    fn ring(
        capacity: u64,
    ) -> (
        Arc<SharedRegion>,
        Producer<SharedCells>,
        Consumer<SharedCells>,
    ) {
        let region = SharedRegion::create_memfd(256 + capacity, true).unwrap();
        let cells = || {
            let word = |at| Word64::new(&region, at).unwrap();
            SharedCells::new(word(0), word(128), region.host(256, capacity).unwrap())
        };
        let ends = (Producer::new(cells()), Consumer::new(cells()));
        (Arc::clone(&region), ends.0, ends.1)
    }

    fn head(ticket: u64) -> RecordHead {
        RecordHead { kind: 7, ticket }
    }

    proptest! {
        #[test]
        fn records_come_out_as_they_went_in(
            capacity in prop_oneof![Just(64_u64), Just(128), Just(200), Just(4096)],
            steps in prop::collection::vec((any::<bool>(), 0..80_usize), 1..300),
        ) {
            let (_region, mut producer, mut consumer) = ring(capacity);
            let mut expected = VecDeque::new();
            let mut payload = Vec::new();
            for (ticket, (write, len)) in steps.into_iter().enumerate() {
                let ticket = ticket as u64;
                if write {
                    let bytes: Vec<u8> = (0..len).map(|n| (n as u64 * 31 + ticket) as u8).collect();
                    match producer.push(head(ticket), &bytes) {
                        Ok(true) => expected.push_back((ticket, bytes)),
                        Ok(false) => prop_assert!(!expected.is_empty(), "an empty ring has room for every record"),
                        Err(error) => {
                            let limit = payload_max(capacity);
                            prop_assert_eq!(error, MailboxError::RecordTooLarge { len: len as u64, limit });
                        }
                    }
                } else {
                    let got = consumer.pop(&mut payload).unwrap();
                    let want = expected.pop_front();
                    prop_assert_eq!(got, want.as_ref().map(|(ticket, _)| head(*ticket)));
                    if let Some((_, bytes)) = want {
                        prop_assert_eq!(&payload, &bytes);
                    }
                }
            }
        }

        #[test]
        fn rubbish_from_the_peer_is_an_error_never_a_panic(
            words in prop::collection::vec(any::<u8>(), 384..385),
            published in 0..40_u64,
        ) {
            let (region, _producer, mut consumer) = ring(128);
            region.host(0, 384).unwrap().copy_in(0, &words).unwrap();
            Word64::new(&region, 0).unwrap().store(published * 8, Ordering::Release);
            let mut payload = Vec::new();
            for _ in 0..20 {
                match consumer.pop(&mut payload) {
                    Ok(Some(_)) => prop_assert!(payload.len() <= 48),
                    Ok(None) => break,
                    Err(error) => {
                        let corrupt = matches!(error, MailboxError::Corrupt { .. });
                        prop_assert!(corrupt, "{}", error);
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn positions_that_cannot_be_are_corrupt() {
        for bad in [129_u64, 136, 1 << 40, u64::MAX, 4] {
            let (region, _producer, mut consumer) = ring(128);
            Word64::new(&region, 0)
                .unwrap()
                .store(bad, Ordering::Release);
            let error = consumer.pop(&mut Vec::new()).unwrap_err();
            assert!(
                matches!(error, MailboxError::Corrupt { what: "the producer's position", value, .. } if value == bad)
            );
        }
        for bad in [8_u64 << 20, u64::MAX, 3] {
            let (region, mut producer, _consumer) = ring(128);
            while producer.push(head(1), b"12345678").unwrap() {
                Word64::new(&region, 128)
                    .unwrap()
                    .store(0, Ordering::Release);
            }
            Word64::new(&region, 128)
                .unwrap()
                .store(bad, Ordering::Release);
            let error = producer.push(head(1), b"12345678").unwrap_err();
            assert!(
                matches!(error, MailboxError::Corrupt { what: "the consumer's position", value, .. } if value == bad)
            );
        }
    }

    #[test]
    fn two_threads_pass_a_million_bytes_in_order() {
        let (_region, mut producer, mut consumer) = ring(4096);
        let writer = std::thread::spawn(move || {
            for ticket in 0..20_000_u64 {
                let bytes = [ticket as u8; 50];
                while !producer
                    .push(head(ticket), &bytes[..(ticket % 50) as usize])
                    .unwrap()
                {
                    std::thread::yield_now();
                }
            }
        });
        let (mut next, mut payload) = (0, Vec::new());
        while next < 20_000 {
            if let Some(got) = consumer.pop(&mut payload).unwrap() {
                assert_eq!(got, head(next));
                assert_eq!(payload, vec![next as u8; (next % 50) as usize]);
                next += 1;
            } else {
                std::thread::yield_now();
            }
        }
        writer.join().unwrap();
    }
}
