//! An endpoint that does what a test says: tasks wait for a verdict, controls are carried out over memory of this process, and
//! any of them can be refused, held or be the moment at which the endpoint is lost.

mod buffers;
mod handle;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::callable::Digest;
use echelon_wire::id::WorkerId;
use echelon_wire::limits::MAX_PAYLOAD_BYTES;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::callable::Callable;
use crate::endpoint::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, EndpointEvent, EndpointGone,
    EndpointInfo, OutboundTask, OutboundTensor, Place, RegisterStep, SubmitError, TaskFailure,
    TaskReport, Ticket,
};
use crate::mailbox::Bell;
use buffers::Buffers;
pub use buffers::FakeWorld;

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A task as the fake received it.
#[derive(Clone)]
pub struct FakeTask {
    /// Its ticket.
    pub ticket: Ticket,
    /// What to call.
    pub callable: Callable,
    /// Tensor arguments.
    pub tensors: Vec<OutboundTensor>,
    /// Scalar arguments.
    pub scalars: Vec<u64>,
    /// Tasks that must have completed.
    pub after: Vec<Ticket>,
}

/// What becomes of a task when it is submitted.
#[derive(Clone, Debug)]
pub enum TaskVerdict {
    /// It stays in flight until the test completes, fails or loses it.
    Hold,
    /// It completes at once.
    Done,
    /// It completes at once, and the answer is an event only once somebody [reads](Endpoint::read).
    DoneUnread,
    /// It fails at once with this text.
    Fail(String),
    /// It fails at once with this text, and not by its callable's doing.
    FailByInfrastructure(String),
    /// `submit` refuses it with this text.
    Refuse(String),
    /// The endpoint is lost for this reason: `submit` says so, and the loss is reported as an event.
    Lose(String),
}

/// What becomes of a control.
#[derive(Clone, Debug)]
pub enum ControlVerdict {
    /// It is carried out and answered.
    Carry,
    /// It is answered with this refusal and not carried out.
    Refuse(String),
    /// It is carried out, and the answer is a refusal all the same: the worst kind of failure.
    CarryAndRefuse(String),
    /// It is answered as unsupported.
    Unsupported,
    /// It is answered with this, whatever was asked for.
    Answer(Box<ControlReply>),
    /// It waits for [`FakeHandle::answer_held`].
    Hold,
    /// It is accepted and the endpoint is lost before it is carried out.
    Lose(String),
}

type TaskRule = Box<dyn FnMut(&FakeTask) -> TaskVerdict + Send>;
type ControlRule = Box<dyn FnMut(&ControlRequest) -> ControlVerdict + Send>;
type CloseRule = Arc<dyn Fn(u32) -> Result<(), String> + Send + Sync>;

struct State {
    shares_memory: bool,
    functions: HashSet<Digest>,
    prepared: HashSet<Digest>,
    buffers: Buffers,
    /// Tasks in flight.
    held: BTreeMap<Ticket, FakeTask>,
    /// All tasks that were accepted.
    submitted: Vec<FakeTask>,
    held_controls: VecDeque<(Ticket, ControlRequest)>,
    /// All controls that were accepted.
    controls: Vec<ControlRequest>,
    events: VecDeque<EndpointEvent>,
    /// Not read yet.
    unread: Vec<EndpointEvent>,
    on_task: TaskRule,
    on_control: ControlRule,
    /// `kill` makes it refuse work, and the test says when the loss is reported.
    dies_slowly: bool,
    on_close: CloseRule,
    /// How often it was asked to end.
    closes: u32,
    gone: Option<String>,
    lost: bool,
    takes_conditions: bool,
    /// What tasks say to have taken.
    took_ns: Option<u64>,
}

struct Shared {
    info: EndpointInfo,
    bell: Arc<Bell>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The endpoint's side.
pub struct FakeEndpoint(Arc<Shared>);

/// The test's side.
#[derive(Clone)]
pub struct FakeHandle(Arc<Shared>);

impl FakeWorld {
    /// A fake that shares memory with the parent, like a thread or a child. It completes every task at once until told
    /// otherwise.
    pub fn local(self: &Arc<Self>, name: &str, capacity: u32) -> (Box<dyn Endpoint>, FakeHandle) {
        self.endpoint(name, capacity, None)
    }

    /// A fake session `worker` with remote buffers of its own.
    pub fn remote(self: &Arc<Self>, worker: i32, capacity: u32) -> (Box<dyn Endpoint>, FakeHandle) {
        self.endpoint(&format!("remote{worker}"), capacity, Some(worker))
    }

    /// As [`Self::remote`], a later session of the same worker: number `later`, from 1.
    pub fn remote_again(
        self: &Arc<Self>,
        worker: i32,
        capacity: u32,
        later: u32,
    ) -> (Box<dyn Endpoint>, FakeHandle) {
        let name = format!("remote{worker}");
        self.session(&name, capacity, Some(worker), later)
    }

