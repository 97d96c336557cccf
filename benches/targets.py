"""What issue 4 asks for, by the key of a row. A unit of time must not be exceeded, a rate must be reached."""

from __future__ import annotations

from benches.row import LESS_IS_BETTER, Figure

TARGETS: dict[str, float] = {
    "local.w1.awake": 3,
    "local.w1.asleep": 18,
    "local.w2": 600_000,
    "local.w3": 1,
    "local.w3.completion": 2,
    "local.w4": 165_000,
    "local.w5.put.warm": 4_000,
    "local.w5.get.warm": 4_000,
    "local.w5.put.cold": 1_500,
    "local.w5.get.cold": 1_500,
    "local.w6": 0.6,
    "remote.w1.awake": 28,
    "remote.w2": 300_000,
    "remote.w3": 4,
    "remote.w3.completion": 32,
    "remote.w4": 100_000,
    "remote.w5.put.warm": 2_000,
    "remote.w5.get.warm": 2_000,
    "remote.w5.put.cold": 1_200,
    "remote.w5.get.cold": 1_200,
    "remote.w6": 2,
    "mapped.w5.put.warm": 4_000,
    "mapped.w5.get.warm": 4_000,
    "mapped.w5.put.cold": 1_500,
    "mapped.w5.get.cold": 1_500,
    "startup.sub_worker": 4,
    "startup.session": 120,
    "startup.cluster": 350,
    "startup.import": 40,
    "startup.pss": 4,
    "startup.idle": 20,
}

P99_TARGETS: dict[str, float] = {"local.w1.awake": 2 * 3, "local.w1.asleep": 2 * 18}
"""Of the 99th percentile: twice that of the median."""


def at_most(figure: Figure) -> bool:
    """Whether the target is an upper bound."""
    return figure.unit in LESS_IS_BETTER or figure.key.startswith("startup.")


def reached(figure: Figure) -> bool | None:
    """Whether the target is reached; `None` without one, and without numbers."""
    target = TARGETS.get(figure.key)
    if target is None or figure.median is None:
        return None
    return figure.median <= target if at_most(figure) else figure.median >= target


def p99_reached(figure: Figure) -> bool | None:
    """The same for the 99th percentile."""
    target = P99_TARGETS.get(figure.key)
    return None if target is None or figure.p99 is None else figure.p99 <= target
