"""Random programs over handles on two real sessions against a reference of what each buffer holds and who may use it.

The reference is an array of bytes for each buffer, and who refused what. R-113, R-114, R-117.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from testbed import procfs
from testbed.wait import eventually

INPUT, INOUT, U8 = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT, ec.DataType.UINT8
NBYTES = 64
ANY = st.integers(0, 1000)
RARELY = st.integers(0, 7).map(lambda number: number == 0)
OFFSET, SIZE = st.integers(0, NBYTES + 8), st.integers(0, NBYTES + 8)


@dataclass
class Buffer:
    """An owner's handle and what its bytes are."""

    handle: ec.RemoteBufferHandle
    home: int
    held: np.ndarray = field(default_factory=lambda: np.zeros(NBYTES, np.uint8))
    freed: bool = False


@dataclass
class Window:
    """An import of `[offset, offset + nbytes)` of a buffer."""

    handle: ec.RemoteBufferHandle
    home: int
    of: Buffer
    offset: int
    writable: bool
    released: bool = False


@dataclass
class Export:
    handle: ec.RemoteBufferExport
    of: Buffer
    offset: int
    nbytes: int
    writable: bool


class Handles(RuleBasedStateMachine):
    """What one `Worker` does with the buffers of two sessions. Tasks add a number to every byte they are given."""

    worker: ec.Worker
    remotes: list[int]
    add: ec.CallableHandle
    fail: ec.CallableHandle
    unused: list[int]
    pids: list[int]

    seen: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Buffer] = []
        self.exports: list[Export] = []
        self.windows: list[Window] = []

    def expect(self, right: bool, call: Callable[[], object], *errors: type[Exception]) -> object:
        """Calls; it has to succeed when it is `right`, and be refused by one of `errors` when it is not."""
        if right:
            return call()
        with pytest.raises(errors or (ec.HandleError,)):
            call()
        return None

    def run(self, callable_handle: ec.CallableHandle, number: int, home: int, *args: tuple) -> None:
        config = ec.CallConfig(block_dim=number)
        self.worker.run(
            lambda orch, a, c: orch.submit_next_level(
                callable_handle, ec.TaskArgs.of(*args), config, worker=home
            )
        )

    @initialize(offset=st.integers(0, NBYTES // 2), orphan=st.booleans())
    def one_of_everything(self, offset: int, orphan: bool) -> None:
        for home in (0, 1):
            self.malloc(home)
            self.export(home, offset, NBYTES // 4, True, False)
            self.open(home, False, False)
        if orphan:
            self.free(0, True)

    @rule(home=st.integers(0, 1))
    def malloc(self, home: int) -> None:
        handle = self.worker.remote_malloc(self.remotes[home], NBYTES)
        self.buffers.append(Buffer(handle, self.remotes[home]))

    @precondition(lambda self: self.buffers)
    @rule(which=ANY, offset=OFFSET, size=SIZE, value=st.integers(0, 255))
    def write(self, which: int, offset: int, size: int, value: int) -> None:
        buffer = self.buffers[which % len(self.buffers)]
        inside = offset + size <= NBYTES
        sent = np.full(size, value, np.uint8)
        self.expect(
            inside and not buffer.freed,
            lambda: self.worker.remote_copy_to(buffer.handle, sent, offset=offset),
            ec.HandleError,
            ValueError,
        )
        if inside and not buffer.freed:
            buffer.held[offset : offset + size] = value

    @precondition(lambda self: self.buffers)
    @rule(which=ANY, offset=st.integers(0, NBYTES - 1), size=ANY, write=st.booleans(), beyond=RARELY)
    def export(self, which: int, offset: int, size: int, write: bool, beyond: bool) -> None:
        buffer = self.buffers[which % len(self.buffers)]
        access = "readwrite" if write else "read"
        size = NBYTES - offset + 1 + size if beyond else 1 + size % (NBYTES - offset)
        handle = self.expect(
            not beyond and not buffer.freed,
            lambda: self.worker.remote_export(buffer.handle, offset=offset, nbytes=size, access=access),
            ec.HandleError,
            ValueError,
        )
        if handle is not None:
            self.exports.append(Export(handle, buffer, offset, size, write))

    @precondition(lambda self: self.exports)
    @rule(which=ANY, at_home=RARELY, more=RARELY)
    def open(self, which: int, at_home: bool, more: bool) -> None:
        export = self.exports[which % len(self.exports)]
        there = export.of.home if at_home else next(r for r in self.remotes if r != export.of.home)
        write = export.writable or more
        handle = self.expect(
            not export.of.freed and there != export.of.home and (export.writable or not write),
            lambda: self.worker.remote_import(
                export.handle, worker=there, access="readwrite" if write else "read"
            ),
            ec.HandleError,
            ValueError,
        )
        if handle is not None:
            self.windows.append(Window(handle, there, export.of, export.offset, write))

    @precondition(lambda self: self.buffers)
    @rule(which=ANY, number=st.integers(1, 200), fails=RARELY)
    def task_at_home(self, which: int, number: int, fails: bool) -> None:
        buffer = self.buffers[which % len(self.buffers)]
        self._task(buffer, buffer.home, buffer.freed, True, buffer.held[:], number, fails)

    @precondition(lambda self: self.windows)
    @rule(which=ANY, number=st.integers(1, 200), fails=RARELY)
    def task_through_a_window(self, which: int, number: int, fails: bool) -> None:
        window = self.windows[which % len(self.windows)]
        held = window.of.held[window.offset : window.offset + window.handle.nbytes]
        self._task(window, window.home, window.released, window.writable, held, number, fails)

    def _task(self, of, home: int, gone: bool, writable: bool, held: np.ndarray, number: int, fails: bool):
        def call() -> None:
            ref = ec.RemoteTensorRef(of.handle, shape=(of.handle.nbytes,), dtype=U8)
            self.run(self.fail if fails else self.add, number, home, (ref, INOUT))

        if not gone and writable and fails:
            with pytest.raises(ec.TaskError, match="as asked"):
                call()
            return
        self.expect(not gone and writable, call)
        if not gone and writable:
            held += number
            self.seen["task through a window" if isinstance(of, Window) else "task at home"] += 1
            self.seen["task after the owner's free"] += isinstance(of, Window) and of.of.freed

    @precondition(lambda self: self.windows)
    @rule(which=ANY)
    def task_at_the_wrong_session(self, which: int) -> None:
        window = self.windows[which % len(self.windows)]
        ref = ec.RemoteTensorRef(window.handle, shape=(window.handle.nbytes,), dtype=U8)
        elsewhere = next(remote for remote in self.remotes if remote != window.home)
        with pytest.raises((ec.HandleError, ec.NotEligibleError)):
            self.run(self.add, 1, elsewhere, (ref, INPUT))

    @precondition(lambda self: self.windows)
    @rule(which=ANY)
    def release(self, which: int) -> None:
        window = self.windows[which % len(self.windows)]
        self.expect(not window.released, lambda: self.worker.remote_release_import(window.handle))
        window.released = True
        assert window.handle.released

    @precondition(lambda self: self.buffers)
    @rule(which=ANY, sure=st.booleans())
    def free(self, which: int, sure: bool) -> None:
        """Also with windows open: those go on seeing the bytes."""
        if not sure:
            return  # so that more buffers live long enough to be exported
        buffer = self.buffers[which % len(self.buffers)]
        self.expect(not buffer.freed, lambda: self.worker.remote_free(buffer.handle))
        buffer.freed = True
        assert buffer.handle.released

    @invariant()
    def every_buffer_holds_what_it_should(self) -> None:
        for buffer in self.buffers:
            if not buffer.freed:
                got = np.zeros(NBYTES, np.uint8)
                self.worker.remote_copy_from(buffer.handle, got)
                assert (got == buffer.held).all(), (got, buffer.held)

    @invariant()
    def each_session_maps_what_is_needed(self) -> None:
        """R-113: not less while it is used, and nothing after that."""
        for remote, pid, unused in zip(self.remotes, self.pids, self.unused, strict=True):
            windows = [window for window in self.windows if not window.released]
            own = [
                buffer
                for buffer in self.buffers
                if buffer.home == remote
                and (not buffer.freed or any(window.of is buffer for window in windows))
            ]
            expected = unused + len(own) + sum(window.home == remote for window in windows)
            eventually(
                lambda pid=pid, expected=expected: procfs.mapped_segments(pid) == expected,
                10,
                what=f"{expected} mappings at session {remote}",
                explain=lambda pid=pid: procfs.mapped_segments(pid),
            )

    def teardown(self) -> None:
        for window in self.windows:
            if not window.released:
                window.released = True
                self.worker.remote_release_import(window.handle)
        for buffer in self.buffers:
            if not buffer.freed:
                buffer.freed = True
                self.worker.remote_free(buffer.handle)
        self.each_session_maps_what_is_needed()


def test_handles_behave_as_their_reference_on_two_sessions_r113_r114_r117(callables_path: Path) -> None:
    with ec.LocalCluster(remote=2, sub_workers=0, pythonpath=[str(callables_path)]) as cluster:
        worker = cluster.worker
        names = ("orch_add", "orch_fail")
        add, fail = [worker.register(ec.RemoteCallable(f"buffer_tasks:{name}")) for name in names]
        worker.init()
        by_name = {info["name"]: info["pid"] for info in worker.workers()}
        pids = [by_name[f"remote{remote}"] for remote in cluster.remote_ids]
        # A session's first task maps what all later ones use.
        for remote in cluster.remote_ids:
            worker.run(lambda o, a, c, at=remote: o.submit_next_level(add, ec.TaskArgs(), worker=at))
        facts = {
            "worker": worker,
            "remotes": cluster.remote_ids,
            "add": add,
            "fail": fail,
            "pids": pids,
            "seen": Counter(),
            "unused": [procfs.mapped_segments(pid) for pid in pids],
        }
        run_state_machine_as_test(
            type("HandlesOfThisCluster", (Handles,), facts),
            settings=settings(
                max_examples=40,
                stateful_step_count=30,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
        # A program that never comes to the point proves nothing.
        assert len(facts["seen"]) == 3 and min(facts["seen"].values()) > 0, facts["seen"]
