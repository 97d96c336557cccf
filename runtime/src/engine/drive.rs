//! Who drives: a waiter if there is one, the driver thread otherwise. All endpoints ring one bell.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::copier::Copier;
use super::{Core, Engine};
use crate::error::Error;

/// Longest time without asking the caller whether to go on.
pub(super) const INTERRUPT_PERIOD: Duration = Duration::from_millis(50);

/// While threads submit and wait, the driver looks in this often whether they still do, and does nothing else: it would fight with
/// them for the lock and for a core at every completion.
const LOOK_PERIOD: Duration = Duration::from_micros(100);

/// The longer they go on, the less often it looks, down to this: each look takes a core from one of them.
const LOOK_PERIOD_MAX: Duration = Duration::from_micros(800);

/// Time between two looks of a submitting thread for what has ended.
const SUBMITTER_PERIOD_NS: u64 = 5_000;

/// Longest sleep of the idle driver. The bell wakes it at once; this only bounds the wait.
const IDLE_PERIOD: Duration = Duration::from_secs(5);

/// What the driver thread is told.
#[derive(Default)]
pub(super) struct Gate {
    stopped: bool,
    /// There is something to do also while others wait and drive.
    errands: bool,
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// The deadline passed.
    Deadline,
    /// The caller's check said stop.
    Interrupted,
    /// This process was forked from the engine's.
    Forked,
    /// A panic left the engine's state half changed: nothing can be waited for any more.
    Torn,
}

impl WaitEnd {
    /// As the error of a call whose wait has no deadline of its own.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Deadline | Self::Interrupted => Error::Interrupted,
            Self::Torn => torn("go on with"),
            Self::Forked => forked("wait for"),
        }
    }
}

/// The error of everything in a process that was forked off.
pub(super) fn forked(action: &'static str) -> Error {
    Error::Lifecycle {
        state: "in the process that this one was forked from".into(),
        action,
        hint: "make a Worker here".into(),
    }
}

/// The error of everything that a panic has made impossible.
pub(super) fn torn(action: &'static str) -> Error {
    Error::Lifecycle {
        state: "broken by a panic inside Echelon".into(),
        action,
        hint: "close() it and make a new Worker; the panic is a fault of Echelon, please report it with its text on stderr".into(),
    }
}

