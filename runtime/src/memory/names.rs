//! Names of POSIX segments: files in `/dev/shm`.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{linkat, open, openat, unlinkat, AtFlags, Mode, OFlags, CWD};
use rustix::io::{retry_on_intr, Errno};

use super::{random_id, MemoryError};

pub(super) const SHM_FOLDER: &str = "/dev/shm";
const NAME_LEN_MAX: usize = 255;
/// Bytes that [`link`] adds to a prefix.
const RANDOM_LEN: usize = 16;
/// A clash of 64 random bits is no accident; a handful of attempts is enough.
const LINK_ATTEMPTS: usize = 8;

/// Gives a file that has no name one: `prefix` and 16 random hex digits. Never replaces another's.
pub(super) fn link(fd: BorrowedFd<'_>, prefix: &str) -> Result<String, MemoryError> {
    if !is_valid(prefix) || prefix.len() + RANDOM_LEN > NAME_LEN_MAX {
        return Err(MemoryError::BadName);
    }
    let folder = folder()?;
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for _ in 0..LINK_ATTEMPTS {
        let name = format!("{prefix}{:016x}", random_id()?);
        match linkat(CWD, &source, &folder, &name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST | Errno::INTR) => {}
            Err(errno) => return Err(MemoryError::os("linkat(/dev/shm/...)")(errno)),
        }
    }
    Err(MemoryError::os("linkat(/dev/shm/...)")(Errno::EXIST))
}

/// Takes a name away; one that is not there is fine.
pub(super) fn unlink(name: &str) -> Result<(), MemoryError> {
    match unlinkat(folder()?, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(MemoryError::os("unlink(/dev/shm/...)")(errno)),
    }
}

/// Opens what another process published: no path out of the folder, no symbolic link, no waiting for a pipe.
pub(super) fn open_named(name: &str, writable: bool) -> Result<OwnedFd, MemoryError> {
    if !is_valid(name) {
        return Err(MemoryError::BadName);
    }
    let access = if writable {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let folder = folder()?;
    retry_on_intr(|| openat(&folder, name, flags, Mode::empty())).map_err(|errno| match errno {
        Errno::NOENT => MemoryError::NoSuchSegment,
        errno => MemoryError::os("open(/dev/shm/...)")(errno),
    })
}

fn folder() -> Result<OwnedFd, MemoryError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| open(SHM_FOLDER, flags, Mode::empty()))
        .map_err(MemoryError::os("open(/dev/shm)"))
}

fn is_valid(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=NAME_LEN_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && name != "."
        && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SharedRegion;

    #[test]
    fn names_that_could_escape_the_folder_are_refused() {
        let long = "a".repeat(256);
        for name in ["", "/x", "a/b", "..", ".", "a b", "ä", "x\0", long.as_str()] {
            assert_eq!(
                open_named(name, false).unwrap_err(),
                MemoryError::BadName,
                "{name:?}"
            );
        }
        let region = SharedRegion::create_posix(10).unwrap();
        for prefix in ["", "../", "a/b", &long[..250]] {
            assert_eq!(
                region.publish_as(prefix),
                Err(MemoryError::BadName),
                "{prefix:?}"
            );
        }
        assert_eq!(region.published_name(), None);
    }

    #[test]
    fn r_125_a_name_may_say_whose_it_is() {
        let region = SharedRegion::create_posix(10).unwrap();
        let name = region.publish_as("psm_e1.22.33_").unwrap();
        assert!(
            name.starts_with("psm_e1.22.33_") && name.len() == 13 + RANDOM_LEN,
            "{name}"
        );
        assert_eq!(region.publish().unwrap(), name, "a region has one name");
        assert!(SharedRegion::open_posix(&name, false, 10).is_ok());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let region = SharedRegion::create_posix(10).unwrap();
        let name = region.publish().unwrap();
        let path = |name: &str| std::path::Path::new(SHM_FOLDER).join(name);
        let link = format!("{name}.link");
        std::os::unix::fs::symlink(path(&name), path(&link)).unwrap();
        let result = open_named(&link, false);
        std::fs::remove_file(path(&link)).unwrap();
        assert_eq!(
            result.unwrap_err(),
            MemoryError::os("open(/dev/shm/...)")(Errno::LOOP)
        );
    }
}
