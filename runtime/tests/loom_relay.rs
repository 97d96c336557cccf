//! All interleavings of who reads a lane, under loom: `channel/relay.rs` itself, built from loom's primitives.
//! `RUSTFLAGS="--cfg loom" cargo test -p echelon-runtime --test loom_relay --release`
//!
//! loom has no time. A nap is over at once, which is one of the moments at which it may be over; every other wait has no end but the
//! wake-up it is for. So one that is lost is a deadlock, which loom reports.
#![allow(unexpected_cfgs, missing_docs, dead_code, clippy::unwrap_used)]
#![cfg(loom)]

use std::time::{Duration, Instant};

use loom::sync::Arc;
use loom::thread;

#[path = "../src/channel/relay.rs"]
#[allow(unreachable_pub)] // It is a part of the library there.
mod relay;

use relay::{Relay, Turn, NAP};

/// What the relay takes from the module beside it.
mod sync {
    use std::time::Instant;

    use loom::sync::atomic::fence;
    pub(super) use loom::sync::atomic::Ordering;

    use super::NAP;

    /// loom takes sequentially consistent accesses for acquire and release ones; the fences say what the real ones promise.
    fn ordered<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
        let fenced = || {
            if order == Ordering::SeqCst {
                fence(order);
            }
        };
        fenced();
        let value = access();
        fenced();
        value
    }

    #[derive(Debug)]
    pub(super) struct AtomicBool(loom::sync::atomic::AtomicBool);

    impl AtomicBool {
        pub(super) fn new(value: bool) -> Self {
            Self(loom::sync::atomic::AtomicBool::new(value))
        }

        pub(super) fn load(&self, order: Ordering) -> bool {
            ordered(order, || self.0.load(order))
        }

        pub(super) fn store(&self, value: bool, order: Ordering) {
            ordered(order, || self.0.store(value, order));
        }

        pub(super) fn swap(&self, value: bool, order: Ordering) -> bool {
            ordered(order, || self.0.swap(value, order))
        }
    }

    #[derive(Debug)]
    pub(super) struct AtomicU32(loom::sync::atomic::AtomicU32);

    impl AtomicU32 {
        pub(super) fn new(value: u32) -> Self {
            Self(loom::sync::atomic::AtomicU32::new(value))
        }

        pub(super) fn load(&self, order: Ordering) -> u32 {
            ordered(order, || self.0.load(order))
        }

        pub(super) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
            ordered(order, || self.0.fetch_add(value, order))
        }

        pub(super) fn fetch_sub(&self, value: u32, order: Ordering) -> u32 {
            ordered(order, || self.0.fetch_sub(value, order))
        }
    }

    #[derive(Debug)]
    pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

    pub(super) type Guard<'a, T> = Option<loom::sync::MutexGuard<'a, T>>;

    /// A guard that can be given away for the time of a wait.
    pub(super) struct Held<'a, T>(Guard<'a, T>);

    impl<T> std::ops::Deref for Held<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> std::ops::DerefMut for Held<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> Held<'_, T> {
            Held(Some(self.0.lock().unwrap()))
        }
    }

    #[derive(Debug)]
    pub(super) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(super) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub(super) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(super) fn wait_until<T>(&self, held: &mut Held<'_, T>, until: Instant) {
            if until <= Instant::now() + NAP {
                return;
            }
            let guard = held.0.take().unwrap();
            held.0 = Some(self.0.wait(guard).unwrap());
        }
    }

    /// The kernel's part of an eventfd is a mutex and a condition.
    #[derive(Debug)]
    pub(super) struct Signal {
        set: loom::sync::Mutex<bool>,
        came: loom::sync::Condvar,
    }

    pub(super) type Recall<'a> = &'a Signal;

    impl Signal {
        pub(super) fn new() -> std::io::Result<Self> {
            Ok(Self {
                set: loom::sync::Mutex::new(false),
                came: loom::sync::Condvar::new(),
            })
        }

        pub(super) fn set(&self) {
            *self.set.lock().unwrap() = true;
            self.came.notify_all();
        }

        pub(super) fn clear(&self) {
            *self.set.lock().unwrap() = false;
        }

        pub(super) fn borrow(&self) -> Recall<'_> {
            self
        }

        pub(super) fn wait(&self) {
            let mut set = self.set.lock().unwrap();
            while !*set {
                set = self.came.wait(set).unwrap();
            }
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// The second hand at the lane, as `remote/lane.rs` has it: it sleeps until it is recalled, and gives the lane back.
fn read(relay: &Relay) {
    while !relay.is_recalled() {
        relay.recall().wait();
    }
    relay.give_back();
}

/// Stands by until the lane is left to it.
fn come_to_read(relay: &Relay) {
    while relay.stand_by(far()) != Turn::Read {}
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    // The second hand looks at a counter again and again: bounded preemptions, as for the bell.
    model.preemption_bound = Some(preemptions);
    model.check(body);
}

/// A lane that was left is taken over, however the two meet: nobody sleeps beside a lane where nobody is.
#[test]
fn r_092_a_lane_that_was_left_is_read() {
    model(5, || {
        let relay = Arc::new(Relay::new().unwrap());
        let first = {
            let relay = Arc::clone(&relay);
            thread::spawn(move || {
                relay.enter();
                relay.leave();
            })
        };
        come_to_read(&relay);
        first.join().unwrap();
    });
}

/// Whoever comes gets the lane: the second hand that sleeps at it is recalled, and comes back when the first has left.
#[test]
fn r_092_the_second_hand_is_recalled_and_comes_back() {
    model(4, || {
        let relay = Arc::new(Relay::new().unwrap());
        come_to_read(&relay);
        let second = {
            let relay = Arc::clone(&relay);
            thread::spawn(move || {
                read(&relay);
                come_to_read(&relay);
            })
        };
        relay.enter();
        relay.leave();
        relay.call();
        second.join().unwrap();
    });
}

/// A first hand that stays needs nothing but its coming to have the lane for itself.
#[test]
fn r_092_a_first_hand_that_stays_gets_the_lane() {
    model(5, || {
        let relay = Arc::new(Relay::new().unwrap());
        come_to_read(&relay);
        let second = {
            let relay = Arc::clone(&relay);
            thread::spawn(move || read(&relay))
        };
        relay.enter();
        second.join().unwrap();
        relay.leave();
    });
}

/// A call is heard wherever the second hand is: napping, asleep beside a first hand, or at the lane.
#[test]
fn r_092_a_call_is_heard() {
    model(5, || {
        let relay = Arc::new(Relay::new().unwrap());
        relay.enter();
        let second = {
            let relay = Arc::clone(&relay);
            thread::spawn(move || {
                while relay.stand_by(far()) != Turn::Look {
                    read(&relay);
                }
            })
        };
        relay.call();
        second.join().unwrap();
        relay.leave();
    });
    model(5, || {
        let relay = Arc::new(Relay::new().unwrap());
        come_to_read(&relay);
        let second = {
            let relay = Arc::clone(&relay);
            thread::spawn(move || {
                read(&relay);
                while relay.stand_by(far()) != Turn::Look {
                    read(&relay);
                }
            })
        };
        relay.call();
        second.join().unwrap();
    });
}
