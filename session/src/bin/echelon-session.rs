//! The session runner without Python: serves native callables only. Started by the daemon.

use std::sync::Arc;

use echelon_runtime::Worker;
use echelon_session::NativeHost;

fn main() {
    let args = std::env::args().skip(1);
    std::process::exit(echelon_session::session_main(
        args,
        Arc::new(NativeHost::new()),
        Worker::builder(),
    ));
}
