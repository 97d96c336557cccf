"""The rows of the table: each measures one thing in every round, so that a noisy neighbour hits all rows alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import echelon as ec
import numpy as np

from benches import callables
from benches.limits import PipeEcho, TcpPeer

ROOT = Path(__file__).resolve().parents[1]
MANY = 5_000
COPY_BYTES = 8 << 20
SINGLES = 200
"""Single tasks, and single round trips, in each round."""


@dataclass
class Row:
    """One figure: `measure` returns the samples of one round, in `unit`."""

    name: str
    unit: str
    measure: Callable[[], list[float]]
    samples: list[float] = field(default_factory=list)

    def markdown(self) -> str:
        """One line of the table: median and the 5th and 95th percentile."""
        ordered = sorted(self.samples)
        last = len(ordered) - 1
        low, high = ordered[round(0.05 * last)], ordered[round(0.95 * last)]
        middle = statistics.median(ordered)
        return f"| {self.name} | {_short(middle)} {self.unit} | {_short(low)} – {_short(high)} | {len(ordered):,} |"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _singles(action: Callable[[], object]) -> list[float]:
    return [_seconds(action) * 1e6 for _ in range(SINGLES)]


class Tasks:
    """Measures tasks and copies of one cluster."""

    def __init__(self, cluster: ec.LocalCluster) -> None:
        self.worker = cluster.worker
        (self.remote,) = cluster.remote_ids
        self._leaf = self.worker.register(callables.leaf)
        self._entry = self.worker.register(
            ec.RemoteCallable("benches.callables:entry"), workers=[self.remote]
        )
        self.worker.init()

    def local(self, orch: ec.Orchestrator) -> None:
        """Submits a task without arguments to the sub worker."""
        orch.submit_sub(self._leaf, ec.TaskArgs())

    def far(self, orch: ec.Orchestrator) -> None:
        """Submits a task without arguments to the session."""
        orch.submit_next_level(self._entry, ec.TaskArgs(), worker=self.remote)

    def one(self, submit: Callable[[ec.Orchestrator], object]) -> list[float]:
        """Microseconds from a submit to the end of its task, one by one."""
        samples: list[float] = []

        def graph(orch: ec.Orchestrator, args: object, config: object) -> None:
            def and_wait() -> None:
                submit(orch)
                orch.wait_all()

            samples.extend(_singles(and_wait))

        self.worker.run(graph)
        return samples

    def many(self, submit: Callable[[ec.Orchestrator], object]) -> list[float]:
        """Tasks a second of a run with many independent tasks, submits included."""

        def graph(orch: ec.Orchestrator, args: object, config: object) -> None:
            for _ in range(MANY):
                submit(orch)

        return [MANY / _seconds(lambda: self.worker.run(graph))]


def _rate(action: Callable[[], object]) -> list[float]:
    return [COPY_BYTES / 1e6 / _seconds(action)]


@contextmanager
def table() -> Iterator[list[Row]]:
    """All rows, over a cluster of one sub worker and one session that lives as long as the context."""
    data = np.random.default_rng(1).integers(0, 255, COPY_BYTES, dtype=np.uint8)
    target = np.empty_like(data)
    with (
        ec.LocalCluster(remote=1, sub_workers=1, pythonpath=[str(ROOT)]) as cluster,
        closing(PipeEcho()) as pipe,
        closing(TcpPeer(data.tobytes())) as tcp,
    ):
        tasks = Tasks(cluster)
        worker = tasks.worker
        buffer = worker.remote_malloc(worker=tasks.remote, nbytes=COPY_BYTES)
        try:
            yield [
                Row("one noop and wait, local", "µs", lambda: tasks.one(tasks.local)),
                Row("*limit:* one byte to a process and back, pipe", "µs", lambda: _singles(pipe.round_trip)),
                Row("one noop and wait, remote", "µs", lambda: tasks.one(tasks.far)),
                Row("*limit:* one byte to a process and back, TCP", "µs", lambda: _singles(tcp.round_trip)),
                Row("5,000 noops, local", "tasks/s", lambda: tasks.many(tasks.local)),
                Row("5,000 noops, remote", "tasks/s", lambda: tasks.many(tasks.far)),
                Row(
                    "remote_copy_to, 8 MiB",
                    "MB/s",
                    lambda: _rate(lambda: worker.remote_copy_to(buffer, data)),
                ),
                Row(
                    "remote_copy_from, 8 MiB",
                    "MB/s",
                    lambda: _rate(lambda: worker.remote_copy_from(buffer, target)),
                ),
                Row("*limit:* 8 MiB over TCP, acknowledged", "MB/s", lambda: _rate(tcp.send_block)),
                Row(
                    "*limit:* copy of 8 MiB in memory", "MB/s", lambda: _rate(lambda: np.copyto(target, data))
                ),
            ]
        finally:
            worker.remote_free(buffer)
