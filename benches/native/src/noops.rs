//! The path of a noop without any Python, for counting its instructions: `noops local COUNT CHILD…` and `noops remote COUNT ENDPOINT`
//! run COUNT noops in one run; `CHILD…` is the command of the child, which ends in `noops child`. `noops session` is what a daemon
//! starts. Whichever side is to be counted is the one that runs under a tool. `noops engine COUNT` runs them over an endpoint that does
//! nothing, in this thread: from the submit to the end, without any transport; `noops chain COUNT` the same of tasks that each write what
//! the one before wrote.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echelon_runtime::child::{Child, ChildArgs};
use echelon_runtime::endpoint::{
    ControlReply, ControlRequest, Endpoint, EndpointEvent, EndpointGone, EndpointInfo,
    OutboundTask, SubmitError, TaskReport, Ticket,
};
use echelon_runtime::mailbox::Bell;
use echelon_runtime::testing::{worker_over, Role};
use echelon_runtime::{
    Callable, CallableHandle, CallableHost, ChildProgram, Error, HostedCallable, NoInterrupt,
    Orchestrator, RegisterOptions, RegisterScope, RemoteWorkerSpec, Tag, TaskArgs, TaskView,
    Worker, WorkerBuilder,
};
use echelon_session::session_main;
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::{CallableKind, ImportTarget};
use echelon_wire::tensor::{DataType, TensorMeta};

type Fault = Box<dyn std::error::Error>;

/// A process under a tool may be a hundred times slower.
const PATIENCE: Duration = Duration::from_secs(120);

struct Noops;

impl CallableHost for Noops {
    fn resolve(&self, _: CallableKind, _: &[u8]) -> Result<Arc<dyn HostedCallable>, String> {
        Ok(Arc::new(Noop))
    }
}

struct Noop;

impl HostedCallable for Noop {
    fn call_leaf(&self, _: TaskView) -> Result<(), String> {
        Ok(())
    }

    fn call_orchestration(&self, _: &Orchestrator, _: TaskView) -> Result<(), String> {
        Ok(())
    }
}

#[allow(clippy::print_stderr)] // A command says why it failed.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some("child") => child(&args[1..]),
        Some("session") => std::process::exit(session_main(
            args.into_iter().skip(1),
            Arc::new(Noops),
            Worker::builder(),
        )),
        Some("engine") if args.len() == 2 => engine(&args[1], false),
        Some("chain") if args.len() == 2 => engine(&args[1], true),
        Some("local") if args.len() > 2 => local(&args[1], &args[2], &args[3..]),
        Some("remote") if args.len() == 3 => remote(&args[1], &args[2]),
        _ => Err("noops local COUNT CHILD… | noops remote COUNT ENDPOINT".into()),
    };
    if let Err(error) = done {
        eprintln!("noops: {error}");
        std::process::exit(1);
    }
}

fn child(args: &[String]) -> Result<(), Fault> {
    let args = ChildArgs::parse(args.iter().map(Into::into))?;
    Ok(Child::attach(args, Arc::new(Noops), Worker::builder())?.serve()?)
}

fn builder() -> WorkerBuilder {
    Worker::builder()
        .startup_timeout(PATIENCE)
        .close_timeout(PATIENCE)
        .remote_session_timeout(PATIENCE)
}

fn callable() -> Result<Callable, Fault> {
    Ok(Callable::import(ImportTarget::parse("noops:noop")?))
}

fn local(count: &str, program: &str, args: &[String]) -> Result<(), Fault> {
    let program = ChildProgram::Custom {
        program: program.into(),
        args: args.to_vec(),
    };
    let worker = builder().sub_workers(1).child_program(program).build()?;
    let noop = worker.register(callable()?, RegisterOptions::default())?;
    worker.init()?;
    run(&worker, count.parse()?, |orch, args| {
        orch.submit_sub(&noop, args).map(drop)
    })
}

/// An endpoint whose tasks have ended when it is next asked.
struct Idle {
    events: VecDeque<EndpointEvent>,
    bell: Arc<Bell>,
}

impl Idle {
    fn answer(&mut self, event: EndpointEvent) {
        self.events.push_back(event);
        self.bell.ring();
    }
}

impl Endpoint for Idle {
    fn info(&self) -> EndpointInfo {
        EndpointInfo {
            name: "local/sub0".into(),
            pid: 0,
            capacity: 2,
            depth: 2,
            shares_memory: true,
            session: None,
            frame_bytes: 1 << 20,
            copy_step: None,
        }
    }

    fn submit(&mut self, ticket: Ticket, _: &OutboundTask<'_>) -> Result<(), SubmitError> {
        let report = TaskReport::default();
        self.answer(EndpointEvent::Done { ticket, report });
        Ok(())
    }

    fn control(&mut self, ticket: Ticket, _: ControlRequest) -> Result<(), EndpointGone> {
        let result = Ok(ControlReply::Done);
        self.answer(EndpointEvent::ControlDone { ticket, result });
        Ok(())
    }

    fn poll_event(&mut self) -> Option<EndpointEvent> {
        self.events.pop_front()
    }

    fn kill(&mut self, _: &str) {}

    fn begin_close(&mut self) {}

    fn finish_close(&mut self, _: Instant) -> Result<(), String> {
        Ok(())
    }
}

fn engine(count: &str, chain: bool) -> Result<(), Fault> {
    let bell = Bell::create()?;
    let idle = Idle {
        events: VecDeque::new(),
        bell: Arc::clone(&bell),
    };
    let endpoints: Vec<(Box<dyn Endpoint>, Role)> = vec![(Box::new(idle), Role::Sub)];
    let worker = worker_over(builder(), Arc::new(NoInterrupt), bell, endpoints)?;
    let noop = worker.register(callable()?, RegisterOptions::default())?;
    let (cell, meta) = (OnceCell::new(), TensorMeta::new(&[1], DataType::Int64)?);
    run(&worker, count.parse()?, |orch, mut args| {
        if chain {
            if cell.get().is_none() {
                let _first = cell.set(orch.alloc(meta)?);
            }
            if let Some(cell) = cell.get() {
                args.add_tensor(cell, Tag::InOut)?;
            }
        }
        orch.submit_sub(&noop, args).map(drop)
    })
}

fn remote(count: &str, endpoint: &str) -> Result<(), Fault> {
    let worker = builder().level(4).build()?;
    worker.add_remote_worker(RemoteWorkerSpec {
        endpoint: endpoint.to_owned(),
        ..RemoteWorkerSpec::default()
    })?;
    let options = RegisterOptions {
        scope: RegisterScope::Remote,
        ..RegisterOptions::default()
    };
    let noop: CallableHandle = worker.register(callable()?, options)?;
    worker.init()?;
    run(&worker, count.parse()?, |orch, args| {
        orch.submit_next_level(&noop, args, CallConfig::default(), None)
            .map(drop)
    })
}

fn run(
    worker: &Worker,
    count: usize,
    submit: impl Fn(&Orchestrator, TaskArgs) -> Result<(), Error>,
) -> Result<(), Fault> {
    let report = worker.run_simple(|orch| {
        for _ in 0..count {
            let mut args = TaskArgs::new();
            args.add_scalar(1)?;
            submit(orch, args)?;
        }
        Ok(())
    })?;
    worker.close()?;
    let completed = report.counts["completed"];
    if completed != count as u64 {
        return Err(format!("{completed} of {count} noops completed").into());
    }
    Ok(())
}
