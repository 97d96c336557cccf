"""`LocalCluster` and remote sessions from Python: real daemons, real sessions."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs, residual
from testbed.wait import eventually

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
F64, U8 = ec.DataType.FLOAT64, ec.DataType.UINT8


@pytest.fixture
def cluster(callables_path: Path) -> Iterator[ec.LocalCluster]:
    """Two sessions with a sub worker each, not inited yet."""
    with ec.LocalCluster(remote=2, sub_workers=1, pythonpath=[str(callables_path)]) as running:
        yield running


def register(cluster: ec.LocalCluster, name: str, **options) -> ec.CallableHandle:
    return cluster.worker.register(ec.RemoteCallable(f"py_tasks:{name}"), **options)


def submit(cluster: ec.LocalCluster, handle, *tensors, worker: int = -1, config=None) -> ec.RunReport:
    return cluster.worker.run(
        lambda orch, a, c: orch.submit_next_level(handle, ec.TaskArgs.of(*tensors), config, worker=worker)
    )


def vector(buffer, count: int, offset: int = 0) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, offset=offset, shape=(count,), dtype=F64)


def test_a_buffer_goes_there_is_used_and_comes_back(cluster):
    double = register(cluster, "orch_double")
    worker, (first, _) = cluster.worker, cluster.remote_ids
    worker.init()
    sent, got = np.arange(8.0), np.zeros(8)
    buffer = worker.remote_malloc(first, sent.nbytes)
    worker.remote_copy_to(buffer, sent)
    submit(cluster, double, (vector(buffer, 8), INOUT), worker=first)
    worker.remote_copy_from(buffer, got)
    assert got.tolist() == (2 * sent).tolist()
    part = bytearray(16)
    worker.remote_copy_from(buffer, part, nbytes=8, offset=8)
    assert np.frombuffer(part)[0] == 2 and part[8:] == bytes(8)
    worker.remote_free(buffer)
    assert buffer.released


@pytest.mark.parametrize("kind", ["owned", "imported"])
def test_an_argument_is_handed_on_to_a_sub_worker_that_started_earlier(kind, cluster):
    """Design §15.1; inline memory, which is an INPUT always, below."""
    forward = register(cluster, "orch_forward")
    register(cluster, "double", inner=True)
    worker, (first, second) = cluster.worker, cluster.remote_ids
    worker.init()
    buffer = worker.remote_malloc(first, 32)
    worker.remote_copy_to(buffer, np.ones(4))
    if kind == "owned":
        submit(cluster, forward, (vector(buffer, 4), INOUT), worker=first)
    else:
        imported = worker.remote_import(worker.remote_export(buffer, access="readwrite"), worker=second)
        submit(cluster, forward, (vector(imported, 4), INOUT), worker=second)
        worker.remote_release_import(imported)
    got = np.zeros(4)
    worker.remote_copy_from(buffer, got)
    assert got.tolist() == [2.0] * 4
    worker.remote_free(buffer)


@pytest.mark.parametrize("kind", ["owned", "imported", "inline"])
def test_r_109_an_input_is_read_only_in_a_session_and_in_its_sub_workers(kind, cluster):
    """Tags travel (`task_tags`), for each of the three kinds of memory."""
    tries = register(cluster, "orch_input_is_read_only")
    register(cluster, "input_is_read_only", inner=True)
    worker, (first, second) = cluster.worker, cluster.remote_ids
    worker.init()
    given, other = worker.remote_malloc(first, 32), worker.remote_malloc(second, 32)
    worker.remote_copy_to(given, np.full(4, 7.0))
    worker.remote_copy_to(other, np.ones(4))
    # Full access, so that nothing but the tag makes it read-only.
    imported = worker.remote_import(worker.remote_export(given, access="readwrite"), worker=second)
    ref, target = {
        "owned": (vector(given, 4), first),
        "imported": (vector(imported, 4), second),
        "inline": (ec.RemoteTensorRef.host_inline(np.full(4, 7.0), shape=(4,), dtype=F64), second),
    }[kind]
    written = other if target == second else worker.remote_malloc(first, 32)
    worker.remote_copy_to(written, np.ones(4))
    report = submit(cluster, tries, (ref, INPUT), (vector(written, 4), INOUT), worker=target)
    name = f"remote{target}"
    assert report.tasks_per_worker == {name: 1, f"{name}/sub0": 1}
    got = np.zeros(4)
    worker.remote_copy_from(written, got)
    assert got.tolist() == [2.0] * 4
    worker.remote_copy_from(given, got)
    assert got.tolist() == [7.0] * 4
    worker.remote_release_import(imported)
    for buffer in {id(b): b for b in (given, other, written)}.values():
        worker.remote_free(buffer)


def test_sessions_do_not_see_each_other_s_inner_callables_r052(cluster):
    """Side by side and in sequence: a callable is found in the session that it was registered for only."""
    forward = register(cluster, "orch_forward")
    worker, (first, second) = cluster.worker, cluster.remote_ids
    inner = register(cluster, "double", inner=True, workers=[first])
    worker.init()
    buffers = [worker.remote_malloc(id_, 32) for id_ in (first, second)]
    submit(cluster, forward, (vector(buffers[0], 4), INOUT), worker=first)
    with pytest.raises(ec.TaskError, match="py_tasks:double is not registered here"):
        submit(cluster, forward, (vector(buffers[1], 4), INOUT), worker=second)
    worker.unregister(inner)
    residual.note_descendants()
    os.kill(next(info["pid"] for info in worker.workers() if info["name"] == "remote0"), signal.SIGKILL)
    eventually(lambda: reopened(worker, first), 30, what="the loss of remote0")
    fresh = worker.remote_malloc(first, 32)
    with pytest.raises(ec.TaskError, match="py_tasks:double is not registered here"):
        submit(cluster, forward, (vector(fresh, 4), INOUT), worker=first)


def reopened(worker: ec.Worker, id_: int) -> bool:
    """A fresh session, once the loss of the old one is known."""
    try:
        worker.reopen(id_)
    except ec.LifecycleError:
        return False
    return True


def test_one_graph_spans_local_tensors_and_remote_buffers(cluster):
    total = register(cluster, "orch_sum")
    worker, (first, second) = cluster.worker, cluster.remote_ids
    worker.init()
    here, there = worker.remote_malloc(first, 80), worker.remote_malloc(second, 16)
    result = np.zeros(1)
    seen = worker.remote_import(worker.remote_export(here), worker=second)

    def graph(orch, args, config):
        numbers = orch.alloc((10,), F64)
        numbers.numpy()[...] = np.arange(10)
        orch.copy(vector(here, 10), numbers)
        orch.submit_next_level(
            total,
            ec.TaskArgs.of((vector(seen, 10), INPUT), (vector(there, 1), OUTPUT)),
            ec.CallConfig(block_dim=5),
            worker=second,
        )
        orch.copy(result, vector(there, 1))

    report = worker.run(graph)
    assert result[0] == 50
    assert report.tasks_per_worker["remote1"] == 1
    worker.remote_release_import(seen)
    worker.remote_free(here)
    worker.remote_free(there)


def test_an_array_goes_along_as_input(cluster):
    total = register(cluster, "orch_sum")
    worker, (first, _) = cluster.worker, cluster.remote_ids
    worker.init()
    out = worker.remote_malloc(first, 8)
    submit(cluster, total, (np.arange(4.0), INPUT), (vector(out, 1), OUTPUT), worker=first)
    got = np.zeros(1)
    worker.remote_copy_from(out, got)
    assert got[0] == 6
    with pytest.raises(TypeError, match="remote_malloc"):
        submit(cluster, total, (np.zeros(4), INPUT), (got, OUTPUT), worker=first)
    worker.remote_free(out)


def test_remote_references_are_for_remote_workers(cluster):
    """R-088"""
    worker, (first, _) = cluster.worker, cluster.remote_ids
    noop = worker.register(lambda args: None)
    worker.init()
    buffer = worker.remote_malloc(first, 8)
    args = ec.TaskArgs.of((vector(buffer, 1), INPUT))
    for call in (lambda orch: orch.submit_sub(noop, args), lambda orch: orch.submit_sub_group(noop, [args])):
        with pytest.raises(TypeError, match="RemoteTensorRef"):
            worker.run(lambda orch, a, c, call=call: call(orch))
    worker.remote_free(buffer)


def test_a_remote_failure_names_host_worker_and_traceback(cluster):
    fail = register(cluster, "orch_fail")
    with pytest.raises(ec.TaskError, match="remote trouble") as caught:
        submit(cluster, fail, worker=cluster.remote_ids[1])
    error = caught.value
    assert (error.worker_id, error.worker, error.host) == (1, "remote1", cluster.daemon_endpoint)
    assert "ValueError" in error.remote_traceback and "py_tasks.py" in error.remote_traceback
    assert cluster.worker.state == "ready"


def test_handles_are_opaque(cluster):
    """R-110: what a handle shows, and what it refuses."""
    worker, (first, second) = cluster.worker, cluster.remote_ids
    worker.init()
    buffer = worker.remote_malloc(worker=first, nbytes=64)
    export = worker.remote_export(buffer, offset=8, nbytes=16, access="read")
    imported = worker.remote_import(export, worker=second)
    shown = {
        (type(x).__name__, name) for x in (buffer, export) for name in dir(x) if not name.startswith("__")
    }
    handle = {
        "worker_id",
        "owner_worker_id",
        "nbytes",
        "address_space",
        "access_flags",
        "is_imported",
        "released",
    }
    exported = {"owner_worker_id", "offset", "nbytes", "access_flags", "transport_profile"}
    assert shown == {("RemoteBufferHandle", n) for n in handle} | {
        ("RemoteBufferExport", n) for n in exported
    }
    for thing in (buffer, export, imported):
        for forge in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"cannot be (copied|pickled)"):
                forge(thing)
        with pytest.raises(AttributeError):
            thing.nbytes = 1
        assert not any(word in repr(thing) for word in ("0x", "psm_", "rkey", "addr", "token", "fd"))
    assert (buffer.worker_id, buffer.owner_worker_id, buffer.nbytes, buffer.is_imported) == (
        first,
        first,
        64,
        False,
    )
    assert (imported.worker_id, imported.owner_worker_id, imported.nbytes) == (second, first, 16)
    assert imported.access_flags is ec.AccessFlags.READ
    assert export.transport_profile == "tcp"
    worker.remote_release_import(imported)
    worker.remote_free(buffer)


def test_bad_handles_are_refused_and_nothing_breaks(cluster):
    worker, (first, second) = cluster.worker, cluster.remote_ids
    worker.init()
    buffer = worker.remote_malloc(first, 64)
    read = worker.remote_import(worker.remote_export(buffer, access="read"), worker=second)
    with pytest.raises(ec.HandleError, match="needs write access"):
        ec.TaskArgs().add_tensor(vector(read, 8), OUTPUT)
    with pytest.raises(ec.HandleError, match="access"):
        worker.remote_import(worker.remote_export(buffer, access="read"), worker=second, access="readwrite")
    with pytest.raises(ec.HandleError, match="import"):
        worker.remote_export(read)
    with pytest.raises(ec.HandleError, match="import"):
        worker.remote_free(read)
    with pytest.raises(ValueError, match="do not lie inside"):
        vector(buffer, 9)
    with pytest.raises(ValueError):
        worker.remote_copy_to(buffer, bytes(65))
    with pytest.raises(ValueError, match="host has 8 bytes"):
        worker.remote_copy_to(buffer, bytes(8), nbytes=9)
    with pytest.raises(ValueError, match="read-only"):
        worker.remote_copy_from(buffer, bytes(8))
    with pytest.raises(ValueError, match="known ids"):
        worker.remote_malloc(7, 8)
    with pytest.raises(ValueError):
        worker.remote_malloc(first, 0)
    with ec.Worker() as other, pytest.raises((ec.HandleError, ValueError)):
        other.remote_free(buffer)
    worker.remote_release_import(read)
    worker.remote_free(buffer)
    with pytest.raises(ec.HandleError, match="released"):
        worker.remote_free(buffer)
    with pytest.raises(ec.HandleError, match="released"):
        worker.remote_copy_to(buffer, b"1")
    with pytest.raises(ec.HandleError, match="released"):
        ec.TaskArgs().add_tensor(vector(buffer, 1), INPUT)


def test_a_callable_that_does_not_import_fails_init_and_leaves_nothing(cluster):
    cluster.worker.register(ec.RemoteCallable("py_tasks:missing"))
    with pytest.raises((ec.RegistrationError, ec.StartupError), match="missing"):
        cluster.worker.init()
    assert cluster.worker.state == "failed"
    with pytest.raises(ec.LifecycleError, match="failed"):
        cluster.worker.run(lambda orch, a, c: None)


def test_a_callable_that_does_not_import_later_is_refused_everywhere(cluster):
    cluster.worker.init()
    with pytest.raises(ec.RegistrationError, match="no_such_module") as caught:
        cluster.worker.register(ec.RemoteCallable("no_such_module:fn"))
    assert "ModuleNotFoundError" in str(caught.value)
    double = register(cluster, "orch_sum")
    assert double.kind == "PYTHON_IMPORT"


def test_a_callable_for_sessions_that_are_all_lost_is_refused(cluster):
    """Nobody would have imported it, and one that cannot be imported would keep every session from being reopened."""
    worker = cluster.worker
    worker.init()
    for description in worker.workers():
        if description["name"].startswith("remote"):
            os.kill(description["pid"], signal.SIGKILL)

    def refused() -> bool:
        try:
            worker.unregister(register(cluster, "orch_noop"))
        except ec.RegistrationError as error:
            return all(f"remote{i} is lost" in str(error) for i in (0, 1)) and "reopen(" in str(error)
        return False

    eventually(refused, 30, what="a registration that nobody took")
    for remote in cluster.remote_ids:
        worker.reopen(remote)
    assert worker.run(lambda orch, a, c: None).counts["completed"] == 0
    register(cluster, "orch_noop")


def test_a_session_that_dies_is_lost_and_the_other_goes_on(cluster):
    double = register(cluster, "orch_double")
    worker, (first, second) = cluster.worker, cluster.remote_ids
    worker.init()
    buffers = [worker.remote_malloc(id_, 8) for id_ in (first, second)]
    pids = {info["name"]: info["pid"] for info in worker.workers()}
    residual.note_descendants()
    os.kill(pids["remote0"], signal.SIGKILL)

    def lost() -> bool:
        try:
            submit(cluster, double, (vector(buffers[0], 1), INOUT), worker=first)
        except (ec.EndpointLost, ec.NotEligibleError):
            return True
        return False

    eventually(lost, 30, what="the loss of remote0")
    submit(cluster, double, (vector(buffers[1], 1), INOUT), worker=second)


def test_a_cluster_without_remotes_needs_no_daemon():
    with ec.LocalCluster(remote=0, sub_workers=1) as cluster:
        assert (cluster.remote_ids, cluster.daemon_endpoint, cluster.daemon_pid) == ([], None, None)
        handle = cluster.worker.register(lambda args: None)
        assert cluster.worker.run(lambda orch, a, c: orch.submit_sub(handle)).counts["completed"] == 1


def test_a_cluster_closes_any_number_of_times_and_without_being_used(callables_path):
    cluster = ec.LocalCluster(remote=1, sub_workers=0)
    pid = cluster.daemon_pid
    cluster.close()
    cluster.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert cluster.worker.state == "closed"


@pytest.mark.parametrize("arguments", [{"remote": -1}, {"sub_workers": -1}, {"remote": 1.5}, {"nonsense": 1}])
def test_wrong_arguments_of_a_cluster_start_nothing(arguments):
    with pytest.raises((TypeError, ValueError)):
        ec.LocalCluster(**arguments)


def test_a_daemon_that_is_not_there_is_a_startup_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{unused.getsockname()[1]}"
    worker = ec.Worker(startup_timeout_s=10)
    worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=endpoint, platform="cpu"))
    with pytest.raises(ec.StartupError, match=endpoint):
        worker.init()
    assert worker.state == "failed"


@pytest.mark.parametrize("end", ["killed", "of itself"])
def test_a_daemon_never_outlives_its_script(end):
    """The script is killed or leaves the cluster open; all goes (the residual check would find it), without a word."""
    code = """
import echelon as ec, sys
cluster = ec.LocalCluster(remote=1, sub_workers=1)
cluster.worker.init()
print(cluster.daemon_pid, flush=True)
sys.stdin.read()
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as script:
        daemon = int(script.stdout.readline())
        residual.note_descendants()
        if end == "killed":
            script.kill()
        script.stdin.close()
        assert script.stderr.read() == b""

    def gone() -> bool:
        residual.reap_adopted()
        return procfs.read_process(daemon) is None

    eventually(gone, 30, what="the end of the daemon")


def test_the_doctor_runs_both_kinds_of_task(capsys):
    from echelon import _cli

    assert _cli.main(["doctor"]) == 0, capsys.readouterr().out
