//! Starting a child: fork and exec, with only async-signal-safe calls between.

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::ProcessError;

/// How a child is started.
#[derive(Debug, Default)]
pub struct ChildSpec {
    /// Name in messages; the program's name when empty.
    pub name: String,
    /// What to execute; searched in PATH when it has no slash.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Environment on top of this process's, or instead of it with `clear_env`.
    pub env: Vec<(OsString, OsString)>,
    /// Start from an empty environment.
    pub clear_env: bool,
    /// Working directory; this process's when `None`.
    pub cwd: Option<PathBuf>,
    /// Descriptors that stay open in the child under the same numbers; all others close at exec. The caller keeps them open until
    /// the spawn has returned.
    pub fds: Vec<RawFd>,
    /// A session and process group of its own, so that the whole subtree can be ended and a terminal's Ctrl-C does not reach it.
    pub new_session: bool,
    /// With so many of its first arguments and `--zygote FD` after them the program is a zygote, which forks such children
    /// (decision 0023). `None`: it is executed, as it also is where that fails.
    pub by_zygote: Option<usize>,
    /// It lives on when this process is killed, because it watches somebody else. Otherwise the kernel kills it then.
    pub outlives_parent: bool,
    /// What files that it makes are not to allow, e.g. `0o077`; ours when `None`.
    pub umask: Option<u32>,
    /// It and its children can never gain privileges, by set-user-id programs for instance.
    pub no_new_privileges: bool,
    /// Where its standard output goes; inherited when `None`.
    pub stdout: Option<OwnedFd>,
    /// Where its standard error goes; inherited when `None`.
    pub stderr: Option<OwnedFd>,
}

impl ChildSpec {
    fn command(&mut self) -> Command {
        let mut command = Command::new(&self.program);
        if self.clear_env {
            command.env_clear();
        }
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null());
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        if let Some(stdout) = self.stdout.take() {
            command.stdout(stdout);
        }
        if let Some(stderr) = self.stderr.take() {
            command.stderr(stderr);
        }
        command
    }
}

/// Starts the child. Must be called on the thread that lives as long as the child may.
pub(super) fn spawn(mut spec: ChildSpec) -> Result<u32, ProcessError> {
    let mut command = spec.command();
    let prepare = Prepare {
        inherited: std::mem::take(&mut spec.fds),
        new_session: spec.new_session,
        outlives_parent: spec.outlives_parent,
        umask: spec.umask,
        no_new_privileges: spec.no_new_privileges,
        parent: std::process::id(),
    };
    let prepare = move || prepare.run();
    // SAFETY: `Prepare::run` runs between fork and exec in a copy of a process with threads. It makes system calls only, on
    // values that were computed before the fork, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
    let program = spec.program.display().to_string();
    let child = command
        .spawn()
        .map_err(|source| ProcessError::Spawn { program, source })?;
    // std's handle neither kills nor reaps when it is dropped: the keeper owns the process from here.
    Ok(child.id())
}

/// Ends this process at once: no handlers, no destructors, no user code.
pub(super) fn exit_now(status: i32) -> ! {
    // SAFETY: the call does not return and touches no memory of ours.
    unsafe { libc::_exit(status) }
}

fn check(result: i32) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What happens in the child between fork and exec.
struct Prepare {
    inherited: Vec<RawFd>,
    new_session: bool,
    outlives_parent: bool,
    umask: Option<u32>,
    no_new_privileges: bool,
    parent: u32,
}

impl Prepare {
    fn run(&self) -> io::Result<()> {
        // SAFETY: plain system calls with constants and integers; async-signal-safe.
        unsafe {
            if !self.outlives_parent {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
                // The parent may have ended before the line above: then nobody would send the signal.
                if u32::try_from(libc::getppid()) != Ok(self.parent) {
                    libc::_exit(127);
                }
            }
            if self.new_session {
                check(libc::setsid())?;
            }
            if let Some(umask) = self.umask {
                libc::umask(umask);
            }
            if self.no_new_privileges {
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            }
            for &fd in &self.inherited {
                check(libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
            // What a parent ignores would stay ignored across exec. KILL and STOP fail, which is no harm.
            for signal in 1..32 {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            check(libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const none,
                std::ptr::null_mut(),
            ))
        }
    }
}
