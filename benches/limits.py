"""What the machine itself allows, beside every figure: the program `limits` of `benches/native`, and Python's own floor."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benches.machine import ROOT
from benches.row import Row, per_second

TIMEOUT_S = 30.0
COPY_BYTES = 64 << 20
CALLS = 10_000

KINDS = {
    "spin": ("a word to a process and back, both spin", "µs", 500),
    "futex": ("a word to a process and back, both sleep on a futex", "µs", 200),
    "tcp": ("one byte to a process and back, TCP, both sleep", "µs", 200),
    "syscall": ("a bare system call", "ns", 10),
    "stream": ("64 MiB over TCP, acknowledged", "MB/s", 1),
    "memcpy": ("copy of 64 MiB in memory", "MB/s", 1),
    "memcpy.cold": ("the same into pages that the process does not have yet", "MB/s", 1),
}
"""By the name of the program's command: what it is, in which unit, how often in a round."""


def program(name: str) -> Path:
    """Where cargo puts a program of `benches/native` in release mode."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / name


class Limits:
    """The program, asked for samples."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(
                f"{path.name} is not built: cargo build --release -p echelon-benches --bins"
            )
        self._process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def samples(self, name: str, count: int) -> list[float]:
        """So many samples of one limit."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{name} {count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"limits ended at {name}: status {self._process.wait(TIMEOUT_S)}")
        return [float(sample) for sample in json.loads(line)]

    def close(self) -> None:
        """Ends and reaps the process."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _rows(limits: Limits, share: float) -> Iterator[Row]:
    for kind, (name, unit, count) in KINDS.items():
        key = {"stream": "tcp.stream"}.get(kind, kind)
        some = max(1, int(count * share))
        yield Row(
            f"limit.{key}",
            f"*limit:* {name}",
            unit,
            lambda kind=kind, some=some: limits.samples(kind, some),  # type: ignore[misc]
        )


def _python_rows() -> Iterator[Row]:
    def nothing(_: int) -> None:
        pass

    def calls() -> list[float]:
        def loop() -> None:
            for n in range(CALLS):
                nothing(n)

        return [1e9 / per_second(CALLS, loop)[0]]

    data, target = np.ones(COPY_BYTES, dtype=np.uint8), np.ones(COPY_BYTES, dtype=np.uint8)
    yield Row("limit.python.call", "*limit:* a call of an empty Python function", "ns", calls)
    yield Row(
        "limit.python.memcpy",
        "*limit:* numpy's copy of 64 MiB",
        "MB/s",
        lambda: per_second(COPY_BYTES / 1e6, lambda: np.copyto(target, data)),
    )


@contextmanager
def limit_rows(share: float = 1.0) -> Iterator[list[Row]]:
    """The rows of the limits; `share` makes each round smaller."""
    limits = Limits(program("limits"))
    try:
        yield [*_rows(limits, share), *_python_rows()]
    finally:
        limits.close()
