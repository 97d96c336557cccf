//! Named points at which a test makes a step of a start or an end fail. There in builds for development only (debug assertions, or the
//! feature `failpoints`); otherwise every point is `Ok` and the compiler removes it.
//!
//! The variable `ECHELON_FAILPOINTS` names a file with one point a line: `init.arena fail`, or `init.sub.1 hang` for the second sub
//! worker alone. Every process that has the variable looks at the file whenever it comes by a point, so a test arms and disarms
//! them in processes that run, by writing the file. What was hit is appended to the file's neighbour with `.hit` at its end.
//!
//! | word | what happens |
//! |---|---|
//! | `fail` | the step fails, and its error names the point |
//! | `exit` | the process exits with status 7 |
//! | `crash` | the process ends by SIGSEGV |
//! | `panic` | the thread panics |
//! | `hang` | the step waits until the file does not say so any more, then goes on |

/// A step that a test made fail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {0}")]
pub struct Injected(String);

impl From<Injected> for std::io::Error {
    fn from(injected: Injected) -> Self {
        Self::other(injected)
    }
}

impl From<Injected> for crate::Error {
    fn from(injected: Injected) -> Self {
        Self::Startup {
            worker: "this process".into(),
            message: injected.to_string(),
        }
    }
}

/// Passes the point `name`.
///
/// # Errors
/// [`Injected`] when a test wants it.
#[inline]
pub fn hit(name: &str) -> Result<(), Injected> {
    imp::hit(name, None)
}

/// Passes the point `name` of the item `index`: a test may name `name` or `name.index`.
///
/// # Errors
/// [`Injected`] when a test wants it.
#[inline]
pub fn hit_at(name: &str, index: impl TryInto<u32>) -> Result<(), Injected> {
    imp::hit(name, index.try_into().ok())
}

/// Passes a point that every task comes by. Whether the variable is set is known from the last other point, such as those of each
/// `init()`: to look it up costs more than much of a submit.
///
/// # Errors
/// [`Injected`] when a test wants it.
#[inline]
pub fn hit_often(name: &str) -> Result<(), Injected> {
    imp::hit_often(name)
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
mod imp {
    #[inline(always)]
    pub(super) fn hit(_: &str, _: Option<u32>) -> Result<(), super::Injected> {
        Ok(())
    }

    #[inline(always)]
    pub(super) fn hit_often(_: &str) -> Result<(), super::Injected> {
        Ok(())
    }
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod imp {
    use std::ffi::{OsStr, OsString};
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::Injected;

    /// Names the file.
    const VARIABLE: &str = "ECHELON_FAILPOINTS";

    /// The variable was set when a point was passed last.
    static SET: AtomicBool = AtomicBool::new(false);

    #[inline]
    pub(super) fn hit_often(name: &str) -> Result<(), Injected> {
        if SET.load(Ordering::Relaxed) {
            return hit(name, None);
        }
        Ok(())
    }

    pub(super) fn hit(name: &str, index: Option<u32>) -> Result<(), Injected> {
        // Looked up each time: a test sets it for itself, in a process that has had Workers before.
        let path = std::env::var_os(VARIABLE);
        SET.store(path.is_some(), Ordering::Relaxed);
        let Some(path) = path else {
            return Ok(());
        };
        let exact = index.map(|index| format!("{name}.{index}"));
        let named = |point: &str| point == name || Some(point) == exact.as_deref();
        let Some((point, action)) = armed(&path, &named) else {
            return Ok(());
        };
        note(&path, &point);
        match action.as_str() {
            "exit" => std::process::exit(7),
            "crash" => {
                let me = rustix::process::getpid();
                let _ = rustix::process::kill_process(me, rustix::process::Signal::SEGV);
                std::process::abort();
            }
            "panic" => panic!("failpoint {point}"),
            "hang" => {
                while armed(&path, &named).is_some_and(|(_, action)| action == "hang") {
                    std::thread::park_timeout(Duration::from_millis(5));
                }
                Ok(())
            }
            _ => Err(Injected(point)),
        }
    }

    /// The line of the file that is meant.
    fn armed(path: &OsStr, named: &impl Fn(&str) -> bool) -> Option<(String, String)> {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| {
            let (point, action) = line.trim().split_once(' ')?;
            named(point).then(|| (point.to_owned(), action.to_owned()))
        })
    }

    fn note(path: &OsStr, point: &str) {
        let mut name = OsString::from(path);
        name.push(".hit");
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(name);
        // A test that waits for the note will say that it did not come.
        let _ = file.and_then(|mut file| writeln!(file, "{point}"));
    }
}
