//! The relay with real threads; `tests/loom_relay.rs` has the interleavings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::relay::{Relay, Turn, NAP};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn a_lane_that_is_left_alone_is_taken_over_and_given_back() {
    let relay = Relay::new().unwrap();
    assert_eq!(relay.stand_by(soon()), Turn::Read);
    assert!(!relay.is_recalled());
    relay.enter();
    assert!(relay.is_recalled());
    relay.give_back();
    // Somebody is there: nothing but a call or the time ends this.
    assert_eq!(relay.stand_by(Instant::now()), Turn::Look);
    relay.leave();
    assert_eq!(relay.stand_by(soon()), Turn::Read);
}

#[test]
fn a_call_is_heard_in_bed_and_at_the_lane() {
    let relay = Relay::new().unwrap();
    relay.call();
    assert_eq!(relay.stand_by(soon()), Turn::Look);
    assert_eq!(relay.stand_by(soon()), Turn::Read);
    relay.call();
    assert!(relay.is_recalled());
    relay.give_back();
    assert_eq!(relay.stand_by(soon()), Turn::Look);
}

fn is_readable(relay: &Relay) -> bool {
    use rustix::event::{poll, PollFd, PollFlags, Timespec};
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::from_borrowed_fd(relay.recall(), PollFlags::IN)];
    poll(&mut fds, Some(&at_once)) == Ok(1)
}

/// Else the second hand would not sleep any more.
#[test]
fn a_first_hand_that_came_and_went_is_no_reason_to_wake_for_ever() {
    let relay = Relay::new().unwrap();
    assert_eq!(relay.stand_by(soon()), Turn::Read);
    relay.enter();
    assert!(is_readable(&relay));
    relay.leave();
    assert!(!relay.is_recalled());
    assert!(!is_readable(&relay));
    // It saw that the lane was taken, and rang when it was not any more.
    relay.give_back();
    relay.ring();
    assert_eq!(relay.stand_by(soon()), Turn::Read);
    assert!(!relay.is_recalled());
    assert!(!is_readable(&relay));
}

/// Whoever leaves wakes the one that sleeps, however the two meet: a lost call would end at the bound.
#[test]
fn r_092_no_leave_is_missed() {
    let relay = Arc::new(Relay::new().unwrap());
    let (far, by) = (Arc::clone(&relay), soon());
    let second = std::thread::spawn(move || {
        for _ in 0..200 {
            if far.stand_by(by) != Turn::Read {
                return false;
            }
            while !far.is_recalled() {
                if Instant::now() >= by {
                    return false;
                }
                std::thread::yield_now();
            }
            far.give_back();
        }
        true
    });
    while !second.is_finished() {
        relay.enter();
        for _ in 0..100 {
            std::hint::spin_loop();
        }
        relay.leave();
        // Time for the other one to come.
        let taken = Instant::now() + 3 * NAP;
        while Instant::now() < taken && relay.is_soon() {
            std::thread::yield_now();
        }
    }
    assert!(second.join().unwrap());
}
