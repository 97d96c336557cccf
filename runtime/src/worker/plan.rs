//! What a local child is told at start: the plan of its level, as JSON through an inherited descriptor.

use std::sync::Arc;
use std::time::Duration;

use echelon_wire::callable::{CallableKind, ImportTarget};
use serde::{Deserialize, Serialize};

use super::builder::Settings;
use super::reach::Registration;
use super::{Child, RegisterOptions, Worker, WorkerState};
use crate::callable::{Callable, CallableSource};
use crate::chip::ChipDevices;
use crate::deadline::from_monotonic_ns;
use crate::error::Error;

/// A callable that the inner level registers at start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InnerPlan {
    /// Name in messages.
    pub name: String,
    /// `module:qualname`, or the hex of serialized bytes.
    pub payload: String,
    /// True when `payload` is hex of serialized bytes.
    pub serialized: bool,
    /// True when `payload` is hex of machine code with its signature.
    #[serde(default)]
    pub chip: bool,
    /// Which of that level's workers get it.
    pub options: RegisterOptions,
}

/// One level: settings, children and callables of a worker that was added to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LevelPlan {
    /// Level, 3 or more.
    pub level: u32,
    /// Sub worker processes.
    pub sub_workers: u32,
    /// Unfinished tasks before a submit blocks.
    pub max_tasks: u32,
    /// Times that an idempotent task is begun at most.
    pub max_attempts: u32,
    /// Bytes of shared memory.
    pub memory_limit: u64,
    /// Bound of its `init()` in seconds.
    pub startup_timeout_s: f64,
    /// Monotonic clock in nanoseconds at which the start that this one is a part of ends; 0 before it has begun.
    #[serde(default)]
    pub start_by_ns: u64,
    /// Bound of its `close()` in seconds.
    pub close_timeout_s: f64,
    /// How long a session of this level may be silent, in seconds.
    pub remote_session_timeout_s: f64,
    /// How long a running task has to end after an interrupt, in seconds.
    pub interrupt_grace_s: f64,
    /// Its devices.
    #[serde(default)]
    pub chips: Option<ChipDevices>,
    /// Its other children in the order of their ids, which follow those of the devices.
    pub children: Vec<Child>,
    /// Callables that it registered itself.
    pub callables: Vec<InnerPlan>,
    /// Callables that its parent registers for its workers, and may unregister again.
    pub inner: Vec<InnerPlan>,
}

impl Worker {
    /// Turns an un-inited worker into a plan; using it directly afterwards raises (design §15.22).
    pub(crate) fn give_away(&self) -> Result<LevelPlan, Error> {
        let mut life = self.0.life.lock();
        self.expect_new(&life, "give away")?;
        let added = |child: &&Child| !matches!(child, Child::Chip { .. });
        let children = life.children.iter().filter(added).cloned().collect();
        let callables = life
            .registrations
            .iter()
            .map(Registration::plan)
            .collect::<Result<_, _>>()?;
        // Every field by its name: a new setting has to say here whether it goes along.
        let Settings {
            level,
            sub_workers,
            threads,
            remote_session_timeout,
            startup_timeout,
            close_timeout,
            interrupt_grace,
            memory_limit,
            max_tasks,
            max_attempts,
            chips,
            // The deadline of each start, and what the child's process knows by itself.
            start_by: _,
            child_program: _,
            chip_program: _,
            child_env: _,
            own_zygote: _,
            inherited_regions: _,
            spinners: _,
            name_prefix: _,
            inner: _,
        } = &self.0.settings;
        if *threads > 0 {
            return Err(Error::argument(
                "threads",
                format!("{threads} worker threads run closures of this process; a worker that is added to another has none"),
            ));
        }
        let plan = LevelPlan {
            level: *level,
            sub_workers: *sub_workers,
            max_tasks: *max_tasks,
            max_attempts: *max_attempts,
            memory_limit: *memory_limit,
            startup_timeout_s: startup_timeout.as_secs_f64(),
            start_by_ns: 0,
            close_timeout_s: close_timeout.as_secs_f64(),
            remote_session_timeout_s: remote_session_timeout.as_secs_f64(),
            interrupt_grace_s: interrupt_grace.as_secs_f64(),
            chips: chips.clone(),
            children,
            callables,
            inner: Vec::new(),
        };
        life.state = WorkerState::Given;
        let early = life.early.take();
        drop(life);
        drop(early);
        Ok(plan)
    }
}

impl LevelPlan {
    /// True when its worker starts processes that run Python.
    pub(crate) fn starts_python(&self) -> bool {
        self.sub_workers > 0 || self.children.iter().any(|c| matches!(c, Child::Local(_)))
    }

