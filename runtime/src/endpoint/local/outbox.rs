//! What goes from a local endpoint to its child, in order: records through the mailbox, descriptors over the socket.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::child::records::{parts, PART_DOWN, TASK};
use crate::child::regions::region_message;
use crate::mailbox::{MailboxError, ParentSide, RecordHead};
use crate::memory::SharedRegion;
use crate::process::{send_fd, ProcessError};
use crate::tensor::Lease;

/// Most bytes that may wait for a child that takes nothing.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// Why something could not be sent, now or ever.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutboxError {
    /// The mailbox.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// The socket.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Too much waits already.
    #[error("{WAITING_BYTES_MAX} bytes wait already for a worker that takes nothing")]
    Full,
}

impl OutboxError {
    /// True when the request was the fault and the child is well.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Full | Self::Mailbox(MailboxError::RecordTooLarge { .. })
        )
    }
}

/// What keeps the memory of a task's tensors.
pub(super) type Leases = SmallVec<[Lease; 2]>;

/// A task that the child has not answered.
struct InFlight {
    ticket: u64,
    /// Where the ring has its end, `None` while it waits here.
    end: Option<u64>,
    leases: Leases,
}

enum Outgoing {
    Region(Arc<SharedRegion>),
    Record(RecordHead, Vec<u8>),
}

/// The way to one child. Nothing here blocks: what has no room waits, and order is kept.
pub(super) struct Outbox {
    pub(super) side: ParentSide,
    /// The child's primary watch on us, and the way of descriptors to it.
    socket: OwnedFd,
    /// Regions that the child has, or whose descriptors are on their way.
    sent: HashSet<u64>,
    /// The one of them that was named last: most tensors are in one arena.
    last_sent: Option<u64>,
    waiting: VecDeque<Outgoing>,
    waiting_bytes: usize,
    /// In the order in which the child answers them.
    tasks: VecDeque<InFlight>,
}

impl Outbox {
    /// `inherited` are the regions that the child was started with.
    pub(super) fn new(side: ParentSide, socket: OwnedFd, inherited: &[Arc<SharedRegion>]) -> Self {
        let sent = inherited.iter().map(|region| region.id()).collect();
        Self {
            side,
            socket,
            sent,
            last_sent: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            tasks: VecDeque::new(),
        }
    }

    /// A task has ended: what kept its memory, `None` when no such task is in flight.
    pub(super) fn task_done(&mut self, ticket: u64) -> Option<Leases> {
        let at = self.tasks.iter().position(|task| task.ticket == ticket)?;
        self.tasks.remove(at).map(|task| task.leases)
    }

    /// Once the child is dead: the tasks that it has not taken, and it takes a task when it starts it. Forgets all tasks.
    pub(super) fn abandon(&mut self) -> Vec<u64> {
        let taken = self.side.taken();
        let tasks = std::mem::take(&mut self.tasks);
        let untaken = tasks
            .iter()
            .filter(|task| task.end.is_none_or(|end| end > taken));
        untaken.map(|task| task.ticket).collect()
    }

    /// A record that waited was sent.
    fn note_sent(&mut self, head: RecordHead) {
        if head.kind == TASK {
            let end = self.side.position();
            let waiting = self.tasks.iter_mut().find(|task| task.end.is_none());
            if let Some(task) = waiting.filter(|task| task.ticket == head.ticket) {
                task.end = Some(end);
            }
        }
    }

    /// Sends one record, in several parts when it is larger than a ring takes at once.
    pub(super) fn record(
        &mut self,
        kind: u32,
        ticket: u64,
        payload: &[u8],
    ) -> Result<(), OutboxError> {
        // Before the first part: half a record would spoil the next one.
        if self.waiting_bytes + payload.len() > WAITING_BYTES_MAX {
            return Err(OutboxError::Full);
        }
        let (first, last) = parts(payload);
        for part in first {
            self.one(PART_DOWN, ticket, part)?;
        }
        self.one(kind, ticket, last).map(drop)
    }

