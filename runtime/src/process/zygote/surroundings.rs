//! What an executed child would inherit from its owner now, to be compared with what the zygote inherited when it was started.
//!
//! A forked child has the zygote's environment, identity, limits and masks. As long as the owner's are the same, so is the child.
//! When the owner has changed one since, the child is executed and the zygote is replaced by a fresh one.

use std::ffi::OsString;

/// The lines of `/proc/thread-self/status` that children inherit.
const INHERITED: [&str; 14] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "Mems_allowed",
];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Surroundings {
    env: Vec<(OsString, OsString)>,
    status: Vec<String>,
    limits: String,
    cgroup: String,
}

impl Surroundings {
    /// As of now and of this thread, with `env` on top of this process's environment, or instead of it. `None` where /proc does
    /// not say.
    pub(super) fn take(env: &[(OsString, OsString)], clear_env: bool) -> Option<Self> {
        let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
        let is_inherited =
            |line: &&str| INHERITED.contains(&line.split(':').next().unwrap_or_default());
        Some(Self {
            env: environment(env, clear_env),
            status: status
                .lines()
                .filter(is_inherited)
                .map(str::to_owned)
                .collect(),
            limits: std::fs::read_to_string("/proc/thread-self/limits").ok()?,
            cgroup: std::fs::read_to_string("/proc/thread-self/cgroup").unwrap_or_default(),
        })
    }

    /// What is different, in a word.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = [
            ("its environment", self.env == other.env),
            (
                "its identity, capabilities or masks",
                self.status == other.status,
            ),
            ("its resource limits", self.limits == other.limits),
            ("its control group", self.cgroup == other.cgroup),
        ];
        let changed = parts.into_iter().find(|(_, is_same)| !is_same);
        changed.map(|(what, _)| what)
    }
}

/// Sorted by name; of several values of a name the last counts.
fn environment(env: &[(OsString, OsString)], clear_env: bool) -> Vec<(OsString, OsString)> {
    let own = if clear_env {
        None
    } else {
        Some(std::env::vars_os())
    };
    let all = own.into_iter().flatten().chain(env.iter().cloned());
    let sorted: std::collections::BTreeMap<_, _> = all.collect();
    sorted.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_environment_or_of_a_limit_is_seen() {
        let pair = |value: &str| vec![("ECHELON_TEST_SURROUNDINGS".into(), value.into())];
        let before = Surroundings::take(&pair("1"), false).unwrap();
        let same = Surroundings::take(&pair("1"), false).unwrap();
        assert_eq!(before.difference(&same), None);
        let other = Surroundings::take(&pair("2"), false).unwrap();
        assert_eq!(before.difference(&other), Some("its environment"));
        let bare = Surroundings::take(&pair("1"), true).unwrap();
        assert_eq!(
            (bare.env.len(), bare.difference(&before)),
            (1, Some("its environment"))
        );
        assert!(
            before.status.iter().any(|line| line.starts_with("Uid:")),
            "{before:?}"
        );
        let limited = Surroundings {
            limits: String::new(),
            ..same
        };
        assert_eq!(before.difference(&limited), Some("its resource limits"));
    }
}
