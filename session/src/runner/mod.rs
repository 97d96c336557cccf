//! The session runner: one parent, one command lane, one health lane, and a whole runtime below (contract §8 to §11).
//!
//! | thread | what it does |
//! |---|---|
//! | main | reads the command lane while it has nothing to do; handles commands, in order: tasks, registration, and without `concurrent_control` all |
//! | controls | handles controls of buffers while a task runs, where `concurrent_control` was accepted |
//! | command reader | reads the command lane while the main thread is busy for longer, so that its end is seen while a task runs |
//! | health | shows the parent that the session lives |
//! | watchdog | bounds how long the end takes |
//! | signals | turns SIGTERM and SIGINT into a verdict |
//! | peer accept, peer lanes | serve importers of this session's buffers, once one was exported for other hosts |
//! | orphan | takes what the session prints once the daemon is gone |

mod callables;
mod chip;
mod command;
mod commands;
mod control;
mod echo;
mod health;
mod intake;
pub(crate) mod lifeline;
mod line;
pub(crate) mod listen;
mod memory;
mod native;
mod orphan;
mod prestart;
mod signals;
mod task;

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_runtime::deadline::from_monotonic_ns;
use echelon_runtime::failpoint::hit;
use echelon_runtime::process::{adopt_orphans, take_inherited_fd};
use echelon_runtime::{CallableHost, WorkerBuilder};
use echelon_wire::bootstrap::{Manifest, ReadyLine, SessionPorts};
use echelon_wire::codec::Writer;
use echelon_wire::frame::{encode_frame, Credits, Features, FrameType, Hello, ReadyState};
use echelon_wire::id::Sequence;
use echelon_wire::limits::{HEALTH_PERIOD, MAX_JSON_BYTES};
use tracing_subscriber::EnvFilter;

use crate::config::{loopback, Parsed, RunnerConfig};
use crate::peer::{Identity, Peers};
use crate::policy::ImportPolicy;
use callables::Rules;
use command::Session;
use commands::{Answers, Commands};
use health::{HealthLane, Pulse};
use intake::{Intake, Lane, Substitute};
use lifeline::{Lifeline, Verdict, Watchdog};
use line::ANNOUNCED;
pub use native::NativeHost;
use orphan::OrphanOutput;
use prestart::Prepared;
use signals::Signals;

/// Extensions that this session can serve, besides `health_echo`, which depends on the session timeout, and
/// `serialized_callables`, which depends on the policy.
const SERVED: Features = Features::PIPELINING
    .union(Features::CONCURRENT_CONTROL)
    .union(Features::TIMED_COMPLETION)
    .union(Features::CONDITIONS)
    .union(Features::FLOAT64)
    .union(Features::TASK_TAGS)
    .union(Features::PEER_FETCH)
    .union(Features::PEER_FENCE)
    .union(Features::DATA_LANE)
    .union(Features::SAME_HOST)
    .union(Features::STAGED_BLOBS);

const LATE: &str = "the session was up only after the parent's start had ended; raise startup_timeout_s if it needs longer";

