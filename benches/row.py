"""A row of a table: what is measured in every round, and what becomes of its samples."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

LESS_IS_BETTER = ("µs", "ms", "µs/task", "ns")
"""Units of time; a figure in any other unit is a rate."""


@dataclass(frozen=True)
class Figure:
    """What is kept of a row: in the table, in the JSON file, in the plot."""

    key: str
    name: str
    unit: str
    median: float | None = None
    low: float | None = None
    """The 5th percentile."""
    high: float | None = None
    """The 95th percentile."""
    p99: float | None = None
    samples: int = 0
    limit: str | None = None
    """Key of the figure that says what the machine allows."""
    error: str | None = None
    """Why there are no numbers."""

    def as_json(self) -> dict[str, Any]:
        """Without what is not there."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass
class Row:
    """One figure in the making: `measure` returns the samples of one round, in `unit`."""

    key: str
    name: str
    unit: str
    measure: Callable[[], list[float]]
    limit: str | None = None
    samples: list[float] = field(default_factory=list)
    error: str | None = None

    def turn(self, counts: bool) -> None:
        """Measures one round. A row that fails says why from then on, and the others go on."""
        if self.error is not None:
            return
        try:
            samples = self.measure()
        except Exception as error:
            self.error = reason(error)
            print(f"{self.key}: {self.error}", file=sys.stderr, flush=True)
            return
        if counts:
            self.samples += samples

    def figure(self) -> Figure:
        """What the samples say."""
        head = (self.key, self.name, self.unit)
        if self.error is not None or not self.samples:
            return Figure(*head, limit=self.limit, error=self.error or "no samples")
        return figure_of(*head, self.samples, self.limit)


def figure_of(key: str, name: str, unit: str, samples: list[float], limit: str | None = None) -> Figure:
    """Median, 5th, 95th and 99th percentile of one sample or more."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        return ordered[round(share * (len(ordered) - 1))]

    return Figure(
        key, name, unit, statistics.median(ordered), at(0.05), at(0.95), at(0.99), len(ordered), limit
    )


def reason(error: BaseException) -> str:
    """One line that fits a cell of a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text}"[:160]


def measure(rows: list[Row], rounds: int, note: Callable[[str], None] = lambda _: None) -> list[Figure]:
    """All rows, one after the other in each of `rounds` rounds (1 or more), so that a noisy neighbour hits all of them.

    One more round, the first, warms up and does not count.
    """
    for number in range(rounds + 1):
        for row in rows:
            row.turn(counts=number > 0)
        note(f"round {number} of {rounds}")
    return [row.figure() for row in rows]


def note(text: str) -> None:
    """Says how far a long measurement is."""
    print(text, file=sys.stderr, flush=True)


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def per_second(count: float, action: Callable[[], object]) -> list[float]:
    """One sample of a rate: `count` done by `action`."""
    return [count / seconds(action)]
