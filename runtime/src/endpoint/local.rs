//! The local endpoint: a child process behind a mailbox.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_wire::buffer::{LocalFlags, RemoteTensorDesc};
use echelon_wire::callable::RegistryTarget;
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};
use parking_lot::Mutex;

use super::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, EndpointEvent, EndpointGone,
    EndpointInfo, OutboundTask, OutboundTensor, Place, RegisterStep, SubmitError, TaskFailure,
    TaskReport, Ticket,
};
use crate::callable::Callable;
use crate::child::command_line;
use crate::child::records::{self, Answer, Done, Install, Remove};
use crate::child::regions::region_message;
use crate::error::Error;
use crate::mailbox::{layout, Bell, Mailbox, MailboxError, ParentSide, RecordHead};
use crate::memory::SharedRegion;
use crate::process::{region_socket_pair, send_fd, ChildHandle, ChildSpec, ExitInfo, Keeper};
use crate::tensor::Tag;
use crate::worker::ChildProgram;

/// Tasks in a child's queue, the running one included: enough to hide the way back, few enough to leave work for others.
const CAPACITY: u32 = 2;

/// How long a child that was killed may take to be reaped.
const REAP_WITHIN: Duration = Duration::from_secs(2);

/// What a local child is started with.
pub struct LocalSpec {
    /// Name in messages.
    pub name: String,
    /// What to execute.
    pub program: ChildProgram,
    /// Environment on top of this process's.
    pub env: Vec<(OsString, OsString)>,
    /// Regions that the child inherits.
    pub regions: Vec<Arc<SharedRegion>>,
    /// The plan of a child with a runtime of its own, as JSON of `LevelPlan`.
    pub plan: Option<Vec<u8>>,
    /// How long it may take to say READY.
    pub ready_within: Duration,
}

/// One child process and its mailbox.
pub struct LocalEndpoint {
    name: String,
    side: ParentSide,
    bell: Arc<Bell>,
    child: ChildHandle,
    /// Put there by the keeper when the child has ended.
    exit: Arc<Mutex<Option<ExitInfo>>>,
    /// The child's primary watch on us, and the way of descriptors to it.
    socket: OwnedFd,
    /// Regions that the child has, or whose descriptors are on their way.
    sent: HashSet<u64>,
    /// Records that wait for room in the ring.
    waiting: VecDeque<(RecordHead, Vec<u8>)>,
    /// Answers that need nothing from the child.
    answers: VecDeque<EndpointEvent>,
    payload: Vec<u8>,
    ready: bool,
    ready_by: Instant,
    ready_within: Duration,
    /// Why it was ended from this side, if it was.
    killed: Option<String>,
    lost: Option<String>,
    lost_told: bool,
    runtime_below: bool,
}

