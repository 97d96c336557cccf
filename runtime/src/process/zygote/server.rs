//! The zygote's own side: single-threaded, forks one child a request, ends with its owner.
//!
//! A child is made by `clone3` and not by `fork`, because the C library has no `CLONE_PARENT`. What its `fork` does
//! beside, it does for processes with threads, but for one thing: the thread's own id is kept in memory, and the kernel
//! writes it there when it is told the address.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{getpid, getppid, setsid, Pid, Signal};

use super::message::{self, Reply, Request, FIRST, REQUEST_BYTES};
use super::surroundings::Surroundings;
use super::ZYGOTE_FLAG;
use crate::failpoint::hit;
use crate::process::fds::{forget_taken, region_socket_pair};
use crate::process::spawn::exit_now;
use crate::process::ProcessError;

/// Name of the process while it is a zygote, for `ps` and `top`.
const NAME: &std::ffi::CStr = c"echelon-zygote";
/// Exit status of a process that could not become the child that it was to be.
const NOT_STARTED: i32 = 127;

/// What an interpreter wants to be told around a fork.
#[derive(Clone, Copy, Debug)]
pub struct ZygoteHooks {
    /// Before it.
    pub before: fn(),
    /// After it in the zygote, also when it failed.
    pub in_parent: fn(),
    /// After it in the child.
    pub in_child: fn(),
}

/// Why [`serve`] returned.
#[derive(Debug, PartialEq, Eq)]
pub enum Forked {
    /// This process is a child: go on as a program with these arguments.
    Child(Vec<OsString>),
    /// The owner has gone or wants no more.
    Ended,
}

/// A zygote that this process forked off before it had threads, for its own children.
#[derive(Debug)]
pub struct OwnZygote {
    pub(super) pid: Pid,
    pub(super) socket: OwnedFd,
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) around: Surroundings,
}

/// Forks a zygote off this process, which must have one thread and have run no user code: `Ok(Ok(…))` in this process,
/// `Ok(Err(socket))` in the zygote, which is to [`serve`]. Its children stand for `program` with `args`, and have `env` on
/// top of this process's environment; the zygote is to take that over before it serves.
///
/// # Errors
/// [`ProcessError::Os`].
pub fn fork_off(
    program: PathBuf,
    args: Vec<OsString>,
    env: &[(OsString, OsString)],
    hooks: ZygoteHooks,
) -> Result<Result<OwnZygote, OwnedFd>, ProcessError> {
    let unsupported = ProcessError::os("fork (a zygote)");
    let around =
        Surroundings::take(env, false).ok_or_else(|| ProcessError::os("/proc")(Errno::NOENT))?;
    check_single().map_err(&unsupported)?;
    let (socket, of_zygote) = region_socket_pair()?;
    let owner = getpid();
    (hooks.before)();
    // SAFETY: this process has one thread, so nothing is held by another one; the C library runs what was registered for it.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        (hooks.in_parent)();
        let pid = Pid::from_raw(pid).filter(|_| pid > 0);
        let pid = pid.ok_or_else(|| ProcessError::Os {
            call: "fork (a zygote)",
            source: io::Error::last_os_error(),
        })?;
        let around = Surroundings::take(env, false).unwrap_or(around);
        return Ok(Ok(OwnZygote {
            pid,
            socket,
            program,
            args,
            around,
        }));
    }
    (hooks.in_child)();
    drop(socket);
    if end_with_owner(Some(owner)).and_then(|()| setsid()).is_err() {
        exit_now(NOT_STARTED);
    }
    Ok(Err(of_zygote))
}

