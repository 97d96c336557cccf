//! Starting a child: what it inherits and how it is told.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::outbox::Outbox;
use super::records::TaskEncoder;
use super::LocalEndpoint;
use crate::child::command_line;
use crate::child::records::Parts;
use crate::error::Error;
use crate::failpoint::hit;
use crate::mailbox::{layout, Bell, Mailbox};
use crate::memory::SharedRegion;
use crate::process::zygote::{self, OWN_ZYGOTE_FLAG};
use crate::process::{region_socket_pair, ChildSpec, ExitInfo, Keeper};
use crate::worker::ChildProgram;

/// What a child is started with.
#[derive(Clone)]
pub struct LocalSpec {
    /// Name in messages.
    pub name: String,
    /// What it is beside its name, for the message of its end: the device that it owns.
    pub about: Option<String>,
    /// What to execute.
    pub program: ChildProgram,
    /// Environment on top of this process's.
    pub env: Vec<(OsString, OsString)>,
    /// Regions that the child inherits.
    pub regions: Vec<Arc<SharedRegion>>,
    /// The plan of a local child, as JSON of `LevelPlan`.
    pub plan: Option<Vec<u8>>,
    /// It will start processes of its own, and may fork a zygote for them before it has threads.
    pub is_parent: bool,
    /// When it must have said READY.
    pub ready_by: Instant,
}
impl LocalEndpoint {
    /// Starts the child. It comes up on its own; what is submitted meanwhile waits in its mailbox.
    ///
    /// # Errors
    /// [`Error`] of memory or process start; nothing is left then.
    pub fn start(spec: LocalSpec, keeper: &Arc<Keeper>, bell: Arc<Bell>) -> Result<Self, Error> {
        let os = |what: &'static str, error: &dyn std::fmt::Display| Error::Startup {
            worker: spec.name.clone(),
            message: format!("{what}: {error}"),
        };
        hit("local.mailbox")?;
        let mailbox = Mailbox::create(layout::TASK_RING_BYTES, layout::COMPLETION_RING_BYTES);
        let seat = bell.seat();
        let side = mailbox
            .and_then(|mailbox| mailbox.seated(seat.number())?.into_parent_side())
            .map_err(|error| os("mailbox", &error))?;
        hit("local.socket")?;
        let (socket, of_child) = region_socket_pair()?;
        let plan = spec.plan.as_deref().map(plan_file).transpose()?;
        let mut fds = vec![side.fd(), bell.fd(), of_child.as_fd()];
        fds.extend(spec.regions.iter().map(|region| region.fd()));
        fds.extend(plan.as_ref().map(AsFd::as_fd));
        fds.extend(bell.leases_fd());
        let mut child_spec = program_of(&spec.name, &spec.program, spec.env.clone())
            .ok_or_else(|| os("start", &"no child_program is set"))?;
        let plan_fd = plan.as_ref().map(AsFd::as_fd);
        let args = command_line(
            side.fd(),
            bell.fd(),
            of_child.as_fd(),
            &spec.regions,
            plan_fd,
            bell.leases_fd(),
        );
        if spec.is_parent && child_spec.by_zygote.is_some() && zygote::is_enabled() {
            child_spec.args.push(OWN_ZYGOTE_FLAG.into());
        }
        child_spec.args.extend(args.into_iter().map(OsString::from));
        child_spec.fds = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let exit = Arc::new(OnceLock::new());
        let (of_keeper, ring) = (Arc::clone(&exit), Arc::clone(&bell));
        let on_exit = Box::new(move |info: ExitInfo| {
            // A child ends once.
            let _ = of_keeper.set(info);
            ring.ring();
        });
        hit("local.spawn")?;
        let child = keeper.spawn(child_spec, on_exit)?;
        Ok(Self {
            outbox: Outbox::new(side, socket, &spec.regions),
            bell,
            seat,
            child,
            exit,
            answers: VecDeque::new(),
            payload: Vec::new(),
            incoming: Parts::default(),
            encoder: TaskEncoder::default(),
            retained: HashMap::new(),
            ready: false,
            started: Instant::now(),
            ready_by: spec.ready_by,
            killed: None,
            lost: None,
            lost_told: false,
            owed: 0,
            told: None,
            runtime_below: spec.plan.is_some(),
            about: spec
                .about
                .map_or_else(String::new, |about| format!(" ({about})")),
            name: spec.name,
        })
    }
}

/// The plan in a file without a name, ready to be read from its start.
fn plan_file(json: &[u8]) -> Result<OwnedFd, Error> {
    let region_error = |error: std::io::Error| Error::Startup {
        worker: "a child".into(),
        message: error.to_string(),
    };
    let fd = rustix::fs::memfd_create("echelon-plan", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| region_error(error.into()))?;
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, json).map_err(region_error)?;
    std::io::Seek::rewind(&mut file).map_err(region_error)?;
    Ok(file.into())
}

/// How the child is started, without what it inherits. To [`Keeper::prepare`] as well.
pub(crate) fn program_of(
    name: &str,
    program: &ChildProgram,
    env: Vec<(OsString, OsString)>,
) -> Option<ChildSpec> {
    let (program, args, by_zygote) = match program {
        ChildProgram::Python { executable } => {
            let module = vec!["-m".into(), "echelon._child".into()];
            (executable.clone(), module, Some(2))
        }
        ChildProgram::Custom { program, args } => {
            let args = args.iter().map(OsString::from).collect();
            (program.clone(), args, None)
        }
        ChildProgram::None => return None,
    };
    Some(ChildSpec {
        name: name.to_owned(),
        program,
        args,
        env,
        new_session: true,
        by_zygote,
        ..ChildSpec::default()
    })
}
