//! The chips of a worker: where a chip callable may go, and the process that owns a device.

use std::collections::HashSet;
use std::time::Instant;

use echelon_wire::bootstrap::CallableEntry;
use echelon_wire::callable::{CallableKind, Digest, Hashid, RegistryTarget};

use super::builder::ChildProgram;
use super::plan::hex;
use super::reach::{RegisterOptions, Registration};
use super::{Child, Live, Worker, WorkerBuilder};
use crate::callable::Callable;
use crate::chip::{ChipCode, ChipDevices};
use crate::endpoint::local::LocalSpec;
use crate::engine::{EndpointRole, Recipe};
use crate::error::Error;
use crate::failpoint::hit_at;
use crate::graph::EndpointId;

impl WorkerBuilder {
    /// Devices that this worker owns: a process each. Their NEXT_LEVEL ids come first, in this order, from 0.
    #[must_use]
    pub fn chips(mut self, devices: ChipDevices) -> Self {
        self.settings.chips = (!devices.ids.is_empty()).then_some(devices);
        self
    }

    /// How the processes of chips are started: a program that runs the session crate's `chip_main`.
    #[must_use]
    pub fn chip_program(mut self, program: ChildProgram) -> Self {
        self.settings.chip_program = program;
        self
    }

    pub(super) fn check_chips(&self) -> Result<(), Error> {
        let Some(devices) = &self.settings.chips else {
            return Ok(());
        };
        devices.validate()?;
        // `Python` says which interpreter runs user code; a chip has a program of its own.
        match self.settings.chip_program {
            ChildProgram::Custom { .. } => Ok(()),
            ChildProgram::Python { .. } | ChildProgram::None => Err(Error::argument(
                "device_ids",
                "each device is owned by a process, and there is no chip_program to start one with",
            )),
        }
    }
}

impl Registration {
    /// True for machine code: it goes to chips, or with `inner` to the workers that have them.
    pub(super) fn is_chip_code(&self) -> bool {
        self.handle.callable.chip_code().is_some()
    }

    /// Whether it goes to workers of that role when none are named; `None` when that is no question of chips.
    pub(super) fn chip_scope(&self, role: &EndpointRole) -> Option<bool> {
        match (self.is_chip_code(), role) {
            (true, EndpointRole::Chip { .. }) => Some(!self.options.inner),
            (true, EndpointRole::Sub) => Some(false),
            (true, _) => Some(self.options.inner),
            (false, EndpointRole::Chip { .. }) => Some(false),
            (false, _) => None,
        }
    }
}

/// Refuses workers that cannot take the callable, by name: machine code goes to chips of its platform, everything else does not.
pub(super) fn check_chip_reach(
    callable: &Callable,
    options: &RegisterOptions,
    children: &[Child],
) -> Result<(), Error> {
    let named = |id: i32| {
        options
            .workers
            .as_ref()
            .is_some_and(|ids| ids.contains(&id))
    };
    let refuse = |message: String| Err(Error::argument("target", message));
    for (child, id) in children.iter().zip(0..) {
        match (child, callable.chip_code()) {
            (Child::Chip { device, .. }, None) if named(id) => {
                return refuse(format!(
                    "worker {id} is a chip (device {device}), which runs machine code; {} needs an ec.ChipCallable",
                    callable.name
                ));
            }
            (Child::Chip { .. }, Some(_)) if named(id) && options.inner => {
                return refuse(format!(
                    "worker {id} is a chip and has no inner workers; register {} there without inner",
                    callable.name
                ));
            }
            (Child::Chip { devices, .. }, Some(code))
                if !options.inner && (options.workers.is_none() || named(id)) =>
            {
                let (platform, runtime) = (&devices.platform, &devices.runtime);
                if (code.platform(), code.runtime()) != (platform, runtime) {
                    return refuse(format!(
                        "{} is for platform {} with runtime {}, and the chips here are {platform} with runtime {runtime}",
                        callable.name,
                        code.platform(),
                        code.runtime()
                    ));
                }
            }
            (Child::Local(_) | Child::Remote(_), Some(_)) if named(id) && !options.inner => {
                return refuse(format!(
                    "{} is machine code and worker {id} is no chip; register it with inner=True for the chips of that worker",
                    callable.name
                ));
            }
            _ => {}
        }
    }
    let chips = children
        .iter()
        .any(|child| matches!(child, Child::Chip { .. }));
    if callable.chip_code().is_some() && !options.inner && options.workers.is_none() && !chips {
        return refuse(format!(
            "{} is machine code and this worker has no chips; make it with device_ids, or register with inner=True for the \
             chips of other workers",
            callable.name
        ));
    }
    Ok(())
}

