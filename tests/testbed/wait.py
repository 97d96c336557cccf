"""The one place of the tests where a poll is legitimate: waiting, bounded, for a condition of the outside world."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01
"""Pause between two looks at a condition, in seconds."""


def eventually(
    condition: Callable[[], T],
    timeout_s: float = 5.0,
    *,
    what: str = "the condition",
    explain: Callable[[], object] | None = None,
) -> T:
    """Calls `condition` until it is truthy and returns that value.

    Use it for facts that no event announces to us (a process gone, a file there); wait on an event where
    there is one. After `timeout_s` seconds it fails and names `what`, with `explain()` when given.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            detail = f": {explain()}" if explain is not None else ""
            raise AssertionError(f"{what} did not come true within {timeout_s:g} s{detail}")
        pause.wait(POLL_S)
