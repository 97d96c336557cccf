//! Large arrays, copied with no lock held: into shared memory before a task, back after it, and from one place of this process to
//! another for `orch.copy`.
//!
//! The core says what is to be copied ([`Queue::push`]) and is told what became of it, once for each job. Whoever waits copies, between
//! two looks at the engine, as it drives; a thread of its own does while nobody waits. Jobs take turns, a step each, so
//! that a large one does not hold up a small one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

use super::Engine;
use crate::failpoint::hit;
use crate::mailbox::Bell;
use crate::memory::{ArenaBlock, HostMemory, MemoryError};

/// Bytes of one turn: tenths of a millisecond, in which a waiter sees nothing else.
const STEP_BYTES: usize = 1 << 20;
/// Time between two looks at a job that a test holds.
const HELD_PERIOD: Duration = Duration::from_millis(2);

/// One range that is copied. Both sides are held until the job has ended.
pub(super) enum Part {
    /// An array into the block that stands for it.
    Fill {
        block: Arc<ArenaBlock>,
        from: HostMemory,
    },
    /// Between two places of this process.
    Copy { to: HostMemory, from: HostMemory },
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Fill { from, .. } | Self::Copy { from, .. } => from.len(),
        }
    }

    /// Copies the next bytes; returns how many.
    fn step(&self, done: usize) -> Result<usize, MemoryError> {
        let left = self.len() - done;
        match self {
            Self::Fill { block, from } => {
                let step = left.min(STEP_BYTES);
                block.fill_part(from, done, step).map(|()| step)
            }
            // Which end comes first matters.
            Self::Copy { to, from } if to.overlaps(from) => to.copy_from(from).map(|()| left),
            Self::Copy { to, from } => {
                let step = left.min(STEP_BYTES);
                to.slice(done, step)?.copy_from(&from.slice(done, step)?)?;
                Ok(step)
            }
        }
    }
}

/// What is to be copied together.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) parts: SmallVec<[Part; 1]>,
    /// Set when nobody needs the bytes any more.
    pub(super) called_off: Arc<AtomicBool>,
    /// Bytes of the last part that are there.
    done: usize,
}

impl Job {
    pub(super) fn new(number: u64, parts: SmallVec<[Part; 1]>) -> Self {
        Self {
            number,
            parts,
            called_off: Arc::default(),
            done: 0,
        }
    }

    /// Makes the next step.
    fn step(&mut self) -> Step {
        if self.called_off.load(Ordering::Relaxed) {
            return Step::Ended(Ended::CalledOff);
        }
        let Some(part) = self.parts.last() else {
            return Step::Ended(Ended::Copied);
        };
        let (held, armed) = match part {
            Part::Fill { .. } => (hit("engine.hold_stage"), hit("engine.stage")),
            Part::Copy { .. } => (hit("engine.hold_copy"), hit("engine.copy")),
        };
        if held.is_err() {
            return Step::Held;
        }
        if let Err(injected) = armed {
            return Step::Ended(Ended::Failed(injected.to_string()));
        }
        match part.step(self.done) {
            Err(error) => Step::Ended(Ended::Failed(error.to_string())),
            Ok(count) => {
                self.done += count;
                if self.done >= part.len() {
                    self.parts.pop();
                    self.done = 0;
                }
                match self.parts.is_empty() {
                    true => Step::Ended(Ended::Copied),
                    false => Step::Made,
                }
            }
        }
    }
}

/// What came of a turn.
enum Step {
    Made,
    Ended(Ended),
    /// A test does not let it go on.
    Held,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Copied,
    Failed(String),
    CalledOff,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Jobs in somebody's hands.
    at_work: usize,
    /// The thread is to work until nothing is left.
    called: bool,
    /// Nothing more is copied, whatever is left.
    stopped: bool,
}

/// What waits to be copied.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// As many as there are in `state`, to be looked at without its lock.
    waiting: AtomicUsize,
    bell: Arc<Bell>,
}

impl Queue {
    pub(super) fn new(bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            bell,
        })
    }

    /// Adds a job. May be called with the engine's lock held: nobody holds the queue's for longer than a look.
    pub(super) fn push(&self, job: Job) {
        self.state.lock().jobs.push_back(job);
        self.waiting.fetch_add(1, Ordering::Release);
        // Who waits copies, or the driver calls the thread.
        self.bell.ring();
    }

    pub(super) fn has_jobs(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Has the thread copy what there is.
    pub(super) fn call(&self) {
        self.state.lock().called = true;
        self.changed.notify_all();
    }

    fn take(&self, state: &mut State) -> Option<Job> {
        let job = state.jobs.pop_front().filter(|_| !state.stopped)?;
        self.waiting.fetch_sub(1, Ordering::Release);
        state.at_work += 1;
        Some(job)
    }

    fn give_back(&self, job: Job) {
        let mut state = self.state.lock();
        state.at_work -= 1;
        state.jobs.push_back(job);
        self.waiting.fetch_add(1, Ordering::Release);
    }

    fn ended(&self) {
        let mut state = self.state.lock();
        state.at_work -= 1;
        if state.at_work == 0 && state.jobs.is_empty() {
            self.changed.notify_all();
        }
    }

    /// For the thread: the job whose turn it is; `None` when it is to end.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            if state.called {
                if let Some(job) = self.take(&mut state) {
                    return Some(job);
                }
                state.called = false;
            }
            self.changed.wait(&mut state);
        }
    }
}

impl Engine {
    /// Makes a step of a copy, if there is one to be made.
    pub(super) fn copy_a_step(&self) -> bool {
        if !self.copies.has_jobs() {
            return false;
        }
        let job = {
            let mut state = self.copies.state.lock();
            self.copies.take(&mut state)
        };
        job.is_some_and(|job| self.carry_on(job))
    }

    /// False when a test does not let it go on.
    fn carry_on(&self, mut job: Job) -> bool {
        let step = job.step();
        match step {
            Step::Ended(ended) => {
                let number = job.number;
                // What it holds may be large: it goes with no lock held.
                drop(job);
                self.tell_copied(number, &ended);
                self.copies.ended();
                true
            }
            Step::Made | Step::Held => {
                self.copies.give_back(job);
                matches!(step, Step::Made)
            }
        }
    }
}

/// Owns the thread. Dropping it ends and joins the thread; what was not copied then stays as it is.
pub(super) struct Copier {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    pub(super) fn start(engine: Arc<Engine>) -> std::io::Result<Self> {
        let queue = Arc::clone(&engine.copies);
        let thread = std::thread::Builder::new()
            .name("echelon-copier".into())
            .spawn(move || {
                while let Some(job) = engine.copies.next() {
                    if !engine.carry_on(job) {
                        std::thread::park_timeout(HELD_PERIOD);
                    }
                }
            })?;
        Ok(Self {
            queue,
            thread: Some(thread),
        })
    }

    /// Waits until nothing is left to copy, or until `deadline`.
    pub(super) fn drain(&self, deadline: Instant) {
        self.queue.call();
        let mut state = self.queue.state.lock();
        while state.at_work > 0 || !state.jobs.is_empty() {
            let waited = self.queue.changed.wait_until(&mut state, deadline);
            if waited.timed_out() {
                return;
            }
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        let left = {
            let mut state = self.queue.state.lock();
            state.stopped = true;
            self.queue.waiting.store(0, Ordering::Release);
            std::mem::take(&mut state.jobs)
        };
        self.queue.changed.notify_all();
        drop(left);
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                tracing::error!("the copier thread panicked");
            }
        }
    }
}
