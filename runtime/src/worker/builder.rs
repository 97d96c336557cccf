//! The settings of a `Worker`, validated before anything exists.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::limits::HEALTH_PERIOD;
use parking_lot::Mutex;

use super::Worker;
use crate::chip::ChipDevices;
use crate::error::Error;
use crate::mailbox::SpinnersAbove;
use crate::memory::{Arena, SharedRegion};
use crate::process::zygote::OwnZygote;

/// How child processes are started.
#[derive(Clone, Debug, Default)]
pub enum ChildProgram {
    /// `executable -m echelon._child …`
    Python {
        /// The interpreter.
        executable: PathBuf,
    },
    /// Any program that speaks the child's side (`runtime::child`).
    Custom {
        /// The program.
        program: PathBuf,
        /// Its first arguments.
        args: Vec<String>,
    },
    /// None: only worker threads.
    #[default]
    None,
}

/// Most sub workers, and most worker threads, of one worker.
pub(crate) const MAX_SUB_WORKERS: u32 = 1024;

/// Shortest and longest time that may be set, in seconds.
const TIMEOUT_RANGE_S: (f64, f64) = (0.001, 30.0 * 24.0 * 3600.0);

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) level: u32,
    pub(crate) sub_workers: u32,
    pub(crate) threads: u32,
    pub(crate) remote_session_timeout: Duration,
    pub(crate) startup_timeout: Duration,
    /// The deadline of whoever starts this worker as a part of its own start.
    pub(crate) start_by: Option<Instant>,
    pub(crate) close_timeout: Duration,
    pub(crate) interrupt_grace: Duration,
    pub(crate) memory_limit: u64,
    pub(crate) max_tasks: u32,
    pub(crate) max_attempts: u32,
    pub(crate) child_program: ChildProgram,
    pub(crate) chip_program: ChildProgram,
    pub(crate) chips: Option<ChipDevices>,
    pub(crate) child_env: Vec<(OsString, OsString)>,
    /// Taken by the keeper of the worker that starts first.
    pub(crate) own_zygote: Arc<Mutex<Option<OwnZygote>>>,
    pub(crate) inherited_regions: Vec<Arc<SharedRegion>>,
    /// Where the spinners of its tree have their leases, for a worker below another one.
    pub(crate) spinners: Option<SpinnersAbove>,
    pub(crate) name_prefix: String,
    pub(crate) inner: bool,
}

/// Makes a [`Worker`]. Every value is checked by [`WorkerBuilder::build`].
#[derive(Clone, Debug)]
pub struct WorkerBuilder {
    pub(super) settings: Settings,
    memory_limit: Option<u64>,
}

impl Default for WorkerBuilder {
    fn default() -> Self {
        Self {
            settings: Settings {
                level: 4,
                sub_workers: 0,
                threads: 0,
                remote_session_timeout: Duration::from_secs(30),
                startup_timeout: Duration::from_secs(60),
                start_by: None,
                close_timeout: Duration::from_secs(10),
                interrupt_grace: Duration::from_secs(5),
                memory_limit: 0,
                max_tasks: 16_384,
                max_attempts: 3,
                child_program: ChildProgram::None,
                chip_program: ChildProgram::None,
                chips: None,
                child_env: Vec::new(),
                own_zygote: Arc::default(),
                inherited_regions: Vec::new(),
                spinners: None,
                name_prefix: "local/".into(),
                inner: false,
            },
            memory_limit: None,
        }
    }
}

impl WorkerBuilder {
    /// Level of the hierarchy, 3 or more; 4 by default.
    #[must_use]
    pub fn level(mut self, level: u32) -> Self {
        self.settings.level = level;
        self
    }

    /// Child processes that run sub callables, 0..=1024.
    #[must_use]
    pub fn sub_workers(mut self, count: u32) -> Self {
        self.settings.sub_workers = count;
        self
    }

    /// Threads of this process that run native callables, 0..=1024.
    #[must_use]
    pub fn threads(mut self, count: u32) -> Self {
        self.settings.threads = count;
        self
    }

    /// Liveness bound of remote sessions, above 0.2 s: health lane silence, and a control without an answer. A session that hears
    /// no answer from this process for so long ends itself, e.g. when this process was stopped. 30 s by default.
    #[must_use]
    pub fn remote_session_timeout(mut self, timeout: Duration) -> Self {
        self.settings.remote_session_timeout = timeout;
        self
    }

    /// Bound of `init()` as a whole. 60 s by default.
    #[must_use]
    pub fn startup_timeout(mut self, timeout: Duration) -> Self {
        self.settings.startup_timeout = timeout;
        self
    }

    /// `init()` ends by then at the latest, whatever its own bound: for a worker that starts as a part of another's start.
    #[must_use]
    pub fn start_by(mut self, deadline: Option<Instant>) -> Self {
        self.settings.start_by = deadline;
        self
    }

