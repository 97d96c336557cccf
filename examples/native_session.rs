//! A session runner without any Python: a daemon starts it for each parent, and tasks are functions of this program.
//!
//! ```text
//! cargo build --example native_session
//! echelon-worker --port 7070 --insecure-loopback --session-command target/debug/examples/native_session
//! ```
//!
//! A parent, in Python or in Rust, names the functions as it names imports: `ec.RemoteCallable("native:scale")`.

use std::sync::Arc;

use echelon_runtime::{Orchestrator, TaskView, Worker};
use echelon_session::{session_main, NativeHost};
use echelon_wire::tensor::DataType;

/// `tensor 0 *= scalar 0`, in place: a FLOAT32 or FLOAT64 tensor, and a signed integer.
fn scale(_: &Orchestrator, view: TaskView) -> Result<(), String> {
    let (Some(tensor), Some(scalar)) = (view.tensors.first(), view.scalars.first()) else {
        return Err("native:scale takes a tensor and a scalar".to_owned());
    };
    let factor = *scalar as i64 as f64;
    let memory = tensor.memory().map_err(|error| error.to_string())?;
    let mut bytes = memory.to_vec();
    // A parent may hand over anything: what does not fit is an error of the task, and the session goes on.
    match tensor.meta().dtype() {
        DataType::Float32 => {
            for number in bytes.chunks_exact_mut(4) {
                let value = f32::from_le_bytes(number.try_into().unwrap_or_default());
                number.copy_from_slice(&(value * factor as f32).to_le_bytes());
            }
        }
        DataType::Float64 => {
            for number in bytes.chunks_exact_mut(8) {
                let value = f64::from_le_bytes(number.try_into().unwrap_or_default());
                number.copy_from_slice(&(value * factor).to_le_bytes());
            }
        }
        other => {
            return Err(format!(
                "native:scale takes FLOAT32 or FLOAT64, got {other:?}"
            ));
        }
    }
    memory.copy_in(0, &bytes).map_err(|error| error.to_string())
}

/// Always an error, which the parent gets with this text.
fn fail(_: &Orchestrator, view: TaskView) -> Result<(), String> {
    Err(format!("native:fail was called with {:?}", view.scalars))
}

/// Serves one parent; `args` are what the daemon appends to the command. Returns the exit status.
pub(crate) fn serve(args: impl Iterator<Item = String>) -> i32 {
    let host = NativeHost::new()
        .with("native:scale", scale)
        .with("native:fail", fail);
    session_main(args, Arc::new(host), Worker::builder())
}

fn main() {
    std::process::exit(serve(std::env::args().skip(1)));
}
