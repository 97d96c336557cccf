//! The command line of a child: numbers of inherited descriptors.
//!
//! `--mailbox FD --bell FD --socket FD --regions ID:FD:LEN:W[,…] [--plan FD] [--spinners FD]`, ids in hexadecimal, `W` 1 for writable.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::memory::SharedRegion;
use crate::process::take_inherited_fd;

/// Largest plan, in bytes.
const PLAN_LIMIT: u64 = 512 << 20;

/// What a child inherits.
#[derive(Debug)]
pub struct ChildArgs {
    pub(crate) mailbox: OwnedFd,
    pub(crate) bell: OwnedFd,
    pub(crate) socket: OwnedFd,
    pub(crate) regions: Vec<Arc<SharedRegion>>,
    pub(crate) plan: Option<Vec<u8>>,
    /// The bell of the first worker of the tree, where that is not the parent.
    pub(crate) spinners: Option<OwnedFd>,
}

/// A command line that is not a child's.
#[derive(Debug, thiserror::Error)]
pub enum ChildArgsError {
    /// A flag that is not known, or without its value.
    #[error("{0}: unknown flag or missing value; this program is started by an Echelon worker, not by hand")]
    Flag(String),
    /// A value that cannot be read.
    #[error("{flag} {value}: {message}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        message: String,
    },
}

impl ChildArgs {
    /// Takes over the descriptors that the command line names.
    ///
    /// # Errors
    /// [`ChildArgsError`].
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, ChildArgsError> {
        let mut args = args
            .into_iter()
            .map(|arg| arg.to_string_lossy().into_owned());
        let (mut mailbox, mut bell, mut socket, mut regions, mut plan) =
            (None, None, None, Vec::new(), None);
        let mut spinners = None;
        while let Some(flag) = args.next() {
            let value = args
                .next()
                .ok_or_else(|| ChildArgsError::Flag(flag.clone()))?;
            match flag.as_str() {
                "--mailbox" => mailbox = Some(fd("--mailbox", &value)?),
                "--bell" => bell = Some(fd("--bell", &value)?),
                "--socket" => socket = Some(fd("--socket", &value)?),
                "--regions" => {
                    for part in value.split(',').filter(|part| !part.is_empty()) {
                        regions.push(region(part)?);
                    }
                }
                "--spinners" => spinners = Some(fd("--spinners", &value)?),
                "--plan" => plan = Some(read_plan(fd("--plan", &value)?, &value)?),
                _ => return Err(ChildArgsError::Flag(flag)),
            }
        }
        let need = |fd: Option<OwnedFd>, flag: &str| {
            fd.ok_or_else(|| ChildArgsError::Flag(flag.to_owned()))
        };
        Ok(Self {
            mailbox: need(mailbox, "--mailbox")?,
            bell: need(bell, "--bell")?,
            socket: need(socket, "--socket")?,
            regions,
            plan,
            spinners,
        })
    }
}

fn fd(flag: &'static str, value: &str) -> Result<OwnedFd, ChildArgsError> {
    let bad = |message: String| ChildArgsError::Value {
        flag,
        value: value.to_owned(),
        message,
    };
    let raw = value
        .parse()
        .map_err(|error: std::num::ParseIntError| bad(error.to_string()))?;
    take_inherited_fd(raw).map_err(|error| bad(error.to_string()))
}

fn region(part: &str) -> Result<Arc<SharedRegion>, ChildArgsError> {
    let bad = |message: &str| ChildArgsError::Value {
        flag: "--regions",
        value: part.to_owned(),
        message: message.to_owned(),
    };
    let fields: Vec<&str> = part.split(':').collect();
    let [id, raw, len, writable] = fields[..] else {
        return Err(bad("four fields are needed"));
    };
    let id = u64::from_str_radix(id, 16).map_err(|_| bad("the id is not hexadecimal"))?;
    let len = len.parse().map_err(|_| bad("the length is not a number"))?;
    SharedRegion::from_fd(id, fd("--regions", raw)?, len, writable == "1")
        .map_err(|error| bad(&error.to_string()))
}

fn read_plan(fd: OwnedFd, value: &str) -> Result<Vec<u8>, ChildArgsError> {
    let mut json = Vec::new();
    let read = std::fs::File::from(fd)
        .take(PLAN_LIMIT)
        .read_to_end(&mut json);
    read.map_err(|error| ChildArgsError::Value {
        flag: "--plan",
        value: value.to_owned(),
        message: error.to_string(),
    })?;
    Ok(json)
}

/// The arguments that name what a child inherits; the parent's side of [`ChildArgs::parse`].
pub(crate) fn command_line(
    mailbox: BorrowedFd<'_>,
    bell: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    regions: &[Arc<SharedRegion>],
    plan: Option<BorrowedFd<'_>>,
    spinners: Option<BorrowedFd<'_>>,
) -> Vec<String> {
    let mut args = vec![
        "--mailbox".to_owned(),
        mailbox.as_raw_fd().to_string(),
        "--bell".to_owned(),
        bell.as_raw_fd().to_string(),
        "--socket".to_owned(),
        socket.as_raw_fd().to_string(),
        "--regions".to_owned(),
        regions
            .iter()
            .map(|region| {
                let (id, fd, len) = (region.id(), region.fd().as_raw_fd(), region.len());
                format!("{id:x}:{fd}:{len}:{}", u8::from(region.is_writable()))
            })
            .collect::<Vec<_>>()
            .join(","),
    ];
    if let Some(plan) = plan {
        args.extend(["--plan".to_owned(), plan.as_raw_fd().to_string()]);
    }
    if let Some(spinners) = spinners {
        args.extend(["--spinners".to_owned(), spinners.as_raw_fd().to_string()]);
    }
    args
}
