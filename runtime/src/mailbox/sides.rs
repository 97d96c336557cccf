//! The two sides of a mailbox: what the parent may do and what the child may do.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layout as at;
use super::place::{is_room, Company, Near};
use super::ring::{Consumer, Producer, RecordHead, SharedCells};
use super::spin::{wait, SpinHistory};
use super::wake::{ring, BellWords, KernelCalls, WaitPoint};
use super::{Bell, MailboxError, Word32, Word64};
use crate::memory::{random_id, SharedRegion};

/// A child that waits for room in the completion ring looks again after this time even if nobody rings.
const STALL_RECHECK: Duration = Duration::from_millis(5);

/// A new mailbox, before its two sides part.
#[derive(Debug)]
pub struct Mailbox {
    region: Arc<SharedRegion>,
    task_bytes: u64,
    completion_bytes: u64,
}

impl Mailbox {
    /// A mailbox with rings of the given sizes in bytes, multiples of 4096; the usual ones are
    /// [`layout::TASK_RING_BYTES`](at::TASK_RING_BYTES) and [`layout::COMPLETION_RING_BYTES`](at::COMPLETION_RING_BYTES). All
    /// its pages are allocated here.
    ///
    /// # Errors
    /// [`MailboxError::BadRingSize`], [`MailboxError::Memory`].
    pub fn create(task_bytes: u64, completion_bytes: u64) -> Result<Self, MailboxError> {
        at::check_ring_bytes(task_bytes)?;
        at::check_ring_bytes(completion_bytes)?;
        let region =
            SharedRegion::create_memfd(at::HEADER_BYTES + task_bytes + completion_bytes, true)?;
        let word = |offset| Word64::new(&region, offset);
        word(at::TASK_BYTES)?.store(task_bytes, Ordering::Release);
        word(at::COMPLETION_BYTES)?.store(completion_bytes, Ordering::Release);
        word(at::MAGIC)?.store(at::MAILBOX_MAGIC, Ordering::Release);
        Ok(Self {
            region,
            task_bytes,
            completion_bytes,
        })
    }

    /// Gives the child a seat in the segment of the parent's bell. Before the child starts.
    ///
    /// # Errors
    /// [`MailboxError::Memory`]; not for a mailbox that [`Mailbox::create`] made.
    pub fn seated(self, number: u32) -> Result<Self, MailboxError> {
        Word32::new(&self.region, at::SEAT)?.store(number, Ordering::Release);
        Ok(self)
    }

    /// The parent's side; there is one.
    ///
    /// # Errors
    /// [`MailboxError::Memory`]; not for a mailbox that [`Mailbox::create`] made.
    pub fn into_parent_side(self) -> Result<ParentSide, MailboxError> {
        let words = Words::of(&self.region, self.task_bytes, self.completion_bytes)?;
        let (tasks, completions) = (Producer::new(words.tasks), Consumer::new(words.completions));
        let (doorbell, shutdown, stalled) = (words.doorbell, words.shutdown, words.stalled);
        Ok(ParentSide {
            region: self.region,
            tasks,
            completions,
            doorbell,
            shutdown,
            stalled,
        })
    }
}

/// All words of a mailbox.
struct Words {
    tasks: SharedCells,
    completions: SharedCells,
    doorbell: WaitPoint,
    shutdown: Word32,
    stalled: Word32,
}

impl Words {
    fn of(
        region: &Arc<SharedRegion>,
        task_bytes: u64,
        completion_bytes: u64,
    ) -> Result<Self, MailboxError> {
        let cells = |head, tail, start, bytes| {
            let data = region.host(start, bytes)?;
            Ok::<_, MailboxError>(SharedCells::new(
                Word64::new(region, head)?,
                Word64::new(region, tail)?,
                data,
            ))
        };
        Ok(Self {
            tasks: cells(at::TASK_HEAD, at::TASK_TAIL, at::HEADER_BYTES, task_bytes)?,
            completions: cells(
                at::COMPLETION_HEAD,
                at::COMPLETION_TAIL,
                at::HEADER_BYTES + task_bytes,
                completion_bytes,
            )?,
            doorbell: WaitPoint::new(region, at::DOORBELL, at::DOORBELL_ASLEEP)?,
            shutdown: Word32::new(region, at::SHUTDOWN)?,
            stalled: Word32::new(region, at::STALLED)?,
        })
    }
}

