//! Arrays of the caller that are too large to be copied with the engine's lock held: what is on its way, and what happens when it
//! has arrived. The bytes are moved by `copier`.
//!
//! ```text
//! place found ─► OnTheWay ─► Yes ─► sent      done ─► its place is free ─► copied back ─► the task ends
//!                   └─ the worker is lost, or the run cancelled: the member comes back, unsent
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use smallvec::SmallVec;

use super::copier::{Ended, Job, Part, Queue};
use super::record::{EndpointSlot, MemberRecord, Stage, Staged, Work};
use super::{Core, Engine};
use crate::endpoint::TaskReport;
use crate::error::FailureKind;
use crate::fast::NumberMap;
use crate::graph::{EndpointId, Event, MemberResult, RunId, TaskId};
use crate::memory::HostMemory;

/// Bytes of one member that are copied with the lock held: tens of microseconds, and what it costs to do it otherwise is half of that.
const AT_ONCE_BYTES: u64 = 256 << 10;

/// What a job is for.
enum Purpose {
    /// To be sent.
    Send { task: TaskId, member: u32 },
    /// It has run.
    Return {
        task: TaskId,
        member: u32,
        endpoint: EndpointId,
        pid: u32,
        report: TaskReport,
    },
    /// `orch.copy` within this process.
    Copy { task: TaskId },
}

struct Pending {
    purpose: Purpose,
    called_off: Arc<AtomicBool>,
}

/// What is on its way.
pub(super) struct Staging {
    queue: Arc<Queue>,
    pending: NumberMap<u64, Pending>,
    last: u64,
}

impl Staging {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            pending: NumberMap::default(),
            last: 0,
        }
    }

    fn begin(&mut self, purpose: Purpose, parts: SmallVec<[Part; 1]>) {
        self.last += 1;
        let job = Job::new(self.last, parts);
        let called_off = Arc::clone(&job.called_off);
        let pending = Pending {
            purpose,
            called_off,
        };
        self.pending.insert(self.last, pending);
        self.queue.push(job);
    }

    /// Begins with the arrays of a member that has its place, unless they are on their way. It is sent when they are there.
    pub(super) fn send(&mut self, task: TaskId, member: u32, record: &mut MemberRecord) {
        if std::mem::replace(&mut record.staged, Staged::OnTheWay) == Staged::OnTheWay {
            return;
        }
        let staged = record.staged_arrays().filter(|stage| stage.copy_in);
        let parts = staged.map(|stage| Part::Fill {
            block: Arc::clone(&stage.block),
            from: stage.host.clone(),
        });
        self.begin(Purpose::Send { task, member }, parts.collect());
    }

    pub(super) fn copy(&mut self, task: TaskId, to: HostMemory, from: HostMemory) {
        let part = Part::Copy { to, from };
        self.begin(Purpose::Copy { task }, SmallVec::from_iter([part]));
    }
}

/// Too much to be copied with the lock held.
pub(super) fn is_large(nbytes: u64) -> bool {
    nbytes > AT_ONCE_BYTES
}

impl MemberRecord {
    fn staged_arrays(&self) -> impl Iterator<Item = &Stage> {
        self.stages.iter().flatten()
    }

    fn bytes(&self, wanted: impl Fn(&Stage) -> bool) -> u64 {
        let stages = self.staged_arrays().filter(|stage| wanted(stage));
        stages.map(|stage| stage.block.len()).sum()
    }

    /// Its arrays are to be copied by the copier before it is sent.
    pub(super) fn is_to_be_staged(&self) -> bool {
        self.staged != Staged::Yes && is_large(self.bytes(|stage| stage.copy_in))
    }

    /// It writes arrays of the caller.
    pub(super) fn writes_back(&self) -> bool {
        self.staged_arrays().any(|stage| stage.copy_out)
    }

    /// What it writes is too much to be copied back with the lock held.
    pub(super) fn writes_much(&self) -> bool {
        is_large(self.bytes(|stage| stage.copy_out))
    }

    /// Copies what it wrote back into the caller's arrays.
    pub(super) fn copy_back(&self) -> Result<(), String> {
        for stage in self.staged_arrays().filter(|stage| stage.copy_out) {
            let copied = stage.host.copy_from(&stage.block.host());
            copied.map_err(|error| not_copied_back(&error))?;
        }
        Ok(())
    }
}

fn not_copied_back(why: &impl std::fmt::Display) -> String {
    format!("the result could not be copied back into the array: {why}")
}

