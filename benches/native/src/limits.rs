//! What the machine allows: `limits` reads lines of a name and a count, and answers each with that many samples in one line.
//!
//! `spin`, `futex`, `tcp`: µs for a word, or a byte, there and back, the other side in a process of its own. `trio`: µs for a word to
//! one of two such processes and back, each in turn, where all sleep. `syscall`: ns. `stream`,
//! `memcpy`, `memcpy.cold`: MB/s for a block. The other side is this program again, started as `limits echo FD` or `limits tcp PORT`.

use std::hint::{black_box, spin_loop};
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Instant;

use echelon_runtime::mailbox::Word32;
use echelon_runtime::memory::SharedRegion;
use rustix::thread::futex;

type Fault = Box<dyn std::error::Error>;

/// Size of the region with the two words; each has a cache line of its own.
const REGION_BYTES: u64 = 4096;
const PING: u64 = 0;
const PONG: u64 = 128;
/// Set in a ping that must be waited for in the kernel from now on.
const SLEEPY: u32 = 1 << 31;
const LAST: u32 = u32::MAX;
/// A block for copies and streams.
const BLOCK_BYTES: usize = 64 << 20;
/// System calls in a sample.
const CALLS: u32 = 1_000;
const MB: f64 = 1e6;

#[allow(clippy::print_stderr)] // A command says why it failed.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve(),
        ["echo", path] => echo(path),
        ["tcp", port] => tcp_echo(port),
        _ => Err("limits reads its commands from standard input".into()),
    };
    if let Err(error) = done {
        eprintln!("limits: {error}");
        std::process::exit(1);
    }
}

#[allow(clippy::print_stdout)] // Its answers.
fn serve() -> Result<(), Fault> {
    let mut shared = SharedEcho::start()?;
    let mut pair = [SharedEcho::start()?, SharedEcho::start()?];
    let mut turns = 0_usize;
    let mut tcp = TcpEcho::start()?;
    let (data, mut target) = (vec![1_u8; BLOCK_BYTES], vec![2_u8; BLOCK_BYTES]);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (name, count) = line.split_once(' ').ok_or("a line is NAME COUNT")?;
        let count: usize = count.parse()?;
        let mut sample = || -> Result<f64, Fault> {
            Ok(match name {
                "spin" => micros(|| shared.turn(false))?,
                "futex" => micros(|| shared.turn(true))?,
                "trio" => {
                    turns += 1;
                    micros(|| pair[turns % 2].turn(true))?
                }
                "tcp" => micros(|| tcp.turn())?,
                "syscall" => system_call(),
                "stream" => rate(|| tcp.stream(&data))?,
                "memcpy" => rate(|| copy(&mut target, &data))?,
                "memcpy.cold" => cold_copy(&data)?,
                _ => return Err(format!("no limit has the name {name:?}").into()),
            })
        };
        let samples = (0..count)
            .map(|_| sample())
            .collect::<Result<Vec<_>, _>>()?;
        println!("{samples:?}");
    }
    shared.end()?;
    for echo in pair {
        echo.end()?;
    }
    tcp.end()
}

fn micros(action: impl FnOnce() -> Result<(), Fault>) -> Result<f64, Fault> {
    let start = Instant::now();
    action()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

fn rate(action: impl FnOnce() -> Result<(), Fault>) -> Result<f64, Fault> {
    let start = Instant::now();
    action()?;
    Ok(BLOCK_BYTES as f64 / MB / start.elapsed().as_secs_f64())
}

fn system_call() -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        black_box(rustix::process::getppid());
    }
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn copy(target: &mut [u8], data: &[u8]) -> Result<(), Fault> {
    target.copy_from_slice(black_box(data));
    black_box(target);
    Ok(())
}

/// A copy into pages that the process does not have yet; they are given back after the clock has stopped.
fn cold_copy(data: &[u8]) -> Result<f64, Fault> {
    let mut fresh: Vec<u8> = Vec::with_capacity(BLOCK_BYTES);
    rate(|| {
        fresh.extend_from_slice(black_box(data));
        black_box(&fresh);
        Ok(())
    })
}

/// This program again, in another role.
fn other_side(role: &str, argument: &str) -> Result<Child, Fault> {
    Ok(Command::new(std::env::current_exe()?)
        .args([role, argument])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?)
}

