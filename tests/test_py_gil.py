"""When the interpreter's lock is held: P-1 (free while waiting), P-2 (never under a Rust lock), P-3 (signals)."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import echelon as ec
import pytest
from testbed.local import path_bytes
from testbed.wait import eventually

INPUT = ec.TensorArgType.INPUT

pytestmark = pytest.mark.usefixtures("importable")


def test_other_threads_run_while_one_waits(tmp_path):
    """P-1: the task waits for a file that only another thread of this process makes."""
    import py_tasks

    flag = tmp_path / "flag"
    with ec.Worker(num_sub_workers=1) as worker:
        wait = worker.register(py_tasks.wait_for_file)
        submitted = threading.Event()

        def make_flag():
            submitted.wait(60)
            flag.touch()

        helper = threading.Thread(target=make_flag)
        helper.start()

        def graph(orch, args, config):
            orch.submit_sub(wait, ec.TaskArgs.of((path_bytes(flag), INPUT)))
            submitted.set()

        worker.run(graph)
        helper.join()


def test_a_second_thread_submits_while_another_waits(tmp_path):
    """The first run can only end after the second one has run."""
    import py_tasks

    flag = tmp_path / "flag"
    with ec.Worker(num_sub_workers=2) as worker:
        wait, noop = worker.register(py_tasks.wait_for_file), worker.register(py_tasks.noop)
        first = threading.Thread(
            target=lambda: worker.run(
                lambda orch, a, c: orch.submit_sub(wait, ec.TaskArgs.of((path_bytes(flag), INPUT)))
            )
        )
        first.start()
        report = worker.run(lambda orch, a, c: orch.submit_sub(noop))
        assert report.counts["completed"] == 1
        flag.touch()
        first.join()


def test_one_orchestrator_serves_several_threads():
    import py_tasks

    with ec.Worker(num_sub_workers=2) as worker:
        noop = worker.register(py_tasks.noop)

        def graph(orch, args, config):
            threads = [
                threading.Thread(target=lambda: [orch.submit_sub(noop) for _ in range(25)]) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        assert worker.run(graph).counts["completed"] == 100


INTERRUPTED = """
import sys, time
import numpy as np
import echelon as ec
sys.path.insert(0, {callables!r})
import py_tasks
flag = np.frombuffer({flag!r}.encode(), np.uint8)
with ec.Worker(num_sub_workers=1, interrupt_grace_s=0.2) as w:
    forever, noop = w.register(py_tasks.forever), w.register(py_tasks.noop)
    def graph(orch, args, config):
        orch.submit_sub(forever, ec.TaskArgs.of((flag, ec.TensorArgType.INPUT)))
    try:
        w.run(graph)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(w.run(lambda orch, a, c: orch.submit_sub(noop)).counts["completed"], flush=True)
print("closed", flush=True)
"""


@pytest.mark.parametrize("how", ["-c", "stdin"])
def test_ctrl_c_ends_the_wait_and_leaves_the_worker_usable(how, tmp_path, callables_path):
    """P-3, R-093, R-091: SIGINT while a run waits raises KeyboardInterrupt; the next run works."""
    flag = tmp_path / "begun"
    code = INTERRUPTED.format(callables=str(callables_path), flag=str(flag))
    arguments = ["-c", code] if how == "-c" else ["-"]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        if how == "stdin":
            process.stdin.write(code.encode())
        process.stdin.close()
        eventually(lambda: flag.exists() or process.poll() is not None, 60, what="the task's first line")
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.read().decode().split() == ["interrupted", "1", "closed"]
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


INTERRUPTED_REMOTE = """
import sys, threading, time
import numpy as np
import echelon as ec
sys.path.insert(0, {callables!r})
flag = np.frombuffer({flag!r}.encode(), np.uint8)
with ec.LocalCluster(remote=1, sub_workers=1, pythonpath=[{callables!r}], interrupt_grace_s=0.2) as cluster:
    w, (remote,) = cluster.worker, cluster.remote_ids
    forever = w.register(ec.RemoteCallable("py_tasks:orch_forever"))
    w.register(ec.RemoteCallable("py_tasks:forever"), inner=True)
    w.init()
    def graph(orch, args, config):
        orch.submit_next_level(forever, ec.TaskArgs.of((flag, ec.TensorArgType.INPUT)), worker=remote)
    try:
        w.run(graph)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("closed", flush=True)
