//! The life of one session's runner, from its start to its reaping, owned by one task.
//!
//! Whatever happens to the connection that asked for the session, this task ends the runner exactly once: the whole process
//! group, its zombie, its segments, its place among the sessions.

use std::time::Duration;

use echelon_wire::bootstrap::{Manifest, ReadyLine};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::{timeout, Instant};

use super::output::Output;
use super::process::RunnerProcess;
use super::table::Slot;
use super::Context;
use crate::error::SessionError;
use crate::segments;

/// How long a runner that was told to end may take before its group is killed.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of the ready line.
const READY_LINE_MAX: u64 = echelon_wire::limits::MAX_READY_LINE_BYTES as u64;

/// Where a started session can be reached.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) line: ReadyLine,
    pub(crate) pid: u32,
    /// The end of the parent's start, for a parent that says when it has connected.
    pub(crate) start_by: Option<Instant>,
    /// Dropped without a word when the reply could not be delivered: then the runner is reclaimed.
    pub(crate) delivered: oneshot::Sender<()>,
}

/// Why a runner's life ends.
#[derive(Debug)]
enum End {
    /// By itself.
    Exited,
    /// The daemon stops, or nobody knows of the session.
    Stop(&'static str),
}

/// Until when a runner must be ready.
struct Bound {
    deadline: Instant,
    limit: Duration,
    setting: &'static str,
    /// The deadline of the parent's whole start, if it has one: the runner goes by it too.
    start_by: Option<std::time::Instant>,
}

impl Bound {
    /// Counted from now: what is left of the parent's start, else a whole `session_timeout_s` as in version 1.
    fn of(manifest: &Manifest) -> Self {
        let budget = manifest.startup_budget();
        let limit = budget.unwrap_or_else(|| manifest.session_timeout());
        let deadline = Instant::now() + limit;
        Self {
            deadline,
            limit,
            setting: budget.map_or("session_timeout_s", |_| "startup_timeout_s"),
            start_by: budget.map(|_| deadline.into_std()),
        }
    }
}

/// Starts a runner and stays with it. The answer goes through `started`.
pub(crate) async fn life(
    context: Context,
    manifest: Manifest,
    json: Vec<u8>,
    slot: Slot,
    mut started: oneshot::Sender<Result<Ready, SessionError>>,
) {
    let who = format!(
        "session {:x} worker {}",
        manifest.session_id, manifest.worker_id
    );
    let bound = Bound::of(&manifest);
    let mut stopping = context.stopping.clone();
    let (mut process, pipes) =
        match RunnerProcess::start(&context, &manifest, &json, bound.start_by).await {
            Ok(pair) => pair,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
    let mut output = Output::new(pipes.output, who.clone(), context.log.clone());
    let first = tokio::select! {
        first = until_ready(&mut process, pipes.ready, &mut output, &mut stopping, &bound) => first,
        () = started.closed() => Err(SessionError::GivenUp),
    };
    let end = match first {
        Ok(line) => {
            let (delivered, receipt) = oneshot::channel();
            tracing::info!(pid = process.pid(), session = %who, "session is ready");
            let ready = Ready {
                line,
                pid: process.pid(),
                start_by: bound.start_by.map(Instant::from_std),
                delivered,
            };
            if started.send(Ok(ready)).is_err() {
                End::Stop("the request was given up")
            } else {
                serve(&mut process, &mut output, &mut stopping, receipt).await
            }
        }
        Err(error) => {
            tracing::warn!(pid = process.pid(), session = %who, error = ?error.to_string(), "session did not start");
            process.kill_group();
            finish(process, output, &who, slot).await;
            let _ = started.send(Err(error));
            return;
        }
    };
    if let End::Stop(reason) = end {
        tracing::info!(pid = process.pid(), session = %who, reason, "ending the session");
        process.terminate_group();
        let ended = async {
            tokio::select! {
                () = process.exited() => {}
                () = output.pump() => {}
            }
        };
        if timeout(STOP_LIMIT, ended).await.is_err() {
            tracing::warn!(pid = process.pid(), session = %who, limit = ?STOP_LIMIT, "session did not end and is killed");
        }
    }
    finish(process, output, &who, slot).await;
}

/// Waits for the ready line; every way out is bounded.
async fn until_ready(
    process: &mut RunnerProcess,
    ready: pipe::Receiver,
    output: &mut Output,
    stopping: &mut watch::Receiver<bool>,
    bound: &Bound,
) -> Result<ReadyLine, SessionError> {
    let mut line = Vec::new();
    let mut ready = ready.take(READY_LINE_MAX);
    let read = async {
        let mut buffer = [0_u8; 1024];
        loop {
            match ready.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => line.extend(buffer.iter().take(count)),
            }
            if line.contains(&b'\n') {
                return;
            }
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = tokio::time::timeout_at(bound.deadline, read) => outcome.map_err(|_| ()),
        _ = stopping.wait_for(|stop| *stop) => return Err(SessionError::Stopping),
        () = output.pump() => Ok(()),
    };
    if outcome.is_err() {
        return Err(SessionError::NotReady {
            limit: bound.limit,
            setting: bound.setting,
            tail: output.tail(),
        });
    }
    if line.is_empty() {
        // End of file on the ready pipe: the runner ended, or closed it; then it has a moment to end.
        let ended = timeout(Duration::from_secs(1).min(bound.limit), process.exited())
            .await
            .is_ok();
        let end = if ended {
            process.end_text()
        } else {
            "closed its ready pipe".to_owned()
        };
        return Err(SessionError::Exited {
            end,
            tail: output.tail(),
        });
    }
    let bad = |reason: String, output: &mut Output| SessionError::BadReady {
        reason,
        tail: output.tail(),
    };
    let line = match line.split(|byte| *byte == b'\n').next() {
        Some(first) if first.len() < line.len() => ReadyLine::from_line(first),
        _ => return Err(bad("it does not end with a newline".to_owned(), output)),
    };
    match line {
        Ok(ReadyLine::Err { error }) => Err(SessionError::Refused {
            message: error,
            pid: process.pid(),
        }),
        Ok(line) => Ok(line),
        Err(error) => Err(bad(error.to_string(), output)),
    }
}

/// Stays with a running session.
async fn serve(
    process: &mut RunnerProcess,
    output: &mut Output,
    stopping: &mut watch::Receiver<bool>,
    receipt: oneshot::Receiver<()>,
) -> End {
    tokio::select! {
        end = async {
            tokio::select! {
                () = process.exited() => return End::Exited,
                receipt = receipt => if receipt.is_err() {
                    return End::Stop("its parent is gone or has given up");
                },
            }
            process.exited().await;
            End::Exited
        } => end,
        _ = stopping.wait_for(|stop| *stop) => End::Stop("the daemon stops"),
        () = output.pump() => End::Exited,
    }
}

/// Ends what is left of the runner's group, reaps it, removes its segments, gives its place back.
async fn finish(mut process: RunnerProcess, mut output: Output, who: &str, slot: Slot) {
    process.kill_group();
    process.exited().await;
    output.finish();
    let pid = process.pid();
    let end = process.end_text();
    let removed = process.owner().map_or(0, segments::sweep);
    tracing::info!(pid, session = %who, end, removed_segments = removed, "session ended");
    drop(slot);
}
