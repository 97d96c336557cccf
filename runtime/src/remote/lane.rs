//! The edge of the command lane: one thread that polls the socket, and a first write by whoever submits.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{bounded, Receiver};
use echelon_wire::order::Scope;
use parking_lot::Mutex;
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};

use super::reader::FrameReader;
use super::stall::StallClock;
use super::state::{LaneConfig, LaneError, LaneState, Request};
use crate::channel::{timespec, Channel, Step};
use crate::endpoint::{EndpointEvent, Ticket};

/// Rings the worker's bell.
pub(crate) type Ring = Arc<dyn Fn() + Send + Sync>;

struct Inner {
    state: LaneState,
    /// Why it ended; set once. Closing in order is an end too.
    lost: Option<String>,
    /// We said SHUTDOWN: the other side closing is what we wait for.
    closing: bool,
}

/// What the thread and the endpoint share.
pub(crate) struct Lane {
    channel: Box<dyn Channel>,
    config: LaneConfig,
    inner: Mutex<Inner>,
    wake: OwnedFd,
    ring: Ring,
    clock: Arc<StallClock>,
}

/// What the thread waits for after it has done what could be done.
struct Turn {
    /// The socket took less than there is.
    blocked: bool,
    deadline: Instant,
}

/// The thread that serves a lane, joined by [`LaneThread::join`].
pub(crate) struct LaneThread {
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
}

