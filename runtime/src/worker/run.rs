//! `run()`: one orchestration function, all its tasks, one report or one error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Orchestrator, Worker};
use crate::endpoint::{ControlReply, ControlRequest};
use crate::engine::{Core, EndpointRole, Engine, RunState, WaitEnd};
use crate::error::{Error, RunError, StoryStep};
use crate::failure::tell;
use crate::graph::{EndpointId, Event, RunId, Space};
use crate::trace::{adopt, now_ns, TraceEvent, TraceReport};

/// How long copies that were called off may take to stop: each is within a step.
const CALLED_OFF: Duration = Duration::from_secs(2);
/// How long a report waits for a worker's own events.
const TIMELINE_WITHIN: Duration = Duration::from_secs(2);

/// Undefined ranges that an error describes.
const MAX_RANGES_SHOWN: usize = 16;

/// What a completed run did.
#[derive(Clone, Debug, Default)]
pub struct RunReport {
    /// Tasks by outcome: `completed`, `failed`, `lost`, `skipped`, `cancelled`.
    pub counts: BTreeMap<&'static str, u64>,
    /// Task members run by each worker that ran any, inner workers of sessions included.
    pub tasks_per_worker: BTreeMap<String, u64>,
    /// One event an attempt of a task member, on this process's clock.
    pub timeline: Vec<TraceEvent>,
    /// Attempts beyond the first of idempotent tasks whose worker was lost.
    pub retried: u64,
}

impl RunReport {
    /// The story of a task, by its number in the run: one line for each step of each attempt. `None` when the timeline does
    /// not have it: it was not submitted in this run, or the timeline was full.
    #[must_use]
    pub fn explain(&self, task: u64) -> Option<String> {
        let own = |event: &&TraceEvent| event.task == task && !event.worker_is_nested();
        let events: Vec<&TraceEvent> = self.timeline.iter().filter(own).collect();
        let first = events.first()?;
        let mut story = vec![StoryStep {
            state: "submitted",
            at_ns: first.submit_ns,
            detail: match first.deps.as_slice() {
                [] => String::new(),
                deps => format!("waits for tasks {deps:?}"),
            },
        }];
        for event in &events {
            let part = format!("member {} attempt {}", event.member, event.attempt);
            let steps = [
                (
                    "dispatched",
                    event.ready_ns,
                    format!("{part} to {}", event.worker),
                ),
                (
                    "started",
                    event.start_ns,
                    format!("{part} on {}", event.worker),
                ),
                (
                    "ended",
                    event.end_ns,
                    format!("{part} as {}", event.outcome),
                ),
            ];
            story.extend(steps.map(|(state, at_ns, detail)| StoryStep {
                state,
                at_ns,
                detail,
            }));
        }
        story.sort_by_key(|step| step.at_ns);
        Some(tell(task, &first.name, &story))
    }
}

/// Why a run did not succeed.
#[derive(Debug)]
pub enum RunEnd<E> {
    /// The orchestration function returned this. What it had submitted and had not started was cancelled.
    Function(E),
    /// The engine: failed tasks, an interrupt, a worker that is not ready.
    Engine(Error),
}

impl<E> From<Error> for RunEnd<E> {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl Worker {
    /// Calls `function` on this thread, with no lock held, and waits until every task that it submitted has ended.
    ///
    /// # Errors
    /// [`RunEnd::Function`] with what the function returned, else [`RunEnd::Engine`]: [`Error::Run`] with every failed task,
    /// [`Error::Interrupted`], [`Error::Lifecycle`]. The worker stays usable.
    pub fn run<R, E>(
        &self,
        function: impl FnOnce(&Orchestrator) -> Result<R, E>,
    ) -> Result<(R, RunReport), RunEnd<E>> {
        let engine = self.engine("run on")?;
        let run = RunGuard::begin(&engine)?;
        let orchestrator = Orchestrator::new(self.clone(), Arc::clone(&engine), run.id);
        let returned = function(&orchestrator);
        if let Err(forked) = engine.check_process("run on") {
            // The run goes on where it was begun.
            std::mem::forget(run);
            return Err(RunEnd::Engine(forked));
        }
        // A function that submitted nothing, or has waited for all of it, costs no more than a look.
        let ended = match engine.close_run(run.id, returned.is_err()) {
            true => Ok(()),
            false => self.wait_for_run(&engine, run.id),
        };
        let (mut state, undefined) = run.end();
        let result = match (returned, ended) {
            (Err(error), _) => return Err(RunEnd::Function(error)),
            (Ok(_), Err(error)) => return Err(RunEnd::Engine(error)),
            (Ok(result), Ok(())) => result,
        };
        if let Some(error) = state.error(undefined) {
            return Err(RunEnd::Engine(Error::Run(Box::new(error))));
        }
        Ok((result, self.report(&engine, state)))
    }

