"""multiprocessing.Pool with one worker, start method fork; `apply_async` for each task, results waited for in the parent."""

from __future__ import annotations

import multiprocessing
from typing import Any

from benches.peers import work


class Pool:
    """One apply a task: `map` would send many tasks as one."""

    def __init__(self) -> None:
        self._pool = multiprocessing.get_context("fork").Pool(1)

    def one(self) -> None:
        self._pool.apply(work.noop)

    def _all(self, arguments: Any) -> None:
        for result in [self._pool.apply_async(work.noop, (argument,)) for argument in arguments]:
            result.get()

    def many(self, count: int) -> None:
        self._all(range(count))

    def chain(self, count: int) -> None:
        value = None
        for _ in range(count):
            value = self._pool.apply(work.noop, (value,))

    def blocks(self, blocks: list[Any]) -> None:
        self._all(blocks)

    def put(self, array: Any) -> None:
        self._pool.apply(work.keep, (array,))

    def get(self, nbytes: int) -> None:
        assert self._pool.apply(work.fetch).nbytes == nbytes

    def fan(self, count: int) -> None:
        value = self._pool.apply(work.noop)
        parts = [self._pool.apply_async(work.noop, (value,)) for _ in range(count)]
        self._pool.apply(work.gather, [part.get() for part in parts])

    def close(self) -> None:
        self._pool.close()
        self._pool.join()


def start() -> Pool:
    """Starts it."""
    return Pool()
