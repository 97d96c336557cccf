//! The engine: the scheduler's actions carried out on endpoints, and what endpoints report fed back.
//!
//! Everything that changes lives in [`Core`], behind one lock that is never held while user code, Python or a blocking system
//! call runs. Whoever waits drives (`drive`); when nobody waits, a driver thread does (design §15.11).

mod at_once;
mod attempts;
mod chain;
mod closing;
mod control;
mod copier;
mod copies;
mod dispatch;
mod drive;
mod events;
mod fences;
mod finish;
mod known;
mod pace;
mod prepare;
mod record;
mod registration;
mod signature;
mod staging;
mod story;
mod submit;
mod succession;
mod tables;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::Arc;

use echelon_wire::callable::Digest;
use parking_lot::{Condvar, Mutex};

pub(crate) use at_once::Patience;
pub(crate) use control::Asked;
pub(crate) use copies::{step_limit, CopyJob, CopySide};
pub(crate) use drive::{Driver, WaitEnd};
pub(crate) use record::{ControlCell, EndpointRole, EndpointSlot, Flight, RunState, TaskRecord};
pub(crate) use submit::{GroupKind, SubmitSpec, Target};
pub(crate) use succession::Recipe;

use copier::Queue;
use known::Known;
use record::Undo;
use tables::{Slots, TaskMap};

use crate::buffer::RemoteBuffer;
use crate::endpoint::{Endpoint, Ticket};
use crate::error::{Error, Interrupt};
use crate::fast::{LastMap, NumberMap};
use crate::graph::{Action, EndpointId, Event, RunId, Scheduler, TaskId};
use crate::mailbox::Bell;
use crate::memory::{Arena, SharedRegion};
use crate::process::ForkMark;
use crate::registration::Key;
use crate::trace::{now_ns, TraceLog};

/// What all threads of a `Worker` share.
pub(crate) struct Engine {
    /// Identity of the `Worker`, so that foreign handles are refused (design §15.5).
    pub(crate) uid: u64,
    pub(crate) core: Mutex<Core>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) arena: Arc<Arena>,
    /// Regions inherited from ancestors, in which arguments may lie.
    pub(crate) inherited: Vec<Arc<SharedRegion>>,
    pub(crate) interrupt: Arc<dyn Interrupt>,
    /// What is copied with no lock held.
    copies: Arc<Queue>,
    /// Threads inside a wait: while there are any, the driver thread stays out.
    waiters: AtomicUsize,
    /// Submits and waits so far: while there are new ones, the driver thread stays out too.
    calls: AtomicU64,
    /// As of the driver's last look.
    calls_seen: AtomicU64,
    driver_gate: Mutex<drive::Gate>,
    driver_wake: Condvar,
    /// The bell's value before the last look at what endpoints report.
    looked: AtomicU32,
    /// In a process that was forked off, nothing may be asked of workers: it would read answers that are its parent's.
    fork: ForkMark,
}

