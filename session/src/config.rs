//! Command lines of the two programs, checked before anything exists.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::error::StartError;

/// Sessions that one daemon runs at a time unless `--max-sessions` says otherwise.
pub(crate) const DEFAULT_MAX_SESSIONS: u32 = 64;
/// What runs a session in an interpreter.
const SESSION_MODULE: [&str; 2] = ["-m", "echelon._session"];
/// Sub workers that one session may have unless `--max-sub-workers` says otherwise.
pub(crate) const DEFAULT_MAX_SUB_WORKERS: u32 = 256;

/// Worker daemon of Echelon: starts one session runner per request.
#[derive(Debug, Parser)]
#[command(name = "echelon-worker", version, about)]
struct DaemonCommandLine {
    /// Address to listen on; only loopback is possible until channel security exists
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 lets the system choose
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Serve plain TCP without authentication, on loopback only
    #[arg(long)]
    insecure_loopback: bool,
    /// Python interpreter of the sessions [default: the virtual environment's, else python3 from PATH]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Environment variable to hand on to the sessions; may be repeated
    #[arg(long, value_name = "NAME")]
    pass_env: Vec<String>,
    /// Module prefix that sessions may import; may be repeated [default: every module]
    #[arg(long, value_name = "PREFIX")]
    allow_import: Vec<String>,
    /// Take callables that travel as pickles: whoever may register can run any code here without a module of yours
    #[arg(long, conflicts_with = "allow_import")]
    allow_serialized: bool,
    /// Sessions that may run at a time
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_SESSIONS)]
    max_sessions: u32,
    /// Sub workers that one session may have
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_SUB_WORKERS)]
    max_sub_workers: u32,
    /// Execute every session instead of forking it from an interpreter that is up; ECHELON_ZYGOTE=0 does the same
    #[arg(long)]
    no_zygote: bool,
    /// Program that runs a session; everything after it belongs to it
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true, conflicts_with = "python")]
    session_command: Vec<String>,
}

/// What the daemon was told to do.
#[derive(Debug, Clone)]
pub struct DaemonConfig {
    /// Where to listen: an IPv4 loopback address.
    pub listen: SocketAddrV4,
    /// Program and arguments of the session runner.
    pub session_command: Vec<OsString>,
    /// Names of further environment variables to hand on.
    pub pass_env: Vec<String>,
    /// Module prefixes that sessions may import; empty allows all.
    pub allow_import: Vec<String>,
    /// Sessions take callables that travel as pickles.
    pub allow_serialized: bool,
    /// Sessions at a time.
    pub max_sessions: u32,
    /// Sub workers of one session.
    pub max_sub_workers: u32,
    /// Sessions that run Python are forked from a zygote.
    pub zygote: bool,
}

/// A command line was answered without starting anything: help, version, or a mistake.
#[derive(Debug)]
pub enum Parsed<T> {
    /// Go on with this.
    Run(T),
    /// clap's own answer: print it and exit with its code.
    Answer(clap::Error),
}

