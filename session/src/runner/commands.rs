//! The line of commands between the reader and those who carry them out, and the one writer of their answers.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::frame::{encode_frame, Credits};
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::order::Scope;
use parking_lot::{Condvar, Mutex};

use super::command::Reply;
use super::lifeline::{Lifeline, Verdict};
use super::line::{Hand, Line, Number};
use super::listen::write_all;
use super::reader::Command;

struct State {
    line: Line,
    /// Nothing more comes.
    closed: bool,
}

/// Shared by the reader and those who carry commands out.
pub(super) struct Commands {
    state: Mutex<State>,
    changed: Condvar,
    lifeline: Arc<Lifeline>,
}

impl Commands {
    pub(super) fn new(announced: Option<Credits>, lifeline: Arc<Lifeline>) -> Self {
        Self {
            lifeline,
            state: Mutex::new(State {
                line: Line::new(announced),
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Appends a command.
    ///
    /// # Errors
    /// As [`Line::push`].
    pub(super) fn push(&self, command: Command, scope: Scope, hand: Hand) -> Result<(), String> {
        self.state.lock().line.push(command, scope, hand)?;
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing more comes; what is there is still carried out.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Ends the session: what waits is forgotten, for nobody could be told of it.
    pub(super) fn fail(&self, reason: &str) {
        // First, so that this is the reason and not what it brings about.
        self.lifeline.end(Verdict::Broken(reason.to_owned()));
        {
            let mut state = self.state.lock();
            state.closed = true;
            state.line.clear();
        }
        self.changed.notify_all();
    }

    /// Waits for the next command for `hand`; `None` when the lane has ended and everything before was taken.
    pub(super) fn next(&self, hand: Hand) -> Option<(Number, Command)> {
        let mut state = self.state.lock();
        loop {
            let next = state.line.take(hand);
            if next.is_some() || (state.closed && !state.line.waits_for(hand)) {
                return next;
            }
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn answering(&self, number: Number) {
        self.state.lock().line.answering(number);
    }

    pub(super) fn done(&self, number: Number) {
        self.state.lock().line.done(number);
        self.changed.notify_all();
    }
}

/// The way to the parent: whole frames, one after the other, whoever answers.
pub(super) struct Answers {
    stream: TcpStream,
    /// Whose turn it is to write.
    turn: Mutex<()>,
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
            turn: Mutex::new(()),
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

    /// Writes one answer. Another thread's comes before or after it, so that each waits for at most one other.
    ///
    /// # Errors
    /// What the connection says.
    pub(super) fn send(&self, sequence: Sequence, reply: &Reply) -> std::io::Result<()> {
        let frame = encode_frame(
            reply.frame_type,
            self.session,
            self.worker,
            sequence,
            &reply.payload,
        );
        let frame = frame.map_err(|error| std::io::Error::other(error.to_string()))?;
        let _turn = self.turn.lock();
        write_all(&self.stream, &[&frame], Instant::now() + self.limit)
    }
}
