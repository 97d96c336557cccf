"""Dask distributed: one worker process with one thread on loopback, no dashboard, tasks that are never taken for equal."""

from __future__ import annotations

from typing import Any

from distributed import Client, LocalCluster, wait

from benches.peers import work


class Dask:
    """`client.submit` for each task; dependencies are futures."""

    def __init__(self) -> None:
        self._cluster = LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        )
        self._client = Client(self._cluster)
        self._kept: Any = None

    def _submit(self, function: Any, *arguments: Any) -> Any:
        return self._client.submit(function, *arguments, pure=False)

    def one(self) -> None:
        self._submit(work.noop).result()

    def many(self, count: int) -> None:
        wait([self._submit(work.noop, n) for n in range(count)])

    def chain(self, count: int) -> None:
        last = self._submit(work.noop)
        for _ in range(count - 1):
            last = self._submit(work.noop, last)
        last.result()

    def blocks(self, blocks: list[Any]) -> None:
        wait([self._submit(work.noop, block) for block in blocks])

    def put(self, array: Any) -> None:
        self._kept = self._client.scatter(array, hash=False, direct=True)
        wait(self._kept)

    def get(self, nbytes: int) -> None:
        assert self._client.gather(self._kept, direct=True).nbytes == nbytes

    def fan(self, count: int) -> None:
        first = self._submit(work.noop)
        self._submit(work.gather, *[self._submit(work.noop, first) for _ in range(count)]).result()

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


def start() -> Dask:
    """Starts it."""
    return Dask()
