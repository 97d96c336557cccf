//! Telling a process from those that it forked. `unsafe` lives here.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapMut, MmapRaw};
use rustix::mm::{madvise, Advice};

/// Knows whether this is the process that made it, however a fork came about, and without a system call: asking for the process id
/// is one, and costs half a microsecond.
pub struct ForkMark {
    /// Not zero, in a page that the kernel hands to forked processes as zeros; `None` where the kernel cannot.
    word: Option<NonNull<AtomicU32>>,
    _page: Option<MmapRaw>,
    pid: u32,
}

// SAFETY: the word is only ever read, atomically, and `_page` keeps it mapped.
unsafe impl Send for ForkMark {}
// SAFETY: as above.
unsafe impl Sync for ForkMark {}

impl ForkMark {
    /// A mark of this process.
    #[must_use]
    pub fn new() -> Self {
        let page = Self::page();
        Self {
            word: page
                .as_ref()
                .and_then(|page| NonNull::new(page.as_mut_ptr().cast())),
            _page: page,
            pid: std::process::id(),
        }
    }

    fn page() -> Option<MmapRaw> {
        let mut page = MmapMut::map_anon(size_of::<AtomicU32>()).ok()?;
        page.fill(1);
        let (start, len) = (page.as_mut_ptr().cast(), page.len());
        // SAFETY: the range is the private anonymous mapping above, whose bytes nobody refers to while it is forked.
        unsafe { madvise(start, len, Advice::LinuxWipeOnFork) }.ok()?;
        Some(page.into())
    }

    /// True in the process that made the mark, false in one that was forked off.
    #[must_use]
    pub fn is_here(&self) -> bool {
        match self.word {
            // SAFETY: the mapping begins at a page, has room for the word, and lives as long as `_page`.
            Some(word) => unsafe { word.as_ref() }.load(Ordering::Relaxed) != 0,
            None => std::process::id() == self.pid,
        }
    }
}

impl Default for ForkMark {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for ForkMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForkMark").field("pid", &self.pid).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{waitpid, WaitStatus};
    use nix::unistd::{fork, ForkResult};

    #[test]
    fn a_forked_process_is_told_apart() {
        let by_pid = || ForkMark {
            word: None,
            ..ForkMark::new()
        };
        for mark in [ForkMark::new(), by_pid()] {
            assert!(mark.is_here());
            // SAFETY: the child reads the mark, asks for its process id and ends; it allocates nothing and takes no lock.
            match unsafe { fork() }.unwrap() {
                // SAFETY: `_exit` may be called in a forked child.
                ForkResult::Child => unsafe { libc::_exit(i32::from(mark.is_here())) },
                ForkResult::Parent { child } => {
                    let ended = waitpid(child, None).unwrap();
                    assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
                }
            }
            assert!(mark.is_here());
        }
    }
}
