//! A daemon as a child process, and a parent that knows version 1.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use echelon_wire::bootstrap::{
    frame_json, json_len, CallableEntry, DaemonReply, Manifest, SessionPorts,
};
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::{digest_of, import_descriptor, Digest, ImportTarget};
use echelon_wire::codec::{Decode as _, Encode};
use echelon_wire::frame::control::{Control, ControlName};
use echelon_wire::frame::{
    encode_frame, Completion, ControlReply, Features, FrameHeader, FrameType, Hello, ReadyState,
};
use echelon_wire::id::Sequence;
use echelon_wire::task::{Carrier, TaskArgsWire, TaskPayload};
use rustix::process::{kill_process, Pid, Signal};

/// Bound of every wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A test by its name.
pub(crate) type Case = (&'static str, fn());

/// The target's digest.
pub(crate) fn digest(target: &str) -> Digest {
    digest_of(&import_descriptor(&ImportTarget::parse(target).unwrap()))
}

/// Looks until `done`; fails when it takes too long.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within {PATIENCE:?}"
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// True while the process exists, a zombie included.
pub(crate) fn exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Sends a signal.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Runs a daemon that must refuse to start; its status and standard error.
pub(crate) fn refused(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("daemon")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.stdout.is_empty());
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The daemon's next reply; `None` when the connection ends without one.
pub(crate) fn reply(stream: &mut TcpStream) -> Option<DaemonReply> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).ok()?;
    let mut json = vec![0; json_len(prefix).unwrap()];
    stream.read_exact(&mut json).ok()?;
    Some(DaemonReply::from_json(&json).unwrap())
}