/// The parent's side: sends tasks, receives completions.
#[derive(Debug)]
pub struct ParentSide {
    region: Arc<SharedRegion>,
    tasks: Producer<SharedCells>,
    completions: Consumer<SharedCells>,
    doorbell: WaitPoint,
    shutdown: Word32,
    stalled: Word32,
}

impl ParentSide {
    /// The descriptor that the child inherits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.region.fd()
    }

    /// The largest payload of a record down, in bytes.
    #[must_use]
    pub fn payload_max(&self) -> u64 {
        self.tasks.payload_max()
    }

    /// Sends one record and wakes the child if it sleeps. `Ok(false)` when the ring is full: try again after the next
    /// completion.
    ///
    /// # Errors
    /// [`MailboxError::RecordTooLarge`], [`MailboxError::Corrupt`].
    pub fn send(&mut self, head: RecordHead, payload: &[u8]) -> Result<bool, MailboxError> {
        let sent = self.tasks.push(head, payload)?;
        if sent {
            ring(&self.doorbell);
        }
        Ok(sent)
    }

    /// Where the record that was sent last ends.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.tasks.position()
    }

    /// How often the parent has called the kernel to wake the child.
    #[must_use]
    pub fn wake_calls(&self) -> u64 {
        self.doorbell.calls().wakes
    }

    /// How far the child has taken records; everything when what it says cannot be.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.tasks.taken()
    }

    /// The next completion; its payload replaces the contents of `payload`. `Ok(None)` when there is none now.
    ///
    /// # Errors
    /// [`MailboxError::Corrupt`].
    pub fn receive(&mut self, payload: &mut Vec<u8>) -> Result<Option<RecordHead>, MailboxError> {
        let head = self.completions.pop(payload)?;
        // Not fenced against the child's store: a child that is missed here looks again by itself after `STALL_RECHECK`.
        if head.is_some() && self.stalled.load(Ordering::Acquire) != 0 {
            ring(&self.doorbell);
        }
        Ok(head)
    }

    /// True when there is no completion now.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.completions.is_empty()
    }

    /// Asks the child to end after what it is doing now. For ever: nothing else writes that word.
    pub fn request_shutdown(&self) {
        self.shutdown.store(1, Ordering::Release);
        ring(&self.doorbell);
    }
}

/// The child's side: receives tasks, sends completions.
#[derive(Debug)]
pub struct ChildSide {
    tasks: Consumer<SharedCells>,
    completions: Producer<SharedCells>,
    doorbell: WaitPoint,
    shutdown: Word32,
    stalled: Word32,
    bell: Arc<Bell>,
    history: SpinHistory,
    /// `None` for a child without a seat.
    company: Option<Company>,
}

impl ChildSide {
    /// The child's side of the mailbox behind an inherited descriptor, whose completions ring `bell`.
    ///
    /// # Errors
    /// [`MailboxError::Corrupt`] when it is no mailbox of this build, or reserved bytes are not zero;
    /// [`MailboxError::Memory`].
    pub fn attach(fd: OwnedFd, bell: Arc<Bell>) -> Result<Self, MailboxError> {
        let id = random_id()?;
        let header = SharedRegion::from_fd(id, fd, at::HEADER_BYTES, true)?;
        let word =
            |offset| Ok::<_, MailboxError>(Word64::new(&header, offset)?.load(Ordering::Acquire));
        let magic = word(at::MAGIC)?;
        if magic != at::MAILBOX_MAGIC {
            return Err(MailboxError::Corrupt {
                what: "the mailbox's magic",
                value: magic,
                must: "this build's: parent and child are of different builds, so reinstall echelon in the environment that both run in",
            });
        }
        for offset in at::RESERVED.step_by(8) {
            let value = word(offset)?;
            if value != 0 {
                return Err(MailboxError::Corrupt {
                    what: "a reserved word",
                    value,
                    must: "zero",
                });
            }
        }
        let (task_bytes, completion_bytes) = (word(at::TASK_BYTES)?, word(at::COMPLETION_BYTES)?);
        at::check_ring_bytes(task_bytes)?;
        at::check_ring_bytes(completion_bytes)?;
        let whole = header
            .fd()
            .try_clone_to_owned()
            .map_err(|error| MailboxError::Os {
                call: "dup",
                errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
            })?;
        let region = SharedRegion::from_fd(
            id,
            whole,
            at::HEADER_BYTES + task_bytes + completion_bytes,
            true,
        )?;
        let words = Words::of(&region, task_bytes, completion_bytes)?;
        let seat = Word32::new(&region, at::SEAT)?.load(Ordering::Acquire);
        let company = bell.spot_at(seat)?.map(Company::new);
        Ok(Self {
            tasks: Consumer::new(words.tasks),
            completions: Producer::new(words.completions),
            doorbell: words.doorbell,
            shutdown: words.shutdown,
            stalled: words.stalled,
            bell,
            history: SpinHistory::new(),
            company,
        })
    }

