//! Time limits and second attempts: what the clock does to tasks (R-086, design §15.15).
//!
//! Only a task that was submitted as idempotent is tried again, and only after the loss of its worker: what its code raised
//! stands. Until an attempt is due the member is held by the scheduler and blocks nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::record::{Sent, Work};
use super::story::StepKind;
use super::{Core, GroupKind};
use crate::args::TaskArgs;
use crate::endpoint::Ticket;
use crate::error::Error;
use crate::graph::{EndpointId, TaskId};
use crate::tensor::Tag;

/// Before the second attempt; twice as long before each further one.
const BACKOFF: Duration = Duration::from_millis(50);
/// Longest time before an attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What is to happen at a time.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// The next attempt of a held member.
    Attempt { task: TaskId, member: u32 },
    /// The end of a member's time.
    Limit {
        endpoint: EndpointId,
        ticket: Ticket,
    },
}

/// What is to happen, in order of time.
#[derive(Default)]
pub(super) struct Timers {
    due: BTreeMap<(Instant, u64), Due>,
    count: u64,
    /// One was added that may be earlier than what sleepers know of.
    added: bool,
}

impl Timers {
    fn add(&mut self, at: Instant, due: Due) {
        self.count += 1;
        self.added = true;
        self.due.insert((at, self.count), due);
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// True once after something was added.
    pub(super) fn take_added(&mut self) -> bool {
        std::mem::take(&mut self.added)
    }

    fn pop(&mut self, now: Instant) -> Option<Due> {
        let first = self.due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

impl Core {
    /// Does what is due.
    pub(super) fn fire_timers(&mut self) -> bool {
        if self.timers.due.is_empty() {
            return false;
        }
        let now = Instant::now();
        let mut fired = false;
        while let Some(due) = self.timers.pop(now) {
            fired = true;
            match due {
                Due::Attempt { task, member } => self.release_attempt(task, member),
                Due::Limit { endpoint, ticket } => self.out_of_time(endpoint, ticket),
            }
        }
        fired
    }

    /// The time of the member that an endpoint works on begins when it is the oldest there: what waits in the endpoint's queue
    /// spends no time of its own.
    pub(super) fn watch_time(&mut self, endpoint: EndpointId) {
        if !self.any_limits {
            return;
        }
        let Some(&Sent { ticket, task, .. }) =
            self.slot(endpoint).and_then(|slot| slot.queue.front())
        else {
            return;
        };
        let record = self.records.get(&task);
        if let Some(limit) = record.and_then(|record| record.options.timeout) {
            let due = Due::Limit { endpoint, ticket };
            self.timers.add(Instant::now() + limit, due);
        }
    }

    fn out_of_time(&mut self, endpoint: EndpointId, ticket: Ticket) {
        // It may have ended in time, with its answer on the way while nobody here ran: what is there now is somebody else.
        self.catch_up(endpoint);
        let queue = self.slot(endpoint).map(|slot| slot.queue.iter());
        let sent = queue.and_then(|mut queue| queue.find(|sent| sent.ticket == ticket));
        let Some(record) = sent.and_then(|sent| self.records.get(&sent.task)) else {
            return;
        };
        let limit = record.options.timeout.unwrap_or_default().as_secs_f64();
        let reason = format!(
            "task {} ({}) ran longer than its timeout_s of {limit}",
            record.sequence,
            record.work.name()
        );
        self.kill(endpoint, &reason);
    }

    /// The endpoint was lost while the member was there: arranges another attempt, if there is to be one.
    pub(super) fn try_again(
        &mut self,
        task: TaskId,
        member: u32,
        endpoint: EndpointId,
        reason: &str,
    ) -> bool {
        let (closed, most) = (self.closed, self.max_attempts);
        let Some(record) = self.records.get_mut(&task) else {
            return false;
        };
        let ends = |record: &super::TaskRecord| {
            closed || !record.options.idempotent || record.failure.is_some()
        };
        if ends(record) {
            return false;
        }
        let Work::Call { members, .. } = &record.work else {
            return false;
        };
        let begun = members.get(member as usize).map_or(most, |m| m.attempts);
        if begun >= most {
            return false;
        }
        record.steps.note(member, StepKind::Lost(endpoint));
        record.steps.lost.push(reason.to_owned());
        self.retried += 1;
        if let Some(run) = self.runs.get_mut(record.run) {
            run.retried += 1;
        }
        let wait = BACKOFF.saturating_mul(1 << (begun.clamp(1, 16) - 1));
        let at = Instant::now() + wait.min(BACKOFF_MAX);
        self.timers.add(at, Due::Attempt { task, member });
        true
    }
}

/// Refuses to repeat what cannot be repeated: a lost attempt may have half written what it also reads.
pub(super) fn check_repeatable(members: &[TaskArgs], group: GroupKind) -> Result<(), Error> {
    if group == GroupKind::Gang {
        return Err(Error::argument(
            "idempotent",
            "the members of a next-level group run together or not at all; submit them one by one to have each tried again",
        ));
    }
    for args in members {
        for (index, arg) in args.tensors().iter().enumerate() {
            if matches!(arg.tag, Tag::InOut | Tag::NoDep) {
                return Err(Error::argument(
                    "idempotent",
                    format!(
                        "argument {index} is {}, and an attempt that is lost may have half written it; use INPUT and OUTPUT, \
                         or leave idempotent out",
                        arg.tag.name()
                    ),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_order_of_time_and_only_when_due() {
        let mut timers = Timers::default();
        let start = Instant::now();
        for (ms, ticket) in [(30, 3), (10, 1), (10, 2)] {
            let at = start + Duration::from_millis(ms);
            timers.add(
                at,
                Due::Limit {
                    endpoint: EndpointId(0),
                    ticket: Ticket(ticket),
                },
            );
        }
        assert!(timers.take_added() && !timers.take_added());
        assert!(timers.pop(start).is_none());
        let next = |timers: &mut Timers, ms| match timers.pop(start + Duration::from_millis(ms)) {
            Some(Due::Limit { ticket, .. }) => ticket.0,
            _ => 0,
        };
        assert_eq!([20, 20, 20].map(|ms| next(&mut timers, ms)), [1, 2, 0]);
        assert_eq!(timers.next(), Some(start + Duration::from_millis(30)));
        assert_eq!(next(&mut timers, 30), 3);
    }
}
