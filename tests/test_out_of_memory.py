"""A process that the kernel ends for want of memory is named as such, and only its own tasks are lost (R-047)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import pytest
from testbed import residual
from testbed.wait import eventually

GROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 192 << 20

needs_groups = pytest.mark.skipif(
    not os.access(GROUPS / "memory.limit_in_bytes", os.W_OK),
    reason="needs a writable memory control group (version 1)",
)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of its own with a limit; gone afterwards."""
    path = GROUPS / f"echelon-test-{os.getpid()}"
    path.mkdir()
    try:
        (path / "memory.limit_in_bytes").write_text(str(LIMIT))
        swap = path / "memory.memsw.limit_in_bytes"
        if swap.exists():
            swap.write_text(str(LIMIT))
        yield path
    finally:
        eventually(
            lambda: not (path / "cgroup.procs").read_text(), 30, what="the end of what was in the group"
        )
        path.rmdir()


def pid_of(worker: ec.Worker, name: str) -> int:
    return next(info["pid"] for info in worker.workers() if info["name"] == name)


@pytest.mark.needs_root
@needs_groups
def test_a_sub_worker_out_of_memory_is_named_r047(group, importable):
    worker = ec.Worker(level=4, num_sub_workers=1)
    devour = worker.register(importlib.import_module("topology_tasks").devour)
    with worker:
        (group / "cgroup.procs").write_text(str(pid_of(worker, "local/sub0")))
        with pytest.raises(ec.EndpointLost, match=r"signal 9 .*out of memory"):
            worker.run(lambda orch, a, c: orch.submit_sub(devour))


@pytest.mark.needs_root
@needs_groups
def test_a_session_out_of_memory_costs_its_own_tasks_only_r047(group, daemon):
    worker = ec.Worker(level=4, remote_session_timeout_s=10)
    ids = [worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint)) for _ in range(2)]
    devour = worker.register(ec.RemoteCallable("topology_tasks:orch_devour"), workers=ids)
    noop = worker.register(ec.RemoteCallable("py_tasks:orch_double"), workers=ids)
    with worker:
        (group / "cgroup.procs").write_text(str(pid_of(worker, "remote0")))
        residual.note_descendants()
        with pytest.raises(ec.EndpointLost):
            worker.run(lambda orch, a, c: orch.submit_next_level(devour, ec.TaskArgs(), worker=0))
        data = ec.RemoteTensorRef(worker.remote_malloc(1, 8), shape=(1,), dtype=ec.DataType.FLOAT64)
        args = ec.TaskArgs.of((data, ec.TensorArgType.INOUT))
        worker.run(lambda orch, a, c: orch.submit_next_level(noop, args, worker=1))
    eventually(
        lambda: "out of memory" in daemon.stderr_path.read_text(), 30, what="the daemon's word about it"
    )
