//! The child's side of a mailbox: attach, say READY, serve records until told to end or the parent is gone.
//!
//! A child depends on nothing of its parent's memory (design §3): it is executed, or forked by a zygote, with descriptors and arguments (decision 0023). A
//! small thread ends the process as soon as the parent's end of the socket is closed, also while user code runs.

mod args;
mod control;
mod inner;
pub(crate) mod records;
pub(crate) mod regions;
mod task;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::callable::Digest;
use echelon_wire::order::Outcomes;

pub(crate) use args::command_line;
pub use args::{ChildArgs, ChildArgsError};

use crate::callable::{CallableHost, CallableTable};
use crate::mailbox::{Bell, ChildSide, MailboxError, RecordHead};
use crate::process::{watch_parent, ProcessError};
use crate::tensor::Lease;
use crate::worker::{CallableHandle, Worker, WorkerBuilder};
use inner::start_inner;
use records::{parts, Parts};
use regions::RegionTable;

/// How long a child waits for room in the completion ring: the parent is stopped or mad.
const PARENT_PATIENCE: Duration = Duration::from_secs(60);

/// Longest sleep without a record; the doorbell wakes it at once.
const IDLE: Duration = Duration::from_secs(60);

/// Tasks whose outcomes a child remembers for those behind them; no parent has more in flight.
pub(crate) const CONDITION_WINDOW: usize = 1024;

/// How often a child looks whether the last view of ended tasks has gone, while there are any.
const VIEW_RECHECK: Duration = Duration::from_millis(200);

/// Why a child ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// Its command line.
    #[error(transparent)]
    Args(#[from] ChildArgsError),
    /// The mailbox.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// Memory handed over at start.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    /// Descriptors and threads.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A record that cannot be decoded.
    #[error("record of kind {kind}: {message}")]
    Record {
        /// Its kind.
        kind: u32,
        /// What is wrong.
        message: String,
    },
    /// The plan of a local child, or its runtime.
    #[error("the inner runtime did not start: {0}")]
    Inner(String),
    /// The parent does not take completions any more.
    #[error("the parent took no completion for {PARENT_PATIENCE:?}")]
    ParentStalled,
}

/// What a child calls: leaves, or orchestration functions with a runtime of their own below.
enum Level {
    Leaf,
    Orchestration(Worker),
}

/// One child, serving.
pub struct Child {
    side: ChildSide,
    regions: RegionTable,
    host: Arc<dyn CallableHost>,
    callables: CallableTable,
    level: Level,
    /// What the parent registered for the workers below; what this level registered itself is not the parent's to remove.
    of_parent: HashMap<Digest, CallableHandle>,
    incoming: Parts,
    /// The encoded completion of the last task; its memory is used again.
    done: Vec<u8>,
    /// Tasks that have ended while views of their arguments live on, by ticket (design §15.6).
    retained: Vec<(u64, Lease)>,
    /// What became of the last tasks, by ticket.
    outcomes: Outcomes,
}

impl Child {
    /// Attaches to what was inherited, starts the inner runtime if there is a plan, and says READY. `inner` brings what a runtime
    /// in this process needs: how its children are started.
    ///
    /// # Errors
    /// [`ChildError`]; the process is to end with a non-zero status then, and the parent reports it.
    pub fn attach(
        args: ChildArgs,
        host: Arc<dyn CallableHost>,
        inner: WorkerBuilder,
    ) -> Result<Self, ChildError> {
        injected("child.attach")?;
        let bell = Bell::attach(args.bell, args.spinners)?;
        let spinners = bell.spinners();
        let side = ChildSide::attach(args.mailbox, bell)?;
        let socket: Arc<OwnedFd> = Arc::new(args.socket);
        watch_parent(&socket)?;
        let regions = RegionTable::new(&args.regions, socket);
        let mut of_parent = HashMap::new();
        let level = match args.plan {
            None => Level::Leaf,
            Some(json) => {
                let builder = inner
                    .inherited_regions(regions.inherited())
                    .spinners(spinners);
                let (worker, handles) = start_inner(&json, builder)?;
                of_parent = handles;
                Level::Orchestration(worker)
            }
        };
        let mut child = Self {
            side,
            regions,
            host,
            callables: CallableTable::default(),
            level,
            of_parent,
            incoming: Parts::default(),
            done: Vec::new(),
            retained: Vec::new(),
            outcomes: Outcomes::new(CONDITION_WINDOW),
        };
        injected("child.ready")?;
        let pid = std::process::id().to_le_bytes();
        child.send(records::READY, 0, &pid)?;
        Ok(child)
    }

    /// The inner runtime of a child that has one.
    #[must_use]
    pub fn inner(&self) -> Option<&Worker> {
        match &self.level {
            Level::Leaf => None,
            Level::Orchestration(worker) => Some(worker),
        }
    }

    /// Serves until the parent asks for the end: then what is running is finished and nothing more is begun.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn serve(mut self) -> Result<(), ChildError> {
        let mut payload = Vec::new();
        loop {
            let seen = self.side.doorbell_value();
            if self.side.is_shutdown_requested() {
                break;
            }
            match self.side.receive(&mut payload)? {
                Some(head) => {
                    let mut next = Some(head);
                    while let Some(head) = next {
                        next = self.take(head, &mut payload)?;
                        self.report_released()?;
                    }
                }
                None => {
                    self.report_released()?;
                    let idle = if self.retained.is_empty() {
                        IDLE
                    } else {
                        VIEW_RECHECK
                    };
                    let _rung = self.side.wait(seen, Instant::now() + idle);
                }
            }
        }
        if let Level::Orchestration(worker) = &self.level {
            worker
                .close()
                .map_err(|error| ChildError::Inner(error.to_string()))?;
        }
        Ok(())
    }

    /// Takes one record from the ring, which may be a part of one. Returns the next one if it was received meanwhile.
    fn take(
        &mut self,
        head: RecordHead,
        payload: &mut Vec<u8>,
    ) -> Result<Option<RecordHead>, ChildError> {
        if head.kind == records::PART_DOWN {
            let taken = self.incoming.push(payload);
            return taken.map(|()| None).map_err(|message| ChildError::Record {
                kind: head.kind,
                message,
            });
        }
        self.incoming.complete(payload);
        if head.kind == records::TASK {
            return self.tasks(head, payload);
        }
        self.control(head, payload).map(|()| None)
    }

    /// Sends one record, in parts if it is large.
    fn send(&mut self, kind: u32, ticket: u64, payload: &[u8]) -> Result<(), ChildError> {
        let (first, last) = parts(payload);
        for part in first {
            self.send_one(records::PART_UP, ticket, part)?;
        }
        self.send_one(kind, ticket, last)
    }

    fn send_one(&mut self, kind: u32, ticket: u64, payload: &[u8]) -> Result<(), ChildError> {
        let head = RecordHead { kind, ticket };
        if self.side.try_send(head, payload)? {
            return Ok(());
        }
        let deadline = Instant::now() + PARENT_PATIENCE;
        if self.side.send(head, payload, deadline)? {
            return Ok(());
        }
        Err(ChildError::ParentStalled)
    }
}

fn injected(point: &str) -> Result<(), ChildError> {
    crate::failpoint::hit(point).map_err(|injected| ChildError::Inner(injected.to_string()))
}

#[cfg(test)]
mod tests;
