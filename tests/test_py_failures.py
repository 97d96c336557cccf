"""What becomes of a run when workers die under it, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import echelon as ec
import numpy as np
import pytest

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT


@pytest.fixture
def tasks(importable):
    import py_tasks

    return py_tasks


def submit_none(orch, handle, count):
    for _ in range(count):
        orch.submit_sub(handle)


def test_r_083_a_sub_worker_killed_amid_a_thousand_tasks_loses_one(tasks):
    """R-083, design §15.15: the only worker dies in task 501; the other 999 are right."""
    values = np.zeros((1001, 8))
    with ec.Worker(num_sub_workers=1) as worker:
        add, die = worker.register(tasks.add_scalar), worker.register(tasks.die)

        def graph(orch, args, config):
            for i in range(1, 1001):
                if i == 501:
                    orch.submit_sub(die)
                else:
                    orch.submit_sub(add, ec.TaskArgs.of((values[i], INOUT), scalars=(i,)))

        with pytest.raises(ec.EndpointLost, match="signal 9") as caught:
            worker.run(graph)
        assert [(f.outcome, f.sequence) for f in caught.value.failures] == [("endpoint_lost", 501)]
        assert (caught.value.skipped, caught.value.cancelled) == (0, 0)
        expected = np.arange(1001.0)
        expected[501] = 0
        assert np.array_equal(values, np.repeat(expected[:, None], 8, axis=1))


def test_a_sub_worker_killed_from_outside_loses_at_most_what_it_had_begun(tasks):
    """The kill may fall anywhere: between tasks nothing is lost."""
    values = np.zeros((301, 8))
    with ec.Worker(num_sub_workers=1) as worker:
        add, pid = worker.register(tasks.add_scalar), worker.register(tasks.put_pid)
        who = np.zeros(1, np.int64)
        worker.run(lambda orch, args, config: orch.submit_sub(pid, ec.TaskArgs.of((who, OUTPUT))))

        def graph(orch, args, config):
            for i in range(1, 301):
                orch.submit_sub(add, ec.TaskArgs.of((values[i], INOUT), scalars=(i,)))
                if i == 150:
                    os.kill(int(who[0]), signal.SIGKILL)

        lost = []
        try:
            worker.run(graph)
        except ec.EndpointLost as error:
            lost = [failure.sequence for failure in error.failures]
            assert error.skipped == 0
        assert len(lost) <= 1
        expected = np.arange(301.0)
        expected[lost] = 0
        assert np.array_equal(values, np.repeat(expected[:, None], 8, axis=1))
        worker.run(lambda orch, args, config: orch.submit_sub(pid, ec.TaskArgs.of((who, OUTPUT))))
        assert who[0] > 0


def test_r_082_readers_of_a_lost_task_are_skipped_and_the_rest_runs(tasks):
    x, y = np.zeros(2), np.ones(2)
    with ec.Worker(num_sub_workers=1) as worker:
        die, double = worker.register(tasks.die), worker.register(tasks.double)

        def graph(orch, args, config):
            orch.submit_sub(die, ec.TaskArgs.of((x, OUTPUT)))
            orch.submit_sub(double, ec.TaskArgs.of((x, INOUT)))
            orch.submit_sub(double, ec.TaskArgs.of((y, INOUT)))

        with pytest.raises(ec.EndpointLost) as caught:
            worker.run(graph)
        assert (len(caught.value.failures), caught.value.skipped) == (1, 1)
        assert y.tolist() == [2, 2]


def test_a_callable_that_always_dies_is_not_fed_processes_for_ever(tasks):
    with ec.Worker(num_sub_workers=1) as worker:
        die, noop = worker.register(tasks.die), worker.register(tasks.noop)

        def graph(orch, args, config):
            submit_none(orch, die, 20)

        with pytest.raises(ec.EndpointLost, match="signal 9") as caught:
            worker.run(graph)
        assert len(caught.value.failures) == 20
        last = caught.value.failures[-1]
        assert "signal 9" in last.remote_traceback and "number 3" in last.remote_traceback
        # Tasks in between make up for it.
        survived = worker.run(lambda orch, args, config: submit_none(orch, noop, 3))
        assert survived.counts["completed"] == 3

        def mixed(orch, args, config):
            for _ in range(4):
                orch.submit_sub(die)
                orch.submit_sub(noop)

        with pytest.raises(ec.EndpointLost) as caught:
            worker.run(mixed)
        assert len(caught.value.failures) == 4


def test_a_module_that_is_gone_loses_its_own_tasks_only(tasks, tmp_path, monkeypatch):
    module = tmp_path / "soon_gone.py"
    module.write_text("def leaf(args):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with ec.Worker(num_sub_workers=1) as worker:
        import soon_gone

        gone = worker.register(soon_gone.leaf)
        die, noop = worker.register(tasks.die), worker.register(tasks.noop)
        submit_all = [gone, noop]
        worker.run(lambda orch, args, config: [orch.submit_sub(h) for h in submit_all] and None)
        for left in tmp_path.rglob("soon_gone*"):
            if left.is_file():
                left.unlink()

        def graph(orch, args, config):
            orch.submit_sub(die)
            submit_none(orch, gone, 2)
            submit_none(orch, noop, 3)

        with pytest.raises(ec.EndpointLost) as caught:
            worker.run(graph)
        texts = [failure.remote_traceback for failure in caught.value.failures]
        assert len(texts) == 3 and "soon_gone" in texts[1], texts


def test_r_086_an_idempotent_task_survives_its_worker(tasks, tmp_path):
    """R-086: side effects are counted in a file, and are no more than the attempts."""
    log = np.frombuffer(str(tmp_path / "begun").encode(), np.uint8)
    result = np.zeros(1)
    with ec.Worker(num_sub_workers=1, max_attempts=3) as worker:
        die_until = worker.register(tasks.die_until)

        def graph(orch, args, config):
            tensors = ec.TaskArgs.of((log, INPUT), (result, OUTPUT), scalars=(args,))
            orch.submit_sub(die_until, tensors, idempotent=True)

        report = worker.run(graph, 2)
        assert (report.retried, result[0]) == (2, 3)
        assert (tmp_path / "begun").read_text() == "xxx"
        assert [(e["attempt"], e["outcome"]) for e in report.timeline] == [
            (1, "lost"),
            (2, "lost"),
            (3, "completed"),
        ]
        assert "attempt 3" in report.explain(1)
        with pytest.raises(LookupError, match="no task 7"):
            report.explain(7)
        (tmp_path / "begun").unlink()
        with pytest.raises(ec.EndpointLost) as caught:
            worker.run(graph, 99)
        failure = caught.value.failures[0]
        assert failure.attempts == 3 and (tmp_path / "begun").read_text() == "xxx"
        assert failure.story().count("dispatched") == 3
        with pytest.raises(ValueError, match="half written"):
            worker.run(
                lambda orch, a, c: orch.submit_sub(
                    die_until, ec.TaskArgs.of((result, INOUT)), idempotent=True
                )
            )


def test_section_15_15_a_task_out_of_time_is_killed_and_the_others_go_on(tasks):
    with ec.Worker(num_sub_workers=1) as worker:
        sleep, noop = worker.register(tasks.sleep_long), worker.register(tasks.noop)

        def graph(orch, args, config):
            orch.submit_sub(sleep, timeout_s=0.05)
            submit_none(orch, noop, 20)
            orch.submit_sub(sleep, timeout_s=0.05)

        with pytest.raises(ec.EndpointLost, match=r"timeout_s of 0\.05") as caught:
            worker.run(graph)
        assert [failure.sequence for failure in caught.value.failures] == [1, 22]
        assert worker.progress()["completed"] == 20
        for bad in (0, -1, float("nan"), 1e12):
            with pytest.raises(ValueError, match="timeout_s"):
                worker.run(lambda orch, a, c, bad=bad: orch.submit_sub(noop, timeout_s=bad))


def test_r_085_failures_tell_their_kind_cause_and_story(tasks):
    """R-080, R-085: classes, attributes and counters tell the kinds apart, and the list is bounded."""
    x = np.zeros(2)
    with ec.Worker(num_sub_workers=1) as worker:
        fail, double, die = (worker.register(f) for f in (tasks.fail, tasks.double, tasks.die))

        def graph(orch, args, config):
            orch.submit_sub(fail, ec.TaskArgs.of((x, OUTPUT)))
            orch.submit_sub(double, ec.TaskArgs.of((x, INOUT)))
            orch.submit_sub(die)
            submit_none(orch, fail, 150)

        with pytest.raises(ec.TaskError) as caught:
            worker.run(graph)
        error = caught.value
        assert (len(error.failures), error.failures_dropped) == (100, 52)
        assert "52 of them not listed" in str(error)
        assert [error.failures[0].outcome, error.failures[1].outcome] == ["failed", "endpoint_lost"]
        [skipped] = error.affected
        assert (skipped.outcome, skipped.sequence, skipped.cause) == ("skipped", 2, 1)
        states = [state for state, _, _ in error.failures[0].steps]
        assert states[0] == "submitted" and states[-1] == "ended" and "started" in states
        times = [at for _, at, _ in error.failures[0].steps]
        assert times == sorted(times)
        assert "as failed" in error.failures[0].story()
        assert error.undefined_ranges == ["an array of the parent (16 bytes)"]
        progress = worker.progress()
        assert (progress["failed"], progress["lost"], progress["skipped"]) == (151, 1, 1)


def test_a_run_that_reads_what_another_left_undefined_is_skipped(tasks):
    x = np.zeros(2)
    with ec.Worker(num_sub_workers=1) as worker:
        fail, double = worker.register(tasks.fail), worker.register(tasks.double)

        def graph(orch, args, config):
            orch.submit_sub(fail, ec.TaskArgs.of((x, OUTPUT)))
            orch.wait_all()
            with pytest.raises(ec.TaskSkipped, match="another run") as caught:
                worker.run(lambda o, a, c: o.submit_sub(double, ec.TaskArgs.of((x, INOUT))))
            assert caught.value.failures == [] and caught.value.affected[0].cause is None

        with pytest.raises(ec.TaskError):
            worker.run(graph)


PANIC = """
import os, sys
sys.path.insert(0, sys.argv[1])
import py_tasks
import echelon as ec

