//! A deadline that another process of this host shares: a reading of the monotonic clock, which all of them read alike.

use std::time::{Duration, Instant};

use crate::trace::now_ns;

/// `deadline` on the monotonic clock, in nanoseconds.
#[must_use]
pub fn to_monotonic_ns(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    now_ns().saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
}

/// The instant at which the monotonic clock reads `ns`; now when that has passed.
#[must_use]
pub fn from_monotonic_ns(ns: u64) -> Instant {
    let now = Instant::now();
    let left = Duration::from_nanos(ns.saturating_sub(now_ns()));
    now.checked_add(left).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_005_a_deadline_is_the_same_on_both_sides_and_never_later_than_meant() {
        let deadline = Instant::now() + Duration::from_secs(100);
        let back = from_monotonic_ns(to_monotonic_ns(deadline));
        assert!(back.max(deadline) - back.min(deadline) < Duration::from_secs(5));
        let passed = from_monotonic_ns(to_monotonic_ns(Instant::now()));
        assert!(passed <= Instant::now());
        assert!(from_monotonic_ns(u64::MAX) > Instant::now());
        assert!(from_monotonic_ns(0) <= Instant::now());
    }
}
