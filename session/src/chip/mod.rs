//! Chips: an accelerator is one [`ChipBackend`] (design §8). The processes that own devices, and what a session checks of the machine
//! code before any of it is loaded.

#[allow(unsafe_code)] // The one place: native code is loaded and called.
mod cpu;
mod elf;
mod error;
mod host;
mod main;
pub(crate) mod payload;
pub(crate) mod staging;

use std::path::PathBuf;

use echelon_runtime::worker::ChildProgram;
use echelon_runtime::{ChipCode, ChipDevices, TaskView};
use echelon_wire::callable::Direction;

pub use error::ChipError;
pub use host::ChipHost;
pub use main::chip_main;
pub use payload::verify_inline;

/// An accelerator: what its machine code looks like and how its devices are opened. A backend is one file of this folder and one
/// line in [`backend`].
pub trait ChipBackend: Send + Sync {
    /// Name in specifications and descriptors.
    fn platform(&self) -> &'static str;

    /// Whether the device exists, without opening it.
    ///
    /// # Errors
    /// [`ChipError::NoDevice`] with those that there are.
    fn find(&self, device: i64) -> Result<(), ChipError>;

    /// The signature that machine code declares; checks everything about it that needs no device. Runs none of it.
    ///
    /// # Errors
    /// [`ChipError`] saying what is wrong with it.
    fn describe(&self, blob: &[u8]) -> Result<Vec<Direction>, ChipError>;

    /// Opens a device for this process, the one that owns it.
    ///
    /// # Errors
    /// [`ChipError`].
    fn open(&self, device: i64) -> Result<Box<dyn ChipDevice>, ChipError>;
}

/// An open device. Dropped when its process ends.
pub trait ChipDevice: Send + Sync {
    /// Makes machine code ready to run. `describe` has accepted it.
    ///
    /// # Errors
    /// [`ChipError::Load`].
    fn load(&self, blob: &[u8], signature: &[Direction]) -> Result<Box<dyn ChipKernel>, ChipError>;
}

/// Loaded machine code.
pub trait ChipKernel: Send + Sync {
    /// Runs one task to its end. The arguments fit the signature.
    ///
    /// # Errors
    /// [`ChipError::Failed`] with the code's own number and text; [`ChipError::Memory`].
    fn launch(&self, view: &TaskView) -> Result<(), ChipError>;
}

/// The platforms that this build has, by name.
const PLATFORMS: [&dyn ChipBackend; 1] = [&cpu::Cpu];

/// The accelerator of a platform.
///
/// # Errors
/// [`ChipError::Platform`] with the names that there are.
pub fn backend(platform: &str) -> Result<&'static dyn ChipBackend, ChipError> {
    let found = PLATFORMS.into_iter().find(|b| b.platform() == platform);
    found.ok_or_else(|| ChipError::Platform {
        platform: echelon_wire::frame::truncate_utf8(platform, 64).to_owned(),
        known: PLATFORMS.map(ChipBackend::platform).join(", "),
    })
}

/// Checks devices before anything is started: the platform is known, each exists and is named once.
///
/// # Errors
/// [`ChipError`] naming the device.
pub fn check_devices(devices: &ChipDevices) -> Result<(), ChipError> {
    if devices.ids.is_empty() {
        return Ok(());
    }
    let backend = backend(&devices.platform)?;
    devices
        .validate()
        .map_err(|error| ChipError::Devices(error.to_string()))?;
    devices.ids.iter().try_for_each(|id| backend.find(*id))
}

/// Machine code with the signature that it declares.
///
/// # Errors
/// [`ChipError`] when it is not what the platform runs, or `expected` is another signature.
pub fn code(
    platform: &str,
    runtime: &str,
    blob: bytes::Bytes,
    expected: Option<&[Direction]>,
) -> Result<ChipCode, ChipError> {
    let signature = backend(platform)?.describe(&blob)?;
    if let Some(expected) = expected.filter(|expected| *expected != signature.as_slice()) {
        return Err(ChipError::Signature {
            declared: names(&signature),
            given: names(expected),
        });
    }
    ChipCode::new(platform, runtime, &signature, blob)
        .map_err(|error| ChipError::Blob(error.to_string()))
}

fn names(signature: &[Direction]) -> String {
    let names: Vec<&str> = signature.iter().map(|direction| direction.name()).collect();
    format!("[{}]", names.join(", "))
}

/// The processes of chips as this program starts them: itself, with `chip` as its first argument. `None` when it has no name.
#[must_use]
pub fn this_program() -> ChildProgram {
    std::env::current_exe().map_or(ChildProgram::None, |program: PathBuf| {
        ChildProgram::Custom {
            program,
            args: vec!["chip".to_owned()],
        }
    })
}
