//! The session runner without Python: serves native callables only. Started by the daemon; `echelon-session chip …` is the process
//! of one of its chips.

use std::sync::Arc;

use echelon_runtime::Worker;
use echelon_session::{chip, NativeHost};

fn main() {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|first| first == "chip").is_some() {
        std::process::exit(chip::chip_main(args));
    }
    std::process::exit(echelon_session::session_main(
        std::env::args().skip(1),
        Arc::new(NativeHost::new()),
        Worker::builder().chip_program(chip::this_program()),
    ));
}
