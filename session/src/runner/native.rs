//! The callables of a runner without Python: functions of the program, by name.

use std::collections::HashMap;
use std::sync::Arc;

use echelon_runtime::{CallableHost, HostedCallable, Orchestrator, TaskView};
use echelon_wire::callable::CallableKind;

type Function = dyn Fn(&Orchestrator, TaskView) -> Result<(), String> + Send + Sync;

/// Functions registered under the import path that a parent asks for, e.g. `native:scale`.
#[derive(Clone, Default)]
pub struct NativeHost {
    functions: HashMap<String, Arc<Function>>,
}

impl NativeHost {
    /// A host without functions: every request is refused, with the names that there are.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `function` under `target` (`module:qualname`).
    #[must_use]
    pub fn with<F>(mut self, target: &str, function: F) -> Self
    where
        F: Fn(&Orchestrator, TaskView) -> Result<(), String> + Send + Sync + 'static,
    {
        self.functions.insert(target.to_owned(), Arc::new(function));
        self
    }
}

struct Native(Arc<Function>);

impl CallableHost for NativeHost {
    fn resolve(
        &self,
        kind: CallableKind,
        payload: &[u8],
    ) -> Result<Arc<dyn HostedCallable>, String> {
        let target = std::str::from_utf8(payload).unwrap_or("").trim();
        match self.functions.get(target) {
            Some(function) if kind == CallableKind::PythonImport => {
                Ok(Arc::new(Native(Arc::clone(function))))
            }
            _ => {
                let mut names: Vec<&str> = self.functions.keys().map(String::as_str).collect();
                names.sort_unstable();
                Err(format!(
                    "this session runner has no Python and serves [{}] only; start the daemon with --python PATH for others",
                    names.join(", ")
                ))
            }
        }
    }
}

impl HostedCallable for Native {
    fn call_leaf(&self, _view: TaskView) -> Result<(), String> {
        Err("a function of a session runner is an orchestration function; it cannot run in a sub worker".to_owned())
    }

    fn call_orchestration(
        &self,
        orchestrator: &Orchestrator,
        view: TaskView,
    ) -> Result<(), String> {
        (self.0)(orchestrator, view)
    }
}