impl Engine {
    /// Drives until `ready` gives a value.
    pub(crate) fn wait_until<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut Core) -> Option<T>,
    ) -> Result<T, WaitEnd> {
        if !self.fork.is_here() {
            return Err(WaitEnd::Forked);
        }
        let _waiting = Waiting::enter(self);
        let mut next_check = Instant::now() + INTERRUPT_PERIOD;
        loop {
            let seen = self.bell.seen();
            let (value, due, others_ring) = self.drive_once(seen.rung(), &mut ready)?;
            if let Some(value) = value {
                return Ok(value);
            }
            let now = Instant::now();
            if now >= next_check {
                self.interrupt.check().map_err(|_| WaitEnd::Interrupted)?;
                // What was run there may have forked.
                if !self.fork.is_here() {
                    return Err(WaitEnd::Forked);
                }
                next_check = Instant::now() + INTERRUPT_PERIOD;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(WaitEnd::Deadline);
            }
            if self.copy_a_step() {
                continue;
            }
            let until = [deadline, due]
                .into_iter()
                .flatten()
                .fold(next_check, Instant::min);
            let _rung = self.bell.wait_beside(seen, until, others_ring);
        }
    }

    /// Makes progress once; also says when the next timer is due, and whether another process may ring the bell.
    fn drive_once<T>(
        &self,
        rung: u32,
        ready: &mut impl FnMut(&mut Core) -> Option<T>,
    ) -> Result<(Option<T>, Option<Instant>, bool), WaitEnd> {
        let mut core = self.core.lock();
        if core.torn {
            return Err(WaitEnd::Torn);
        }
        let progressed = core.pump();
        self.looked.store(rung, Ordering::SeqCst);
        let value = ready(&mut core);
        let errands = core.has_errands();
        let (due, added) = (core.timers.next(), core.timers.take_added());
        let mut live = core.endpoints.iter().filter(|slot| slot.lost.is_none());
        let others_ring = live.any(|slot| slot.endpoint.may_ring());
        drop(core);
        if errands {
            self.call_driver();
        } else if added {
            // Whoever else sleeps knows of later ones only, and this thread may not wait any more.
            self.bell.alarm();
        }
        // What happened may be what another waiter waits for, and it may be asleep.
        if progressed && self.waiters.load(Ordering::Acquire) > 1 {
            self.bell.ring();
        }
        Ok((value, due, others_ring))
    }

    /// A thread comes to submit.
    pub(super) fn visit(&self) -> Visit<'_> {
        let present = self.bell.stands_by();
        if present {
            self.bell.come();
        }
        Visit {
            engine: self,
            present,
        }
    }

    /// After a submit: takes what has ended meanwhile, now and then, and gives the lock back. The driver sees that somebody does.
    pub(super) fn leave_submit(&self, mut core: MutexGuard<'_, Core>, visit: &Visit<'_>) {
        let submitted = core.submitted;
        // A refused submit does nothing for others: whoever repeats it for ever must not keep the driver out.
        let admitted = std::mem::replace(&mut core.counted, submitted) != submitted && !core.torn;
        if admitted {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        // Taken before the look, so that what comes later is seen as new.
        let rung = self.bell.value();
        let left_to_us = visit.present && self.looked.load(Ordering::SeqCst) != rung;
        let due = admitted && core.now_ns.saturating_sub(core.pumped_ns) > SUBMITTER_PERIOD_NS;
        if (due || left_to_us) && !core.torn {
            core.pumped_ns = core.now_ns;
            // Sessions ring nothing as long as somebody passes by and reads what they have answered.
            let read = self.bell.glance();
            if std::mem::replace(&mut core.rung, rung) != rung || read || left_to_us {
                self.look(core, rung);
            }
        }
    }

    /// Takes what has come, and tells whom it concerns.
    fn look(&self, mut core: MutexGuard<'_, Core>, rung: u32) {
        let progressed = core.pump();
        self.looked.store(rung, Ordering::SeqCst);
        let (errands, added) = (core.has_errands(), core.timers.take_added());
        drop(core);
        if errands {
            self.call_driver();
        } else if added {
            // Whoever sleeps, if only the driver, knows of later times only.
            self.bell.alarm();
        } else if progressed && self.waiters.load(Ordering::Acquire) > 0 {
            self.bell.ring();
        }
    }

    /// Wakes the driver thread for what must not be done under the lock.
    pub(crate) fn call_driver(&self) {
        self.driver_gate.lock().errands = true;
        self.driver_wake.notify_one();
        self.bell.alarm();
    }

    /// Wakes whoever sleeps: the state was changed from outside.
    pub(crate) fn wake(&self) {
        self.bell.alarm();
    }
}

/// A submit. While the driver stands by, it takes what ends meanwhile, so that a worker that is quicker than the submit does not
/// wake the driver for it.
pub(super) struct Visit<'a> {
    engine: &'a Engine,
    /// The driver relies on it.
    present: bool,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let engine = self.engine;
        if !self.present || !engine.fork.is_here() {
            return;
        }
        engine.go();
        // It copies nothing itself, nor does the driver, which sleeps; whoever waits does.
        if engine.copies.has_jobs() && engine.waiters.load(Ordering::Acquire) == 0 {
            engine.copies.call();
        }
    }
}

/// Counts this thread among the waiters, who see to whatever is rung.
struct Waiting<'a>(&'a Engine);

