//! `close()`: bounded, idempotent, from any state and thread. Everything is attempted, what is left is named, and a later
//! `close()` goes on with it.

use std::time::Instant;

use super::{Live, Worker, WorkerState};
use crate::error::Error;

impl Worker {
    /// Ends every worker, thread and region. Running tasks are not waited for beyond `close_timeout_s`.
    ///
    /// # Errors
    /// [`Error::Close`] naming what could not be ended; call it again to go on.
    pub fn close(&self) -> Result<(), Error> {
        // Dropped last, with no lock held: what a callable holds may call back into the worker.
        let mut registrations = Vec::new();
        let _one_at_a_time = self.0.closing.lock();
        let deadline = Instant::now() + self.0.settings.close_timeout;
        {
            let mut life = self.0.life.lock();
            while life.state == WorkerState::Starting {
                // init() is bounded by its own deadline and always notifies.
                if self.0.changed.wait_until(&mut life, deadline).timed_out() {
                    return Err(Error::Close {
                        survivors: vec!["init() is still running in another thread".into()],
                    });
                }
            }
            match life.state {
                WorkerState::Ready | WorkerState::Closing => life.state = WorkerState::Closing,
                WorkerState::Closed | WorkerState::Failed(_) | WorkerState::Given => return Ok(()),
                WorkerState::New | WorkerState::Starting => {
                    life.state = WorkerState::Closed;
                    return Ok(());
                }
            }
        }
        let survivors = {
            // Taken out first: whoever calls meanwhile is told that the worker is closing.
            let taken = self.0.live.write().take();
            match taken {
                Some(mut live) => {
                    let survivors = live.end(deadline);
                    if !survivors.is_empty() {
                        *self.0.live.write() = Some(live);
                    }
                    survivors
                }
                None => Vec::new(),
            }
        };
        let mut life = self.0.life.lock();
        if survivors.is_empty() {
            life.state = WorkerState::Closed;
            std::mem::swap(&mut registrations, &mut life.registrations);
            self.0.changed.notify_all();
            return Ok(());
        }
        Err(Error::Close { survivors })
    }
}

impl Live {
    /// Ends everything: all are told first, then waited for under one deadline. Returns what is left.
    pub(crate) fn end(&mut self, deadline: Instant) -> Vec<String> {
        self.driver = None;
        let mut endpoints = {
            let mut core = self.engine.core.lock();
            core.pump();
            core.flush_releases();
            core.take_endpoints()
        };
        for endpoint in &mut endpoints {
            endpoint.begin_close();
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
        core.give_up("the worker was closed", left);
        drop(core);
        self.engine.wake();
        if survivors.is_empty() {
            if let Err(error) = self.keeper.stop(deadline) {
                survivors.push(error.to_string());
            }
        }
        survivors
    }
}