impl LocalEndpoint {
    /// Starts the child. It comes up on its own; what is submitted meanwhile waits in its mailbox.
    ///
    /// # Errors
    /// [`Error`] of memory or process start; nothing is left then.
    pub fn start(spec: LocalSpec, keeper: &Arc<Keeper>, bell: Arc<Bell>) -> Result<Self, Error> {
        let os = |what: &'static str, error: &dyn std::fmt::Display| Error::Startup {
            worker: spec.name.clone(),
            message: format!("{what}: {error}"),
        };
        let mailbox = Mailbox::create(layout::TASK_RING_BYTES, layout::COMPLETION_RING_BYTES);
        let side = mailbox
            .and_then(Mailbox::into_parent_side)
            .map_err(|error| os("mailbox", &error))?;
        let (socket, of_child) = region_socket_pair()?;
        let plan = spec.plan.as_deref().map(plan_file).transpose()?;
        let mut fds = vec![side.fd(), bell.fd(), of_child.as_fd()];
        fds.extend(spec.regions.iter().map(|region| region.fd()));
        fds.extend(plan.as_ref().map(AsFd::as_fd));
        let (program, mut args) =
            program_of(&spec.program).ok_or_else(|| os("start", &"no child_program is set"))?;
        let plan_fd = plan.as_ref().map(AsFd::as_fd);
        args.extend(command_line(
            side.fd(),
            bell.fd(),
            of_child.as_fd(),
            &spec.regions,
            plan_fd,
        ));
        let exit = Arc::new(Mutex::new(None));
        let (of_keeper, ring) = (Arc::clone(&exit), Arc::clone(&bell));
        let on_exit = Box::new(move |info: ExitInfo| {
            *of_keeper.lock() = Some(info);
            ring.ring();
        });
        let child_spec = ChildSpec {
            name: spec.name.clone(),
            program,
            args: args.into_iter().map(OsString::from).collect(),
            env: spec.env.clone(),
            fds: fds.iter().map(AsRawFd::as_raw_fd).collect(),
            new_session: true,
            ..ChildSpec::default()
        };
        let child = keeper.spawn(child_spec, on_exit)?;
        let sent = spec.regions.iter().map(|region| region.id()).collect();
        Ok(Self {
            side,
            bell,
            child,
            exit,
            socket,
            sent,
            waiting: VecDeque::new(),
            answers: VecDeque::new(),
            payload: Vec::new(),
            ready: false,
            ready_by: Instant::now() + spec.ready_within,
            ready_within: spec.ready_within,
            killed: None,
            lost: None,
            lost_told: false,
            runtime_below: spec.plan.is_some(),
            name: spec.name,
        })
    }

    fn gone(&self) -> Option<EndpointGone> {
        let reason = self.lost.clone().or_else(|| self.killed.clone())?;
        Some(EndpointGone {
            name: self.name.clone(),
            reason,
        })
    }

    /// Puts a record into the ring, or into the queue when there is no room: order is kept.
    fn post(&mut self, head: RecordHead, payload: &[u8]) -> Result<(), MailboxError> {
        if self.waiting.is_empty() && self.side.send(head, payload)? {
            return Ok(());
        }
        if payload.len() as u64 > self.side.payload_max() {
            return Err(MailboxError::RecordTooLarge {
                len: payload.len() as u64,
                limit: self.side.payload_max(),
            });
        }
        self.waiting.push_back((head, payload.to_vec()));
        Ok(())
    }

    fn post_waiting(&mut self) -> Result<(), MailboxError> {
        while let Some((head, payload)) = self.waiting.front() {
            if !self.side.send(*head, payload)? {
                break;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Sends the descriptor of a region that the child does not have yet.
    fn share(&mut self, region: &SharedRegion) -> Result<(), String> {
        if self.sent.contains(&region.id()) {
            return Ok(());
        }
        let sent = send_fd(&self.socket, &region_message(region), region.fd())
            .map_err(|error| format!("memory could not be shared with {}: {error}", self.name))?;
        if !sent {
            return Err(format!(
                "{} takes no memory; submit fewer new buffers at a time",
                self.name
            ));
        }
        self.sent.insert(region.id());
        Ok(())
    }

    fn describe(&mut self, tensor: &OutboundTensor) -> Result<RemoteTensorDesc, String> {
        let Place::Shared { region, offset, .. } = &tensor.place else {
            return Err(format!(
                "{} sees shared memory only; use orch.copy",
                self.name
            ));
        };
        self.share(region)?;
        let flags = LocalFlags {
            tag: Some(tensor.tag as u8),
            read_only: tensor.tag == Tag::Input,
        };
        let nbytes = tensor.meta.nbytes().unwrap_or(0);
        RemoteTensorDesc::local_shared(region.id(), *offset, nbytes, flags)
            .map_err(|error| error.to_string())
    }

    fn encode(&mut self, task: &OutboundTask<'_>) -> Result<Vec<u8>, String> {
        let mut args = TaskArgsWire {
            scalars: task.scalars.to_vec(),
            ..TaskArgsWire::default()
        };
        for tensor in task.tensors {
            args.tensors.push(tensor.meta);
            args.sidecars.push(Some(self.describe(tensor)?));
        }
        let payload = TaskPayload {
            digest: task.callable.digest,
            config: task.config.clone(),
            args,
        };
        payload
            .to_bytes(Carrier::Mailbox)
            .map_err(|error| error.to_string())
    }

    fn install(
        &mut self,
        ticket: Ticket,
        callable: &Callable,
        inner: bool,
    ) -> Result<(), ControlFailure> {
        let refused = |text: String| ControlFailure::Refused(text);
        let (kind, payload) = callable
            .payload()
            .map_err(|error| refused(error.to_string()))?;
        let install = Install {
            inner,
            digest: callable.digest,
            kind,
            name: &callable.name,
            payload: &payload,
        };
        let bytes = install
            .encode()
            .map_err(|error| refused(error.to_string()))?;
        self.request(ticket, records::INSTALL, &bytes)
    }

    fn request(&mut self, ticket: Ticket, kind: u32, payload: &[u8]) -> Result<(), ControlFailure> {
        self.post(
            RecordHead {
                kind,
                ticket: ticket.0,
            },
            payload,
        )
        .map_err(|error| ControlFailure::Refused(error.to_string()))
    }

    /// Sends what a control needs; `Ok(true)` when there is nothing to ask the child.
    fn send_control(
        &mut self,
        ticket: Ticket,
        request: ControlRequest,
    ) -> Result<bool, ControlFailure> {
        let inner = |registry: RegistryTarget| registry == RegistryTarget::InnerL3Worker;
        match request {
            ControlRequest::Register {
                step: RegisterStep::Prepare,
                callable,
                registry,
            } => {
                self.install(ticket, &callable, inner(registry))?;
            }
            ControlRequest::Register {
                step: RegisterStep::Commit,
                ..
            } => return Ok(true),
            ControlRequest::Register {
                step: RegisterStep::Abort,
                callable,
                registry,
            } => {
                let remove = Remove {
                    inner: inner(registry),
                    digest: callable.digest,
                };
                self.request(ticket, records::REMOVE, &remove.encode())?;
            }
            ControlRequest::Unregister {
                digest, registry, ..
            } => {
                let remove = Remove {
                    inner: inner(registry),
                    digest,
                };
                self.request(ticket, records::REMOVE, &remove.encode())?;
            }
            ControlRequest::DropRegion { region } => {
                self.sent.remove(&region);
                self.request(ticket, records::DROP_REGION, &region.to_le_bytes())?;
            }
            ControlRequest::CollectTrace if self.runtime_below => {
                self.request(ticket, records::COLLECT_TRACE, &[])?;
            }
            _ => {
                return Err(ControlFailure::Unsupported {
                    what: "a remote buffer",
                    worker: self.name.clone(),
                    hint: "memory is shared with local workers: use orch.alloc",
                });
            }
        }
        Ok(false)
    }

    fn event_of(&mut self, head: RecordHead) -> Result<Option<EndpointEvent>, String> {
        let ticket = Ticket(head.ticket);
        let text = |error: echelon_wire::error::DecodeError| error.to_string();
        match head.kind {
            records::READY => {
                self.ready = true;
                Ok(None)
            }
            records::DONE => {
                let done = Done::decode(&self.payload).map_err(text)?;
                let failure = done.failure.map(|message| TaskFailure {
                    message: message.to_owned(),
                });
                let report = TaskReport {
                    failure,
                    start_ns: Some(done.start_ns),
                    end_ns: Some(done.end_ns),
                };
                Ok(Some(EndpointEvent::Done { ticket, report }))
            }
            records::ANSWER => {
                let answer = Answer::decode(&self.payload).map_err(text)?;
                let result = match answer.0 {
                    Ok([]) => Ok(ControlReply::Done),
                    Ok(json) => Ok(ControlReply::Trace(json.to_vec())),
                    Err(message) => Err(ControlFailure::Refused(message.to_owned())),
                };
                Ok(Some(EndpointEvent::ControlDone { ticket, result }))
            }
            kind => Err(format!("record of unknown kind {kind}")),
        }
    }

    /// What to report when nothing more comes.
    fn end_reason(&mut self) -> Option<String> {
        if let Some(info) = self.exit.lock().clone() {
            let pid = self.child.pid();
            let why = match &self.killed {
                Some(reason) => format!("child pid {pid} was ended: {reason}"),
                None if self.ready => format!("child pid {pid} {info}"),
                None => format!(
                    "child pid {pid} {info} before it was ready; its last output is on stderr"
                ),
            };
            return Some(why);
        }
        if !self.ready && Instant::now() >= self.ready_by && self.killed.is_none() {
            self.kill(&format!("it was not ready within {:?}", self.ready_within));
        }
        None
    }

    /// The next record of the child as an event; faults of the mailbox end the child.
    fn next_record(&mut self) -> Option<EndpointEvent> {
        loop {
            let mut payload = std::mem::take(&mut self.payload);
            let received = self.side.receive(&mut payload);
            self.payload = payload;
            let event = match received {
                Ok(Some(head)) => self.event_of(head),
                Ok(None) => return None,
                Err(error) => Err(error.to_string()),
            };
            match event {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(fault) => {
                    self.kill(&format!("its mailbox is corrupt: {fault}"));
                    return None;
                }
            }
        }
    }
}

impl Endpoint for LocalEndpoint {
    fn info(&self) -> EndpointInfo {
        EndpointInfo {
            name: self.name.clone(),
            pid: self.child.pid(),
            capacity: CAPACITY,
            shares_memory: true,
            session: None,
        }
    }

    fn submit(&mut self, ticket: Ticket, task: &OutboundTask<'_>) -> Result<(), SubmitError> {
        if let Some(gone) = self.gone() {
            return Err(gone.into());
        }
        let payload = self.encode(task).map_err(SubmitError::Refused)?;
        self.post(
            RecordHead {
                kind: records::TASK,
                ticket: ticket.0,
            },
            &payload,
        )
        .map_err(|error| SubmitError::Refused(error.to_string()))
    }

    fn control(&mut self, ticket: Ticket, request: ControlRequest) -> Result<(), EndpointGone> {
        if let Some(gone) = self.gone() {
            return Err(gone);
        }
        let result = match self.send_control(ticket, request) {
            Ok(false) => return Ok(()),
            Ok(true) => Ok(ControlReply::Done),
            Err(failure) => Err(failure),
        };
        self.answers
            .push_back(EndpointEvent::ControlDone { ticket, result });
        self.bell.ring();
        Ok(())
    }

    fn poll_event(&mut self) -> Option<EndpointEvent> {
        if self.lost_told {
            return None;
        }
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if self.killed.is_none() {
            if let Err(error) = self.post_waiting() {
                self.kill(&format!("its mailbox is corrupt: {error}"));
            }
        }
        // The exit is looked at before the ring is drained: what the child said before it ended still counts.
        let ended = self.end_reason();
        if let Some(event) = self.next_record() {
            return Some(event);
        }
        let reason = ended?;
        self.side.recover(&self.bell);
        self.lost = Some(reason.clone());
        self.lost_told = true;
        Some(EndpointEvent::Lost { reason })
    }

    fn kill(&mut self, reason: &str) {
        if self.killed.is_none() {
            self.killed = Some(reason.to_owned());
            self.child.kill_group();
        }
    }

    fn begin_close(&mut self) {
        self.side.request_shutdown();
    }

    fn finish_close(&mut self, deadline: Instant) -> Result<(), String> {
        self.side.request_shutdown();
        let now = Instant::now();
        // Most of the time is for the child to end by itself; the rest is for force.
        let cooperative = now + deadline.saturating_duration_since(now).mul_f64(0.7);
        let mut ended = self.child.wait_exit(cooperative).is_some();
        if !ended {
            self.kill("it did not end when it was told to");
            ended = self
                .child
                .wait_exit(deadline.max(Instant::now() + REAP_WITHIN))
                .is_some();
        }
        if !ended {
            return Err(format!(
                "{} (pid {}) cannot be ended, not even by SIGKILL",
                self.name,
                self.child.pid()
            ));
        }
        self.side.recover(&self.bell);
        self.killed
            .get_or_insert_with(|| "it was closed".to_owned());
        Ok(())
    }
}

/// The plan in a file without a name, ready to be read from its start.
fn plan_file(json: &[u8]) -> Result<OwnedFd, Error> {
    let region_error = |error: std::io::Error| Error::Startup {
        worker: "a local child".into(),
        message: error.to_string(),
    };
    let fd = rustix::fs::memfd_create("echelon-plan", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| region_error(error.into()))?;
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, json).map_err(region_error)?;
    std::io::Seek::rewind(&mut file).map_err(region_error)?;
    Ok(file.into())
}

fn program_of(program: &ChildProgram) -> Option<(std::path::PathBuf, Vec<String>)> {
    match program {
        ChildProgram::Python { executable } => Some((
            executable.clone(),
            vec!["-m".into(), "echelon._child".into()],
        )),
        ChildProgram::Custom { program, args } => Some((program.clone(), args.clone())),
        ChildProgram::None => None,
    }
}
