"""Large arrays are copied without the engine's lock and without the interpreter's: others submit, sessions are served.

A failpoint holds the copy. The engine's side is in runtime/tests/engine_fakes/staging.rs."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import echelon as ec
import numpy as np
import pytest
from testbed.daemon import Daemon
from testbed.failpoints import Failpoints
from testbed.local import run_one
from testbed.startup import add_remote, needs_failpoints, points_fixture, served_fixture  # noqa: F401

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
NBYTES = (8 << 20) + 5
LIMIT_S = 60

pytestmark = [needs_failpoints, pytest.mark.usefixtures("importable")]


@contextmanager
def beside(action: Callable[[], object]) -> Iterator[None]:
    """Another thread does something, and has done it well when the block is left."""
    failures: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert not failures, failures


def test_others_submit_and_sessions_answer_while_an_array_is_copied(
    points: Failpoints, served: Daemon
) -> None:
    import py_tasks

    array = np.full(NBYTES, 3, np.uint8)
    with closing(ec.Worker(num_sub_workers=2)) as worker:
        remote = add_remote(worker, served)
        double, noop = worker.register(py_tasks.double), worker.register(py_tasks.noop)
        far = worker.register(ec.RemoteCallable("py_tasks:orch_noop"), workers=[remote])
        worker.init()
        for point in ("engine.hold_stage", "engine.hold_copy"):
            with beside(lambda: run_one(worker, double, (array, INOUT))), points.armed(point):
                points.wait_hit()
                before = array.copy()
                assert run_one(worker, noop).counts["completed"] == 1
                buffer = worker.remote_malloc(remote, 64)
                report = worker.run(
                    lambda orch, a, c: orch.submit_next_level(far, ec.TaskArgs(), worker=remote)
                )
                assert report.counts["completed"] == 1
                worker.remote_free(buffer)
                assert (array == before).all(), "nothing was copied back yet"
        assert (array == 12).all()


def test_a_child_that_is_killed_while_its_result_is_copied_back_takes_nothing_of_it(
    points: Failpoints,
) -> None:
    import py_tasks

    array = np.zeros(NBYTES, np.uint8)
    with ec.Worker(num_sub_workers=1) as worker:
        fill, noop = worker.register(py_tasks.fill), worker.register(py_tasks.noop)
        (child,) = worker.workers()
        with (
            beside(lambda: run_one(worker, fill, (array, OUTPUT), scalars=[7])),
            points.armed("engine.hold_copy"),
        ):
            points.wait_hit()
            os.kill(child["pid"], signal.SIGKILL)
            assert run_one(worker, noop).counts["completed"] == 1, "a fresh child took its place"
        assert (array == 7).all()


def test_an_array_is_held_until_its_copy_has_ended_and_no_longer(points: Failpoints) -> None:
    import py_tasks

    class Owned(np.ndarray):
        """Can be referred to weakly."""

    with ec.Worker(num_sub_workers=1) as worker:
        noop = worker.register(py_tasks.noop)
        with points.armed("engine.hold_stage"):
            array = np.ones(NBYTES, np.uint8).view(Owned)
            alive = weakref.ref(array)
            args = [ec.TaskArgs.of((array, INPUT))]
            del array
            with beside(lambda: worker.run(lambda orch, a, c: orch.submit_sub(noop, args.pop()))):
                points.wait_hit()
                gc.collect()
                assert alive() is not None
                points.disarm()
        run_one(worker, noop)
        gc.collect()
        assert alive() is None


def test_a_worker_that_is_closed_lets_a_result_arrive(points: Failpoints) -> None:
    import py_tasks

    array = np.zeros(NBYTES, np.uint8)
    worker = ec.Worker(num_sub_workers=1)
    fill = worker.register(py_tasks.fill)
    worker.init()
    with (
        beside(lambda: run_one(worker, fill, (array, OUTPUT), scalars=[7])),
        points.armed("engine.hold_copy"),
    ):
        points.wait_hit()
        with beside(worker.close):
            points.disarm()
    assert (array == 7).all()
    assert worker.state == "closed"
