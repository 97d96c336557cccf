"""One peer: a line of input names a workload, a line of output has its samples.

`python -m benches.peers.server NAME SHARE`
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

MANY, CHAIN, FAN, SINGLES, BLOCK, COPY = 5_000, 1_000, 256, 100, 4_096, 64 << 20
SLOW = {"pool": 0.5, "executor": 0.5, "dask": 0.04, "ray": 0.2, "torch": 0.5, "monarch": 0.2}
"""Share of the tasks that a peer gets in a round, so that a round takes seconds: what is slower than others gets fewer."""


class System(Protocol):
    """What a peer can do. Each method returns when everything that it started has ended."""

    def one(self) -> None:
        """A task and its end."""

    def many(self, count: int) -> None:
        """Independent tasks, each with a number."""

    def chain(self, count: int) -> None:
        """Tasks, each of which takes what the one before returned."""

    def blocks(self, blocks: list[Any]) -> None:
        """Tasks, each of which takes one array."""

    def put(self, array: Any) -> None:
        """An array to a worker."""

    def get(self, nbytes: int) -> None:
        """An array back, of the size of the one that was put."""

    def fan(self, count: int) -> None:
        """One task, `count` that take its result, one that takes all of theirs."""

    def close(self) -> None:
        """Ends and joins everything."""


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def workloads(system: System, share: float) -> dict[str, Callable[[], list[float]]]:
    """The samples of a round of each workload."""
    import numpy as np

    many, chain = max(10, int(MANY * share)), max(10, int(CHAIN * share))
    singles = max(5, int(SINGLES * share))
    copy = COPY if share > 0.01 else 1 << 20
    blocks = list(np.ones((many, BLOCK), dtype=np.uint8))
    array = np.ones(copy, dtype=np.uint8)
    return {
        "w1": lambda: [seconds(system.one) * 1e6 for _ in range(singles)],
        "w2": lambda: [many / seconds(lambda: system.many(many))],
        "w3": lambda: [seconds(lambda: system.chain(chain)) * 1e6 / chain],
        "w4": lambda: [many / seconds(lambda: system.blocks(blocks))],
        "w5.put": lambda: [copy / 1e6 / seconds(lambda: system.put(array))],
        "w5.get": lambda: [copy / 1e6 / seconds(lambda: system.get(copy))],
        "w6": lambda: [seconds(lambda: system.fan(FAN)) * 1e3],
    }


def main() -> int:
    """Returns the exit status."""
    name, share = sys.argv[1], float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the peer prints is no answer

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        system: System = importlib.import_module(f"benches.peers.{name}_peer").start()
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}"[:300])
        return 1
    try:
        table = workloads(system, share * SLOW.get(name, 1.0))
        say(samples=[])
        for line in sys.stdin:
            try:
                say(samples=table[line.strip()]())
            except Exception as error:
                say(error=f"{type(error).__name__}: {error}"[:300])
    finally:
        system.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
