//! The health lane: the one judge of liveness (slr3-v1 §9). A task may run for hours and an idle session stays up as long as HEALTH
//! frames come. With `health_echo` each of them is answered, so that the session can judge us the same way.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver};
use echelon_wire::error::DecodeError;
use echelon_wire::frame::health::health_frame;
use echelon_wire::frame::{FrameHeader, FrameType};
use echelon_wire::id::{SessionId, WorkerId};
use echelon_wire::limits::HEADER_BYTES;
use rustix::event::{poll, PollFd, PollFlags};

use super::lane::Lane;
use super::stall::{StallClock, STALL};
use crate::channel::{timespec, Channel, Step};

/// Answers that may wait for room in the socket, in bytes; frames beyond are left without one, which the session allows.
const ANSWER_BYTES: usize = 64 * HEADER_BYTES;

/// What the monitor thinks. A failure is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Frames come; the next is due by then.
    Alive(Instant),
    /// None came in time, or something else came.
    Failed(String),
}

/// Judges the health lane from what arrives and when. Pure.
#[derive(Debug)]
pub struct HealthMonitor {
    session: SessionId,
    worker: WorkerId,
    timeout: Duration,
    due: Instant,
    header: [u8; HEADER_BYTES],
    have: usize,
    /// Payload bytes of the present frame that are still to come; any size is allowed and thrown away.
    skip: usize,
    failed: Option<String>,
    /// Answers on their way out, when the session wants any (`health_echo`).
    answers: Option<Vec<u8>>,
}

impl HealthMonitor {
    /// A monitor that wants a whole frame within `timeout`, again and again.
    #[must_use]
    pub fn new(session: SessionId, worker: WorkerId, timeout: Duration, now: Instant) -> Self {
        Self {
            session,
            worker,
            timeout,
            due: now + timeout,
            header: [0; HEADER_BYTES],
            have: 0,
            skip: 0,
            failed: None,
            answers: None,
        }
    }

    /// The same monitor, which answers each frame (`health_echo`).
    #[must_use]
    pub fn answering(self) -> Self {
        Self {
            answers: Some(Vec::new()),
            ..self
        }
    }

    /// Answers that were not written yet.
    #[must_use]
    pub fn unwritten(&self) -> &[u8] {
        self.answers.as_deref().unwrap_or_default()
    }

    /// So many bytes of [`HealthMonitor::unwritten`] were written.
    pub fn wrote(&mut self, count: usize) {
        if let Some(answers) = &mut self.answers {
            answers.drain(..count.min(answers.len()));
        }
    }

    /// The connection takes no more answers. What it still brings is read; its end is the failure, not this.
    pub fn stop_answering(&mut self) {
        self.answers = None;
    }

    /// Bytes that arrived.
    pub fn on_bytes(&mut self, mut bytes: &[u8], now: Instant) {
        // Too late is too late, also for a frame that is whole at last.
        if matches!(self.poll(now), Verdict::Failed(_)) {
            return;
        }
        while !bytes.is_empty() && self.failed.is_none() {
            if self.have < HEADER_BYTES {
                let count = bytes.len().min(HEADER_BYTES - self.have);
                self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
                self.have += count;
                bytes = &bytes[count..];
                if self.have == HEADER_BYTES {
                    match self.check() {
                        Ok(payload) => self.skip = payload,
                        Err(error) => self.fail(error),
                    }
                }
            } else {
                let count = bytes.len().min(self.skip);
                self.skip -= count;
                bytes = &bytes[count..];
            }
            if self.have == HEADER_BYTES && self.skip == 0 && self.failed.is_none() {
                self.answer();
                self.have = 0;
                self.due = now + self.timeout;
            }
        }
    }

    /// A frame of the same session, worker and sequence, and no payload.
    fn answer(&mut self) {
        let Some(answers) = &mut self.answers else {
            return;
        };
        let Ok(header) = FrameHeader::decode(&self.header) else {
            return;
        };
        if answers.len() + HEADER_BYTES > ANSWER_BYTES {
            return;
        }
        if let Ok(frame) = health_frame(self.session, self.worker, header.sequence) {
            answers.extend_from_slice(&frame);
        }
    }

    fn check(&self) -> Result<usize, String> {
        let text = |error: DecodeError| format!("a frame that breaks the protocol: {error}");
        let payload = FrameHeader::payload_len(&self.header).map_err(text)?;
        let header = FrameHeader::decode(&self.header).map_err(text)?;
        if header.frame_type != FrameType::Health {
            return Err(format!("a {:?} frame came", header.frame_type));
        }
        header
            .expect_identity(self.session, self.worker)
            .map_err(text)?;
        Ok(payload)
    }

