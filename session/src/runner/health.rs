//! The health lane: a thread that shows the parent, five times a second, that the session lives (contract §9).
//!
//! It shares nothing with the command loop but the verdict, so a task never delays it. One connection at a time; a lost
//! one is replaced by the next, and the sequence goes on.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_wire::frame::health::health_frame;
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use rustix::event::PollFlags;

use super::lifeline::{Lifeline, Verdict, Woken};
use super::listen::{accept, write_all};

/// Pause between two frames.
const PERIOD: Duration = Duration::from_millis(200);
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
    while lifeline.verdict().is_none() {
        match accept(listener, lifeline, accept_by) {
            Ok(Some(stream)) => {
                accept_by = None;
                if let Err(error) = beat(&stream, pulse, &mut sequence, lifeline) {
                    tracing::info!(%error, "the health lane was lost; waiting for another");
                }
            }
            Ok(None) if accept_by.is_some() => lifeline.end(Verdict::NotConnected),
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
    lifeline: &Lifeline,
) -> std::io::Result<()> {
    loop {
        *sequence += 1;
        let frame = health_frame(pulse.session, pulse.worker, Sequence(*sequence))
            .map_err(std::io::Error::other)?;
        write_all(stream, &[&frame], Instant::now() + pulse.write_limit)?;
        let next = Instant::now() + PERIOD;
        loop {
            match lifeline.wait(stream.as_fd(), PollFlags::IN | PollFlags::RDHUP, Some(next))? {
                Woken::Deadline => break,
                Woken::Ending => return Ok(()),
                Woken::Ready => discard(stream)?,
            }
            // Asked here too: a peer that sends without end is always ready.
            if lifeline.verdict().is_some() {
                return Ok(());
            }
            if Instant::now() >= next {
                break;
            }
        }
    }
}

/// Takes what the peer sent; a v1 parent sends nothing here, so only its end has a meaning.
fn discard(mut stream: &TcpStream) -> std::io::Result<()> {
    use std::io::{ErrorKind, Read as _};
    match stream.read(&mut [0; 512]) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
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

    #[test]
    fn frames_go_on_across_connections_until_the_end_r_053_r_055() {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let address = listener.local_addr().expect("address");
        let pulse = Pulse {
            first_by: None,
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
