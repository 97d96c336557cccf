//! Whether this process ran: a session that wants answers (`health_echo`) ends when there are none, and then the reason lies here.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How late a watching thread may be and still count as having run.
pub(crate) const STALL: Duration = Duration::from_millis(500);
/// Longest sleep of a watching thread.
const NAP: Duration = Duration::from_secs(1);

/// When the watching thread last ran, shared with whoever has to say why a session was lost.
#[derive(Debug)]
pub(crate) struct StallClock {
    timeout: Duration,
    /// The session wants answers; one that does not is not lost by a stall.
    answering: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ran: Instant,
    /// The last stall: its end and its length.
    stall: Option<(Instant, Duration)>,
}

impl StallClock {
    /// A clock for a session that waits `timeout` for an answer, when it is `answering` at all.
    pub(crate) fn new(timeout: Duration, answering: bool, now: Instant) -> Self {
        let state = State {
            ran: now,
            stall: None,
        };
        Self {
            timeout,
            answering,
            state: Mutex::new(state),
        }
    }

    /// How long the watching thread sleeps at most.
    pub(crate) fn nap(&self) -> Duration {
        NAP.min(self.timeout / 2)
    }

    /// The watching thread runs.
    pub(crate) fn ran(&self, now: Instant) {
        let mut state = self.state.lock();
        if let Some(length) = self.missed(state.ran, now) {
            state.stall = Some((now, length));
        }
        state.ran = now;
    }

    fn missed(&self, ran: Instant, now: Instant) -> Option<Duration> {
        let length = now.saturating_duration_since(ran);
        // Somewhat below the session's own bound, which counts from the last answer that reached it.
        (length > self.nap() + STALL && length >= self.timeout / 2).then_some(length)
    }

    /// `reason`, with the stall of this process that explains it, when there was one just now.
    pub(crate) fn explain(&self, reason: String, now: Instant) -> String {
        if !self.answering {
            return reason;
        }
        let state = self.state.lock();
        let recent = state
            .stall
            .filter(|(end, _)| now.saturating_duration_since(*end) <= self.timeout)
            .map(|(_, length)| length);
        let Some(length) = self.missed(state.ran, now).or(recent) else {
            return reason;
        };
        format!(
            "{reason}; this process did not run for {:.1} s, and a session ends when its parent does not answer for {:?} \
             (remote_session_timeout_s)",
            length.as_secs_f64(),
            self.timeout
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_a_stall_of_this_process_just_before_the_loss_explains_it() {
        let mut now = Instant::now();
        let clock = StallClock::new(TIMEOUT, true, now);
        let said = |now| clock.explain("gone".to_owned(), now);
        for _ in 0..100 {
            now += SECOND;
            clock.ran(now);
            assert_eq!(said(now), "gone");
        }
        // The thread that finds the loss may wake before the one that keeps the clock.
        now += 12 * SECOND;
        for _ in 0..2 {
            assert!(said(now).starts_with("gone; this process did not run for 12.0 s"));
            clock.ran(now);
        }
        for _ in 0..11 {
            now += SECOND;
            clock.ran(now);
        }
        assert_eq!(said(now), "gone", "that was long ago");
        now += 2 * SECOND;
        clock.ran(now);
        assert_eq!(said(now), "gone", "a session bears that");
    }
}