impl DaemonConfig {
    /// Reads the arguments (without the program's name). `default_session_command` is what runs a session when neither
    /// `--session-command` nor `--python` is given.
    ///
    /// # Errors
    /// [`StartError::Usage`] when the address may not be served or no session runner can be found.
    pub fn parse(
        args: impl Iterator<Item = String>,
        default_session_command: Option<Vec<OsString>>,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Parsed<Self>, StartError> {
        let line = match DaemonCommandLine::try_parse_from(
            std::iter::once("echelon-worker".to_owned()).chain(args),
        ) {
            Ok(line) => line,
            Err(answer) => return Ok(Parsed::Answer(answer)),
        };
        let address = loopback("--host", &line.host).map_err(StartError::Usage)?;
        if !line.insecure_loopback {
            return Err(StartError::Usage(format!(
                "refusing to listen on {address}: this version has no channel security, so the daemon serves plain TCP on \
                 loopback only, and only when told so; add --insecure-loopback"
            )));
        }
        for (name, value) in [
            ("--max-sessions", line.max_sessions),
            ("--max-sub-workers", line.max_sub_workers),
        ] {
            if value == 0 || value > 10_000 {
                return Err(StartError::Usage(format!(
                    "{name} is {value}, allowed are 1 to 10000"
                )));
            }
        }
        let session_command = if !line.session_command.is_empty() {
            line.session_command
                .into_iter()
                .map(OsString::from)
                .collect()
        } else if let Some(python) = &line.python {
            python_command(executable(python).ok_or_else(|| {
                StartError::Usage(format!(
                    "--python {} is not an executable file",
                    python.display()
                ))
            })?)
        } else if let Some(command) = default_session_command {
            command
        } else {
            python_command(find_python(env).ok_or_else(|| {
                StartError::Usage(
                    "no Python for the sessions: VIRTUAL_ENV is not set and PATH has no python3; give --python PATH, or \
                     --session-command echelon-session for native callables only"
                        .to_owned(),
                )
            })?)
        };
        Ok(Parsed::Run(Self {
            listen: SocketAddrV4::new(address, line.port),
            session_command,
            pass_env: line.pass_env,
            allow_import: line.allow_import,
            allow_serialized: line.allow_serialized,
            max_sessions: line.max_sessions,
            max_sub_workers: line.max_sub_workers,
            zygote: !line.no_zygote,
        }))
    }
}

impl DaemonConfig {
    /// How many arguments of the session command make its program a zygote; `None` where it is no Python runner of ours.
    pub(crate) fn by_zygote(&self) -> Option<usize> {
        let args = self.session_command.get(1..)?;
        (self.zygote && args == SESSION_MODULE.map(OsString::from)).then_some(args.len())
    }
}

/// The IPv4 loopback address that `host` names.
///
/// # Errors
/// The refusal in words: not an address, or not loopback.
pub(crate) fn loopback(what: &str, host: &str) -> Result<Ipv4Addr, String> {
    if host == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST);
    }
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_loopback() => Ok(address),
        Ok(_) => Err(format!(
            "{what} {host} is not an IPv4 loopback address: without channel security anybody who reaches it could run code \
             here; use 127.0.0.1"
        )),
        Err(_) => Err(format!("{what} {host:?} is neither an IPv4 loopback address nor localhost; use 127.0.0.1")),
    }
}

fn python_command(python: PathBuf) -> Vec<OsString> {
    let module = SESSION_MODULE.map(OsString::from);
    std::iter::once(python.into_os_string())
        .chain(module)
        .collect()
}

