"""Workers to be measured, each with one way to hand it a task: a sub worker, a local child, a session."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import echelon as ec

from benches import callables
from benches.machine import ROOT

Graph = Callable[[ec.Orchestrator], object]
Submit = Callable[[ec.TaskArgs], Any]
CHAINS = "ECHELON_CHAINS"
ENTRY = "benches.callables:entry"
CELL = 8
"""Bytes of the tensors that only carry order."""


@dataclass
class Lane:
    """One worker that runs noops: `to(orch)[index](args)` submits one to the worker `index` of those that take turns."""

    key: str
    name: str
    worker: ec.Worker
    to: Callable[[ec.Orchestrator], list[Submit]]
    any: Callable[[ec.Orchestrator], Submit]
    """Submits to whichever worker is free."""
    batch: Callable[[ec.Orchestrator], Callable[[list[ec.TaskArgs]], Any]]
    """The same for many tasks in one call."""
    cells: Callable[[ec.Orchestrator, int], Cells]
    """So many cells of `CELL` bytes."""
    remote: int | None = None
    """The session's id, if it is one."""

    def run(self, graph: Graph) -> ec.RunReport:
        """One run of `graph(orch)`."""
        return self.worker.run(lambda orch, _args, _config: graph(orch))


@dataclass
class Cells:
    """Cells that tasks name to be ordered, as the worker with an index names them."""

    one: Callable[[int, int], Any]
    """`one(index, n)`: cell n, for worker `index`."""
    whole: Callable[[int], Any]


def _shared_cells(orch: ec.Orchestrator, count: int) -> Cells:
    whole = orch.alloc((count,), ec.DataType.INT64)
    rows = [whole.rows(n, 1) for n in range(count)]
    return Cells(lambda _index, n: rows[n], lambda _index: whole)


class _RemoteCells:
    """A buffer of the first session, imported by the others; made once and used by every run."""

    def __init__(self, worker: ec.Worker, ids: list[int], count: int) -> None:
        first = worker.remote_malloc(worker=ids[0], nbytes=count * CELL)
        self._windows = [first]
        for other in ids[1:]:
            export = worker.remote_export(first, access="readwrite")
            self._windows.append(worker.remote_import(export, worker=other))

    def __call__(self, _orch: ec.Orchestrator, count: int) -> Cells:
        def ref(index: int, n: int, length: int = 1) -> Any:
            window = self._windows[index]
            return ec.RemoteTensorRef(window, offset=n * CELL, shape=(length,), dtype=ec.DataType.INT64)

        refs = [[ref(index, n) for n in range(count)] for index in range(len(self._windows))]
        return Cells(lambda index, n: refs[index][n], lambda index: ref(index, 0, count))


@contextmanager
def on_completion() -> Iterator[None]:
    """Workers that start in here send a task when what it waits for has ended, and not before (`ECHELON_CHAINS`)."""
    before = os.environ.get(CHAINS)
    os.environ[CHAINS] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CHAINS]
        else:
            os.environ[CHAINS] = before


@contextmanager
def sub_worker(count: int = 1) -> Iterator[Lane]:
    """One sub worker, or more that share the tasks."""
    with ec.Worker(level=3, num_sub_workers=count) as worker:
        leaf = worker.register(callables.leaf)

        def to(orch: ec.Orchestrator) -> Submit:
            return functools.partial(orch.submit_sub, leaf)

        def batch(orch: ec.Orchestrator) -> Callable[[list[ec.TaskArgs]], Any]:
            return functools.partial(orch.submit_sub_many, leaf)

        yield Lane("local", "local", worker, lambda orch: [to(orch)], to, batch, _shared_cells)


def _any(handle: ec.CallableHandle) -> Callable[[ec.Orchestrator], Submit]:
    return lambda orch: functools.partial(orch.submit_next_level, handle)


def _batch(handle: ec.CallableHandle) -> Callable[[ec.Orchestrator], Callable[[list[ec.TaskArgs]], Any]]:
    return lambda orch: functools.partial(orch.submit_next_level_many, handle)


def _each(handle: ec.CallableHandle, ids: list[int]) -> Callable[[ec.Orchestrator], list[Submit]]:
    if len(ids) == 1:
        return lambda orch: [functools.partial(orch.submit_next_level, handle)]
    return lambda orch: [functools.partial(orch.submit_next_level, handle, worker=one) for one in ids]


@contextmanager
def children(count: int = 1) -> Iterator[Lane]:
    """So many local children without workers of their own."""
    worker = ec.Worker(level=4)
    ids = [worker.add_worker(ec.Worker(level=3)) for _ in range(count)]
    entry = worker.register(ec.RemoteCallable(ENTRY), workers=ids)
    with worker:
        yield Lane(
            "child", "local child", worker, _each(entry, ids), _any(entry), _batch(entry), _shared_cells
        )


@contextmanager
def daemon() -> Iterator[str]:
    """The address of a daemon whose sessions can import from here."""
    with ec.LocalCluster(remote=1, sub_workers=0, pythonpath=[str(ROOT)]) as cluster:
        assert cluster.daemon_endpoint is not None
        yield cluster.daemon_endpoint


@contextmanager
def sessions(endpoint: str, count: int = 1, *, cells: int, same_host: bool = False) -> Iterator[Lane]:
    """So many sessions over TCP on loopback, each without workers of its own, and a buffer of so many cells."""
    worker = ec.Worker(level=4)
    ids = [
        worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=endpoint, same_host=same_host))
        for _ in range(count)
    ]
    entry = worker.register(ec.RemoteCallable(ENTRY), workers=ids)
    with worker:
        key, name = ("mapped", "remote, mapped") if same_host else ("remote", "remote")
        memory = _RemoteCells(worker, ids, cells)
        yield Lane(key, name, worker, _each(entry, ids), _any(entry), _batch(entry), memory, ids[0])