    /// Sends one task; a task is never split. `leases` are kept until it has ended.
    pub(super) fn task(
        &mut self,
        ticket: u64,
        payload: &[u8],
        leases: Leases,
    ) -> Result<(), OutboxError> {
        let sent = self.one(TASK, ticket, payload)?;
        let end = sent.then(|| self.side.position());
        self.tasks.push_back(InFlight {
            ticket,
            end,
            leases,
        });
        Ok(())
    }

    /// True when the record is in the ring, false when it waits here.
    fn one(&mut self, kind: u32, ticket: u64, payload: &[u8]) -> Result<bool, OutboxError> {
        let head = RecordHead { kind, ticket };
        if self.waiting.is_empty() && self.side.send(head, payload)? {
            return Ok(true);
        }
        let (len, limit) = (payload.len() as u64, self.side.payload_max());
        if len > limit {
            return Err(MailboxError::RecordTooLarge { len, limit }.into());
        }
        if self.waiting_bytes + payload.len() > WAITING_BYTES_MAX {
            return Err(OutboxError::Full);
        }
        self.waiting_bytes += payload.len();
        self.waiting
            .push_back(Outgoing::Record(head, payload.to_vec()));
        Ok(false)
    }

    /// Sees to it that the child has a region before the next record: sends its descriptor unless it has it.
    pub(super) fn region(&mut self, region: &Arc<SharedRegion>) -> Result<(), OutboxError> {
        if self.last_sent == Some(region.id()) {
            return Ok(());
        }
        if self.sent.contains(&region.id()) {
            self.last_sent = Some(region.id());
            return Ok(());
        }
        let now =
            self.waiting.is_empty() && send_fd(&self.socket, &region_message(region), region.fd())?;
        if !now {
            self.waiting.push_back(Outgoing::Region(Arc::clone(region)));
        }
        self.sent.insert(region.id());
        Ok(())
    }