/// Everything that changes.
pub(crate) struct Core {
    pub(crate) scheduler: Scheduler,
    pub(crate) endpoints: Slots,
    known: Known,
    paces: pace::Paces,
    pub(crate) records: TaskMap<TaskRecord>,
    pub(crate) flights: NumberMap<Ticket, Flight>,
    fencing: HashMap<(TaskId, u32), fences::Fencing>,
    pub(crate) runs: LastMap<RunId, RunState>,
    /// CLOCK_MONOTONIC in ns as of this call: read once a submit and once a batch of events.
    pub(super) now_ns: u64,
    /// When a submitting thread looked last for what has ended, and the bell's value then.
    pumped_ns: u64,
    rung: u32,
    /// Submits that the driver was told of.
    counted: u64,
    pub(crate) trace: TraceLog,
    pub(crate) submitted: u64,
    pub(crate) finished: u64,
    /// Releases whose control failed; retried at the next flush and reported at close.
    pub(crate) pending_releases: Vec<RemoteBuffer>,
    /// Likewise, of what no handle was made for.
    pending_undos: Vec<Undo>,
    /// Copies that nobody waits for.
    unwatched: Vec<(&'static str, EndpointId, ControlCell)>,
    /// What the driver thread is to do without the lock.
    errands: succession::Errands,
    timers: attempts::Timers,
    staging: staging::Staging,
    /// A task with a time limit was submitted, ever.
    any_limits: bool,
    /// Times that an idempotent task is begun at most.
    pub(crate) max_attempts: u32,
    /// Attempts beyond the first.
    pub(crate) retried: u64,
    /// The last endpoint that was lost for good, in words.
    pub(crate) last_loss: Option<String>,
    /// A change is under way. Who finds it set with the lock free comes after a panic: nothing here can be relied on.
    pub(crate) torn: bool,
    /// `close()` has taken the endpoints: nothing is submitted any more.
    pub(crate) closed: bool,
    /// What a thread is registering or removing now.
    turns: HashSet<Key>,
    /// Calls that are planned and not yet submitted, by number of the plan: they may call what they were planned with.
    planned: NumberMap<u64, Digest>,
    next_plan: u64,
    /// Tasks are sent behind what they wait for, where that can be.
    chains: bool,
    actions: Vec<Action>,
    next_ticket: u64,
    next_run: u64,
}

impl Engine {
    pub(crate) fn new(
        arena: Arc<Arena>,
        inherited: Vec<Arc<SharedRegion>>,
        bell: Arc<Bell>,
        max_tasks: u32,
        interrupt: Arc<dyn Interrupt>,
        uid: u64,
    ) -> Arc<Self> {
        let copies = Queue::new(Arc::clone(&bell));
        let core = Core {
            scheduler: Scheduler::new(max_tasks),
            endpoints: Slots::default(),
            known: Known::default(),
            paces: pace::Paces::default(),
            records: TaskMap::default(),
            flights: NumberMap::default(),
            fencing: HashMap::new(),
            runs: LastMap::default(),
            now_ns: 0,
            pumped_ns: 0,
            rung: 0,
            counted: 0,
            trace: TraceLog::default(),
            submitted: 0,
            finished: 0,
            pending_releases: Vec::new(),
            pending_undos: Vec::new(),
            unwatched: Vec::new(),
            errands: succession::Errands::default(),
            timers: attempts::Timers::default(),
            staging: staging::Staging::new(Arc::clone(&copies)),
            any_limits: false,
            max_attempts: 1,
            retried: 0,
            last_loss: None,
            torn: false,
            closed: false,
            turns: HashSet::new(),
            planned: NumberMap::default(),
            next_plan: 0,
            chains: chain::switched_on(),
            actions: Vec::new(),
            next_ticket: 0,
            next_run: 0,
        };
        Arc::new(Self {
            uid,
            core: Mutex::new(core),
            bell,
            arena,
            inherited,
            interrupt,
            copies,
            waiters: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            calls_seen: AtomicU64::new(0),
            driver_gate: Mutex::default(),
            driver_wake: Condvar::new(),
            looked: AtomicU32::new(0),
            fork: ForkMark::new(),
        })
    }

    /// That this is the process whose engine it is. No system call, no lock.
    ///
    /// # Errors
    /// `Lifecycle` in one that was forked from it.
    pub(crate) fn check_process(&self, action: &'static str) -> Result<(), Error> {
        if self.fork.is_here() {
            return Ok(());
        }
        Err(drive::forked(action))
    }

    /// The region of this process's shared memory that holds `len` bytes at `address`, with the offset in it: a numpy view of
    /// an `alloc`'ed tensor is that tensor, not a foreign array.
    pub(crate) fn locate(&self, address: usize, len: u64) -> Option<(Arc<SharedRegion>, u64)> {
        std::iter::once(self.arena.region())
            .chain(self.inherited.iter())
            .find_map(|region| {
                let offset = (address as u64).checked_sub(region.address() as u64)?;
                (offset.checked_add(len)? <= region.len()).then(|| (Arc::clone(region), offset))
            })
    }
}

impl Core {
    /// Takes an endpoint into service.
    pub(crate) fn add_endpoint(
        &mut self,
        endpoint: Box<dyn Endpoint>,
        role: EndpointRole,
    ) -> EndpointId {
        let id = EndpointId(u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX));
        let slot = EndpointSlot::new(endpoint, role);
        let added = slot.added(id);
        self.endpoints.push(slot);
        self.feed(added);
        self.allow_chains(id);
        id
    }