    /// Bound of `close()` as a whole. 10 s by default.
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.settings.close_timeout = timeout;
        self
    }

    /// How long running tasks may go on after an interrupt, before their child is killed. 5 s by default.
    #[must_use]
    pub fn interrupt_grace(mut self, grace: Duration) -> Self {
        self.settings.interrupt_grace = grace;
        self
    }

    /// Bytes of shared memory for tensors, at least 1 MiB. Default: half of what the machine has free.
    #[must_use]
    pub fn memory_limit(mut self, bytes: Option<u64>) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Unfinished tasks before a submit blocks, 1..=1,048,576. 16,384 by default.
    #[must_use]
    pub fn max_tasks(mut self, count: u32) -> Self {
        self.settings.max_tasks = count;
        self
    }

    /// Times that an idempotent task is begun at most, 1..=100; 3 by default.
    #[must_use]
    pub fn max_attempts(mut self, count: u32) -> Self {
        self.settings.max_attempts = count;
        self
    }

    /// How children are started; needed for sub workers and local children.
    #[must_use]
    pub fn child_program(mut self, program: ChildProgram) -> Self {
        self.settings.child_program = program;
        self
    }

    /// True when there is a program to start children with.
    #[must_use]
    pub fn has_child_program(&self) -> bool {
        !matches!(self.settings.child_program, ChildProgram::None)
    }

    /// Environment that children get on top of this process's.
    #[must_use]
    pub fn child_env(mut self, env: Vec<(OsString, OsString)>) -> Self {
        self.settings.child_env = env;
        self
    }

    /// A zygote that this process forked off at its start, for the children of this worker (decision 0023).
    #[must_use]
    pub fn own_zygote(mut self, zygote: Option<OwnZygote>) -> Self {
        self.settings.own_zygote = Arc::new(Mutex::new(zygote));
        self
    }

    /// Regions of ancestors that children are to inherit.
    #[must_use]
    pub fn inherited_regions(mut self, regions: Vec<Arc<SharedRegion>>) -> Self {
        self.settings.inherited_regions = regions;
        self
    }

    /// The spinners of this worker count among those of the tree above it.
    #[must_use]
    pub fn spinners(mut self, above: SpinnersAbove) -> Self {
        self.settings.spinners = Some(above);
        self
    }

    /// A worker inside a session or a local child: its workers are named `sub0` and not `local/sub0`, and it keeps its timeline for
    /// the parent that will ask for it ([`Worker::trace_json`]).
    #[must_use]
    pub fn inner(mut self) -> Self {
        self.settings.inner = true;
        self.settings.name_prefix.clear();
        self
    }

    /// Checks everything and makes the worker; nothing is started.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the value and its limits.
    pub fn build(mut self) -> Result<Worker, Error> {
        let s = &self.settings;
        range("level", u64::from(s.level), 3, 255)?;
        range(
            "num_sub_workers",
            u64::from(s.sub_workers),
            0,
            u64::from(MAX_SUB_WORKERS),
        )?;
        range(
            "threads",
            u64::from(s.threads),
            0,
            u64::from(MAX_SUB_WORKERS),
        )?;
        range("max_tasks", u64::from(s.max_tasks), 1, 1 << 20)?;
        range("max_attempts", u64::from(s.max_attempts), 1, 100)?;
        check_timeout("remote_session_timeout_s", s.remote_session_timeout)?;
        if s.remote_session_timeout <= HEALTH_PERIOD {
            return Err(Error::argument(
                "remote_session_timeout_s",
                format!(
                    "{} s is not above {} s, the pause between two HEALTH frames; give it several of them",
                    s.remote_session_timeout.as_secs_f64(),
                    HEALTH_PERIOD.as_secs_f64()
                ),
            ));
        }
        check_timeout("startup_timeout_s", s.startup_timeout)?;
        check_timeout("close_timeout_s", s.close_timeout)?;
        if s.sub_workers > 0 && s.threads > 0 {
            return Err(Error::argument(
                "threads",
                "a worker has sub worker processes or threads, not both",
            ));
        }
        if s.sub_workers > 0 && matches!(s.child_program, ChildProgram::None) {
            return Err(Error::argument(
                "num_sub_workers",
                "processes need a child_program; use threads for native callables",
            ));
        }
        self.check_chips()?;
        self.settings.memory_limit = match self.memory_limit {
            Some(bytes) if bytes < 1 << 20 => {
                return Err(Error::argument(
                    "memory_limit",
                    format!("{bytes} bytes is under the least, 1048576"),
                ));
            }
            Some(bytes) => bytes,
            None => Arena::default_limit(),
        };
        let uid = random_u64()?;
        Ok(Worker::from_settings(self.settings, uid))
    }
}

fn range(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::argument(
        what,
        format!("{value} is outside {least}..={most}"),
    ))
}

fn check_timeout(what: &'static str, timeout: Duration) -> Result<(), Error> {
    let (least, most) = TIMEOUT_RANGE_S;
    if (least..=most).contains(&timeout.as_secs_f64()) {
        return Ok(());
    }
    Err(Error::argument(
        what,
        format!("{} s is outside {least}..={most}", timeout.as_secs_f64()),
    ))
}

/// A random non-zero number, from the kernel.
pub(crate) fn random_u64() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(
        |error| {
            Error::argument(
                "random",
                format!("the kernel gave no random bytes: {error}"),
            )
        },
    )?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// both numbers are named, and just above the period is allowed.
    #[test]
    fn r_066_a_health_timeout_is_above_its_period() {
        let build = |timeout| Worker::builder().remote_session_timeout(timeout).build();
        for timeout in [HEALTH_PERIOD, HEALTH_PERIOD / 2] {
            let text = build(timeout).unwrap_err().to_string();
            let named = format!("{} s is not above 0.2 s", timeout.as_secs_f64());
            assert!(text.contains(&named), "{text}");
        }
        build(HEALTH_PERIOD + Duration::from_millis(1)).unwrap();
    }
}
