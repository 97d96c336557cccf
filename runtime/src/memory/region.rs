//! Shared segments with an identity: memfds for children of this host, POSIX segments for peers that know only names.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{
    fallocate, fcntl_add_seals, fstat, ftruncate, memfd_create, open, FallocateFlags, FileType,
    MemfdFlags, Mode, OFlags, SealFlags,
};
use rustix::io::{retry_on_intr, Errno};

use super::names::SHM_FOLDER;
use super::{limit, names, HostMemory, Mapping, MemoryError};

/// A segment of shared memory, mapped once in this process.
///
/// Its id is random, 64 bits, never zero, and the same in every process that maps the segment: it is the segment's
/// identity in descriptors and in the dependency map.
#[derive(Debug)]
pub struct SharedRegion {
    id: u64,
    len: u64,
    writable: bool,
    fd: OwnedFd,
    mapping: Mapping,
    /// POSIX segments made here: the process that may publish and unlink.
    creator_pid: Option<u32>,
    published: OnceLock<String>,
    /// The name was removed.
    withdrawn: AtomicBool,
    publishing: Mutex<()>,
}

/// 64 random bits from the kernel, never zero.
///
/// # Errors
/// [`MemoryError::Os`] when the kernel gives none.
pub fn random_id() -> Result<u64, MemoryError> {
    loop {
        let mut bytes = [0_u8; 8];
        let got = retry_on_intr(|| {
            rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        })
        .map_err(MemoryError::os("getrandom"))?;
        let id = u64::from_ne_bytes(bytes);
        if got == bytes.len() && id != 0 {
            return Ok(id);
        }
    }
}

/// Allocations of at least this many bytes are compared with available memory first; smaller ones are not worth it.
const ROOM_CHECK_FROM: u64 = 1 << 20;

/// Allocates the pages of a range of a file, so that using them later cannot fail.
pub(super) fn allocate_pages(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), MemoryError> {
    if len >= ROOM_CHECK_FROM {
        limit::check_room(len)?;
    }
    retry_on_intr(|| fallocate(fd, FallocateFlags::empty(), offset, len)).map_err(|errno| {
        match errno {
            Errno::NOSPC | Errno::NOMEM | Errno::FBIG | Errno::DQUOT => MemoryError::NoSpace {
                requested: len,
                errno,
            },
            errno => MemoryError::Os {
                call: "fallocate",
                errno,
            },
        }
    })
}

fn check_size(len: u64) -> Result<(), MemoryError> {
    let max = isize::MAX as u64;
    if len == 0 || len > max {
        return Err(MemoryError::BadSize { len, max });
    }
    Ok(())
}

/// Checks that a descriptor is a regular file of at least `claimed` bytes.
fn check_file(fd: BorrowedFd<'_>, claimed: u64) -> Result<(), MemoryError> {
    let stat = fstat(fd).map_err(MemoryError::os("fstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MemoryError::Os {
            call: "fstat (not a regular file)",
            errno: Errno::INVAL,
        });
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < claimed {
        return Err(MemoryError::TooSmall { size, claimed });
    }
    Ok(())
}

impl SharedRegion {
    fn assemble(
        id: u64,
        fd: OwnedFd,
        len: u64,
        writable: bool,
        creator: Option<u32>,
    ) -> Result<Arc<Self>, MemoryError> {
        let mapping = Mapping::new(fd.as_fd(), len, writable)?;
        Ok(Arc::new(Self {
            id,
            len,
            writable,
            fd,
            mapping,
            creator_pid: creator,
            published: OnceLock::new(),
            withdrawn: AtomicBool::new(false),
            publishing: Mutex::new(()),
        }))
    }

