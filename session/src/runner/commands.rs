//! The line of commands between the reader and those who carry them out, and the one writer of their answers.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::frame::{Credits, Features, FrameHeader};
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::order::Scope;
use parking_lot::{Condvar, Mutex};

use super::command::Reply;
use super::intake::Command;
use super::lifeline::{Lifeline, Verdict};
use super::line::{Hand, Line, Number};
use super::listen::write_all;

struct State {
    line: Line,
    /// Nothing more comes.
    closed: bool,
}

/// Shared by those who read commands and those who carry them out.
pub(super) struct Commands {
    state: Mutex<State>,
    /// There may be something for the thread of controls.
    beside: Condvar,
    /// What the main thread waits for may be done.
    freed: Condvar,
    lifeline: Arc<Lifeline>,
}

/// What there is for the main thread.
pub(super) enum Next {
    /// A command to carry out.
    Command(Number, Command),
    /// A command that may not overtake what the thread of controls is about to do.
    Held,
    /// Nothing yet.
    Nothing,
    /// Nothing, and nothing will come.
    Over,
}

impl Commands {
    pub(super) fn new(announced: Option<Credits>, lifeline: Arc<Lifeline>) -> Self {
        Self {
            lifeline,
            state: Mutex::new(State {
                line: Line::new(announced),
                closed: false,
            }),
            beside: Condvar::new(),
            freed: Condvar::new(),
        }
    }

    /// From here on tasks name earlier ones that must have completed.
    pub(super) fn take_conditions(&self) {
        self.state.lock().line.take_conditions();
    }

    /// Appends what `frames` gives, each with what it may overtake, until it gives nothing or an end.
    pub(super) fn push_all<E>(
        &self,
        features: Features,
        mut frames: impl FnMut() -> Result<Option<Command>, E>,
        broken: impl Fn(String) -> E,
    ) -> Result<(), E> {
        let mut state = self.state.lock();
        let mut for_controls = false;
        let ended = loop {
            let command = match frames() {
                Ok(Some(command)) => command,
                Ok(None) => break Ok(()),
                Err(end) => break Err(end),
            };
            let scope = Scope::of_command(command.header.frame_type, &command.payload, features);
            let hand = if scope.is_beside_tasks() {
                for_controls = true;
                Hand::Controls
            } else {
                Hand::Main
            };
            if let Err(reason) = state.line.push(command, scope, hand) {
                break Err(broken(reason));
            }
        };
        drop(state);
        if for_controls {
            self.beside.notify_all();
        }
        ended
    }

    /// Nothing more comes; what is there is still carried out.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.beside.notify_all();
        self.freed.notify_all();
    }

    /// Ends the session: what waits is forgotten, for nobody could be told of it.
    pub(super) fn fail(&self, reason: &str) {
        // First, so that this is the reason and not what it brings about.
        self.lifeline.end(Verdict::Broken(reason.to_owned()));
        self.state.lock().line.clear();
        self.close();
    }

    /// The next command for the main thread. Does not wait.
    pub(super) fn next(&self) -> Next {
        let mut state = self.state.lock();
        match state.line.take(Hand::Main) {
            Some((number, command)) => Next::Command(number, command),
            None if state.line.waits_for(Hand::Main) => Next::Held,
            None if state.closed => Next::Over,
            None => Next::Nothing,
        }
    }

    /// Waits until the main thread's next command is free.
    pub(super) fn wait_held(&self) {
        let mut state = self.state.lock();
        while state.line.is_held() {
            self.freed.wait(&mut state);
        }
    }

    /// True when [`Self::next`] has something else than nothing.
    pub(super) fn has_next(&self) -> bool {
        let state = self.state.lock();
        state.closed || state.line.waits_for(Hand::Main)
    }

    /// Waits for the next control; `None` when the lane has ended and everything before was taken.
    pub(super) fn next_beside(&self) -> Option<(Number, Command)> {
        let mut state = self.state.lock();
        loop {
            let next = state.line.take(Hand::Controls);
            if next.is_some() || (state.closed && !state.line.waits_for(Hand::Controls)) {
                return next;
            }
            self.beside.wait(&mut state);
        }
    }

    pub(super) fn answering(&self, number: Number) {
        self.state.lock().line.answering(number);
    }

    pub(super) fn done(&self, number: Number) {
        let mut state = self.state.lock();
        state.line.done(number);
        let beside = state.line.waits_for(Hand::Controls);
        drop(state);
        if beside {
            self.beside.notify_all();
        }
        self.freed.notify_all();
    }
}

