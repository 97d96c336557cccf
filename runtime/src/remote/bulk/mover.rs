//! The threads that move bulk bytes: into mapped memory, or through data lanes.
//!
//! They are started by the first copy. A large copy through data lanes goes in two halves, each on a connection of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{unbounded, Receiver, Sender};
use echelon_wire::frame::peer::Refusal;

use super::stream::{Stream, StreamError, StreamRoute};
use crate::endpoint::Ticket;
use crate::memory::HostMemory;
use crate::remote::lane::Ring;

/// Threads of one endpoint, each with one connection at most.
const THREADS: usize = 2;
/// A copy through data lanes of this size is worth two connections.
const TWO_LANES_FROM: usize = 8 << 20;

/// How the far side of a copy is reached.
pub(super) enum Far {
    /// Mapped here: exactly the bytes; `fresh` when they were not touched here before.
    Mapped { bytes: HostMemory, fresh: bool },
    /// By the session's data lanes; first byte in the buffer.
    Stream(StreamRoute, u64),
}

/// A copy, or a part of one.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) to_remote: bool,
    pub(super) near: HostMemory,
    pub(super) far: Far,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// The bytes are there.
    Moved,
    /// There is no data lane to be had; nothing was moved.
    Unreachable(String),
    /// The session refused it.
    Refused(String),
    /// The lane was closed; what the session still writes has to be fenced off.
    Closed(String),
    /// It broke; likewise.
    Broken(String),
    /// The endpoint ends.
    Cancelled,
}

/// The threads.
pub(super) struct Mover {
    jobs: Option<Sender<Job>>,
    done: Receiver<(Ticket, Outcome)>,
    cancel: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Mover {
    /// `limit` is how long a data lane may not move; `ring` is called when a job has ended.
    pub(super) fn start(name: &str, limit: Duration, ring: &Ring) -> std::io::Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        let (told, done) = unbounded();
        let mut mover = Self {
            jobs: Some(jobs),
            done,
            cancel: Arc::default(),
            threads: Vec::new(),
        };
        for number in 0..THREADS {
            let (queue, told, ring) = (queue.clone(), told.clone(), Arc::clone(ring));
            let mut worker = Worker {
                stream: None,
                limit,
                cancel: Arc::clone(&mover.cancel),
            };
            let thread = std::thread::Builder::new()
                .name(format!("echelon-{name}-copy{number}"))
                .spawn(move || {
                    for job in queue {
                        let ticket = job.ticket;
                        let outcome = worker.carry_out(job);
                        // Nobody waits any more when the receiver is gone.
                        let _ = told.send((ticket, outcome));
                        ring();
                    }
                });
            match thread {
                Ok(thread) => mover.threads.push(thread),
                // One is enough; dropping the mover ends what has started.
                Err(error) if mover.threads.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(mover)
    }

    /// Begins a copy. Returns how many jobs it became, each of which is told when it ends.
    pub(super) fn begin(&self, job: Job) -> usize {
        let Some(jobs) = &self.jobs else { return 0 };
        let parts = halves(job);
        let count = parts.len();
        for part in parts {
            let _ = jobs.send(part);
        }
        count
    }

    /// The next job that has ended.
    pub(super) fn next_done(&self) -> Option<(Ticket, Outcome)> {
        self.done.try_recv().ok()
    }

    /// What has not ended ends soon, as cancelled.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.cancel();
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Cuts what is worth it in two.
fn halves(job: Job) -> Vec<Job> {
    let (half, len) = (job.near.len() / 2, job.near.len());
    let Far::Stream(route, offset) = &job.far else {
        return vec![job];
    };
    let parts = (job.near.slice(0, half), job.near.slice(half, len - half));
    let (true, (Ok(first), Ok(second))) = (len >= TWO_LANES_FROM, parts) else {
        return vec![job];
    };
    let part = |near, at| Job {
        ticket: job.ticket,
        to_remote: job.to_remote,
        near,
        far: Far::Stream(route.clone(), at),
    };
    vec![part(first, *offset), part(second, offset + half as u64)]
}

struct Worker {
    stream: Option<Stream>,
    limit: Duration,
    cancel: Arc<AtomicBool>,
}

impl Worker {
    fn carry_out(&mut self, job: Job) -> Outcome {
        if self.cancel.load(Ordering::Relaxed) {
            return Outcome::Cancelled;
        }
        match job.far {
            Far::Mapped { bytes: far, fresh } => {
                if fresh {
                    far.prefault();
                }
                let copied = if job.to_remote {
                    far.copy_from(&job.near)
                } else {
                    job.near.copy_from(&far)
                };
                copied.map_or_else(
                    |error| Outcome::Refused(error.to_string()),
                    |()| Outcome::Moved,
                )
            }
            Far::Stream(route, offset) => {
                match self.stream(&route, job.to_remote, offset, &job.near) {
                    Ok(()) => Outcome::Moved,
                    Err(error) => {
                        self.stream = None;
                        outcome(error)
                    }
                }
            }
        }
    }

    fn stream(
        &mut self,
        route: &StreamRoute,
        to_remote: bool,
        offset: u64,
        near: &HostMemory,
    ) -> Result<(), StreamError> {
        let kept = self.stream.take().filter(|stream| !stream.is_spent());
        let stream = match kept {
            Some(stream) => stream,
            None => Stream::dial(route.address, self.limit, Arc::clone(&self.cancel))?,
        };
        let stream = self.stream.insert(stream);
        stream.transfer(route, to_remote, offset, near)
    }
}

fn outcome(error: StreamError) -> Outcome {
    let text = error.to_string();
    match error {
        StreamError::Unreachable(_) => Outcome::Unreachable(text),
        StreamError::Refused {
            reason: Refusal::Busy,
            ..
        } => Outcome::Unreachable(text),
        // It may have taken other requests of the same copy.
        StreamError::Refused { .. } => Outcome::Refused(text),
        StreamError::Closed(_) => Outcome::Closed(text),
        StreamError::Broken(_) => Outcome::Broken(text),
        StreamError::Cancelled => Outcome::Cancelled,
    }
}

/// Waits until no job is left, for an endpoint that ends.
pub(super) fn drain(mover: &Mover, mut jobs: usize, deadline: Instant) {
    mover.cancel();
    while jobs > 0 && mover.done.recv_deadline(deadline).is_ok() {
        jobs -= 1;
    }
}
