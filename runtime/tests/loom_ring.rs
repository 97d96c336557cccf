//! All interleavings of the mailbox's hand-over and of its wake-up protocol, under loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p echelon-runtime --test loom_ring --release`
#![allow(unexpected_cfgs, missing_docs, clippy::unwrap_used)]
#![cfg(loom)]

use std::time::{Duration, Instant};

use echelon_runtime::mailbox::ring::{Cells, Consumer, Producer};
use echelon_runtime::mailbox::standby::{alarm, leave_present, ring_bell, stand_by, StandbyWords};
use echelon_runtime::mailbox::wake::{ring, sleep, BellWords};
use echelon_runtime::mailbox::{MailboxError, RecordHead};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// A ring whose bytes are checked for races by loom.
struct Model {
    head: AtomicU64,
    tail: AtomicU64,
    bytes: Vec<UnsafeCell<u64>>,
}

#[derive(Clone)]
struct ModelCells(Arc<Model>);

impl ModelCells {
    fn new(capacity: usize) -> Self {
        let bytes = (0..capacity / 8).map(|_| UnsafeCell::new(0)).collect();
        Self(Arc::new(Model {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            bytes,
        }))
    }
}

impl Cells for ModelCells {
    fn capacity(&self) -> u64 {
        self.0.bytes.len() as u64 * 8
    }

    fn head(&self) -> u64 {
        self.0.head.load(Ordering::Acquire)
    }

    fn set_head(&self, head: u64) {
        self.0.head.store(head, Ordering::Release);
    }

    fn tail(&self) -> u64 {
        self.0.tail.load(Ordering::Acquire)
    }

