//! How much memory a Worker may take when nobody says (design §15.7).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::MemoryError;

/// Never less than this, in bytes: below it not even a small graph runs.
const FLOOR: u64 = 64 << 20;
/// Bytes that an allocation must leave available.
const RESERVE: u64 = 64 << 20;
/// From here on a limit is none: version 1 of control groups writes the largest number of whole pages for it, version 2 a word.
const UNLIMITED: u64 = 1 << 62;
/// Assumed when the system says nothing, in bytes.
const UNKNOWN: u64 = 1 << 30;

/// How long a look at the system's memory is believed. Many segments are made in a row when workers start.
const BELIEVED: Duration = Duration::from_millis(10);

static ROOM: Mutex<Room> = Mutex::new(Room(None));

/// Half of the smaller of available memory and the room in this process's control groups, in bytes, a multiple of 4096.
pub(super) fn default_limit() -> u64 {
    (available().unwrap_or(UNKNOWN) / 2).max(FLOOR) & !4095
}

/// Whether `len` more bytes can be had, [`RESERVE`] left for everything else. An anonymous segment is not limited by the size
/// of `/dev/shm`: without this check the kernel would kill processes to satisfy a `fallocate`, instead of failing it.
pub(super) fn check_room(len: u64) -> Result<(), MemoryError> {
    ROOM.lock()
        .grant(len, || available().unwrap_or(u64::MAX), Instant::now())
}

/// When somebody looked at the dozen files that say how much memory there is, and what is left of that, in bytes.
struct Room(Option<(Instant, u64)>);

impl Room {
    /// What was seen is believed for [`BELIEVED`], less what was granted since, unless it says no.
    fn grant(
        &mut self,
        len: u64,
        look: impl FnOnce() -> u64,
        now: Instant,
    ) -> Result<(), MemoryError> {
        if let Some((seen, left)) = self.0 {
            if now < seen + BELIEVED && refuse_beyond(len, left).is_ok() {
                self.0 = Some((seen, left - len));
                return Ok(());
            }
        }
        let left = look();
        refuse_beyond(len, left)?;
        self.0 = Some((now, left - len));
        Ok(())
    }
}

fn refuse_beyond(len: u64, available: u64) -> Result<(), MemoryError> {
    if len > available.saturating_sub(RESERVE) {
        return Err(MemoryError::NoSpace {
            requested: len,
            errno: Errno::NOMEM,
        });
    }
    Ok(())
}

/// The smaller of available memory and control-group room in bytes, where the system says either.
fn available() -> Option<u64> {
    let available = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| field(&text, "MemAvailable:"));
    let available = available.map(|kib| kib.saturating_mul(1024));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let room = cgroup_room(&groups, Path::new("/sys/fs/cgroup"));
    [available, room].into_iter().flatten().min()
}

/// First number after `name` in a text of `name value` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The least room in any control group that this process is in, version 1 or 2, ancestors included; `None` without a limit.
fn cgroup_room(groups: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (base, files) = if controllers.is_empty() {
            (
                root.to_path_buf(),
                ["memory.max", "memory.current", "inactive_file"],
            )
        } else if controllers.split(',').any(|name| name == "memory") {
            (
                root.join("memory"),
                [
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                ],
            )
        } else {
            continue;
        };
        // Inside a container the path may be the host's: then only the root of the hierarchy exists, and counts.
        let mut folder: PathBuf = base.join(path.trim_start_matches('/'));
        while folder.starts_with(&base) {
            let room = group_room(&folder, files);
            least = [least, room].into_iter().flatten().min();
            if !folder.pop() {
                break;
            }
        }
    }
    least
}

/// Limit − usage + page cache that the kernel would give up, of one group; `None` when it has no limit.
fn group_room(folder: &Path, [limit, usage, cache]: [&str; 3]) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let limit = number(limit).filter(|limit| *limit < UNLIMITED)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let reclaimable = field(&stat, cache).unwrap_or(0);
    Some(limit.saturating_sub(number(usage)?.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("echelon-limit-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn put(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_tightest_group_counts_and_page_cache_does_not() {
        let root = Folder::new("v2");
        root.put("a/memory.max", "1000\n");
        root.put("a/memory.current", "900\n");
        root.put("a/memory.stat", "anon 5\ninactive_file 300\n");
        root.put("a/b/memory.max", "max\n");
        root.put("a/b/memory.current", "10\n");
        assert_eq!(cgroup_room("0::/a/b\n", &root.0), Some(400));
        assert_eq!(cgroup_room("0::/none\n", &root.0), None);
    }

    #[test]
    fn version_1_groups_count_too() {
        let root = Folder::new("v1");
        root.put("memory/x/memory.limit_in_bytes", "500");
        root.put("memory/x/memory.usage_in_bytes", "700");
        assert_eq!(
            cgroup_room("3:cpu:/x\n2:memory,hugetlb:/x\nrubbish\n", &root.0),
            Some(0)
        );
        root.put("memory/y/memory.limit_in_bytes", "9223372036854771712\n");
        root.put("memory/y/memory.usage_in_bytes", "700");
        assert_eq!(cgroup_room("2:memory:/y\n", &root.0), None);
    }

    #[test]
    fn r_124_an_allocation_beyond_what_is_available_is_refused_before_it_starts() {
        assert_eq!(refuse_beyond(100, RESERVE + 100), Ok(()));
        let refused = MemoryError::NoSpace {
            requested: 101,
            errno: Errno::NOMEM,
        };
        assert_eq!(refuse_beyond(101, RESERVE + 100), Err(refused));
        assert!(refuse_beyond(1, 0).is_err());
        assert!(
            available().is_some(),
            "without it the next tests of this module would fill the machine"
        );
    }

    #[test]
    fn r_124_what_was_granted_is_not_granted_again() {
        let (mut room, start) = (Room(None), Instant::now());
        let unseen = || -> u64 { panic!("what was seen is believed") };
        room.grant(60, || RESERVE + 100, start).unwrap();
        room.grant(30, unseen, start).unwrap();
        // More than is left of that: the system is asked again.
        assert!(room.grant(20, || RESERVE + 10, start).is_err());
        room.grant(20, || RESERVE + 50, start).unwrap();
        room.grant(30, unseen, start).unwrap();
        // As it is after a while.
        let later = start + BELIEVED;
        assert!(room.grant(1, || RESERVE, later).is_err());
        room.grant(1, || RESERVE + 1, later).unwrap();
    }

    #[test]
    fn the_default_is_whole_pages_above_the_floor() {
        let limit = default_limit();
        assert!(limit >= FLOOR && limit % 4096 == 0, "{limit}");
        assert_eq!(
            field("MemFree: 1 kB\nMemAvailable: 77 kB\n", "MemAvailable:"),
            Some(77)
        );
        assert_eq!(field("MemAvailable: lots\n", "MemAvailable:"), None);
    }
}
