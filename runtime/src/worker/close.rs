//! `close()`: bounded, idempotent, from any state and thread. Everything is attempted, what is left is named, and a later
//! `close()` goes on with it.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Live, Worker, WorkerState};
use crate::error::{Error, CLOSED};

impl Worker {
    /// Ends every worker, thread and region. Running tasks are not waited for beyond `close_timeout_s`.
    ///
    /// # Errors
    /// [`Error::Close`] naming what could not be ended; call it again to go on.
    pub fn close(&self) -> Result<(), Error> {
        // Dropped last, with no lock held: what a callable holds may call back into the worker.
        let mut registrations = Vec::new();
        let one_at_a_time = self.0.closing.lock();
        let Some(_inside) = Inside::enter(&one_at_a_time) else {
            // What ends in the outer call of this thread calls again: there is nothing that it could wait for.
            return Ok(());
        };
        let deadline = Instant::now() + self.0.settings.close_timeout;
        if !self.begin_closing(deadline)? {
            return Ok(());
        }
        // Taken out first: whoever calls meanwhile is told that the worker is closing.
        let live = self.0.live.write().take();
        let left = match live.or_else(|| self.0.left.lock().take()) {
            Some(live) => self.end(live, deadline),
            None => Leftover::default(),
        };
        let is_done = left.survivors.is_empty();
        {
            let mut life = self.0.life.lock();
            if is_done {
                if life.state == WorkerState::Closing {
                    life.state = WorkerState::Closed;
                }
                std::mem::swap(&mut registrations, &mut life.registrations);
            }
        }
        self.0.changed.notify_all();
        if is_done && left.uncertain.is_empty() {
            return Ok(());
        }
        Err(left.into())
    }

    /// Waits for an `init()` in another thread, which is called off, and decides whether there is anything to end.
    fn begin_closing(&self, deadline: Instant) -> Result<bool, Error> {
        let mut life = self.0.life.lock();
        let called_off = life.state == WorkerState::Starting;
        if called_off {
            // Every wait of init() asks for it, within 50 ms.
            self.0.called_off.store(true, Ordering::Release);
        }
        while life.state == WorkerState::Starting {
            if self.0.changed.wait_until(&mut life, deadline).timed_out() {
                return Err(Error::Close {
                    survivors: vec!["init(), called off, still rolls back in its thread".into()],
                });
            }
        }
        let has_left = self.0.left.lock().is_some();
        match life.state {
            WorkerState::Ready | WorkerState::Closing => {
                life.state = WorkerState::Closing;
                self.call_off_reopening(&mut life, deadline)?;
                Ok(true)
            }
            // What init() could not end when it rolled back is still to be ended; the state keeps its cause.
            WorkerState::Failed(_) if has_left => Ok(true),
            WorkerState::Failed(_) if !called_off => Ok(false),
            WorkerState::Closed | WorkerState::Given => Ok(false),
            WorkerState::New | WorkerState::Starting | WorkerState::Failed(_) => {
                life.state = WorkerState::Closed;
                let early = life.early.take();
                drop(life);
                // Ends what was started ahead of an `init()` that never came.
                drop(early);
                Ok(false)
            }
        }
    }

    /// Ends what there is; what does not end stays here, for the next `close()`.
    pub(super) fn end(&self, mut live: Live, deadline: Instant) -> Leftover {
        let left = live.end(deadline);
        if !left.survivors.is_empty() {
            *self.0.left.lock() = Some(live);
        }
        left
    }
}

/// Set while a `close()` of this thread is at work.
struct Inside<'a>(&'a Cell<bool>);

impl<'a> Inside<'a> {
    fn enter(flag: &'a Cell<bool>) -> Option<Self> {
        (!flag.replace(true)).then_some(Self(flag))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// What an end came to.
#[derive(Default)]
pub(crate) struct Leftover {
    /// What still exists, by name.
    pub(crate) survivors: Vec<String>,
    /// What nobody can say has ended, and nobody can end any more: told once.
    pub(crate) uncertain: Vec<String>,
}

impl From<Leftover> for Error {
    fn from(mut left: Leftover) -> Self {
        left.survivors.append(&mut left.uncertain);
        Self::Close {
            survivors: left.survivors,
        }
    }
}

impl Live {
    /// Ends everything: all are told first, then waited for under one deadline. Returns what is left.
    fn end(&mut self, deadline: Instant) -> Leftover {
        let mut driver = self.driver.take();
        if let Some(driver) = &mut driver {
            driver.stop();
        }
        let mut endpoints = {
            let mut core = self.engine.core.lock();
            if !core.torn {
                core.pump();
                core.flush_releases();
            }
            core.take_endpoints()
        };
        for endpoint in &mut endpoints {
            endpoint.begin_close();
        }
        if let Some(driver) = driver {
            driver.finish_copies(deadline);
        }
        let mut survivors = Vec::new();
        let mut left = Vec::new();
        for (index, mut endpoint) in endpoints.into_iter().enumerate() {
            let ended = endpoint.finish_close(deadline);
            self.engine
                .core
                .lock()
                .take_last_answers(index, &mut *endpoint);
            if let Err(survivor) = ended {
                survivors.push(survivor);
                left.push((index, endpoint));
            }
        }
        let mut core = self.engine.core.lock();
        let mut uncertain = core.give_up(CLOSED, left);
        uncertain.extend(core.unwatched_failures());
        drop(core);
        self.engine.wake();
        if survivors.is_empty() {
            if let Err(error) = self.keeper.stop(deadline) {
                survivors.push(error.to_string());
            }
        }
        Leftover {
            survivors,
            uncertain,
        }
    }
}