/// Bytes of machine code that one manifest carries at most: in hexadecimal it is twice that, and the document is bounded.
const MANIFEST_CODE_BYTES: usize = 4 << 20;

/// The machine code that goes into the manifest of a remote worker: as much as fits, in the order of registration. The rest goes
/// by control when the session is up.
pub(super) fn chips_of_manifest(
    id: i32,
    child: &Child,
    registrations: &[Registration],
) -> HashSet<Digest> {
    let mut room = MANIFEST_CODE_BYTES;
    let mut fitting = HashSet::new();
    for registration in registrations.iter().filter(|r| r.includes(id, child)) {
        let Some(code) = registration.handle.callable.chip_code() else {
            continue;
        };
        if code.blob().len() <= room && fitting.insert(code.digest()) {
            room -= code.blob().len();
        }
    }
    fitting
}

/// The manifest's entry of machine code (slr3-v1 §8).
pub(super) fn chip_entry(code: &ChipCode) -> Option<CallableEntry> {
    Some(CallableEntry {
        hashid: Hashid(code.digest()).to_string(),
        kind: CallableKind::ChipCallable.name().to_owned(),
        target_registry: RegistryTarget::InnerL3Worker.name().to_owned(),
        target: None,
        payload_version: Some(1),
        // Code that fits a manifest fits its payload too.
        payload_hex: Some(hex(&code.payload().ok()?)),
    })
}

impl Worker {
    /// Starts the processes that own devices, side by side. Their ids come before all others. Returns how
    /// each is started again.
    pub(super) fn start_chips(
        &self,
        live: &Live,
        children: &[Child],
        ready_by: Instant,
    ) -> Result<Vec<(EndpointId, Recipe)>, Error> {
        let mut recipes = Vec::new();
        for (child, worker) in children.iter().zip(0..) {
            if let Child::Chip { device, devices } = child {
                // Many may be wanted, and each is a fork.
                live.engine
                    .interrupt
                    .check()
                    .map_err(|_| Error::Interrupted)?;
                hit_at("init.chip", worker)?;
                let spec = self.chip_spec(live, devices, *device, ready_by);
                let device = *device;
                recipes.push(self.start_process(
                    live,
                    spec,
                    EndpointRole::Chip { worker, device },
                )?);
            }
        }
        Ok(recipes)
    }

    /// What the process that owns a device is started with.
    fn chip_spec(
        &self,
        live: &Live,
        devices: &ChipDevices,
        device: i64,
        ready_by: Instant,
    ) -> LocalSpec {
        let name = format!("{}chip{device}", self.0.settings.name_prefix);
        let mut program = self.0.settings.chip_program.clone();
        if let ChildProgram::Custom { args, .. } = &mut program {
            let device = device.to_string();
            let flags = [
                ("--platform", &devices.platform),
                ("--runtime", &devices.runtime),
                ("--device", &device),
            ];
            args.extend(
                flags
                    .into_iter()
                    .flat_map(|(flag, value)| [flag.to_owned(), value.clone()]),
            );
        }
        LocalSpec {
            program,
            about: Some(format!("{} device {device}", devices.platform)),
            ..self.local_spec(live, name, None, ready_by)
        }
    }
}
