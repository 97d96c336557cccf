"""Cost per task as graphs and clusters grow: `make bench BENCH_ARGS=scale`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import echelon as ec

from benches import callables, lanes
from benches.lanes import Lane
from benches.limits import program
from benches.machine import ROOT
from benches.report import short
from benches.row import reason, seconds

GRAPHS = (10_000, 100_000, 1_000_000)
SUB_WORKERS = (1, 2, 4, 8, 16, 32, 64)
SESSIONS = (1, 2, 4, 8, 16, 32)
ENDPOINTS = (10, 100, 1_000, 10_000)
SIMULATED = 1_000_000
CELLS = 64
"""Chains that a graph consists of."""
TASKS = 5_000
TIMEOUT_S = 1_200.0


def run_graph(tasks: int) -> dict[str, float]:
    """One run of so many tasks in this process: µs a task, and by how much memory has grown at its peak."""
    with ec.Worker(level=3, num_sub_workers=1) as worker:
        leaf = worker.register(callables.leaf)

        def graph(orch: ec.Orchestrator, _args: object, _config: object) -> None:
            whole = orch.alloc((CELLS,), ec.DataType.INT64)
            cells = [whole.rows(n, 1) for n in range(CELLS)]
            for n in range(tasks):
                orch.submit_sub(leaf, ec.TaskArgs.of((cells[n % CELLS], ec.TensorArgType.INOUT)))

        before = peak_mb()
        took = seconds(lambda: worker.run(graph))
    return {"µs": took * 1e6 / tasks, "MB": peak_mb() - before}


def peak_mb() -> float:
    """The most memory that was ever resident here."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def _graphs(sizes: tuple[int, ...]) -> Iterator[str]:
    yield from ("| tasks in one run | µs a task | peak memory grew by |", "|---:|---:|---:|")
    for tasks in sizes:
        command = [sys.executable, "-m", "benches.scale", str(tasks)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
        found = json.loads(done.stdout)
        yield f"| {tasks:,} | {short(found['µs'])} | {short(found['MB'])} MB |"


def _grow(
    what: str,
    counts: tuple[int, ...],
    tasks: int,
    start: Callable[[int, ExitStack], Lane],
) -> Iterator[str]:
    yield from (f"| {what} | ready after | µs a task |", "|---:|---:|---:|")
    for count in counts:
        try:
            with ExitStack() as stack:
                ready: list[Lane] = []
                took = seconds(lambda count=count, s=stack, r=ready: r.append(start(count, s)))  # type: ignore[misc]
                cost = _cost(ready[0], tasks)
            yield f"| {count} | {short(took * 1e3)} ms | {short(cost)} |"
        except Exception as error:
            yield f"| {count} | {reason(error)} | – |"


def _cost(lane: Lane, tasks: int) -> float:
    """µs a task when so many independent ones go to whoever is free; the second of two runs."""

    def graph(orch: ec.Orchestrator) -> None:
        submit = lane.any(orch)
        for n in range(tasks):
            submit(ec.TaskArgs.of(scalars=(n,)))

    lane.run(graph)
    return seconds(lambda: lane.run(graph)) * 1e6 / tasks


def _simulation(counts: tuple[int, ...], tasks: int) -> Iterator[str]:
    yield from ("| endpoints | ns a task (one submit, one end) | peak memory |", "|---:|---:|---:|")
    for count in counts:
        command = [str(program("simulate")), str(count), str(tasks)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        found = json.loads(done.stdout)
        yield f"| {count:,} | {found['ns']:,.0f} | {short(found['peak_kib'] * 1024 / 1e6)} MB |"


def lines(small: bool = False) -> Iterator[str]:
    """Four tables; `small` has the smallest of each."""
    few = 1 if small else None
    tasks, simulated = (100, 1_000) if small else (TASKS, SIMULATED)

    def session_lane(count: int, stack: ExitStack) -> Lane:
        return stack.enter_context(lanes.sessions(endpoint, count, cells=1))

    yield f"Graphs of {CELLS} chains, one sub worker, each size in a process of its own:"
    yield ""
    yield from _graphs((1_000,) if small else GRAPHS)
    yield from ("", f"{tasks:,} independent tasks over growing numbers of sub workers:", "")
    yield from _grow(
        "sub workers",
        SUB_WORKERS[:few],
        tasks,
        lambda count, stack: stack.enter_context(lanes.sub_worker(count)),
    )
    yield from ("", f"{tasks:,} independent tasks over growing numbers of sessions on loopback:", "")
    with lanes.daemon() as endpoint:
        yield from _grow("sessions", SESSIONS[:few], tasks, session_lane)
    yield from (
        "",
        f"The scheduler alone, {simulated:,} simulated tasks (`benches/native/src/simulate.rs`):",
        "",
    )
    yield from _simulation(ENDPOINTS[:few], simulated)


if __name__ == "__main__":
    print(json.dumps(run_graph(int(sys.argv[1]))))
