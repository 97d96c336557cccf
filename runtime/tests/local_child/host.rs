//! What this program can call when it is a child.

use std::sync::{Arc, Mutex};

use echelon_runtime::{
    CallableHost, Error, HostedCallable, Orchestrator, Tag, TaskArgs, TaskView, Tensor,
};
use echelon_wire::callable::CallableKind;

/// What a child keeps beyond its task.
static KEPT: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

/// What this program as a child can call, by qualname.
pub(crate) struct Host;

struct Hosted(String);

impl CallableHost for Host {
    fn resolve(
        &self,
        _kind: CallableKind,
        payload: &[u8],
    ) -> Result<Arc<dyn HostedCallable>, String> {
        let name = String::from_utf8_lossy(payload).into_owned();
        match name.as_str() {
            "t:die_at_install" => std::process::abort(),
            large if large.len() > 1000 => Ok(Arc::new(Hosted(format!("{} bytes", large.len())))),
            "t:missing" => Err("ModuleNotFoundError: No module named 't'".into()),
            _ => Ok(Arc::new(Hosted(name))),
        }
    }
}

impl HostedCallable for Hosted {
    fn call_leaf(&self, view: TaskView) -> Result<(), String> {
        match self.0.as_str() {
            "t:fail" => Err(format!("Traceback\nValueError: {}", view.scalars[0])),
            "t:die" => std::process::abort(),
            "t:keep" => {
                KEPT.lock().unwrap().extend(view.tensors);
                Ok(())
            }
            "t:let_go" => {
                KEPT.lock().unwrap().clear();
                Ok(())
            }
            "t:die_later" => {
                let memory = view.tensors[0].memory().unwrap();
                std::thread::spawn(move || loop {
                    if memory.to_vec()[0] == 99 {
                        std::process::abort();
                    }
                    std::thread::yield_now();
                });
                Ok(())
            }
            "t:spin" => loop {
                std::thread::park();
            },
            _ => {
                for tensor in view.tensors.iter().filter(|tensor| !tensor.is_read_only()) {
                    let memory = tensor.memory().map_err(|error| error.to_string())?;
                    let bytes: Vec<u8> = memory
                        .to_vec()
                        .iter()
                        .map(|byte| byte.wrapping_add(1))
                        .collect();
                    memory
                        .copy_in(0, &bytes)
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            }
        }
    }

    fn call_orchestration(&self, orch: &Orchestrator, view: TaskView) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        if self.0.ends_with(" bytes") {
            return Err(self.0.clone());
        }
        let leaf = orch.worker().find_handle("t:add").map_err(text)?;
        for tensor in &view.tensors {
            let mut args = TaskArgs::new();
            args.add_tensor(tensor, Tag::InOut).map_err(text)?;
            orch.submit_sub(&leaf, args).map_err(text)?;
        }
        Ok(())
    }
}
