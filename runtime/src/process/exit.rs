//! How a child ended.

use std::fmt;

/// How a child ended, for messages and decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitInfo {
    /// Its process id; belongs to nobody or to somebody else now.
    pub pid: u32,
    /// Exit status, when it ended by itself.
    pub code: Option<i32>,
    /// Signal, when one ended it. Neither is known when somebody else reaped it.
    pub signal: Option<i32>,
}

impl ExitInfo {
    /// Why it may have ended so, or nothing when there is nothing to guess.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self.signal {
            Some(libc::SIGKILL) => "out of memory, or killed by hand?",
            Some(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE) => {
                "a fault in native code?"
            }
            Some(libc::SIGABRT) => "native code gave up; look at its standard error",
            Some(libc::SIGXCPU) => "its limit of processor time is reached",
            _ => match self.code {
                Some(127) => "the program or one of its libraries was not found",
                Some(0) => "user code called exit?",
                _ => "",
            },
        }
    }
}

impl fmt::Display for ExitInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal, self.hint()) {
            (Some(code), _, "") => write!(f, "exited with status {code}"),
            (Some(code), _, hint) => write!(f, "exited with status {code} ({hint})"),
            (None, Some(signal), hint) => {
                write!(f, "was killed by signal {signal} ({}", signal_name(signal))?;
                f.write_str(if hint.is_empty() { "" } else { "; " })?;
                write!(f, "{hint})")
            }
            (None, None, _) => f.write_str("ended; its status was collected by somebody else"),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    nix::sys::signal::Signal::try_from(signal).map_or("unknown", |signal| signal.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_happened_and_guesses_why() {
        let text = |code, signal| {
            ExitInfo {
                pid: 12,
                code,
                signal,
            }
            .to_string()
        };
        assert_eq!(
            text(None, Some(9)),
            "was killed by signal 9 (SIGKILL; out of memory, or killed by hand?)"
        );
        assert_eq!(text(None, Some(15)), "was killed by signal 15 (SIGTERM)");
        assert_eq!(text(Some(3), None), "exited with status 3");
        assert_eq!(
            text(Some(0), None),
            "exited with status 0 (user code called exit?)"
        );
        assert!(text(None, None).contains("somebody else"));
        assert!(text(None, Some(64)).contains("unknown"));
    }
}
