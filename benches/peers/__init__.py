"""Other systems, each in an interpreter of its own, asked for samples over a pipe.

A peer that is not installed or fails is a row that says so. Everything that a peer starts is in its session of processes
and ends with it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benches.machine import ROOT
from benches.row import Row

NAMES = {
    "pool": "mp.Pool",
    "executor": "ProcessPoolExecutor",
    "zeromq": "ZeroMQ farm",
    "dask": "Dask",
    "ray": "Ray actor",
    "torch": "torch RPC",
    "monarch": "Monarch",
}
WORKLOADS = {
    "w1": ("W1", "µs"),
    "w2": ("W2", "tasks/s"),
    "w3": ("W3", "µs/task"),
    "w4": ("W4", "tasks/s"),
    "w5.put": ("W5 put", "MB/s"),
    "w5.get": ("W5 get", "MB/s"),
    "w6": ("W6", "ms"),
}
START_S, ANSWER_S, END_S = 120.0, 120.0, 30.0


def interpreter() -> Path:
    """The interpreter that has the peers: $ECHELON_PEERS_PYTHON, else .venv-peers, else ours with the standard library."""
    named = os.environ.get("ECHELON_PEERS_PYTHON")
    if named:
        return Path(named)
    own = ROOT / ".venv-peers" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


class Peer:
    """One system in a process of its own, which starts at the first question."""

    def __init__(self, name: str, share: float = 1.0) -> None:
        self.name, self._share = name, share
        self._home = tempfile.TemporaryDirectory(prefix="echelon-peer-")
        self._process = subprocess.Popen(
            [str(interpreter()), "-m", "benches.peers.server", name, str(share)],
            cwd=ROOT,
            env=os.environ | _environment(self._home.name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._text = b""
        self._started = False
        self._absent: str | None = None

    def rows(self) -> list[Row]:
        """One row for each workload."""
        name = NAMES[self.name]
        return [
            Row(f"peers.{self.name}.{key}", f"{title} {name}", unit, functools.partial(self.ask, key))
            for key, (title, unit) in WORKLOADS.items()
        ]

    def ask(self, workload: str) -> list[float]:
        """The samples of one round."""
        if self._absent is not None:
            raise RuntimeError(self._absent)
        if not self._started:
            try:
                self._answer(START_S)
            except (RuntimeError, TimeoutError) as error:
                self._absent = str(error)  # one reason for all rows
                raise
            self._started = True
        assert self._process.stdin is not None
        self._process.stdin.write(workload.encode() + b"\n")
        self._process.stdin.flush()
        return [float(sample) for sample in self._answer(ANSWER_S)]

    def _answer(self, limit_s: float) -> list[float]:
        assert self._process.stdout is not None
        deadline, out = time.monotonic() + limit_s, self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in self._text:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no answer within {limit_s:g} s")
                chunk = os.read(out, 1 << 16)
                if not chunk:
                    raise RuntimeError(f"it ended with status {self._process.wait(END_S)}")
                self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return list(answer["samples"])

    def close(self) -> None:
        """End of input, and after a time the end by force of its whole session of processes."""
        with self._process as process:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(END_S)
        self._home.cleanup()


def _environment(home: str) -> dict[str, str]:
    """Nobody phones home, everything stays on loopback, and a numeric library has one thread."""
    return {
        "HOME": home,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_TMPDIR": home,
        "DASK_TEMPORARY_DIRECTORY": home,
        "GLOO_SOCKET_IFNAME": "lo",
        "TP_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
