//! One sparse memfd that hands out blocks: the memory of `alloc`, of staging and of inline payloads.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::extents::Extents;
use super::region::allocate_pages;
use super::spare::Spare;
use super::{limit, HostMemory, MemoryError, SharedRegion};

/// Pages are allocated in steps of this many bytes, so that small blocks do not cost a system call each.
const COMMIT_STEP: u64 = 1 << 20;
/// Blocks from this size on get their pages with their bytes.
const FILL_FROM: u64 = 1 << 20;
/// The size of an arena is a multiple of this many bytes.
const PAGE: u64 = 4096;

/// An allocator over one [`SharedRegion`] that all children of a `Worker` inherit (design §15.1).
///
/// The region is as large as the limit, but a page costs nothing until a block first covers it; it is then allocated with
/// `fallocate`, so running out is [`MemoryError::Exhausted`] or [`MemoryError::NoSpace`] and never a SIGBUS.
#[derive(Debug)]
pub struct Arena {
    region: Arc<SharedRegion>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    extents: Extents,
    /// Small blocks that are free and not in `extents`.
    spare: Spare,
    /// Pages below this offset are allocated. Best fit takes the low end of extents, so this is nearly the high-water mark
    /// of use.
    committed: u64,
}

impl State {
    fn free(&self) -> u64 {
        self.extents.free() + self.spare.bytes()
    }

    /// Takes an extent; what is spare is joined with it when nothing else is large enough.
    fn take(&mut self, reserved: u64) -> Option<u64> {
        let found = self.extents.take(reserved);
        if found.is_some() || self.spare.bytes() == 0 {
            return found;
        }
        for (offset, len) in self.spare.drain() {
            self.extents.give(offset, len);
        }
        self.extents.take(reserved)
    }

    fn give(&mut self, offset: u64, reserved: u64) {
        if !self.spare.keep(offset, reserved) {
            self.extents.give(offset, reserved);
        }
    }
}

impl Arena {
    /// An arena of at most `limit` bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// [`MemoryError::BadSize`] for zero or more than an address space holds, [`MemoryError::Os`].
    pub fn create(limit: u64) -> Result<Arc<Self>, MemoryError> {
        let size = limit.checked_next_multiple_of(PAGE);
        let size = size.ok_or(MemoryError::BadSize {
            len: limit,
            max: isize::MAX as u64,
        })?;
        let region = SharedRegion::create_memfd(size, false)?;
        let state = Mutex::new(State {
            extents: Extents::new(size),
            spare: Spare::default(),
            committed: 0,
        });
        Ok(Arc::new(Self { region, state }))
    }

    /// Half of the smaller of available memory and control-group room, in bytes (design §15.7); at least 64 MiB.
    #[must_use]
    pub fn default_limit() -> u64 {
        limit::default_limit()
    }

    /// A block of `nbytes` bytes, aligned to 64; zero is allowed. Contents are undefined: what an earlier block left.
    ///
    /// # Errors
    /// [`MemoryError::Exhausted`] when no free extent is large enough, [`MemoryError::NoSpace`] when the system has no
    /// pages left below the limit.
    pub fn alloc(self: &Arc<Self>, nbytes: u64) -> Result<Arc<ArenaBlock>, MemoryError> {
        self.take(nbytes, true)
    }

    /// As [`Arena::alloc`], for a block that [`ArenaBlock::fill`] fills before anybody looks at it. Pages that were never used are then
    /// allocated and filled in one go, which is half the work of a large block.
    ///
    /// # Errors
    /// As [`Arena::alloc`]; that there are no pages may also be found when it is filled.
    pub fn alloc_to_fill(self: &Arc<Self>, nbytes: u64) -> Result<Arc<ArenaBlock>, MemoryError> {
        self.take(nbytes, nbytes < FILL_FROM)
    }

    fn take(self: &Arc<Self>, nbytes: u64, commit: bool) -> Result<Arc<ArenaBlock>, MemoryError> {
        let block = |offset, reserved| {
            Arc::new(ArenaBlock {
                offset,
                len: nbytes,
                reserved,
                arena: Arc::clone(self),
            })
        };
        if nbytes == 0 {
            return Ok(block(0, 0));
        }
        let mut state = self.state.lock();
        let exhausted = |state: &State| MemoryError::Exhausted {
            requested: nbytes,
            limit: self.region.len(),
            in_use: self.region.len() - state.free(),
        };
        let reserved = Extents::rounded(nbytes).ok_or_else(|| exhausted(&state))?;
        if let Some(offset) = state.spare.take(reserved) {
            drop(state);
            return Ok(block(offset, reserved));
        }
        let offset = state.take(reserved).ok_or_else(|| exhausted(&state))?;
        let end = offset + reserved;
        if end > state.committed {
            let room = if commit {
                self.commit(&mut state, end)
            } else {
                limit::check_room(end - state.committed.max(offset))
            };
            if let Err(error) = room {
                state.extents.give(offset, reserved);
                return Err(error);
            }
        }
        drop(state);
        Ok(block(offset, reserved))
    }