    /// Makes the worker that the plan describes; `builder` brings what the process knows by itself (child program, regions).
    ///
    /// # Errors
    /// What [`super::WorkerBuilder::build`] and the registrations refuse.
    pub fn into_worker(self, mut builder: super::WorkerBuilder) -> Result<Worker, Error> {
        if let Some(devices) = self.chips {
            builder = builder.chips(devices);
        }
        let worker = builder
            .level(self.level)
            .sub_workers(self.sub_workers)
            .max_tasks(self.max_tasks)
            .max_attempts(self.max_attempts)
            .memory_limit(Some(self.memory_limit))
            .startup_timeout(Duration::from_secs_f64(self.startup_timeout_s))
            .start_by((self.start_by_ns != 0).then(|| from_monotonic_ns(self.start_by_ns)))
            .close_timeout(Duration::from_secs_f64(self.close_timeout_s))
            .remote_session_timeout(Duration::from_secs_f64(self.remote_session_timeout_s))
            .interrupt_grace(Duration::from_secs_f64(self.interrupt_grace_s))
            .build()?;
        for child in self.children {
            worker.add_child(child)?;
        }
        for entry in self.callables {
            worker.register(entry.callable()?, entry.options)?;
        }
        Ok(worker)
    }
}

impl InnerPlan {
    pub(crate) fn of(callable: &Callable, options: RegisterOptions) -> Result<Self, Error> {
        let name = callable.name.to_string();
        match &callable.source {
            CallableSource::Import(target) => {
                Ok(Self { name, payload: target.to_string(), serialized: false, chip: false, options })
            }
            CallableSource::Serialized(bytes) => {
                Ok(Self { name, payload: hex(bytes), serialized: true, chip: false, options })
            }
            CallableSource::Chip(code) => {
                let payload = hex(&code.local_payload()?);
                Ok(Self { name, payload, serialized: false, chip: true, options })
            }
            CallableSource::Native(_) => Err(Error::argument(
                "callable",
                format!("{name} is a closure of this process and cannot run in a child; register an import path"),
            )),
        }
    }

    pub(crate) fn callable(&self) -> Result<Callable, Error> {
        if !self.serialized && !self.chip {
            let target = ImportTarget::parse(&self.payload)
                .map_err(|error| Error::argument("target", error.to_string()))?;
            return Ok(Callable::import(target));
        }
        let digits = self.payload.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> = digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        let bytes = bytes
            .ok_or_else(|| Error::argument("payload", "the serialized callable is not hex"))?;
        if self.chip {
            return Callable::from_payload(CallableKind::ChipCallable, &self.name, &bytes)
                .map_err(|text| Error::argument("payload", text));
        }
        Ok(Callable::serialized(&self.name, bytes.into()))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Callable {
    /// What a hosting process needs to resolve the callable: kind and payload.
    ///
    /// # Errors
    /// [`Error::Argument`] for a native closure, which cannot leave its process.
    pub fn payload(&self) -> Result<(CallableKind, Arc<[u8]>), Error> {
        match &self.source {
            CallableSource::Import(target) => Ok((CallableKind::PythonImport, target.to_string().as_bytes().into())),
            CallableSource::Serialized(bytes) => Ok((CallableKind::PythonSerialized, bytes.as_ref().into())),
            CallableSource::Chip(code) => Ok((CallableKind::ChipCallable, code.local_payload()?.into())),
            CallableSource::Native(_) => Err(Error::argument(
                "callable",
                format!("{} is a closure of this process and cannot run in another; register an import path", self.name),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ChildProgram;
    use super::*;

    #[test]
    fn every_setting_goes_along_with_a_plan() {
        let seconds = Duration::from_secs;
        let of_the_process = Worker::builder().child_program(ChildProgram::Custom {
            program: "/bin/true".into(),
            args: Vec::new(),
        });
        let given = of_the_process
            .clone()
            .level(7)
            .sub_workers(5)
            .max_tasks(77)
            .max_attempts(9)
            .memory_limit(Some(3 << 20))
            .startup_timeout(seconds(11))
            .close_timeout(seconds(12))
            .remote_session_timeout(seconds(13))
            .interrupt_grace(seconds(14));
        let given = given.build().unwrap();
        let json = serde_json::to_vec(&given.give_away().unwrap()).unwrap();
        let plan: LevelPlan = serde_json::from_slice(&json).unwrap();
        let made = plan.into_worker(of_the_process).unwrap();
        let text = |worker: &Worker| format!("{:?}", worker.0.settings);
        assert_eq!(text(&made), text(&given));
    }

    #[test]
    fn threads_cannot_go_along_and_are_not_left_out_in_silence() {
        let given = Worker::builder().threads(2).build().unwrap();
        let error = given.give_away().unwrap_err().to_string();
        assert!(error.contains("2 worker threads"), "{error}");
        assert_eq!(given.state(), WorkerState::New);
    }
}