/// Runs one session. `args` without the program's name; `host` resolves callables, `inner` says how the inner worker's children
/// are started. Returns the exit status: 0 after SHUTDOWN or a signal, 1 otherwise, 2 for a refused command line.
#[allow(clippy::print_stderr)] // Before there is a session, stderr is all there is.
pub fn session_main(
    args: impl Iterator<Item = String>,
    host: Arc<dyn CallableHost>,
    inner: WorkerBuilder,
) -> i32 {
    let filter = EnvFilter::try_from_env("ECHELON_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Embedded in a program that has its own subscriber, that one stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        // The daemon reads stderr, and a session outlives it. Complaining on stderr that stderr is broken would panic.
        .log_internal_errors(false)
        .try_init();
    let config = match RunnerConfig::parse(args) {
        Ok(Parsed::Run(config)) => config,
        Ok(Parsed::Answer(answer)) => {
            // A closed terminal leaves nobody to tell.
            let _ = answer.print();
            return answer.exit_code();
        }
        Err(error) => {
            eprintln!("echelon-session: {error}");
            return error.exit_code();
        }
    };
    let fds = || {
        let manifest = take_inherited_fd(config.manifest_fd)?;
        let ready = take_inherited_fd(config.ready_fd)?;
        let output = config.output_fd.map(take_inherited_fd).transpose()?;
        Ok::<_, echelon_runtime::process::ProcessError>((manifest, ready, output))
    };
    let (manifest, ready, output) = match fds() {
        Ok(fds) => fds,
        Err(error) => {
            eprintln!("echelon-session: {error}");
            return 2;
        }
    };
    let policy = ImportPolicy::new(config.allow_import).with_serialized(config.allow_serialized);
    let start_by = config.start_by.map(from_monotonic_ns);
    run_with_output(manifest, ready, output, start_by, policy, host, inner)
}

/// Runs one session from its two descriptors: the manifest to read, the ready line to write. Returns the exit status.
pub fn run(
    manifest: OwnedFd,
    ready: OwnedFd,
    policy: ImportPolicy,
    host: Arc<dyn CallableHost>,
    inner: WorkerBuilder,
) -> i32 {
    run_with_output(manifest, ready, None, None, policy, host, inner)
}

fn run_with_output(
    manifest: OwnedFd,
    ready: OwnedFd,
    output: Option<OwnedFd>,
    start_by: Option<Instant>,
    policy: ImportPolicy,
    host: Arc<dyn CallableHost>,
    inner: WorkerBuilder,
) -> i32 {
    // Orphans of what runs here stay below this session, and go with it.
    let adopted = adopt_orphans().map_err(|error| error.to_string());
    match adopted.and_then(|()| start(manifest, output, start_by, policy, host, inner)) {
        Ok(started) => started.serve(ready),
        Err(error) => {
            tracing::error!(error, "the session cannot start");
            tell(ready, &ReadyLine::Err { error });
            1
        }
    }
}

/// Everything that exists when the ready line is written. Fields end in this order.
struct Started {
    session: Session,
    health: HealthLane,
    listener: std::net::TcpListener,
    ports: SessionPorts,
    manifest: Manifest,
    features: Features,
    /// The command lane after SHUTDOWN: its end tells the parent that nothing of the session is left.
    lane: Option<std::net::TcpStream>,
    /// When the parent must have connected both lanes, if it has a deadline for its whole start.
    start_by: Option<Instant>,
    _signals: Signals,
    orphan: Option<OrphanOutput>,
    lifeline: Arc<Lifeline>,
}

fn start(
    manifest: OwnedFd,
    output: Option<OwnedFd>,
    start_by: Option<Instant>,
    policy: ImportPolicy,
    host: Arc<dyn CallableHost>,
    inner: WorkerBuilder,
) -> Result<Started, String> {
    let at = |point: &str| hit(point).map_err(|injected| injected.to_string());
    at("session.manifest")?;
    let manifest = read_manifest(manifest)?;
    let text = |error: std::io::Error| error.to_string();
    let budget = || manifest.startup_budget().map(|left| Instant::now() + left);
    let start_by = start_by.or_else(budget);
    let inner = inner.start_by(start_by);
    let address = loopback("listen_host", &manifest.listen_host)?;
    at("session.lifeline")?;
    let lifeline = Lifeline::new().map_err(text)?;
    at("session.signals")?;
    let signals = Signals::watch(Arc::clone(&lifeline)).map_err(text)?;
    at("session.orphan")?;
    let orphan = output.map(|pipe| OrphanOutput::watch(pipe, Arc::clone(&lifeline)));
    let orphan = orphan.transpose().map_err(text)?;
    at("session.prepare")?;
    // The inner worker is up before there is any socket (contract §8).
    let features = accepted(&manifest, &policy);
    let rules = Rules::new(&policy, features);
    let prepared = Prepared::new(&manifest, rules, &host, inner, Arc::clone(&lifeline))?;
    if start_by.is_some_and(|deadline| Instant::now() >= deadline) {
        return Err(LATE.to_owned());
    }
    at("session.listen")?;
    let listener = || listen::listener(address).map_err(text);
    let (command, health) = (listener()?, listener()?);
    let port =
        |listener: &std::net::TcpListener| listener.local_addr().map(|at| at.port()).map_err(text);
    let host_name = manifest.effective_connect_host().to_owned();
    let ports = SessionPorts {
        command_host: host_name.clone(),
        command_port: port(&command)?,
        health_host: host_name,
        health_port: port(&health)?,
    };
    let pulse = Pulse {
        session: manifest.session(),
        worker: manifest.worker(),
        write_limit: manifest.session_timeout(),
        first_by: start_by,
        echo: features
            .contains(Features::HEALTH_ECHO)
            .then(|| manifest.session_timeout()),
    };
    at("session.health")?;
    let health = HealthLane::start(health, pulse, Arc::clone(&lifeline)).map_err(text)?;
    let peers = Peers::new(Identity::of(&manifest, address), Arc::clone(&lifeline));
    let session = Session::new(&manifest, prepared, policy, host, peers);
    Ok(Started {
        session,
        health,
        listener: command,
        ports,
        manifest,
        features,
        lane: None,
        start_by,
        _signals: signals,
        orphan,
        lifeline,
    })
}

/// What the parent offered and this session serves.
fn accepted(manifest: &Manifest, policy: &ImportPolicy) -> Features {
    let offered = Features::from_names(manifest.feature_flags.iter().map(String::as_str));
    // Answers cannot be faster than what they answer.
    let echo = manifest.session_timeout() > HEALTH_PERIOD;
    let mut served = SERVED;
    for (feature, serves) in [
        (Features::HEALTH_ECHO, echo),
        (Features::SERIALIZED_CALLABLES, policy.takes_serialized()),
    ] {
        if serves {
            served = served.union(feature);
        }
    }
    offered.intersection(served).usable()
}

fn read_manifest(fd: OwnedFd) -> Result<Manifest, String> {
    let mut json = Vec::new();
    let limit = u64::from(MAX_JSON_BYTES) + 1;
    std::fs::File::from(fd)
        .take(limit)
        .read_to_end(&mut json)
        .map_err(|error| error.to_string())?;
    let manifest = Manifest::from_json(&json).map_err(|error| error.to_string())?;
    manifest.validate().map_err(|error| error.to_string())?;
    Ok(manifest)
}

fn tell(ready: OwnedFd, line: &ReadyLine) {
    let Ok(bytes) = line.to_line() else { return };
    if let Err(error) = std::fs::File::from(ready).write_all(&bytes) {
        tracing::warn!(%error, "the ready line could not be written");
    }
}

/// What carries commands in and answers out while a session serves.
type Serving = (Arc<Intake>, Arc<Commands>, Arc<Answers>, Substitute);

impl Started {
    /// Tells the daemon, waits for the parent, serves it, and ends everything.
    fn serve(mut self, ready: OwnedFd) -> i32 {
        let watchdog = hit("session.watchdog").map_err(std::io::Error::from);
        let watchdog = watchdog.and_then(|()| Watchdog::start(&self.lifeline));
        tell(ready, &ReadyLine::Ok(self.ports.clone()));
        match &watchdog {
            Ok(_) => self.serve_parent(),
            Err(error) => self.lifeline.end(Verdict::Broken(error.to_string())),
        }
        self.lifeline.end(Verdict::Closed);
        self.lifeline.closing();
        let verdict = self.lifeline.verdict().unwrap_or(Verdict::Closed);
        drop(self.health);
        if let Err(error) = self.session.close() {
            tracing::error!(%error, "the inner worker did not close");
        }
        drop(self.lane);
        // Last: what closing prints must find a reader too.
        drop(self.orphan);
        drop(watchdog);
        verdict.exit_code()
    }

    fn serve_parent(&mut self) {
        let limit = self.manifest.session_timeout();
        let deadline = self.start_by.or_else(|| Instant::now().checked_add(limit));
        let passed = hit("session.accept").map_err(std::io::Error::from);
        let taken = passed.and_then(|()| listen::accept(&self.listener, &self.lifeline, deadline));
        let stream = match taken {
            Ok(Some(stream)) => stream,
            Ok(None) => return self.lifeline.end(Verdict::NotConnected),
            Err(error) => return self.lifeline.end(Verdict::Broken(error.to_string())),
        };
        let features = self.features;
        let credits = features.contains(Features::PIPELINING).then_some(ANNOUNCED);
        let lane = Lane {
            session: self.manifest.session(),
            worker: self.manifest.worker(),
            features,
            frame_limit: limit,
        };
        let intake = match self.intake(&stream, lane, credits) {
            Ok(intake) => intake,
            Err(error) => return self.lifeline.end(Verdict::Broken(error.to_string())),
        };
        let (intake, commands, answers, substitute) = intake;
        if let Err(error) = self.hello(&stream, features, credits) {
            // A parent that cleans up sends SHUTDOWN and is gone without having read HELLO: what it sent decides (contract
            // §10). What arrived is read, then the end.
            tracing::info!(%error, "HELLO could not be delivered");
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return intake.drain();
        }
        self.session.serve(&intake, &commands, &answers, features);
        drop(substitute);
        // Any other end is seen at once: nobody waits for what is left of it.
        if self.lifeline.verdict() == Some(Verdict::Shutdown) {
            self.lane = Some(stream);
        }
    }

    /// Who reads the command lane, what came from it, and the way back.
    fn intake(
        &self,
        stream: &std::net::TcpStream,
        lane: Lane,
        credits: Option<Credits>,
    ) -> std::io::Result<Serving> {
        hit("session.reader").map_err(std::io::Error::from)?;
        listen::limit_unacknowledged(stream, lane.frame_limit)?;
        let commands = Arc::new(Commands::new(credits, Arc::clone(&self.lifeline)));
        if lane.features.contains(Features::CONDITIONS) {
            commands.take_conditions();
        }
        let answers = Answers::new(
            stream.try_clone()?,
            lane.session,
            lane.worker,
            lane.frame_limit,
        );
        let answers = Arc::new(answers);
        let intake = Intake::new(
            stream.try_clone()?,
            lane,
            self.session
                .worker
                .spinner()
                .map_err(std::io::Error::other)?,
            Arc::clone(&self.lifeline),
            Arc::clone(&commands),
            Arc::clone(&answers),
        )?;
        let substitute = Substitute::start(&intake)?;
        Ok((intake, commands, answers, substitute))
    }

    /// The session speaks first (contract §2).
    fn hello(
        &self,
        stream: &std::net::TcpStream,
        features: Features,
        credits: Option<Credits>,
    ) -> std::io::Result<()> {
        let other =
            |error: echelon_wire::error::EncodeError| std::io::Error::other(error.to_string());
        let (session_id, worker_id) = (self.manifest.session(), self.manifest.worker());
        let hello = Hello {
            session_id,
            worker_id,
            comm_profile: self.manifest.transport.as_str().into(),
            feature_flags: features.bits(),
            ready_state: ReadyState::Ready,
        };
        hit("session.hello")?;
        let mut payload = Writer::new();
        hello
            .encode_with(credits.as_ref(), &mut payload)
            .map_err(other)?;
        let frame = encode_frame(
            FrameType::Hello,
            session_id,
            worker_id,
            Sequence(0),
            payload.as_bytes(),
        )
        .map_err(other)?;
        let limit = Duration::from_secs(30).min(self.manifest.session_timeout());
        let deadline = Instant::now() + limit;
        let deadline = self.start_by.map_or(deadline, |outer| deadline.min(outer));
        listen::write_all(stream, &[&frame], deadline)
    }
}