/// Answers that wait for company go out when there are so many bytes of them…
const TOGETHER_BYTES: usize = 16 * 1024;
/// …or when the first of them has waited so long.
const TOGETHER_WITHIN: Duration = Duration::from_micros(50);
/// Payloads of more bytes are not copied to lie beside others.
const JOINED_BYTES_MAX: usize = 8 * 1024;

/// Answers that were given and not written.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    /// Since when.
    since: Option<Instant>,
}

/// The way to the parent: whole frames, one after the other, whoever answers. Answers to short commands that follow each other
/// are written together; whoever has nothing more to do, or is about to wait, flushes.
pub(super) struct Answers {
    stream: TcpStream,
    /// Whose turn it is to write.
    out: Mutex<Out>,
    session: SessionId,
    worker: WorkerId,
    /// How long the parent may take to read one.
    limit: Duration,
}

impl Answers {
    pub(super) fn new(
        stream: TcpStream,
        session: SessionId,
        worker: WorkerId,
        limit: Duration,
    ) -> Self {
        Self {
            stream,
            out: Mutex::default(),
            session,
            worker,
            limit: limit.min(Duration::from_secs(24 * 3600)),
        }
    }

    /// Ends the connection: an answer was written in part, and whoever writes another one now is to know.
    pub(super) fn break_off(&self) {
        // It may be gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Gives an answer to a command that was begun at `began`. It is written now, or with those that come soon: the commands that
    /// wait are taken to be as short as this one was. True when it was not written yet.
    ///
    /// # Errors
    /// What the connection says.
    pub(super) fn give(
        &self,
        sequence: Sequence,
        reply: &Reply,
        began: Instant,
    ) -> std::io::Result<bool> {
        let mut out = self.out.lock();
        self.append(&mut out, sequence, reply)?;
        let now = Instant::now();
        let since = *out.since.get_or_insert(now);
        let long = now.saturating_duration_since(began.min(since)) >= TOGETHER_WITHIN;
        if long || out.bytes.len() >= TOGETHER_BYTES {
            self.write(&mut out)?;
        }
        Ok(!out.bytes.is_empty())
    }

    /// Writes one answer, and those before it. Another thread's comes before or after, so that each waits for at most one other.
    ///
    /// # Errors
    /// What the connection says.
    pub(super) fn send(&self, sequence: Sequence, reply: &Reply) -> std::io::Result<()> {
        let mut out = self.out.lock();
        self.append(&mut out, sequence, reply)?;
        self.write(&mut out)
    }

    /// Writes what was given.
    ///
    /// # Errors
    /// What the connection says.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        self.write(&mut self.out.lock())
    }

    /// As [`Self::flush`], unless somebody writes already.
    ///
    /// # Errors
    /// What the connection says.
    pub(super) fn flush_unless_busy(&self) -> std::io::Result<()> {
        match self.out.try_lock() {
            Some(mut out) => self.write(&mut out),
            None => Ok(()),
        }
    }

    fn append(&self, out: &mut Out, sequence: Sequence, reply: &Reply) -> std::io::Result<()> {
        let payload = &reply.payload;
        let header = FrameHeader::new(
            reply.frame_type,
            self.session,
            self.worker,
            sequence,
            payload.len(),
        );
        let header = header.and_then(|header| header.to_array());
        let header = header.map_err(|error| std::io::Error::other(error.to_string()))?;
        out.bytes.extend_from_slice(&header);
        if payload.len() <= JOINED_BYTES_MAX {
            out.bytes.extend_from_slice(payload);
            return Ok(());
        }
        self.write(out)?;
        write_all(&self.stream, &[payload], Instant::now() + self.limit)
    }

    fn write(&self, out: &mut Out) -> std::io::Result<()> {
        if out.bytes.is_empty() {
            return Ok(());
        }
        let written = write_all(&self.stream, &[&out.bytes], Instant::now() + self.limit);
        // Also after an error: a part may have gone out, and nothing follows it.
        out.bytes.clear();
        out.since = None;
        written
    }
}
