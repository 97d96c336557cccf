//! The reader of the command lane: always reads, also while a task runs (design §15.17), so that the end of the parent is seen
//! at once.

use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_wire::frame::{Features, FrameHeader, FrameType};
use echelon_wire::id::{SessionId, WorkerId};
use echelon_wire::limits::HEADER_BYTES;
use echelon_wire::order::Scope;
use rustix::event::PollFlags;

use super::commands::Commands;
use super::lifeline::{Lifeline, Verdict, Woken};
use super::line::Hand;

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) header: FrameHeader,
    pub(crate) payload: Vec<u8>,
}

/// What the reader knows of its lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) session: SessionId,
    pub(crate) worker: WorkerId,
    pub(crate) features: Features,
    /// How long a frame may take from its first byte to its last.
    pub(crate) frame_limit: Duration,
}

/// The thread; joined when it is dropped, after the session's end has begun.
#[derive(Debug)]
pub(crate) struct CommandReader {
    thread: Option<JoinHandle<()>>,
}

impl CommandReader {
    /// Reads into `commands`, which it closes at the end of the lane.
    pub(super) fn start(
        stream: TcpStream,
        lane: Lane,
        lifeline: Arc<Lifeline>,
        commands: Arc<Commands>,
    ) -> std::io::Result<Self> {
        let thread = std::thread::Builder::new()
            .name("command reader".to_owned())
            .spawn(move || {
                let verdict = read_all(&stream, lane, &lifeline, &commands);
                lifeline.end(verdict);
                // What is queued is handled, then its end is seen.
                commands.close();
            })?;
        Ok(Self {
            thread: Some(thread),
        })
    }
}

