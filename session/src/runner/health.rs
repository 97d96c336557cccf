//! The health lane: a thread that shows the parent, five times a second, that the session lives (contract §9).
//!
//! It shares nothing with the command loop but the verdict, so a task never delays it. One connection at a time; a lost
//! one is replaced by the next, and the sequence goes on. With `health_echo` the parent answers each frame, and its silence ends the
//! session.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_wire::frame::health::health_frame;
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::limits::HEALTH_PERIOD;
use rustix::event::PollFlags;

use super::echo::EchoMonitor;
use super::lifeline::{Lifeline, Verdict, Woken};
use super::listen::{accept, limit_unacknowledged, write_all};

/// Pause after accept failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The thread; joined when it is dropped, after the session's end has begun.
#[derive(Debug)]
pub(crate) struct HealthLane {
    thread: Option<JoinHandle<()>>,
}

/// Identity that every frame carries, and how long a peer may take to read one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    pub(crate) session: SessionId,
    pub(crate) worker: WorkerId,
    pub(crate) write_limit: Duration,
    /// When the first must have connected, if the parent has a deadline for its start.
    pub(crate) first_by: Option<Instant>,
    /// With `health_echo`: how long the parent may leave every frame without an answer.
    pub(crate) echo: Option<Duration>,
}

impl HealthLane {
    pub(crate) fn start(
        listener: TcpListener,
        pulse: Pulse,
        lifeline: Arc<Lifeline>,
    ) -> std::io::Result<Self> {
        let thread = std::thread::Builder::new()
            .name("health".to_owned())
            .spawn(move || serve(&listener, pulse, &lifeline))?;
        Ok(Self {
            thread: Some(thread),
        })
    }
}

impl Drop for HealthLane {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, pulse: Pulse, lifeline: &Lifeline) {
    let mut sequence = 0;
    let mut accept_by = pulse.first_by;
    // From the first connection on.
    let mut monitor: Option<EchoMonitor> = None;
    while lifeline.verdict().is_none() {
        match accept(listener, lifeline, accept_by) {
            Ok(Some(stream)) => {
                match (&mut monitor, pulse.echo) {
                    (Some(monitor), _) => monitor.reconnected(),
                    (none, Some(limit)) => {
                        let (session, worker) = (pulse.session, pulse.worker);
                        *none = Some(EchoMonitor::new(session, worker, limit, Instant::now()));
                    }
                    (None, None) => {}
                }
                let served = limit_unacknowledged(&stream, pulse.write_limit)
                    .and_then(|()| beat(&stream, pulse, &mut sequence, monitor.as_mut(), lifeline));
                if let Err(error) = served {
                    tracing::info!(%error, "the health lane was lost; waiting for another");
                }
                accept_by = monitor.as_ref().map(EchoMonitor::due);
            }
            Ok(None) if accept_by.is_some() => lifeline.end(match pulse.echo {
                Some(limit) if monitor.is_some() => Verdict::Silent(limit),
                _ => Verdict::NotConnected,
            }),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the health lane cannot accept for now");
                lifeline.wait_for_end(Instant::now() + ACCEPT_PAUSE);
            }
        }
    }
}

/// Sends frames until the connection or the session ends.
fn beat(
    stream: &TcpStream,
    pulse: Pulse,
    sequence: &mut u64,
    mut monitor: Option<&mut EchoMonitor>,
    lifeline: &Lifeline,
) -> std::io::Result<()> {
    loop {
        *sequence += 1;
        let mut write_by = Instant::now() + pulse.write_limit;
        if let Some(monitor) = &mut monitor {
            monitor.sending(Sequence(*sequence));
            write_by = write_by.min(monitor.due());
        }
        let frame = health_frame(pulse.session, pulse.worker, Sequence(*sequence))
            .map_err(std::io::Error::other)?;
        write_all(stream, &[&frame], write_by)?;
        let next = Instant::now() + HEALTH_PERIOD;
        loop {
            let planned = monitor.as_ref().map_or(next, |m| next.min(m.due()));
            let events = PollFlags::IN | PollFlags::RDHUP;
            let woken = lifeline.wait(stream.as_fd(), events, Some(planned))?;
            let now = Instant::now();
            if let Some(monitor) = &mut monitor {
                monitor.woke(planned, now);
            }
            match woken {
                Woken::Deadline => {}
                Woken::Ending => return Ok(()),
                Woken::Ready => receive(stream, monitor.as_deref_mut(), now)?,
            }
            if let Some(verdict) = monitor.as_mut().and_then(|m| m.verdict(now)) {
                lifeline.end(verdict);
            }
            // Asked here too: a peer that sends without end is always ready.
            if lifeline.verdict().is_some() {
                return Ok(());
            }
            if now >= next {
                break;
            }
        }
    }
}

