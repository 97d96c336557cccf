//! The parent's answers on the health lane (`health_echo`): each HEALTH frame comes back once, so that a parent that has stalled, or
//! vanished without closing anything, is noticed. Pure: bytes and time come in, a verdict goes out.

use std::time::{Duration, Instant};

use echelon_wire::error::DecodeError;
use echelon_wire::frame::health::check_health;
use echelon_wire::frame::FrameHeader;
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::limits::HEADER_BYTES;

use super::lifeline::Verdict;

/// A thread that wakes so much later than planned was not allowed to run.
const STALL: Duration = Duration::from_millis(500);

/// Judges the parent by what it answers and when. A failure is final.
#[derive(Debug)]
pub(crate) struct EchoMonitor {
    session: SessionId,
    worker: WorkerId,
    timeout: Duration,
    due: Instant,
    /// The last frame that was sent, and the last that was answered or can no longer be: an answer lies between.
    sent: Sequence,
    answered: Sequence,
    header: [u8; HEADER_BYTES],
    have: usize,
    failed: Option<Verdict>,
}

impl EchoMonitor {
    /// A monitor that wants an answer within `timeout` from `now` on, again and again.
    pub(crate) fn new(
        session: SessionId,
        worker: WorkerId,
        timeout: Duration,
        now: Instant,
    ) -> Self {
        Self {
            session,
            worker,
            timeout,
            due: now + timeout,
            sent: Sequence(0),
            answered: Sequence(0),
            header: [0; HEADER_BYTES],
            have: 0,
            failed: None,
        }
    }

    /// A new connection takes the place of the last one: what was sent on that one is not answered any more. The bound goes on.
    pub(crate) fn reconnected(&mut self) {
        self.answered = self.sent;
        self.have = 0;
    }

    /// The frame with this sequence is about to be sent.
    pub(crate) fn sending(&mut self, sequence: Sequence) {
        self.sent = sequence;
    }

    /// Bytes that arrived.
    pub(crate) fn on_bytes(&mut self, mut bytes: &[u8], now: Instant) {
        while !bytes.is_empty() && self.failed.is_none() {
            let count = bytes.len().min(HEADER_BYTES - self.have);
            let (part, rest) = bytes.split_at(count);
            self.header[self.have..self.have + count].copy_from_slice(part);
            self.have += count;
            bytes = rest;
            if self.have == HEADER_BYTES {
                self.have = 0;
                match self.check() {
                    Ok(sequence) => {
                        self.answered = sequence;
                        self.due = now + self.timeout;
                    }
                    Err(reason) => self.failed = Some(Verdict::HealthBroken(reason)),
                }
            }
        }
    }

    fn check(&self) -> Result<Sequence, String> {
        let text = |error: DecodeError| error.to_string();
        let header = FrameHeader::decode(&self.header).map_err(text)?;
        check_health(&header, self.session, self.worker).map_err(text)?;
        if header.payload_bytes != 0 {
            return Err(format!(
                "an answer with {} bytes of payload, and it has none",
                header.payload_bytes
            ));
        }
        // Each frame is answered once at most, in order; so an answer costs no more than the frame before it did.
        if header.sequence.0 <= self.answered.0 || header.sequence.0 > self.sent.0 {
            return Err(format!(
                "an answer to frame {}, and only {} to {} are without one",
                header.sequence,
                self.answered.0.saturating_add(1),
                self.sent
            ));
        }
        Ok(header.sequence)
    }

    /// The waiting thread woke at `now` and had meant to at `planned`. When it is much later, this process did not run, and what
    /// the parent sent meanwhile is still to be read: the bound starts anew.
    pub(crate) fn woke(&mut self, planned: Instant, now: Instant) {
        if now > planned + STALL {
            self.due = self.due.max(now + self.timeout);
        }
    }

    /// When the next answer is due.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Why the session has to end at `now`, if it has to.
    pub(crate) fn verdict(&mut self, now: Instant) -> Option<Verdict> {
        if self.failed.is_none() && now >= self.due {
            self.failed = Some(Verdict::Silent(self.timeout));
        }
        self.failed.clone()
    }
}

