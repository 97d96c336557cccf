"""A whole cluster on one machine."""

from __future__ import annotations

import sys

from . import _core
from .errors import StartupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    import threading
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any

__all__ = ["LocalCluster"]

_STOP_TIMEOUT_S = 15.0


class LocalCluster:
    """A parent worker, one daemon and its sessions, on this machine.

    ::

        with ec.LocalCluster(remote=2, sub_workers=2) as cluster:
            handle = cluster.worker.register(ec.RemoteCallable("pkg.mod:fn"))
            cluster.worker.run(main)

    The daemon starts at once; :attr:`worker` is initialised by its first ``run()``, by ``worker.init()``, or not at all.
    The daemon ends with this object, and when this process ends for any reason.

    Args:
        remote: number of remote sessions, 0 or more.
        sub_workers: number of sub workers of the parent and of each session, 0 or more.
        device_ids: devices of each session, platform ``cpu``: a process each, which runs :class:`ChipCallable`.
        pythonpath: folders from which sessions import, besides this process's ``sys.path``.
        allow_serialized: lets the sessions take functions without an import path, as pickles; the daemon is started with
            ``--allow-serialized``.
        startup_timeout_s: seconds the daemon may take to listen, more than 0.
        worker_kwargs: handed to :class:`Worker`.

    Raises:
        StartupError: the daemon did not start in time; the message has what it wrote.
        TypeError, ValueError: an argument is wrong.
    """

    def __init__(
        self,
        remote: int = 2,
        sub_workers: int = 2,
        *,
        device_ids: Sequence[int] | None = None,
        pythonpath: Sequence[str] | str | None = None,
        allow_serialized: bool = False,
        startup_timeout_s: float = 30.0,
        **worker_kwargs: Any,
    ) -> None:
        for name, value in (("remote", remote), ("sub_workers", sub_workers)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        worker_kwargs.setdefault("num_sub_workers", sub_workers)
        self._daemon: _Daemon | None = None
        self._worker = _core.Worker(startup_timeout_s=startup_timeout_s, **worker_kwargs)
        self._remote_ids: list[int] = []
        if remote == 0:
            return
        self._daemon = _Daemon(pythonpath, startup_timeout_s, allow_serialized)
        try:
            for _ in range(remote):
                spec = _core.RemoteWorkerSpec(
                    endpoint=self._daemon.endpoint,
                    platform="cpu",
                    device_ids=device_ids,
                    num_sub_workers=sub_workers,
                )
                self._remote_ids.append(self._worker.add_remote_worker(spec))
        except BaseException:
            self._daemon.stop()
            raise

    @property
    def worker(self) -> _core.Worker:
        """The parent worker."""
        return self._worker

    @property
    def remote_ids(self) -> list[int]:
        """Worker ids of the sessions, in order."""
        return list(self._remote_ids)

    @property
    def daemon_endpoint(self) -> str | None:
        """``host:port`` of the daemon, ``None`` with ``remote=0``."""
        return None if self._daemon is None else self._daemon.endpoint

    @property
    def daemon_pid(self) -> int | None:
        """Process id of the daemon, ``None`` with ``remote=0``."""
        return None if self._daemon is None else self._daemon.pid

    def close(self) -> None:
        """Closes the worker, then ends the daemon. May be called any number of times.

        Raises:
            CloseError: something could not be ended in time.
        """
        try:
            self._worker.close()
        finally:
            self._stop_daemon()

    def _stop_daemon(self) -> None:
        """Not in a process that was forked from the daemon's owner."""
        if self._daemon is not None and self._daemon.is_ours:
            self._daemon.stop()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._worker.__exit__(exc_type, exc, traceback)
        finally:
            self._stop_daemon()

    def __del__(self) -> None:
        daemon: _Daemon | None = getattr(self, "_daemon", None)
        if daemon is None or daemon.stopped or sys.is_finalizing() or not daemon.is_ours:
            return  # at the end of the interpreter nothing can be imported; the daemon ends with its standard input
        import contextlib
        import warnings

        warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, source=self, stacklevel=1)
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        return f"<LocalCluster daemon={self.daemon_endpoint} remote_ids={self._remote_ids}>"