    fn set_tail(&self, tail: u64) {
        self.0.tail.store(tail, Ordering::Release);
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), MailboxError> {
        for (n, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            // SAFETY: loom reports the race if the protocol lets two sides touch one cell.
            self.0.bytes[at as usize / 8 + n]
                .with_mut(|cell| unsafe { *cell = u64::from_le_bytes(word) });
        }
        Ok(())
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), MailboxError> {
        for (n, chunk) in bytes.chunks_mut(8).enumerate() {
            // SAFETY: as above.
            let word = self.0.bytes[at as usize / 8 + n].with(|cell| unsafe { *cell });
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// The words of a bell; the kernel's part of the futex is a mutex and a condition.
///
/// loom takes sequentially consistent accesses for acquire and release ones; the fences say what the real ones promise.
struct ModelBell {
    sequence: AtomicU32,
    asleep: AtomicU64,
    present: AtomicU32,
    standby: AtomicU32,
    alarms: AtomicU32,
    kernel: Mutex<()>,
    woken: Condvar,
    woken_standby: Condvar,
}

impl StandbyWords for ModelBell {
    fn present(&self) -> u32 {
        fence(Ordering::SeqCst);
        self.present.load(Ordering::SeqCst)
    }

    fn come(&self) {
        self.present.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn go(&self) -> bool {
        let last = self.present.fetch_sub(1, Ordering::SeqCst) == 1;
        fence(Ordering::SeqCst);
        last
    }

    fn alarms(&self) -> u32 {
        fence(Ordering::SeqCst);
        self.alarms.load(Ordering::SeqCst)
    }

    fn add_alarm(&self) {
        self.alarms.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn stands_by(&self) -> bool {
        fence(Ordering::SeqCst);
        self.standby.load(Ordering::SeqCst) != 0
    }

    fn set_standby(&self, stands_by: bool) {
        self.standby.store(u32::from(stands_by), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn end_standby(&self) -> bool {
        self.standby.swap(0, Ordering::SeqCst) != 0
    }

    fn sleep_standing_by(&self, _deadline: Instant) {
        let guard = self.kernel.lock().unwrap();
        if self.standby.load(Ordering::SeqCst) != 0 {
            drop(self.woken_standby.wait(guard).unwrap());
        }
    }

    fn wake_standby(&self) {
        drop(self.kernel.lock().unwrap());
        self.woken_standby.notify_all();
    }
}

impl BellWords for ModelBell {
    fn sequence(&self) -> u32 {
        fence(Ordering::SeqCst);
        self.sequence.load(Ordering::SeqCst)
    }

    fn increment(&self) -> u32 {
        let before = self.sequence.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        before
    }

    fn asleep(&self) -> u64 {
        self.asleep.load(Ordering::SeqCst)
    }

    fn exchange_asleep(&self, old: u64, new: u64) -> Result<(), u64> {
        let exchanged = self
            .asleep
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        exchanged.map(drop)
    }

    fn sleep_while(&self, seen: u32, _deadline: Instant) {
        let guard = self.kernel.lock().unwrap();
        if self.sequence.load(Ordering::SeqCst) == seen {
            // loom has no time: a wake-up that is lost is a deadlock, which it reports.
            drop(self.woken.wait(guard).unwrap());
        }
    }

    fn wake_all(&self) {
        drop(self.kernel.lock().unwrap());
        self.woken.notify_all();
    }
}

fn bell() -> Arc<ModelBell> {
    Arc::new(ModelBell {
        sequence: AtomicU32::new(0),
        asleep: AtomicU64::new(0),
        present: AtomicU32::new(0),
        standby: AtomicU32::new(0),
        alarms: AtomicU32::new(0),
        kernel: Mutex::new(()),
        woken: Condvar::new(),
        woken_standby: Condvar::new(),
    })
}

/// Waits until `work` is `all`, as a waiter of the mailbox does.
fn wait_for(bell: &ModelBell, work: &AtomicU32, all: u32) {
    loop {
        let seen = bell.sequence();
        if work.load(Ordering::Acquire) == all {
            return;
        }
        let _ = sleep(bell, seen, far());
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[test]
fn records_are_handed_over_without_a_race() {
    loom::model(|| {
        let cells = ModelCells::new(64);
        let mut producer = Producer::new(cells.clone());
        let mut consumer = Consumer::new(cells);
        let writer = thread::spawn(move || {
            let mut sent = 0;
            for ticket in 1..=3_u64 {
                // 24 bytes each: the third needs a pad and the consumer's progress.
                if producer
                    .push(RecordHead { kind: 1, ticket }, &ticket.to_le_bytes())
                    .unwrap()
                {
                    sent += 1;
                }
            }
            sent
        });
        let (mut payload, mut got) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            if let Some(head) = consumer.pop(&mut payload).unwrap() {
                assert_eq!(payload, head.ticket.to_le_bytes());
                got.push(head.ticket);
            }
        }
        let sent = writer.join().unwrap();
        while let Some(head) = consumer.pop(&mut payload).unwrap() {
            assert_eq!(payload, head.ticket.to_le_bytes());
            got.push(head.ticket);
        }
        assert_eq!(got.len(), sent);
        assert!(got.windows(2).all(|pair| pair[0] < pair[1]));
    });
}

#[test]
fn r_092_no_wake_up_is_lost() {
    loom::model(|| {
        let (bell, work) = (bell(), Arc::new(AtomicU32::new(0)));
        let ringer = {
            let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
            thread::spawn(move || {
                work.store(1, Ordering::Release);
                ring(&*bell);
            })
        };
        let seen = bell.sequence();
        if work.load(Ordering::Acquire) == 0 {
            assert!(sleep(&*bell, seen, far()));
            assert_eq!(work.load(Ordering::Acquire), 1);
        }
        ringer.join().unwrap();
        assert_eq!(bell.asleep() as u32, 0);
    });
}

#[test]
fn r_092_two_ringers_and_a_sleeper_that_takes_all_work() {
    // Three threads: all interleavings with up to three preemptions, which take seconds instead of hours.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (bell, work) = (bell(), Arc::new(AtomicU32::new(0)));
        let ringers: Vec<_> = (0..2)
            .map(|_| {
                let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
                thread::spawn(move || {
                    work.fetch_add(1, Ordering::AcqRel);
                    ring(&*bell);
                })
            })
            .collect();
        let mut done = 0;
        while done < 2 {
            let seen = bell.sequence();
            let found = work.swap(0, Ordering::AcqRel);
            done += found;
            if found == 0 {
                assert!(sleep(&*bell, seen, far()));
            }
        }
        for ringer in ringers {
            ringer.join().unwrap();
        }
    });
}

#[test]
fn r_044_shutdown_is_seen_by_a_child_that_goes_to_sleep() {
    loom::model(|| {
        let (bell, shutdown) = (bell(), Arc::new(AtomicU32::new(0)));
        let parent = {
            let (bell, shutdown) = (Arc::clone(&bell), Arc::clone(&shutdown));
            thread::spawn(move || {
                ring(&*bell);
                shutdown.store(1, Ordering::Release);
                ring(&*bell);
            })
        };
        loop {
            let seen = bell.sequence();
            if shutdown.load(Ordering::Acquire) == 1 {
                break;
            }
            let _ = sleep(&*bell, seen, far());
        }
        parent.join().unwrap();
    });
}

#[test]
fn r_092_two_sleepers_on_different_sequences_and_a_ringer() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (bell, work) = (bell(), Arc::new(AtomicU32::new(0)));
        // One waits for the first ring only, the other for both: the later one takes the earlier one's place in the word.
        let (of_first, of_both) = (
            (Arc::clone(&bell), Arc::clone(&work)),
            (Arc::clone(&bell), Arc::clone(&work)),
        );
        let first = thread::spawn(move || loop {
            let seen = of_first.0.sequence();
            if of_first.1.load(Ordering::Acquire) > 0 {
                return;
            }
            let _ = sleep(&*of_first.0, seen, far());
        });
        let both = thread::spawn(move || wait_for(&of_both.0, &of_both.1, 2));
        for _ in 0..2 {
            work.fetch_add(1, Ordering::AcqRel);
            ring(&*bell);
        }
        first.join().unwrap();
        both.join().unwrap();
        assert_eq!(bell.asleep() as u32, 0);
    });
}

/// Takes what there is, as often as something wakes it, until all of it has been taken by somebody: the driver of a worker.
fn drive(bell: &ModelBell, work: &AtomicU32, taken: &AtomicU32, all: u32) {
    loop {
        let (alarms, seen) = (bell.alarms(), bell.sequence());
        let found = work.swap(0, Ordering::AcqRel);
        if taken.fetch_add(found, Ordering::AcqRel) + found == all {
            return;
        }
        stand_by(bell, seen, alarms, far());
    }
}

/// Work that is announced while a waiter comes and goes is taken by it, or by the driver, which stands by meanwhile.
#[test]
fn r_092_what_a_waiter_leaves_behind_wakes_the_driver() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (bell, work, taken) = (
            bell(),
            Arc::new(AtomicU32::new(0)),
            Arc::new(AtomicU32::new(0)),
        );
        let driver = {
            let (bell, work, taken) = (Arc::clone(&bell), Arc::clone(&work), Arc::clone(&taken));
            thread::spawn(move || drive(&bell, &work, &taken, 1))
        };
        let ringer = {
            let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
            thread::spawn(move || {
                work.fetch_add(1, Ordering::AcqRel);
                ring_bell(&*bell);
            })
        };
        // The waiter looks once and goes. If it has taken the work, the driver is told by an alarm that there is nothing left.
        bell.come();
        let seen = bell.sequence();
        let found = work.swap(0, Ordering::AcqRel);
        taken.fetch_add(found, Ordering::AcqRel);
        leave_present(&*bell, seen);
        if found > 0 {
            alarm(&*bell);
        }
        ringer.join().unwrap();
        driver.join().unwrap();
        assert_eq!(taken.load(Ordering::SeqCst), 1);
    });
}

/// An alarm reaches the driver at once, although somebody is present who stays.
#[test]
fn r_092_an_alarm_reaches_the_driver_whoever_is_present() {
    loom::model(|| {
        let (bell, stopped) = (bell(), Arc::new(AtomicU32::new(0)));
        bell.come();
        let driver = {
            let (bell, stopped) = (Arc::clone(&bell), Arc::clone(&stopped));
            thread::spawn(move || loop {
                let (alarms, seen) = (bell.alarms(), bell.sequence());
                if stopped.load(Ordering::Acquire) == 1 {
                    return;
                }
                stand_by(&*bell, seen, alarms, far());
            })
        };
        stopped.store(1, Ordering::Release);
        alarm(&*bell);
        driver.join().unwrap();
    });
}
