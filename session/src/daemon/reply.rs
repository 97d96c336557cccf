//! From a manifest to the reply of the daemon. Only the keys of the contract are sent (slr3-v1 §8, design §15.19).

use std::net::SocketAddr;

use echelon_wire::bootstrap::{DaemonReply, Manifest, ReadyLine, CONNECTED};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{timeout_at, Instant};

use super::accept::Reading;
use super::exchange::{linger, read_request, write_reply};
use super::supervise::{life, Ready};
use super::table::Slot;
use super::Context;
use crate::config::loopback;
use crate::error::SessionError;
use echelon_runtime::failpoint::hit;
use echelon_runtime::text::cut;

/// Serves one connection: a request, a session, a reply.
pub(crate) async fn serve(
    context: Context,
    mut stream: TcpStream,
    peer: SocketAddr,
    reading: Reading,
) {
    let request = read_request(&mut stream, &context.budget).await;
    let outcome = match request.and_then(|json| admit(&context, json)) {
        Ok(admitted) => {
            // From here on the places for sessions bound the connections. A refused one goes on to count among those that
            // may be cut off, until it is gone.
            drop(reading);
            start(&context, admitted, &mut stream).await
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(ready) => {
            let reply = success(&ready.line, ready.pid);
            let written = match hit("daemon.reply") {
                Ok(()) => write_reply(&mut stream, &reply).await,
                Err(injected) => Err(injected.into()),
            };
            let connected = match written {
                Ok(()) => connected(&mut stream, ready.start_by).await,
                Err(error) => Err(error),
            };
            match connected {
                // The life of the session goes on when this is received.
                Ok(()) => drop(ready.delivered.send(())),
                Err(error) => {
                    tracing::warn!(%peer, %error, pid = ready.pid, "the parent did not connect to its session");
                }
            }
        }
        Err(error) => {
            tracing::warn!(%peer, error = ?error.to_string(), "request refused");
            if write_reply(&mut stream, &failure(&error)).await.is_ok() {
                linger(stream).await;
            }
        }
    }
}

/// Waits until a parent with a deadline says that it has connected; version 1 says nothing and is taken at its word.
async fn connected(stream: &mut TcpStream, start_by: Option<Instant>) -> std::io::Result<()> {
    let Some(deadline) = start_by else {
        return Ok(());
    };
    match timeout_at(deadline, stream.read_u8()).await {
        Ok(Ok(CONNECTED)) => Ok(()),
        Ok(Ok(other)) => Err(std::io::Error::other(format!("it sent {other}"))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// A request that may start a session.
struct Admitted {
    manifest: Manifest,
    json: Vec<u8>,
    slot: Slot,
}

fn admit(context: &Context, json: Vec<u8>) -> Result<Admitted, SessionError> {
    let manifest = checked(context, &json)?;
    let slot = context.places.take()?;
    Ok(Admitted {
        manifest,
        json,
        slot,
    })
}

async fn start(
    context: &Context,
    admitted: Admitted,
    stream: &mut TcpStream,
) -> Result<Ready, SessionError> {
    let Admitted {
        manifest,
        json,
        slot,
    } = admitted;
    let waits = manifest.startup_budget().is_some();
    let (sender, started) = oneshot::channel();
    context
        .lives
        .spawn(life(context.clone(), manifest, json, slot, sender));
    tokio::select! {
        // The life ends without an answer only when the daemon does.
        outcome = started => outcome.unwrap_or(Err(SessionError::Stopping)),
        // Nothing may come before the reply, so this is the connection's end. Giving `started` up reclaims the runner.
        _ = stream.read_u8(), if waits => Err(SessionError::GivenUp),
    }
}

/// Everything that can be refused before a process is started.
fn checked(context: &Context, json: &[u8]) -> Result<Manifest, SessionError> {
    if *context.stopping.borrow() {
        return Err(SessionError::Stopping);
    }
    let refused = |error: &dyn std::fmt::Display| SessionError::Manifest(error.to_string());
    let manifest = Manifest::from_json(json).map_err(|error| refused(&error))?;
    manifest.validate().map_err(|error| refused(&error))?;
    if manifest.num_sub_workers > context.config.max_sub_workers {
        return Err(SessionError::Resource {
            what: "num_sub_workers",
            requested: manifest.num_sub_workers.into(),
            limit: context.config.max_sub_workers.into(),
            hint: "ask for fewer, or start the daemon with a larger --max-sub-workers",
        });
    }
    let devices = manifest.device_ids.len() as u64;
    if devices > context.config.max_sub_workers.into() {
        return Err(SessionError::Resource {
            what: "device_ids",
            requested: devices,
            limit: context.config.max_sub_workers.into(),
            hint: "each device is a process: ask for fewer, or start the daemon with a larger --max-sub-workers",
        });
    }
    if devices > 0 && !context.config.allow_import.is_empty() {
        // Machine code does what it likes: a policy of imports would be none.
        return Err(SessionError::Manifest(
            "device_ids: this daemon was started with --allow-import and runs no machine code; ask for no devices, or start it \
             without --allow-import"
                .to_owned(),
        ));
    }
    loopback("listen_host", &manifest.listen_host).map_err(SessionError::Manifest)?;
    Ok(manifest)
}

fn success(line: &ReadyLine, pid: u32) -> Vec<u8> {
    encode(&match line {
        ReadyLine::Ok(ports) => DaemonReply::Ok {
            ports: ports.clone(),
            pid,
        },
        ReadyLine::Err { error } => DaemonReply::Err {
            error: error.clone(),
            pid: Some(pid),
        },
    })
}

fn failure(error: &SessionError) -> Vec<u8> {
    let pid = match error {
        SessionError::Refused { pid, .. } => Some(*pid),
        _ => None,
    };
    encode(&DaemonReply::Err {
        error: cut(error.to_string()),
        pid,
    })
}

fn encode(reply: &DaemonReply) -> Vec<u8> {
    // Hosts come from a manifest of bounded size and errors are cut, so a reply always fits.
    reply.to_frame().unwrap_or_default()
}