    /// Takes a fresh endpoint into service in the place of one that was lost. What was still owed to the old one went with it.
    pub(crate) fn follow(&mut self, id: EndpointId, fresh: Box<dyn Endpoint>) {
        let Some(slot) = self.slot_mut(id) else {
            return;
        };
        slot.take_over(fresh);
        slot.lost = None;
        let added = slot.added(id);
        let owed = std::mem::take(&mut self.pending_undos);
        let (gone, kept) = owed.into_iter().partition(|undo| undo.endpoint == id);
        self.pending_undos = kept;
        let gone: Vec<Undo> = gone;
        for undo in gone {
            self.unpin_if(undo.pin);
        }
        self.allow_chains(id);
        self.feed(added);
    }

    /// The session that is, or was last, at an endpoint.
    pub(crate) fn session_at(&self, id: EndpointId) -> Option<u64> {
        self.slot(id)?.info.session
    }

    /// Refuses a handle of a session that has ended and was followed by another.
    pub(crate) fn check_session(&self, buffer: &RemoteBuffer) -> Result<(), Error> {
        match buffer.ended(|id| self.session_at(id)) {
            None => Ok(()),
            Some(reason) => Err(Error::handle("buffer", reason)),
        }
    }

    pub(crate) fn slot(&self, id: EndpointId) -> Option<&EndpointSlot> {
        self.endpoints.get(id.0 as usize)
    }

    pub(crate) fn slot_mut(&mut self, id: EndpointId) -> Option<&mut EndpointSlot> {
        self.endpoints.get_mut(id.0 as usize)
    }

    pub(crate) fn new_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    pub(crate) fn new_run(&mut self) -> RunId {
        self.next_run += 1;
        let run = RunId(self.next_run);
        self.runs.insert(run, RunState::default());
        run
    }

    /// Reads the clock for all that follows in this call.
    pub(super) fn tick(&mut self) {
        self.now_ns = now_ns();
        self.scheduler.advance(self.now_ns);
    }

    /// Tells the scheduler and carries out what it asks for, until it asks for nothing.
    pub(crate) fn feed(&mut self, event: Event) {
        // Within a pump or a submit the clock was read already.
        if !self.torn {
            self.tick();
        }
        let mut actions = std::mem::take(&mut self.actions);
        self.scheduler.handle(event, &mut actions);
        self.carry_out(actions);
    }

    /// Carries out actions. They may cause events (a submit to an endpoint that is just lost), which cause further actions.
    pub(crate) fn carry_out(&mut self, mut actions: Vec<Action>) {
        if actions.is_empty() {
            self.actions = actions;
            return;
        }
        let before = std::mem::replace(&mut self.torn, true);
        let mut next = 0;
        while next < actions.len() {
            let action = actions[next];
            next += 1;
            let event = match action {
                Action::Dispatch {
                    task,
                    member,
                    endpoint,
                } => self.dispatch(task, member, endpoint, &[]),
                Action::Chain { task, endpoint } => self.dispatch_behind(task, endpoint),
                Action::Waits { task } => {
                    if let Some(record) = self.records.get_mut(&task) {
                        record.steps.note_at(self.now_ns, 0, story::StepKind::Waits);
                    }
                    None
                }
                Action::StartCopy { task } => self.start_copy(task),
                Action::Finished {
                    task,
                    run,
                    outcome,
                    cause,
                } => {
                    self.finish(task, run, outcome, cause);
                    None
                }
            };
            if let Some(event) = event {
                self.scheduler.handle(event, &mut actions);
            }
        }
        actions.clear();
        self.actions = actions;
        self.torn = before;
    }
}
