//! What happened when: one event a task member, kept in a bounded log, written as a Chrome trace that Perfetto opens.
//!
//! All times are CLOCK_MONOTONIC in ns of the process that holds the log; events of other hosts are shifted on receipt.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

/// Most events kept; further ones are counted and dropped.
pub const MAX_EVENTS: usize = 1 << 18;

/// One member of one task. Its texts are shared with what they name, as there is one of these for every task of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Name of the callable, or `copy`.
    pub name: Arc<str>,
    /// Name of the worker that ran it, e.g. `remote0/sub1`.
    pub worker: Arc<str>,
    /// Process id of that worker; 0 where it is not known.
    pub pid: u32,
    /// Number of the task in its run, from 1.
    pub task: u64,
    /// Member of a group, from 0.
    pub member: u32,
    /// Which attempt, from 1; more than 1 for an idempotent task whose worker was lost.
    #[serde(default = "first")]
    pub attempt: u32,
    /// When it was submitted.
    pub submit_ns: u64,
    /// When it was sent to its worker.
    pub ready_ns: u64,
    /// When it started there.
    pub start_ns: u64,
    /// When it ended there.
    pub end_ns: u64,
    /// Numbers of the tasks that it waited for.
    pub deps: Vec<u64>,
    /// `completed`, `failed`, `lost`.
    pub outcome: Cow<'static, str>,
}

/// What a peer that does not know of attempts means.
fn first() -> u32 {
    1
}

/// The events of a worker, as a session reports them (control COLLECT_TRACE).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TraceReport {
    /// The sender's CLOCK_MONOTONIC in ns when it made the report.
    pub now_ns: u64,
    /// Events since the last report.
    pub events: Vec<TraceEvent>,
    /// Events lost to the bound.
    pub dropped: u64,
}