class _Daemon:
    """The daemon process: started, its output forwarded, ended and reaped."""

    def __init__(
        self, pythonpath: Sequence[str] | str | None, timeout_s: float, allow_serialized: bool
    ) -> None:
        import os
        import subprocess

        from ._daemon import EXIT_WITH_STDIN

        self._owner_pid = os.getpid()

        command = [sys.executable, "-m", "echelon._daemon", EXIT_WITH_STDIN]
        command += ["--host", "127.0.0.1", "--port", "0", "--insecure-loopback"]
        if allow_serialized:
            command.append("--allow-serialized")
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(pythonpath),
            # Ctrl-C in the terminal goes to the script, which ends the daemon in good order.
            start_new_session=True,
        )
        self._pump: threading.Thread | None = None
        try:
            self.endpoint = self._await_endpoint(timeout_s)
        except BaseException:
            self.stop()
            raise
        self._pump = self._start_pump()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked from the one that started the daemon: it ends nothing."""
        import os

        return self._owner_pid == os.getpid()

    @property
    def stopped(self) -> bool:
        return self._process.returncode is not None

    def _await_endpoint(self, timeout_s: float) -> str:
        import os
        import selectors
        import time

        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in text:
                # 0.1 s at most a turn, so that Ctrl-C and the deadline are seen.
                left = deadline - time.monotonic()
                if left <= 0:
                    raise StartupError(f"the daemon did not listen within {timeout_s:g} s; it wrote {text!r}")
                if not selector.select(min(left, 0.1)):
                    continue
                chunk = os.read(out, 4096)
                if not chunk:
                    status = self._process.wait(timeout=_STOP_TIMEOUT_S)
                    raise StartupError(
                        f"the daemon ended with status {status} before it listened; it wrote {text!r}, "
                        "its error output has the reason"
                    )
                text += chunk
        line, _, rest = text.partition(b"\n")
        prefix = b"listening on "
        if not line.startswith(prefix):
            raise StartupError(f"the daemon wrote {line!r} and not its address")
        self._rest = rest
        return line[len(prefix) :].decode("ascii", "replace").strip()

    def _start_pump(self) -> threading.Thread:
        """What workers print appears on this process's standard output, and never fills the pipe."""
        import os
        import threading

        assert self._process.stdout is not None
        out = self._process.stdout.fileno()

        def pump() -> None:
            text = self._rest
            while True:
                if text:
                    try:
                        sys.stdout.write(text.decode("utf-8", "replace"))
                        sys.stdout.flush()
                    except (OSError, ValueError, AttributeError):
                        pass  # nobody reads our output: keep draining
                text = os.read(out, 65536)
                if not text:
                    return

        thread = threading.Thread(target=pump, name="echelon-daemon-output", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Ends and reaps the process: end of input, SIGTERM, and after 15 s SIGKILL. Idempotent."""
        import contextlib
        import subprocess

        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # it may have ended already
                process.stdin.close()
        process.terminate()
        try:
            process.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._pump is not None:
            self._pump.join(timeout=_STOP_TIMEOUT_S)
            if self._pump.is_alive():
                return  # a stray holder of the pipe; the thread ends with it and closes nothing it should not
        if process.stdout is not None:
            process.stdout.close()


def _environment(pythonpath: Sequence[str] | str | None) -> dict[str, str]:
    """This process's environment with everything it can import on PYTHONPATH."""
    import os

    extra = [] if pythonpath is None else [pythonpath] if isinstance(pythonpath, str) else list(pythonpath)
    paths = [os.path.abspath(os.fspath(p)) for p in extra]
    paths += [os.path.abspath(p) for p in sys.path if isinstance(p, str)]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # Nobody operates this daemon: what matters to the script reaches it as an exception.
    environment.setdefault("ECHELON_LOG", "error")
    return environment