"""


def test_ctrl_c_ends_a_wait_that_reads_a_session(tmp_path, callables_path):
    """R-093: also the thread that waits at the socket of a session, with nothing else in flight."""
    flag = tmp_path / "begun"
    code = INTERRUPTED_REMOTE.format(callables=str(callables_path), flag=str(flag))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        eventually(lambda: flag.exists() or process.poll() is not None, 60, what="the task's first line")
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.read().decode().split() == ["interrupted", "closed"]
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def test_what_a_signal_handler_raises_is_what_the_call_raises(tmp_path):
    """P-3 for any handler, not only that of Ctrl-C."""
    import py_tasks

    class Alarm(Exception):
        pass

    def handler(number, frame):
        raise Alarm

    flag = tmp_path / "begun"
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ec.Worker(num_sub_workers=1, interrupt_grace_s=0.1) as worker:
            forever = worker.register(py_tasks.forever)

            def send():
                eventually(flag.exists, 60, what="the task's first line")
                os.kill(os.getpid(), signal.SIGUSR1)

            sender = threading.Thread(target=send)
            sender.start()
            with pytest.raises(Alarm):
                worker.run(
                    lambda orch, a, c: orch.submit_sub(forever, ec.TaskArgs.of((path_bytes(flag), INPUT)))
                )
            sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def run_script(code: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


OPEN = """
import os, sys
import echelon as ec
w = ec.Worker(num_sub_workers=1)
w.init()
"""


def test_an_open_worker_ends_with_the_interpreter():
    """R-095: neither hang nor crash nor child left (the residual check of this suite sees those)."""
    done = run_script(OPEN + "print('end')")
    assert (done.returncode, done.stdout) == (0, b"end\n"), done.stderr.decode()


def test_a_forgotten_worker_is_ended_with_a_warning():
    done = run_script(OPEN + "del w\nprint('end')")
    assert (done.returncode, done.stdout) == (0, b"end\n")
    assert b"ResourceWarning: a Worker was dropped without close()" in done.stderr


def test_a_forked_process_leaves_the_worker_alone():
    """R-095: the child of os.fork() neither uses nor ends the workers of its parent."""
    code = (
        OPEN
        + """
h = w.register(print)
child = os.fork()
if child == 0:
    try:
        w.run(lambda orch, a, c: None)
    except ec.LifecycleError as error:
        print("forked" in str(error), flush=True)
    del w
    sys.exit(7)
print(os.waitpid(child, 0)[1] >> 8, flush=True)
print(w.state, len(w.workers()))
w.close()
"""
    )
    done = run_script(code.replace("h = w.register(print)\n", ""))
    assert done.stdout.decode().split() == ["True", "7", "ready", "1"], done.stderr.decode()


def test_a_process_forked_inside_a_run_reads_none_of_its_parents_answers():
    """R-095: it may neither submit, nor wait, nor go on with the run; the parent does."""
    done = run_script(
        """
import os, sys
import echelon as ec
with ec.LocalCluster(remote=1, sub_workers=0) as cluster:
    w = cluster.worker
    h = w.register(ec.RemoteCallable("time:sleep"))
    w.init()
    buffer = w.remote_malloc(0, 1 << 20)
    def graph(orch, args, config):
        copy = w.remote_copy_to_async(buffer, bytearray(1 << 20))
        orch.submit_next_level(h, ec.TaskArgs(), worker=0)
        child = os.fork()
        if child == 0:
            calls = [orch.wait_all, copy.wait, lambda: orch.submit_next_level(h, ec.TaskArgs(), worker=0),
                     lambda: orch.submit_next_level_many(h, [ec.TaskArgs()], worker=0)]
            for call in calls:
                try:
                    call()
                except ec.LifecycleError as error:
                    print("forked" in str(error), flush=True)
            return
        print(os.waitpid(child, 0)[1] >> 8, flush=True)
        copy.wait()
    try:
        w.run(graph)
    except ec.LifecycleError as error:
        print("forked" in str(error), flush=True)
        os._exit(7)
    except ec.RunError as error:
        print(type(error.failures[0]).__name__)
"""
    )
    said = done.stdout.decode().split()
    assert said[:6] == ["True"] * 5 + ["7"] and len(said) == 7, (said, done.stderr.decode())


@pytest.mark.parametrize(
    "cluster",
    ["ec.Worker(num_sub_workers=1)", "ec.LocalCluster(remote=1, sub_workers=1)", "ec.LocalCluster()"],
)
def test_a_fork_that_leaves_a_with_block_ends_nothing_of_its_owner(cluster):
    """R-095: neither the Worker nor the daemon of a LocalCluster; the exit status is that of `sys.exit`."""
    code = f"""
import os, sys
import echelon as ec
with {cluster} as owner:
    w = getattr(owner, "worker", owner)
    if w.state == "new":
        w.init()
    child = os.fork()
    if child == 0:
        sys.exit(7)
    print(os.waitpid(child, 0)[1] >> 8, flush=True)
    for worker in getattr(owner, "remote_ids", ()):
        w.remote_free(w.remote_malloc(worker, 8))
    alive = getattr(owner, "daemon_pid", None)
    print(w.state, alive is None or not owner._daemon._process.poll())
"""
    done = run_script(code)
    assert done.stdout.decode().split() == ["7", "ready", "True"], done.stderr.decode()
    assert b"Traceback" not in done.stderr, done.stderr.decode()


def test_the_worker_and_what_it_held_can_be_collected():
    """R-107"""

    def use() -> tuple[weakref.ref, weakref.ref]:
        def task(args):
            return None

        worker = ec.Worker(num_sub_workers=1)
        handle = worker.register(task)
        worker.run(lambda orch, a, c: orch.submit_sub(handle))
        worker.close()
        return weakref.ref(worker), weakref.ref(task)

    gone = use()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