    /// An anonymous segment of `len` zero bytes, 1 or more. Only who is handed its descriptor can reach it. With `prealloc` its
    /// pages are allocated now; without, whoever uses a page must have allocated it (the arena does).
    ///
    /// # Errors
    /// [`MemoryError::BadSize`], [`MemoryError::NoSpace`] when the pages cannot be had, [`MemoryError::Os`].
    pub fn create_memfd(len: u64, prealloc: bool) -> Result<Arc<Self>, MemoryError> {
        check_size(len)?;
        let fd = memfd_create("echelon", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(MemoryError::os("memfd_create"))?;
        retry_on_intr(|| ftruncate(&fd, len)).map_err(MemoryError::os("ftruncate"))?;
        if prealloc {
            allocate_pages(fd.as_fd(), 0, len)?;
        }
        // A child that truncated the file would make every other process crash on its next access; one that sealed it
        // further would keep the parent from writing to it.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(MemoryError::os("fcntl(F_ADD_SEALS)"))?;
        Self::assemble(random_id()?, fd, len, true, None)
    }

    /// A segment of `len` zero bytes in `/dev/shm`, mode 0600, pages allocated. It has no name until
    /// [`SharedRegion::publish`], so a crash before that leaves nothing behind.
    ///
    /// # Errors
    /// [`MemoryError::BadSize`], [`MemoryError::NoSpace`], [`MemoryError::Os`].
    pub fn create_posix(len: u64) -> Result<Arc<Self>, MemoryError> {
        check_size(len)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| open(SHM_FOLDER, flags, Mode::RUSR | Mode::WUSR))
            .map_err(MemoryError::os("open(/dev/shm, O_TMPFILE)"))?;
        retry_on_intr(|| ftruncate(&fd, len)).map_err(MemoryError::os("ftruncate"))?;
        allocate_pages(fd.as_fd(), 0, len)?;
        Self::assemble(random_id()?, fd, len, true, Some(std::process::id()))
    }

    /// Maps the first `len` bytes of a segment that another process published, owned by it: dropping this never unlinks
    /// . `len` is what the owner claims; a smaller file is refused.
    ///
    /// # Errors
    /// [`MemoryError::BadName`], [`MemoryError::NoSuchSegment`], [`MemoryError::TooSmall`], [`MemoryError::BadSize`],
    /// [`MemoryError::Os`] (permission, a symbolic link).
    pub fn open_posix(name: &str, writable: bool, len: u64) -> Result<Arc<Self>, MemoryError> {
        check_size(len)?;
        let fd = names::open_named(name, writable)?;
        check_file(fd.as_fd(), len)?;
        Self::assemble(random_id()?, fd, len, writable, None)
    }

    /// Maps the first `len` bytes of a descriptor that was inherited or received, under the id that its sender gave it.
    ///
    /// # Errors
    /// [`MemoryError::TooSmall`] when the file is smaller, [`MemoryError::BadSize`], [`MemoryError::Os`].
    pub fn from_fd(
        id: u64,
        fd: OwnedFd,
        len: u64,
        writable: bool,
    ) -> Result<Arc<Self>, MemoryError> {
        check_size(len)?;
        check_file(fd.as_fd(), len)?;
        Self::assemble(id, fd, len, writable, None)
    }

    /// Gives a segment made by [`SharedRegion::create_posix`] a name in `/dev/shm`: `psm_` and 16 random hex digits, which is
    /// returned without a slash. A region has one name: only the first call gives it. It goes when the region is dropped.
    ///
    /// # Errors
    /// [`MemoryError::NotPublishable`] for any other region or in a forked process, [`MemoryError::Os`].
    pub fn publish(&self) -> Result<String, MemoryError> {
        self.publish_as("psm_")
    }

    /// As [`SharedRegion::publish`], with a prefix that says whose the segment is, so that others can clean up after a
    /// crash.
    ///
    /// # Errors
    /// As [`SharedRegion::publish`], and [`MemoryError::BadName`] for a prefix that no name can have.
    pub fn publish_as(&self, prefix: &str) -> Result<String, MemoryError> {
        if self.creator_pid != Some(std::process::id()) {
            return Err(MemoryError::NotPublishable);
        }
        let _one_at_a_time = self.publishing.lock();
        if let Some(name) = self.published.get() {
            return Ok(name.clone());
        }
        let name = names::link(self.fd(), prefix)?;
        Ok(self.published.get_or_init(|| name).clone())
    }

