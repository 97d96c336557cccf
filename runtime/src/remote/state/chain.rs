//! Conditions on a lane: which sequence a ticket has, and what is sent before a task (extension `conditions`).

use std::collections::VecDeque;

use echelon_wire::codec::Writer;
use echelon_wire::frame::{Features, FrameType};
use echelon_wire::id::Sequence;
use echelon_wire::order::Conditions;
use smallvec::SmallVec;

use super::Request;
use crate::endpoint::{EndpointEvent, Ticket};

/// Bytes of no conditions: with the extension every task is encoded behind them.
const NO_CONDITIONS: usize = 4;

/// A task that was given to the lane.
struct Link {
    ticket: Ticket,
    sequence: Sequence,
    /// The tasks that it named.
    named: SmallVec<[Sequence; 2]>,
    /// How it was answered.
    completed: Option<bool>,
}

/// The tasks of a lane that may be named: those that are unanswered, and those whose answers nobody has looked at yet.
pub(super) struct Chain {
    /// The extension was accepted.
    negotiated: bool,
    /// How many tasks before it a task may name.
    window: usize,
    links: VecDeque<Link>,
    /// So many of them, the first, are answered: tasks are answered in their order, so the next is found there.
    answered: usize,
}

impl Chain {
    pub(super) fn new(features: Features, window: u32) -> Self {
        Self {
            negotiated: features.contains(Features::CONDITIONS),
            window: window as usize,
            links: VecDeque::new(),
            answered: 0,
        }
    }

    /// Puts its conditions into a task that will be sent with `sequence`, in the place of none. What has completed is no condition any more. An event
    /// comes back when the task is not to be sent: something that it names did not complete, or is not known here.
    pub(super) fn admit(
        &mut self,
        request: &mut Request,
        sequence: Sequence,
    ) -> Option<EndpointEvent> {
        if !self.negotiated || request.frame_type != FrameType::Task {
            return None;
        }
        let ticket = request.ticket;
        let mut named: SmallVec<[Sequence; 2]> = SmallVec::new();
        for after in &request.after {
            // The newest first: a task mostly names the one before it.
            let link = self.links.iter().rev().find(|link| link.ticket == *after);
            match link.map(|link| (link.completed, link.sequence)) {
                Some((None, sequence)) => named.push(sequence),
                Some((Some(true), _)) => {}
                Some((Some(false), _)) | None => return Some(EndpointEvent::Skipped { ticket }),
            }
        }
        named.sort_unstable();
        named.dedup();
        if !named.is_empty() {
            let mut writer = Writer::with_capacity(4 + 8 * named.len());
            let numbers: SmallVec<[u64; 2]> = named.iter().map(|sequence| sequence.0).collect();
            // As many as the engine names, ascending, always fit.
            if Conditions::write(&numbers, &mut writer).is_err() {
                return Some(EndpointEvent::Skipped { ticket });
            }
            let none = ..NO_CONDITIONS.min(request.payload.len());
            request.payload.splice(none, writer.into_bytes());
            request.payload_bytes = request.payload.len() as u64;
        }
        if self.links.len() >= self.window {
            self.links.pop_front();
            self.answered = self.answered.saturating_sub(1);
        }
        self.links.push_back(Link {
            ticket,
            sequence,
            named,
            completed: None,
        });
        None
    }

    /// A task was answered.
    pub(super) fn answered(&mut self, ticket: Ticket, completed: bool) {
        let answered = self.answered;
        let mut open = self.links.iter_mut().skip(answered);
        if let Some(link) = open.find(|link| link.ticket == ticket) {
            link.completed = Some(completed);
        }
        let of_link = |at| self.links.get(at).and_then(|link: &Link| link.completed);
        while of_link(self.answered).is_some() {
            self.answered += 1;
        }
    }

    /// Whether a task that is answered now was skipped because of what it named. What is too long ago to be known is believed.
    ///
    /// # Errors
    /// How the session broke the rule of conditions.
    pub(super) fn was_skipped(&self, ticket: Ticket, says: bool) -> Result<bool, &'static str> {
        let mut open = self.links.iter().skip(self.answered);
        let Some(link) = open.find(|link| self.negotiated && link.ticket == ticket) else {
            return Ok(false);
        };
        // The newest of a sequence: one before it may have been refused here, and was never sent.
        let completed = |named: &Sequence| {
            let mut links = self.links.iter().rev();
            links.find(|link| link.sequence == *named)?.completed
        };
        let mut outcomes = link.named.iter().map(completed);
        match says {
            true if outcomes.all(|outcome| outcome == Some(true)) => {
                Err("it skipped a task although all that this names completed")
            }
            false if outcomes.any(|outcome| outcome == Some(false)) => {
                Err("it carried out a task although one that this names did not complete")
            }
            _ => Ok(says),
        }
    }
}

