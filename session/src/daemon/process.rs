//! A runner as a process: started with a manifest and two pipes, ended as a group.

use std::ffi::OsString;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Instant;

use echelon_runtime::deadline::to_monotonic_ns;
use echelon_runtime::failpoint::hit;
use echelon_runtime::process::{ChildHandle, ChildSpec, ExitInfo};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::Context;
use crate::error::SessionError;
use crate::segments::Owner;

/// Variables that are handed on to sessions (design §15.14); a name that ends with `*` is a beginning.
const HANDED_ON: [&str; 11] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_*",
    "TMPDIR",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "CUDA_*",
    "OMP_*",
    "ECHELON_LOG",
];

/// The daemon's ends of a runner's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// The ready line.
    pub(crate) ready: pipe::Receiver,
    /// stdout and stderr together.
    pub(crate) output: pipe::Receiver,
}

/// One runner. The keeper reaps it; this end is told.
#[derive(Debug)]
pub(crate) struct RunnerProcess {
    child: ChildHandle,
    /// Whose segments are to be removed after its end; read while it lives.
    owner: Option<Owner>,
    exit: watch::Receiver<Option<ExitInfo>>,
}

impl RunnerProcess {
    /// Starts the configured session command; `json` is its manifest, `start_by` the deadline of a start that has one.
    pub(crate) fn start(
        context: &Context,
        json: &[u8],
        start_by: Option<Instant>,
    ) -> Result<(Self, Pipes), SessionError> {
        let command = &context.config.session_command;
        let program = command.first().cloned().unwrap_or_default();
        let failed = |error: &dyn std::fmt::Display| SessionError::Spawn {
            program: program.to_string_lossy().into_owned(),
            reason: error.to_string(),
        };
        hit("daemon.spawn").map_err(|error| failed(&error))?;
        let manifest = memfd(json).map_err(|error| failed(&error))?;
        let make_pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (ready, ready_end) = make_pipe().map_err(|error| failed(&error))?;
        let (output, output_end) = make_pipe().map_err(|error| failed(&error))?;
        let fds = [
            ("--manifest-fd", manifest.as_raw_fd()),
            ("--ready-fd", ready_end.as_raw_fd()),
            ("--output-fd", output.as_raw_fd()),
        ];
        let args = arguments(context, fds, start_by);
        let (told, exit) = watch::channel(None);
        let spec = ChildSpec {
            name: "session".to_owned(),
            program: program.clone().into(),
            args,
            env: environment(&context.config.pass_env),
            clear_env: true,
            fds: fds.map(|(_, fd)| fd).into(),
            new_session: true,
            // A running session has lanes of its own and ends with its parent, not with the daemon.
            outlives_parent: true,
            umask: Some(0o077),
            no_new_privileges: true,
            stdout: Some(output_end.try_clone().map_err(|error| failed(&error))?),
            stderr: Some(output_end),
            ..ChildSpec::default()
        };
        let on_exit = Box::new(move |info| {
            // Nobody listens when the life of the session is over.
            let _ = told.send(Some(info));
        });
        let child = context
            .keeper
            .spawn(spec, on_exit)
            .map_err(|error| failed(&error))?;
        let owner = Owner::of(child.pid());
        let receiver = |fd: OwnedFd| pipe::Receiver::from_owned_fd(fd);
        let process = Self { child, owner, exit };
        // Without them nobody can watch it: it is reclaimed.
        let ready = hit("daemon.watch")
            .map_err(std::io::Error::from)
            .and_then(|()| receiver(ready));
        match (ready, receiver(output)) {
            (Ok(ready), Ok(output)) => Ok((process, Pipes { ready, output })),
            (Err(error), _) | (_, Err(error)) => {
                process.kill_group();
                Err(failed(&error))
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(crate) fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// SIGTERM to its group.
    pub(crate) fn terminate_group(&self) {
        self.child.terminate();
    }

    /// SIGKILL to its group; nothing when it was reaped.
    pub(crate) fn kill_group(&self) {
        self.child.kill_group();
    }

    /// Waits until it has ended and was reaped.
    pub(crate) async fn exited(&mut self) {
        // An error means that the keeper has gone, and every child with it.
        let _ = self.exit.wait_for(Option::is_some).await;
    }

    /// How it ended, in words. Status 0 is what a session that was told to end comes to.
    pub(crate) fn end_text(&self) -> String {
        match &*self.exit.borrow() {
            None => "has not ended".to_owned(),
            Some(info) if info.code == Some(0) => "exited with status 0".to_owned(),
            Some(info) => info.to_string(),
        }
    }
}

/// The arguments of the session command, beside its own.
fn arguments(
    context: &Context,
    fds: [(&str, RawFd); 3],
    start_by: Option<Instant>,
) -> Vec<OsString> {
    let own = context.config.session_command.iter().skip(1).cloned();
    let fds = fds.map(|(option, fd)| [option.into(), fd.to_string().into()]);
    let mut args: Vec<OsString> = own.chain(fds.into_iter().flatten()).collect();
    if let Some(deadline) = start_by {
        // An instant and not a duration: what the interpreter takes to come up counts too.
        args.extend(["--start-by", &to_monotonic_ns(deadline).to_string()].map(OsString::from));
    }
    for prefix in &context.config.allow_import {
        args.extend(["--allow-import", prefix].map(OsString::from));
    }
    if context.config.allow_serialized {
        args.push("--allow-serialized".into());
    }
    args
}

fn memfd(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("echelon-manifest", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

fn environment(pass_env: &[String]) -> Vec<(OsString, OsString)> {
    let wanted = |name: &str| {
        let listed = HANDED_ON.iter().any(|known| match known.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == *known,
        });
        listed || pass_env.iter().any(|passed| passed == name)
    };
    std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(wanted))
        .collect()
}