    /// Removes the published name, if there is one: nobody can open the segment any more; mappings stay. A name that is gone is
    /// never removed again: by then it may be another's. What failed can be tried again, and drop does so once.
    ///
    /// # Errors
    /// [`MemoryError::Os`]; the name and its pages are still there.
    pub fn withdraw(&self) -> Result<(), MemoryError> {
        let Some(name) = self.published.get() else {
            return Ok(());
        };
        // A forked process carries a copy of this value; the name is not its to remove.
        if self.creator_pid != Some(std::process::id()) {
            return Ok(());
        }
        let _one_at_a_time = self.publishing.lock();
        if self.withdrawn.load(Ordering::Relaxed) {
            return Ok(());
        }
        names::unlink(name)?;
        self.withdrawn.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The name that [`SharedRegion::publish`] gave, if it was called.
    #[must_use]
    pub fn published_name(&self) -> Option<&str> {
        self.published.get().map(String::as_str)
    }

    /// The identity: random, non-zero.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Size in bytes, at least 1.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: a region has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the region is mapped in this process; for finding out whether an array lies in it.
    pub fn address(&self) -> usize {
        self.mapping.as_ptr() as usize
    }

    /// True when this process mapped it `PROT_WRITE`.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The descriptor, for handing it to a child.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A descriptor of the same segment that cannot be mapped writable, for children that may only read.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn read_only_fd(&self) -> Result<OwnedFd, MemoryError> {
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.fd)
        );
        retry_on_intr(|| open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
            .map_err(MemoryError::os("open(/proc/self/fd, O_RDONLY)"))
    }

    /// `len` bytes from `offset` on, pinned: the result keeps the region mapped.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn host(self: &Arc<Self>, offset: u64, len: u64) -> Result<HostMemory, MemoryError> {
        let whole = HostMemory::of_region(self);
        let out_of_range = MemoryError::OutOfRange {
            what: "a shared region",
            offset,
            len,
            size: self.len,
        };
        match (usize::try_from(offset), usize::try_from(len)) {
            (Ok(start), Ok(size)) => whole.slice(start, size).map_err(|_| out_of_range),
            _ => Err(out_of_range),
        }
    }

    /// The mapping, for the rings, the bell and the arena.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl Drop for SharedRegion {
    fn drop(&mut self) {
        if let Err(error) = self.withdraw() {
            tracing::warn!(%error, "a published segment could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shm_path(name: &str) -> std::path::PathBuf {
        std::path::Path::new(SHM_FOLDER).join(name)
    }

    #[test]
    fn two_mappings_of_a_memfd_share_bytes() {
        let region = SharedRegion::create_memfd(8192, true).unwrap();
        let fd = region.fd().try_clone_to_owned().unwrap();
        let twin = SharedRegion::from_fd(region.id(), fd, 8192, true).unwrap();
        region.host(4000, 3).unwrap().copy_in(0, b"abc").unwrap();
        assert_eq!(twin.host(4000, 3).unwrap().to_vec(), b"abc");
        assert_eq!((twin.id(), twin.len()), (region.id(), 8192));
    }

    #[test]
    fn r_120_ranges_and_claimed_sizes_are_checked() {
        let region = SharedRegion::create_memfd(100, false).unwrap();
        assert!(region.host(100, 0).unwrap().is_empty());
        for (offset, len) in [(100, 1), (0, 101), (u64::MAX, 1), (1, u64::MAX)] {
            let error = region.host(offset, len).unwrap_err();
            assert_eq!(
                error,
                MemoryError::OutOfRange {
                    what: "a shared region",
                    offset,
                    len,
                    size: 100
                }
            );
        }
        let fd = region.fd().try_clone_to_owned().unwrap();
        let claimed = SharedRegion::from_fd(1, fd, 101, true).unwrap_err();
        assert_eq!(
            claimed,
            MemoryError::TooSmall {
                size: 100,
                claimed: 101
            }
        );
        assert!(matches!(
            SharedRegion::create_memfd(0, true),
            Err(MemoryError::BadSize { len: 0, .. })
        ));
        assert!(matches!(
            SharedRegion::create_memfd(u64::MAX, false),
            Err(MemoryError::BadSize { .. })
        ));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(matches!(
            SharedRegion::from_fd(1, reader.into(), 1, false),
            Err(MemoryError::Os { .. })
        ));
    }

    #[test]
    fn r_124_pages_that_cannot_be_had_are_an_error() {
        // More than any machine has.
        let error = SharedRegion::create_memfd(1 << 50, true).unwrap_err();
        assert_eq!(
            error,
            MemoryError::NoSpace {
                requested: 1 << 50,
                errno: Errno::NOMEM
            }
        );
        assert!(matches!(
            SharedRegion::create_posix(1 << 50),
            Err(MemoryError::NoSpace { .. })
        ));
    }

    #[test]
    fn a_memfd_cannot_be_shrunk_under_its_users() {
        let region = SharedRegion::create_memfd(8192, false).unwrap();
        assert_eq!(ftruncate(region.fd(), 1), Err(Errno::PERM));
    }

    #[test]
    fn r_203_r_239_a_posix_segment_has_no_name_until_published_and_none_after() {
        let region = SharedRegion::create_posix(5000).unwrap();
        assert_eq!(region.published_name(), None);
        let name = region.publish().unwrap();
        assert!(name.len() == 20 && name.starts_with("psm_"), "{name}");
        assert_eq!(region.publish().unwrap(), name);
        let mode =
            std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(shm_path(&name)).unwrap());
        assert_eq!(mode & 0o777, 0o600);

        let twin = SharedRegion::open_posix(&name, true, 5000).unwrap();
        twin.host(0, 2).unwrap().copy_in(0, b"hi").unwrap();
        assert_eq!(region.host(0, 2).unwrap().to_vec(), b"hi");
        drop(twin);
        assert!(
            shm_path(&name).exists(),
            "R-239: an importer does not remove the owner's name"
        );
        drop(region);
        assert!(!shm_path(&name).exists());
        assert_eq!(
            SharedRegion::open_posix(&name, false, 1).unwrap_err(),
            MemoryError::NoSuchSegment
        );
    }

    #[test]
    fn r_118_a_name_that_could_not_be_removed_is_tried_again() {
        let region = SharedRegion::create_posix(10).unwrap();
        let name = region.publish().unwrap();
        let aside = shm_path(&format!("{name}.aside"));
        // A folder in the name's place: unlink fails as it would with any other error of the system.
        std::fs::rename(shm_path(&name), &aside).unwrap();
        std::fs::create_dir(shm_path(&name)).unwrap();
        let failed = region.withdraw();
        std::fs::remove_dir(shm_path(&name)).unwrap();
        std::fs::rename(&aside, shm_path(&name)).unwrap();
        assert!(matches!(failed, Err(MemoryError::Os { .. })), "{failed:?}");
        region.withdraw().unwrap();
        assert!(!shm_path(&name).exists());
    }

    #[test]
    fn r_122_a_name_that_was_removed_is_not_removed_again() {
        let region = SharedRegion::create_posix(10).unwrap();
        let path = shm_path(&region.publish().unwrap());
        region.withdraw().unwrap();
        std::fs::write(&path, b"of somebody else").unwrap();
        region.withdraw().unwrap();
        drop(region);
        let left = path.exists();
        std::fs::remove_file(&path).unwrap();
        assert!(left, "the name was another's by then");
        // Whoever else removed it: it is gone, and that is all that was wanted.
        let region = SharedRegion::create_posix(10).unwrap();
        std::fs::remove_file(shm_path(&region.publish().unwrap())).unwrap();
        region.withdraw().unwrap();
    }

    #[test]
    fn r_123_read_only_is_a_property_of_the_mapping() {
        let region = SharedRegion::create_posix(4096).unwrap();
        let name = region.publish().unwrap();
        let reader = SharedRegion::open_posix(&name, false, 4096).unwrap();
        assert!(matches!(
            reader.host(0, 1).unwrap().copy_in(0, b"x"),
            Err(MemoryError::ReadOnly { .. })
        ));
        assert!(matches!(reader.publish(), Err(MemoryError::NotPublishable)));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let protections: Vec<&str> = maps
            .lines()
            .filter(|line| line.contains(&name))
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        assert!(protections.contains(&"r--s"), "{protections:?}");
        let read_only = region.read_only_fd().unwrap();
        assert!(matches!(
            SharedRegion::from_fd(1, read_only, 4096, true),
            Err(MemoryError::Os { call: "mmap", .. })
        ));
    }
}
