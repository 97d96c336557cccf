"""Bad tasks and bad arguments, as a user meets them: typed errors, a worker that goes on (issue 2, "Bad input")."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import warnings

import echelon as ec
import numpy as np
import pytest
from testbed.local import run_one

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT


@pytest.fixture
def tasks(importable):
    import bad_tasks

    return bad_tasks


def test_r_238_a_very_long_error_keeps_its_type_and_its_traceback(tasks):
    with ec.Worker(num_sub_workers=1) as worker, pytest.raises(ec.TaskError) as caught:
        run_one(worker, worker.register(tasks.raise_long))
    text = caught.value.remote_traceback
    assert text.startswith("Traceback (most recent call last):\n") and "in raise_long" in text
    assert "\nValueError: xxxx" in text and len(text) <= 4096


def test_a_text_that_utf_8_cannot_hold_is_escaped(tasks):
    with ec.Worker(num_sub_workers=1) as worker, pytest.raises(ec.TaskError) as caught:
        run_one(worker, worker.register(tasks.raise_surrogate))
    text = caught.value.remote_traceback
    assert "in raise_surrogate" in text and r"ValueError: ä€𝄞 \udc80 end" in text


@pytest.mark.parametrize("name", ["fork_and_return", "fork_and_raise"])
def test_a_fork_that_comes_out_of_the_callable_is_ended(name, tasks):
    """Two processes on one mailbox would corrupt it."""
    x = np.ones(1)
    with ec.Worker(num_sub_workers=1) as worker:
        fork, double = worker.register(getattr(tasks, name)), worker.register(tasks.double)
        for _ in range(3):
            assert run_one(worker, fork).counts["completed"] == 1
            run_one(worker, double, (x, INOUT))
    assert x[0] == 8


def test_the_hint_for_a_local_child_that_died_is_true(tasks):
    with ec.Worker(num_sub_workers=1) as worker:
        with pytest.raises(ec.EndpointLost) as caught:
            run_one(worker, worker.register(tasks.die))
        assert "a fresh process takes its place" in caught.value.hint
        assert run_one(worker, worker.register(tasks.noop)).counts["completed"] == 1


INTERRUPTED_IN_THE_FUNCTION = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
import bad_tasks
import echelon as ec

with ec.Worker(num_sub_workers=1, interrupt_grace_s=0.2) as w:
    sleep, noop = w.register(bad_tasks.sleep), w.register(bad_tasks.noop)

    def graph(orch, args, config):
        orch.submit_sub(sleep, ec.TaskArgs.of(scalars=(600_000,)))
        os.kill(os.getpid(), signal.SIGINT)
        orch.wait_all()

    try:
        w.run(graph)
    except KeyboardInterrupt:
        print("interrupted")
    print(w.run(lambda orch, args, config: orch.submit_sub(noop)).counts["completed"])
"""


def test_one_ctrl_c_in_the_function_is_enough(callables_path):
    """Design §15.15: what runs has the grace, also when the interrupt came out of the orchestration function."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_THE_FUNCTION, str(callables_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=60,
    )
    assert (done.returncode, done.stdout.decode()) == (0, "interrupted\n1\n")


def test_arguments_that_are_dropped_give_their_memory_back():
    """A bytearray cannot be resized while it is exported."""
    data = bytearray(8)
    args = ec.TaskArgs.of((data, INOUT))
    with pytest.raises(BufferError):
        data.extend(b"x")
    del args
    ec.RemoteTensorRef.host_inline(data, shape=(8,), dtype="uint8")
    data.extend(b"x")
    assert len(data) == 9


def test_starting_twice_says_that_it_is_done():
    with ec.Worker() as worker, pytest.raises(ec.LifecycleError, match="done already"):
        worker.init()


@pytest.fixture
def cluster(callables_path):
    with ec.LocalCluster(remote=1, sub_workers=0, pythonpath=[str(callables_path)]) as running:
        yield running


def test_a_worker_named_twice_is_registered_with_once(cluster):
    worker, remote = cluster.worker, cluster.remote_ids[0]
    worker.init()
    handle = worker.register(ec.RemoteCallable("bad_tasks:orch_noop"), workers=[remote, remote])
    report = worker.run(lambda orch, a, c: orch.submit_next_level(handle, ec.TaskArgs()))
    assert report.counts["completed"] == 1


@pytest.mark.parametrize("nbytes", [2**45, 2**63, 2**64 - 1])
def test_memory_that_a_session_has_not_is_a_resource_error(nbytes, cluster):
    """Design §15.7"""
    cluster.worker.init()
    with pytest.raises(ec.ResourceExhausted, match=f"{nbytes} bytes asked for"):
        cluster.worker.remote_malloc(cluster.remote_ids[0], nbytes)
    cluster.worker.remote_free(cluster.worker.remote_malloc(cluster.remote_ids[0], 8))


def test_a_cluster_that_is_dropped_ends_its_daemon(callables_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dropped = ec.LocalCluster(remote=1, sub_workers=0)
        dropped.worker.init()
        del dropped
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]


LARGE = 256 << 20
"""Bytes that take many steps to copy."""


def last_byte(worker, buffer) -> int:
    got = bytearray(1)
    worker.remote_copy_from(buffer, got, offset=LARGE - 1)
    return got[0]


def test_r_093_ctrl_c_ends_a_large_copy(cluster):
    """A copy goes in steps; the interrupt ends it between two."""

    def interrupt(*_):
        raise KeyboardInterrupt

    cluster.worker.init()
    buffer, ones = cluster.worker.remote_malloc(cluster.remote_ids[0], LARGE), np.ones(LARGE, np.uint8)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            cluster.worker.remote_copy_to(buffer, ones)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert last_byte(cluster.worker, buffer) == 0
    cluster.worker.remote_free(buffer)


def test_r_093_ctrl_c_ends_a_large_copy_in_the_graph(cluster):
    worker = cluster.worker
    worker.init()
    buffer, ones = worker.remote_malloc(cluster.remote_ids[0], LARGE), np.ones(LARGE, np.uint8)

    def graph(orch, args, config):
        orch.copy(ec.RemoteTensorRef(buffer, shape=(LARGE,), dtype="uint8"), ones)
        os.kill(os.getpid(), signal.SIGINT)
        orch.wait_all()

    with pytest.raises(KeyboardInterrupt):
        worker.run(graph)
    assert last_byte(worker, buffer) == 0
    worker.remote_free(buffer)


def test_a_timeline_that_cannot_be_written_names_the_file(tmp_path):
    with ec.Worker() as worker:
        report = worker.run(lambda orch, args, config: None)
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        report.write_timeline(tmp_path / "no_such_folder" / "t.json")


@pytest.mark.hard_timeout(40)
def test_r_019_a_thread_that_a_task_left_behind_does_not_hold_up_the_end(tasks):
    """The child would be waited for until it is killed, far beyond this limit, if its interpreter joined the thread."""
    with ec.Worker(num_sub_workers=1, close_timeout_s=600) as worker:
        run_one(worker, worker.register(tasks.leaves_a_thread))