    /// Allocates the pages up to `end`, a step further if there is room.
    fn commit(&self, state: &mut State, end: u64) -> Result<(), MemoryError> {
        let from = state.committed;
        let generous = end.next_multiple_of(COMMIT_STEP).min(self.region.len());
        let exact = end.next_multiple_of(PAGE).min(self.region.len());
        let reached = match allocate_pages(self.region.fd(), from, generous - from) {
            Ok(()) => generous,
            Err(MemoryError::NoSpace { .. }) if exact < generous => {
                allocate_pages(self.region.fd(), from, exact - from)?;
                exact
            }
            Err(error) => return Err(error),
        };
        state.committed = reached;
        Ok(())
    }

    /// Bytes in blocks that are alive, rounded up to their alignment.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.region.len() - self.state.lock().free()
    }

    /// The most bytes that blocks can have together.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.region.len()
    }

    /// The region that the blocks lie in; its descriptor goes to children.
    #[must_use]
    pub fn region(&self) -> &Arc<SharedRegion> {
        &self.region
    }
}

/// A block of an [`Arena`], free again when its last `Arc` is gone.
#[derive(Debug)]
pub struct ArenaBlock {
    offset: u64,
    len: u64,
    reserved: u64,
    arena: Arc<Arena>,
}

impl ArenaBlock {
    /// First byte in the region; a multiple of 64.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes asked for.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a block of zero bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region that the block lies in.
    #[must_use]
    pub fn region(&self) -> &Arc<SharedRegion> {
        &self.arena.region
    }

    /// Copies all of `source`, which has as many bytes as the block.
    ///
    /// # Errors
    /// [`MemoryError::LengthMismatch`], [`MemoryError::NoSpace`] when the system has no pages left.
    pub fn fill(self: &Arc<Self>, source: &HostMemory) -> Result<(), MemoryError> {
        self.fill_part(source, 0, source.len())
    }

    /// Copies `step` bytes of `source`, which has as many bytes as the block: those behind the first `done`, which were copied before.
    ///
    /// # Errors
    /// As [`ArenaBlock::fill`]; [`MemoryError::OutOfRange`] beyond the end.
    pub(crate) fn fill_part(
        self: &Arc<Self>,
        source: &HostMemory,
        done: usize,
        step: usize,
    ) -> Result<(), MemoryError> {
        if source.len() as u64 != self.len {
            return Err(MemoryError::LengthMismatch {
                source_len: source.len() as u64,
                destination_len: self.len,
            });
        }
        let part = source.slice(done, step)?;
        let end = self.offset + self.reserved;
        let is_new = |arena: &Arena| end > arena.state.lock().committed;
        if self.len < FILL_FROM || !is_new(&self.arena) {
            return self.host().slice(done, step)?.copy_from(&part);
        }
        if done == 0 {
            limit::check_room(self.reserved)?;
        }
        let written = part.write_at(self.region().fd(), self.offset + done as u64);
        written.map_err(|error| match error {
            MemoryError::Os {
                errno: errno @ (Errno::NOSPC | Errno::NOMEM | Errno::DQUOT),
                ..
            } => MemoryError::NoSpace {
                requested: self.reserved,
                errno,
            },
            error => error,
        })?;
        let mut state = self.arena.state.lock();
        // Only what lies behind other pages moves the mark; it stays as it is for a block beyond a gap.
        if done + step == source.len() && self.offset <= state.committed {
            let whole = end.next_multiple_of(PAGE).min(self.region().len());
            state.committed = state.committed.max(whole);
        }
        Ok(())
    }

    /// The bytes; the result keeps the block alive.
    #[must_use]
    pub fn host(self: &Arc<Self>) -> HostMemory {
        let (offset, len) = (self.offset as usize, self.len as usize);
        let whole = HostMemory::of_region(&self.arena.region);
        // A block lies inside its arena, and an arena inside the address space; the empty range is for form only.
        let bytes = whole
            .slice(offset, len)
            .unwrap_or_else(|_| HostMemory::from_vec(Vec::new()));
        bytes.with_owner(Arc::clone(self) as _)
    }
}

