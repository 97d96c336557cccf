//! The edge of the command lane: who reads it, and when what was submitted is written.
//!
//! **Reading.** A thread that waits for the worker's bell reads the lane itself ([`Source`]); the lane's own thread reads when nobody
//! waits, when the waiters have to sleep at the bell, and judges every bound. `channel::Relay` has the rule; the lock of the
//! reader says who may.
//!
//! **Writing.** A request to a session that has nothing to do, a control, and what comes while others sleep is written at once. Other
//! requests wait for company: until there are 16 KiB, or the first has waited for [`TOGETHER_WITHIN`] when the next one comes, until
//! somebody waits, until answers come, and at the latest until the lane's thread finds that nobody was there for a nap.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver};
use echelon_wire::order::Scope;
use parking_lot::Mutex;
use rustix::event::{poll, PollFd, PollFlags};

use super::stall::StallClock;
use super::state::{LaneConfig, LaneError, LaneState, Request};
use crate::channel::{timespec, Channel, FrameReader, Relay, Step, Turn};
use crate::endpoint::{EndpointEvent, Ticket};
use crate::mailbox::Source;

/// How long a request waits for company while others are submitted.
const TOGETHER_WITHIN: Duration = Duration::from_micros(100);

/// Rings the worker's bell.
pub(crate) type Ring = Arc<dyn Fn() + Send + Sync>;

struct Inner {
    state: LaneState,
    /// Why it ended; set once. Closing in order is an end too.
    lost: Option<String>,
    /// We said SHUTDOWN: the other side closing is what we wait for.
    closing: bool,
}

/// What the threads and the endpoint share.
pub(crate) struct Lane {
    channel: Box<dyn Channel>,
    config: LaneConfig,
    inner: Mutex<Inner>,
    /// Whoever holds it may read. Taken before `inner`.
    reader: Mutex<FrameReader>,
    relay: Relay,
    ring: Ring,
    clock: Arc<StallClock>,
}

