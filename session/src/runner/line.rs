//! Commands that came and are not answered: how many there may be, and which may be carried out now. Pure.

use std::collections::VecDeque;

use echelon_wire::frame::Credits;
use echelon_wire::id::Sequence;
use echelon_wire::limits::MAX_PAYLOAD_BYTES;
use echelon_wire::order::Scope;

use super::reader::Command;

/// What this session announces when `pipelining` was accepted: enough that no parent waits for credit while it has commands that
/// can be carried out, few enough that comparing each with those before it costs nothing.
pub(super) const ANNOUNCED: Credits = Credits {
    max_commands: 64,
    max_bytes: 4 * MAX_PAYLOAD_BYTES as u64,
    max_frame_bytes: MAX_PAYLOAD_BYTES,
};

/// Without the extension a parent sends one command at a time. What is beyond this is no command lane of ours.
pub(super) const UNANNOUNCED: Credits = Credits {
    max_commands: 1024,
    ..ANNOUNCED
};

/// Who carries a command out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hand {
    /// The main thread: tasks, and all that keeps its place among them.
    Main,
    /// The thread that serves controls while a task runs (extension `concurrent_control`).
    Controls,
}

/// Names a command of the line; sequences of version 1 may repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(u64);

struct Entry {
    number: Number,
    hand: Hand,
    scope: Scope,
    payload_bytes: u64,
    /// Commands before it that it may not overtake.
    blockers: usize,
    /// `None` while it is carried out.
    command: Option<Command>,
}

/// The line, in the order in which the commands came.
pub(super) struct Line {
    credits: Credits,
    /// Sequences count: `pipelining` was accepted. One that is repeated, lower or left out is a command that was lost or made up.
    counted: bool,
    last: Sequence,
    next_number: u64,
    entries: VecDeque<Entry>,
    /// Commands, and their payload bytes, that the parent has no answer to.
    unanswered: (u64, u64),
}

impl Line {
    /// `announced` when `pipelining` was accepted.
    pub(super) fn new(announced: Option<Credits>) -> Self {
        Self {
            credits: announced.unwrap_or(UNANNOUNCED),
            counted: announced.is_some(),
            last: Sequence(0),
            next_number: 0,
            entries: VecDeque::new(),
            unanswered: (0, 0),
        }
    }

    /// Appends a command.
    ///
    /// # Errors
    /// How the parent broke the contract, which ends the session: more than the credits, or a sequence that is not the next.
    pub(super) fn push(
        &mut self,
        command: Command,
        scope: Scope,
        hand: Hand,
    ) -> Result<(), String> {
        let sequence = command.header.sequence;
        if self.counted {
            let next = Sequence(self.last.0.saturating_add(1));
            if sequence != next {
                return Err(format!(
                    "command {sequence} came where {next} belongs; with pipelining each counts on by one"
                ));
            }
            self.last = next;
        }
        let payload_bytes = command.payload.len() as u64;
        let (commands, bytes) = (self.unanswered.0 + 1, self.unanswered.1 + payload_bytes);
        let Credits {
            max_commands,
            max_bytes,
            ..
        } = self.credits;
        if commands > max_commands.into() || bytes > max_bytes {
            return Err(format!(
                "{commands} commands of {bytes} bytes are unanswered with command {sequence}, limits {max_commands} and {max_bytes}; \
                 a parent sends within its credits, and without pipelining one command at a time"
            ));
        }
        self.unanswered = (commands, bytes);
        let blockers = self.entries.iter();
        let blockers = blockers.filter(|earlier| !scope.may_overtake(&earlier.scope));
        let blockers = blockers.count();
        self.entries.push_back(Entry {
            number: Number(self.next_number),
            hand,
            scope,
            payload_bytes,
            blockers,
            command: Some(command),
        });
        self.next_number += 1;
        Ok(())
    }

    /// The oldest command that `hand` may carry out now.
    pub(super) fn take(&mut self, hand: Hand) -> Option<(Number, Command)> {
        let mut entries = self.entries.iter_mut();
        entries.find_map(|entry| {
            let ready = entry.hand == hand && entry.blockers == 0;
            let command = ready.then(|| entry.command.take()).flatten()?;
            Some((entry.number, command))
        })
    }

    /// The answer to a command is on its way: the parent may send another in its place as soon as it has read it.
    pub(super) fn answering(&mut self, number: Number) {
        if let Some(entry) = self.entries.iter().find(|entry| entry.number == number) {
            self.unanswered.0 -= 1;
            self.unanswered.1 -= entry.payload_bytes;
        }
    }

    /// The answer was written: what may not overtake the command is free, and its answer will come after this one.
    pub(super) fn done(&mut self, number: Number) {
        let Some(at) = self.entries.iter().position(|e| e.number == number) else {
            return;
        };
        let Some(gone) = self.entries.remove(at) else {
            return;
        };
        for later in self.entries.range_mut(at..) {
            if !later.scope.may_overtake(&gone.scope) {
                later.blockers -= 1;
            }
        }
    }

    /// True while there is a command for `hand` that it has not taken.
    pub(super) fn waits_for(&self, hand: Hand) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| entry.hand == hand && entry.command.is_some())
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests;
