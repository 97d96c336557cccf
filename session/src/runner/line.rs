//! Commands that came and are not answered: how many there may be, and which may be carried out now. Pure.

use std::collections::VecDeque;

use echelon_wire::codec::Reader;
use echelon_wire::frame::{Credits, FrameType};
use echelon_wire::id::Sequence;
use echelon_wire::limits::MAX_PAYLOAD_BYTES;
use echelon_wire::order::{Conditions, Outcomes, Scope};

use super::intake::Command;

/// What this session announces when `pipelining` was accepted: enough that no parent waits for credit while it has commands that
/// can be carried out, few enough that comparing each with those before it costs nothing.
pub(super) const ANNOUNCED: Credits = Credits {
    max_commands: 256,
    max_bytes: 4 * MAX_PAYLOAD_BYTES as u64,
    max_frame_bytes: MAX_PAYLOAD_BYTES,
};

/// Tasks that a task may name as its conditions, and whose outcomes are kept: as many as a parent has unanswered.
pub(super) const CONDITION_WINDOW: usize = ANNOUNCED.max_commands as usize;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u64);

struct Entry {
    number: Number,
    scope: Scope,
    payload_bytes: u64,
    /// Commands before it that it may not overtake, of those that could be carried out after it.
    blockers: usize,
    /// `None` while it is carried out.
    command: Option<Command>,
}

/// The line, in the order in which the commands came. Those for the main thread never overtake each other: they are tasks, what
/// keeps its place among tasks, and what keeps its place among all. So only the few others are compared with anything.
pub(super) struct Line {
    credits: Credits,
    /// Sequences count: `pipelining` was accepted. One that is repeated, lower or left out is a command that was lost or made up.
    counted: bool,
    last: Sequence,
    next_number: u64,
    /// For the main thread. Carried out from the front, one at a time.
    main: VecDeque<Entry>,
    /// For the other hand.
    beside: VecDeque<Entry>,
    /// Commands, and their payload bytes, that the parent has no answer to.
    unanswered: (u64, u64),
    /// The tasks that the next one may name, where `conditions` was accepted.
    nameable: Option<Outcomes>,
}

impl Line {
    /// `announced` when `pipelining` was accepted.
    pub(super) fn new(announced: Option<Credits>) -> Self {
        Self {
            credits: announced.unwrap_or(UNANNOUNCED),
            counted: announced.is_some(),
            last: Sequence(0),
            next_number: 0,
            main: VecDeque::new(),
            beside: VecDeque::new(),
            unanswered: (0, 0),
            nameable: None,
        }
    }

    /// From here on tasks name earlier ones that must have completed.
    pub(super) fn take_conditions(&mut self) {
        self.nameable = Some(Outcomes::new(CONDITION_WINDOW));
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
        let payload_bytes = command.payload.len() as u64;
        self.admit(command.header.sequence, payload_bytes)?;
        if let (Some(tasks), FrameType::Task) = (&mut self.nameable, command.header.frame_type) {
            check_conditions(tasks, &command)?;
        }
        let bound = |earlier: &&Entry| !scope.may_overtake(&earlier.scope);
        let mut blockers = self.beside.iter().filter(bound).count();
        if hand == Hand::Controls {
            blockers += self.main.iter().filter(bound).count();
        }
        let entry = Entry {
            number: Number(self.next_number),
            scope,
            payload_bytes,
            blockers,
            command: Some(command),
        };
        self.next_number += 1;
        match hand {
            Hand::Main => self.main.push_back(entry),
            Hand::Controls => self.beside.push_back(entry),
        }
        Ok(())
    }

    fn admit(&mut self, sequence: Sequence, payload_bytes: u64) -> Result<(), String> {
        if self.counted {
            let next = Sequence(self.last.0.saturating_add(1));
            if sequence != next {
                return Err(format!(
                    "command {sequence} came where {next} belongs; with pipelining each counts on by one"
                ));
            }
            self.last = next;
        }
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
        Ok(())
    }

    /// The oldest command that `hand` may carry out now.
    pub(super) fn take(&mut self, hand: Hand) -> Option<(Number, Command)> {
        let take = |entry: &mut Entry| {
            let ready = entry.blockers == 0;
            let command = ready.then(|| entry.command.take()).flatten()?;
            Some((entry.number, command))
        };
        match hand {
            Hand::Main => take(self.main.front_mut()?),
            Hand::Controls => self.beside.iter_mut().find_map(take),
        }
    }

    /// The answer to a command is on its way: the parent may send another in its place as soon as it has read it.
    pub(super) fn answering(&mut self, number: Number) {
        let first = self.main.front().filter(|entry| entry.number == number);
        let beside = || self.beside.iter().find(|entry| entry.number == number);
        if let Some(entry) = first.or_else(beside) {
            self.unanswered.0 -= 1;
            self.unanswered.1 -= entry.payload_bytes;
        }
    }

    /// The answer was written, or will be before any that comes after: what may not overtake the command is free.
    pub(super) fn done(&mut self, number: Number) {
        if self
            .main
            .front()
            .is_some_and(|first| first.number == number)
        {
            if let Some(gone) = self.main.pop_front() {
                unblock(&mut self.beside, &gone);
            }
            return;
        }
        let at = self.beside.iter().position(|e| e.number == number);
        if let Some(gone) = at.and_then(|at| self.beside.remove(at)) {
            unblock(&mut self.beside, &gone);
            unblock(&mut self.main, &gone);
        }
    }

    /// True while there is a command for `hand` that it has not taken.
    pub(super) fn waits_for(&self, hand: Hand) -> bool {
        let entries = match hand {
            Hand::Main => &self.main,
            Hand::Controls => &self.beside,
        };
        entries.iter().any(|entry| entry.command.is_some())
    }

    /// True when the main thread's next command may not overtake what the other hand has.
    pub(super) fn is_held(&self) -> bool {
        self.main.front().is_some_and(|first| first.blockers > 0)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.main.clear();
        self.beside.clear();
    }
}

/// `gone` holds nothing up any more.
fn unblock(entries: &mut VecDeque<Entry>, gone: &Entry) {
    for later in entries.iter_mut().filter(|e| e.number > gone.number) {
        if !later.scope.may_overtake(&gone.scope) {
            later.blockers -= 1;
        }
    }
}

/// A task names tasks that came shortly before it, or the parent broke the contract.
fn check_conditions(tasks: &mut Outcomes, command: &Command) -> Result<(), String> {
    let conditions = Conditions::read(&mut Reader::new(&command.payload));
    let conditions = conditions.map_err(|error| error.to_string())?;
    tasks.met(conditions).map_err(|error| error.to_string())?;
    tasks.note(command.header.sequence.0, true);
    Ok(())
}

#[cfg(test)]
mod tests;
