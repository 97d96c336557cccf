//! A session whose every byte the test decides: daemon, command lane and health lane on loopback, version 1 unless told otherwise.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use echelon_runtime::channel::Until;
use echelon_runtime::endpoint::{
    ControlFailure, ControlReply, ControlRequest, Endpoint, EndpointEvent, OutboundTask,
    OutboundTensor, SubmitError, TaskReport, Ticket,
};
use echelon_runtime::remote::{RemoteEndpoint, StartError};
use echelon_runtime::{Callable, RemoteWorkerSpec};
use echelon_wire::bootstrap::{json_len, DaemonReply, Manifest, SessionPorts};
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::ImportTarget;
use echelon_wire::codec::{Encode, Writer};
use echelon_wire::frame::health::health_frame;
use echelon_wire::frame::{
    encode_frame, Completion, ControlName, ControlReply as ReplyFrame, Credits, FailureKind,
    Features, FrameHeader, FrameType, Hello, ReadyState, TimedCompletion,
};
use echelon_wire::id::{Sequence, SessionId, WorkerId};
use echelon_wire::limits::HEADER_BYTES;

/// Long enough that no machine is too slow for it; nothing waits so long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const SESSION: SessionId = SessionId(7);
pub(crate) const WORKER: WorkerId = WorkerId(3);
const CREDITS: Credits = Credits {
    max_commands: 64,
    max_bytes: 1 << 30,
    max_frame_bytes: 16 << 20,
};
const PERIOD: Duration = Duration::from_millis(20);

/// The session's side of both lanes after HELLO.
pub(crate) struct Session {
    features: Features,
    pub(crate) command: TcpStream,
    pub(crate) health: TcpStream,
    pub(crate) manifest: Manifest,
}

/// What the session got.
pub(crate) struct Received {
    pub(crate) header: FrameHeader,
    pub(crate) payload: Vec<u8>,
}

/// The daemon's socket and what it was asked for.
pub(crate) struct Bootstrap {
    pub(crate) stream: TcpStream,
    pub(crate) manifest: Manifest,
}

impl Bootstrap {
    pub(crate) fn accept(daemon: &TcpListener) -> Self {
        let (mut stream, _) = daemon.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix).unwrap();
        let mut json = vec![0; json_len(prefix).unwrap()];
        stream.read_exact(&mut json).unwrap();
        let manifest = Manifest::from_json(&json).unwrap();
        Self { stream, manifest }
    }

    pub(crate) fn answer(&mut self, host: &str, command_port: u16, health_port: u16) {
        let ports = SessionPorts {
            command_host: host.to_owned(),
            command_port,
            health_host: host.to_owned(),
            health_port,
        };
        let reply = DaemonReply::Ok { ports, pid: 1 };
        self.stream.write_all(&reply.to_frame().unwrap()).unwrap();
    }

    /// True when the parent has closed this connection.
    pub(crate) fn ended(mut self) -> bool {
        matches!(self.stream.read(&mut [0; 16]), Ok(0) | Err(_))
    }
}

pub(crate) fn hello() -> Hello<'static> {
    Hello {
        session_id: SESSION,
        worker_id: WORKER,
        comm_profile: Cow::Borrowed("sim"),
        feature_flags: 0,
        ready_state: ReadyState::Ready,
    }
}

pub(crate) fn frame(kind: FrameType, sequence: Sequence, payload: &[u8]) -> Vec<u8> {
    encode_frame(kind, SESSION, WORKER, sequence, payload).unwrap()
}

/// The frame with which a session answers a task.
pub(crate) fn completion(
    features: Features,
    sequence: Sequence,
    failure_kind: FailureKind,
    text: &str,
) -> Vec<u8> {
    if features.contains(Features::TIMED_COMPLETION) {
        let done = TimedCompletion {
            sequence,
            error_code: i32::from(failure_kind != FailureKind::None),
            failure_kind,
            start_ns: 1,
            end_ns: 2,
            error_message: text.into(),
            result: Vec::new().into(),
        };
        return frame(
            FrameType::TimedCompletion,
            sequence,
            &done.to_bytes().unwrap(),
        );
    }
    let done = match failure_kind {
        FailureKind::None => Completion::success(sequence),
        _ => Completion::failure(sequence, text),
    };
    frame(FrameType::Completion, sequence, &done.to_bytes().unwrap())
}

pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Session {
    /// The part of a daemon and a session up to READY.
    pub(crate) fn open(daemon: &TcpListener, hello: &Hello<'_>, credits: Option<Credits>) -> Self {
        let mut bootstrap = Bootstrap::accept(daemon);
        let lanes = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [command, health] = lanes.each_ref().map(|l| l.local_addr().unwrap().port());
        bootstrap.answer("127.0.0.1", command, health);
        let mut command = accept(&lanes[0]);
        let mut payload = Writer::new();
        hello.encode_with(credits.as_ref(), &mut payload).unwrap();
        command
            .write_all(&frame(FrameType::Hello, Sequence(0), payload.as_bytes()))
            .unwrap();
        let health = accept(&lanes[1]);
        let manifest = bootstrap.manifest;
        Self {
            features: Features::from_bits(hello.feature_flags),
            command,
            health,
            manifest,
        }
    }

    /// The next frame; `None` when the parent has closed.
    pub(crate) fn receive(&mut self) -> Option<Received> {
        let mut bytes = [0; HEADER_BYTES];
        self.command.read_exact(&mut bytes).ok()?;
        let header = FrameHeader::decode(&bytes).unwrap();
        assert_eq!((header.session_id, header.worker_id), (SESSION, WORKER));
        let mut payload = vec![0; header.payload_bytes as usize];
        self.command.read_exact(&mut payload).ok()?;
        Some(Received { header, payload })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A parent that has gone is noticed by the next read.
        let _ = self.command.write_all(bytes);
    }

    pub(crate) fn complete(&mut self, sequence: Sequence) {
        self.send(&completion(self.features, sequence, FailureKind::None, ""));
    }

    pub(crate) fn reply(&mut self, sequence: Sequence, name: ControlName, result: &[u8]) {
        let payload = ReplyFrame::success(sequence, name, 1, result)
            .to_bytes()
            .unwrap();
        self.send(&frame(FrameType::ControlReply, sequence, &payload));
    }

    /// Sends HEALTH until the returned value is dropped.
    pub(crate) fn beat(&self) -> Beats {
        let mut stream = self.health.try_clone().unwrap();
        let (stop, stopped) = channel::<()>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            for count in 1.. {
                let beat = health_frame(SESSION, WORKER, Sequence(count)).unwrap();
                if stream.write_all(&beat).is_err() {
                    return;
                }
                let _ = tell.send(());
                if stopped.recv_timeout(PERIOD)
                    == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
                {
                    return;
                }
            }
        });
        Beats {
            stop: Some(stop),
            told,
            thread: Some(thread),
        }
    }

    /// Reads until the parent has closed. It has to: a session that it gave up is told so by the end of the lane, at once.
    pub(crate) fn drain(&mut self) {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        let ended = std::io::copy(&mut self.command, &mut std::io::sink());
        let is_late = matches!(&ended, Err(error) if matches!(error.kind(), TimedOut | WouldBlock));
        assert!(!is_late, "the parent did not close the command lane");
    }
}

