//! Platform `cpu`: the machine itself as a device, for machine code in ELF shared objects.
//!
//! The blob never touches a disk: it goes into a sealed memfd that the system's loader maps. Everything that can be checked without
//! running it was checked before (`elf`); from the load on it is native code in a process of its own, which it may crash.

use std::ffi::{c_char, c_void, CString};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use echelon_runtime::memory::HostMemory;
use echelon_runtime::TaskView;
use echelon_wire::callable::Direction;
use echelon_wire::limits::MAX_TENSOR_DIMS;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rustix::fs::{MemfdFlags, SealFlags};

use super::{elf, ChipBackend, ChipDevice, ChipError, ChipKernel};

/// Devices of the platform: numbers for processes of their own, not cores. As many as a worker may have.
const DEVICES: i64 = echelon_runtime::chip::MAX_DEVICES as i64;

/// `ECHELON_CHIP_ABI`.
const ABI: u32 = 1;

/// Bytes that a kernel has for its message.
const MESSAGE_BYTES: usize = 1024;

/// The platform.
pub(super) struct Cpu;

impl ChipBackend for Cpu {
    fn platform(&self) -> &'static str {
        "cpu"
    }

    fn find(&self, device: i64) -> Result<(), ChipError> {
        if (0..DEVICES).contains(&device) {
            return Ok(());
        }
        Err(ChipError::NoDevice {
            platform: self.platform(),
            device,
            known: format!("0 to {}", DEVICES - 1),
        })
    }

    fn describe(&self, blob: &[u8]) -> Result<Vec<Direction>, ChipError> {
        elf::describe(blob)
    }

    fn open(&self, device: i64) -> Result<Box<dyn ChipDevice>, ChipError> {
        self.find(device)?;
        Ok(Box::new(CpuDevice { device }))
    }
}

struct CpuDevice {
    device: i64,
}

impl ChipDevice for CpuDevice {
    fn load(&self, blob: &[u8], signature: &[Direction]) -> Result<Box<dyn ChipKernel>, ChipError> {
        let file = sealed_file(blob).map_err(|error| ChipError::Load(error.to_string()))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let text = |error: libloading::Error| ChipError::Load(error.to_string());
        // SAFETY: loading runs the object's initialisers, which are native code that nothing can vouch for. That is what a chip
        // callable is: this process exists to run it, owns one device and nothing else, and its end is an event that its parent
        // handles. RTLD_LOCAL keeps its symbols from everybody else's.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(text)?;
        // SAFETY: `elf::describe` found the symbol as a defined function of this very object, and the header that declares it
        // gives it the type `Entry`; a definition with another type is the kernel's fault and stays in this process.
        let entry = *unsafe { library.get::<Entry>(elf::ENTRY.as_bytes()) }.map_err(text)?;
        Ok(Box::new(CpuKernel {
            entry,
            device: self.device,
            directions: signature
                .iter()
                .copied()
                .filter(|direction| *direction != Direction::Scalar)
                .collect(),
            _library: library,
            _file: file,
        }))
    }
}

/// The blob in memory, and nobody can change it any more.
fn sealed_file(blob: &[u8]) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("echelon-chip", flags)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(blob)?;
    let fd = OwnedFd::from(file);
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    Ok(fd)
}

/// `echelon_tensor`.
#[repr(C)]
struct RawTensor {
    data: *mut c_void,
    nbytes: u64,
    dtype: u32,
    ndims: u32,
    shape: [u32; MAX_TENSOR_DIMS],
    direction: u32,
}

/// `echelon_config`.
#[repr(C)]
struct RawConfig {
    abi: u32,
    message_size: u32,
    device: i64,
    block_dim: i32,
    aicpu_thread_num: i32,
    enable_l2_swimlane: i32,
    enable_dump_tensor: i32,
    enable_pmu: i32,
    enable_dep_gen: i32,
    enable_scope_stats: i32,
    reserved: i32,
    output_prefix: *const c_char,
    message: *mut c_char,
}

type Entry = unsafe extern "C" fn(*const RawTensor, u32, *const u64, u32, *const RawConfig) -> i32;

/// Fields are dropped in this order: the code is unmapped after nobody can call it.
struct CpuKernel {
    entry: Entry,
    device: i64,
    directions: Arc<[Direction]>,
    _library: Library,
    _file: OwnedFd,
}

impl ChipKernel for CpuKernel {
    fn launch(&self, view: &TaskView) -> Result<(), ChipError> {
        let memory: Vec<HostMemory> = view
            .tensors
            .iter()
            .map(|tensor| {
                let memory = tensor.memory();
                memory.map_err(|error| ChipError::Memory(error.to_string()))
            })
            .collect::<Result<_, _>>()?;
        let tensors: Vec<RawTensor> = view
            .tensors
            .iter()
            .zip(&memory)
            .zip(self.directions.iter())
            .map(|((tensor, memory), direction)| raw_tensor(tensor, memory, *direction))
            .collect();
        // A prefix may go on after a NUL, which ends it here (slr3-v1 §4.3).
        let prefix = view.config.output_prefix.split('\0').next().unwrap_or("");
        let prefix = CString::new(prefix).unwrap_or_default();
        let mut message = [0_u8; MESSAGE_BYTES];
        let config = &view.config;
        let raw = RawConfig {
            abi: ABI,
            message_size: MESSAGE_BYTES as u32,
            device: self.device,
            block_dim: config.block_dim,
            aicpu_thread_num: config.aicpu_thread_num,
            enable_l2_swimlane: config.enable_l2_swimlane,
            enable_dump_tensor: config.enable_dump_tensor,
            enable_pmu: config.enable_pmu,
            enable_dep_gen: config.enable_dep_gen,
            enable_scope_stats: config.enable_scope_stats,
            reserved: 0,
            output_prefix: prefix.as_ptr(),
            message: message.as_mut_ptr().cast(),
        };
        let (n, m) = (tensors.len() as u32, view.scalars.len() as u32);
        // SAFETY: the function is mapped as long as `_library` is, which `self` holds. Every pointer is valid for the call:
        // `tensors`, `scalars`, `prefix`, `raw` and `message` live until after it, and the tensors' memory is pinned by `memory`.
        // Counts are those of the slices; a task has at most 4096 of each. What the code does with them is its own affair, in a
        // process that exists for it.
        let status = unsafe { (self.entry)(tensors.as_ptr(), n, view.scalars.as_ptr(), m, &raw) };
        drop(memory);
        if status == 0 {
            return Ok(());
        }
        let end = message.iter().position(|byte| *byte == 0);
        let message = &message[..end.unwrap_or(MESSAGE_BYTES)];
        Err(ChipError::Failed {
            status,
            message: String::from_utf8_lossy(message).into_owned(),
        })
    }
}

fn raw_tensor(
    tensor: &echelon_runtime::Tensor,
    memory: &HostMemory,
    direction: Direction,
) -> RawTensor {
    let meta = tensor.meta();
    let mut shape = [0; MAX_TENSOR_DIMS];
    for (word, extent) in shape.iter_mut().zip(meta.shape()) {
        *word = *extent;
    }
    RawTensor {
        data: memory.as_ptr().cast(),
        nbytes: tensor.nbytes(),
        dtype: meta.dtype().code(),
        ndims: meta.shape().len() as u32,
        shape,
        direction: direction.code(),
    }
}