/// CLOCK_MONOTONIC in ns: the clock that processes of one host share.
#[must_use]
pub fn now_ns() -> u64 {
    // Through the C library: rustix looks for the kernel's vDSO itself, which ends a process that runs under valgrind.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}

/// A bounded list of events, for a worker whose parent will ask for them; one that nobody asks keeps none.
#[derive(Debug, Default)]
pub(crate) struct TraceLog {
    kept: bool,
    events: Vec<TraceEvent>,
    dropped: u64,
}

impl TraceLog {
    pub(crate) fn keeping(kept: bool) -> Self {
        Self {
            kept,
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, event: &TraceEvent) {
        if !self.kept {
            return;
        }
        if self.events.len() < MAX_EVENTS {
            self.events.push(event.clone());
        } else {
            self.dropped += 1;
        }
    }

    pub(crate) fn take(&mut self) -> TraceReport {
        TraceReport {
            now_ns: now_ns(),
            events: std::mem::take(&mut self.events),
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}

/// Adds a session's events to the parent's, under the session's name. `skew_ns` = parent's clock minus the session's.
pub(crate) fn adopt(report: TraceReport, prefix: &str, skew_ns: i64, into: &mut Vec<TraceEvent>) {
    let shift = |t: u64| t.saturating_add_signed(skew_ns);
    into.extend(report.events.into_iter().map(|mut event| {
        event.worker = format!("{prefix}/{}", event.worker).into();
        event.submit_ns = shift(event.submit_ns);
        event.ready_ns = shift(event.ready_ns);
        event.start_ns = shift(event.start_ns);
        event.end_ns = shift(event.end_ns);
        event
    }));
}

/// The events in Chrome-trace form: one process row a worker, complete events in µs, flow arrows along dependencies.
#[must_use]
pub fn chrome_trace(events: &[TraceEvent]) -> String {
    let mut rows: Vec<&str> = events.iter().map(|event| &*event.worker).collect();
    rows.sort_unstable();
    rows.dedup();
    let row_of: HashMap<&str, usize> = rows
        .iter()
        .enumerate()
        .map(|(row, name)| (*name, row + 1))
        .collect();
    let base = events
        .iter()
        .map(|event| event.submit_ns.min(event.start_ns))
        .min()
        .unwrap_or(0);
    let micros = |t: u64| t.saturating_sub(base) as f64 / 1000.0;

    let mut out: Vec<Value> = Vec::with_capacity(events.len() * 2 + rows.len() * 2);
    for (index, name) in rows.iter().enumerate() {
        let row = index + 1;
        out.push(json!({"ph": "M", "name": "process_name", "pid": row, "tid": row, "args": {"name": name}}));
        out.push(json!({"ph": "M", "name": "process_sort_index", "pid": row, "tid": row, "args": {"sort_index": row}}));
    }
    let mut last_of: HashMap<u64, &TraceEvent> = HashMap::new();
    for event in events {
        let row = row_of[&*event.worker];
        out.push(json!({
            "ph": "X", "cat": "task", "name": event.name, "pid": row, "tid": row, "ts": micros(event.start_ns),
            "dur": event.end_ns.saturating_sub(event.start_ns) as f64 / 1000.0,
            "args": {"task": event.task, "member": event.member, "attempt": event.attempt, "outcome": event.outcome, "os_pid": event.pid,
                     "queued_us": event.start_ns.saturating_sub(event.submit_ns) as f64 / 1000.0},
        }));
        // Inner tasks of sessions carry numbers of their own runs and no dependencies: they take no part in the arrows.
        if !event.worker_is_nested() {
            last_of.insert(event.task, event);
        }
    }
    for event in events.iter().filter(|event| !event.worker_is_nested()) {
        for dep in &event.deps {
            let Some(producer) = last_of.get(dep) else {
                continue;
            };
            let id = format!("{}-{}-{}", dep, event.task, event.member);
            let (from, to) = (row_of[&*producer.worker], row_of[&*event.worker]);
            out.push(
                json!({"ph": "s", "cat": "dep", "name": "dep", "id": id, "pid": from, "tid": from,
                            "ts": micros(producer.end_ns)}),
            );
            out.push(json!({"ph": "f", "bp": "e", "cat": "dep", "name": "dep", "id": id, "pid": to, "tid": to,
                            "ts": micros(event.start_ns)}));
        }
    }
    json!({"displayTimeUnit": "ms", "traceEvents": out}).to_string()
}

impl TraceEvent {
    /// True for events that came from inside a session or a local L3 child.
    #[must_use]
    pub fn worker_is_nested(&self) -> bool {
        self.worker.matches('/').count() > usize::from(self.worker.starts_with("local/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(worker: &str, task: u64, start_ns: u64, deps: &[u64]) -> TraceEvent {
        TraceEvent {
            name: "f".into(),
            worker: worker.into(),
            task,
            submit_ns: 10,
            start_ns,
            end_ns: start_ns + 5_000,
            deps: deps.to_vec(),
            outcome: "completed".into(),
            ..TraceEvent::default()
        }
    }

    #[test]
    fn a_dependency_becomes_a_pair_of_flow_events() {
        let text = chrome_trace(&[
            event("local/sub0", 1, 1_000, &[]),
            event("remote0", 2, 9_000, &[1]),
        ]);
        let value: Value = serde_json::from_str(&text).unwrap();
        let phases: Vec<&str> = value["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["ph"].as_str().unwrap())
            .collect();
        assert_eq!(phases.iter().filter(|ph| **ph == "X").count(), 2);
        assert_eq!(phases.iter().filter(|ph| **ph == "s").count(), 1);
        assert_eq!(phases.iter().filter(|ph| **ph == "f").count(), 1);
    }

    #[test]
    fn inner_tasks_do_not_take_part_in_arrows() {
        assert!(event("remote0/sub1", 1, 0, &[]).worker_is_nested());
        assert!(!event("local/sub1", 1, 0, &[]).worker_is_nested());
        let text = chrome_trace(&[
            event("remote0/sub1", 1, 1_000, &[]),
            event("local/sub0", 2, 9_000, &[1]),
        ]);
        assert!(!text.contains("\"ph\":\"s\""));
    }

    #[test]
    fn the_log_is_bounded() {
        let mut log = TraceLog::keeping(true);
        log.events = vec![TraceEvent::default(); MAX_EVENTS];
        log.push(&TraceEvent::default());
        let report = log.take();
        assert_eq!((report.events.len(), report.dropped), (MAX_EVENTS, 1));
        assert!(log.take().events.is_empty());
    }
}