    /// [`Self::run`] for functions whose error is the runtime's own.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_simple(
        &self,
        function: impl FnOnce(&Orchestrator) -> Result<(), Error>,
    ) -> Result<RunReport, Error> {
        match self.run(function) {
            Ok(((), report)) => Ok(report),
            Err(RunEnd::Function(error) | RunEnd::Engine(error)) => Err(error),
        }
    }

    fn wait_for_run(&self, engine: &Engine, run: RunId) -> Result<(), Error> {
        let done = |core: &mut Core| (core.scheduler.run_live(run) == 0).then_some(());
        let by_function = engine
            .core
            .lock()
            .runs
            .get(run)
            .is_some_and(|r| r.interrupted);
        if !by_function {
            let Err(end) = engine.wait_until(None, done) else {
                return Ok(());
            };
            if matches!(end, WaitEnd::Torn | WaitEnd::Forked) {
                return Err(end.into_error());
            }
        }
        if let Some(state) = engine.core.lock().runs.get_mut(run) {
            state.interrupted = true;
        }
        // Tasks that have not started are cancelled; running ones have the grace, then their child is killed.
        engine.close_run(run, true);
        let grace = Instant::now() + self.0.settings.interrupt_grace;
        if engine.wait_calmly(grace, done).is_err() {
            engine.kill_run(run);
            let bound = Instant::now() + self.0.settings.close_timeout;
            if engine.wait_calmly(bound, done).is_err() {
                // The caller has its arrays back with the end of this call: nothing is written to them any more.
                engine.core.lock().call_off_copies(run);
                let bound = Instant::now() + CALLED_OFF;
                if engine.wait_calmly(bound, done).is_ok() {
                    return Err(Error::Interrupted);
                }
                tracing::error!(
                    "tasks of an interrupted run did not end after their workers were killed"
                );
            }
        }
        Err(Error::Interrupted)
    }

    fn report(&self, engine: &Engine, state: RunState) -> RunReport {
        let counts = BTreeMap::from([
            ("completed", state.completed),
            ("failed", state.failed),
            ("lost", state.lost),
            ("skipped", state.skipped),
            ("cancelled", state.cancelled),
        ]);
        let mut report = RunReport {
            counts,
            tasks_per_worker: engine.by_name(&state.per_endpoint),
            timeline: state.events,
            retried: state.retried,
        };
        engine.adopt_inner_events(&mut report);
        report
    }
}

/// Ends the run's state however `run()` is left.
struct RunGuard<'a> {
    engine: &'a Engine,
    id: RunId,
    ended: bool,
}

impl<'a> RunGuard<'a> {
    fn begin(engine: &'a Engine) -> Result<Self, Error> {
        let mut core = engine.core.lock();
        // What was refused since the last run is known before it is tried again: a run may end without another look.
        let progressed = !core.torn && core.pump();
        core.revive();
        core.flush_releases();
        let errands = core.has_errands();
        let open = core.check_open("run on");
        let id = open.map(|()| core.new_run());
        drop(core);
        if errands {
            engine.call_driver();
        } else if progressed {
            engine.wake();
        }
        let id = id?;
        Ok(Self {
            engine,
            id,
            ended: false,
        })
    }

    fn end(mut self) -> (RunState, Vec<String>) {
        self.ended = true;
        self.engine.end_run(self.id)
    }
}

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The function panicked: nothing more of this run is to start.
            self.engine.close_run(self.id, true);
            self.engine.end_run(self.id);
        }
    }
}

impl Engine {
    /// No more submits; with `cancel`, what has not started never will. True when all that was submitted has ended in order.
    fn close_run(&self, run: RunId, cancel: bool) -> bool {
        let mut core = self.core.lock();
        let mut interrupted = false;
        if let Some(state) = core.runs.get_mut(run) {
            state.closed = true;
            interrupted = state.interrupted;
        }
        if cancel && !core.torn {
            core.feed(Event::CancelRun { run });
            core.call_off_staging();
            drop(core);
            // Another thread may wait in a submit of this run, or for room.
            self.wake();
            return false;
        }
        !interrupted && !core.torn && core.scheduler.run_live(run) == 0
    }

    fn end_run(&self, run: RunId) -> (RunState, Vec<String>) {
        let mut core = self.core.lock();
        if core.torn {
            return (core.runs.remove(run).unwrap_or_default(), Vec::new());
        }
        let undefined = core
            .scheduler
            .poisoned_ranges(run)
            .into_iter()
            .collect::<Vec<_>>();
        let undefined = describe_ranges(&undefined);
        core.feed(Event::RunEnded { run });
        (core.runs.remove(run).unwrap_or_default(), undefined)
    }

