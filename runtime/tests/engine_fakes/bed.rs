//! A worker over fakes, and what every test of it needs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use echelon_runtime::endpoint::{ControlRequest, Endpoint};
use echelon_runtime::mailbox::Bell;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{FakeHandle, FakeWorld, PATIENCE};
use echelon_runtime::testing::{worker_over, Role};
use echelon_runtime::{
    Callable, CallableHandle, Error, Interrupt, Interrupted, Orchestrator, RegisterOptions,
    RegisterScope, RemoteBuffer, Tag, TaskArgs, TaskHandle, Worker, WorkerBuilder,
};
use echelon_wire::call_config::CallConfig;
use echelon_wire::callable::ImportTarget;
use echelon_wire::tensor::{DataType, TensorMeta};

/// An interrupt that the test throws.
#[derive(Default)]
pub(crate) struct Switch {
    on: AtomicBool,
    told: AtomicU64,
    before: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Switch {
    pub(crate) fn set(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// What happens in the next check, before it is answered with "stop".
    pub(crate) fn before(&self, act: impl FnOnce() + Send + 'static) {
        *self.before.lock().unwrap() = Some(Box::new(act));
    }

    /// Waits until so many checks were answered with "stop".
    pub(crate) fn wait_told(self: &Arc<Self>, count: u64) {
        let switch = Arc::clone(self);
        bounded("the interrupt check", move || {
            while switch.told.load(Ordering::SeqCst) < count {
                std::thread::yield_now();
            }
        });
    }
}

impl Interrupt for Switch {
    fn check(&self) -> Result<(), Interrupted> {
        let act = self.before.lock().unwrap().take();
        if let Some(act) = act {
            act();
            return Err(Interrupted);
        }
        if self.on.load(Ordering::SeqCst) {
            self.told.fetch_add(1, Ordering::SeqCst);
            return Err(Interrupted);
        }
        Ok(())
    }
}

/// Worker and fakes. When it goes, the worker is closed and the fakes must have seen no use after free and no free in use.
pub(crate) struct Bed {
    pub(crate) worker: Worker,
    pub(crate) world: Arc<FakeWorld>,
    pub(crate) subs: Vec<FakeHandle>,
    pub(crate) remotes: Vec<FakeHandle>,
    pub(crate) interrupt: Arc<Switch>,
}

impl Bed {
    /// `subs` sub workers and `remotes` sessions with ids from 0; each takes one task at a time.
    pub(crate) fn new(subs: usize, remotes: usize) -> Self {
        Self::with(subs, remotes, 1, Worker::builder())
    }

    pub(crate) fn with(subs: usize, remotes: usize, capacity: u32, builder: WorkerBuilder) -> Self {
        Self::made(subs, remotes, capacity, builder, |_| ())
    }

    /// As [`Self::with`]; `prepare` sees each fake before the worker does.
    pub(crate) fn made(
        subs: usize,
        remotes: usize,
        capacity: u32,
        builder: WorkerBuilder,
        prepare: impl Fn(&FakeHandle),
    ) -> Self {
        let bell = Bell::create().unwrap();
        let world = FakeWorld::new(Arc::clone(&bell));
        let mut endpoints: Vec<(Box<dyn Endpoint>, Role)> = Vec::new();
        let mut bed_subs = Vec::new();
        for index in 0..subs {
            let (endpoint, handle) = world.local(&format!("sub{index}"), capacity);
            prepare(&handle);
            endpoints.push((endpoint, Role::Sub));
            bed_subs.push(handle);
        }
        let mut bed_remotes = Vec::new();
        for index in 0..remotes {
            let (endpoint, handle) = world.remote(index as i32, capacity);
            prepare(&handle);
            endpoints.push((endpoint, Role::RemoteNextLevel));
            bed_remotes.push(handle);
        }
        let interrupt = Arc::new(Switch::default());
        let builder = builder.memory_limit(Some(64 << 20));
        let worker = worker_over(builder, Arc::clone(&interrupt) as _, bell, endpoints).unwrap();
        Self {
            worker,
            world,
            subs: bed_subs,
            remotes: bed_remotes,
            interrupt,
        }
    }

    /// A callable that every session has.
    pub(crate) fn remote_task(&self) -> CallableHandle {
        self.register("m:task", None)
    }

    pub(crate) fn register(&self, target: &str, workers: Option<Vec<i32>>) -> CallableHandle {
        let options = RegisterOptions {
            workers,
            scope: RegisterScope::Remote,
            inner: false,
        };
        self.worker.register(import(target), options).unwrap()
    }

    /// A callable that every sub worker has.
    pub(crate) fn sub_task(&self) -> CallableHandle {
        self.worker
            .register(import("m:leaf"), RegisterOptions::default())
            .unwrap()
    }

    pub(crate) fn malloc(&self, worker: i32, nbytes: u64) -> RemoteBuffer {
        self.worker.remote_malloc(worker, nbytes).unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert!(self.worker.close().is_ok());
        assert_eq!(self.world.violations(), Vec::<String>::new());
    }
}

pub(crate) fn import(target: &str) -> Callable {
    Callable::import(ImportTarget::parse(target).unwrap())
}

pub(crate) fn u8s(count: u64) -> TensorMeta {
    TensorMeta::new(&[u32::try_from(count).unwrap()], DataType::Uint8).unwrap()
}

/// The whole of a buffer as one argument.
pub(crate) fn whole(buffer: &RemoteBuffer, tag: Tag) -> TaskArgs {
    let mut args = TaskArgs::new();
    args.add_remote(buffer, 0, u8s(buffer.nbytes()), tag)
        .unwrap();
    args
}

/// An array as one argument.
pub(crate) fn array(memory: &HostMemory, tag: Tag) -> TaskArgs {
    let mut args = TaskArgs::new();
    args.add_host(memory.clone(), u8s(memory.len() as u64), tag)
        .unwrap();
    args
}

/// Submits to any session.
pub(crate) fn submit(
    orch: &Orchestrator,
    callable: &CallableHandle,
    args: TaskArgs,
) -> Result<TaskHandle, Error> {
    orch.submit_next_level(callable, args, CallConfig::default(), None)
}

/// What `work` returns, which must not take longer than the tests' patience.
pub(crate) fn bounded<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (told, told_by) = channel();
    let thread = std::thread::spawn(move || told.send(work()));
    let Ok(value) = told_by.recv_timeout(PATIENCE) else {
        match thread.is_finished() {
            true => panic!("{what} panicked: {:?}", thread.join().err()),
            false => panic!("{what} hangs"),
        }
    };
    let _ = thread.join();
    value
}

/// Starts `work` on a thread; the result is awaited with the tests' patience.
pub(crate) fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Started<T> {
    let (told, told_by) = channel();
    std::thread::spawn(move || told.send(work()));
    Started(told_by)
}

pub(crate) struct Started<T>(std::sync::mpsc::Receiver<T>);

impl<T> Started<T> {
    pub(crate) fn join(self, what: &str) -> T {
        match self.0.recv_timeout(PATIENCE) {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

pub(crate) fn frees(controls: &[ControlRequest]) -> usize {
    count(controls, |c| matches!(c, ControlRequest::Free { .. }))
}

pub(crate) fn releases(controls: &[ControlRequest]) -> usize {
    count(controls, |c| {
        matches!(c, ControlRequest::ReleaseImport { .. })
    })
}

pub(crate) fn count(
    controls: &[ControlRequest],
    wanted: impl Fn(&ControlRequest) -> bool,
) -> usize {
    controls.iter().filter(|control| wanted(control)).count()
}
