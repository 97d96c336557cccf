//! The session's state and its loop: commands as the line gives them, a reply each. A failed command never ends the session (S-4).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use echelon_runtime::{trace, Callable, CallableHandle, CallableHost, ChipDevices, Worker};
use echelon_wire::bootstrap::Manifest;
use echelon_wire::callable::Digest;
use echelon_wire::codec::Encode;
use echelon_wire::error::EncodeError;
use echelon_wire::frame::{unsupported_frame_message, FailureKind, Features, FrameType};
use echelon_wire::order::Outcomes;

use super::callables::Hosted;
use super::commands::{Answers, Commands, Next};
use super::intake::{Command, Intake};
use super::line::CONDITION_WINDOW;
use super::memory::Memory;
use super::prestart::Prepared;
use crate::buffers::Buffers;
use crate::chip::staging::Staging;
use crate::peer::Peers;
use crate::policy::ImportPolicy;
use crate::registry::Registry;
use crate::segments::Owner;

/// Everything that belongs to one session (S-5).
pub(crate) struct Session {
    pub(super) host: Arc<dyn CallableHost>,
    pub(super) policy: ImportPolicy,
    /// What TASK frames may call.
    pub(super) dispatcher: Registry<Digest, Hosted>,
    /// Callables on their way to the inner worker.
    pub(super) prepared_inner: Registry<Digest, Callable>,
    /// What the inner worker has registered for the parent.
    pub(super) inner: HashMap<Digest, CallableHandle>,
    pub(super) memory: Arc<Memory>,
    pub(super) worker: Worker,
    pub(super) features: Features,
    /// What became of the last tasks, for those that name them.
    pub(super) outcomes: Outcomes,
    /// The devices of the inner worker.
    pub(super) chips: Option<ChipDevices>,
    /// Machine code on its way.
    pub(super) staging: Staging,
}

/// A frame on its way to the parent.
pub(super) struct Reply {
    pub(super) frame_type: FrameType,
    pub(super) payload: Vec<u8>,
}

impl Reply {
    pub(super) fn of(frame_type: FrameType, value: &impl Encode) -> Result<Self, EncodeError> {
        Ok(Self {
            frame_type,
            payload: value.to_bytes()?,
        })
    }
}

impl Session {
    pub(crate) fn new(
        manifest: &Manifest,
        prepared: Prepared,
        policy: ImportPolicy,
        host: Arc<dyn CallableHost>,
        peers: Peers,
    ) -> Self {
        let mut dispatcher = Registry::new();
        for (digest, callable) in prepared.dispatcher {
            // The manifest's size bounds their number below the table's.
            if dispatcher.prepare(digest, callable).is_ok() {
                let _ = dispatcher.commit(digest);
            }
        }
        let prefix =
            Owner::this_process().map_or_else(|| "psm_".to_owned(), |owner| owner.prefix());
        let worker_id = manifest.worker();
        let tickets = Arc::clone(peers.tickets());
        let limit = prepared.worker.memory_limit();
        let buffers = Buffers::new(worker_id, limit, prefix, tickets);
        Self {
            host,
            policy,
            dispatcher,
            prepared_inner: Registry::new(),
            inner: prepared.inner.into_iter().collect(),
            memory: Memory::new(worker_id, buffers, peers, prepared.worker.clone()),
            worker: prepared.worker,
            features: Features::NONE,
            outcomes: Outcomes::new(CONDITION_WINDOW),
            chips: prepared.chips,
            staging: Staging::default(),
        }
    }

    /// Handles commands until the lane ends, or an answer cannot be written.
    pub(crate) fn serve(
        &mut self,
        intake: &Intake,
        commands: &Commands,
        answers: &Answers,
        features: Features,
    ) {
        self.features = features;
        if !features.contains(Features::CONCURRENT_CONTROL) {
            return self.answer_in_order(intake, commands, answers);
        }
        let memory = Arc::clone(&self.memory);
        std::thread::scope(|scope| {
            let beside = std::thread::Builder::new().name("controls".to_owned());
            let beside = beside.spawn_scoped(scope, || {
                let _whole = Whole(commands);
                while let Some((number, command)) = commands.next_beside() {
                    let sequence = command.header.sequence;
                    let reply = memory.control(features, sequence, &command.payload);
                    let given = reply.map_err(unencodable).and_then(|reply| {
                        commands.answering(number);
                        answers.send(sequence, &reply)
                    });
                    if let Err(error) = given {
                        return give_up(commands, answers, &error);
                    }
                    commands.done(number);
                }
            });
            if let Err(error) = beside {
                return commands.fail(&format!("no thread for controls: {error}"));
            }
            self.answer_in_order(intake, commands, answers);
        });
    }

    /// The main thread: carries out what is for it, and reads the lane while there is nothing.
    fn answer_in_order(&mut self, intake: &Intake, commands: &Commands, answers: &Answers) {
        let _whole = Whole(commands);
        loop {
            let done = match commands.next() {
                Next::Command(number, command) => {
                    let (began, sequence) = (Instant::now(), command.header.sequence);
                    let reply = self.handle(command).map_err(unencodable);
                    reply.and_then(|reply| {
                        commands.answering(number);
                        if answers.give(sequence, &reply, began)? {
                            intake.answer_waits();
                        }
                        commands.done(number);
                        Ok(())
                    })
                }
                Next::Held => answers.flush().map(|()| commands.wait_held()),
                Next::Nothing => answers.flush().map(|()| intake.wait()),
                Next::Over => match answers.flush() {
                    Ok(()) => return,
                    failed => failed,
                },
            };
            if let Err(error) = done {
                return give_up(commands, answers, &error);
            }
        }
    }

    fn handle(&mut self, command: Command) -> Result<Reply, EncodeError> {
        let Command { header, payload } = command;
        match header.frame_type {
            FrameType::Task => self.task(header.sequence, &payload),
            FrameType::Control => self.control(header.sequence, &payload),
            other => {
                let text = unsupported_frame_message(other);
                let now = trace::now_ns();
                self.completion(header.sequence, FailureKind::Task, Some(text), now)
            }
        }
    }

    /// Ends the inner worker and frees every buffer.
    ///
    /// # Errors
    /// What the inner worker could not end.
    pub(crate) fn close(self) -> Result<(), echelon_runtime::Error> {
        drop(self.memory);
        self.worker.close()
    }
}

fn unencodable(error: EncodeError) -> std::io::Error {
    std::io::Error::other(format!("a reply could not be encoded: {error}"))
}

/// An answer is missing, or was written in part: nothing may follow it.
fn give_up(commands: &Commands, answers: &Answers, error: &std::io::Error) {
    commands.fail(&error.to_string());
    answers.break_off();
}

/// Ends the session when its thread panics: what waits for its command would wait for ever.
struct Whole<'a>(&'a Commands);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a thread of the session panicked");
        }
    }
}