/// A running daemon whose runners are this program in `mode`.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Daemon {
    pub(crate) fn start(mode: &str, args: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(&program)
            .args(["daemon", "--insecure-loopback"])
            .args(args)
            .args([
                "--session-command",
                program.to_str().unwrap(),
                "session",
                mode,
            ])
            .env("ECHELON_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim_end()
            .strip_prefix("listening on ")
            .unwrap()
            .parse()
            .unwrap();
        Self { child, address }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its children, zombies included.
    pub(crate) fn children(&self) -> Vec<u32> {
        let mut children = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap() {
            let listed = std::fs::read_to_string(task.unwrap().path().join("children"));
            children.extend(
                listed
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
        children
    }

    /// Open descriptors and threads.
    pub(crate) fn size(&self) -> (usize, usize) {
        let count = |what| {
            std::fs::read_dir(format!("/proc/{}/{what}", self.pid()))
                .unwrap()
                .count()
        };
        (count("fd"), count("task"))
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the daemon's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes and the end of the stream; what comes back.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Option<DaemonReply> {
        let mut stream = self.connect();
        // A daemon that has refused already may have closed.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        reply(&mut stream)
    }

    pub(crate) fn ask(&self, manifest: &Manifest) -> DaemonReply {
        self.exchange(&frame_json(manifest).unwrap()).unwrap()
    }

    /// As a parent with a budget asks: the connection stays open, for the byte that says that both lanes are connected.
    pub(crate) fn ask_holding(&self, manifest: &Manifest) -> (TcpStream, DaemonReply) {
        let mut stream = self.connect();
        stream.write_all(&frame_json(manifest).unwrap()).unwrap();
        let reply = reply(&mut stream).unwrap();
        (stream, reply)
    }

    /// The text of a refusal.
    pub(crate) fn refusal(&self, manifest: &Manifest) -> String {
        match self.ask(manifest) {
            DaemonReply::Err { error, .. } => error,
            DaemonReply::Ok { .. } => panic!("a session was started"),
        }
    }

    pub(crate) fn session(&self) -> Parent {
        self.session_of(manifest())
    }

    pub(crate) fn session_of(&self, manifest: Manifest) -> Parent {
        match self.ask(&manifest) {
            DaemonReply::Ok { ports, pid } => Parent::connect(manifest, &ports, pid),
            DaemonReply::Err { error, .. } => panic!("{error}"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            signal(self.pid(), Signal::TERM);
            self.wait();
        }
    }
}

/// A manifest that a serving runner accepts.
pub(crate) fn manifest() -> Manifest {
    let entry = |target: &str| CallableEntry {
        hashid: digest(target).to_string(),
        kind: "PYTHON_IMPORT".to_owned(),
        target_registry: "REMOTE_TASK_DISPATCHER".to_owned(),
        target: Some(target.to_owned()),
        payload_version: None,
        payload_hex: None,
    };
    Manifest {
        session_id: 77,
        worker_id: 2,
        platform: "cpu".to_owned(),
        session_timeout_s: 60.0,
        remote_task_dispatcher: [
            "m:noop",
            "m:prints",
            "m:panics",
            "m:endless",
            crate::tags::DESCRIBES,
            crate::lanes::FILLS,
        ]
        .map(entry)
        .to_vec(),
        ..Manifest::default()
    }
}

/// A parent on the command lane of one session.
pub(crate) struct Parent {
    manifest: Manifest,
    pub(crate) command: TcpStream,
    pub(crate) pid: u32,
    sequence: u64,
    features: Features,
}

impl Parent {
    /// The command lane alone: the bed has no health lane.
    pub(crate) fn connect(manifest: Manifest, ports: &SessionPorts, pid: u32) -> Self {
        let command = TcpStream::connect(("127.0.0.1", ports.command_port)).unwrap();
        command.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut parent = Self {
            manifest,
            command,
            pid,
            sequence: 0,
            features: Features::NONE,
        };
        let (header, payload) = parent.receive();
        assert_eq!(header.frame_type, FrameType::Hello);
        let offered = parent.manifest.feature_flags.iter();
        parent.features = Features::from_names(offered);
        let (hello, _) = Hello::decode_with(&payload, parent.features).unwrap();
        assert_eq!(
            (hello.ready_state, hello.feature_flags),
            (ReadyState::Ready, parent.features.bits())
        );
        parent
    }

    /// What was offered and accepted.
    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// The next command gets a sequence that was used before.
    pub(crate) fn rewind(&mut self, by: u64) {
        self.sequence -= by;
    }

    /// Sends a command; its sequence.
    pub(crate) fn send(&mut self, frame_type: FrameType, payload: &[u8]) -> u64 {
        self.sequence += 1;
        let (session, worker) = (self.manifest.session(), self.manifest.worker());
        let frame = encode_frame(
            frame_type,
            session,
            worker,
            Sequence(self.sequence),
            payload,
        )
        .unwrap();
        self.command.write_all(&frame).unwrap();
        self.sequence
    }

    pub(crate) fn receive(&mut self) -> (FrameHeader, Vec<u8>) {
        let mut header = [0; 40];
        self.command.read_exact(&mut header).unwrap();
        let header = FrameHeader::decode_with(&header, self.features()).unwrap();
        let mut payload = vec![0; header.payload_bytes as usize];
        self.command.read_exact(&mut payload).unwrap();
        (header, payload)
    }

    pub(crate) fn submit(&mut self, target: &str) {
        self.submit_with(target, TaskArgsWire::default());
    }

    /// Sends the arguments as they are: flags that no carrier would encode too.
    fn submit_with(&mut self, target: &str, args: TaskArgsWire<'_>) {
        let flags: Vec<u64> = args.sidecars.iter().flatten().map(|d| d.flags).collect();
        let mut task = TaskPayload {
            digest: digest(target),
            config: CallConfig::default(),
            args,
        };
        for desc in task.args.sidecars.iter_mut().flatten() {
            desc.flags = 0;
        }
        let mut bytes = task.to_bytes(Carrier::V1).unwrap();
        // Digest, configuration, two counts, the tensors, then the sidecars.
        let mut at = 32 + 32 + 8 + 44 * task.args.tensors.len();
        let mut flags = flags.into_iter();
        for sidecar in &task.args.sidecars {
            at += 1;
            if sidecar.is_some() {
                let word = flags.next().unwrap().to_le_bytes();
                bytes[at + 72..at + 80].copy_from_slice(&word);
                at += 80;
            }
        }
        self.send(FrameType::Task, &bytes);
    }

    /// Runs a task; the text of its failure, empty for none.
    pub(crate) fn task(&mut self, target: &str) -> String {
        self.task_with(target, TaskArgsWire::default())
    }

    /// Runs a task with arguments; the text of its failure, empty for none.
    pub(crate) fn task_with(&mut self, target: &str, args: TaskArgsWire<'_>) -> String {
        self.submit_with(target, args);
        let (header, payload) = self.receive();
        assert_eq!(
            (header.frame_type, header.sequence.0),
            (FrameType::Completion, self.sequence)
        );
        let done = Completion::decode(&payload).unwrap();
        assert_eq!(done.error_code == 0, done.error_message.is_empty());
        done.error_message.into_owned()
    }

    /// A control that must succeed; its result.
    pub(crate) fn control(&mut self, name: ControlName, command: &impl Encode) -> Vec<u8> {
        self.send(
            FrameType::Control,
            &Control::of(name, command).unwrap().to_bytes().unwrap(),
        );
        let (_, payload) = self.receive();
        let reply = ControlReply::decode(&payload).unwrap();
        assert_eq!(reply.error_code, 0, "{}", reply.error_message);
        reply.result.into_owned()
    }

    /// The session closes the lane.
    pub(crate) fn expect_end(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end too: the session may have closed with something of ours unread.
        let _ = self.command.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
}
