//! From a specification to two connected lanes, under one deadline: the daemon starts the session, then the command
//! lane is connected and its HELLO read, then the health lane.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

use echelon_wire::bootstrap::{
    frame_json, json_len, DaemonReply, Manifest, ManifestError, SessionPorts, CONNECTED,
};
use echelon_wire::error::DecodeError;
use echelon_wire::frame::{decode_frame, Credits, Features, FrameHeader};
use echelon_wire::limits::HEADER_BYTES;
use rustix::event::PollFlags;

use crate::failpoint::{hit_at, Injected};

use super::handshake::{accept, HandshakeError};
use super::spec::{host_address, RemoteWorkerSpec, SpecError};
use crate::channel::{connect, Channel, ConnectError, PlainChannel, Step, Stop, Until};
use crate::text;

/// Why a remote worker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Nobody listens at the daemon's address.
    #[error(
        "no daemon at {0}: connection refused; start one with `echelon-worker --host … --port …`"
    )]
    NoDaemon(SocketAddr),
    /// A connection.
    #[error("{what}: {source}")]
    Connect {
        /// Which.
        what: &'static str,
        /// Why.
        source: ConnectError,
    },
    /// A connection broke or ended.
    #[error("{what}: {message}")]
    Broken {
        /// Which.
        what: &'static str,
        /// How.
        message: String,
    },
    /// The start took too long.
    #[error("{what}: no answer within what was left of the start's time; raise startup_timeout_s, or look at the daemon's log")]
    Late {
        /// Which step.
        what: &'static str,
    },
    /// The start was called off.
    #[error("the start was called off")]
    Cancelled,
    /// The daemon refused, or the session reported a failure.
    #[error("the daemon could not start the session: {0}")]
    Refused(String),
    /// JSON that does not fit the contract.
    #[error("the daemon's answer: {0}")]
    Reply(#[from] ManifestError),
    /// The daemon names a session on another host.
    #[error("the daemon at {daemon} names a session at {got}; it must be on the daemon's own address or session_listen_host")]
    Elsewhere {
        /// The daemon.
        daemon: SocketAddr,
        /// What it named.
        got: String,
    },
    /// A frame that does not decode.
    #[error("the session's first frame: {0}; parent and session must be of releases that speak the same protocol")]
    Frame(#[from] DecodeError),
    /// A HELLO that does not fit.
    #[error("the session's HELLO: {0}")]
    Handshake(#[from] HandshakeError),
    /// A thread could not be started.
    #[error("thread: {0}")]
    Thread(std::io::Error),
}

impl From<Injected> for StartError {
    fn from(injected: Injected) -> Self {
        Self::Broken {
            what: "the start",
            message: injected.to_string(),
        }
    }
}

/// Two lanes of a READY session.
pub(super) struct Connected {
    pub(super) command: PlainChannel,
    pub(super) health: PlainChannel,
    pub(super) features: Features,
    pub(super) credits: Credits,
    /// Where the command lane is.
    pub(super) host: std::net::IpAddr,
    pub(super) pid: u32,
}

/// Has the session started and connects to it. On failure all connections close. That ends a started session: its command lane
/// ends, or the daemon, whose connection is held until both lanes are there, sees it end without the byte that says so.
pub(super) fn establish(
    spec: &RemoteWorkerSpec,
    manifest: &Manifest,
    unacknowledged: Duration,
    until: &Until,
) -> Result<Connected, StartError> {
    let worker = manifest.worker_id;
    let daemon = spec.daemon_address()?;
    let (asked, ports, pid) = bootstrap(daemon, manifest, unacknowledged, until)?;
    let command_at = session_address(spec, daemon, &ports.command_host, ports.command_port)?;
    let health_at = session_address(spec, daemon, &ports.health_host, ports.health_port)?;
    let dial = |what, at| {
        connect(at, unacknowledged, until).map_err(|source| StartError::Connect { what, source })
    };
    hit_at("remote.command", worker)?;
    let command = dial("the command lane", command_at)?;
    hit_at("remote.hello", worker)?;
    let (features, credits) = read_hello(&command, manifest, until)?;
    hit_at("remote.health", worker)?;
    let health = dial("the health lane", health_at)?;
    // A daemon of version 1 has closed this connection and does not miss the byte.
    let _ = asked.try_write(&[IoSlice::new(&[CONNECTED])]);
    Ok(Connected {
        command,
        health,
        features,
        credits,
        host: command_at.ip(),
        pid,
    })
}

fn bootstrap(
    daemon: SocketAddr,
    manifest: &Manifest,
    unacknowledged: Duration,
    until: &Until,
) -> Result<(PlainChannel, SessionPorts, u32), StartError> {
    const WHAT: &str = "the daemon";
    hit_at("remote.connect", manifest.worker_id)?;
    let channel = connect(daemon, unacknowledged, until).map_err(|source| {
        if source.is_refused() {
            StartError::NoDaemon(daemon)
        } else {
            StartError::Connect { what: WHAT, source }
        }
    })?;
    // The next hops get what is left, as a duration: their clocks are not ours.
    let left = until.remaining().map_err(|stop| stopped(stop, WHAT))?;
    let manifest = Manifest {
        startup_budget_s: Some(left.as_secs_f64()),
        ..manifest.clone()
    };
    hit_at("remote.manifest", manifest.worker_id)?;
    write_all(&channel, &frame_json(&manifest)?, WHAT, until)?;
    hit_at("remote.reply", manifest.worker_id)?;
    let mut prefix = [0; 4];
    read_exact(&channel, &mut prefix, WHAT, until)?;
    // The length is checked against its limit before anything is allocated.
    let mut json = vec![0; json_len(prefix)?];
    read_exact(&channel, &mut json, WHAT, until)?;
    match DaemonReply::from_json(&json)? {
        DaemonReply::Ok { ports, pid } => Ok((channel, ports, pid)),
        DaemonReply::Err { error, .. } => Err(StartError::Refused(text::of_peer(&error))),
    }
}

/// The session must be where the daemon is, or where we asked it to listen: a reply redirects nobody.
fn session_address(
    spec: &RemoteWorkerSpec,
    daemon: SocketAddr,
    host: &str,
    port: u16,
) -> Result<SocketAddr, StartError> {
    let elsewhere = || StartError::Elsewhere {
        daemon,
        got: format!("{host}:{port}"),
    };
    let address = host_address(host).map(Into::into).ok_or_else(elsewhere)?;
    let asked = spec
        .session_listen_host
        .as_deref()
        .and_then(host_address)
        .map(Into::into);
    if address != daemon.ip() && Some(address) != asked {
        return Err(elsewhere());
    }
    Ok(SocketAddr::new(address, port))
}

fn read_hello(
    channel: &PlainChannel,
    manifest: &Manifest,
    until: &Until,
) -> Result<(Features, Credits), StartError> {
    const WHAT: &str = "HELLO";
    let mut header = [0; HEADER_BYTES];
    read_exact(channel, &mut header, WHAT, until)?;
    let len = FrameHeader::payload_len(&header)?;
    let mut frame = vec![0; HEADER_BYTES + len];
    frame[..HEADER_BYTES].copy_from_slice(&header);
    read_exact(channel, &mut frame[HEADER_BYTES..], WHAT, until)?;
    Ok(accept(manifest, &decode_frame(&frame)?)?)
}

fn stopped(stop: Stop, what: &'static str) -> StartError {
    match stop {
        Stop::Late => StartError::Late { what },
        Stop::Cancelled => StartError::Cancelled,
    }
}

fn broken(what: &'static str) -> impl Fn(std::io::Error) -> StartError {
    move |error| StartError::Broken {
        what,
        message: error.to_string(),
    }
}

fn read_exact(
    channel: &PlainChannel,
    mut into: &mut [u8],
    what: &'static str,
    until: &Until,
) -> Result<(), StartError> {
    while !into.is_empty() {
        match channel.try_read(into).map_err(broken(what))? {
            Step::Moved(count) => into = &mut into[count..],
            Step::Blocked => until
                .wait(channel.as_fd(), PollFlags::IN)
                .map_err(|stop| stopped(stop, what))?,
            Step::Ended => {
                return Err(StartError::Broken {
                    what,
                    message: "the connection was closed before the answer".into(),
                });
            }
        }
    }
    Ok(())
}

fn write_all(
    channel: &PlainChannel,
    mut bytes: &[u8],
    what: &'static str,
    until: &Until,
) -> Result<(), StartError> {
    while !bytes.is_empty() {
        match channel
            .try_write(&[IoSlice::new(bytes)])
            .map_err(broken(what))?
        {
            Step::Moved(count) => bytes = &bytes[count..],
            Step::Blocked => until
                .wait(channel.as_fd(), PollFlags::OUT)
                .map_err(|stop| stopped(stop, what))?,
            Step::Ended => {
                return Err(StartError::Broken {
                    what,
                    message: "the connection was closed".into(),
                })
            }
        }
    }
    Ok(())
}
