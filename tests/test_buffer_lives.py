"""Remote buffers of real sessions from malloc to the last mapping: who maps them, who may write, how many there may be."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs, residual
from testbed.daemon import Daemon
from testbed.wait import eventually

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT
U8 = ec.DataType.UINT8
NBYTES = 8192


@pytest.fixture
def cluster(callables_path: Path) -> Iterator[ec.LocalCluster]:
    """Two sessions with a sub worker each."""
    with ec.LocalCluster(remote=2, sub_workers=1, pythonpath=[str(callables_path)]) as running:
        yield running


def register(worker: ec.Worker, name: str, **options) -> ec.CallableHandle:
    return worker.register(ec.RemoteCallable(f"buffer_tasks:{name}"), **options)


def reference(buffer: ec.RemoteBufferHandle) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, shape=(buffer.nbytes,), dtype=U8)


def submit(worker: ec.Worker, handle, tensor, tag, remote: int) -> ec.RunReport:
    args = ec.TaskArgs.of((tensor, tag))
    return worker.run(lambda orch, a, c: orch.submit_next_level(handle, args, worker=remote))


def runner_of(worker: ec.Worker, remote: int) -> int:
    """Process id of a session."""
    return next(info["pid"] for info in worker.workers() if info["name"] == f"remote{remote}")


def inner_of(pid: int) -> int:
    """Process id of a session's only sub worker."""
    (child,) = procfs.workers_below(pid)
    return child.pid


@pytest.mark.parametrize("state", ["well", "stopped", "dead"])
def test_a_sub_worker_of_a_session_unmaps_what_was_freed_r119(state, cluster):
    """A stopped or dead one holds nobody up; a stopped one unmaps when it goes on."""
    worker, (first, _) = cluster.worker, cluster.remote_ids
    hand_on = register(worker, "orch_to_sub")
    register(worker, "noop", inner=True)
    worker.init()
    runner = runner_of(worker, first)
    inner = inner_of(runner)
    before = [procfs.segments(pid) for pid in (runner, inner)]
    buffer = worker.remote_malloc(first, NBYTES)
    submit(worker, hand_on, reference(buffer), INPUT, first)
    (of_runner,), (of_inner,) = (
        procfs.segments(pid) - known for pid, known in zip((runner, inner), before, strict=True)
    )
    assert of_runner == of_inner
    if state == "stopped":
        os.kill(inner, signal.SIGSTOP)
    elif state == "dead":
        residual.note_descendants()
        os.kill(inner, signal.SIGKILL)
    worker.remote_free(buffer)
    # The session answers the next request although its sub worker has not unmapped anything.
    worker.remote_free(worker.remote_malloc(first, NBYTES))
    # What the session keeps for its sub worker, its mailbox for one, may go and come with the dead one.
    assert of_runner not in procfs.segments(runner)
    if state == "stopped":
        assert of_inner in procfs.segments(inner)
        os.kill(inner, signal.SIGCONT)
    if state != "dead":
        eventually(lambda: procfs.segments(inner) == before[1], 30, what="the sub worker's unmapping")


def test_a_released_import_is_unmapped_everywhere_r119(cluster):
    worker, (first, second) = cluster.worker, cluster.remote_ids
    hand_on = register(worker, "orch_to_sub")
    register(worker, "noop", inner=True)
    worker.init()
    runner = runner_of(worker, second)
    pids = (runner, inner_of(runner))
    before = [procfs.mapped_segments(pid) for pid in pids]
    buffer = worker.remote_malloc(first, NBYTES)
    imported = worker.remote_import(worker.remote_export(buffer, access="read"), worker=second)
    submit(worker, hand_on, reference(imported), INPUT, second)
    assert [procfs.mapped_segments(pid) for pid in pids] == [count + 1 for count in before]
    worker.remote_release_import(imported)
    eventually(
        lambda: [procfs.mapped_segments(pid) for pid in pids] == before, 30, what="the end of every mapping"
    )
    worker.remote_free(buffer)


def test_writing_through_a_read_only_import_faults_r123(cluster):
    """Whatever a callable does to the view: the pages are read-only. Its process ends, the owner's bytes stay."""
    worker, (first, second) = cluster.worker, cluster.remote_ids
    write = register(worker, "orch_write_past_the_view")
    worker.init()
    buffer = worker.remote_malloc(first, NBYTES)
    sent, got = np.full(NBYTES, 7, np.uint8), np.zeros(NBYTES, np.uint8)
    worker.remote_copy_to(buffer, sent)
    importable = worker.remote_export(buffer, access="readwrite")
    writable = worker.remote_import(importable, worker=second)
    submit(worker, write, reference(writable), INOUT, second)
    worker.remote_copy_from(buffer, got)
    assert (got[0], got[1]) == (1, 7), "through a writable import it can be written"
    worker.remote_release_import(writable)
    worker.remote_copy_to(buffer, sent)
    reader = worker.remote_import(importable, worker=second, access="read")
    name = [path for rights, path in procfs.mappings(runner_of(worker, second)) if rights == "r--s"]
    assert any(path.startswith("/dev/shm/psm_") for path in name), name
    residual.note_descendants()
    with pytest.raises(ec.EndpointLost):
        submit(worker, write, reference(reader), INPUT, second)
    worker.remote_copy_from(buffer, got)
    assert (got == sent).all()
    worker.remote_free(buffer)