/// Takes what the peer sent; a parent without `health_echo` sends nothing here, so only its end has a meaning.
fn receive(
    mut stream: &TcpStream,
    monitor: Option<&mut EchoMonitor>,
    now: Instant,
) -> std::io::Result<()> {
    use std::io::{ErrorKind, Read as _};
    let mut bytes = [0; 512];
    match stream.read(&mut bytes) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            if let (Some(monitor), Some(bytes)) = (monitor, bytes.get(..count)) {
                monitor.on_bytes(bytes, now);
            }
            Ok(())
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::Ipv4Addr;

    use echelon_wire::frame::{FrameHeader, FrameType};

    use super::*;
    use crate::runner::lifeline::Verdict;
    use crate::runner::listen::listener;

    fn next_sequence(stream: &mut TcpStream) -> u64 {
        let mut bytes = [0; 40];
        stream.read_exact(&mut bytes).expect("a frame");
        let header = FrameHeader::decode(&bytes).expect("decodes");
        assert_eq!(
            (header.frame_type, header.session_id, header.worker_id),
            (FrameType::Health, SessionId(7), WorkerId(2))
        );
        header.sequence.0
    }

    /// A lane whose parent has to answer within `limit`, with the first connection to it.
    fn echoing(limit: Duration) -> (Arc<Lifeline>, HealthLane, TcpStream) {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let address = listener.local_addr().expect("address");
        let pulse = Pulse {
            first_by: None,
            echo: Some(limit),
            session: SessionId(7),
            worker: WorkerId(2),
            write_limit: Duration::from_secs(5),
        };
        let lane = HealthLane::start(listener, pulse, Arc::clone(&lifeline)).expect("thread");
        (
            lifeline,
            lane,
            TcpStream::connect(address).expect("connects"),
        )
    }

    /// Longer than any machine is slow.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_parent_that_answers_nothing_ends_the_session_r_056() {
        let limit = Duration::from_millis(450);
        let (lifeline, lane, mut parent) = echoing(limit);
        // It reads, so nothing but the missing answers is wrong.
        let reader = std::thread::spawn(move || {
            let mut frames = Vec::new();
            let _ = parent.read_to_end(&mut frames);
            frames.len()
        });
        assert!(lifeline.wait_for_end(Instant::now() + LONG));
        assert_eq!(lifeline.verdict(), Some(Verdict::Silent(limit)));
        drop(lane);
        assert!(reader.join().expect("no panic") >= 40);
    }

    #[test]
    fn a_parent_that_goes_and_does_not_come_back_ends_the_session_r_056() {
        let limit = Duration::from_millis(450);
        let (lifeline, lane, parent) = echoing(limit);
        drop(parent);
        assert!(lifeline.wait_for_end(Instant::now() + LONG));
        assert_eq!(lifeline.verdict(), Some(Verdict::Silent(limit)));
        drop(lane);
    }

    #[test]
    fn answers_keep_it_alive_and_an_invented_one_ends_it_r_057() {
        let (lifeline, lane, mut parent) = echoing(LONG);
        let answer = |stream: &mut TcpStream, sequence| {
            let frame = health_frame(SessionId(7), WorkerId(2), Sequence(sequence));
            stream.write_all(&frame.expect("encodes")).expect("written");
        };
        for _ in 0..3 {
            let sequence = next_sequence(&mut parent);
            answer(&mut parent, sequence);
        }
        assert_eq!(lifeline.verdict(), None);
        answer(&mut parent, 1_000_000);
        assert!(lifeline.wait_for_end(Instant::now() + LONG));
        assert!(matches!(
            lifeline.verdict(),
            Some(Verdict::HealthBroken(reason)) if reason.contains("frame 1000000")
        ));
        drop(lane);
    }

    #[test]
    fn frames_go_on_across_connections_until_the_end_r_053_r_055() {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let address = listener.local_addr().expect("address");
        let pulse = Pulse {
            first_by: None,
            echo: None,
            session: SessionId(7),
            worker: WorkerId(2),
            write_limit: Duration::from_secs(5),
        };
        let lane = HealthLane::start(listener, pulse, Arc::clone(&lifeline)).expect("thread");
        let mut first = TcpStream::connect(address).expect("connects");
        assert_eq!(
            (next_sequence(&mut first), next_sequence(&mut first)),
            (1, 2)
        );
        drop(first);
        let mut second = TcpStream::connect(address).expect("connects");
        let resumed = next_sequence(&mut second);
        assert!(resumed >= 3, "{resumed}");
        assert_eq!(next_sequence(&mut second), resumed + 1);
        lifeline.end(Verdict::Shutdown);
        drop(lane);
        let mut rest = Vec::new();
        second.read_to_end(&mut rest).expect("end of file");
    }
}
