//! The daemon: one thread, one listener, one task a connection and one a session.
//!
//! A session that runs does not need the daemon: its lanes are direct, and it ends when its parent goes. So it outlives a daemon
//! that is killed, while a daemon that is told to end takes its sessions along. What such a session prints is thrown
//! away by the session itself.

mod accept;
mod exchange;
mod log;
mod output;
mod process;
mod reply;
mod supervise;
mod table;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_runtime::process::Keeper;
use tokio::net::TcpListener;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tracing_subscriber::EnvFilter;

use crate::config::{DaemonConfig, Parsed};
use crate::error::StartError;
use crate::segments;
use exchange::Budget;
use log::LogSink;
use supervise::STOP_LIMIT;
use table::Places;

/// What all tasks of the daemon share; they run on one thread.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) config: Rc<DaemonConfig>,
    pub(crate) places: Places,
    pub(crate) lives: Lives,
    pub(crate) budget: Rc<Budget>,
    pub(crate) log: LogSink,
    /// True from the moment at which the daemon ends.
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) keeper: Arc<Keeper>,
}

/// The tasks that own runners.
#[derive(Clone, Default)]
pub(crate) struct Lives(Rc<RefCell<JoinSet<()>>>);

impl Lives {
    pub(crate) fn spawn(&self, life: impl std::future::Future<Output = ()> + 'static) {
        let mut lives = self.0.borrow_mut();
        // Those that have ended are let go of here, so that their number stays that of the running ones.
        while lives.try_join_next().is_some() {}
        lives.spawn_local(life);
    }

    /// Waits until none is left.
    async fn ended(&self) {
        while std::future::poll_fn(|cx| self.0.borrow_mut().poll_join_next(cx))
            .await
            .is_some()
        {}
    }
}

/// Runs the daemon until SIGTERM or SIGINT. `args` without the program's name; `default_session_command` is what runs a session when
/// the arguments name nothing else. Returns the exit status: 0 after an ordered end, 2 for a refused command line, 1 for what the
/// system refuses.
#[allow(clippy::print_stderr)] // The answer to a command line belongs on the terminal.
pub fn daemon_main(
    args: impl Iterator<Item = String>,
    default_session_command: Option<Vec<OsString>>,
) -> i32 {
    let config = match DaemonConfig::parse(args, default_session_command, &|name| {
        std::env::var_os(name)
    }) {
        Ok(Parsed::Run(config)) => config,
        Ok(Parsed::Answer(answer)) => {
            // A closed terminal leaves nobody to tell.
            let _ = answer.print();
            return answer.exit_code();
        }
        Err(error) => {
            eprintln!("echelon-worker: {error}");
            return error.exit_code();
        }
    };
    match serve(config) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("echelon-worker: {error}");
            error.exit_code()
        }
    }
}

fn serve(config: DaemonConfig) -> Result<(), StartError> {
    let (log, writer) =
        log::start().map_err(|error| StartError::os("start the log thread", error))?;
    let filter = EnvFilter::try_from_env("ECHELON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Embedded in a program that has its own subscriber, that one stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(log.clone())
        .try_init();
    let keeper = Keeper::start_adopting()
        .map_err(|error| StartError::os("start the keeper", std::io::Error::other(error)))?;
    let keeper = Arc::new(keeper);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::os("start the event loop", error))?;
    let outcome = LocalSet::new().block_on(&runtime, run(config, log.clone(), Arc::clone(&keeper)));
    let left = keeper.stop(Instant::now() + STOP_LIMIT);
    if let Err(error) = left {
        tracing::error!(%error, "runners are left");
    }
    writer.finish(&log);
    outcome
}

async fn run(config: DaemonConfig, log: LogSink, keeper: Arc<Keeper>) -> Result<(), StartError> {
    let listen = config.listen;
    let bound = TcpListener::bind(listen).await;
    let listener = bound.map_err(|error| StartError::os(format!("listen on {listen}"), error))?;
    let os = |error| StartError::os("watch for signals", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(os)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(os)?;
    let removed = segments::sweep_orphans();
    if removed > 0 {
        tracing::info!(removed, "removed segments of owners that are gone");
    }
    if config.by_zygote().is_some() {
        keeper.prepare(process::plain_spec(&config));
    }
    announce(&listener)?;
    tracing::warn!("serving plain TCP without authentication, on loopback only");
    let (stop, stopping) = watch::channel(false);
    let context = Context {
        places: Places::new(config.max_sessions),
        config: Rc::new(config),
        lives: Lives::default(),
        budget: Rc::new(Budget::new()),
        log,
        stopping,
        keeper,
    };
    let of_connections = context.clone();
    tokio::select! {
        () = accept::accept_loop(&listener, move |stream, peer, reading| {
            reply::serve(of_connections.clone(), stream, peer, reading)
        }) => {}
        _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
        _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
    }
    drop(listener);
    let _ = stop.send(true);
    // Each life ends its runner within STOP_LIMIT, then by force.
    if tokio::time::timeout(STOP_LIMIT + Duration::from_secs(2), context.lives.ended())
        .await
        .is_err()
    {
        tracing::error!("some sessions did not end in time; their runners are killed");
    }
    Ok(())
}

/// The first line on stdout: what starts daemons waits for it.
#[allow(clippy::print_stdout)]
fn announce(listener: &TcpListener) -> Result<(), StartError> {
    let os = |error| StartError::os("say where the daemon listens", error);
    let address = listener.local_addr().map_err(os)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on {address}")
        .and_then(|()| stdout.flush())
        .map_err(os)
}
