"""W1 while other programs keep cores busy, and the same where nothing else runs: `make bench BENCH_ARGS=busy`."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benches import lanes
from benches.limits import Limits, program
from benches.row import Row
from benches.workloads import SMALL, Sizes, Workloads

CORES = (0, 1, 2)
"""Cores that are kept busy."""
HOG = "print(flush=True)\nwhile True: pass"
TURNS = 200
"""Samples of a limit in a round."""


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that compute for as long as this lasts; they have begun."""
    with ExitStack() as stack:
        for _ in range(count):
            hog = subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE)
            stack.enter_context(hog)
            stack.callback(hog.kill)
            assert hog.stdout is not None
            hog.stdout.readline()
        yield


def _beside(count: int, measure: Callable[[], list[float]]) -> Callable[[], list[float]]:
    def measured() -> list[float]:
        with _busy(count):
            return measure()

    return measured


def _name(count: int) -> str:
    return {0: "nothing else runs", 1: "beside one busy core"}.get(count, f"beside {count} busy cores")


def _of_limits(limits: Limits, share: float) -> Iterator[Row]:
    count = max(1, int(TURNS * share))
    kinds = {
        "futex": "a word to a process and back, both sleep on a futex",
        "trio": "the same with two such processes in turn, a link of W3x",
    }
    for kind, what in kinds.items():
        samples = functools.partial(limits.samples, kind, count)
        yield Row(f"busy.limit.{kind}", f"*limit:* {what}", "µs", samples)


@contextmanager
def rows(small: bool = False) -> Iterator[list[Row]]:
    """W1 of a sub worker and of a session, and the limit of W3x: the hand-over between three processes."""
    sizes = SMALL if small else Sizes()
    with ExitStack() as stack:
        limits = Limits(program("limits"))
        stack.callback(limits.close)
        endpoint = stack.enter_context(lanes.daemon())
        local = Workloads(stack.enter_context(lanes.sub_worker()), sizes)
        remote = Workloads(stack.enter_context(lanes.sessions(endpoint, cells=1)), sizes)
        found = []
        for key, of in (("local", local), ("remote", remote)):
            for state, measure in (("awake", of.awake), ("asleep", of.asleep)):
                for count in CORES:
                    name = f"W1 {key}, {state}, {_name(count)}"
                    found.append(Row(f"busy.{key}.{state}.{count}", name, "µs", _beside(count, measure)))
        yield [*found, *_of_limits(limits, 0.02 if small else 1.0)]
