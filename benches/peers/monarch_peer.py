"""Monarch: one actor in a process of its own, whose endpoints are called one by one."""

from __future__ import annotations

from typing import Any

from monarch.actor import Actor, endpoint, this_host


class _Actor(Actor):
    @endpoint
    async def noop(self, *_values: Any) -> None:
        pass

    @endpoint
    async def keep(self, value: Any) -> None:
        self._kept = value

    @endpoint
    async def fetch(self) -> Any:
        return self._kept


class Monarch:
    """It knows no dependencies between calls, so chains and fans wait for results in the parent."""

    def __init__(self) -> None:
        self._procs = this_host().spawn_procs(per_host={"procs": 1})
        self._actor: Any = self._procs.spawn("noops", _Actor)
        self.one()

    def one(self) -> None:
        self._actor.noop.call_one().get()

    def many(self, count: int) -> None:
        for call in [self._actor.noop.call_one(n) for n in range(count)]:
            call.get()

    def chain(self, count: int) -> None:
        last = None
        for _ in range(count):
            last = self._actor.noop.call_one(last).get()

    def blocks(self, blocks: list[Any]) -> None:
        for call in [self._actor.noop.call_one(block) for block in blocks]:
            call.get()

    def put(self, array: Any) -> None:
        self._actor.keep.call_one(array).get()

    def get(self, nbytes: int) -> None:
        assert self._actor.fetch.call_one().get().nbytes == nbytes

    def fan(self, count: int) -> None:
        first = self._actor.noop.call_one().get()
        parts = [self._actor.noop.call_one(first) for _ in range(count)]
        self._actor.noop.call_one(*[part.get() for part in parts]).get()

    def close(self) -> None:
        self._procs.stop().get()


def start() -> Monarch:
    """Starts it."""
    return Monarch()
