"""Repeats a call and says how long one takes, with its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP_COUNT = 3


@dataclass(frozen=True)
class Result:
    """Seconds for one unit of work: median and the 5th and 95th percentile of `repeat_count` repetitions."""

    name: str
    repeat_count: int
    median_s: float
    p5_s: float
    p95_s: float
    bytes_per_unit: int = 0

    def row(self) -> str:
        """One line of the table in docs/benchmarks.md."""
        rate = f"{self.bytes_per_unit / self.median_s / 2**30:.2f} GiB/s" if self.bytes_per_unit else ""
        times = " | ".join(_microseconds(value) for value in (self.median_s, self.p5_s, self.p95_s))
        return f"| {self.name} | {times} | {self.repeat_count} | {rate} |"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs"


def repeat(
    name: str, call: Callable[[], object], repeat_count: int, *, units: int = 1, nbytes: int = 0
) -> Result:
    """Calls `call` `repeat_count` times after a warm-up. `units`: how many units of work one call does."""
    for _ in range(min(WARM_UP_COUNT, repeat_count)):
        call()
    times = []
    for _ in range(repeat_count):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) / units)
    times.sort()
    last = len(times) - 1
    low, high = times[round(0.05 * last)], times[round(0.95 * last)]
    return Result(name, repeat_count, statistics.median(times), low, high, nbytes)