impl Core {
    /// A member has run and wrote much: its worker is free, its task ends when all of it has arrived.
    pub(super) fn copy_back_later(
        &mut self,
        (task, member): (TaskId, u32),
        endpoint: EndpointId,
        mut report: TaskReport,
    ) {
        let pid = self.slot(endpoint).map_or(0, |slot| slot.info.pid);
        let Some(record) = self.records.get(&task).and_then(|r| r.member(member)) else {
            return;
        };
        let written = record.staged_arrays().filter(|stage| stage.copy_out);
        let parts = written.map(|stage| Part::Copy {
            to: stage.host.clone(),
            from: stage.block.host(),
        });
        let parts = parts.collect();
        // The way back is no part of its time.
        report.end_ns = report.end_ns.or(Some(self.now_ns));
        let purpose = Purpose::Return {
            task,
            member,
            endpoint,
            pid,
            report,
        };
        self.staging.begin(purpose, parts);
        self.feed(Event::MemberRan {
            task,
            member,
            endpoint,
        });
    }

    /// A run was cancelled: what is copied for tasks that are not begun any more need not arrive.
    pub(crate) fn call_off_staging(&mut self) {
        for pending in self.staging.pending.values() {
            if let Purpose::Send { task, .. } = pending.purpose {
                if self.is_called_off(task) {
                    pending.called_off.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn is_called_off(&self, task: TaskId) -> bool {
        self.records.get(&task).is_none() || self.scheduler.is_called_off(task)
    }

    /// An interrupted run is given up: what is still copied for it, either way, goes no further.
    pub(crate) fn call_off_copies(&mut self, run: RunId) {
        for pending in self.staging.pending.values() {
            let (Purpose::Send { task, .. }
            | Purpose::Return { task, .. }
            | Purpose::Copy { task }) = &pending.purpose;
            if self
                .records
                .get(task)
                .is_some_and(|record| record.run == run)
            {
                pending.called_off.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The copier has ended for good: what it has not copied fails.
    pub(super) fn give_up_copies(&mut self, reason: &str) {
        let pending = std::mem::take(&mut self.staging.pending);
        for pending in pending.into_values() {
            let ended = match pending.purpose {
                Purpose::Send { .. } => Ended::CalledOff,
                Purpose::Return { .. } | Purpose::Copy { .. } => Ended::Failed(reason.to_owned()),
            };
            self.settle_copy(pending.purpose, &ended);
        }
    }

    /// A job has ended.
    fn copied(&mut self, number: u64, ended: &Ended) {
        if let Some(pending) = self.staging.pending.remove(&number) {
            let before = std::mem::replace(&mut self.torn, true);
            self.tick();
            self.settle_copy(pending.purpose, ended);
            self.torn = before;
        }
    }

    fn settle_copy(&mut self, purpose: Purpose, ended: &Ended) {
        match purpose {
            Purpose::Send { task, member } => self.staged(task, member, ended),
            Purpose::Return {
                task,
                member,
                endpoint,
                pid,
                report,
            } => {
                let copied = match ended {
                    Ended::Copied => Ok(()),
                    Ended::Failed(why) => Err(not_copied_back(why)),
                    Ended::CalledOff => Err(not_copied_back(&"it was called off")),
                };
                let result = self.settle_member((task, member), (endpoint, pid), report, copied);
                self.feed(Event::MemberSettled { task, result });
            }
            Purpose::Copy { task } => self.copied_here(task, ended),
        }
    }

    /// The arrays of a member are in shared memory, or will not be.
    fn staged(&mut self, task: TaskId, member: u32, ended: &Ended) {
        let Some(record) = self.records.get_mut(&task) else {
            return;
        };
        let Work::Call { members, .. } = &mut record.work else {
            return;
        };
        let Some(part) = members.get_mut(member as usize) else {
            return;
        };
        part.staged = match ended {
            Ended::Copied => Staged::Yes,
            _ => Staged::No,
        };
        let (Some(ticket), Some(endpoint)) = (part.ticket, part.endpoint) else {
            return;
        };
        // Else its worker was lost meanwhile: it waits for another place, or has ended.
        let waits = |slot: &mut EndpointSlot| slot.take_untaken(ticket);
        if self.endpoints.at_work(endpoint).and_then(waits).is_none() {
            return;
        }
        let returned = Event::MemberReturned {
            task,
            member,
            endpoint,
            hold: false,
        };
        let cancelled = self.scheduler.is_called_off(task);
        let event = match ended {
            Ended::Failed(message) => {
                let slot = self.endpoints.get(endpoint.0 as usize);
                record.fail(FailureKind::Failed, slot, message.clone());
                Some(Event::MemberDone {
                    task,
                    member,
                    endpoint,
                    result: MemberResult::Failed,
                })
            }
            Ended::Copied if !cancelled => match self.conditions_of(task) {
                Some(after) => self.dispatch(task, member, endpoint, &after),
                None => Some(returned),
            },
            Ended::Copied | Ended::CalledOff => Some(returned),
        };
        if let Some(event) = event {
            self.feed(event);
        }
    }
}

impl Engine {
    /// The copier has ended a job.
    pub(super) fn tell_copied(&self, number: u64, ended: &Ended) {
        let mut core = self.core.lock();
        if core.torn {
            return;
        }
        core.copied(number, ended);
        let errands = core.has_errands();
        drop(core);
        if errands {
            self.call_driver();
        } else {
            self.wake();
        }
    }
}
