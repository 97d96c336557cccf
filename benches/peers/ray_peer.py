"""Ray: one actor, whose calls are faster than tasks; no dashboard, no usage statistics, arrays through the object store."""

from __future__ import annotations

from typing import Any

import ray

STORE_BYTES = 1 << 30


@ray.remote
class _Actor:
    def noop(self, value: Any = None) -> None:
        pass

    def gather(self, *values: Any) -> None:
        pass

    def keep(self, value: Any) -> None:
        self._kept = value

    def fetch(self) -> Any:
        return self._kept


class Ray:
    """Dependencies are references."""

    def __init__(self) -> None:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        self._actor: Any = _Actor.remote()  # type: ignore[attr-defined]
        self.one()

    def one(self) -> None:
        ray.get(self._actor.noop.remote())

    def many(self, count: int) -> None:
        ray.get([self._actor.noop.remote(n) for n in range(count)])

    def chain(self, count: int) -> None:
        last = None
        for _ in range(count):
            last = self._actor.noop.remote(last)
        ray.get(last)

    def blocks(self, blocks: list[Any]) -> None:
        ray.get([self._actor.noop.remote(block) for block in blocks])

    def put(self, array: Any) -> None:
        ray.get(self._actor.keep.remote(ray.put(array)))

    def get(self, nbytes: int) -> None:
        assert ray.get(self._actor.fetch.remote()).nbytes == nbytes

    def fan(self, count: int) -> None:
        first = self._actor.noop.remote()
        ray.get(self._actor.gather.remote(*[self._actor.noop.remote(first) for _ in range(count)]))

    def close(self) -> None:
        ray.shutdown()


def start() -> Ray:
    """Starts it."""
    return Ray()
