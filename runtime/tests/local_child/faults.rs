//! Children and parents that die, stop, or keep what they were lent.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use echelon_runtime::{ChildProgram, Error, RegisterOptions, Tag, TaskArgs, Worker};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

use crate::{import, program, u8s, worker};

/// Waits for the end of a process that is not our child.
fn wait_gone(pid: u32, within: Duration) -> bool {
    let Ok(fd) = pidfd_open(raw_pid(pid), PidfdFlags::empty()) else {
        return true;
    };
    let timeout = within.try_into().unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}

fn raw_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

fn signal(pid: u32, signal: Signal) {
    let fd = pidfd_open(raw_pid(pid), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&fd, signal).unwrap();
}

/// Five points of the mailbox protocol: before READY, idle, at an install, in a task, after its completion.
pub(crate) fn r_041_a_child_that_dies_at_any_point_of_the_protocol_is_noticed() {
    let early = ChildProgram::Custom {
        program: std::env::current_exe().unwrap(),
        args: vec!["dies-early".into()],
    };
    let w = Worker::builder()
        .sub_workers(1)
        .child_program(early)
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    let error = w.init().unwrap_err().to_string();
    assert!(
        error.contains("signal 6") && error.contains("before it was ready"),
        "{error}"
    );
    w.close().unwrap();

    let w = worker(1);
    let register = |name: &str| w.register(import(name), RegisterOptions::default());
    let add = register("t:add").unwrap();
    let (die, die_later) = (register("t:die").unwrap(), register("t:die_later").unwrap());
    w.init().unwrap();
    let works = || {
        w.run_simple(|orch| orch.submit_sub(&add, TaskArgs::new()).map(drop))
            .map(drop)
    };
    // Idle: the next run finds it dead or replaces it before it submits; both are an end within the deadline.
    works().unwrap();
    let idle = w.workers()[0].pid;
    signal(idle, Signal::KILL);
    assert!(wait_gone(idle, Duration::from_secs(10)));
    if let Err(error) = works() {
        assert!(error.to_string().contains("lost"), "{error}");
    }
    works().unwrap();
    // At an install.
    let error = register("t:die_at_install").unwrap_err().to_string();
    assert!(error.contains("signal 6"), "{error}");
    if let Err(error) = works() {
        assert!(error.to_string().contains("lost"), "{error}");
    }
    works().unwrap();
    // In a task.
    let ran = w.run_simple(|orch| orch.submit_sub(&die, TaskArgs::new()).map(drop));
    assert!(ran.unwrap_err().to_string().contains("signal 6"));
    works().unwrap();
    // After the completion: the task has completed, and stays so.
    let (tensor, _) = w
        .run(|orch| {
            let tensor = orch.alloc(u8s(8))?;
            tensor.memory()?.zero().map_err(Error::from)?;
            let mut args = TaskArgs::new();
            args.add_tensor(&tensor, Tag::InOut)?;
            orch.submit_sub(&die_later, args)?;
            Ok::<_, Error>(tensor)
        })
        .unwrap();
    let late = w.workers()[0].pid;
    tensor.memory().unwrap().copy_in(0, &[99]).unwrap();
    assert!(wait_gone(late, Duration::from_secs(10)));
    if let Err(error) = works() {
        assert!(error.to_string().contains("lost"), "{error}");
    }
    works().unwrap();
    w.close().unwrap();
}

pub(crate) fn r_045_a_stopped_child_does_not_keep_the_worker_from_closing() {
    let w = Worker::builder()
        .sub_workers(3)
        .child_program(program())
        .memory_limit(Some(1 << 20))
        .close_timeout(Duration::from_secs(6))
        .build()
        .unwrap();
    w.init().unwrap();
    let pids: Vec<u32> = w.workers().iter().map(|info| info.pid).collect();
    for pid in &pids {
        signal(*pid, Signal::STOP);
    }
    let begun = Instant::now();
    w.close().unwrap();
    // Told together and killed together after half of the time, 3 s: further ones that are stopped cost nothing more.
    // One after the other they would take 5.25 s.
    assert!(begun.elapsed() < Duration::from_millis(4500));
    for pid in pids {
        assert!(
            pidfd_open(raw_pid(pid), PidfdFlags::empty()).is_err(),
            "{pid} was not reaped"
        );
    }
}

pub(crate) fn r_039_children_end_when_their_parent_is_killed() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .arg("parent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(parent.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let pids: Vec<u32> = line
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert_eq!(pids.len(), 2, "{line}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    for pid in pids {
        assert!(
            wait_gone(pid, Duration::from_secs(2)),
            "{pid} outlived its parent"
        );
    }
}

/// A process with two children, one of them in a task that never ends; prints their ids and waits to be killed.
pub(crate) fn parent_to_be_killed() {
    let w = worker(2);
    let spin = w
        .register(import("t:spin"), RegisterOptions::default())
        .unwrap();
    w.init().unwrap();
    let pids: Vec<String> = w
        .workers()
        .iter()
        .map(|info| info.pid.to_string())
        .collect();
    let _ = w.run_simple(|orch| {
        orch.submit_sub(&spin, TaskArgs::new())?;
        println!("{}", pids.join(" "));
        Ok(())
    });
}

pub(crate) fn section_15_8_children_outlive_the_thread_that_called_init() {
    let w = worker(1);
    let add = w
        .register(import("t:add"), RegisterOptions::default())
        .unwrap();
    let theirs = w.clone();
    std::thread::spawn(move || theirs.init().unwrap())
        .join()
        .unwrap();
    let pid = w.workers()[0].pid;
    for _ in 0..3 {
        w.run_simple(|orch| orch.submit_sub(&add, TaskArgs::new()).map(drop))
            .unwrap();
    }
    assert_eq!(w.workers()[0].pid, pid);
    w.close().unwrap();
}

pub(crate) fn section_15_6_memory_is_not_reused_while_a_child_has_a_view_of_it() {
    let w = Worker::builder()
        .sub_workers(1)
        .child_program(program())
        .memory_limit(Some(1 << 20))
        .build()
        .unwrap();
    let register = |name: &str| {
        w.register(import(name), RegisterOptions::default())
            .unwrap()
    };
    let (keep, let_go) = (register("t:keep"), register("t:let_go"));
    w.init().unwrap();
    let whole = u8s(1 << 20);
    w.run_simple(|orch| {
        let mut args = TaskArgs::new();
        args.add_tensor(&orch.alloc(whole)?, Tag::Output)?;
        orch.submit_sub(&keep, args).map(drop)
    })
    .unwrap();
    let take = || w.run_simple(|orch| orch.alloc(whole).map(drop));
    let error = take().unwrap_err().to_string();
    assert!(error.contains("1048576"), "{error}");
    w.run_simple(|orch| orch.submit_sub(&let_go, TaskArgs::new()).map(drop))
        .unwrap();
    // The release follows the completion of the task that let go.
    let deadline = Instant::now() + Duration::from_secs(20);
    while take().is_err() {
        assert!(Instant::now() < deadline, "the memory never came back");
        w.run_simple(|orch| orch.submit_sub(&let_go, TaskArgs::new()).map(drop))
            .unwrap();
    }
    w.close().unwrap();
}