impl Drop for CommandReader {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn read_all(stream: &TcpStream, lane: Lane, lifeline: &Lifeline, commands: &Commands) -> Verdict {
    loop {
        let command = match read_frame(stream, lane, lifeline) {
            Ok(command) => command,
            Err(verdict) => return verdict,
        };
        if command.header.frame_type == FrameType::Shutdown {
            return Verdict::Shutdown;
        }
        if let Err(reason) = push(commands, command, lane.features) {
            return Verdict::Broken(reason);
        }
    }
}

/// Puts a command into the line, with what it may overtake.
fn push(commands: &Commands, command: Command, features: Features) -> Result<(), String> {
    let scope = Scope::of_command(command.header.frame_type, &command.payload, features);
    let hand = if scope.is_beside_tasks() {
        Hand::Controls
    } else {
        Hand::Main
    };
    commands.push(command, scope, hand)
}

/// One frame of this session, its header checked before the payload is read.
fn read_frame(stream: &TcpStream, lane: Lane, lifeline: &Lifeline) -> Result<Command, Verdict> {
    // An idle lane is not a failure: only a frame that has begun must end in time.
    match lifeline.wait(stream.as_fd(), PollFlags::IN, None) {
        Ok(Woken::Ready) => {}
        // Somebody else began the end; this verdict is not the first and so has no effect.
        Ok(_) => return Err(Verdict::Closed),
        Err(error) => return Err(Verdict::Broken(error.to_string())),
    }
    let deadline = Instant::now() + lane.frame_limit;
    let mut bytes = [0; HEADER_BYTES];
    fill(stream, &mut bytes, true, deadline, lifeline)?;
    let broken = |error: &dyn std::fmt::Display| Verdict::Broken(error.to_string());
    let header = FrameHeader::decode_with(&bytes, lane.features).map_err(|error| broken(&error))?;
    header
        .expect_identity(lane.session, lane.worker)
        .map_err(|error| broken(&error))?;
    // The decoder refused more than 16 MiB.
    let mut payload = vec![0; header.payload_bytes as usize];
    fill(stream, &mut payload, false, deadline, lifeline)?;
    Ok(Command { header, payload })
}

fn fill(
    mut stream: &TcpStream,
    buffer: &mut [u8],
    at_boundary: bool,
    deadline: Instant,
    lifeline: &Lifeline,
) -> Result<(), Verdict> {
    use std::io::{ErrorKind, Read as _};
    let whole = buffer.len();
    let mut rest = buffer;
    while !rest.is_empty() {
        match stream.read(rest) {
            Ok(0) if at_boundary && rest.len() == whole => return Err(Verdict::Closed),
            Ok(0) => {
                return Err(Verdict::Broken(
                    "the connection ended inside a frame".to_owned(),
                ))
            }
            Ok(count) => rest = rest.split_at_mut(count).1,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                match lifeline.wait(stream.as_fd(), PollFlags::IN, Some(deadline)) {
                    Ok(Woken::Ready) => {}
                    Ok(Woken::Ending) => return Err(Verdict::Closed),
                    Ok(Woken::Deadline) => {
                        return Err(Verdict::Broken("a frame did not arrive in time".to_owned()))
                    }
                    Err(error) => return Err(Verdict::Broken(error.to_string())),
                }
            }
            Err(error) => return Err(Verdict::Broken(error.to_string())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::Ipv4Addr;

    use echelon_wire::frame::encode_frame;
    use echelon_wire::id::Sequence;

    use super::*;
    use crate::runner::line::UNANNOUNCED;
    use crate::runner::listen::{accept, listener};

    struct Pair {
        peer: TcpStream,
        _reader: CommandReader,
        commands: Arc<Commands>,
        lifeline: Arc<Lifeline>,
    }

    fn pair(frame_limit: Duration) -> Pair {
        let lifeline = Lifeline::new().expect("pipe");
        let listener = listener(Ipv4Addr::LOCALHOST).expect("listens");
        let peer = TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let stream = accept(&listener, &lifeline, None)
            .expect("accepts")
            .expect("a peer");
        let lane = Lane {
            session: SessionId(9),
            worker: WorkerId(1),
            features: Features::NONE,
            frame_limit,
        };
        let commands = Arc::new(Commands::new(None, Arc::clone(&lifeline)));
        let (twin, ending) = (Arc::clone(&commands), Arc::clone(&lifeline));
        let reader = CommandReader::start(stream, lane, ending, twin).expect("thread");
        Pair {
            peer,
            _reader: reader,
            commands,
            lifeline,
        }
    }

    /// The next command, as answered at once.
    fn next(commands: &Commands) -> Option<Command> {
        let (number, command) = commands.next(Hand::Main)?;
        commands.answering(number);
        commands.done(number);
        Some(command)
    }

    fn frame(frame_type: FrameType, session: u64, sequence: u64, payload: &[u8]) -> Vec<u8> {
        encode_frame(
            frame_type,
            SessionId(session),
            WorkerId(1),
            Sequence(sequence),
            payload,
        )
        .expect("encodes")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn commands_come_in_order_and_the_rest_before_the_end() {
        let mut pair = pair(LONG);
        let mut bytes = frame(FrameType::Task, 9, 1, b"abc");
        bytes.extend(frame(FrameType::Control, 9, 5, b""));
        // One byte at a time: a frame may arrive in any pieces.
        for byte in bytes {
            pair.peer.write_all(&[byte]).expect("written");
        }
        drop(pair.peer);
        let first = next(&pair.commands).expect("a command");
        assert_eq!(
            (first.header.sequence, first.payload.as_slice()),
            (Sequence(1), b"abc".as_slice())
        );
        assert_eq!(
            next(&pair.commands).expect("a command").header.sequence,
            Sequence(5)
        );
        assert!(next(&pair.commands).is_none());
        assert_eq!(pair.lifeline.verdict(), Some(Verdict::Closed));
    }

    #[test]
    fn shutdown_in_any_form_ends_it() {
        for (sequence, payload) in [(0, b"".as_slice()), (9, b"junk".as_slice())] {
            let mut pair = pair(LONG);
            pair.peer
                .write_all(&frame(FrameType::Shutdown, 9, sequence, payload))
                .expect("written");
            assert!(next(&pair.commands).is_none());
            assert_eq!(pair.lifeline.verdict(), Some(Verdict::Shutdown));
        }
    }

    #[test]
    fn a_frame_of_another_session_or_no_frame_breaks_the_lane_r_070() {
        let mut garbage = frame(FrameType::Task, 9, 1, b"");
        garbage.splice(0..1, [b'X']);
        for bytes in [frame(FrameType::Task, 8, 1, b""), garbage] {
            let mut pair = pair(LONG);
            pair.peer.write_all(&bytes).expect("written");
            assert!(next(&pair.commands).is_none());
            assert!(matches!(pair.lifeline.verdict(), Some(Verdict::Broken(_))));
        }
    }

    #[test]
    fn a_frame_that_does_not_go_on_breaks_the_lane_r_061() {
        let mut pair = pair(Duration::from_millis(1));
        pair.peer.write_all(b"SLR3").expect("written");
        assert!(next(&pair.commands).is_none());
        assert_eq!(
            pair.lifeline.verdict(),
            Some(Verdict::Broken("a frame did not arrive in time".to_owned()))
        );
    }

    #[test]
    fn a_parent_that_sends_ahead_without_end_is_cut_off() {
        let mut pair = pair(LONG);
        for sequence in 0..=u64::from(UNANNOUNCED.max_commands) {
            pair.peer
                .write_all(&frame(FrameType::Control, 9, sequence, b""))
                .expect("written");
        }
        assert!(pair.lifeline.wait_for_end(Instant::now() + LONG));
        assert!(matches!(pair.lifeline.verdict(), Some(Verdict::Broken(_))));
    }
}