/// What the lane's thread waits for after it has done what could be done.
struct Due {
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
        let LaneConfig {
            session,
            worker,
            features,
            credits,
            ..
        } = config;
        let reader = FrameReader::new(session, worker, features, credits.max_frame_bytes);
        let inner = Inner {
            state: LaneState::new(config),
            lost: None,
            closing: false,
        };
        let lane = Arc::new(Self {
            channel,
            config,
            inner: Mutex::new(inner),
            reader: Mutex::new(reader),
            relay: Relay::new()?,
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

    /// Queues a request, and writes what should go out now. The reason when the lane has ended.
    pub(crate) fn send(&self, request: Request) -> Result<(), String> {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if let Some(reason) = &inner.lost {
            return Err(reason.clone());
        }
        if inner.closing {
            return Err("it is being closed".into());
        }
        let alone = inner.state.in_flight() == 0 || request.expected.is_control();
        inner.state.enqueue(request, now);
        let refused = !inner.state.events.is_empty();
        let mut left = false;
        if alone || !self.relay.is_soon() || inner.state.should_write(TOGETHER_WITHIN, now) {
            // A broken connection is found by whoever reads, who may still have answers to read.
            left = self.write(&mut inner).unwrap_or(true);
        }
        drop(inner);
        if left {
            self.relay.call();
        }
        // A waiter that sleeps at the lane does not know that there has to be room, too.
        if left || refused {
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
        self.relay.call();
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
        // What is left is written by the thread, which reads until the session has ended.
        let _ = self.write(&mut inner);
        drop(inner);
        self.relay.call();
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

    /// Reads what is there, true if there are events now. The state's lock is not held meanwhile: submitting never waits for a
    /// large reply to arrive.
    fn read(&self, reader: &mut FrameReader) -> Result<bool, LaneError> {
        let mut any = false;
        loop {
            let space = reader.space();
            let room = space.len();
            match self.channel.try_read(space) {
                Ok(Step::Moved(count)) => {
                    let now = Instant::now();
                    reader.took(count, now);
                    let mut inner = self.inner.lock();
                    if inner.lost.is_some() {
                        // First verdict wins: a late answer is dropped.
                        return Ok(any);
                    }
                    while let Some(frame) = reader.next()? {
                        any = true;
                        inner.state.on_frame(&frame, now)?;
                    }
                    self.write(&mut inner)?;
                    if count < room {
                        return Ok(any);
                    }
                }
                Ok(Step::Blocked) => return Ok(any),
                Ok(Step::Ended) => return Err(LaneError::Ended),
                Err(error) => return Err(LaneError::Io(error.to_string())),
            }
        }
    }

    /// Reads what is there, and says whether there may be events. The lane ends when it is broken.
    fn read_or_fail(&self, reader: &mut FrameReader) -> bool {
        self.read(reader).unwrap_or_else(|error| {
            self.fail(&error);
            true
        })
    }

    fn fail(&self, error: &LaneError) {
        let closing = self.inner.lock().closing;
        let reason = if closing {
            "it was closed".to_owned()
        } else {
            self.clock.explain(error.to_string(), Instant::now())
        };
        self.lose(&reason);
    }

    /// Does all that can be done now; `None` when the lane has ended. Only for the lane's thread, which rings for others.
    fn turn(&self) -> Result<Option<Due>, LaneError> {
        let (now, timeout) = (Instant::now(), self.config.timeout);
        let mut reader = self.reader.lock();
        // What has arrived is read before any bound is judged: a process that was stopped for a while owes its peer that.
        let read = self.read(&mut reader);
        if read != Ok(false) {
            (self.ring)();
        }
        read?;
        let mut inner = self.inner.lock();
        if inner.lost.is_some() {
            return Ok(None);
        }
        let blocked = self.write(&mut inner)?;
        inner.state.check_deadlines(now)?;
        if reader.is_late(timeout, now) {
            return Err(LaneError::Drip(timeout));
        }
        // A control that a submitter writes while this thread sleeps is due no earlier than `timeout` from now, so nobody has
        // to wake the thread for it.
        let owed = [
            inner.state.next_deadline(),
            reader.begun().map(|b| b + timeout),
        ];
        let deadline = owed.into_iter().flatten().fold(now + timeout, Instant::min);
        Ok(Some(Due { blocked, deadline }))
    }

    /// The life of the lane's thread.
    fn serve(&self) {
        loop {
            match self.turn() {
                Ok(None) => return,
                Ok(Some(due)) => {
                    if self.relay.stand_by(due.deadline) == Turn::Read {
                        let read = self.read_alone();
                        self.relay.give_back();
                        if let Err(error) = read {
                            return self.fail(&error);
                        }
                    }
                }
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Reads until a waiter comes to read, or somebody calls.
    fn read_alone(&self) -> Result<(), LaneError> {
        while !self.relay.is_recalled() {
            let Some(due) = self.turn()? else {
                return Ok(());
            };
            if self.sleep(&due) {
                self.reader.lock().shrink();
            }
        }
        Ok(())
    }

    /// What to poll the socket for.
    fn flags(blocked: bool) -> PollFlags {
        match blocked {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        }
    }

    /// Waits for bytes, for room, for a call or for the deadline. True when nothing happened until then.
    fn sleep(&self, due: &Due) -> bool {
        let mut fds = [
            PollFd::from_borrowed_fd(self.channel.as_fd(), Self::flags(due.blocked)),
            PollFd::from_borrowed_fd(self.relay.recall(), PollFlags::IN),
        ];
        let timeout = timespec(due.deadline.saturating_duration_since(Instant::now()));
        // An interrupted poll is a spurious wake: the loop looks at everything again.
        poll(&mut fds, Some(&timeout)) == Ok(0)
    }

    /// For the bell: what waiters read.
    pub(crate) fn source(self: &Arc<Self>) -> Weak<dyn Source> {
        let lane: Arc<dyn Source> = Arc::clone(self) as Arc<dyn Source>;
        Arc::downgrade(&lane)
    }
}

impl Source for Lane {
    fn enter(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.lost.is_some() || inner.state.in_flight() == 0 {
            return false;
        }
        // Before the lane is entered, a socket that is full is left to its thread; afterwards it is polled for room.
        let broken = inner.state.has_unwritten() && self.write(&mut inner).is_err();
        drop(inner);
        self.relay.enter();
        if broken {
            self.relay.call();
        }
        true
    }

    fn leave(&self) {
        self.relay.leave();
    }

    fn look(&self) -> bool {
        self.read_or_fail(&mut self.reader.lock())
    }

    fn glance(&self) -> bool {
        let now = Instant::now();
        {
            let mut inner = self.inner.lock();
            if inner.lost.is_some() || inner.state.in_flight() == 0 {
                return false;
            }
            if inner.state.should_write(TOGETHER_WITHIN, now) && self.write(&mut inner).is_err() {
                // Found by whoever reads, who may still have answers to read.
                self.relay.call();
            }
        }
        let Some(mut reader) = self.reader.try_lock() else {
            return false;
        };
        self.relay.pass_by();
        self.read_or_fail(&mut reader)
    }

    fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let blocked = self.inner.lock().state.has_unwritten();
        (self.channel.as_fd(), Self::flags(blocked))
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