def test_want_of_descriptors_is_a_limit_with_a_name_r126(callables_path, tmp_path):
    """A session may have few descriptors: it refuses the buffer that would take the last ones, and goes on."""
    with Daemon(tmp_path, pythonpath=[callables_path]) as daemon, closing(ec.Worker(level=4)) as worker:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (128, 128))
        remote = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint, platform="cpu"))
        add = register(worker, "orch_add")
        worker.init()
        buffers = []
        with pytest.raises(ec.ResourceExhausted, match=r"RESOURCE_EXHAUSTED: 1 buffer handle.* limit 96"):
            for _ in range(200):
                buffers.append(worker.remote_malloc(remote, 1))
        assert len(buffers) == 96
        worker.remote_free(buffers.pop())
        buffers.append(worker.remote_malloc(remote, 1))
        assert submit(worker, add, reference(buffers[-1]), INOUT, remote).counts["completed"] == 1
        for buffer in buffers:
            worker.remote_free(buffer)
        buffers = [worker.remote_malloc(remote, 1) for _ in range(96)]
        assert len(buffers) == 96, "what was freed can be had again"


def test_a_session_s_buffers_end_with_it_r126(cluster):
    """Nobody freed them; the residual check would find a name, a process or a descriptor that stays."""
    worker, (first, second) = cluster.worker, cluster.remote_ids
    worker.init()
    before = set(os.listdir("/dev/shm"))
    buffers = [worker.remote_malloc(first, NBYTES) for _ in range(20)]
    imports = [worker.remote_import(worker.remote_export(buffer), worker=second) for buffer in buffers]
    assert len(set(os.listdir("/dev/shm")) - before) == len(imports)
    worker.close()
    assert set(os.listdir("/dev/shm")) == before


FULL = """
import os, sys
import numpy as np
import echelon as ec

with ec.LocalCluster(remote=2, sub_workers=1, pythonpath=[sys.argv[1]]) as cluster:
    worker, (first, second) = cluster.worker, cluster.remote_ids
    add = worker.register(ec.RemoteCallable("buffer_tasks:orch_add"))
    hand_on = worker.register(ec.RemoteCallable("buffer_tasks:orch_to_sub"))
    worker.register(ec.RemoteCallable("buffer_tasks:noop"), inner=True)
    worker.init()
    room = os.statvfs("/dev/shm")
    assert room.f_blocks * room.f_frsize == 65536, "not in the small file system"
    small = worker.remote_malloc(first, 16384)
    worker.remote_export(small)
    large = worker.remote_malloc(first, 1 << 20)
    for buffer in (small, large):
        sent, got = np.full(buffer.nbytes, 5, np.uint8), np.zeros(buffer.nbytes, np.uint8)
        worker.remote_copy_to(buffer, sent)
        ref = ec.RemoteTensorRef(buffer, shape=(buffer.nbytes,), dtype=ec.DataType.UINT8)
        args = ec.TaskArgs.of((ref, ec.TensorArgType.INOUT))
        worker.run(lambda orch, a, c: orch.submit_next_level(add, args, ec.CallConfig(block_dim=1), worker=first))
        worker.run(lambda orch, a, c: orch.submit_next_level(hand_on, args, worker=first))
        worker.remote_copy_from(buffer, got)
        assert (got == 6).all()
    # It has no name to be mapped by, so the importer fetches what it reads and writes it back, though both are on one host.
    imported = worker.remote_import(worker.remote_export(large, access="readwrite"), worker=second)
    ref = ec.RemoteTensorRef(imported, shape=(imported.nbytes,), dtype=ec.DataType.UINT8)
    args = ec.TaskArgs.of((ref, ec.TensorArgType.INOUT))
    worker.run(lambda orch, a, c: orch.submit_next_level(add, args, ec.CallConfig(block_dim=2), worker=second))
    worker.remote_copy_from(large, got)
    assert (got == 8).all()
    worker.remote_release_import(imported)
    worker.remote_free(large)
    worker.remote_free(small)
    assert worker.remote_malloc(first, 4096).nbytes == 4096
"""
"""Allocates far beyond a file system of 64 KiB and touches every byte, in a session and in its sub worker."""


@pytest.mark.needs_root
def test_a_full_memory_file_system_is_an_error_and_no_bus_error_r124(callables_path, tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: a private mount namespace cannot be made")
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL))
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]
    ended = subprocess.run(
        [*command, sys.executable, str(script), str(callables_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    if ended.returncode != 0 and ("unshare" in ended.stderr or "mount:" in ended.stderr):
        pytest.skip(f"no private mount namespace here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
