//! Reading the command lane. Always somebody does, also while a task runs (design §15.17), so that the parent's end is seen and
//! controls are served: the main thread while it has nothing else to do, so that no hand-over stands between a command and the
//! thread that carries it out, and a second thread while a command takes longer. `echelon_runtime::channel::Relay` says when.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_runtime::channel::{FrameReader, Relay, Turn};
use echelon_runtime::mailbox::Spinner;
use echelon_wire::frame::{Features, FrameHeader, FrameType};
use echelon_wire::id::{SessionId, WorkerId};
use echelon_wire::limits::MAX_PAYLOAD_BYTES;
use parking_lot::Mutex;
use rustix::event::PollFlags;

use super::commands::{Answers, Commands};
use super::lifeline::{Lifeline, Verdict, Woken};

/// Longest sleep of the thread that stands by. It is called when there is something to do.
const STAND_BY: Duration = Duration::from_secs(3600);

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) header: FrameHeader,
    pub(crate) payload: Vec<u8>,
}

/// What is known of the lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    pub(crate) session: SessionId,
    pub(crate) worker: WorkerId,
    pub(crate) features: Features,
    /// How long a frame may take from its first byte to its last.
    pub(crate) frame_limit: Duration,
}

/// The command lane's way in, shared by the two threads that read it.
pub(super) struct Intake {
    stream: TcpStream,
    lane: Lane,
    /// Whoever holds it may read.
    frames: Mutex<FrameReader>,
    relay: Relay,
    spinner: Spinner,
    lifeline: Arc<Lifeline>,
    commands: Arc<Commands>,
    answers: Arc<Answers>,
}

impl Intake {
    pub(super) fn new(
        stream: TcpStream,
        lane: Lane,
        spinner: Spinner,
        lifeline: Arc<Lifeline>,
        commands: Arc<Commands>,
        answers: Arc<Answers>,
    ) -> std::io::Result<Arc<Self>> {
        let frames = FrameReader::new(lane.session, lane.worker, lane.features, MAX_PAYLOAD_BYTES);
        Ok(Arc::new(Self {
            stream,
            lane,
            frames: Mutex::new(frames),
            relay: Relay::new()?,
            spinner,
            lifeline,
            commands,
            answers,
        }))
    }

    /// Waits until there is a command for the main thread, which has nothing else to do, or the lane has ended. May return early.
    pub(super) fn wait(&self) {
        self.relay.enter();
        let came = {
            let mut frames = self.frames.lock();
            if self.commands.has_next() {
                Ok(())
            } else {
                self.wait_at(&mut frames)
            }
        };
        self.relay.leave();
        if let Err(verdict) = came {
            self.end(verdict);
        }
    }

    /// An answer waits for those to the next commands. Should one of these take long, the second thread writes it.
    pub(super) fn answer_waits(&self) {
        self.relay.leave_behind();
    }

    /// Reads until the lane ends; nothing is carried out any more.
    pub(super) fn drain(&self) {
        self.relay.enter();
        let ended = {
            let mut frames = self.frames.lock();
            loop {
                if let Err(verdict) = self.wait_at(&mut frames) {
                    break verdict;
                }
            }
        };
        self.relay.leave();
        self.end(ended);
    }

    fn wait_at(&self, frames: &mut FrameReader) -> Result<(), Verdict> {
        let mut came = Ok(false);
        let spun = self.spinner.spin(|| {
            came = self.read(frames);
            came != Ok(false)
        });
        if spun {
            return came.map(drop);
        }
        let limit = frames.begun().map(|begun| begun + self.lane.frame_limit);
        // An idle lane is not a failure: only a frame that has begun must end in time.
        let woken = self
            .lifeline
            .wait(self.stream.as_fd(), PollFlags::IN, limit);
        self.woken(woken, frames)
    }

    /// Reads when there is something, and says why the lane is at its end otherwise.
    fn woken(
        &self,
        woken: std::io::Result<Woken>,
        frames: &mut FrameReader,
    ) -> Result<(), Verdict> {
        match woken {
            Ok(Woken::Ready) => self.read(frames).map(drop),
            // Somebody else began the end; this verdict is not the first and so has no effect.
            Ok(Woken::Ending) => Err(Verdict::Closed),
            Ok(Woken::Deadline) => {
                Err(Verdict::Broken("a frame did not arrive in time".to_owned()))
            }
            Err(error) => Err(Verdict::Broken(error.to_string())),
        }
    }

