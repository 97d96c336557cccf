"""A real `echelon-worker` as a child process: started, asked, stopped, killed."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from . import procfs, residual

START_S = 30.0
"""How long the daemon may take until its first line, in seconds (a cold interpreter on a busy machine)."""

STOP_S = 15.0
"""How long the daemon and its sessions may take to end after SIGTERM, in seconds."""

LISTENING = re.compile(r"^listening on (127\.0\.0\.1):(\d+)$")


def worker_command() -> list[str]:
    """The console script of the environment that runs the tests; ECHELON_WORKER names another binary."""
    named = os.environ.get("ECHELON_WORKER")
    return [named if named else str(Path(sys.executable).parent / "echelon-worker")]


def clean_environment(
    pythonpath: Sequence[Path] = (), extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """This process's environment with PYTHONPATH set to `pythonpath` alone, and `extra` on top."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if pythonpath:
        environment["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in pythonpath)
    environment.update(extra or {})
    return environment


class Daemon:
    """`echelon-worker --host 127.0.0.1 --port 0 --insecure-loopback`, ready when the constructor of the context ends.

    `folder` gets the file `daemonN.stderr` with everything that the daemon and its sessions log. `through` is a command that
    becomes the daemon by exec, its own arguments first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pythonpath: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = ("--host", "127.0.0.1", "--port", "0", "--insecure-loopback"),
        through: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._environment = clean_environment(pythonpath, env)
        self._arguments = list(arguments)
        self._through = list(through)
        self._process: subprocess.Popen[bytes] | None = None
        self.host = ""
        self.port = 0
        self.stderr_path = folder / "daemon.stderr"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the daemon was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def endpoint(self) -> str:
        """`host:port`, as `RemoteWorkerSpec(endpoint=...)` takes it."""
        return f"{self.host}:{self.port}"

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""

    def start(self) -> Daemon:
        """Starts the daemon and waits for its first line; fails with its standard error when that does not come."""
        assert self._process is None, "the daemon was started already"
        number = len(list(self._folder.glob("daemon*.stderr")))
        self.stderr_path = self._folder / f"daemon{number}.stderr"
        with self.stderr_path.open("wb") as errors:
            self._process = subprocess.Popen(
                [*self._through, *worker_command(), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
            )
        try:
            line = self._first_line(time.monotonic() + START_S)
            match = LISTENING.match(line)
            assert match, f"the daemon's first line is {line!r}; its standard error:\n{self.stderr}"
        except BaseException:
            self.kill()
            raise
        self.host, self.port = match[1], int(match[2])
        return self

    def _first_line(self, deadline: float) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise AssertionError(
                        f"no first line within {START_S:g} s; standard error:\n{self.stderr}"
                    )
                byte = os.read(stdout.fileno(), 1)
                if not byte:
                    break
                line += byte
        return line.decode("utf-8", "replace").rstrip("\n")

    def children(self) -> list[procfs.Process]:
        """The processes below the daemon now (runners and theirs), without the zygotes that fork them."""
        return procfs.workers_below(self.pid)

    def stop(self) -> None:
        """SIGTERM; the daemon and its sessions must end within `STOP_S` seconds with status 0."""
        status = self.terminate()
        assert status == 0, f"the daemon ended with status {status}; standard error:\n{self.stderr}"

    def terminate(self) -> int:
        """SIGTERM and wait; returns the exit status. A daemon that does not go is killed and the test fails."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            tree = procfs.format_tree(self.pid)
            self.kill()
            raise AssertionError(
                f"the daemon lives {STOP_S:g} s after SIGTERM\n{tree}\nstandard error:\n{self.stderr}"
            ) from None
        finally:
            self._close_pipe()

    def kill(self) -> None:
        """SIGKILL: the daemon gets no chance to tidy up; its sessions must notice by themselves."""
        residual.note_descendants(self.pid)
        self.process.kill()
        self.process.wait(STOP_S)
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.process.returncode is not None:
            self._close_pipe()
            return
        if kind is None:
            self.stop()
        else:
            # The first failure is the one to report.
            try:
                self.terminate()
            except AssertionError as second:
                assert error is not None
                error.add_note(str(second))
