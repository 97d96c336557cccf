//! Worker threads: native closures on a thread of this process, for trees without Python.

use std::collections::HashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, Sender};
use echelon_wire::callable::Digest;
use echelon_wire::limits::MAX_PAYLOAD_BYTES;

use super::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, EndpointEvent, EndpointGone,
    EndpointInfo, OutboundTask, OutboundTensor, Place, RegisterStep, SubmitError, TaskFailure,
    TaskReport, Ticket,
};
use crate::callable::{CallableSource, NativeFn};
use crate::mailbox::Bell;
use crate::tensor::{Tag, TaskView, Tensor};
use crate::text::panic_text;
use crate::trace::now_ns;

/// Tasks that may wait in a thread's queue, the running one included.
const CAPACITY: u32 = 4;

struct Job {
    ticket: Ticket,
    function: Arc<NativeFn>,
    view: TaskView,
}

/// One worker thread.
pub struct ThreadEndpoint {
    name: String,
    functions: HashMap<Digest, Arc<NativeFn>>,
    jobs: Option<Sender<Job>>,
    done: Receiver<EndpointEvent>,
    answers: Sender<EndpointEvent>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    bell: Arc<Bell>,
}

impl ThreadEndpoint {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(name: String, bell: Arc<Bell>) -> std::io::Result<Self> {
        let (jobs, incoming) = bounded::<Job>(CAPACITY as usize);
        let (answers, done) = unbounded();
        let (end, ended) = bounded(1);
        let (results, ring) = (answers.clone(), Arc::clone(&bell));
        let thread = std::thread::Builder::new()
            .name(format!("echelon-{name}"))
            .spawn(move || {
                for job in incoming {
                    let event = perform(job);
                    // The receiver lives as long as the endpoint, which joins this thread.
                    let _ = results.send(event);
                    ring.ring();
                }
                let _ = end.send(());
            })?;
        let jobs = Some(jobs);
        Ok(Self {
            name,
            functions: HashMap::new(),
            jobs,
            done,
            answers,
            ended,
            thread: Some(thread),
            bell,
        })
    }

    fn gone(&self) -> EndpointGone {
        EndpointGone {
            name: self.name.clone(),
            reason: "the thread was told to end".into(),
        }
    }

    fn answer(
        &self,
        request: ControlRequest,
        functions: &mut Vec<(Digest, Option<Arc<NativeFn>>)>,
    ) -> Result<ControlReply, ControlFailure> {
        match request {
            ControlRequest::Register {
                step: RegisterStep::Prepare,
                callable,
                ..
            } => match callable.source {
                CallableSource::Native(function) => {
                    functions.push((callable.digest, Some(function)));
                    Ok(ControlReply::Done)
                }
                _ => Err(self.unsupported("a Python callable", "use sub worker processes")),
            },
            ControlRequest::Register {
                step: RegisterStep::Abort,
                callable,
                ..
            } => {
                functions.push((callable.digest, None));
                Ok(ControlReply::Done)
            }
            ControlRequest::Unregister { digest, .. } => {
                functions.push((digest, None));
                Ok(ControlReply::Done)
            }
            ControlRequest::Register {
                step: RegisterStep::Commit,
                ..
            }
            | ControlRequest::Fence { .. }
            | ControlRequest::DropRegion { .. } => Ok(ControlReply::Done),
            _ => Err(self.unsupported(
                "a remote buffer",
                "use Orchestrator::alloc, memory is shared",
            )),
        }
    }

    fn unsupported(&self, what: &'static str, hint: &'static str) -> ControlFailure {
        ControlFailure::Unsupported {
            what,
            worker: self.name.clone(),
            hint,
        }
    }
}

fn perform(job: Job) -> EndpointEvent {
    let start_ns = now_ns();
    let failure = match catch_unwind(AssertUnwindSafe(|| (job.function)(job.view))) {
        Ok(Ok(())) => None,
        Ok(Err(message)) => Some(TaskFailure::raised(message)),
        Err(panic) => Some(TaskFailure::raised(format!(
            "panicked: {}",
            panic_text(&*panic)
        ))),
    };
    let report = TaskReport {
        failure,
        start_ns: Some(start_ns),
        end_ns: Some(now_ns()),
    };
    EndpointEvent::Done {
        ticket: job.ticket,
        report,
    }
}

/// The view that a callable in this process gets of shared arguments.
fn view_of(tensors: &[OutboundTensor], task: &OutboundTask<'_>) -> Result<TaskView, String> {
    let mut view = TaskView {
        tensors: Vec::new(),
        tags: Vec::new(),
        scalars: task.scalars.to_vec(),
        config: task.config.clone(),
    };
    for tensor in tensors {
        let Place::Shared {
            region,
            offset,
            lease,
        } = &tensor.place
        else {
            return Err("a worker thread sees shared memory only".into());
        };
        let read_only = tensor.tag == Tag::Input;
        let made = Tensor::new(
            tensor.meta,
            Arc::clone(region),
            *offset,
            lease.clone(),
            read_only,
        );
        view.tensors.push(made.map_err(|error| error.to_string())?);
        view.tags.push(Some(tensor.tag));
    }
    Ok(view)
}

impl Endpoint for ThreadEndpoint {
    fn info(&self) -> EndpointInfo {
        EndpointInfo {
            name: self.name.clone(),
            pid: 0,
            capacity: CAPACITY,
            depth: CAPACITY,
            shares_memory: true,
            session: None,
            frame_bytes: MAX_PAYLOAD_BYTES,
            copy_step: None,
        }
    }

    fn submit(&mut self, ticket: Ticket, task: &OutboundTask<'_>) -> Result<(), SubmitError> {
        let function = self.functions.get(&task.callable.digest).cloned();
        let function = function.ok_or_else(|| {
            SubmitError::Refused(format!("{} is not registered here", task.callable.name))
        })?;
        let view = view_of(task.tensors, task).map_err(SubmitError::Refused)?;
        let sent = self.jobs.as_ref().map(|jobs| {
            jobs.try_send(Job {
                ticket,
                function,
                view,
            })
            .is_ok()
        });
        if sent == Some(true) {
            return Ok(());
        }
        Err(self.gone().into())
    }

    fn control(&mut self, ticket: Ticket, request: ControlRequest) -> Result<(), EndpointGone> {
        if self.jobs.is_none() {
            return Err(self.gone());
        }
        let mut changes = Vec::new();
        let result = self.answer(request, &mut changes);
        for (digest, function) in changes {
            match function {
                Some(function) => self.functions.insert(digest, function),
                None => self.functions.remove(&digest),
            };
        }
        let _ = self
            .answers
            .send(EndpointEvent::ControlDone { ticket, result });
        self.bell.ring();
        Ok(())
    }

    fn poll_event(&mut self) -> Option<EndpointEvent> {
        self.done.try_recv().ok()
    }

    fn may_ring(&self) -> bool {
        false
    }

    fn kill(&mut self, reason: &str) {
        tracing::warn!(worker = %self.name, reason, "a thread cannot be killed; its task goes on");
    }

    fn begin_close(&mut self) {
        self.jobs = None;
    }

    fn finish_close(&mut self, deadline: Instant) -> Result<(), String> {
        self.jobs = None;
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        if self.ended.recv_timeout(left).is_err() && !thread.is_finished() {
            self.thread = Some(thread);
            return Err(format!("thread {} is still in its task", self.name));
        }
        thread
            .join()
            .map_err(|_| format!("thread {} panicked", self.name))
    }
}

impl Drop for ThreadEndpoint {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Closures end by themselves: joining is the only way not to leave a thread behind.
            let _ = thread.join();
        }
    }
}
