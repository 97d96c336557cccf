//! The order of bulk copies among the requests of a lane. Pure.
//!
//! A bulk copy does not travel on the command lane, so the session does not order it; the parent does, who is the only one that sends
//! there. A copy begins when everything before it that it may not overtake was answered, and what may not overtake the copy is held
//! back until it has ended. The rule is that of the session (`echelon_wire::order`), so whoever looks at the results sees no difference.

use std::collections::VecDeque;

use echelon_wire::order::Scope;

use crate::endpoint::Ticket;

/// What waits for its turn.
pub(super) enum Waiting<R> {
    /// A request that is to be sent.
    Request(R),
    /// A copy, known by its ticket.
    Copy,
}

struct Entry<R> {
    ticket: Ticket,
    scope: Scope,
    /// How many of those before it here it has to wait for.
    blockers: usize,
    /// What it has to wait for on the lane. Only copies do.
    unanswered: Vec<Ticket>,
    /// `None` for a copy that has begun.
    waiting: Option<Waiting<R>>,
}

impl<R> Entry<R> {
    fn is_ready(&self) -> bool {
        self.waiting.is_some() && self.blockers == 0 && self.unanswered.is_empty()
    }
}

/// Copies that have not ended, and the requests behind them, in the order in which they were asked for.
pub(super) struct Line<R> {
    entries: VecDeque<Entry<R>>,
}