    /// Reads what is there, and puts the commands that are whole into the line. False when there was nothing.
    fn read(&self, frames: &mut FrameReader) -> Result<bool, Verdict> {
        match (&self.stream).read(frames.space()) {
            Ok(0) if frames.begun().is_some() => Err(Verdict::Broken(
                "the connection ended inside a frame".to_owned(),
            )),
            Ok(0) => Err(Verdict::Closed),
            Ok(count) => {
                frames.took(count, Instant::now());
                self.push(frames)?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(Verdict::Broken(error.to_string())),
        }
    }

    fn push(&self, frames: &mut FrameReader) -> Result<(), Verdict> {
        let next = || match frames.next_owned() {
            Ok(Some((header, _))) if header.frame_type == FrameType::Shutdown => {
                Err(Verdict::Shutdown)
            }
            Ok(frame) => Ok(frame.map(|(header, payload)| Command { header, payload })),
            Err(error) => Err(Verdict::Broken(error.to_string())),
        };
        self.commands
            .push_all(self.lane.features, next, Verdict::Broken)
    }

    fn end(&self, verdict: Verdict) {
        self.lifeline.end(verdict);
        // What is queued is carried out, then its end is seen.
        self.commands.close();
        self.relay.call();
    }

    /// The second thread's life.
    fn stand_by(&self) {
        while self.lifeline.verdict().is_none() {
            if self.relay.stand_by(Instant::now() + STAND_BY) == Turn::Look {
                continue;
            }
            let read = self.read_meanwhile();
            self.relay.give_back();
            if let Err(verdict) = read {
                self.end(verdict);
            }
        }
    }

    /// Reads while the main thread is busy, and lets go of answers that have waited for a command that is not as short as others.
    fn read_meanwhile(&self) -> Result<(), Verdict> {
        let flushed = self.answers.flush_unless_busy();
        flushed.map_err(|error| Verdict::Broken(error.to_string()))?;
        let mut frames = self.frames.lock();
        while !self.relay.is_recalled() {
            if self.read(&mut frames)? {
                continue;
            }
            let limit = frames.begun().map(|begun| begun + self.lane.frame_limit);
            let fds = [self.stream.as_fd(), self.relay.recall()];
            match self.lifeline.wait_any(fds, PollFlags::IN, limit) {
                Ok(Woken::Ready) => {}
                other => return self.woken(other, &mut frames),
            }
        }
        Ok(())
    }
}

/// The thread that stands by; joined when it is dropped, after the session's end has begun.
pub(super) struct Substitute {
    intake: Arc<Intake>,
    thread: Option<JoinHandle<()>>,
}

impl Substitute {
    pub(super) fn start(intake: &Arc<Intake>) -> std::io::Result<Self> {
        let of_thread = Arc::clone(intake);
        let thread = std::thread::Builder::new()
            .name("command reader".to_owned())
            .spawn(move || of_thread.stand_by())?;
        Ok(Self {
            intake: Arc::clone(intake),
            thread: Some(thread),
        })
    }
}

impl Drop for Substitute {
    fn drop(&mut self) {
        self.intake.relay.call();
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::Ipv4Addr;

    use echelon_wire::frame::encode_frame;
    use echelon_wire::id::Sequence;
    use echelon_wire::limits::HEADER_BYTES;

    use super::*;
    use echelon_runtime::mailbox::Bell;

    use crate::runner::command::Reply;
    use crate::runner::commands::Next;
    use crate::runner::line::UNANNOUNCED;
    use crate::runner::listen::{accept, listener};

    struct Pair {
        peer: TcpStream,
        intake: Arc<Intake>,
        commands: Arc<Commands>,
        lifeline: Arc<Lifeline>,
        /// Ends before the others are looked at no more.
        _substitute: Substitute,
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
        let twin = stream.try_clone().expect("a descriptor");
        let answers = Answers::new(twin, lane.session, lane.worker, LONG);
        let spinner = Bell::create().expect("memory").spinner();
        let intake = Intake::new(
            stream,
            lane,
            spinner,
            Arc::clone(&lifeline),
            Arc::clone(&commands),
            Arc::new(answers),
        );
        let intake = intake.expect("a descriptor");
        let substitute = Substitute::start(&intake).expect("thread");
        Pair {
            peer,
            intake,
            commands,
            lifeline,
            _substitute: substitute,
        }
    }

    impl Pair {
        /// The next command, as answered at once.
        fn next(&self) -> Option<Command> {
            loop {
                match self.commands.next() {
                    Next::Command(number, command) => {
                        self.commands.answering(number);
                        self.commands.done(number);
                        return Some(command);
                    }
                    Next::Over => return None,
                    Next::Nothing => self.intake.wait(),
                    Next::Held => panic!("nothing holds it"),
                }
            }
        }
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
        pair.peer.shutdown(std::net::Shutdown::Both).expect("open");
        let first = pair.next().expect("a command");
        assert_eq!(
            (first.header.sequence, first.payload.as_slice()),
            (Sequence(1), b"abc".as_slice())
        );
        assert_eq!(pair.next().expect("a command").header.sequence, Sequence(5));
        assert!(pair.next().is_none());
        assert_eq!(pair.lifeline.verdict(), Some(Verdict::Closed));
    }

    #[test]
    fn shutdown_in_any_form_ends_it() {
        for (sequence, payload) in [(0, b"".as_slice()), (9, b"junk".as_slice())] {
            let mut pair = pair(LONG);
            pair.peer
                .write_all(&frame(FrameType::Shutdown, 9, sequence, payload))
                .expect("written");
            assert!(pair.next().is_none());
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
            assert!(pair.next().is_none());
            assert!(matches!(pair.lifeline.verdict(), Some(Verdict::Broken(_))));
        }
    }

    #[test]
    fn a_frame_that_does_not_go_on_breaks_the_lane_r_061() {
        let mut pair = pair(Duration::from_millis(1));
        pair.peer.write_all(b"SLR3").expect("written");
        assert!(pair.next().is_none());
        assert_eq!(
            pair.lifeline.verdict(),
            Some(Verdict::Broken("a frame did not arrive in time".to_owned()))
        );
    }

    /// The main thread has gone on with a command that takes long.
    #[test]
    fn an_answer_that_waits_is_written_by_the_thread_that_has_the_lane() {
        let mut pair = pair(LONG);
        while pair.intake.relay.is_soon() {
            std::thread::yield_now();
        }
        let reply = Reply {
            frame_type: FrameType::Completion,
            payload: Vec::new(),
        };
        let later = Instant::now() + LONG;
        let waits = pair.intake.answers.give(Sequence(1), &reply, later);
        if waits.expect("a stream") {
            pair.intake.answer_waits();
        }
        pair.peer.set_read_timeout(Some(LONG)).expect("a limit");
        let mut header = [0; HEADER_BYTES];
        pair.peer.read_exact(&mut header).expect("the answer");
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