    /// The watching thread woke at `now` and had meant to at `planned`. When it is much later, this process did not run
    /// (it was stopped, or its machine paused), and what the peer sent meanwhile is still to be read: the bound starts anew.
    pub fn woke(&mut self, planned: Instant, now: Instant) {
        if now > planned + STALL {
            self.due = self.due.max(now + self.timeout);
        }
    }

    /// The lane ended or broke. The first failure counts.
    pub fn fail(&mut self, reason: String) {
        self.failed.get_or_insert(reason);
    }

    /// The verdict at `now`.
    pub fn poll(&mut self, now: Instant) -> Verdict {
        if self.failed.is_none() && now >= self.due {
            self.fail(format!("no HEALTH frame for {:?}", self.timeout));
        }
        match &self.failed {
            Some(reason) => Verdict::Failed(format!("health lane failed: {reason}")),
            None => Verdict::Alive(self.due),
        }
    }
}

/// The thread that reads the health lane and tells the command lane.
pub(crate) struct HealthThread {
    channel: Arc<dyn Channel>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
}

impl HealthThread {
    pub(crate) fn start(
        channel: Arc<dyn Channel>,
        mut monitor: HealthMonitor,
        lane: Arc<Lane>,
        clock: Arc<StallClock>,
        name: &str,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (of_thread, stopped) = (Arc::clone(&channel), Arc::clone(&stop));
        let (end, ended) = bounded(1);
        let thread = std::thread::Builder::new()
            .name(format!("echelon-{name}-h"))
            .spawn(move || {
                let reason = watch(&*of_thread, &mut monitor, &clock, &lane);
                if !stopped.load(Ordering::Acquire) {
                    lane.lose(&clock.explain(reason, Instant::now()));
                }
                let _ = end.send(());
            })?;
        Ok(Self {
            channel,
            stop,
            thread: Some(thread),
            ended,
        })
    }