impl<'a> Waiting<'a> {
    fn enter(engine: &'a Engine) -> Self {
        engine.waiters.fetch_add(1, Ordering::AcqRel);
        engine.calls.fetch_add(1, Ordering::Relaxed);
        engine.bell.come();
        Self(engine)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let engine = self.0;
        if !engine.fork.is_here() {
            // It came in the other process, and will go there.
            return;
        }
        let last = engine.waiters.fetch_sub(1, Ordering::AcqRel) == 1;
        engine.go();
        if !last {
            engine.bell.pass_lead();
        }
        // What it copied for others goes on without it.
        if engine.copies.has_jobs() {
            engine.copies.call();
        }
    }
}

impl Engine {
    /// Somebody who was present goes. Who stands by wakes up for what was rung since anybody looked: not since this one came, as
    /// others may have left it to this one.
    fn go(&self) {
        self.bell.go(self.looked.load(Ordering::SeqCst));
    }
}

/// The thread that drives when nobody waits, and the one that copies. Dropping it stops and joins both.
pub(crate) struct Driver {
    engine: Arc<Engine>,
    thread: Option<JoinHandle<()>>,
    /// What nobody who drives has time for.
    copier: Copier,
}

impl Driver {
    /// Starts both threads.
    pub(crate) fn start(engine: Arc<Engine>) -> std::io::Result<Self> {
        let of_thread = Arc::clone(&engine);
        *engine.driver_gate.lock() = Gate::default();
        let copier = Copier::start(Arc::clone(&engine))?;
        let thread = std::thread::Builder::new()
            .name("echelon-driver".into())
            .spawn(move || of_thread.drive_while_nobody_waits())?;
        Ok(Self {
            engine,
            thread: Some(thread),
            copier,
        })
    }

    /// Ends the driving thread.
    pub(crate) fn stop(&mut self) {
        self.engine.driver_gate.lock().stopped = true;
        self.engine.driver_wake.notify_one();
        self.engine.bell.alarm();
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                tracing::error!("the driver thread panicked");
            }
        }
    }

    /// Lets what is being copied arrive, until `deadline`: an array that is half written is of no use. Then ends the copying thread.
    pub(crate) fn finish_copies(self, deadline: Instant) {
        self.copier.drain(deadline);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine {
    /// Returns when no thread calls any more, or there are errands; false when the driver is to end.
    fn wait_for_duty(&self) -> bool {
        let mut gate = self.driver_gate.lock();
        let mut calls = self.calls_seen.load(Ordering::Relaxed);
        let mut period = LOOK_PERIOD;
        loop {
            if gate.stopped {
                return false;
            }
            if std::mem::take(&mut gate.errands) {
                return true;
            }
            let now = self.calls.load(Ordering::Relaxed);
            let quiet = now == calls;
            calls = now;
            self.calls_seen.store(calls, Ordering::Relaxed);
            if quiet {
                return true;
            }
            self.driver_wake.wait_for(&mut gate, period);
            period = (period * 2).min(LOOK_PERIOD_MAX);
        }
    }

    fn drive_while_nobody_waits(&self) {
        loop {
            let alarms = self.bell.alarms();
            if !self.wait_for_duty() {
                return;
            }
            let seen = self.bell.value();
            let (progressed, errands, due) = {
                let mut core = self.core.lock();
                if core.torn {
                    return;
                }
                let progressed = core.pump();
                self.looked.store(seen, Ordering::SeqCst);
                (progressed, core.has_errands(), core.timers.next())
            };
            if self.copies.has_jobs() {
                self.copies.call();
            }
            if errands {
                self.run_errands();
                continue;
            }
            if progressed && self.waiters.load(Ordering::Acquire) > 0 {
                self.bell.ring();
            }
            if self.driver_gate.lock().stopped {
                return;
            }
            let idle = Instant::now() + IDLE_PERIOD;
            // While somebody waits, nothing wakes it but a timer, or what is left behind.
            self.bell
                .stand_by(seen, alarms, due.map_or(idle, |due| due.min(idle)));
        }
    }
}
