//! Atomic words in shared memory, and sleeping on them. `unsafe` lives here.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::Timespec;

use super::MailboxError;
use crate::memory::{MemoryError, SharedRegion};

/// The address of an aligned word of `size` bytes inside a writable region.
fn locate(region: &SharedRegion, offset: u64, size: u64) -> Result<*mut u8, MailboxError> {
    let out_of_range = MemoryError::OutOfRange {
        what: "a mailbox segment",
        offset,
        len: size,
        size: region.len(),
    };
    if !region.is_writable() {
        return Err(MemoryError::ReadOnly {
            what: "a mailbox segment",
        }
        .into());
    }
    let inside = offset
        .checked_add(size)
        .is_some_and(|end| end <= region.len());
    if !inside || offset % size != 0 {
        return Err(out_of_range.into());
    }
    // Inside the mapping, so `offset` fits usize; `wrapping_add` needs no promise.
    Ok(region.mapping().as_ptr().wrapping_add(offset as usize))
}

macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $atomic:ty) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name {
            at: NonNull<$atomic>,
            /// Keeps the mapping.
            _region: Arc<SharedRegion>,
        }

        // SAFETY: it gives out nothing but `&Atomic…`, which any thread may use; the region keeps the address mapped.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            /// The word at `offset` bytes into a writable region.
            ///
            /// # Errors
            /// [`MailboxError::Memory`] when it is not inside, not aligned, or the region is read-only.
            pub fn new(region: &Arc<SharedRegion>, offset: u64) -> Result<Self, MailboxError> {
                let at = locate(region, offset, std::mem::size_of::<$atomic>() as u64)?;
                let null = MailboxError::Os { call: "mmap", errno: Errno::FAULT };
                let at = NonNull::new(at.cast::<$atomic>()).ok_or(null)?;
                Ok(Self { at, _region: Arc::clone(region) })
            }
        }

        impl Deref for $name {
            type Target = $atomic;

            fn deref(&self) -> &$atomic {
                // SAFETY: `locate` proved that the word is aligned and inside a writable mapping that `_region` keeps.
                // All processes access these bytes through atomics only.
                unsafe { self.at.as_ref() }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}

word!(
    /// A 32-bit atomic word in shared memory; one can sleep on it.
    Word32,
    AtomicU32
);
word!(
    /// A 64-bit atomic word in shared memory.
    Word64,
    AtomicU64
);

/// Sleeps while `word` holds `seen`, until woken or `deadline`. May return early.
///
/// The flag PRIVATE is not set: the other side is another process.
pub(super) fn sleep_while(word: &AtomicU32, seen: u32, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return;
    }
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    // AGAIN: the word differs already. INTR and TIMEDOUT: the caller looks again. Nothing else can come.
    let _ = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
}

/// Wakes all that sleep on `word`, in any process.
pub(super) fn wake_all(word: &AtomicU32) {
    // The only error is a bad address, which `Word32` excludes.
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    #[test]
    fn words_are_aligned_inside_and_writable() {
        let region = SharedRegion::create_memfd(4096, true).unwrap();
        let word = Word32::new(&region, 4092).unwrap();
        word.store(7, Ordering::Relaxed);
        assert_eq!(region.host(4092, 4).unwrap().to_vec(), 7_u32.to_ne_bytes());
        for offset in [2, 4093, 4096, u64::MAX - 3] {
            assert!(Word32::new(&region, offset).is_err(), "{offset}");
        }
        assert!(Word64::new(&region, 4092).is_err());
        let fd = region.read_only_fd().unwrap();
        let read_only = SharedRegion::from_fd(1, fd, 4096, false).unwrap();
        assert!(Word64::new(&read_only, 0).is_err());
    }

    #[test]
    fn a_sleeper_in_another_mapping_is_woken() {
        let region = SharedRegion::create_memfd(4096, true).unwrap();
        let fd = region.fd().try_clone_to_owned().unwrap();
        let twin = SharedRegion::from_fd(1, fd, 4096, true).unwrap();
        let (ours, theirs) = (
            Word32::new(&region, 0).unwrap(),
            Word32::new(&twin, 0).unwrap(),
        );
        let sleeper = std::thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(30);
            while theirs.load(Ordering::SeqCst) == 0 && Instant::now() < deadline {
                sleep_while(&theirs, 0, deadline);
            }
            theirs.load(Ordering::SeqCst)
        });
        ours.store(1, Ordering::SeqCst);
        wake_all(&ours);
        assert_eq!(sleeper.join().unwrap(), 1);
        sleep_while(&ours, 1, Instant::now());
    }
}
