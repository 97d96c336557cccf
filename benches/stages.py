"""Where the time of a noop goes: `make bench BENCH_ARGS=stages`, from the times that a run's timeline has.

All times are of one clock, CLOCK_MONOTONIC, which processes of a host share and Python's `perf_counter` reads.
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from typing import Any

import echelon as ec

from benches import lanes
from benches.lanes import Lane
from benches.row import Figure, figure_of
from benches.workloads import Sizes

STAGES = {
    "submit": "from the call to the task in the table",
    "way": "until the callable starts, encoding and the way there included",
    "callable": "until it has ended",
    "seen": "until `wait_all` has returned",
}


def _alone(lane: Lane, count: int) -> list[dict[str, float]]:
    """Microseconds of each stage of single tasks."""
    called: list[int] = []
    seen: list[int] = []

    def graph(orch: ec.Orchestrator) -> None:
        submit, wait, clock = lane.to(orch)[0], orch.wait_all, time.perf_counter_ns
        for _ in range(count):
            start = clock()
            submit(ec.TaskArgs())
            wait()
            seen.append(clock())
            called.append(start)

    events: list[dict[str, Any]] = sorted(lane.run(graph).timeline, key=lambda event: event["task"])
    own = [event for event in events if "/" not in event["worker"] or event["worker"].startswith("local/")]
    return [
        _stages([start, event["submit_ns"], event["start_ns"], event["end_ns"], end])
        for start, event, end in zip(called, own, seen, strict=True)
    ]


def _stages(times: list[int]) -> dict[str, float]:
    return {
        name: (after - before) / 1e3
        for name, before, after in zip(STAGES, times[:-1], times[1:], strict=True)
    }


def _throughput(lane: Lane, count: int) -> list[float]:
    """Microseconds between two starts in the worker when many tasks wait."""

    def graph(orch: ec.Orchestrator) -> None:
        submit = lane.to(orch)[0]
        for _ in range(count):
            submit(ec.TaskArgs())

    starts = sorted(event["start_ns"] for event in lane.run(graph).timeline)
    return [(after - before) / 1e3 for before, after in itertools.pairwise(starts)]


def figures(rounds: int, sizes: Sizes) -> list[Figure]:
    """One figure a stage and lane, lanes taking turns."""
    samples: dict[str, list[float]] = {}
    with ExitStack() as stack:
        local = stack.enter_context(lanes.sub_worker())
        child = stack.enter_context(lanes.children())
        remote = stack.enter_context(lanes.sessions(stack.enter_context(lanes.daemon()), cells=1))
        for number in range(rounds + 1):
            for lane in (local, child, remote):
                alone, many = _alone(lane, sizes.singles), _throughput(lane, sizes.many)
                if number == 0:
                    continue
                for name in STAGES:
                    samples.setdefault(f"{lane.name}.{name}", []).extend(one[name] for one in alone)
                samples.setdefault(f"{lane.name}.between", []).extend(many)
    made = []
    for key, values in samples.items():
        lane_name, _, stage = key.rpartition(".")
        text = STAGES.get(stage, "between two starts, with many tasks waiting")
        made.append(figure_of(f"stages.{key}", f"{lane_name}: {text}", "µs", values))
    return made