/// Forks a child for each request that comes. Returns in every child, and in the zygote when its owner has gone.
///
/// # Errors
/// [`ProcessError::Os`] when the socket cannot be used; the zygote is to end then, and its owner executes its children.
pub fn serve(socket: OwnedFd, hooks: ZygoteHooks) -> Result<Forked, ProcessError> {
    let owner = getppid();
    let own = own_descriptors(socket.as_raw_fd()).map_err(ProcessError::os("/proc/self/fd"))?;
    let name = rustix::thread::name().map_err(ProcessError::os("prctl(PR_GET_NAME)"))?;
    // Only a name: without it the zygote serves as well.
    let _ = rustix::thread::set_name(NAME);
    hit("zygote.serve").map_err(|injected| ProcessError::Os {
        call: "zygote",
        source: injected.into(),
    })?;
    message::send(&socket, &message::ready(), &[]).map_err(ProcessError::os("sendmsg"))?;
    let mut buffer = vec![0; REQUEST_BYTES];
    let line = command_line();
    loop {
        let (request, fds) = match message::receive(&socket, &mut buffer, RecvFlags::empty()) {
            Ok(None) => return Ok(Forked::Ended),
            Ok(Some((count, fds))) => (buffer.get(..count).and_then(Request::decode), fds),
            Err(Errno::MSGSIZE) => (None, Vec::new()),
            Err(errno) => return Err(ProcessError::os("recvmsg")(errno)),
        };
        let forked = match request {
            Some(request) if fds.len() == FIRST + request.numbers.len() => match fork(hooks) {
                Ok(Some(())) => {
                    let _ = rustix::thread::set_name(&name);
                    become_child(&request, fds, owner, socket, &own);
                    strike_flag(line);
                    (hooks.in_child)();
                    return Ok(Forked::Child(request.args));
                }
                Ok(None) => Ok(()),
                Err(errno) => Err(errno),
            },
            _ => Err(Errno::BADMSG),
        };
        // The child has its own, and who reads the answer may count ours.
        drop(fds);
        // A child answers for itself; here only that there is none.
        if let Err(errno) = forked {
            let reply = Reply {
                pid: 0,
                errno: errno.raw_os_error(),
            };
            message::send(&socket, &reply.encode(), &[]).map_err(ProcessError::os("sendmsg"))?;
        }
    }
}

/// `Some` in the child.
fn fork(hooks: ZygoteHooks) -> Result<Option<()>, Errno> {
    hit("zygote.fork").map_err(|_| Errno::AGAIN)?;
    check_single()?;
    (hooks.before)();
    let forked = clone_as_sibling();
    if matches!(forked, Ok(Some(()))) {
        return forked;
    }
    (hooks.in_parent)();
    // What a test makes of it: the child goes on, whatever becomes of the zygote.
    let _ = hit("zygote.forked");
    forked
}

/// what other threads hold at a fork is held for ever in the child, so there must be none.
fn check_single() -> Result<(), Errno> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|_| Errno::NOENT)?;
    if tasks.take(2).count() == 1 {
        Ok(())
    } else {
        Err(Errno::BUSY)
    }
}

/// A copy of this process that is a child of this process's parent. `Some` in the copy.
fn clone_as_sibling() -> Result<Option<()>, Errno> {
    let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    // SAFETY: all fields are integers, for which zero is a value, and says "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.unsigned_abs());
    args.child_tid = own_id_address()?;
    // SAFETY: without CLONE_VM and without a stack the copy goes on here in memory of its own, as after fork. This process has
    // one thread (checked by the caller), so no lock is held by anybody else. `child_tid` is where the C library keeps the
    // id of this thread, and the kernel writes the copy's id there.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    match result {
        -1 => Err(last_errno()),
        0 => Ok(Some(())),
        _ => Ok(None),
    }
}

/// Where the C library keeps the id of this thread.
fn own_id_address() -> Result<u64, Errno> {
    const PR_GET_TID_ADDRESS: libc::c_int = 40;
    let mut address: *const i32 = std::ptr::null();
    // SAFETY: the kernel writes one pointer into a variable of that type.
    let result = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut address, 0, 0, 0) };
    if result == -1 {
        return Err(last_errno());
    }
    if address.is_null() || !address.is_aligned() {
        return Err(Errno::NOSYS);
    }
    // SAFETY: the C library gave this address to the kernel, as that of an integer which lives as long as the thread.
    let kept = unsafe { address.read() };
    // Another C library may keep something else there: then it must not be overwritten.
    if kept != getpid().as_raw_nonzero().get() {
        return Err(Errno::NOSYS);
    }
    Ok(address as u64)
}

/// In the child: makes of it what an executed child would be, and answers. Ends the process when that cannot be.
fn become_child(
    request: &Request,
    fds: Vec<OwnedFd>,
    owner: Option<Pid>,
    socket: OwnedFd,
    own: &[RawFd],
) {
    let fds: Vec<RawFd> = fds.into_iter().map(|fd| fd.into_raw_fd()).collect();
    let socket = socket.into_raw_fd();
    // Every number that is wanted is below this one, so nothing is overwritten before it was moved.
    let base = request.numbers.iter().copied().max().unwrap_or(2) + 1;
    let moved = move_up(socket, base);
    let settled = hit("zygote.child")
        .map_err(|_| Errno::AGAIN)
        .and_then(|()| settle(request, &fds, owner, base));
    let errno = settled.map_or_else(Errno::raw_os_error, |()| 0);
    let pid = getpid().as_raw_nonzero().get();
    let told = moved.and_then(|moved| {
        // SAFETY: the number was opened by `move_up` and is closed only below.
        let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(moved) };
        message::send(socket, &Reply { pid, errno }.encode(), &[])
    });
    let kept = [&request.numbers, own].concat();
    if errno != 0 || told.is_err() || close_all_but(kept).is_err() {
        exit_now(NOT_STARTED);
    }
    forget_taken();
}