fn find_python(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(python) =
        env("VIRTUAL_ENV").and_then(|root| executable(&Path::new(&root).join("bin/python")))
    {
        return Some(python);
    }
    let path = env("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .find_map(|dir| executable(&dir.join("python3")))
}

/// `path`, when it is a file that may be executed. Not resolved further: a virtual environment is recognised by the path.
fn executable(path: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let facts = std::fs::metadata(path).ok()?;
    (facts.is_file() && facts.permissions().mode() & 0o111 != 0).then(|| path.to_owned())
}

/// Session runner of Echelon; started by the worker daemon, not by hand.
#[derive(Debug, Parser)]
#[command(name = "echelon-session", version, about)]
pub struct RunnerConfig {
    /// Descriptor to read the manifest from, to its end
    #[arg(long, value_name = "N")]
    pub manifest_fd: RawFd,
    /// Descriptor to write the ready line to
    #[arg(long, value_name = "M")]
    pub ready_fd: RawFd,
    /// Descriptor of the reading end of standard output and error, read when the daemon is gone
    #[arg(long, value_name = "K")]
    pub output_fd: Option<RawFd>,
    /// Monotonic clock, in nanoseconds, by which the parent must have connected [default: from the manifest]
    #[arg(long, value_name = "NS")]
    pub start_by: Option<u64>,
    /// Module prefix that may be imported; may be repeated [default: every module]
    #[arg(long, value_name = "PREFIX")]
    pub allow_import: Vec<String>,
    /// Take callables that travel as pickles
    #[arg(long)]
    pub allow_serialized: bool,
}

impl RunnerConfig {
    /// Reads the arguments (without the program's name).
    ///
    /// # Errors
    /// [`StartError::Usage`] for descriptors that cannot have been handed over.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Parsed<Self>, StartError> {
        let config =
            match Self::try_parse_from(std::iter::once("echelon-session".to_owned()).chain(args)) {
                Ok(config) => config,
                Err(answer) => return Ok(Parsed::Answer(answer)),
            };
        if config.manifest_fd < 3 || config.ready_fd < 3 || config.manifest_fd == config.ready_fd {
            return Err(StartError::Usage(format!(
                "--manifest-fd {} and --ready-fd {} must be two different descriptors above 2; echelon-session is started by \
                 echelon-worker",
                config.manifest_fd, config.ready_fd
            )));
        }
        Ok(Parsed::Run(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Parsed<DaemonConfig>, StartError> {
        DaemonConfig::parse(args.iter().map(|arg| (*arg).to_owned()), None, &|_| None)
    }

    fn refused(args: &[&str]) -> String {
        let error = parse(args).expect_err("must be refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn without_insecure_loopback_it_refuses_and_says_what_to_add_r_197() {
        assert!(refused(&["--session-command", "x"]).contains("--insecure-loopback"));
    }

    #[test]
    fn only_loopback_may_be_served_r_197() {
        for host in ["0.0.0.0", "10.1.2.3", "::", "::1", "example.org", ""] {
            let text = refused(&[
                "--host",
                host,
                "--insecure-loopback",
                "--session-command",
                "x",
            ]);
            assert!(text.contains("127.0.0.1"), "{text}");
        }
        for host in ["127.0.0.1", "127.8.9.1", "localhost"] {
            let parsed = parse(&[
                "--host",
                host,
                "--insecure-loopback",
                "--session-command",
                "x",
            ]);
            assert!(
                matches!(parsed, Ok(Parsed::Run(config)) if config.listen.ip().is_loopback()),
                "{host}"
            );
        }
    }

    #[test]
    fn a_session_command_takes_the_rest_of_the_line() {
        let parsed = parse(&[
            "--insecure-loopback",
            "--port",
            "7",
            "--session-command",
            "py",
            "-m",
            "mod",
            "--x",
        ]);
        let Ok(Parsed::Run(config)) = parsed else {
            panic!("{parsed:?}")
        };
        assert_eq!(config.session_command, ["py", "-m", "mod", "--x"]);
        assert_eq!(config.listen.port(), 7);
    }

    #[test]
    fn no_python_anywhere_is_said() {
        assert!(refused(&["--insecure-loopback"]).contains("--python"));
        assert!(
            refused(&["--insecure-loopback", "--python", "/nonexistent/python"])
                .contains("not an executable")
        );
    }

    #[test]
    fn pickles_are_off_and_make_no_sense_beside_prefixes_r_202() {
        let line = ["--insecure-loopback", "--session-command", "x"];
        assert!(matches!(parse(&line), Ok(Parsed::Run(config)) if !config.allow_serialized));
        let line = [&["--allow-serialized"], &line[..]].concat();
        assert!(matches!(parse(&line), Ok(Parsed::Run(config)) if config.allow_serialized));
        let line = [&["--allow-import", "pkg"], &line[..]].concat();
        assert!(matches!(parse(&line), Ok(Parsed::Answer(_))));
    }

    #[test]
    fn limits_of_zero_are_refused() {
        let text = refused(&[
            "--insecure-loopback",
            "--max-sessions",
            "0",
            "--session-command",
            "x",
        ]);
        assert!(text.contains("--max-sessions"), "{text}");
    }

    #[test]
    fn the_runner_wants_two_inherited_descriptors() {
        let parse = |args: &[&str]| RunnerConfig::parse(args.iter().map(|arg| (*arg).to_owned()));
        assert!(matches!(
            parse(&["--manifest-fd", "3", "--ready-fd", "4"]),
            Ok(Parsed::Run(_))
        ));
        for (manifest, ready) in [("3", "3"), ("1", "4"), ("5", "0")] {
            assert!(parse(&["--manifest-fd", manifest, "--ready-fd", ready]).is_err());
        }
        assert!(matches!(
            parse(&["--manifest-fd", "3"]),
            Ok(Parsed::Answer(_))
        ));
    }
}