    /// True when nothing waits to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets that the child has a region: it was told to drop it.
    pub(super) fn forget(&mut self, region: u64) {
        self.sent.remove(&region);
        self.last_sent = None;
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self) -> Result<(), OutboxError> {
        while let Some(next) = self.waiting.front() {
            let (sent, bytes) = match next {
                Outgoing::Region(region) => {
                    let message = region_message(region);
                    (send_fd(&self.socket, &message, region.fd())?, 0)
                }
                Outgoing::Record(head, payload) => (self.side.send(*head, payload)?, payload.len()),
            };
            if !sent {
                break;
            }
            self.waiting_bytes -= bytes;
            if let Some(Outgoing::Record(head, _)) = self.waiting.pop_front() {
                self.note_sent(head);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::mailbox::{Bell, ChildSide, Mailbox};
    use crate::process::{recv_fd, region_socket_pair};

    fn pair() -> (Outbox, ChildSide, OwnedFd) {
        let bell = Bell::create().unwrap();
        let side = Mailbox::create(4096, 4096)
            .unwrap()
            .into_parent_side()
            .unwrap();
        let child = ChildSide::attach(side.fd().try_clone_to_owned().unwrap(), bell).unwrap();
        let (ours, theirs) = region_socket_pair().unwrap();
        (Outbox::new(side, ours, &[]), child, theirs)
    }

    #[test]
    fn what_has_no_room_waits_in_order() {
        let (mut outbox, mut child, _socket) = pair();
        for ticket in 0..20 {
            outbox.record(1, ticket, &[ticket as u8; 500]).unwrap();
        }
        assert!(!outbox.waiting.is_empty());
        let mut payload = Vec::new();
        for ticket in 0..20 {
            outbox.flush().unwrap();
            let head = child.receive(&mut payload).unwrap().unwrap();
            assert_eq!((head.kind, head.ticket), (1, ticket));
            assert_eq!(payload, [ticket as u8; 500]);
        }
        assert_eq!((outbox.waiting.len(), outbox.waiting_bytes), (0, 0));
    }

    #[test]
    fn a_child_that_takes_nothing_cannot_fill_our_memory() {
        let (mut outbox, _child, _socket) = pair();
        let error = loop {
            if let Err(error) = outbox.record(1, 0, &[0; 2000]) {
                break error;
            }
            outbox.waiting_bytes += 1 << 20;
        };
        assert!(matches!(error, OutboxError::Full) && error.is_refusal());
    }

    #[test]
    fn a_task_that_is_too_large_is_refused_also_while_others_wait() {
        let (mut outbox, _child, _socket) = pair();
        for fill in 0..10 {
            outbox.task(fill, &[0; 1000], Leases::new()).unwrap();
        }
        let error = outbox.task(99, &[0; 3000], Leases::new()).unwrap_err();
        assert!(error.is_refusal(), "{error}");
    }

    #[test]
    fn a_region_is_sent_once_and_before_the_record_that_names_it() {
        let (mut outbox, mut child, socket) = pair();
        let region = SharedRegion::create_memfd(4096, true).unwrap();
        for _ in 0..2 {
            outbox.region(&region).unwrap();
        }
        outbox.record(1, 7, b"names it").unwrap();
        assert!(child.receive(&mut Vec::new()).unwrap().is_some());
        let mut message = [0; 24];
        let (count, fd) = recv_fd(&socket, &mut message, Instant::now())
            .unwrap()
            .unwrap();
        assert!(count == 24 && fd.is_some() && message == region_message(&region));
        assert!(recv_fd(&socket, &mut message, Instant::now())
            .unwrap()
            .is_none());
        outbox.forget(region.id());
        outbox.region(&region).unwrap();
        assert!(recv_fd(&socket, &mut message, Instant::now())
            .unwrap()
            .is_some());
    }

    #[test]
    fn what_a_child_took_is_told_from_what_it_did_not() {
        for taken in 0..=8 {
            let (mut outbox, mut child, _socket) = pair();
            for ticket in 0..8 {
                outbox.task(ticket, &[0; 500], Leases::new()).unwrap();
            }
            assert!(!outbox.waiting.is_empty());
            for _ in 0..taken {
                outbox.flush().unwrap();
                assert!(child.receive(&mut Vec::new()).unwrap().is_some());
            }
            assert_eq!(outbox.abandon(), (taken..8).collect::<Vec<_>>());
            assert!(outbox.abandon().is_empty());
        }
    }

    #[test]
    fn the_memory_of_a_task_is_kept_until_it_is_answered_in_whatever_order() {
        let (mut outbox, _child, _socket) = pair();
        let leases: Vec<Lease> = (0..3).map(|n: u8| Arc::new(n) as Lease).collect();
        for (ticket, lease) in (0..).zip(&leases) {
            outbox
                .task(ticket, &[], Leases::from_iter([Arc::clone(lease)]))
                .unwrap();
        }
        let held = || leases.iter().map(Arc::strong_count).collect::<Vec<_>>();
        assert_eq!(held(), [2, 2, 2]);
        drop(outbox.task_done(1).unwrap());
        assert_eq!(held(), [2, 1, 2]);
        assert!(
            outbox.task_done(1).is_none(),
            "a child may not answer twice"
        );
        drop(outbox.abandon());
        assert_eq!(held(), [1, 1, 1]);
    }

    #[test]
    fn a_full_socket_holds_back_the_records_behind_it() {
        let (mut outbox, mut child, socket) = pair();
        let regions: Vec<_> = (0..2000)
            .map(|_| SharedRegion::create_memfd(1, false).unwrap())
            .collect();
        for region in &regions {
            outbox.region(region).unwrap();
        }
        outbox.record(1, 1, b"last").unwrap();
        assert!(child.receive(&mut Vec::new()).unwrap().is_none());
        let mut received = 0;
        while received < regions.len() {
            outbox.flush().unwrap();
            while recv_fd(&socket, &mut [0; 24], Instant::now())
                .unwrap()
                .is_some()
            {
                received += 1;
            }
        }
        outbox.flush().unwrap();
        assert!(child.receive(&mut Vec::new()).unwrap().is_some());
    }
}
