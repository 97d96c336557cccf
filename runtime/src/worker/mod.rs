//! `Worker`: one level of the hierarchy, its life cycle and its public calls.
//!
//! `NEW → STARTING → READY → CLOSING → CLOSED`, or `FAILED`. `init()` is one transaction under one deadline; `close()` is bounded,
//! idempotent and callable from any state and thread (design §3).

mod builder;
mod callable_handle;
mod chips;
mod close;
mod copies;
mod init;
mod locals;
mod options;
mod orchestrator;
mod over;
mod plan;
mod reach;
mod register;
mod remote;
mod remotes;
mod reopen;
mod run;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, ReentrantMutex, RwLock};
use serde::{Deserialize, Serialize};

pub use builder::{ChildProgram, WorkerBuilder};
pub use callable_handle::CallableHandle;
pub use copies::PendingCopy;
pub use options::TaskOptions;
pub(crate) use orchestrator::ScopedBlock;
pub use orchestrator::{CopySide, Orchestrator, TaskHandle};
pub use plan::{InnerPlan, LevelPlan};
pub use reach::{RegisterOptions, RegisterScope};
pub use run::{RunEnd, RunReport};

use crate::chip::ChipDevices;
use crate::endpoint::EndpointInfo;
use crate::engine::{Driver, Engine};
use crate::error::{Error, Interrupt, NoInterrupt};
use crate::mailbox::Spinner;
use crate::process::Keeper;
use crate::remote::RemoteWorkerSpec;
use builder::Settings;
use reach::Registration;

/// Where a `Worker` is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Only settings: may be changed, and added to another worker.
    New,
    /// `init()` is running.
    Starting,
    /// Tasks may be submitted.
    Ready,
    /// `close()` is running.
    Closing,
    /// Everything has ended.
    Closed,
    /// `init()` failed with this text and everything was rolled back.
    Failed(String),
    /// Added to another worker as a specification.
    Given,
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::New => f.write_str("not inited"),
            Self::Starting => f.write_str("starting"),
            Self::Ready => f.write_str("ready"),
            Self::Closing => f.write_str("closing"),
            Self::Closed => f.write_str("closed"),
            Self::Failed(cause) => write!(f, "failed ({cause})"),
            Self::Given => f.write_str("part of another worker"),
        }
    }
}

/// A NEXT_LEVEL child, in the order of `add_*`: its index is its worker id (design §15.22).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Child {
    /// A device of this worker; they come first, and a plan names them by themselves.
    #[serde(skip)]
    Chip {
        /// Its number.
        device: i64,
        /// All of them.
        devices: Arc<ChipDevices>,
    },
    /// A process of this host that is a `Worker` itself.
    Local(LevelPlan),
    /// A session on a daemon.
    Remote(RemoteWorkerSpec),
}

/// What exists while the worker is READY. Fields end in this order.
pub(crate) struct Live {
    pub(crate) engine: Arc<Engine>,
    /// Dropped first at close: nothing is driven behind our back while endpoints end.
    pub(crate) driver: Option<Driver>,
    pub(crate) keeper: Arc<Keeper>,
}

struct Life {
    state: WorkerState,
    children: Vec<Child>,
    registrations: Vec<Registration>,
    /// While NEW: its zygote comes up ahead of `init()`.
    early: Option<Keeper>,
    /// Remote workers that a thread is reopening, each with the flag that calls it off.
    reopening: BTreeMap<i32, Arc<AtomicBool>>,
}

struct Inner {
    uid: u64,
    settings: Settings,
    life: Mutex<Life>,
    /// Notified at every change of state.
    changed: Condvar,
    live: RwLock<Option<Live>>,
    child_env: RwLock<Vec<(OsString, OsString)>>,
    /// What a `close()`, or the roll-back of an `init()`, could not end: the next `close()` goes on with exactly that (R-133).
    left: Mutex<Option<Live>>,
    /// One `close()` works at a time; others wait for it and see its result. What ends meanwhile may call it again (R-106).
    closing: ReentrantMutex<Cell<bool>>,
    interrupt: RwLock<Arc<dyn Interrupt>>,
    /// Set, with `life` held, by a `close()` that finds an `init()` at work: that one rolls back and reports.
    called_off: Arc<AtomicBool>,
}