impl<R> Line<R> {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
        }
    }

    /// True when there is no copy, and so nothing to order.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn blockers(&self, scope: &Scope) -> usize {
        let before = self.entries.iter();
        before
            .filter(|entry| !scope.may_overtake(&entry.scope))
            .count()
    }

    /// Appends a copy. `unanswered` are the requests on the lane that it may not overtake.
    pub(super) fn push_copy(&mut self, ticket: Ticket, scope: Scope, unanswered: Vec<Ticket>) {
        self.entries.push_back(Entry {
            ticket,
            blockers: self.blockers(&scope),
            scope,
            unanswered,
            waiting: Some(Waiting::Copy),
        });
    }

    /// Keeps a request that may not overtake what is here; else gives it back, to be sent at once.
    pub(super) fn hold(&mut self, ticket: Ticket, scope: &Scope, request: R) -> Option<R> {
        let blockers = self.blockers(scope);
        if blockers == 0 {
            return Some(request);
        }
        self.entries.push_back(Entry {
            ticket,
            scope: scope.clone(),
            blockers,
            unanswered: Vec::new(),
            waiting: Some(Waiting::Request(request)),
        });
        None
    }

    /// A request was answered, or a copy has ended.
    pub(super) fn ended(&mut self, ticket: Ticket) {
        if let Some(at) = self.entries.iter().position(|entry| entry.ticket == ticket) {
            self.take(at, |_| {});
        }
        // Of a copy that goes over the lane, too.
        for entry in &mut self.entries {
            entry.unanswered.retain(|before| *before != ticket);
        }
    }

    /// Takes an entry out. Those behind it wait for it no more; `freed` is told each of them.
    fn take(&mut self, at: usize, mut freed: impl FnMut(&mut Entry<R>)) -> Option<Entry<R>> {
        let entry = self.entries.remove(at)?;
        for behind in self.entries.iter_mut().skip(at) {
            if !behind.scope.may_overtake(&entry.scope) {
                behind.blockers -= 1;
                freed(behind);
            }
        }
        Some(entry)
    }

    /// The next that has its turn: a request to send, or a copy to begin. A request that is sent is on the lane, where the session
    /// orders it: requests behind it wait for it no more, copies do.
    pub(super) fn next(&mut self) -> Option<(Ticket, Waiting<R>)> {
        let at = self.entries.iter().position(Entry::is_ready)?;
        let entry = self.entries.get_mut(at)?;
        let (ticket, waiting) = (entry.ticket, entry.waiting.take()?);
        if let Waiting::Request(_) = waiting {
            self.take(at, |behind| {
                if !matches!(behind.waiting, Some(Waiting::Request(_))) {
                    behind.unanswered.push(ticket);
                }
            });
        }
        Some((ticket, waiting))
    }

    /// Forgets all: the lane has ended.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use echelon_wire::codec::{Encode as _, Writer};
    use echelon_wire::frame::control::buffer::{AllocCommand, CopyHeader};
    use echelon_wire::frame::{Control, ControlName, Features, FrameType};
    use echelon_wire::id::{BufferId, Generation, WorkerId};

    use super::*;

    fn scope(name: ControlName, buffer: u64) -> Scope {
        let header = CopyHeader {
            worker_id: WorkerId(1),
            buffer_id: BufferId(buffer),
            generation: Generation(1),
            offset: 0,
            size: 0,
        };
        of(name, &header.to_bytes().unwrap())
    }

    fn of(name: ControlName, command: &[u8]) -> Scope {
        let mut writer = Writer::new();
        Control::new(name, command).encode(&mut writer).unwrap();
        let features = Features::PIPELINING.union(Features::CONCURRENT_CONTROL);
        Scope::of_command(FrameType::Control, writer.as_bytes(), features)
    }

    fn write(buffer: u64) -> Scope {
        scope(ControlName::CopyToRemote, buffer)
    }

    fn read(buffer: u64) -> Scope {
        scope(ControlName::CopyFromRemote, buffer)
    }

    fn taken(line: &mut Line<&'static str>) -> Vec<(u64, Option<&'static str>)> {
        let next = || line.next();
        std::iter::from_fn(next)
            .map(|(ticket, waiting)| match waiting {
                Waiting::Request(request) => (ticket.0, Some(request)),
                Waiting::Copy => (ticket.0, None),
            })
            .collect()
    }

    #[test]
    fn a_copy_waits_for_what_is_on_the_lane_and_holds_what_comes_after() {
        let mut line = Line::new();
        line.push_copy(Ticket(2), write(1), vec![Ticket(1)]);
        assert_eq!(taken(&mut line), []);
        assert_eq!(line.hold(Ticket(3), &read(1), "read"), None);
        assert_eq!(line.hold(Ticket(4), &read(2), "other"), Some("other"));
        line.ended(Ticket(1));
        assert_eq!(taken(&mut line), [(2, None)]);
        assert_eq!(taken(&mut line), []);
        line.ended(Ticket(2));
        assert_eq!(taken(&mut line), [(3, Some("read"))]);
        assert!(line.is_empty());
    }

    #[test]
    fn copies_that_only_read_one_buffer_go_at_the_same_time() {
        let mut line = Line::<&str>::new();
        line.push_copy(Ticket(1), read(1), vec![]);
        line.push_copy(Ticket(2), read(1), vec![]);
        line.push_copy(Ticket(3), write(1), vec![]);
        line.push_copy(Ticket(4), write(2), vec![]);
        assert_eq!(taken(&mut line), [(1, None), (2, None), (4, None)]);
        line.ended(Ticket(2));
        assert_eq!(taken(&mut line), []);
        line.ended(Ticket(1));
        assert_eq!(taken(&mut line), [(3, None)]);
    }

    #[test]
    fn held_requests_go_together_and_a_copy_behind_them_waits_for_their_answers() {
        let mut line = Line::new();
        line.push_copy(Ticket(1), write(1), vec![]);
        assert_eq!(line.hold(Ticket(2), &write(1), "first"), None);
        assert_eq!(line.hold(Ticket(3), &write(1), "second"), None);
        line.push_copy(Ticket(4), write(1), vec![]);
        assert_eq!(taken(&mut line), [(1, None)]);
        line.ended(Ticket(1));
        let both = [(2, Some("first")), (3, Some("second"))];
        assert_eq!(taken(&mut line), both);
        line.ended(Ticket(2));
        assert_eq!(taken(&mut line), []);
        line.ended(Ticket(3));
        assert_eq!(taken(&mut line), [(4, None)]);
    }

    #[test]
    fn a_copy_that_goes_over_the_lane_has_one_end() {
        let mut line = Line::<&str>::new();
        line.push_copy(Ticket(1), write(1), vec![]);
        assert_eq!(taken(&mut line), [(1, None)]);
        line.push_copy(Ticket(2), read(1), vec![Ticket(1)]);
        line.ended(Ticket(1));
        assert_eq!(taken(&mut line), [(2, None)]);
    }

    #[test]
    fn without_concurrent_control_all_keeps_its_place() {
        let mut line = Line::new();
        let alloc = AllocCommand { nbytes: 1 }.to_bytes().unwrap();
        let beside = of(ControlName::AllocRemoteBuffer, &alloc);
        line.push_copy(Ticket(1), Scope::IN_ORDER, vec![]);
        assert_eq!(line.hold(Ticket(2), &beside, "alloc"), None);
        line.clear();
        assert!(line.is_empty());
    }
}