#[cfg(test)]
mod tests {
    use echelon_wire::codec::Reader;
    use echelon_wire::order::Scope;

    use super::*;

    fn chain() -> Chain {
        Chain::new(Features::CONDITIONS, 4)
    }

    /// The conditions that a task is sent with; `None` when it is skipped.
    fn sent(chain: &mut Chain, ticket: u64, sequence: u64, after: &[u64]) -> Option<Vec<u64>> {
        let after: Vec<Ticket> = after.iter().copied().map(Ticket).collect();
        let payload = b"\0\0\0\0task".to_vec();
        let request = Request::task(Ticket(ticket), payload, Scope::IN_ORDER);
        let mut request = request.after(&after);
        if chain.admit(&mut request, Sequence(sequence)).is_some() {
            return None;
        }
        assert_eq!(request.payload_bytes, request.payload.len() as u64);
        let mut reader = Reader::new(&request.payload);
        let conditions = Conditions::read(&mut reader).unwrap();
        assert_eq!(reader.rest(), b"task");
        Some(conditions.numbers().collect())
    }

    #[test]
    fn tickets_become_sequences_and_what_completed_is_no_condition() {
        let mut chain = chain();
        assert_eq!(sent(&mut chain, 70, 1, &[]), Some(vec![]));
        assert_eq!(sent(&mut chain, 50, 4, &[70]), Some(vec![1]));
        assert_eq!(sent(&mut chain, 60, 5, &[50, 70]), Some(vec![1, 4]));
        chain.answered(Ticket(70), true);
        assert_eq!(sent(&mut chain, 61, 6, &[60, 70]), Some(vec![5]));
    }

    #[test]
    fn a_session_that_breaks_the_rule_of_conditions_is_found_out() {
        let mut chain = chain();
        sent(&mut chain, 1, 1, &[]);
        sent(&mut chain, 2, 2, &[1]);
        sent(&mut chain, 3, 3, &[1, 2]);
        let skips = "it skipped a task although all that this names completed";
        assert_eq!(
            chain.was_skipped(Ticket(1), true),
            Err(skips),
            "it names none"
        );
        assert_eq!(chain.was_skipped(Ticket(1), false), Ok(false));
        chain.answered(Ticket(1), true);
        assert_eq!(chain.was_skipped(Ticket(2), true), Err(skips));
        assert_eq!(chain.was_skipped(Ticket(2), false), Ok(false));
        chain.answered(Ticket(2), false);
        assert_eq!(chain.was_skipped(Ticket(3), true), Ok(true));
        let carried_out = chain.was_skipped(Ticket(3), false).unwrap_err();
        assert!(carried_out.contains("carried out"), "{carried_out}");
        assert_eq!(chain.was_skipped(Ticket(99), true), Ok(false), "nobody's");
    }

    /// The refused one has the sequence that the next one is sent with.
    #[test]
    fn a_task_that_was_refused_here_is_not_taken_for_the_one_that_was_sent() {
        let mut chain = chain();
        sent(&mut chain, 1, 1, &[]);
        chain.answered(Ticket(1), false);
        sent(&mut chain, 2, 1, &[]);
        sent(&mut chain, 3, 2, &[2]);
        chain.answered(Ticket(2), true);
        assert_eq!(chain.was_skipped(Ticket(3), false), Ok(false));
    }

    /// Its answer is here, and whoever submits has not looked at it yet.
    #[test]
    fn what_names_a_failed_or_unknown_task_is_not_sent() {
        let mut chain = chain();
        sent(&mut chain, 1, 1, &[]);
        chain.answered(Ticket(1), false);
        assert_eq!(sent(&mut chain, 2, 2, &[1]), None);
        assert_eq!(sent(&mut chain, 3, 2, &[2]), None, "skipped as well");
        for ticket in 4..9 {
            assert_eq!(sent(&mut chain, ticket, ticket, &[]), Some(vec![]));
        }
        assert_eq!(sent(&mut chain, 10, 10, &[4]), None, "beyond the window");
    }

    #[test]
    fn without_the_extension_nothing_is_added() {
        let mut chain = Chain::new(Features::PIPELINING, 4);
        let mut request = Request::task(Ticket(1), b"task".to_vec(), Scope::IN_ORDER);
        assert!(chain.admit(&mut request, Sequence(1)).is_none());
        assert_eq!(request.payload, b"task");
    }
}