/// One level of the hierarchy. Clones are the same worker.
///
/// ```
/// use echelon_runtime::{Callable, RegisterOptions, Tag, TaskArgs, Worker};
/// # fn main() -> Result<(), echelon_runtime::Error> {
/// let worker = Worker::builder().threads(2).build()?;
/// let hello = worker.register(Callable::native("hello", |view| {
///     assert_eq!(view.scalars, [7]);
///     Ok(())
/// }), RegisterOptions::default())?;
/// worker.init()?;
/// let report = worker.run_simple(|orch| {
///     let mut args = TaskArgs::new();
///     args.add_scalar(7)?;
///     orch.submit_sub(&hello, args)?;
///     Ok(())
/// })?;
/// assert_eq!(report.counts["completed"], 1);
/// worker.close()
/// # }
/// ```
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

impl Worker {
    /// Settings with their defaults: level 4, no workers.
    #[must_use]
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder::default()
    }

    pub(crate) fn from_settings(settings: Settings, uid: u64) -> Self {
        let chips = settings.chips.clone().map(Arc::new).into_iter();
        let chip = |devices: Arc<ChipDevices>| {
            let ids = devices.ids.clone().into_iter();
            ids.map(move |device| Child::Chip {
                device,
                devices: Arc::clone(&devices),
            })
        };
        Self(Arc::new(Inner {
            uid,
            child_env: RwLock::new(settings.child_env.clone()),
            settings,
            life: Mutex::new(Life {
                state: WorkerState::New,
                children: chips.flat_map(chip).collect(),
                registrations: Vec::new(),
                early: None,
                reopening: BTreeMap::new(),
            }),
            changed: Condvar::new(),
            live: RwLock::new(None),
            left: Mutex::new(None),
            closing: ReentrantMutex::new(Cell::new(false)),
            interrupt: RwLock::new(Arc::new(NoInterrupt)),
            called_off: Arc::new(AtomicBool::new(false)),
        }))
    }

    /// What blocking calls ask at least every 100 ms. Set before `init()`.
    pub fn set_interrupt(&self, interrupt: Arc<dyn Interrupt>) {
        *self.0.interrupt.write() = interrupt;
    }

    /// Replaces what children get on top of this process's environment; those that are started from now on.
    pub fn set_child_env(&self, env: Vec<(OsString, OsString)>) {
        *self.0.child_env.write() = env;
    }

    /// Where the worker is in its life.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        self.0.life.lock().state.clone()
    }

    /// The level; a label from 3 up.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.0.settings.level
    }

    /// Adds a local child of level 3 or more; `child` must not be inited and is taken over.
    /// Returns its stable NEXT_LEVEL id.
    ///
    /// # Errors
    /// [`Error::Lifecycle`] when either worker is inited, [`Error::Argument`] when the child's level is not below this one's.
    pub fn add_worker(&self, child: &Self) -> Result<i32, Error> {
        if child.level() >= self.level() {
            return Err(Error::argument(
                "child",
                format!(
                    "level {} is not below this worker's level {}",
                    child.level(),
                    self.level()
                ),
            ));
        }
        if Arc::ptr_eq(&self.0, &child.0) {
            return Err(Error::argument("child", "a worker cannot be its own child"));
        }
        let plan = child.give_away()?;
        self.add_child(Child::Local(plan))
    }

    /// Adds a remote worker: a session on the daemon that `spec` names. Returns its stable NEXT_LEVEL id.
    ///
    /// # Errors
    /// [`Error::Lifecycle`] after `init()`, [`Error::Argument`] for a specification that cannot work.
    pub fn add_remote_worker(&self, spec: RemoteWorkerSpec) -> Result<i32, Error> {
        if self.level() < 4 {
            return Err(Error::argument(
                "level",
                format!(
                    "a worker of level {} has no remote workers; the parent is level 4 or more",
                    self.level()
                ),
            ));
        }
        spec.validate()
            .map_err(|error| Error::argument("spec", error.to_string()))?;
        self.add_child(Child::Remote(spec))
    }

    fn add_child(&self, child: Child) -> Result<i32, Error> {
        let mut life = self.0.life.lock();
        self.expect_new(&life, "add a worker to")?;
        life.children.push(child);
        i32::try_from(life.children.len() - 1)
            .map_err(|_| Error::argument("workers", "too many workers"))
    }

    fn expect_new(&self, life: &Life, action: &'static str) -> Result<(), Error> {
        match life.state {
            WorkerState::New => Ok(()),
            ref state => {
                let hint = match state {
                    WorkerState::Given => "use the worker that it was added to",
                    WorkerState::Ready if action == "init" => {
                        "that is done already; go on with run()"
                    }
                    WorkerState::Starting if action == "init" => {
                        "another thread is at it; wait for that"
                    }
                    WorkerState::Starting | WorkerState::Ready => "do it before init()",
                    _ => "make a new Worker",
                };
                Err(Error::Lifecycle {
                    state: state.to_string(),
                    action,
                    hint: hint.into(),
                })
            }
        }
    }

    /// The engine of a READY worker.
    pub(crate) fn engine(&self, action: &'static str) -> Result<Arc<Engine>, Error> {
        if let Some(live) = self.0.live.read().as_ref() {
            return Ok(Arc::clone(&live.engine));
        }
        let state = self.state();
        let hint = match state {
            WorkerState::New => "call init() first, or use `with Worker(...) as w:`",
            WorkerState::Starting => "wait until init() has returned in the thread that called it",
            WorkerState::Given => "use the worker that it was added to",
            WorkerState::Failed(_) => "mend the cause and make a new Worker",
            _ => "make a new Worker",
        };
        Err(Error::Lifecycle {
            state: state.to_string(),
            action,
            hint: hint.into(),
        })
    }

    /// Its workers as they are now.
    #[must_use]
    pub fn workers(&self) -> Vec<EndpointInfo> {
        self.engine("look at").map_or_else(
            |_| Vec::new(),
            |engine| {
                engine
                    .core
                    .lock()
                    .endpoints
                    .iter()
                    .map(|slot| slot.info.clone())
                    .collect()
            },
        )
    }

    /// Bytes of shared memory that this worker may use.
    #[must_use]
    pub fn memory_limit(&self) -> u64 {
        self.0.settings.memory_limit
    }

    /// Spins at something that is waited for beside this worker's tasks, in the slots that its tree of workers has for that.
    ///
    /// # Errors
    /// [`Error::Lifecycle`] unless it is READY.
    pub fn spinner(&self) -> Result<Spinner, Error> {
        Ok(self.engine("spin beside")?.bell.spinner())
    }

    /// Tells the local workers to drop their mapping of a region that is gone. Nothing waits for it (R-119).
    pub fn drop_region(&self, region: u64) {
        let Ok(engine) = self.engine("drop a region of") else {
            return;
        };
        engine.core.lock().drop_region(region);
    }

    /// Tasks submitted and finished since `init()`.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.engine("look at").map_or_else(
            |_| Progress::default(),
            |engine| {
                let core = engine.core.lock();
                let stats = core.scheduler.stats();
                Progress {
                    submitted: core.submitted,
                    finished: core.finished,
                    completed: stats.completed,
                    failed: stats.failed,
                    lost: stats.endpoint_lost,
                    skipped: stats.skipped,
                    cancelled: stats.cancelled,
                    retried: core.retried,
                }
            },
        )
    }

    /// The events since the last call, as JSON of a `trace::TraceReport`; what a session answers to COLLECT_TRACE.
    ///
    /// # Errors
    /// [`Error::Lifecycle`] when it is not ready.
    pub fn trace_json(&self) -> Result<Vec<u8>, Error> {
        let engine = self.engine("trace")?;
        let report = engine.core.lock().trace.take();
        serde_json::to_vec(&report).map_err(|error| Error::argument("trace", error.to_string()))
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("level", &self.level())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// How far the submitted tasks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tasks submitted since `init()`.
    pub submitted: u64,
    /// Of those, tasks that have ended in any way.
    pub finished: u64,
    /// Tasks that completed.
    pub completed: u64,
    /// Tasks whose code raised.
    pub failed: u64,
    /// Tasks lost with their worker.
    pub lost: u64,
    /// Tasks that were not run because something they read was not produced.
    pub skipped: u64,
    /// Tasks that were not run because their run was ending.
    pub cancelled: u64,
    /// Attempts beyond the first of idempotent tasks.
    pub retried: u64,
}
