"""Bulk copies: through shared memory where parent and session are on one host, or through data lanes; asynchronously."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs
from testbed.daemon import Daemon
from testbed.v1_session import V1Daemon
from testbed.wait import eventually

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT
MIB = 1 << 20
LONG_S = 120


@dataclass
class Bed:
    worker: ec.Worker
    daemon: Daemon
    mapped: bool

    def held(self, buffer: ec.RemoteBufferHandle, path: Path) -> threading.Thread:
        """A task that has the buffer until PATH.go is there; then it fills it with 7."""
        hold = self.worker.register(ec.RemoteCallable("peer_tasks:orch_hold"))
        name = np.frombuffer(str(path).encode(), np.uint8)
        args, config = ec.TaskArgs.of((ref(buffer), INOUT), (name, INPUT)), ec.CallConfig(block_dim=7)
        thread = threading.Thread(
            target=lambda: self.worker.run(
                lambda orch, a, c: orch.submit_next_level(hold, args, config, worker=0)
            )
        )
        thread.start()
        eventually(Path(f"{path}.began").exists, LONG_S)
        return thread


def ref(buffer: ec.RemoteBufferHandle) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, shape=(buffer.nbytes,), dtype=ec.DataType.UINT8)


def pattern(nbytes: int, first: int = 0) -> np.ndarray:
    return ((np.arange(nbytes) + first) % 251).astype(np.uint8)


@pytest.fixture(params=["mapped", "lanes"])
def bed(request, tmp_path: Path, callables_path: Path) -> Iterator[Bed]:
    mapped = request.param == "mapped"
    with Daemon(tmp_path, pythonpath=[callables_path]) as daemon:
        worker = ec.Worker(level=4, num_sub_workers=0)
        worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint, same_host=mapped))
        worker.init()
        try:
            yield Bed(worker, daemon, mapped)
        finally:
            worker.close()


def test_every_size_arrives_whole_wherever_it_begins(bed: Bed) -> None:
    sizes = [1, 128 * 1024 - 1, 128 * 1024, MIB + 3, 9 * MIB + 5, 17 * MIB]
    buffer = bed.worker.remote_malloc(0, 18 * MIB)
    expected = np.zeros(18 * MIB, np.uint8)
    for number, nbytes in enumerate(sizes):
        offset = number * 4097
        data = pattern(nbytes, number)
        bed.worker.remote_copy_to(buffer, data, offset=offset)
        expected[offset : offset + nbytes] = data
        part = np.zeros(nbytes, np.uint8)
        bed.worker.remote_copy_from(buffer, part, offset=offset)
        assert (part == data).all()
    whole = bytearray(18 * MIB)
    bed.worker.remote_copy_from(buffer, whole)
    assert whole == expected.tobytes()


def test_same_host_is_mapped_and_another_host_is_reached_by_two_data_lanes(bed: Bed) -> None:
    def segments() -> int:
        return sum(path.startswith("/dev/shm/psm_") for _, path in procfs.mappings())

    def sockets() -> int:
        return sum(target.startswith("socket:") for target in procfs.descriptors(os.getpid()).values())

    lanes = sockets()
    buffer = bed.worker.remote_malloc(0, 9 * MIB)
    bed.worker.remote_copy_to(buffer, pattern(9 * MIB))
    assert segments() == int(bed.mapped)
    assert sockets() - lanes == (0 if bed.mapped else 2)
    bed.worker.remote_free(buffer)
    assert segments() == 0


def test_arrays_of_references_are_refused_and_records_are_bytes(bed: Bed) -> None:
    buffer = bed.worker.remote_malloc(0, 64)
    objects = [np.array([None] * 8, object), np.zeros(4, [("a", "i8"), ("b", object)])]
    for array in objects:
        for copy in (bed.worker.remote_copy_from, bed.worker.remote_copy_to, bed.worker.remote_copy_to_async):
            with pytest.raises(ValueError, match="references to Python objects"):
                copy(buffer, array)
    record = np.zeros(4, [("Object", "i8"), ("P", "f8")])
    record["Object"] = 7
    bed.worker.remote_copy_to(buffer, record)
    got = np.zeros_like(record)
    bed.worker.remote_copy_from(buffer, got)
    assert (got == record).all()


def test_many_buffers_do_not_take_many_descriptors(bed: Bed) -> None:
    buffers = [bed.worker.remote_malloc(0, MIB) for _ in range(40)]
    before = len(procfs.descriptors(os.getpid()))
    for turn in range(2):
        for number, buffer in enumerate(buffers):
            bed.worker.remote_copy_to(buffer, pattern(MIB, number + turn))
    assert len(procfs.descriptors(os.getpid())) - before <= 20
    for number, buffer in enumerate(buffers):
        got = bytearray(MIB)
        bed.worker.remote_copy_from(buffer, got)
        assert got == pattern(MIB, number + 1).tobytes()


def test_a_copy_in_the_graph_takes_the_same_way(bed: Bed) -> None:
    add = bed.worker.register(ec.RemoteCallable("peer_tasks:orch_add"))
    buffer = bed.worker.remote_malloc(0, 10 * MIB)
    there, back = pattern(10 * MIB), np.zeros(10 * MIB, np.uint8)

    def flow(orch, args, config) -> None:
        orch.copy(ref(buffer), there)
        for _ in range(3):
            tensors = ec.TaskArgs.of((ref(buffer), INOUT))
            orch.submit_next_level(add, tensors, ec.CallConfig(block_dim=1), worker=0)
        orch.copy(back, ref(buffer))

    bed.worker.run(flow)
    assert (back == there + 3).all()


def test_a_copy_keeps_its_place_among_tasks_and_copies(bed: Bed, tmp_path: Path) -> None:
    """It waits for a task that has the buffer, what comes after it waits for it, and nothing else does."""
    buffer, other = (bed.worker.remote_malloc(0, 2 * MIB) for _ in range(2))
    first, second, beside = (np.zeros(2 * MIB, np.uint8) for _ in range(3))
    thread = bed.held(buffer, tmp_path / "task")
    begun = [
        bed.worker.remote_copy_from_async(buffer, first),
        bed.worker.remote_copy_to_async(buffer, pattern(2 * MIB)),
        bed.worker.remote_copy_from_async(buffer, second),
    ]
    bed.worker.remote_copy_to(other, pattern(2 * MIB, 5))
    bed.worker.remote_copy_from(other, beside)
    assert (beside == pattern(2 * MIB, 5)).all()
    assert not any(copy.done() for copy in begun)
    with pytest.raises(ec.EchelonTimeout, match="remote_copy_from_async"):
        begun[0].wait(0.01)
    (tmp_path / "task.go").touch()
    for copy in reversed(begun):
        copy.wait(LONG_S)
        copy.wait()
        assert copy.done()
    thread.join(LONG_S)
    assert (first == 7).all() and (second == pattern(2 * MIB)).all()


def test_what_is_submitted_after_a_copy_sees_its_bytes(bed: Bed) -> None:
    add = bed.worker.register(ec.RemoteCallable("peer_tasks:orch_add"))
    buffer = bed.worker.remote_malloc(0, 6 * MIB)
    got = np.zeros(6 * MIB, np.uint8)
    for turn in range(10):
        to = bed.worker.remote_copy_to_async(buffer, pattern(6 * MIB, turn))
        args, config = ec.TaskArgs.of((ref(buffer), INOUT)), ec.CallConfig(block_dim=3)
        bed.worker.run(lambda orch, a, c: orch.submit_next_level(add, args, config, worker=0))  # noqa: B023
        back = bed.worker.remote_copy_from_async(buffer, got)
        back.wait(LONG_S)
        to.wait(LONG_S)
        assert (got == pattern(6 * MIB, turn) + 3).all()


def test_host_memory_is_held_until_the_copy_has_ended_and_not_longer(bed: Bed, tmp_path: Path) -> None:
    buffer = bed.worker.remote_malloc(0, MIB)
    thread = bed.held(buffer, tmp_path / "task")
    host = bytearray(MIB)
    # The handle is dropped at once.
    bed.worker.remote_copy_from_async(buffer, host)
    with pytest.raises(BufferError):
        host.append(0)
    (tmp_path / "task.go").touch()
    thread.join(LONG_S)

    def is_free() -> bool:
        bed.worker.progress()
        bed.worker.remote_copy_from(buffer, bytearray(1))
        try:
            host.append(0)
        except BufferError:
            return False
        return True

    eventually(is_free, LONG_S)
    assert host[:MIB] == b"\7" * MIB


def test_a_session_that_is_lost_ends_its_copies(bed: Bed, tmp_path: Path) -> None:
    buffer = bed.worker.remote_malloc(0, 4 * MIB)
    bed.worker.remote_copy_to(buffer, pattern(4 * MIB))
    thread = threading.Thread(target=lambda: None)
    try:
        hold = bed.worker.register(ec.RemoteCallable("peer_tasks:orch_hold"))
        name = np.frombuffer(str(tmp_path / "task").encode(), np.uint8)
        args = ec.TaskArgs.of((ref(buffer), INOUT), (name, INPUT))

        def runs() -> None:
            with pytest.raises(ec.EndpointLost):
                bed.worker.run(lambda orch, a, c: orch.submit_next_level(hold, args, worker=0))

        thread = threading.Thread(target=runs)
        thread.start()
        eventually((tmp_path / "task.began").exists, LONG_S)
        waiting = bed.worker.remote_copy_to_async(buffer, pattern(4 * MIB))
        (session,) = [p.pid for p in bed.daemon.children() if p.ppid == bed.daemon.pid]
        os.kill(session, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(ec.EndpointLost):
                waiting.wait(LONG_S)
    finally:
        thread.join(LONG_S)
    with pytest.raises(ec.EndpointLost):
        bed.worker.remote_copy_to_async(buffer, pattern(4 * MIB)).wait(LONG_S)


def test_what_can_be_seen_at_once_is_said_at_once(bed: Bed) -> None:
    buffer = bed.worker.remote_malloc(0, MIB)
    with pytest.raises(ValueError, match="outside the buffer"):
        bed.worker.remote_copy_to_async(buffer, bytes(MIB), offset=1)
    with pytest.raises(ValueError, match="read-only"):
        bed.worker.remote_copy_from_async(buffer, bytes(MIB))
    bed.worker.remote_free(buffer)
    with pytest.raises(ec.HandleError):
        bed.worker.remote_copy_to_async(buffer, bytes(MIB))
    begun = bed.worker.remote_copy_to_async(bed.worker.remote_malloc(0, MIB), bytes(MIB))
    with pytest.raises(ValueError, match="timeout_s"):
        begun.wait(-1)
    begun.wait(LONG_S)


def test_a_failure_that_nobody_waited_for_is_told_by_close(bed: Bed, tmp_path: Path) -> None:
    buffer = bed.worker.remote_malloc(0, MIB)
    (session,) = [p.pid for p in bed.daemon.children() if p.ppid == bed.daemon.pid]
    os.kill(session, signal.SIGSTOP)
    # It cannot be answered any more, and its handle is dropped.
    bed.worker.remote_copy_to_async(buffer, bytes(4096))
    os.kill(session, signal.SIGKILL)
    with pytest.raises(ec.CloseError, match="remote_copy_to_async, for which nobody waited"):
        bed.worker.close()


def test_a_session_of_version_1_gets_copies_of_any_size_in_frames() -> None:
    with V1Daemon({}) as old:
        worker = ec.Worker(level=4, num_sub_workers=0)
        worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=old.endpoint))
        try:
            worker.init()
            buffer = worker.remote_malloc(0, 18 * MIB)
            got = np.zeros(18 * MIB, np.uint8)
            to = worker.remote_copy_to_async(buffer, pattern(18 * MIB))
            worker.remote_copy_from_async(buffer, got).wait(LONG_S)
            assert to.done() and (got == pattern(18 * MIB)).all()
            worker.remote_free(buffer)
        finally:
            worker.close()
        assert old.violations == []
