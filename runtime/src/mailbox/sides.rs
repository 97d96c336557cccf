//! The two sides of a mailbox: what the parent may do and what the child may do.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bell::{ring, wait, BellWords, SpinHistory, SpinSlots, WaitPoint};
use super::layout as at;
use super::ring::{Consumer, Producer, RecordHead, SharedCells};
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

    /// The parent's side; there is one.
    ///
    /// # Errors
    /// [`MailboxError::Memory`]; not for a mailbox that [`Mailbox::create`] made.
    pub fn into_parent_side(self) -> Result<ParentSide, MailboxError> {
        let words = Words::of(&self.region, self.task_bytes, self.completion_bytes)?;
        let (tasks, completions) = (Producer::new(words.tasks), Consumer::new(words.completions));
        let (doorbell, shutdown, spinning, stalled) = (
            words.doorbell,
            words.shutdown,
            words.spinning,
            words.stalled,
        );
        Ok(ParentSide {
            region: self.region,
            tasks,
            completions,
            doorbell,
            shutdown,
            spinning,
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
    spinning: Word32,
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
            doorbell: WaitPoint {
                sequence: Word32::new(region, at::DOORBELL)?,
                sleepers: Word32::new(region, at::DOORBELL_SLEEPERS)?,
            },
            shutdown: Word32::new(region, at::SHUTDOWN)?,
            spinning: Word32::new(region, at::SPINNING)?,
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
    spinning: Word32,
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

    /// Asks the child to end after what it is doing now. For ever: nothing else writes that word.
    pub fn request_shutdown(&self) {
        self.shutdown.store(1, Ordering::Release);
        ring(&self.doorbell);
    }

    /// To be called once after the child's death: gives back what it held of the bell.
    pub fn recover(&self, bell: &Bell) {
        if self.spinning.swap(0, Ordering::Relaxed) != 0 {
            bell.slots().recover();
        }
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
    slots: SpinSlots,
    history: SpinHistory,
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
        let slots = bell.slots().marked(words.spinning);
        Ok(Self {
            tasks: Consumer::new(words.tasks),
            completions: Producer::new(words.completions),
            doorbell: words.doorbell,
            shutdown: words.shutdown,
            stalled: words.stalled,
            bell,
            slots,
            history: SpinHistory::new(),
        })
    }

    /// The next record from the parent; its payload replaces the contents of `payload`. `Ok(None)` when there is none now.
    ///
    /// # Errors
    /// [`MailboxError::Corrupt`].
    pub fn receive(&mut self, payload: &mut Vec<u8>) -> Result<Option<RecordHead>, MailboxError> {
        self.tasks.pop(payload)
    }

    /// Sends one record and rings the parent's bell. When the ring is full it waits for the parent, until `deadline`;
    /// `Ok(false)` then.
    ///
    /// # Errors
    /// [`MailboxError::RecordTooLarge`], [`MailboxError::Corrupt`].
    pub fn send(
        &mut self,
        head: RecordHead,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<bool, MailboxError> {
        let mut sent = self.completions.push(head, payload)?;
        while !sent {
            let seen = self.doorbell_value();
            self.stalled.store(1, Ordering::Release);
            sent = self.completions.push(head, payload)?;
            if !sent {
                let now = Instant::now();
                if now >= deadline {
                    break;
                }
                self.bell.ring();
                let _ = self.wait(seen, deadline.min(now + STALL_RECHECK));
            }
        }
        self.stalled.store(0, Ordering::Release);
        if sent {
            self.bell.ring();
        }
        Ok(sent)
    }

    /// The doorbell's present value. Take it before [`ChildSide::receive`], then pass it to [`ChildSide::wait`].
    #[must_use]
    pub fn doorbell_value(&self) -> u32 {
        self.doorbell.sequence()
    }

    /// Waits until the parent does something after `seen`. False at `deadline`.
    #[must_use]
    pub fn wait(&self, seen: u32, deadline: Instant) -> bool {
        wait(&self.doorbell, &self.slots, &self.history, seen, deadline)
    }

    /// True once the parent has asked the child to end; it stays true.
    #[must_use]
    pub fn is_shutdown_requested(&self) -> bool {
        self.shutdown.load(Ordering::Acquire) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (ParentSide, ChildSide, Arc<Bell>) {
        let bell = Bell::create().unwrap();
        let parent = Mailbox::create(4096, 4096)
            .unwrap()
            .into_parent_side()
            .unwrap();
        let child_bell = Bell::attach(bell.fd().try_clone_to_owned().unwrap()).unwrap();
        let child =
            ChildSide::attach(parent.fd().try_clone_to_owned().unwrap(), child_bell).unwrap();
        (parent, child, bell)
    }

    fn head(ticket: u64) -> RecordHead {
        RecordHead { kind: 1, ticket }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn records_pass_both_ways_and_ring() {
        let (mut parent, mut child, bell) = pair();
        let (seen, bell_seen) = (child.doorbell_value(), bell.value());
        assert!(parent.send(head(5), b"task").unwrap());
        assert!(child.wait(seen, soon()));
        let mut payload = Vec::new();
        assert_eq!(child.receive(&mut payload).unwrap(), Some(head(5)));
        assert_eq!(payload, b"task");
        assert!(child.send(head(5), b"done", soon()).unwrap());
        assert!(bell.wait(bell_seen, soon()));
        assert_eq!(parent.receive(&mut payload).unwrap(), Some(head(5)));
        assert_eq!(payload, b"done");
        assert_eq!(parent.receive(&mut payload).unwrap(), None);
    }

    #[test]
    fn r_044_shutdown_is_sticky_whatever_is_in_flight() {
        let (mut parent, mut child, _bell) = pair();
        let seen = child.doorbell_value();
        parent.request_shutdown();
        assert!(child.wait(seen, soon()));
        let mut payload = Vec::new();
        for ticket in 0..100 {
            assert!(parent.send(head(ticket), b"control").unwrap());
            assert!(child.receive(&mut payload).unwrap().is_some());
            assert!(child.send(head(ticket), b"done", soon()).unwrap());
            assert!(parent.receive(&mut payload).unwrap().is_some());
            assert!(child.is_shutdown_requested());
        }
    }

    #[test]
    fn a_child_waits_for_room_and_goes_on() {
        let (mut parent, mut child, bell) = pair();
        let late = Instant::now();
        let mut count = 0;
        while child.send(head(count), &[1; 1000], late).unwrap() {
            count += 1;
        }
        assert_eq!(count, 4);
        let mut seen = bell.value();
        let sender = std::thread::spawn(move || child.send(head(99), &[2; 1000], soon()).unwrap());
        let (mut payload, mut got) = (Vec::new(), 0);
        while got < 5 {
            if parent.receive(&mut payload).unwrap().is_some() {
                got += 1;
            } else {
                assert!(bell.wait(seen, soon()));
                seen = bell.value();
            }
        }
        assert!(sender.join().unwrap());
        assert_eq!(payload, [2; 1000]);
    }

    #[test]
    fn r_231_a_mailbox_of_another_build_is_refused() {
        let (parent, _child, bell) = pair();
        let attach =
            || ChildSide::attach(parent.fd().try_clone_to_owned().unwrap(), Arc::clone(&bell));
        let poke = |offset, value| {
            Word64::new(&parent.region, offset)
                .unwrap()
                .store(value, Ordering::Release)
        };
        poke(64, 1);
        assert!(matches!(
            attach(),
            Err(MailboxError::Corrupt {
                what: "a reserved word",
                ..
            })
        ));
        poke(64, 0);
        poke(at::TASK_BYTES, 1 << 20);
        assert!(matches!(attach(), Err(MailboxError::Memory(_))));
        poke(at::TASK_BYTES, 5);
        assert!(matches!(
            attach(),
            Err(MailboxError::BadRingSize { bytes: 5, .. })
        ));
        // a child of another build is told apart, with what to do.
        poke(at::MAGIC, at::MAILBOX_MAGIC + (1 << 56));
        let Err(error) = attach() else {
            panic!("it must be refused")
        };
        let text = error.to_string();
        assert!(
            text.contains("mailbox's magic") && text.contains("reinstall"),
            "{text}"
        );
        assert!(matches!(
            Mailbox::create(100, 4096),
            Err(MailboxError::BadRingSize { .. })
        ));
    }

    #[test]
    fn a_record_of_more_than_half_a_ring_is_refused() {
        let (mut parent, _child, _bell) = pair();
        let limit = parent.payload_max();
        let error = parent
            .send(head(0), &vec![0; limit as usize + 1])
            .unwrap_err();
        assert_eq!(
            error,
            MailboxError::RecordTooLarge {
                len: limit + 1,
                limit
            }
        );
        assert!(parent.send(head(0), &vec![0; limit as usize]).unwrap());
    }

    #[test]
    fn the_spinners_slot_of_a_dead_child_comes_back() {
        let (parent, child, bell) = pair();
        child
            .slots
            .mark
            .as_ref()
            .unwrap()
            .store(1, Ordering::Relaxed);
        let spinners = Word32::new(bell.region(), at::BELL_SPINNERS).unwrap();
        spinners.store(1, Ordering::Relaxed);
        parent.recover(&bell);
        parent.recover(&bell);
        assert_eq!(spinners.load(Ordering::Relaxed), 0);
    }
}