#[cfg(test)]
mod tests {
    use echelon_wire::frame::health::health_frame;
    use echelon_wire::frame::{encode_frame, FrameType};
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3);
    const SESSION: SessionId = SessionId(7);
    const WORKER: WorkerId = WorkerId(2);

    fn echo(sequence: u64) -> Vec<u8> {
        health_frame(SESSION, WORKER, Sequence(sequence))
            .expect("encodes")
            .to_vec()
    }

    /// A monitor that has sent so many frames.
    fn monitor(now: Instant, sent: u64) -> EchoMonitor {
        let mut monitor = EchoMonitor::new(SESSION, WORKER, TIMEOUT, now);
        for sequence in 1..=sent {
            monitor.sending(Sequence(sequence));
        }
        monitor
    }

    fn broken(monitor: &mut EchoMonitor, now: Instant) -> String {
        match monitor.verdict(now) {
            Some(Verdict::HealthBroken(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_in_time_keep_it_alive_however_they_are_cut_r_056() {
        let start = Instant::now();
        let mut monitor = monitor(start, 0);
        for second in 1..100 {
            let now = start + Duration::from_secs(second);
            monitor.sending(Sequence(second));
            for part in echo(second).chunks(7) {
                assert_eq!(monitor.verdict(now), None);
                monitor.on_bytes(part, now);
            }
            assert_eq!((monitor.verdict(now), monitor.due()), (None, now + TIMEOUT));
        }
    }

    #[test]
    fn silence_fails_it_at_the_bound_and_for_good_r_056() {
        let start = Instant::now();
        let mut monitor = monitor(start, 3);
        // A frame that never becomes whole is no answer.
        monitor.on_bytes(&echo(1)[..39], start);
        let almost = start + TIMEOUT - Duration::from_nanos(1);
        assert_eq!(monitor.verdict(almost), None);
        let silent = Some(Verdict::Silent(TIMEOUT));
        assert_eq!(monitor.verdict(start + TIMEOUT), silent);
        monitor.on_bytes(&echo(1)[39..], start + TIMEOUT);
        assert_eq!(monitor.verdict(start + TIMEOUT), silent);
    }

    #[test]
    fn answers_may_be_left_out_and_never_repeated_or_invented_r_057() {
        let now = Instant::now();
        for (sent, answers, legal) in [
            (5, vec![1, 2, 3, 4, 5], true),
            (5, vec![5], true),
            (5, vec![2, 4], true),
            (5, vec![0], false),
            (5, vec![6], false),
            (0, vec![1], false),
            (5, vec![3, 3], false),
            (5, vec![3, 2], false),
            (5, vec![u64::MAX], false),
        ] {
            let mut monitor = monitor(now, sent);
            for answer in &answers {
                monitor.on_bytes(&echo(*answer), now);
            }
            match legal {
                true => assert_eq!(monitor.verdict(now), None, "{answers:?} of {sent}"),
                false => assert!(broken(&mut monitor, now).contains("are without one")),
            }
        }
    }

    #[test]
    fn an_answer_belongs_to_its_connection() {
        let now = Instant::now();
        let mut monitor = monitor(now, 5);
        monitor.on_bytes(&echo(2)[..20], now);
        monitor.reconnected();
        monitor.sending(Sequence(6));
        monitor.on_bytes(&echo(6), now);
        assert_eq!(monitor.verdict(now), None);
        monitor.reconnected();
        monitor.on_bytes(&echo(6), now);
        assert!(broken(&mut monitor, now).contains("frame 6"));
    }

    #[test]
    fn other_frames_and_identities_end_it_r_070() {
        let now = Instant::now();
        let frame = |frame_type, session, worker, payload: &[u8]| {
            encode_frame(frame_type, session, worker, Sequence(1), payload).expect("encodes")
        };
        for bytes in [
            frame(FrameType::Shutdown, SESSION, WORKER, b""),
            frame(FrameType::Health, SessionId(8), WORKER, b""),
            frame(FrameType::Health, SESSION, WorkerId(3), b""),
            frame(FrameType::Health, SESSION, WORKER, b"payload"),
            vec![0; 64],
            vec![0xff; 40],
        ] {
            let mut monitor = monitor(now, 3);
            monitor.on_bytes(&bytes, now);
            broken(&mut monitor, now);
        }
    }

    #[test]
    fn a_session_that_did_not_run_starts_the_bound_anew_r_057() {
        let start = Instant::now();
        let mut monitor = monitor(start, 1);
        let later = start + Duration::from_secs(3600);
        monitor.woke(start + Duration::from_millis(200), later);
        assert_eq!(monitor.verdict(later), None);
        assert_eq!(
            monitor.verdict(later + TIMEOUT),
            Some(Verdict::Silent(TIMEOUT))
        );
    }

    proptest! {
        /// whatever a parent sends is an answer or the end, and nothing grows.
        #[test]
        fn r_067_arbitrary_answers_never_panic(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..20)
        ) {
            let now = Instant::now();
            let mut monitor = monitor(now, 9);
            for chunk in chunks {
                monitor.on_bytes(&chunk, now);
                let _ = monitor.verdict(now);
            }
        }
    }
}
