//! The conformance suite over the remote endpoint, against a small session that knows only version 1.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

use echelon_runtime::endpoint::ControlRequest;
use echelon_runtime::testing::conformance::{check, FAILURE_TEXT};
use echelon_runtime::testing::sessions::Sessions;
use echelon_wire::bootstrap::{json_len, DaemonReply, Manifest, SessionPorts};
use echelon_wire::callable::Digest;
use echelon_wire::codec::{Decode, Encode};
use echelon_wire::frame::control::register::{DigestCommand, RegisterCommand};
use echelon_wire::frame::health::health_frame;
use echelon_wire::frame::{
    encode_frame, Completion, Control, ControlName, ControlReply, Features, FrameHeader, FrameType,
    Hello, ReadyState,
};
use echelon_wire::id::Sequence;
use echelon_wire::limits::HEADER_BYTES;
use echelon_wire::task::{Carrier, TaskPayload};

/// One session: answers on its command lane, beats on its health lane, ends with its command lane.
struct Session {
    manifest: Manifest,
    command: TcpStream,
    prepared: HashMap<Digest, String>,
    live: HashMap<Digest, String>,
}

impl Session {
    /// The daemon's part and the session's, until the parent has gone.
    fn serve(daemon: &TcpListener) {
        let (mut bootstrap, _) = daemon.accept().unwrap();
        let mut prefix = [0; 4];
        bootstrap.read_exact(&mut prefix).unwrap();
        let mut json = vec![0; json_len(prefix).unwrap()];
        bootstrap.read_exact(&mut json).unwrap();
        let manifest = Manifest::from_json(&json).unwrap();
        let lanes = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [command, health] = &lanes;
        let host = "127.0.0.1".to_owned();
        let reply = DaemonReply::Ok {
            ports: SessionPorts {
                command_host: host.clone(),
                command_port: command.local_addr().unwrap().port(),
                health_host: host,
                health_port: health.local_addr().unwrap().port(),
            },
            pid: 1,
        };
        bootstrap.write_all(&reply.to_frame().unwrap()).unwrap();
        let (command, _) = command.accept().unwrap();
        let mut session = Self {
            manifest,
            command,
            prepared: HashMap::new(),
            live: HashMap::new(),
        };
        session.hello();
        let (beating, _) = health.accept().unwrap();
        let (end, ended) = channel::<()>();
        let (id, worker) = (session.manifest.session(), session.manifest.worker());
        let beats = std::thread::spawn(move || {
            let mut beating = beating;
            for count in 1.. {
                let frame = health_frame(id, worker, Sequence(count)).unwrap();
                let sent = beating.write_all(&frame);
                let next = ended.recv_timeout(Duration::from_millis(100));
                if sent.is_err() || next != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        session.commands();
        drop((session, end));
        beats.join().unwrap();
    }

    fn hello(&mut self) {
        let hello = Hello {
            session_id: self.manifest.session(),
            worker_id: self.manifest.worker(),
            comm_profile: Cow::Borrowed(&self.manifest.transport),
            feature_flags: 0,
            ready_state: ReadyState::Ready,
        };
        let bytes = hello.to_bytes().unwrap();
        self.send(FrameType::Hello, Sequence(0), &bytes);
    }

    fn send(&mut self, frame_type: FrameType, sequence: Sequence, payload: &[u8]) {
        let (id, worker) = (self.manifest.session(), self.manifest.worker());
        let frame = encode_frame(frame_type, id, worker, sequence, payload).unwrap();
        // A parent that has gone is noticed by the next read.
        let _ = self.command.write_all(&frame);
    }

    fn commands(&mut self) {
        let mut header = [0; HEADER_BYTES];
        while self.command.read_exact(&mut header).is_ok() {
            let mut payload = vec![0; FrameHeader::payload_len(&header).unwrap()];
            if self.command.read_exact(&mut payload).is_err() {
                return;
            }
            let head = FrameHeader::decode(&header).unwrap();
            match head.frame_type {
                FrameType::Shutdown => return,
                FrameType::Task if self.task(head.sequence, &payload) => {}
                FrameType::Control => self.control(head.sequence, &payload),
                // A session of version 1 that is inside a task reads nothing until the parent has gone.
                _ => {
                    let mut sink = Vec::new();
                    let _ = self.command.read_to_end(&mut sink);
                    return;
                }
            }
        }
    }

    /// Runs a task; false when it never ends.
    fn task(&mut self, sequence: Sequence, payload: &[u8]) -> bool {
        let task = TaskPayload::decode(payload, Carrier::V1).unwrap();
        let done = match self.live.get(&task.digest).map(String::as_str) {
            Some("m:endless") => return false,
            Some("m:fails") => Completion::failure(sequence, FAILURE_TEXT),
            Some(_) => Completion::success(sequence),
            None => Completion::failure(sequence, "KeyError: no such callable"),
        };
        let bytes = done.to_bytes().unwrap();
        self.send(FrameType::Completion, sequence, &bytes);
        true
    }

    fn control(&mut self, sequence: Sequence, payload: &[u8]) {
        let control = Control::decode_with(payload, Features::NONE).unwrap();
        let failure = self.carry(control.name, &control.command).err();
        let (name, version) = (control.name, control.version);
        let reply = match &failure {
            None => ControlReply::success(sequence, name, version, Vec::new()),
            Some(text) => ControlReply::failure(sequence, name, version, text),
        };
        let bytes = reply.to_bytes().unwrap();
        self.send(FrameType::ControlReply, sequence, &bytes);
    }

    fn carry(&mut self, name: ControlName, command: &[u8]) -> Result<(), String> {
        if name == ControlName::PrepareRegisterCallable {
            let register = RegisterCommand::decode(command).unwrap();
            let target = String::from_utf8_lossy(&register.payload).into_owned();
            if target == "m:missing" {
                return Err("ModuleNotFoundError: No module named 'm'".into());
            }
            self.prepared.insert(register.digest, target);
            return Ok(());
        }
        let digest = DigestCommand::decode(command).unwrap().digest;
        let prepared = self.prepared.remove(&digest);
        match (name, prepared) {
            (ControlName::CommitRegisterCallable, Some(target)) => {
                self.live.insert(digest, target);
            }
            (ControlName::CommitRegisterCallable, None) => return Err("not prepared".into()),
            (ControlName::UnregisterCallable, _) => {
                self.live.remove(&digest);
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn a_session_of_version_1() {
    // Of an extension that a peer of version 1 does not have.
    let unsupported = ControlRequest::CollectTrace;
    // It accepts nothing, whatever is offered.
    for offered in [Features::NONE, Features::from_bits(u64::MAX)] {
        check(&Sessions::new(Session::serve, unsupported.clone(), offered));
    }
}
