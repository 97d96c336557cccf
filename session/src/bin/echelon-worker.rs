//! The worker daemon: `echelon-worker --host 127.0.0.1 --port 0 --insecure-loopback`.

fn main() {
    std::process::exit(echelon_session::daemon_main(std::env::args().skip(1), None));
}