/// Two words in memory that two processes share.
struct Words {
    ping: Word32,
    pong: Word32,
}

impl Words {
    fn of(region: &Arc<SharedRegion>) -> Result<Self, Fault> {
        Ok(Self {
            ping: Word32::new(region, PING)?,
            pong: Word32::new(region, PONG)?,
        })
    }
}

fn set(word: &AtomicU32, value: u32, sleepy: bool) {
    word.store(value, Ordering::SeqCst);
    if sleepy {
        let _ = futex::wake(word, futex::Flags::empty(), 1);
    }
}

/// Waits until `word` is not `seen` any more, and returns what it is.
fn await_change(word: &AtomicU32, seen: u32, sleepy: bool) -> u32 {
    loop {
        let now = word.load(Ordering::SeqCst);
        if now != seen {
            return now;
        }
        if sleepy {
            let _ = futex::wait(word, futex::Flags::empty(), seen, None);
        } else {
            spin_loop();
        }
    }
}

struct SharedEcho {
    words: Words,
    child: Child,
    count: u32,
    sleepy: bool,
}

impl SharedEcho {
    fn start() -> Result<Self, Fault> {
        let region = SharedRegion::create_memfd(REGION_BYTES, true)?;
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            region.fd().as_raw_fd()
        );
        let words = Words::of(&region)?;
        let child = other_side("echo", &path)?;
        let mut echo = Self {
            words,
            child,
            count: 0,
            sleepy: true,
        };
        echo.turn(true)?;
        Ok(echo)
    }

    /// Adds one to the ping, and waits until the pong has followed. The other side waits for the next in the way of this one.
    fn turn(&mut self, sleepy: bool) -> Result<(), Fault> {
        self.count = (self.count + 1) % (SLEEPY - 1);
        let value = self.count | if sleepy { SLEEPY } else { 0 };
        let before = self.words.pong.load(Ordering::SeqCst);
        set(&self.words.ping, value, self.sleepy);
        self.sleepy = sleepy;
        if await_change(&self.words.pong, before, sleepy) != value {
            return Err("the other side answered something else".into());
        }
        Ok(())
    }

    fn end(mut self) -> Result<(), Fault> {
        set(&self.words.ping, LAST, true);
        self.child.wait()?;
        Ok(())
    }
}

fn echo(path: &str) -> Result<(), Fault> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let region = SharedRegion::from_fd(1, OwnedFd::from(file), REGION_BYTES, true)?;
    let words = Words::of(&region)?;
    let (mut seen, mut sleepy) = (0, true);
    loop {
        seen = await_change(&words.ping, seen, sleepy);
        if seen == LAST {
            return Ok(());
        }
        sleepy = seen & SLEEPY != 0;
        set(&words.pong, seen, sleepy);
    }
}

struct TcpEcho {
    stream: TcpStream,
    child: Child,
}

impl TcpEcho {
    fn start() -> Result<Self, Fault> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let child = other_side("tcp", &listener.local_addr()?.port().to_string())?;
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, child })
    }

    fn turn(&mut self) -> Result<(), Fault> {
        self.stream.write_all(&[1])?;
        Ok(self.stream.read_exact(&mut [0])?)
    }

    /// The whole block there, one byte back.
    fn stream(&mut self, block: &[u8]) -> Result<(), Fault> {
        self.stream.write_all(&[2])?;
        self.stream.read_exact(&mut [0])?;
        self.stream.write_all(block)?;
        Ok(self.stream.read_exact(&mut [0])?)
    }

    fn end(mut self) -> Result<(), Fault> {
        self.stream.write_all(&[0])?;
        self.child.wait()?;
        Ok(())
    }
}

fn tcp_echo(port: &str) -> Result<(), Fault> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse::<u16>()?))?;
    stream.set_nodelay(true)?;
    let mut block = vec![1_u8; BLOCK_BYTES];
    let mut command = [0];
    loop {
        stream.read_exact(&mut command)?;
        match command[0] {
            0 => return Ok(()),
            1 => {}
            _ => {
                stream.write_all(&command)?;
                stream.read_exact(&mut block)?;
            }
        }
        stream.write_all(&command)?;
    }
}
