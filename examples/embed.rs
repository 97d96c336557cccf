//! Echelon without Python: a tree of sums over worker threads, on shared tensors.
//!
//! Run it with `cargo run --example embed`.

use echelon_runtime::{Callable, Error, RegisterOptions, Tag, TaskArgs, TaskView, Worker};
use echelon_wire::tensor::{DataType, TensorMeta};

/// Reads the 64-bit integers of argument `index`.
fn numbers(view: &TaskView, index: usize) -> Result<Vec<i64>, String> {
    let bytes = view.tensors[index]
        .memory()
        .map_err(|error| error.to_string())?
        .to_vec();
    Ok(bytes
        .chunks_exact(8)
        .map(|eight| i64::from_le_bytes(eight.try_into().unwrap_or_default()))
        .collect())
}

/// `out[0] = sum(in)`: argument 0 is read, argument 1 written.
fn sum(view: TaskView) -> Result<(), String> {
    let total: i64 = numbers(&view, 0)?.iter().sum();
    let out = view.tensors[1]
        .memory()
        .map_err(|error| error.to_string())?;
    out.copy_in(0, &total.to_le_bytes())
        .map_err(|error| error.to_string())
}

#[allow(clippy::print_stdout)] // An example is there to print.
fn main() -> Result<(), Error> {
    let worker = Worker::builder().threads(2).build()?;
    let sum = worker.register(Callable::native("sum", sum), RegisterOptions::default())?;
    worker.init()?;

    let meta = |count: u32| {
        TensorMeta::new(&[count], DataType::Int64)
            .map_err(|error| Error::argument("shape", error.to_string()))
    };
    let mut total = 0;
    let report = worker.run_simple(|orch| {
        // Eight parts of 1..=8000, summed side by side; then their sums, which waits for all eight: nobody says so, the
        // dependency follows from the bytes.
        let parts = orch.alloc(meta(8)?)?;
        for part in 0..8_i64 {
            let input = orch.alloc(meta(1000)?)?;
            let values: Vec<u8> = (1..=1000)
                .flat_map(|n: i64| (part * 1000 + n).to_le_bytes())
                .collect();
            input.memory()?.copy_in(0, &values)?;
            let mut args = TaskArgs::new();
            args.add_tensor(&input, Tag::Input)?
                .add_tensor(&parts.rows(part as u32, 1)?, Tag::Output)?;
            orch.submit_sub(&sum, args)?;
        }
        let result = orch.alloc(meta(1)?)?;
        let mut args = TaskArgs::new();
        args.add_tensor(&parts, Tag::Input)?
            .add_tensor(&result, Tag::Output)?;
        orch.submit_sub(&sum, args)?;
        orch.wait_all()?;
        let bytes = result.memory()?.to_vec();
        total = i64::from_le_bytes(bytes.try_into().unwrap_or_default());
        Ok(())
    })?;
    println!(
        "sum of 1..=8000 is {total}, in {} tasks by {:?}",
        report.counts["completed"], report.tasks_per_worker
    );
    assert_eq!(total, 8000 * 8001 / 2);
    worker.close()
}