    /// The next record from the parent; its payload replaces the contents of `payload`. `Ok(None)` when there is none now.
    ///
    /// # Errors
    /// [`MailboxError::Corrupt`].
    pub fn receive(&mut self, payload: &mut Vec<u8>) -> Result<Option<RecordHead>, MailboxError> {
        self.tasks.pop(payload)
    }

    /// Sends one record and rings the parent's bell. `Ok(false)` when the ring is full.
    ///
    /// # Errors
    /// [`MailboxError::RecordTooLarge`], [`MailboxError::Corrupt`].
    pub fn try_send(&mut self, head: RecordHead, payload: &[u8]) -> Result<bool, MailboxError> {
        let sent = self.completions.push(head, payload)?;
        if sent {
            self.bell.ring();
        }
        Ok(sent)
    }

    /// Sends one record and rings the parent's bell. When the ring is full it waits for the parent, until `deadline`;
    /// `Ok(false)` then.
    ///
    /// # Errors
    /// As [`ChildSide::try_send`].
    pub fn send(
        &mut self,
        head: RecordHead,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<bool, MailboxError> {
        let mut sent = self.try_send(head, payload)?;
        if sent {
            return Ok(true);
        }
        loop {
            let seen = self.doorbell_value();
            self.stalled.store(1, Ordering::Release);
            sent = self.try_send(head, payload)?;
            let now = Instant::now();
            if sent || now >= deadline {
                break;
            }
            self.bell.ring();
            let _ = self.wait(seen, deadline.min(now + STALL_RECHECK));
        }
        self.stalled.store(0, Ordering::Release);
        Ok(sent)
    }

    /// The doorbell's present value. Take it before [`ChildSide::receive`], then pass it to [`ChildSide::wait`].
    #[must_use]
    pub fn doorbell_value(&self) -> u32 {
        self.doorbell.sequence()
    }

    /// Waits until the parent does something after `seen`. False at `deadline`.
    #[must_use]
    pub fn wait(&mut self, seen: u32, deadline: Instant) -> bool {
        if self.doorbell.sequence() != seen {
            return true;
        }
        let slots = self.bell.slots();
        let (owner, asleep) = self.bell.owner();
        let near = self.company.as_mut().map_or(Near::Apart, |company| {
            // Both want to run, unless the parent sleeps.
            company.arrive(owner, || is_room(slots.cores, 2 - u32::from(asleep)))
        });
        let rung = wait(&self.doorbell, slots, &self.history, seen, deadline, near);
        if let Some(company) = &self.company {
            company.woke();
        }
        rung
    }

    /// How often the child has called the kernel to sleep at its doorbell, and to ring the parent's bell.
    #[must_use]
    pub fn kernel_calls(&self) -> KernelCalls {
        KernelCalls {
            sleeps: self.doorbell.calls().sleeps,
            wakes: self.bell.kernel_calls().wakes,
        }
    }

    /// True once the parent has asked the child to end; it stays true.
    #[must_use]
    pub fn is_shutdown_requested(&self) -> bool {
        self.shutdown.load(Ordering::Acquire) != 0
    }
}

#[cfg(test)]
mod tests;
