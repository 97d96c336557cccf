"""The workloads of the table, W1 to W6, over any lane; `docs/benchmarks.md` says what each is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import echelon as ec
import numpy as np

from benches.lanes import Graph, Lane
from benches.row import Row, per_second, seconds

INPUT, INOUT, OUTPUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT, ec.TensorArgType.OUTPUT
MB = 1e6


@dataclass(frozen=True)
class Sizes:
    """How much of everything a round does."""

    many: int = 5_000
    chain: int = 1_000
    fan: int = 256
    singles: int = 200
    asleep: int = 30
    pause_s: float = 0.004
    """Between two single tasks, so that everybody sleeps: a waiter spins for tens of microseconds at most."""
    copy: int = 64 << 20
    block: int = 4_096

    @property
    def cells(self) -> int:
        """Cells that the fan needs."""
        return self.fan + 1


SMALL = replace(Sizes(), many=50, chain=20, fan=8, singles=5, asleep=2, copy=1 << 20)
"""For a look whether everything runs."""


class Workloads:
    """The rows of one lane."""

    def __init__(self, lane: Lane, sizes: Sizes) -> None:
        self._lane, self._sizes = lane, sizes
        self._blocks = list(np.ones((sizes.many, sizes.block), dtype=np.uint8))

    def rows(self) -> list[Row]:
        """W1 to W4, W6 and the variants of W2."""
        key, name = self._lane.key, self._lane.name
        spin, tcp = ("limit.spin", "limit.futex"), ("limit.tcp", "limit.tcp")
        awake, asleep = spin if self._lane.remote is None else tcp
        return [
            Row(f"{key}.w1.awake", f"W1 {name}, awake", "µs", self.awake, awake),
            Row(f"{key}.w1.asleep", f"W1 {name}, asleep", "µs", self.asleep, asleep),
            Row(f"{key}.w2", f"W2 {name}", "tasks/s", self.many),
            Row(f"{key}.w2.reuse", f"W2 {name}, one `TaskArgs` for all", "tasks/s", self.reused),
            Row(f"{key}.w2.batch", f"W2 {name}, one call for all", "tasks/s", self.batch),
            Row(f"{key}.w3", f"W3 {name}, chained", "µs/task", lambda: self.chain(1)),
            Row(f"{key}.w4", f"W4 {name}", "tasks/s", self.blocks, "limit.memcpy"),
            Row(f"{key}.w6", f"W6 {name}", "ms", self.fan),
        ]

    def on_completion(self) -> Row:
        """W3 of a worker whose tasks are sent when what they wait for has completed."""
        key, name = self._lane.key, self._lane.name
        return Row(f"{key}.w3.completion", f"W3 {name}, on completion", "µs/task", lambda: self.chain(1))

    def alternating(self) -> Row:
        """W3 over two workers that take turns: each link is sent when the one before has completed."""
        key, name = self._lane.key, self._lane.name
        return Row(f"{key}.w3x", f"W3x {name}, two workers in turn", "µs/task", lambda: self.chain(2))

    def _inside(self, graph: Graph) -> None:
        self._lane.run(graph)

    def awake(self) -> list[float]:
        """Microseconds from a submit to the end of its task, one after the other."""
        return self._singles(self._sizes.singles, None)

    def asleep(self) -> list[float]:
        """The same with a pause before each."""
        return self._singles(self._sizes.asleep, self._sizes.pause_s)

    def _singles(self, count: int, pause_s: float | None) -> list[float]:
        samples: list[float] = []
        never = threading.Event()

        def graph(orch: ec.Orchestrator) -> None:
            submit, wait, clock = self._lane.to(orch)[0], orch.wait_all, time.perf_counter
            for _ in range(count):
                if pause_s is not None:
                    never.wait(pause_s)
                start = clock()
                submit(ec.TaskArgs())
                wait()
                samples.append((clock() - start) * 1e6)

        self._inside(graph)
        return samples

    def many(self) -> list[float]:
        """Independent tasks a second, submits included, each with fresh arguments: one scalar."""

        def graph(orch: ec.Orchestrator) -> None:
            submit, of = self._lane.to(orch)[0], ec.TaskArgs.of
            for n in range(self._sizes.many):
                submit(of(scalars=(n,)))

        return per_second(self._sizes.many, lambda: self._inside(graph))

    def reused(self) -> list[float]:
        """The same with one set of arguments."""

        def graph(orch: ec.Orchestrator) -> None:
            submit, args = self._lane.to(orch)[0], ec.TaskArgs.of(scalars=(1,))
            for _ in range(self._sizes.many):
                submit(args)

        return per_second(self._sizes.many, lambda: self._inside(graph))

    def batch(self) -> list[float]:
        """The same in one call, with fresh arguments for each task."""

        def graph(orch: ec.Orchestrator) -> None:
            of = ec.TaskArgs.of
            self._lane.batch(orch)([of(scalars=(n,)) for n in range(self._sizes.many)])

        return per_second(self._sizes.many, lambda: self._inside(graph))

    def chain(self, workers: int) -> list[float]:
        """Microseconds a task in a chain, each task writing what the one before wrote."""

        def graph(orch: ec.Orchestrator) -> None:
            submits, of = self._lane.to(orch)[:workers], ec.TaskArgs.of
            cells = self._lane.cells(orch, 1)
            same = [cells.one(index, 0) for index in range(workers)]
            for n in range(self._sizes.chain):
                submits[n % workers](of((same[n % workers], INOUT)))

        return [seconds(lambda: self._inside(graph)) * 1e6 / self._sizes.chain]

    def blocks(self) -> list[float]:
        """Tasks a second, each with an array of its own to read."""

        def graph(orch: ec.Orchestrator) -> None:
            submit, of = self._lane.to(orch)[0], ec.TaskArgs.of
            for block in self._blocks:
                submit(of((block, INPUT)))

        return per_second(self._sizes.many, lambda: self._inside(graph))

    def fan(self) -> list[float]:
        """Milliseconds from the first submit until one task, then many, then one have run."""
        took: list[float] = []

        def graph(orch: ec.Orchestrator) -> None:
            submit, of, count = self._lane.to(orch)[0], ec.TaskArgs.of, self._sizes.fan
            cells = self._lane.cells(orch, count + 1)
            whole, source = cells.whole(0), cells.one(0, count)
            start = time.perf_counter()
            submit(of((source, OUTPUT)))
            for n in range(count):
                submit(of((source, INPUT), (cells.one(0, n), OUTPUT)))
            submit(of((whole, INPUT)))
            orch.wait_all()
            took.append((time.perf_counter() - start) * 1e3)

        self._inside(graph)
        return took


class ArrayCopies:
    """W5 where arrays are arguments: a task reads one, a task writes one."""

    def __init__(self, lane: Lane, nbytes: int, fresh: Callable[[], AbstractContextManager[Lane]]) -> None:
        """`fresh` makes another worker like that of the lane, which has copied nothing yet."""
        self._lane, self._nbytes, self._fresh = lane, nbytes, fresh
        self._data, self._target = np.ones(nbytes, dtype=np.uint8), np.ones(nbytes, dtype=np.uint8)

    def rows(self) -> list[Row]:
        """Put and get, warm and cold; cold is the first copy of a fresh worker, and into fresh memory."""
        key, name = f"{self._lane.key}.w5", f"W5 {self._lane.name}"
        warm, cold = "limit.memcpy", "limit.memcpy.cold"
        return [
            Row(f"{key}.put.warm", f"{name}, put, warm", "MB/s", lambda: self._put(self._lane), warm),
            Row(f"{key}.get.warm", f"{name}, get, warm", "MB/s", self._get, warm),
            Row(f"{key}.put.cold", f"{name}, put, cold", "MB/s", self._put_first, cold),
            Row(f"{key}.get.cold", f"{name}, get, cold", "MB/s", self._get_fresh, cold),
        ]

    def _copy(self, lane: Lane, array: np.ndarray, tag: ec.TensorArgType) -> list[float]:
        def graph(orch: ec.Orchestrator) -> None:
            lane.to(orch)[0](ec.TaskArgs.of((array, tag)))

        return per_second(self._nbytes / MB, lambda: lane.run(graph))

    def _put(self, lane: Lane) -> list[float]:
        return self._copy(lane, self._data, INPUT)

    def _get(self) -> list[float]:
        return self._copy(self._lane, self._target, OUTPUT)

    def _put_first(self) -> list[float]:
        with self._fresh() as fresh:
            return self._put(fresh)

    def _get_fresh(self) -> list[float]:
        return self._copy(self._lane, np.empty(self._nbytes, dtype=np.uint8), OUTPUT)


class BufferCopies:
    """W5 where buffers live in a session."""

    def __init__(self, lane: Lane, nbytes: int) -> None:
        assert lane.remote is not None
        self._lane, self._remote, self._nbytes = lane, lane.remote, nbytes
        self._data, self._target = np.ones(nbytes, dtype=np.uint8), np.ones(nbytes, dtype=np.uint8)
        self._buffer = lane.worker.remote_malloc(worker=self._remote, nbytes=nbytes)

    def rows(self) -> list[Row]:
        """Put and get, warm and cold; cold is the first copy into fresh memory, on either side."""
        key, name, worker = self._lane.key, f"W5 {self._lane.name}", self._lane.worker
        plain = key == "remote"
        warm, cold = ("limit.tcp.stream",) * 2 if plain else ("limit.memcpy", "limit.memcpy.cold")
        put, get = worker.remote_copy_to, worker.remote_copy_from
        return [
            self._row(
                f"{key}.w5.put.warm", f"{name}, put, warm", lambda: put(self._buffer, self._data), warm
            ),
            self._row(
                f"{key}.w5.get.warm", f"{name}, get, warm", lambda: get(self._buffer, self._target), warm
            ),
            Row(f"{key}.w5.put.cold", f"{name}, put, cold", "MB/s", self._put_fresh, cold),
            self._row(
                f"{key}.w5.get.cold",
                f"{name}, get, cold",
                lambda: get(self._buffer, np.empty(self._nbytes, dtype=np.uint8)),
                cold,
            ),
        ]

    def _row(self, key: str, name: str, action: object, limit: str) -> Row:
        assert callable(action)
        return Row(key, name, "MB/s", lambda: per_second(self._nbytes / MB, action), limit)

    def _put_fresh(self) -> list[float]:
        worker = self._lane.worker
        buffer = worker.remote_malloc(worker=self._remote, nbytes=self._nbytes)
        try:
            return per_second(self._nbytes / MB, lambda: worker.remote_copy_to(buffer, self._data))
        finally:
            worker.remote_free(buffer)
