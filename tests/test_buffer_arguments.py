"""Arguments with remote references come and go by the million: they hold what they name and leave nothing behind (R-108)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import pytest
from testbed import procfs
from testbed.wait import eventually

INPUT, U8 = ec.TensorArgType.INPUT, ec.DataType.UINT8

MANY = 40_000
"""Short-lived arguments of one test. The soak of `python -m benches soak` makes a million."""

GROWTH_MAX = 2 << 20
"""Bytes by which the process may grow meanwhile. One pointer kept for each would be 320 kB, one list of sidecars 20 MB."""


@pytest.fixture
def session(callables_path: Path) -> Iterator[tuple[ec.Worker, int]]:
    with ec.LocalCluster(remote=1, sub_workers=0, pythonpath=[str(callables_path)]) as cluster:
        cluster.worker.init()
        yield cluster.worker, cluster.remote_ids[0]


def reference(buffer: ec.RemoteBufferHandle, nbytes: int) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, shape=(nbytes,), dtype=U8)


def fill(count: int, refs: list[ec.RemoteTensorRef]) -> None:
    """Makes arguments and lets each go without clearing it."""
    for _ in range(count):
        args = ec.TaskArgs()
        for ref in refs:
            args.add_tensor(ref, INPUT)


def test_many_short_lived_arguments_leave_the_memory_where_it_was_r108(session):
    worker, remote = session
    buffer = worker.remote_malloc(remote, 64)
    refs = [reference(buffer, 64) for _ in range(4)]
    fill(2_000, refs)
    gc.collect()
    counts, before = [sys.getrefcount(ref) for ref in refs], procfs.resident_bytes()
    fill(MANY, refs)
    gc.collect()
    assert [sys.getrefcount(ref) for ref in refs] == counts
    growth = procfs.resident_bytes() - before
    assert growth < GROWTH_MAX, f"{growth:,} bytes more after {MANY:,} arguments"
    worker.remote_free(buffer)


def test_submitted_arguments_that_are_gone_hold_no_buffer_r108(session):
    """What a submit pinned goes with its task: the session unmaps the buffer as soon as it is freed."""
    worker, remote = session
    count = worker.register(ec.RemoteCallable("buffer_tasks:orch_count"))
    pid = worker.workers()[-1]["pid"]
    unused = procfs.mapped_segments(pid)
    buffer = worker.remote_malloc(remote, 64)
    ref, config = reference(buffer, 64), ec.CallConfig(block_dim=3)

    def graph(orch, args, _config):
        for _ in range(300):
            orch.submit_next_level(count, ec.TaskArgs.of(*[(ref, INPUT)] * 3), config, worker=remote)

    assert worker.run(graph).counts["completed"] == 300
    assert procfs.mapped_segments(pid) == unused + 1
    references = sys.getrefcount(ref)
    worker.run(graph)
    assert sys.getrefcount(ref) == references
    worker.remote_free(buffer)
    eventually(lambda: procfs.mapped_segments(pid) == unused, 10, what="the buffer's end in its session")


def test_a_new_object_inherits_nothing_of_a_former_one_r108(session):
    """The new arguments have the address of some that are gone, and go to a task that sees what they hold: nothing."""
    worker, remote = session
    count = worker.register(ec.RemoteCallable("buffer_tasks:orch_count"))
    buffer = worker.remote_malloc(remote, 64)
    ref = reference(buffer, 64)
    reused = 0
    for tensors in range(200):
        former = ec.TaskArgs.of(*[(ref, INPUT)] * (tensors % 5 + 1), scalars=[tensors])
        address = id(former)
        del former
        new = ec.TaskArgs()
        reused += id(new) == address
        assert (new.num_tensors, new.num_scalars, len(new)) == (0, 0, 0)
        assert (new.tensors, new.scalars) == ((), ())
        with pytest.raises(IndexError):
            new.tensor(0)
        with pytest.raises(IndexError):
            new.tag(0)
        if tensors % 20 == 0:
            for expected in (0, 1):
                config = ec.CallConfig(block_dim=expected)
                worker.run(
                    lambda orch, a, c, new=new, config=config: orch.submit_next_level(
                        count, new, config, worker=remote
                    )
                )
                new.add_tensor(ref, INPUT)
    assert reused >= 100, f"only {reused} of 200 objects had the address of the one before"
    worker.remote_free(buffer)
