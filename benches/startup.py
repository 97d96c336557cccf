"""How long starts take, what a worker holds, and what an idle one burns: `make bench BENCH_ARGS=startup`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import echelon as ec

from benches import callables, lanes
from benches.machine import ROOT
from benches.row import Row, seconds

FURTHER = 8
IDLE_S = 10.0


def _fresh_python(code: str) -> float:
    """Milliseconds that a fresh interpreter takes for `code`, its own start included."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)) * 1e3


def _import_ms() -> float:
    code = "import time; t = time.perf_counter(); import echelon; print((time.perf_counter() - t) * 1e3)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    return float(done.stdout)


def _init_ms(worker: ec.Worker) -> float:
    with closing(worker):
        return seconds(worker.init) * 1e3


def _sub_workers_ms(count: int) -> float:
    """The registration starts the zygote, and nothing comes between it and `init()`."""
    worker = ec.Worker(level=3, num_sub_workers=count)
    worker.register(callables.leaf)
    return _init_ms(worker)


def _zygote_is_up() -> bool:
    tasks = Path("/proc/self/task").iterdir()
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return any(Path(f"/proc/{pid}/comm").read_text() == "echelon-zygote\n" for pid in children)


def _beside_zygote_ms() -> float:
    worker = ec.Worker(level=3, num_sub_workers=1)
    worker.register(callables.leaf)
    while not _zygote_is_up():
        threading.Event().wait(0.002)
    return _init_ms(worker)


def _executed_ms() -> float:
    os.environ["ECHELON_ZYGOTE"] = "0"
    try:
        return _sub_workers_ms(1)
    finally:
        del os.environ["ECHELON_ZYGOTE"]


def _further_ms() -> float:
    return (_sub_workers_ms(1 + FURTHER) - _sub_workers_ms(1)) / FURTHER


def _session_ms(endpoint: str) -> float:
    worker = ec.Worker(level=4)
    remote = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=endpoint))
    worker.register(ec.RemoteCallable(lanes.ENTRY), workers=[remote])
    return _init_ms(worker)


def _cluster_ms() -> float:
    cluster: list[ec.LocalCluster] = []

    def first_task() -> None:
        cluster.append(ec.LocalCluster(remote=2, sub_workers=2, pythonpath=[str(ROOT)]))
        worker = cluster[0].worker
        entry = worker.register(ec.RemoteCallable(lanes.ENTRY))
        worker.run(lambda orch, _args, _config: orch.submit_next_level(entry, ec.TaskArgs()))

    try:
        return seconds(first_task) * 1e3
    finally:
        for one in cluster:
            one.close()


def pids(worker: ec.Worker) -> list[int]:
    """The processes of a worker's workers."""
    return [int(info["pid"]) for info in worker.workers() if info["pid"]]


def pss_mb(pid: int) -> float:
    """What a process holds, shared pages divided among those that share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024 / 1e6


def cpu_ms(pid: int) -> float:
    """Time on a processor of all threads so far."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e6


def idle_ms(process_ids: list[int], idle_s: float) -> list[float]:
    """Time on a processor that each process spends while nobody wants anything, scaled to ten seconds."""
    before = [cpu_ms(pid) for pid in process_ids]
    threading.Event().wait(idle_s)
    after = [cpu_ms(pid) for pid in process_ids]
    return [(end - start) * 10 / idle_s for start, end in zip(before, after, strict=True)]


def rows(endpoint: str) -> list[Row]:
    """What is measured in rounds."""

    def once(action: Callable[[], float]) -> Callable[[], list[float]]:
        return lambda: [action()]

    python = "startup.python"
    return [
        Row(python, "*limit:* a bare interpreter, start to end", "ms", once(lambda: _fresh_python("pass"))),
        Row("startup.import", "import echelon", "ms", once(_import_ms), python),
        Row(
            "startup.sub_worker",
            "a sub worker ready: `init()` when the zygote is up",
            "ms",
            once(_beside_zygote_ms),
            python,
        ),
        Row(
            "startup.init",
            "`init()` with one sub worker, the zygote's own start included",
            "ms",
            once(lambda: _sub_workers_ms(1)),
            python,
        ),
        Row("startup.executed", "the same without the zygote", "ms", once(_executed_ms), python),
        Row("startup.further", f"each of {FURTHER} further sub workers", "ms", once(_further_ms), python),
        Row(
            "startup.session", "`init()` with one session", "ms", once(lambda: _session_ms(endpoint)), python
        ),
        Row("startup.cluster", "LocalCluster(2, 2) to the first task done", "ms", once(_cluster_ms), python),
    ]


def held(idle_s: float) -> list[Row]:
    """What is looked at once: memory and idle time, per process."""
    with ec.Worker(level=3, num_sub_workers=2) as local, lanes.daemon() as endpoint:
        local.register(callables.leaf)
        with lanes.sessions(endpoint, cells=1) as session:
            children, remote = pids(local), pids(session.worker)
            memory = [pss_mb(pid) for pid in children]
            idle = idle_ms([*children, *remote, os.getpid()], idle_s)
    share = len(children)
    found = [
        ("startup.pss", "PSS of a sub worker", "MB", memory),
        ("startup.idle", "time on a processor in 10 idle s, sub worker", "ms", idle[:share]),
        ("startup.idle.session", "the same, session", "ms", idle[share:-1]),
        ("startup.idle.parent", "the same, parent", "ms", idle[-1:]),
    ]
    return [Row(key, name, unit, list, samples=samples) for key, name, unit, samples in found]
