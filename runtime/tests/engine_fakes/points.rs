//! A failpoint that holds the copying thread, or makes a copy fail. The variable that names the file is set for a child process, which
//! runs one test alone: nothing may change the environment of a process with threads.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use echelon_runtime::testing::fake::PATIENCE;

const VARIABLE: &str = "ECHELON_FAILPOINTS";

pub(crate) struct Points(PathBuf);

impl Points {
    /// The points of this process. `None` in the process that was asked to run `test`: the test has run, in a child.
    pub(crate) fn of(test: &str) -> Option<Self> {
        if let Some(file) = std::env::var_os(VARIABLE) {
            return Some(Self(file.into()));
        }
        let name = test.rsplit("::").next().unwrap_or(test);
        let file = format!("echelon-points-{}-{name}", std::process::id());
        let file = std::env::temp_dir().join(file);
        let child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(VARIABLE, &file)
            .status();
        for path in [hits(&file), file] {
            let _ = std::fs::remove_file(path);
        }
        assert!(child.unwrap().success(), "{test}");
        None
    }

    pub(crate) fn arm(&self, point: &str, action: &str) {
        let _ = std::fs::remove_file(hits(&self.0));
        let fresh = self.0.with_extension("new");
        std::fs::write(&fresh, format!("{point} {action}\n")).unwrap();
        std::fs::rename(fresh, &self.0).unwrap();
    }

    /// Lets go on what is held.
    pub(crate) fn disarm(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }

    pub(crate) fn hits(&self) -> usize {
        let text = std::fs::read_to_string(hits(&self.0));
        text.map_or(0, |text| text.lines().count())
    }

    /// Waits until somebody has come by.
    pub(crate) fn wait_hit(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.hits() == 0 {
            assert!(Instant::now() < deadline, "nobody came by the point");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

fn hits(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".hit");
    name.into()
}