    fn endpoint(
        self: &Arc<Self>,
        name: &str,
        capacity: u32,
        worker: Option<i32>,
    ) -> (Box<dyn Endpoint>, FakeHandle) {
        self.session(name, capacity, worker, 0)
    }

    fn session(
        self: &Arc<Self>,
        name: &str,
        capacity: u32,
        worker: Option<i32>,
        later: u32,
    ) -> (Box<dyn Endpoint>, FakeHandle) {
        let info = EndpointInfo {
            name: name.to_owned(),
            pid: 0,
            capacity,
            depth: capacity,
            shares_memory: worker.is_none(),
            session: worker.map(|id| 1000 * (1 + u64::from(later)) + u64::from(id.unsigned_abs())),
            frame_bytes: MAX_PAYLOAD_BYTES,
            copy_step: None,
        };
        let state = State {
            shares_memory: worker.is_none(),
            functions: HashSet::new(),
            prepared: HashSet::new(),
            buffers: Buffers::new(WorkerId(worker.unwrap_or(-1)), Arc::clone(self)),
            held: BTreeMap::new(),
            submitted: Vec::new(),
            held_controls: VecDeque::new(),
            controls: Vec::new(),
            events: VecDeque::new(),
            unread: Vec::new(),
            on_task: Box::new(|_| TaskVerdict::Done),
            on_control: Box::new(|_| ControlVerdict::Carry),
            dies_slowly: false,
            on_close: Arc::new(|_| Ok(())),
            closes: 0,
            gone: None,
            lost: false,
            takes_conditions: false,
            took_ns: None,
        };
        let shared = Arc::new(Shared {
            info,
            bell: Arc::clone(self.bell()),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        (
            Box::new(FakeEndpoint(Arc::clone(&shared))),
            FakeHandle(shared),
        )
    }
}

impl Shared {
    fn announce(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.changed.notify_all();
        self.bell.ring();
    }

    fn gone(&self, state: &State) -> Option<EndpointGone> {
        state.gone.as_ref().map(|reason| EndpointGone {
            name: self.info.name.clone(),
            reason: reason.clone(),
        })
    }
}

impl State {
    fn lose(&mut self, reason: &str, unstarted: Vec<Ticket>) {
        self.gone.get_or_insert_with(|| reason.to_owned());
        if !std::mem::replace(&mut self.lost, true) {
            self.held.clear();
            self.held_controls.clear();
            self.buffers.clear();
            self.events.push_back(EndpointEvent::Lost {
                reason: reason.to_owned(),
                unstarted,
            });
        }
    }

    fn cannot_name(&self, task: &FakeTask) -> Option<String> {
        let foreign = task.tensors.iter().position(|tensor| match tensor.place {
            Place::Empty => false,
            Place::Shared { .. } => !self.shares_memory,
            Place::Inline(_) | Place::Remote(_) => self.shares_memory,
        });
        foreign.map(|index| format!("argument {index} is in memory that cannot be named here"))
    }

    fn carry(
        &mut self,
        name: &str,
        request: ControlRequest,
    ) -> Result<ControlReply, ControlFailure> {
        match request {
            ControlRequest::Register { step, callable, .. } => {
                match step {
                    RegisterStep::Prepare => {
                        self.prepared.insert(callable.digest);
                    }
                    RegisterStep::Commit => {
                        if !self.prepared.remove(&callable.digest) {
                            return Err(ControlFailure::Refused("not prepared".into()));
                        }
                        self.functions.insert(callable.digest);
                    }
                    RegisterStep::Abort => {
                        self.prepared.remove(&callable.digest);
                    }
                }
                Ok(ControlReply::Done)
            }
            ControlRequest::Unregister { digest, .. } => {
                self.prepared.remove(&digest);
                self.functions.remove(&digest);
                Ok(ControlReply::Done)
            }
            ControlRequest::DropRegion { .. } if self.shares_memory => Ok(ControlReply::Done),
            ControlRequest::CollectTrace => Err(unsupported(name, "a timeline")),
            request => {
                let in_flight: Vec<&OutboundTensor> =
                    self.held.values().flat_map(|task| &task.tensors).collect();
                self.buffers.carry(name, request, &in_flight)
            }
        }
    }
}

fn unsupported(name: &str, what: &'static str) -> ControlFailure {
    ControlFailure::Unsupported {
        what,
        worker: name.to_owned(),
        hint: "it is a fake",
    }
}

/// `took_ns` is what the task says to have taken.
fn done(ticket: Ticket, failure: Option<TaskFailure>, took_ns: Option<u64>) -> EndpointEvent {
    EndpointEvent::Done {
        ticket,
        report: TaskReport {
            failure,
            start_ns: took_ns.map(|_| 0),
            end_ns: took_ns,
        },
    }
}

impl Endpoint for FakeEndpoint {
    fn info(&self) -> EndpointInfo {
        self.0.info.clone()
    }

    fn submit(&mut self, ticket: Ticket, task: &OutboundTask<'_>) -> Result<(), SubmitError> {
        let mut state = self.0.state.lock();
        if let Some(gone) = self.0.gone(&state) {
            return Err(gone.into());
        }
        let task = FakeTask {
            ticket,
            callable: task.callable.clone(),
            tensors: task.tensors.to_vec(),
            scalars: task.scalars.to_vec(),
            after: task.after.to_vec(),
        };
        if let Some(message) = state.cannot_name(&task) {
            return Err(SubmitError::Refused(message));
        }
        let verdict = (state.on_task)(&task);
        if let TaskVerdict::Refuse(message) = verdict {
            return Err(SubmitError::Refused(message));
        }
        if let TaskVerdict::Lose(reason) = verdict {
            state.lose(&reason, Vec::new());
            let gone = self.0.gone(&state);
            self.0.announce(state);
            return gone.map_or(Ok(()), |gone| Err(gone.into()));
        }
        state.submitted.push(task.clone());
        let fault = task
            .tensors
            .iter()
            .find_map(|tensor| state.buffers.check_live(tensor).err());
        let known = state.functions.contains(&task.callable.digest);
        let verdict = match (fault, known) {
            (Some(fault), _) => TaskVerdict::Fail(fault),
            (None, false) => TaskVerdict::Fail(format!("{} is not registered", task.callable.name)),
            (None, true) => verdict,
        };
        match verdict {
            TaskVerdict::Done => {
                let event = done(ticket, None, state.took_ns);
                state.events.push_back(event);
            }
            TaskVerdict::DoneUnread => {
                let event = done(ticket, None, state.took_ns);
                state.unread.push(event);
            }
            TaskVerdict::Fail(message) => {
                let failure = TaskFailure::raised(message);
                state.events.push_back(done(ticket, Some(failure), None));
            }
            TaskVerdict::FailByInfrastructure(message) => {
                let failure = TaskFailure::infrastructure(message);
                state.events.push_back(done(ticket, Some(failure), None));
            }
            _ => {
                state.held.insert(ticket, task);
            }
        }
        self.0.announce(state);
        Ok(())
    }

    fn takes_conditions(&self) -> bool {
        self.0.state.lock().takes_conditions
    }

    fn control(&mut self, ticket: Ticket, request: ControlRequest) -> Result<(), EndpointGone> {
        let mut state = self.0.state.lock();
        if let Some(gone) = self.0.gone(&state) {
            return Err(gone);
        }
        state.controls.push(request.clone());
        let name = &self.0.info.name;
        let result = match (state.on_control)(&request) {
            ControlVerdict::Carry => state.carry(name, request),
            ControlVerdict::Refuse(text) => Err(ControlFailure::Refused(text)),
            ControlVerdict::CarryAndRefuse(text) => {
                let _ = state.carry(name, request);
                Err(ControlFailure::Refused(text))
            }
            ControlVerdict::Answer(reply) => Ok(*reply),
            ControlVerdict::Unsupported => Err(unsupported(name, "it")),
            ControlVerdict::Hold => {
                state.held_controls.push_back((ticket, request));
                self.0.announce(state);
                return Ok(());
            }
            ControlVerdict::Lose(reason) => {
                state.lose(&reason, Vec::new());
                self.0.announce(state);
                return Ok(());
            }
        };
        state
            .events
            .push_back(EndpointEvent::ControlDone { ticket, result });
        self.0.announce(state);
        Ok(())
    }

    fn read(&mut self) {
        let mut state = self.0.state.lock();
        let unread = std::mem::take(&mut state.unread);
        state.events.extend(unread);
    }

    fn poll_event(&mut self) -> Option<EndpointEvent> {
        self.0.state.lock().events.pop_front()
    }

    fn kill(&mut self, reason: &str) {
        let mut state = self.0.state.lock();
        if state.dies_slowly {
            state.gone.get_or_insert_with(|| reason.to_owned());
        } else {
            // Like a child: it works on one task at a time, in order.
            let begun = if state.shares_memory { 1 } else { usize::MAX };
            let unstarted = state.held.keys().skip(begun).copied().collect();
            state.lose(reason, unstarted);
        }
        self.0.announce(state);
    }

    fn begin_close(&mut self) {
        let mut state = self.0.state.lock();
        state
            .gone
            .get_or_insert_with(|| "it was told to end".into());
        self.0.announce(state);
    }

    fn finish_close(&mut self, _deadline: Instant) -> Result<(), String> {
        self.begin_close();
        let (rule, count) = {
            let mut state = self.0.state.lock();
            state.closes += 1;
            (Arc::clone(&state.on_close), state.closes)
        };
        // Without the lock: the rule may call back.
        rule(count)
    }
}
