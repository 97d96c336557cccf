//! Running tasks: those of a leaf in a row, as long as there are more, so that what all calls need is taken once.

use std::sync::Arc;

use echelon_wire::codec::Reader;
use echelon_wire::order::Conditions;
use echelon_wire::task::TaskArgsWire;

use super::records::{self, Done, Task};
use super::regions::RegionTable;
use super::{Child, ChildError, Level};
use crate::mailbox::RecordHead;
use crate::tensor::{Lease, Tag, TaskView, Tensor};
use crate::trace::now_ns;
use crate::worker::RunEnd;

/// Most tasks in one row, and the time after which a row ends with the task that is running: other threads of the process
/// that need what the row holds have had to wait so long at most beyond the task itself.
pub(super) const ROW_TASKS: u32 = 64;
const ROW_NS: u64 = 500_000;

/// Why a row ended.
enum RowEnd {
    /// No record is there, or it has been long enough.
    Pause,
    /// The next record is no task; its payload has been received.
    Other(RecordHead),
    /// The completion of this ticket has no room in the ring.
    Full(u64),
}

impl Child {
    /// Runs the task that was received and, in a leaf, those behind it. A record that is no task and was received behind them
    /// is returned, and its payload is in `payload`.
    pub(super) fn tasks(
        &mut self,
        head: RecordHead,
        payload: &mut Vec<u8>,
    ) -> Result<Option<RecordHead>, ChildError> {
        let end = match self.level {
            Level::Orchestration(_) => {
                self.task(head.ticket, payload, now_ns())?;
                RowEnd::Full(head.ticket)
            }
            Level::Leaf => {
                let host = Arc::clone(&self.host);
                let mut end = Ok(RowEnd::Pause);
                host.in_a_row(&mut || end = self.row(head, payload));
                end?
            }
        };
        match end {
            RowEnd::Pause => Ok(None),
            RowEnd::Other(head) => Ok(Some(head)),
            RowEnd::Full(ticket) => {
                let done = std::mem::take(&mut self.done);
                self.send(records::DONE, ticket, &done)?;
                self.done = done;
                Ok(None)
            }
        }
    }

    /// Runs tasks as long as the next record is one, without ever waiting.
    fn row(&mut self, head: RecordHead, payload: &mut Vec<u8>) -> Result<RowEnd, ChildError> {
        let (begun, mut ticket) = (now_ns(), head.ticket);
        let mut start_ns = begun;
        let mut calls = 0;
        loop {
            let end_ns = self.task(ticket, payload, start_ns)?;
            let done = RecordHead {
                kind: records::DONE,
                ticket,
            };
            if !self.side.try_send(done, &self.done)? {
                return Ok(RowEnd::Full(ticket));
            }
            calls += 1;
            let enough = calls >= ROW_TASKS || end_ns.saturating_sub(begun) > ROW_NS;
            // Views that are still alive are looked at between rows.
            if enough || !self.retained.is_empty() || self.side.is_shutdown_requested() {
                return Ok(RowEnd::Pause);
            }
            match self.side.receive(payload)? {
                None => return Ok(RowEnd::Pause),
                Some(next) if next.kind == records::TASK => ticket = next.ticket,
                Some(other) => return Ok(RowEnd::Other(other)),
            }
            // Not the end of the one before: this one may have been sent since.
            start_ns = now_ns();
        }
    }

    /// Runs one task and leaves its DONE in `self.done`; returns when it ended.
    fn task(&mut self, ticket: u64, payload: &[u8], start_ns: u64) -> Result<u64, ChildError> {
        let mut lease = None;
        let bad = |message: String| ChildError::Record {
            kind: records::TASK,
            message,
        };
        let mut reader = Reader::new(payload);
        let conditions = Conditions::read(&mut reader).map_err(|error| bad(error.to_string()))?;
        let met = self.outcomes.met(conditions);
        let skipped = !met.map_err(|error| bad(error.to_string()))?;
        let failure = if skipped {
            None
        } else {
            self.perform(reader.rest(), &mut lease).err()
        };
        self.outcomes.note(ticket, !skipped && failure.is_none());
        // Who else holds the lease of an ended task has kept a view.
        let retained = lease.filter(|lease| Arc::strong_count(lease) > 1);
        let done = Done {
            start_ns,
            end_ns: now_ns(),
            failure: failure.as_deref(),
            retained: retained.is_some(),
            skipped,
        };
        if let Some(lease) = retained {
            self.retained.push((ticket, lease));
        }
        let encoded = done.encode_into(&mut self.done);
        encoded.map_err(|error| ChildError::Record {
            kind: records::DONE,
            message: error.to_string(),
        })?;
        Ok(done.end_ns)
    }

    fn perform(&mut self, payload: &[u8], lease: &mut Option<Lease>) -> Result<(), String> {
        let task = Task::decode(payload).map_err(|error| error.to_string())?;
        let callable = self.callables.get(&task.digest);
        let callable = callable
            .ok_or_else(|| format!("callable {} is not installed in this child", task.digest))?;
        let mut view = view(&mut self.regions, &task.args, lease)?;
        view.scalars = task.args.scalars;
        view.config = task.config.into_owned();
        match &self.level {
            Level::Leaf => callable.call_leaf(view),
            Level::Orchestration(worker) => {
                let ran =
                    worker.run(|orchestrator| callable.call_orchestration(orchestrator, view));
                ran.map(drop).map_err(|end| match end {
                    RunEnd::Function(text) => text,
                    RunEnd::Engine(error) => error.to_string(),
                })
            }
        }
    }

    /// Tells the parent which tasks' last views have gone.
    pub(super) fn report_released(&mut self) -> Result<(), ChildError> {
        if self.retained.is_empty() {
            return Ok(());
        }
        let (gone, kept) = std::mem::take(&mut self.retained)
            .into_iter()
            .partition(|(_, lease)| Arc::strong_count(lease) == 1);
        self.retained = kept;
        let gone: Vec<(u64, Lease)> = gone;
        for (ticket, _) in gone {
            self.send(records::RELEASED, ticket, &[])?;
        }
        Ok(())
    }
}

/// The tensors of a task, each of which holds `lease`.
fn view(
    regions: &mut RegionTable,
    args: &TaskArgsWire<'_>,
    lease: &mut Option<Lease>,
) -> Result<TaskView, String> {
    let mut view = TaskView {
        tensors: Vec::with_capacity(args.tensors.len()),
        tags: Vec::with_capacity(args.tensors.len()),
        scalars: Vec::new(),
        config: Default::default(),
    };
    for (meta, desc) in args.tensors.iter().zip(&args.sidecars) {
        let desc = desc
            .as_ref()
            .ok_or("a tensor without a place in shared memory")?;
        let flags = desc.tensor_flags().map_err(|error| error.to_string())?;
        let region = regions
            .get(desc.buffer_id.0)
            .map_err(|error| error.to_string())?;
        let lease = Arc::clone(lease.get_or_insert_with(|| Arc::new(())));
        let tensor = Tensor::new(*meta, region, desc.offset, Some(lease), flags.read_only);
        view.tensors
            .push(tensor.map_err(|error| error.to_string())?);
        view.tags.push(flags.tag.and_then(Tag::from_code));
    }
    Ok(view)
}
