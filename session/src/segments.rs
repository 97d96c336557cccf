//! Names of published segments, so that whoever outlives their owner can remove them.
//!
//! A segment that a session publishes is named `psm_e` and hexadecimal digits only: 8 of the pid namespace, 8 of the process, 16 of
//! its start time, and random ones. So the name says which process owns it, told apart
//! from a later one of the same number by its start time, and from one of another container by its pid namespace. The daemon
//! removes what is left of a runner after its end; a new daemon removes what is left of owners that are gone.

use std::path::Path;

/// Where POSIX segments live.
const SHM_FOLDER: &str = "/dev/shm";
/// Every name begins like this; `psm_` is what version 1 peers expect of a segment.
const MARK: &str = "psm_e";

/// A process, told apart from every other that had or will have its number on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    namespace: u64,
    pid: u32,
    start: u64,
}

impl Owner {
    /// The calling process.
    #[must_use]
    pub(crate) fn this_process() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// The process `pid`; also of one that has ended and was not reaped yet.
    #[must_use]
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            namespace: pid_namespace()?,
            pid,
            start: start_time(&stat)?,
        })
    }

    /// What the names of its segments begin with.
    #[must_use]
    pub(crate) fn prefix(&self) -> String {
        format!(
            "{MARK}{:08x}{:08x}{:016x}",
            self.namespace, self.pid, self.start
        )
    }

    fn parse(name: &str) -> Option<Self> {
        let owner = name.strip_prefix(MARK)?;
        let number = |from: usize, to: usize| u64::from_str_radix(owner.get(from..to)?, 16).ok();
        Some(Self {
            namespace: number(0, 8)?,
            pid: u32::try_from(number(8, 16)?).ok()?,
            start: number(16, 32)?,
        })
    }

    fn is_gone(&self) -> bool {
        // A process of another namespace cannot be looked up here, so it is never taken for dead.
        pid_namespace() == Some(self.namespace) && Self::of(self.pid) != Some(*self)
    }
}

/// Removes the segments of `owner`, which has ended. Returns how many there were.
pub(crate) fn sweep(owner: &Owner) -> usize {
    let prefix = owner.prefix();
    remove(Path::new(SHM_FOLDER), |name| name.starts_with(&prefix))
}

/// Removes the segments of all owners that are gone. Returns how many there were.
pub(crate) fn sweep_orphans() -> usize {
    remove(Path::new(SHM_FOLDER), |name| {
        Owner::parse(name).is_some_and(|owner| owner.is_gone())
    })
}

fn remove(folder: &Path, doomed: impl Fn(&str) -> bool) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(&doomed) && std::fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    removed
}

/// Field 22 of `/proc/PID/stat`. The second field is the program's name in parentheses and may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

fn pid_namespace() -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self/ns/pid")
        .ok()
        .map(|facts| facts.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        let owner = Owner::this_process().expect("proc is mounted");
        let name = format!("{}0123456789abcdef", owner.prefix());
        assert_eq!(Owner::parse(&name), Some(owner));
        assert!(!owner.is_gone());
        assert!(name.starts_with("psm_") && name.len() < 100);
    }

    #[test]
    fn foreign_names_have_no_owner() {
        for name in [
            "psm_1a2b3c4d",
            "psm_e",
            "psm_e0123456",
            "psm_e0123456789abcdef0123456789abcdeg",
            "other",
        ] {
            assert_eq!(Owner::parse(name), None, "{name}");
        }
    }

    #[test]
    fn only_segments_of_dead_owners_go_r_125() {
        let folder = std::env::temp_dir().join(format!("echelon-segments-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("temporary folder");
        let own = Owner::this_process().expect("proc is mounted");
        let dead = Owner {
            start: own.start + 1,
            ..own
        };
        let elsewhere = Owner {
            namespace: own.namespace + 1,
            ..dead
        };
        for owner in [own, dead, elsewhere] {
            std::fs::write(folder.join(format!("{}x", owner.prefix())), "").expect("file");
        }
        let removed = remove(&folder, |name| {
            Owner::parse(name).is_some_and(|owner| owner.is_gone())
        });
        let left = std::fs::read_dir(&folder).expect("folder").count();
        std::fs::remove_dir_all(&folder).expect("removed");
        assert_eq!((removed, left), (1, 2));
    }

    #[test]
    fn a_start_time_is_found_behind_any_program_name() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time("7 (x"), None);
    }
}
