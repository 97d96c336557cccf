//! The process that owns a device: the child loop with a [`ChipHost`].

use std::ffi::OsString;
use std::sync::Arc;

use echelon_runtime::child::{Child, ChildArgs};
use echelon_runtime::Worker;

use super::ChipHost;

/// Serves as the process of a chip until its parent ends it; returns the exit status. `args` without the program's name and without
/// `chip`: `--platform P --runtime R --device N`, and then what every child gets. Started by the runtime.
#[allow(clippy::print_stderr)] // The parent has no other way to hear of a device that cannot be opened.
pub fn chip_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    match serve(args) {
        Ok(()) => 0,
        Err(text) => {
            eprintln!("echelon chip: {text}");
            1
        }
    }
}

fn serve(args: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    let mut args = args.into_iter();
    let mut flag = |name: &str| {
        let found = args.next().is_some_and(|flag| flag == name);
        let value = args.next().filter(|_| found);
        value
            .and_then(|value| value.into_string().ok())
            .ok_or_else(|| {
                format!(
                    "{name} is missing; this program is started by an Echelon worker, not by hand"
                )
            })
    };
    let (platform, runtime) = (flag("--platform")?, flag("--runtime")?);
    let device = flag("--device")?;
    let device: i64 = device
        .parse()
        .map_err(|_| format!("--device {device} is not a number"))?;
    let inherited = ChildArgs::parse(args).map_err(|error| error.to_string())?;
    let host = ChipHost::open(&platform, &runtime, device).map_err(|error| error.to_string())?;
    let child = Child::attach(inherited, Arc::new(host), Worker::builder());
    child
        .and_then(Child::serve)
        .map_err(|error| error.to_string())
}