    /// From now on the lane's end is no failure: the session was told to end.
    pub(crate) fn expect_end(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits for the session to close the lane, until `deadline`; then closes it. The thread is joined either way.
    pub(crate) fn join(&mut self, deadline: Instant) {
        self.expect_end();
        let Some(thread) = self.thread.take() else {
            return;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(left).is_err() {
            self.channel.shutdown();
        }
        if thread.join().is_err() {
            tracing::error!("a health lane's thread panicked");
        }
    }
}

impl Drop for HealthThread {
    fn drop(&mut self) {
        self.channel.shutdown();
        self.join(Instant::now());
    }
}

/// Reads until the monitor's verdict is a failure, and returns it.
fn watch(
    channel: &dyn Channel,
    monitor: &mut HealthMonitor,
    clock: &StallClock,
    lane: &Lane,
) -> String {
    let mut bytes = [0; 1024];
    loop {
        let now = Instant::now();
        clock.ran(now);
        if lane.is_lost() {
            // The end of the command lane may never reach the session; our silence does, and its verdict becomes ours.
            monitor.stop_answering();
        }
        match channel.try_read(&mut bytes) {
            Ok(Step::Moved(count)) => monitor.on_bytes(&bytes[..count], now),
            Ok(Step::Ended) => {
                monitor.fail("the session closed it; it has ended or was killed".into())
            }
            Err(error) => monitor.fail(error.to_string()),
            Ok(Step::Blocked) => {}
        }
        match monitor.poll(now) {
            Verdict::Failed(reason) => return reason,
            Verdict::Alive(due) => {
                let mut events = PollFlags::IN;
                if answer(channel, monitor) {
                    events |= PollFlags::OUT;
                }
                let planned = due.min(Instant::now() + clock.nap());
                let mut fds = [PollFd::from_borrowed_fd(channel.as_fd(), events)];
                let timeout = timespec(planned.saturating_duration_since(Instant::now()));
                // An interrupted poll is a spurious wake.
                let _ = poll(&mut fds, Some(&timeout));
                monitor.woke(planned, Instant::now());
            }
        }
    }
}

/// Writes what the socket takes. True when there is more.
fn answer(channel: &dyn Channel, monitor: &mut HealthMonitor) -> bool {
    while !monitor.unwritten().is_empty() {
        match channel.try_write(&[IoSlice::new(monitor.unwritten())]) {
            Ok(Step::Moved(count)) => monitor.wrote(count),
            Ok(Step::Blocked | Step::Ended) => return true,
            Err(error) => {
                tracing::debug!(%error, "the health lane takes no more answers");
                monitor.stop_answering();
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use echelon_wire::frame::encode_frame;
    use echelon_wire::id::Sequence;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3);

    fn frame(frame_type: FrameType, worker: i32, payload: &[u8]) -> Vec<u8> {
        encode_frame(
            frame_type,
            SessionId(7),
            WorkerId(worker),
            Sequence(1),
            payload,
        )
        .unwrap()
    }

    fn monitor(now: Instant) -> HealthMonitor {
        HealthMonitor::new(SessionId(7), WorkerId(3), TIMEOUT, now)
    }

    #[test]
    fn r_053_whole_frames_in_time_keep_it_alive_however_they_are_cut() {
        let start = Instant::now();
        let mut monitor = monitor(start);
        let bytes = frame(FrameType::Health, 3, b"any payload");
        for second in 1..100 {
            let now = start + Duration::from_secs(second);
            for part in bytes.chunks(7) {
                monitor.on_bytes(part, now);
            }
            assert_eq!(monitor.poll(now), Verdict::Alive(now + TIMEOUT));
        }
    }

    #[test]
    fn r_054_silence_fails_it_at_the_bound_and_for_good() {
        let start = Instant::now();
        let mut monitor = monitor(start);
        assert!(matches!(
            monitor.poll(start + TIMEOUT - Duration::from_millis(1)),
            Verdict::Alive(_)
        ));
        assert!(matches!(monitor.poll(start + TIMEOUT), Verdict::Failed(_)));
        monitor.on_bytes(&frame(FrameType::Health, 3, b""), start + TIMEOUT);
        assert!(
            matches!(monitor.poll(start + TIMEOUT), Verdict::Failed(reason) if reason.contains("no HEALTH frame"))
        );
    }

    /// Each whole frame is answered with its sequence; nothing grows when the session does not read.
    #[test]
    fn each_frame_is_answered_and_what_waits_is_bounded() {
        let now = Instant::now();
        let beat = |sequence| {
            encode_frame(
                FrameType::Health,
                SessionId(7),
                WorkerId(3),
                Sequence(sequence),
                b"payload",
            )
            .unwrap()
        };
        let mut silent = monitor(now);
        silent.on_bytes(&beat(1), now);
        assert_eq!(silent.unwritten(), b"", "version 1 has no answers");
        let mut monitor = monitor(now).answering();
        let mut expected = Vec::new();
        for sequence in [5, 6, 9] {
            for part in beat(sequence).chunks(11) {
                monitor.on_bytes(part, now);
            }
            expected.extend(health_frame(SessionId(7), WorkerId(3), Sequence(sequence)).unwrap());
        }
        assert_eq!(monitor.unwritten(), expected);
        monitor.wrote(50);
        assert_eq!(monitor.unwritten(), &expected[50..]);
        for sequence in 10..10_000 {
            monitor.on_bytes(&beat(sequence), now);
        }
        assert!(monitor.unwritten().len() <= ANSWER_BYTES);
        assert_eq!(monitor.poll(now), Verdict::Alive(now + TIMEOUT));
        monitor.stop_answering();
        monitor.on_bytes(&beat(10_000), now);
        assert_eq!(monitor.unwritten(), b"");
    }

    /// A parent that was stopped (Ctrl-Z) blames no session for its own absence, and goes on judging afterwards.
    #[test]
    fn r_057_a_stalled_watcher_starts_the_bound_anew() {
        let start = Instant::now();
        let mut monitor = monitor(start);
        let due = start + TIMEOUT;
        let later = due + Duration::from_secs(3600);
        monitor.woke(due, later);
        assert_eq!(monitor.poll(later), Verdict::Alive(later + TIMEOUT));
        monitor.on_bytes(&frame(FrameType::Health, 3, b""), later);
        assert_eq!(monitor.poll(later), Verdict::Alive(later + TIMEOUT));
        // Waking in time changes nothing.
        monitor.woke(later + TIMEOUT, later + TIMEOUT);
        assert!(matches!(monitor.poll(later + TIMEOUT), Verdict::Failed(_)));
    }

    #[test]
    fn r_061_a_frame_that_drips_in_does_not_extend_the_bound() {
        let start = Instant::now();
        let mut monitor = monitor(start);
        for (second, byte) in frame(FrameType::Health, 3, b"").iter().enumerate() {
            monitor.on_bytes(&[*byte], start + Duration::from_millis(100 * second as u64));
        }
        assert!(matches!(monitor.poll(start + TIMEOUT), Verdict::Failed(_)));
    }

    #[test]
    fn r_070_other_frames_and_identities_fail_it() {
        let now = Instant::now();
        for bytes in [
            frame(FrameType::Completion, 3, b""),
            frame(FrameType::Health, 4, b""),
            vec![0; 64],
        ] {
            let mut monitor = monitor(now);
            monitor.on_bytes(&bytes, now);
            assert!(matches!(monitor.poll(now), Verdict::Failed(_)));
        }
    }
}
