"""Long runs that must not grow: `python -m benches soak` prints memory, descriptors and threads on the way.

A million short-lived arguments with remote references (R-108), a million tasks (R-096), a thousand sessions of one daemon
(R-032, R-223). What is warm-up is done before the first look.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import echelon as ec

from benches import callables

ARGUMENTS, TASKS, SESSIONS = 1_000_000, 1_000_000, 1_000
WARM_UP = 0.01
"""Share of a case that is done before the first look: pools and caches fill."""
SETTLE_S = 5.0
"""How long, in seconds, a process may take to let go of what has just ended, such as a daemon of its last session."""


@dataclass(frozen=True)
class Look:
    """What a process has at one moment."""

    resident_kib: int
    descriptors: int
    threads: int

    @classmethod
    def at(cls, pid: int) -> Look:
        """Reads /proc; memory is what is resident, files and shared memory included."""
        folder = Path("/proc") / str(pid)
        pages = int((folder / "statm").read_text().split()[1])
        kib = pages * os.sysconf("SC_PAGE_SIZE") // 1024
        return cls(kib, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))


class Watched:
    """Looks at one process before a case, at 20 % and at its end."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.looks: list[Look] = []

    def look(self) -> None:
        """Takes one look; garbage of ours is collected first, so that only what is held counts."""
        gc.collect()
        deadline, pause, look = time.monotonic() + SETTLE_S, threading.Event(), Look.at(self.pid)
        while self.looks and look.descriptors > self.looks[0].descriptors and time.monotonic() < deadline:
            pause.wait(0.01)
            look = Look.at(self.pid)
        self.looks.append(look)

    def markdown(self, case: str) -> str:
        """One line of the table."""
        memory = " | ".join(f"{look.resident_kib:,}" for look in self.looks)
        per_look = [(look.descriptors, look.threads) for look in self.looks]
        flat = [" / ".join(str(pair[index]) for pair in per_look) for index in (0, 1)]
        return f"| {case} | {self.name} | {memory} | {flat[0]} | {flat[1]} |"


def _watch(work: Callable[[int], object], count: int, watched: list[Watched]) -> None:
    """Does `work(n)` so that `count` are done in all, with the looks in between."""
    for part in (0, count // 5, count - count // 5):
        if part:
            work(part)
        for process in watched:
            process.look()


def _warm_up(count: int) -> int:
    return max(1, int(count * WARM_UP))


def _pids(worker: ec.Worker) -> dict[str, int]:
    return {info["name"]: info["pid"] for info in worker.workers()}


def arguments(count: int) -> list[str]:
    """Arguments with four remote references each, made and dropped, in twenty runs; every hundredth is submitted, too.

    A run more is the warm-up: after it the process has had what a run of that size takes.
    """
    with ec.LocalCluster(remote=1, sub_workers=0) as cluster:
        worker, (remote,) = cluster.worker, cluster.remote_ids
        entry = worker.register(ec.RemoteCallable("benches.callables:entry"), workers=[remote])
        worker.init()
        buffer = worker.remote_malloc(remote, 64)
        refs = [ec.RemoteTensorRef(buffer, shape=(64,), dtype=ec.DataType.UINT8) for _ in range(4)]
        tag, run_of = ec.TensorArgType.NO_DEP, max(1, count // 20)

        def make(many: int) -> None:
            for begin in range(0, many, run_of):
                make_run(min(run_of, many - begin))

        def make_run(many: int) -> None:
            def graph(orch: ec.Orchestrator, _args: object, _config: object) -> None:
                for number in range(many):
                    args = ec.TaskArgs()
                    for ref in refs:
                        args.add_tensor(ref, tag)
                    if number % 100 == 0:
                        orch.submit_next_level(entry, args, worker=remote)

            worker.run(graph)

        watched = [Watched("parent", os.getpid()), Watched("session", _pids(worker)["remote0"])]
        make(run_of)
        _watch(make, count, watched)
        worker.remote_free(buffer)
    return [process.markdown(f"{count:,} arguments") for process in watched]


def tasks(count: int) -> list[str]:
    """Tasks without arguments to a sub worker, all in one run: what the run keeps counts, too."""
    with closing(ec.Worker(num_sub_workers=1)) as worker:
        leaf = worker.register(callables.leaf)
        worker.init()
        watched = [Watched("parent", os.getpid()), Watched("sub worker", _pids(worker)["local/sub0"])]

        def submit(many: int, orch: ec.Orchestrator) -> None:
            for _ in range(many):
                orch.submit_sub(leaf, ec.TaskArgs())

        worker.run(lambda orch, _args, _config: submit(_warm_up(count), orch))
        worker.run(lambda orch, _args, _config: _watch(lambda many: submit(many, orch), count, watched))
    return [process.markdown(f"{count:,} tasks") for process in watched]


def _one_task(entry: ec.CallableHandle, orch: ec.Orchestrator, _args: object, _config: object) -> None:
    orch.submit_next_level(entry, ec.TaskArgs())


def sessions(count: int) -> list[str]:
    """Sessions that a fresh parent starts, gives one task and ends, one after the other."""
    with ec.LocalCluster(remote=1, sub_workers=0) as cluster:
        assert cluster.daemon_endpoint is not None and cluster.daemon_pid is not None
        endpoint = cluster.daemon_endpoint

        def start_and_end(many: int) -> None:
            for _ in range(many):
                with closing(ec.Worker(level=4)) as worker:
                    remote = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=endpoint, platform="cpu"))
                    entry = worker.register(ec.RemoteCallable("benches.callables:entry"), workers=[remote])
                    worker.run(functools.partial(_one_task, entry))

        watched = [Watched("daemon", cluster.daemon_pid), Watched("parent", os.getpid())]
        start_and_end(_warm_up(count))
        _watch(start_and_end, count, watched)
    return [process.markdown(f"{count:,} sessions") for process in watched]


CASES: dict[str, tuple[Callable[[int], list[str]], int]] = {
    "arguments": (arguments, ARGUMENTS),
    "tasks": (tasks, TASKS),
    "sessions": (sessions, SESSIONS),
}


def table(chosen: list[str], scale: float) -> str:
    """The table in Markdown; `scale` multiplies the numbers of each case (1 = as documented)."""
    lines = [
        "| case | process | KiB before | at 20 % | at the end | descriptors | threads |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in chosen:
        case, count = CASES[name]
        begun = time.monotonic()
        lines += case(max(10, int(count * scale)))
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    return "\n".join(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m benches soak`."""
    parser.add_argument("--case", action="append", choices=CASES, help="one case only; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="multiplies every number (1)")
