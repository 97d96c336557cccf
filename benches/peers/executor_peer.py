"""concurrent.futures.ProcessPoolExecutor with one worker, start method fork; W3 and W6 wait for results in the parent."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any

from benches.peers import work


class Executor:
    """One submit a task."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))

    def one(self) -> None:
        self._pool.submit(work.noop).result()

    def many(self, count: int) -> None:
        wait([self._pool.submit(work.noop, n) for n in range(count)])

    def chain(self, count: int) -> None:
        value = None
        for _ in range(count):
            value = self._pool.submit(work.noop, value).result()

    def blocks(self, blocks: list[Any]) -> None:
        wait([self._pool.submit(work.noop, block) for block in blocks])

    def put(self, array: Any) -> None:
        self._pool.submit(work.keep, array).result()

    def get(self, nbytes: int) -> None:
        assert self._pool.submit(work.fetch).result().nbytes == nbytes

    def fan(self, count: int) -> None:
        value = self._pool.submit(work.noop).result()
        parts = [part.result() for part in [self._pool.submit(work.noop, value) for _ in range(count)]]
        self._pool.submit(work.gather, *parts).result()

    def close(self) -> None:
        self._pool.shutdown()


def start() -> Executor:
    """Starts it."""
    return Executor()