worker, other = ec.Worker(num_sub_workers=1), ec.Worker(num_sub_workers=1)
noop = {w: w.register(py_tasks.noop) for w in (worker, other)}
worker.init()


def arm(text):
    with open(os.environ["ECHELON_FAILPOINTS"], "w") as points:
        points.write(text)


def graph(orch, args, config):
    orch.submit_sub(noop[worker])
    arm(f"{sys.argv[2]} panic\\n")
    try:
        orch.submit_sub(noop[worker])
        orch.wait_all()
    finally:
        arm("")


try:
    worker.run(graph)
except BaseException as error:
    print(type(error).__name__, flush=True)
for _ in range(2):
    try:
        worker.run(lambda orch, a, c: orch.submit_sub(noop[worker]))
    except ec.LifecycleError as error:
        print("broken by a panic" in str(error), flush=True)
print(other.run(lambda orch, a, c: orch.submit_sub(noop[other])).counts["completed"], flush=True)
worker.close()
other.close()
print(worker.state, other.state)
"""


@pytest.mark.parametrize("point", ["submit.admitted", "engine.pump"])
def test_r_094_a_panic_is_an_exception_and_breaks_its_worker_only(point, callables_path, tmp_path):
    """R-094: amid a change of the engine, in the caller's thread or whichever drives; close() still ends everything."""
    points = tmp_path / "points"
    points.touch()
    done = subprocess.run(
        [sys.executable, "-c", PANIC, str(callables_path), point],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
        env={**os.environ, "ECHELON_FAILPOINTS": str(points)},
    )
    told = done.stdout.decode().split()
    # The driver thread may meet the panic before the caller does.
    assert told[0] in ("PanicException", "LifecycleError"), (told, done.stderr.decode())
    assert told[1:] == ["True", "True", "1", "closed", "closed"], (told, done.stderr.decode())
    assert done.returncode == 0


RUNNING_AT_EXIT = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
import py_tasks
import echelon as ec

worker = ec.Worker(num_sub_workers=2, close_timeout_s=2, interrupt_grace_s=0.1)
sleep, die = worker.register(py_tasks.sleep_long), worker.register(py_tasks.die)
worker.init()
begun = threading.Event()


def graph(orch, args, config):
    orch.submit_sub(sleep)
    orch.submit_sub(die)
    orch.submit_sub(sleep, idempotent=True, timeout_s=500)
    begun.set()


def run():
    try:
        worker.run(graph)
    except ec.EchelonError:
        pass


threading.Thread(target=run, daemon=True).start()
begun.wait()
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        sys.exit(7)
    assert os.waitpid(child, 0)[1] >> 8 == 7
print("end", flush=True)
"""


@pytest.mark.parametrize("how", ["exit", "fork"])
def test_r_095_an_interpreter_that_ends_amid_a_run_leaves_nothing(how, callables_path):
    """R-095: tasks run, a dead worker is being replaced, a thread is inside run(): neither hang nor crash nor child left."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNING_AT_EXIT, str(callables_path), how],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"end\n"), done.stderr.decode()
