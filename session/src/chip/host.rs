//! The callables of a process that owns a device: machine code, and nothing else.

use std::sync::Arc;

use echelon_runtime::{CallableHost, ChipCode, HostedCallable, Orchestrator, TaskView};
use echelon_wire::callable::{CallableKind, Direction};

use super::{ChipBackend, ChipDevice, ChipError, ChipKernel};

/// Loads machine code onto one device.
pub struct ChipHost {
    backend: &'static dyn ChipBackend,
    device: Box<dyn ChipDevice>,
    runtime: String,
    /// For messages: `cpu device 1`.
    name: Arc<str>,
}

impl ChipHost {
    /// Opens the device.
    ///
    /// # Errors
    /// [`ChipError`] when there is none such.
    pub fn open(platform: &str, runtime: &str, device: i64) -> Result<Self, ChipError> {
        let backend = super::backend(platform)?;
        Ok(Self {
            backend,
            device: backend.open(device)?,
            runtime: runtime.to_owned(),
            name: format!("{platform} device {device}").into(),
        })
    }

    fn load(&self, payload: &[u8]) -> Result<Kernel, String> {
        let code = ChipCode::from_local_payload(payload)?;
        let own = (self.backend.platform(), self.runtime.as_str());
        if (code.platform(), code.runtime()) != own {
            return Err(format!(
                "the machine code is for platform {} with runtime {}, and this is {} with runtime {}",
                code.platform(),
                code.runtime(),
                own.0,
                own.1
            ));
        }
        let text = |error: ChipError| error.to_string();
        let declared = self.backend.describe(code.blob()).map_err(text)?;
        if declared != code.signature() {
            let given = super::names(code.signature());
            let declared = super::names(&declared);
            return Err(text(ChipError::Signature { declared, given }));
        }
        let kernel = self.device.load(code.blob(), code.signature());
        Ok(Kernel {
            kernel: kernel.map_err(text)?,
            tensors: code
                .signature()
                .iter()
                .filter(|direction| **direction != Direction::Scalar)
                .count(),
            scalars: code
                .signature()
                .iter()
                .filter(|direction| **direction == Direction::Scalar)
                .count(),
            name: Arc::clone(&self.name),
        })
    }
}

impl CallableHost for ChipHost {
    fn resolve(
        &self,
        kind: CallableKind,
        payload: &[u8],
    ) -> Result<Arc<dyn HostedCallable>, String> {
        if kind != CallableKind::ChipCallable {
            return Err(format!("{} runs machine code only", self.name));
        }
        match self.load(payload) {
            Ok(kernel) => Ok(Arc::new(kernel)),
            Err(text) => Err(format!("{}: {text}", self.name)),
        }
    }
}

struct Kernel {
    kernel: Box<dyn ChipKernel>,
    tensors: usize,
    scalars: usize,
    name: Arc<str>,
}

impl HostedCallable for Kernel {
    fn call_leaf(&self, view: TaskView) -> Result<(), String> {
        // The submit was checked against the signature. Checked again here, because machine code relies on it with raw memory.
        if (view.tensors.len(), view.scalars.len()) != (self.tensors, self.scalars) {
            return Err(format!(
                "{}: {} tensors and {} scalars came for a kernel that takes {} and {}",
                self.name,
                view.tensors.len(),
                view.scalars.len(),
                self.tensors,
                self.scalars
            ));
        }
        let launched = self.kernel.launch(&view);
        launched.map_err(|error| format!("{}: {error}", self.name))
    }

    fn call_orchestration(
        &self,
        _orchestrator: &Orchestrator,
        _view: TaskView,
    ) -> Result<(), String> {
        Err(format!(
            "{} has no workers below it; machine code is a leaf",
            self.name
        ))
    }
}
