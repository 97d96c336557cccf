//! What can be wrong with devices and machine code.

/// Why a device or a chip callable cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChipError {
    /// No backend of that name.
    #[error("platform {platform:?} has no chips here; this build knows {known}")]
    Platform {
        /// The name, shortened.
        platform: String,
        /// The names that there are.
        known: String,
    },
    /// A list of devices that cannot be.
    #[error("{0}")]
    Devices(String),
    /// A device that is not there.
    #[error("there is no {platform} device {device}; there are {known}")]
    NoDevice {
        /// The platform.
        platform: &'static str,
        /// The device.
        device: i64,
        /// Those that there are.
        known: String,
    },
    /// Bytes that are no machine code of the platform.
    #[error("the machine code is refused: {0}")]
    Blob(String),
    /// A signature other than the one that was given.
    #[error("the machine code declares the signature {declared}, and {given} was given")]
    Signature {
        /// In the machine code.
        declared: String,
        /// By the caller.
        given: String,
    },
    /// The payload of a registration does not hold together.
    #[error("CHIP_CALLABLE: {0}")]
    Payload(String),
    /// The system could not load it.
    #[error("the machine code could not be loaded: {0}")]
    Load(String),
    /// Memory of an argument.
    #[error("argument memory: {0}")]
    Memory(String),
    /// The code returned another number than 0.
    #[error("the kernel returned {status}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
    Failed {
        /// What it returned.
        status: i32,
        /// What it said.
        message: String,
    },
}