/// The thread that sends HEALTH.
pub(crate) struct Beats {
    stop: Option<Sender<()>>,
    told: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Beats {
    /// Returns when so much time has passed, measured by beats that were sent.
    pub(crate) fn last(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && self.told.recv_timeout(PATIENCE).is_ok() {}
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The parent's side.
pub(crate) struct Parent {
    pub(crate) endpoint: RemoteEndpoint,
    rung: Receiver<()>,
    next: u64,
    /// The session's thread; joined on drop.
    session: Option<JoinHandle<()>>,
}

pub(crate) fn start(
    endpoint: &str,
    timeout: Duration,
    within: Duration,
) -> Result<(RemoteEndpoint, Receiver<()>), StartError> {
    let spec = RemoteWorkerSpec {
        endpoint: endpoint.to_owned(),
        ..RemoteWorkerSpec::default()
    };
    let manifest = spec.manifest(SESSION.0, WORKER.0, 4, timeout, Vec::new(), Vec::new());
    let (ring, rung) = channel();
    let ring = Arc::new(move || {
        // A test that is over hears no bell.
        let _ = ring.send(());
    });
    let until = Until::new(Instant::now() + within);
    let endpoint = RemoteEndpoint::start(&spec, manifest, timeout, ring, &until)?;
    Ok((endpoint, rung))
}

impl Parent {
    /// A parent of a session that does what `script` says.
    pub(crate) fn of(timeout: Duration, script: impl FnOnce(Session) + Send + 'static) -> Self {
        Self::with_hello(timeout, hello(), script)
    }

    pub(crate) fn with_hello(
        timeout: Duration,
        hello: Hello<'static>,
        script: impl FnOnce(Session) + Send + 'static,
    ) -> Self {
        Self::with_credits(timeout, hello, None, script)
    }

    /// A parent of a session that accepts these extensions.
    pub(crate) fn over(features: Features, script: impl FnOnce(Session) + Send + 'static) -> Self {
        let hello = Hello {
            feature_flags: features.bits(),
            ..hello()
        };
        let credits = features.contains(Features::PIPELINING).then_some(CREDITS);
        Self::with_credits(PATIENCE, hello, credits, script)
    }

    /// A parent of a session that announces these credits after its HELLO.
    pub(crate) fn with_credits(
        timeout: Duration,
        hello: Hello<'static>,
        credits: Option<Credits>,
        script: impl FnOnce(Session) + Send + 'static,
    ) -> Self {
        let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = daemon.local_addr().unwrap().to_string();
        let session = std::thread::spawn(move || script(Session::open(&daemon, &hello, credits)));
        let (endpoint, rung) = start(&at, timeout, PATIENCE).unwrap();
        Self {
            endpoint,
            rung,
            next: 0,
            session: Some(session),
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    pub(crate) fn submit(&mut self, tensors: &[OutboundTensor]) -> Result<Ticket, SubmitError> {
        self.submit_with(tensors, &[])
    }

    /// A task that is to be skipped unless these complete.
    pub(crate) fn submit_after(&mut self, after: &[Ticket]) -> Result<Ticket, SubmitError> {
        self.submit_with(&[], after)
    }

    fn submit_with(
        &mut self,
        tensors: &[OutboundTensor],
        after: &[Ticket],
    ) -> Result<Ticket, SubmitError> {
        let callable = Callable::import(ImportTarget::parse("m:noop").unwrap());
        let task = OutboundTask {
            callable: &callable,
            config: &CallConfig::default(),
            tensors,
            scalars: &[1, u64::MAX],
            after,
        };
        let ticket = self.ticket();
        self.endpoint.submit(ticket, &task).map(|()| ticket)
    }

    /// The next event; the bell has to ring for it.
    pub(crate) fn event(&mut self) -> EndpointEvent {
        loop {
            if let Some(event) = self.endpoint.poll_event() {
                return event;
            }
            self.rung.recv_timeout(PATIENCE).unwrap();
        }
    }

    /// Sleeps until the bell rings.
    pub(crate) fn sleep_until_rung(&self) {
        self.rung.recv_timeout(PATIENCE).unwrap();
    }

    pub(crate) fn run(&mut self, tensors: &[OutboundTensor]) -> TaskReport {
        let wanted = self.submit(tensors).unwrap();
        match self.event() {
            EndpointEvent::Done { ticket, report } if ticket == wanted => report,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn control(
        &mut self,
        request: ControlRequest,
    ) -> Result<ControlReply, ControlFailure> {
        let wanted = self.ticket();
        self.endpoint.control(wanted, request).unwrap();
        match self.event() {
            EndpointEvent::ControlDone { ticket, result } if ticket == wanted => result,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn lost(&mut self) -> String {
        match self.event() {
            EndpointEvent::Lost { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Demands that it is lost for good, with this in the reason, and says so once.
    pub(crate) fn lost_for_good(mut self, because: &str) {
        let reason = self.lost();
        assert!(reason.contains(because), "{reason:?} has no {because:?}");
        assert!(matches!(self.submit(&[]), Err(SubmitError::Gone(_))));
        let ticket = self.ticket();
        let gone = self
            .endpoint
            .control(ticket, ControlRequest::Alloc { nbytes: 1 });
        assert_eq!(gone.unwrap_err().reason, reason);
        self.end_session();
        assert!(self.endpoint.poll_event().is_none(), "the verdict is final");
    }

    /// Waits for the session's script.
    pub(crate) fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            session.join().unwrap();
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.endpoint.kill("the test is over");
        if let Some(session) = self.session.take() {
            let ended = session.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}