    /// Waits without asking the interrupt check: used while an interrupt is carried out.
    fn wait_calmly<T>(
        &self,
        deadline: Instant,
        mut ready: impl FnMut(&mut Core) -> Option<T>,
    ) -> Result<T, WaitEnd> {
        loop {
            match self.wait_until(Some(deadline), &mut ready) {
                Err(WaitEnd::Interrupted) if Instant::now() < deadline => {}
                other => return other,
            }
        }
    }

    /// Kills the workers that still run tasks of an interrupted run.
    fn kill_run(&self, run: RunId) {
        let mut core = self.core.lock();
        let busy: Vec<EndpointId> = core
            .endpoints
            .iter()
            .zip(0..)
            .filter(|(slot, _)| {
                let mut queue = slot.queue.iter();
                queue.any(|sent| core.records.get(&sent.task).is_some_and(|r| r.run == run))
            })
            .map(|(_, id)| EndpointId(id))
            .collect();
        for endpoint in busy {
            core.kill(
                endpoint,
                "its task did not end within interrupt_grace_s after an interrupt",
            );
        }
    }

    /// Members that ran at each endpoint, by its name.
    fn by_name(&self, per_endpoint: &[u64]) -> BTreeMap<String, u64> {
        let core = self.core.lock();
        let counts = core.endpoints.iter().zip(per_endpoint);
        let ran = counts.filter(|(_, count)| **count > 0);
        let mut by_name = BTreeMap::new();
        for (slot, count) in ran {
            *by_name.entry(slot.info.name.clone()).or_default() += count;
        }
        by_name
    }

    /// Asks the workers with runtimes of their own for their events. Best effort: a report without them is still right.
    fn adopt_inner_events(&self, report: &mut RunReport) {
        if report.tasks_per_worker.is_empty() {
            return;
        }
        let outer: Vec<(EndpointId, String)> = {
            let core = self.core.lock();
            let slots = core.endpoints.iter().zip(0..);
            slots
                .filter(|(slot, _)| slot.role != EndpointRole::Sub && slot.lost.is_none())
                .filter(|(slot, _)| slot.queue.is_empty())
                .filter(|(slot, _)| report.tasks_per_worker.contains_key(&slot.info.name))
                .map(|(slot, id)| (EndpointId(id), slot.info.name.clone()))
                // The answer of a worker that is busy for another run could be long in coming.
                .filter(|(id, _)| !core.flights.values().any(|f| f.endpoint() == *id))
                .collect()
        };
        for (endpoint, name) in outer {
            let sent_ns = now_ns();
            let bound = Some(Instant::now() + TIMELINE_WITHIN);
            let reply = self.control(
                endpoint,
                "the timeline",
                ControlRequest::CollectTrace,
                bound,
            );
            let Ok(ControlReply::Trace(json)) = reply else {
                continue;
            };
            let Ok(inner) = serde_json::from_slice::<TraceReport>(&json) else {
                tracing::warn!(worker = %name, "its timeline could not be read");
                continue;
            };
            let here = i128::from(sent_ns.midpoint(now_ns()));
            let skew = i64::try_from(here - i128::from(inner.now_ns)).unwrap_or(0);
            for event in &inner.events {
                *report
                    .tasks_per_worker
                    .entry(format!("{name}/{}", event.worker))
                    .or_default() += 1;
            }
            adopt(inner, &name, skew, &mut report.timeline);
        }
    }
}

/// The first ranges in words; the last line says how many there are beyond them.
fn describe_ranges(ranges: &[(Space, u64, u64)]) -> Vec<String> {
    let shown = ranges.iter().take(MAX_RANGES_SHOWN);
    let mut text: Vec<String> = shown.map(|&(s, a, b)| describe_range(s, a, b)).collect();
    if ranges.len() > MAX_RANGES_SHOWN {
        text.push(format!("{} ranges more", ranges.len() - MAX_RANGES_SHOWN));
    }
    text
}

fn describe_range(space: Space, start: u64, end: u64) -> String {
    let what = match space {
        Space::Host => "an array of the parent",
        Space::Region(_) => "shared memory",
        Space::Remote { .. } => "a remote buffer",
    };
    match space {
        Space::Host => format!("{what} ({} bytes)", end - start),
        _ => format!("{what}, bytes {start}..{end}"),
    }
}

impl From<Box<RunError>> for Error {
    fn from(error: Box<RunError>) -> Self {
        Self::Run(error)
    }
}
