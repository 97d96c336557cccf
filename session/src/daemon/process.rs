//! A runner as a process: started with a manifest and two pipes, ended as a group.

use std::ffi::OsString;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use echelon_runtime::deadline::to_monotonic_ns;
use echelon_runtime::failpoint::hit;
use echelon_runtime::process::{zygote, ChildHandle, ChildSpec, ExitInfo};
use echelon_wire::bootstrap::Manifest;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::Context;
use crate::config::DaemonConfig;
use crate::error::SessionError;
use crate::segments::Owner;

/// Variables that are handed on to sessions (design §15.14); a name that ends with `*` is a beginning.
const HANDED_ON: [&str; 12] = [
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
    zygote::SWITCH,
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

/// A runner that is to come, without what is its own: also what a zygote is made for.
pub(crate) fn plain_spec(config: &DaemonConfig) -> ChildSpec {
    let mut command = config.session_command.iter().cloned();
    let mut env = environment(&config.pass_env);
    if !config.zygote {
        env.push((zygote::SWITCH.into(), "0".into()));
    }
    ChildSpec {
        name: "session".to_owned(),
        program: command.next().unwrap_or_default().into(),
        args: command.collect(),
        env,
        clear_env: true,
        new_session: true,
        by_zygote: config.by_zygote(),
        // A running session has lanes of its own and ends with its parent, not with the daemon.
        outlives_parent: true,
        umask: Some(0o077),
        no_new_privileges: true,
        ..ChildSpec::default()
    }
}

impl RunnerProcess {
    /// Starts the configured session command; `json` is its manifest, `start_by` the deadline of a start that has one.
    pub(crate) async fn start(
        context: &Context,
        manifest: &Manifest,
        json: &[u8],
        start_by: Option<Instant>,
    ) -> Result<(Self, Pipes), SessionError> {
        let mut spec = plain_spec(&context.config);
        let program = spec.program.display().to_string();
        let failed = |error: &dyn std::fmt::Display| SessionError::Spawn {
            program: program.clone(),
            reason: error.to_string(),
        };
        hit("daemon.spawn").map_err(|error| failed(&error))?;
        let file = memfd(json).map_err(|error| failed(&error))?;
        let make_pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (ready, ready_end) = make_pipe().map_err(|error| failed(&error))?;
        let (output, output_end) = make_pipe().map_err(|error| failed(&error))?;
        let fds = [
            ("--manifest-fd", file.as_raw_fd()),
            ("--ready-fd", ready_end.as_raw_fd()),
            ("--output-fd", output.as_raw_fd()),
        ];
        if spec.by_zygote.is_some() && manifest.num_sub_workers > 0 && zygote::is_enabled() {
            spec.args.push(zygote::OWN_ZYGOTE_FLAG.into());
        }
        spec.args.extend(arguments(&context.config, fds, start_by));
        spec.fds = fds.map(|(_, fd)| fd).into();
        spec.stdout = Some(output_end.try_clone().map_err(|error| failed(&error))?);
        spec.stderr = Some(output_end);
        let (told, exit) = watch::channel(None);
        let on_exit = Box::new(move |info| {
            // Nobody listens when the life of the session is over.
            let _ = told.send(Some(info));
        });
        let keeper = Arc::clone(&context.keeper);
        // Not on this thread: the first ones wait until their zygote is up.
        let spawning = tokio::task::spawn_blocking(move || {
            let child = keeper.spawn(spec, on_exit);
            // Open until here, whatever becomes of this task.
            (child, file, ready_end, output)
        });
        let (child, _file, _ready_end, output) = spawning.await.map_err(|error| failed(&error))?;
        let child = child.map_err(|error| failed(&error))?;
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
    config: &DaemonConfig,
    fds: [(&str, RawFd); 3],
    start_by: Option<Instant>,
) -> Vec<OsString> {
    let fds = fds.map(|(option, fd)| [option.into(), fd.to_string().into()]);
    let mut args: Vec<OsString> = fds.into_iter().flatten().collect();
    if let Some(deadline) = start_by {
        // An instant and not a duration: what the interpreter takes to come up counts too.
        args.extend(["--start-by", &to_monotonic_ns(deadline).to_string()].map(OsString::from));
    }
    for prefix in &config.allow_import {
        args.extend(["--allow-import", prefix].map(OsString::from));
    }
    if config.allow_serialized {
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
