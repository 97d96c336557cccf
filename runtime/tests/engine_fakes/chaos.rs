//! Threads that use one worker at the same time while tasks and answers hang, calls are interrupted and frees are refused: every
//! call comes back with a typed end, and when it is over nothing is left.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use echelon_runtime::endpoint::{ControlRequest, Endpoint};
use echelon_runtime::mailbox::Bell;
use echelon_runtime::memory::HostMemory;
use echelon_runtime::testing::fake::{
    ControlVerdict, FakeHandle, FakeWorld, TaskVerdict, PATIENCE,
};
use echelon_runtime::testing::{worker_over, Role};
use echelon_runtime::{
    CallableHandle, CopySide, Error, Interrupt, Interrupted, RegisterOptions, RegisterScope, Tag,
    Worker,
};
use echelon_wire::buffer::AccessFlags;

use crate::bed::{import, start, submit, u8s, whole};

const SESSIONS: usize = 3;
const THREADS: u64 = 3;
const ROUNDS: u64 = 40;

/// Throws dice; asked by every wait of 50 ms, it interrupts or lets go what hangs.
struct Dice {
    state: AtomicU64,
    calm: AtomicBool,
    sessions: OnceLock<Vec<FakeHandle>>,
}

impl Dice {
    /// True in `percent` of all throws, never when calm.
    fn throw(&self, percent: u64) -> bool {
        let next = |x: u64| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let before = self
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| Some(next(x)));
        let value = before.unwrap_or_default() >> 33;
        value % 100 < percent && !self.calm.load(Ordering::SeqCst)
    }

    fn let_go(&self) {
        for session in self.sessions.get().into_iter().flatten() {
            while session.complete_next() || session.answer_held() {}
        }
    }
}

impl Interrupt for Dice {
    fn check(&self) -> Result<(), Interrupted> {
        if self.throw(30) {
            return Err(Interrupted);
        }
        self.let_go();
        Ok(())
    }
}

/// What a call may end with, besides success.
fn allowed(error: &Error) -> bool {
    matches!(
        error,
        Error::Interrupted
            | Error::Remote { .. }
            | Error::Run(_)
            | Error::Handle { .. }
            | Error::EndpointLost { .. }
            | Error::NotEligible { .. }
    )
}

fn tolerate<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(allowed(&error), "{error:?}");
            None
        }
    }
}

/// One thread's program: buffers come, are used, exported, copied and go.
fn use_it(w: &Worker, task: &CallableHandle, seed: u64) {
    for round in 0..ROUNDS {
        let (here, there) = ((seed + round) as i32 % 3, (seed + round + 1) as i32 % 3);
        let Some(owner) = tolerate(w.remote_malloc(here, 64)) else {
            continue;
        };
        let export = tolerate(w.remote_export(&owner, 0, None, AccessFlags::READ_WRITE));
        let window = export.and_then(|e| tolerate(w.remote_import(&e, there, None)));
        let host = HostMemory::from_vec(vec![0; 64]);
        tolerate(w.run_simple(|o| {
            let local = CopySide::Host {
                memory: host.clone(),
                meta: u8s(64),
            };
            let remote = CopySide::Remote {
                buffer: owner.clone(),
                offset: 0,
                meta: u8s(64),
            };
            o.copy(remote, local)?;
            submit(o, task, whole(&owner, Tag::InOut))?;
            if let Some(window) = &window {
                submit(o, task, whole(window, Tag::Input))?;
                submit(o, task, whole(window, Tag::InOut))?;
            }
            // While the tasks are there.
            if round % 3 == 0 {
                w.remote_free(&owner)?;
            }
            Ok(())
        }));
        if let Some(window) = window {
            tolerate(w.remote_release_import(&window));
        }
        tolerate(w.remote_free(&owner));
        assert!(owner.released());
    }
}

#[test]
fn nothing_is_left_after_chaos() {
    chaos(7, false);
}

#[test]
fn nothing_is_left_after_chaos_in_which_a_session_is_lost() {
    for seed in 1..4 {
        chaos(seed, true);
    }
}

fn chaos(seed: u64, loses: bool) {
    let bell = Bell::create().unwrap();
    let world = FakeWorld::new(Arc::clone(&bell));
    let dice = Arc::new(Dice {
        state: AtomicU64::new(seed),
        calm: AtomicBool::new(false),
        sessions: OnceLock::new(),
    });
    let mut endpoints: Vec<(Box<dyn Endpoint>, Role)> = Vec::new();
    let mut sessions = Vec::new();
    for id in 0..SESSIONS {
        let (endpoint, handle) = world.remote(id as i32, 2);
        endpoints.push((endpoint, Role::RemoteNextLevel));
        sessions.push(handle);
    }
    let builder = Worker::builder()
        .interrupt_grace(Duration::from_secs(20))
        .memory_limit(Some(1 << 20));
    let w = worker_over(builder, Arc::clone(&dice) as _, bell, endpoints).unwrap();
    let options = RegisterOptions {
        scope: RegisterScope::Remote,
        ..RegisterOptions::default()
    };
    let task = w.register(import("m:task"), options).unwrap();
    for (id, session) in sessions.iter().enumerate() {
        let dies = loses && id + 1 == SESSIONS;
        let thrown = Arc::clone(&dice);
        session.on_task(move |_| match (thrown.throw(10), thrown.throw(5)) {
            (true, _) => TaskVerdict::Hold,
            (_, true) => TaskVerdict::Fail("as it fell".into()),
            _ => TaskVerdict::Done,
        });
        let thrown = Arc::clone(&dice);
        session.on_control(move |control| {
            let release = matches!(
                control,
                ControlRequest::Free { .. } | ControlRequest::ReleaseImport { .. }
            );
            if dies && thrown.throw(3) {
                return ControlVerdict::Lose("as it fell".into());
            }
            match (thrown.throw(5), release && thrown.throw(20)) {
                (true, _) => ControlVerdict::Hold,
                (_, true) => ControlVerdict::Refuse("busy".into()),
                _ => ControlVerdict::Carry,
            }
        });
    }
    assert!(dice.sessions.set(sessions.clone()).is_ok());
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| {
            let (w, task) = (w.clone(), task.clone());
            start(move || use_it(&w, &task, seed))
        })
        .collect();
    threads.into_iter().for_each(|t| t.join("a thread"));
    // Calm: everything ends, and what was refused is sent again by any call.
    dice.calm.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    while sessions.iter().any(|session| session.live_buffers() > 0) {
        assert!(Instant::now() < deadline, "buffers are left");
        dice.let_go();
        w.run_simple(|_| Ok(())).unwrap();
    }
    let progress = w.progress();
    assert_eq!(progress.submitted, progress.finished);
    w.close().unwrap();
    assert_eq!(world.violations(), Vec::<String>::new());
}