impl Drop for ArenaBlock {
    fn drop(&mut self) {
        if self.reserved > 0 {
            self.arena.state.lock().give(self.offset, self.reserved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_disjoint_and_come_back() {
        let arena = Arena::create(1 << 20).unwrap();
        let blocks: Vec<_> = [1, 63, 64, 65, 4097]
            .map(|len| arena.alloc(len).unwrap())
            .into();
        for (n, block) in blocks.iter().enumerate() {
            assert_eq!(block.offset() % 64, 0);
            block
                .host()
                .copy_in(0, &vec![n as u8 + 1; block.len() as usize])
                .unwrap();
        }
        for (n, block) in blocks.iter().enumerate() {
            assert_eq!(
                block.host().to_vec(),
                vec![n as u8 + 1; block.len() as usize]
            );
        }
        assert_eq!(arena.in_use(), 64 * 3 + 128 + 4160);
        drop(blocks);
        assert_eq!(arena.in_use(), 0);
        assert_eq!(arena.alloc(1 << 20).unwrap().offset(), 0);
    }

    /// Committed or not, beyond a gap or not, once or again.
    #[test]
    fn a_block_that_is_filled_has_the_bytes_and_its_pages_are_not_taken_twice() {
        let arena = Arena::create(16 << 20).unwrap();
        let bytes = |first: u8| {
            let bytes = (0..2_100_001_u32).map(|at| (at % 251) as u8 ^ first);
            HostMemory::from_vec(bytes.collect())
        };
        let blocks: Vec<_> = (0..3)
            .map(|_| arena.alloc_to_fill(2_100_001).unwrap())
            .collect();
        assert_eq!(arena.state.lock().committed, 0);
        for at in [2, 0, 1, 2, 0] {
            blocks[at].fill(&bytes(at as u8)).unwrap();
            assert!(blocks[at].host().to_vec() == bytes(at as u8).to_vec());
        }
        let filled = arena.state.lock().committed;
        assert!(filled >= 3 * 2_100_001, "{filled}");
        let pages = rustix::fs::fstat(arena.region().fd()).unwrap().st_blocks * 512;
        assert!((pages as u64) < filled + (1 << 20), "{pages} of {filled}");
        let short = HostMemory::from_vec(vec![0; 1 << 20]);
        assert!(matches!(
            blocks[0].fill(&short),
            Err(MemoryError::LengthMismatch { .. })
        ));
        // Small ones have their pages at once.
        let small = arena.alloc_to_fill(100).unwrap();
        small.fill(&HostMemory::from_vec(vec![7; 100])).unwrap();
        assert_eq!(small.host().to_vec(), vec![7; 100]);
    }

    #[test]
    fn r_124_a_block_to_fill_beyond_the_machine_is_an_error_at_once() {
        let arena = Arena::create(1 << 46).unwrap();
        let error = arena.alloc_to_fill(1 << 45).unwrap_err();
        assert!(matches!(error, MemoryError::NoSpace { .. }), "{error}");
        assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn a_view_keeps_its_block() {
        let arena = Arena::create(4096).unwrap();
        let view = arena.alloc(4096).unwrap().host();
        let exhausted = MemoryError::Exhausted {
            requested: 1,
            limit: 4096,
            in_use: 4096,
        };
        assert_eq!(arena.alloc(1).unwrap_err(), exhausted);
        drop(view);
        assert!(arena.alloc(4096).is_ok());
    }

    #[test]
    fn r_126_the_limit_is_an_error_and_nothing_is_lost() {
        let arena = Arena::create(8192).unwrap();
        for requested in [8193, u64::MAX, u64::MAX - 63] {
            let expected = MemoryError::Exhausted {
                requested,
                limit: 8192,
                in_use: 0,
            };
            assert_eq!(arena.alloc(requested).unwrap_err(), expected);
        }
        assert!(arena.alloc(0).unwrap().is_empty());
        assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn r_124_pages_beyond_the_machine_are_an_error_and_the_arena_stays_usable() {
        let arena = Arena::create(1 << 46).unwrap();
        let error = arena.alloc(1 << 45).unwrap_err();
        assert!(
            matches!(error, MemoryError::NoSpace { requested, .. } if requested == 1 << 45),
            "{error}"
        );
        assert_eq!(arena.in_use(), 0);
        let block = arena.alloc(100).unwrap();
        block.host().zero().unwrap();
    }

    #[test]
    fn many_threads_share_an_arena() {
        let arena = Arena::create(1 << 20).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let arena = &arena;
                scope.spawn(move || {
                    for round in 0..500_usize {
                        let block = arena.alloc(1 + (round as u64 * 37) % 5000).unwrap();
                        let fill = vec![thread; block.len() as usize];
                        block.host().copy_in(0, &fill).unwrap();
                        assert_eq!(block.host().to_vec(), fill);
                    }
                });
            }
        });
        assert_eq!(arena.in_use(), 0);
    }
}
