use super::*;
use std::ffi::OsString;
use std::os::fd::AsRawFd;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn shell(script: &str) -> ChildSpec {
    ChildSpec {
        name: "shell".into(),
        program: "/bin/sh".into(),
        args: ["-c", script].map(OsString::from).into(),
        new_session: true,
        ..ChildSpec::default()
    }
}

fn nothing() -> OnExit {
    Box::new(|_| {})
}

fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[test]
fn r_041_how_a_child_ended_is_known_at_once() {
    let keeper = Keeper::start().unwrap();
    let (tell, told) = bounded(1);
    let child = keeper
        .spawn(
            shell("exit 7"),
            Box::new(move |info| tell.send(info).unwrap()),
        )
        .unwrap();
    let info = child.wait_exit(soon()).unwrap();
    assert_eq!(
        (info.pid, info.code, info.signal),
        (child.pid(), Some(7), None)
    );
    assert_eq!(told.recv_deadline(soon()).unwrap(), info);
    let child = keeper.spawn(shell("kill -SEGV $$"), nothing()).unwrap();
    assert_eq!(child.wait_exit(soon()).unwrap().signal, Some(libc::SIGSEGV));
    assert_eq!(process_state(child.pid()), None, "reaped");
    keeper.stop(soon()).unwrap();
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let keeper = Keeper::start().unwrap();
    let error = keeper
        .spawn(
            ChildSpec {
                program: "/no/such/program".into(),
                ..ChildSpec::default()
            },
            nothing(),
        )
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/no/such/program") && text.contains("No such file"),
        "{text}"
    );
}

#[test]
fn r_043_a_child_that_was_reaped_is_never_signalled() {
    let keeper = Keeper::start().unwrap();
    let child = keeper.spawn(shell("exit 0"), nothing()).unwrap();
    child.wait_exit(soon()).unwrap();
    child.signal(Signal::KILL).unwrap();
    child.kill_group();
    child.terminate();
}

#[test]
fn r_045_a_stopped_child_does_not_keep_the_others_and_is_killed() {
    let keeper = Keeper::start().unwrap();
    let stubborn = keeper
        .spawn(shell("kill -STOP $$; exit 1"), nothing())
        .unwrap();
    let deaf = keeper
        .spawn(shell("trap '' TERM; while :; do :; done"), nothing())
        .unwrap();
    let polite = keeper
        .spawn(shell("exec cat /dev/zero >/dev/null"), nothing())
        .unwrap();
    keeper.stop(soon()).unwrap();
    for child in [&stubborn, &deaf, &polite] {
        assert!(child.exit().is_some(), "{child:?}");
    }
    assert_eq!(polite.exit().unwrap().signal, Some(libc::SIGTERM));
    let error = keeper.spawn(shell("exit 0"), nothing()).unwrap_err();
    assert!(matches!(error, ProcessError::Stopped), "{error}");
    keeper.stop(soon()).unwrap();
}

#[test]
fn what_a_child_leaves_in_its_group_ends_with_it() {
    let keeper = Keeper::start().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell("sleep 1000 & echo $!");
    spec.stdout = Some(writer.into());
    let child = keeper.spawn(spec, nothing()).unwrap();
    child.wait_exit(soon()).unwrap();
    // The grandchild holds the pipe's other end: end of file proves that it is gone.
    let text = std::io::read_to_string(reader).unwrap();
    assert!(text.trim().parse::<u32>().is_ok(), "{text}");
}

#[test]
fn a_child_gets_its_descriptors_null_input_and_no_others() {
    let keeper = Keeper::start().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (kept, _other_end) = std::io::pipe().unwrap();
    let script = "ls -l /proc/self/fd; readlink /proc/self/fd/0; umask; cat /proc/self/status";
    let mut spec = shell(script);
    spec.stdout = Some(writer.into());
    (spec.umask, spec.no_new_privileges) = (Some(0o077), true);
    let number = kept.as_raw_fd();
    spec.fds.push(number);
    let secret = std::fs::File::open("/proc/self/status").unwrap();
    let child = keeper.spawn(spec, nothing()).unwrap();
    let text = std::io::read_to_string(reader).unwrap();
    assert!(child.wait_exit(soon()).is_some());
    assert!(text.contains(&format!(" {number} -> pipe:")), "{text}");
    assert!(
        !text.contains(&format!(" {} -> /proc", secret.as_raw_fd())),
        "{text}"
    );
    assert!(text.contains("/dev/null") && text.contains("077"), "{text}");
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(
        line("NoNewPrivs").ends_with('1') && line("SigIgn").ends_with("0000"),
        "{text}"
    );
    assert!(line("SigBlk").ends_with("0000000000000000"), "{text}");
}

#[test]
fn the_environment_is_what_was_said() {
    let keeper = Keeper::start().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell("env");
    spec.stdout = Some(writer.into());
    spec.clear_env = true;
    spec.env = vec![("A_NAME".into(), "a value".into())];
    keeper.spawn(spec, nothing()).unwrap();
    let text = std::io::read_to_string(reader).unwrap();
    assert!(
        text.contains("A_NAME=a value") && !text.contains("HOME="),
        "{text}"
    );
}

#[test]
fn a_callback_that_panics_harms_nobody() {
    let keeper = Keeper::start().unwrap();
    let child = keeper
        .spawn(shell("exit 0"), Box::new(|_| panic!("on purpose")))
        .unwrap();
    assert!(child.wait_exit(soon()).is_some());
    let child = keeper.spawn(shell("exit 3"), nothing()).unwrap();
    assert_eq!(child.wait_exit(soon()).unwrap().code, Some(3));
}

#[test]
fn section_15_8_a_child_outlives_the_thread_that_asked_for_it() {
    let keeper = Arc::new(Keeper::start().unwrap());
    let theirs = Arc::clone(&keeper);
    let (_reader, writer) = std::io::pipe().unwrap();
    let (input, mut output) = std::io::pipe().unwrap();
    let mut spec = shell("read line </proc/self/fd/$0; exit 5");
    spec.fds.push(input.as_raw_fd());
    spec.args.push(input.as_raw_fd().to_string().into());
    spec.stdout = Some(writer.into());
    let child = std::thread::spawn(move || theirs.spawn(spec, nothing()).unwrap())
        .join()
        .unwrap();
    std::io::Write::write_all(&mut output, b"go\n").unwrap();
    assert_eq!(
        child.wait_exit(soon()).unwrap().code,
        Some(5),
        "not killed by the end of the thread"
    );
}