impl Lane {
    /// Starts serving a lane whose HELLO was read.
    pub(crate) fn start(
        channel: Box<dyn Channel>,
        config: LaneConfig,
        name: &str,
        ring: Ring,
        clock: Arc<StallClock>,
    ) -> std::io::Result<(Arc<Self>, LaneThread)> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inner = Inner {
            state: LaneState::new(config),
            lost: None,
            closing: false,
        };
        let lane = Arc::new(Self {
            channel,
            config,
            inner: Mutex::new(inner),
            wake,
            ring,
            clock,
        });
        let of_thread = Arc::clone(&lane);
        let (end, ended) = bounded(1);
        let thread = std::thread::Builder::new()
            .name(format!("echelon-{name}"))
            .spawn(move || {
                of_thread.serve();
                let _ = end.send(());
            })?;
        Ok((
            lane,
            LaneThread {
                thread: Some(thread),
                ended,
            },
        ))
    }

    /// Queues a request; what the socket takes at once is written here, the rest by the thread. The reason when the lane has ended.
    pub(crate) fn send(&self, request: Request) -> Result<(), String> {
        let mut inner = self.inner.lock();
        if let Some(reason) = &inner.lost {
            return Err(reason.clone());
        }
        if inner.closing {
            return Err("it is being closed".into());
        }
        inner.state.enqueue(request, Instant::now());
        let refused = !inner.state.events.is_empty();
        // A broken connection is found by the thread, which may still have answers to read.
        let left = self.write(&mut inner).unwrap_or(true);
        drop(inner);
        if left {
            self.wake();
        }
        if refused {
            (self.ring)();
        }
        Ok(())
    }

    /// The requests without an answer that one with this scope may not overtake. What the caller has not polled yet counts as answered.
    pub(crate) fn unanswered(&self, scope: &Scope) -> Vec<Ticket> {
        self.inner.lock().state.unanswered(scope)
    }

    /// Gives an answer that needed no frame.
    pub(crate) fn answer(&self, event: EndpointEvent) -> Result<(), String> {
        {
            let mut inner = self.inner.lock();
            if let Some(reason) = &inner.lost {
                return Err(reason.clone());
            }
            inner.state.events.push_back(event);
        }
        (self.ring)();
        Ok(())
    }

    /// The next event; `Lost` is given once, as the last.
    pub(crate) fn poll_event(&self, lost_told: &mut bool) -> Option<EndpointEvent> {
        if *lost_told {
            return None;
        }
        let mut inner = self.inner.lock();
        if let Some(event) = inner.state.events.pop_front() {
            return Some(event);
        }
        let reason = inner.lost.clone()?;
        *lost_told = true;
        // Whether the session had begun with what was sent is not known here.
        let unstarted = Vec::new();
        Some(EndpointEvent::Lost { reason, unstarted })
    }

    /// Ends the lane with a reason; the first one counts. Answers that have arrived stay, later ones are never read.
    pub(crate) fn lose(&self, reason: &str) {
        {
            let mut inner = self.inner.lock();
            if inner.lost.is_some() {
                return;
            }
            inner.lost = Some(reason.to_owned());
        }
        self.channel.shutdown();
        self.wake();
        (self.ring)();
    }

    /// True once it has ended, for whatever reason.
    pub(crate) fn is_lost(&self) -> bool {
        self.inner.lock().lost.is_some()
    }

    /// Says SHUTDOWN, then that nothing more comes.
    pub(crate) fn begin_close(&self) {
        let mut inner = self.inner.lock();
        if inner.lost.is_some() || inner.closing {
            return;
        }
        inner.closing = true;
        inner.state.shut_down(Instant::now());
        let left = self.write(&mut inner).unwrap_or(true);
        drop(inner);
        if left {
            self.wake();
        }
    }

    fn wake(&self) {
        // A full counter means that it is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Writes what the socket takes. True when the thread has to go on with it.
    fn write(&self, inner: &mut Inner) -> Result<bool, LaneError> {
        loop {
            let pieces = inner.state.unwritten();
            if pieces.is_empty() {
                if inner.closing {
                    self.channel.finish_writing();
                }
                return Ok(false);
            }
            let step = self.channel.try_write(&pieces);
            drop(pieces);
            match step {
                Ok(Step::Moved(count)) => inner.state.wrote(count, Instant::now()),
                Ok(Step::Blocked | Step::Ended) => return Ok(true),
                Err(error) => return Err(LaneError::Io(error.to_string())),
            }
        }
    }

    /// Reads what is there. The lock is not held meanwhile: submitting never waits for a large reply to arrive.
    fn read(&self, reader: &mut FrameReader) -> Result<(), LaneError> {
        loop {
            match self.channel.try_read(reader.space()) {
                Ok(Step::Moved(count)) => {
                    let Some(frame) = reader.took(count, Instant::now())? else {
                        continue;
                    };
                    let mut inner = self.inner.lock();
                    if inner.lost.is_some() {
                        // First verdict wins: a late answer is dropped.
                        return Ok(());
                    }
                    inner.state.on_frame(&frame, Instant::now())?;
                    let written = self.write(&mut inner);
                    drop(inner);
                    (self.ring)();
                    written?;
                }
                Ok(Step::Blocked) => return Ok(()),
                Ok(Step::Ended) => return Err(LaneError::Ended),
                Err(error) => return Err(LaneError::Io(error.to_string())),
            }
        }
    }

    /// Does all that can be done now; `None` when the lane has ended.
    fn turn(&self, reader: &mut FrameReader) -> Result<Option<Turn>, LaneError> {
        let (now, timeout) = (Instant::now(), self.config.timeout);
        // What has arrived is read before any bound is judged: a process that was stopped for a while owes its peer that.
        self.read(reader)?;
        let mut inner = self.inner.lock();
        if inner.lost.is_some() {
            return Ok(None);
        }
        let blocked = self.write(&mut inner)?;
        inner.state.check_deadlines(now)?;
        reader.check(timeout, now)?;
        // A control that a submitter writes while this thread sleeps is due no earlier than `timeout` from now, so nobody has
        // to wake the thread for it.
        let owed = [
            inner.state.next_deadline(),
            reader.begun().map(|b| b + timeout),
        ];
        let deadline = owed.into_iter().flatten().fold(now + timeout, Instant::min);
        Ok(Some(Turn { blocked, deadline }))
    }

    fn serve(&self) {
        let LaneConfig {
            session,
            worker,
            features,
            credits,
            ..
        } = self.config;
        let mut reader = FrameReader::new(session, worker, features, credits.max_frame_bytes);
        loop {
            match self.turn(&mut reader) {
                Ok(None) => return,
                Ok(Some(turn)) => {
                    if self.wait(&turn) {
                        reader.shrink();
                    }
                }
                Err(error) => {
                    let closing = self.inner.lock().closing;
                    let reason = if closing {
                        "it was closed".to_owned()
                    } else {
                        self.clock.explain(error.to_string(), Instant::now())
                    };
                    self.lose(&reason);
                    return;
                }
            }
        }
    }

    /// Waits for bytes, for room, for a wake or for the deadline. True when nothing happened until then.
    fn wait(&self, turn: &Turn) -> bool {
        let flags = if turn.blocked {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let mut fds = [
            PollFd::from_borrowed_fd(self.channel.as_fd(), flags),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        let timeout = timespec(turn.deadline.saturating_duration_since(Instant::now()));
        // An interrupted poll is a spurious wake: the loop looks at everything again.
        let ready = poll(&mut fds, Some(&timeout));
        if !fds[1].revents().is_empty() {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        ready == Ok(0)
    }
}

impl LaneThread {
    /// Waits for the thread's end; false when `deadline` passes first.
    pub(crate) fn join(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(thread) = self.thread.take() else {
            return true;
        };
        if self.ended.recv_timeout(left).is_err() && !thread.is_finished() {
            self.thread = Some(thread);
            return false;
        }
        if thread.join().is_err() {
            tracing::error!("a lane's thread panicked");
        }
        true
    }
}