fn settle(request: &Request, fds: &[RawFd], owner: Option<Pid>, base: RawFd) -> Result<(), Errno> {
    if request.outlives_parent {
        check_owner(owner);
    } else {
        end_with_owner(owner)?;
    }
    setsid()?;
    if let Some(umask) = request.umask {
        rustix::process::umask(rustix::fs::Mode::from_bits_truncate(umask));
    }
    if request.no_new_privileges {
        rustix::thread::set_no_new_privs(true)?;
    }
    let [folder, rest @ ..] = fds else {
        return Err(Errno::BADMSG);
    };
    // SAFETY: a system call on an integer.
    checked(unsafe { libc::fchdir(*folder) })?;
    let numbers = [1, 2].into_iter().chain(request.numbers.iter().copied());
    let moved: Result<Vec<RawFd>, Errno> = rest.iter().map(|fd| move_up(*fd, base)).collect();
    for (from, to) in moved?.into_iter().zip(numbers) {
        // SAFETY: a system call on integers. What was open under `to` in the zygote is of no use in the child.
        checked(unsafe { libc::dup2(from, to) })?;
    }
    Ok(())
}

/// The kernel ends this process with the owner's thread, from now on or at once.
fn end_with_owner(owner: Option<Pid>) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    check_owner(owner);
    Ok(())
}

/// An owner that ended before this process could be tied to it has no use for it.
fn check_owner(owner: Option<Pid>) {
    if getppid() != owner {
        exit_now(NOT_STARTED);
    }
}

/// A copy of a descriptor under a number that is not below `base`.
fn move_up(fd: RawFd, base: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: a system call on integers.
    checked(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, base) })
}

/// What this process has opened itself, the socket left out: every child has it. What it inherited and did not take over is closed:
/// it is the owner's, and pipes would never end, for one.
fn own_descriptors(socket: RawFd) -> Result<Vec<RawFd>, Errno> {
    let listed = std::fs::read_dir("/proc/self/fd").map_err(|_| Errno::NOENT)?;
    let numbers: Vec<RawFd> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let mut own = Vec::new();
    for number in numbers {
        if number <= 2 || number == socket {
            continue;
        }
        // SAFETY: system calls on integers. What is open and was not marked to close at exec is of no code in this process.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags == -1 {
            // The one that listed them.
            continue;
        }
        if flags & libc::FD_CLOEXEC == 0 {
            close_range(number.unsigned_abs(), number.unsigned_abs())?;
        } else {
            own.push(number);
        }
    }
    Ok(own)
}

/// Closes every descriptor but the standard three and `kept`. None that it closes may be used any more.
fn close_all_but(mut kept: Vec<RawFd>) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut first: libc::c_uint = 3;
    for number in kept {
        let number = number.unsigned_abs();
        if first < number {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the owners of these numbers were given up by the callers: this process does not go on with them.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == -1 {
        return Err(last_errno());
    }
    Ok(())
}

/// Where the command line of this process lies that `ps` shows, and of every copy of it: first byte and number of bytes.
fn command_line() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // pid (name) state ppid …, arg_start and arg_end are the 48th and 49th.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(45).map(str::parse::<usize>);
    let (start, end) = (fields.next()?.ok()?, fields.next()?.ok()?);
    let len = end.checked_sub(start)?;
    (start != 0 && (1..=REQUEST_BYTES).contains(&len)).then_some((start, len))
}

/// Takes what makes a zygote out of the command line that `ps` shows: a child is none. Of no consequence where it cannot be.
fn strike_flag(line: Option<(usize, usize)>) {
    let Some((start, len)) = line else {
        return;
    };
    // SAFETY: the kernel says that the arguments which this program was executed with lie there, on the stack of the main thread,
    // which is this one. The program has copied them at its start and there is no other thread.
    let line = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, len) };
    let flag = ZYGOTE_FLAG.as_bytes();
    if let Some(at) = line.windows(flag.len()).position(|word| word == flag) {
        line[at..].fill(0);
    }
}

fn checked(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result == -1 {
        return Err(last_errno());
    }
    Ok(result)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
