"""Registration on real workers: inner callables of sessions and local children, removals, starts that cannot work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed.wait import eventually

INOUT, INPUT = ec.TensorArgType.INOUT, ec.TensorArgType.INPUT
KINDS = ["session", "child"]

pytestmark = pytest.mark.usefixtures("importable")


@contextmanager
def below(kind: str, prepare: Callable[[ec.Worker], object] = lambda worker: None) -> Iterator[ec.Worker]:
    """A worker whose worker 0 has a runtime of its own with one sub worker; `prepare` runs before `init()`."""
    if kind == "session":
        with ec.LocalCluster(remote=1, sub_workers=1) as cluster:
            prepare(cluster.worker)
            cluster.worker.init()
            yield cluster.worker
        return
    worker = ec.Worker(level=4, num_sub_workers=0)
    worker.add_worker(ec.Worker(level=3, num_sub_workers=1))
    prepare(worker)
    with worker:
        yield worker


def target(name: str) -> ec.RemoteCallable:
    return ec.RemoteCallable(f"py_tasks:{name}")


def forwarded(worker: ec.Worker, handle: ec.CallableHandle) -> list[float]:
    """What ones become when worker 0 hands them on to its sub worker's `double`."""
    x = np.ones(2)
    if not any(info["name"].startswith("remote") for info in worker.workers()):
        worker.run(lambda o, a, c: o.submit_next_level(handle, ec.TaskArgs.of((x, INOUT)), worker=0))
        return list(x)
    buffer = worker.remote_malloc(0, x.nbytes)
    worker.remote_copy_to(buffer, x)
    ref = ec.RemoteTensorRef(buffer, shape=(2,), dtype=ec.DataType.FLOAT64)
    try:
        worker.run(lambda o, a, c: o.submit_next_level(handle, ec.TaskArgs.of((ref, INOUT)), worker=0))
        worker.remote_copy_from(buffer, x)
    finally:
        worker.remote_free(buffer)
    return list(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before init", "after init"])
def test_an_inner_callable_is_there_until_it_is_unregistered(kind: str, when: str) -> None:
    inner: list[ec.CallableHandle] = []

    def register(worker: ec.Worker) -> None:
        # Two registrations of one callable are one callable below.
        inner.extend(worker.register(target("double"), workers=[0], inner=True) for _ in range(2))

    with below(kind, register if when == "before init" else lambda worker: None) as worker:
        forward = worker.register(target("orch_forward"), workers=[0])
        if when == "after init":
            with pytest.raises(ec.TaskError, match="not registered here"):
                forwarded(worker, forward)
            register(worker)
        # For the dispatcher too: another registry.
        here = worker.register(target("double"), workers=[0])
        assert forwarded(worker, forward) == [2, 2]
        worker.unregister(inner[0])
        worker.unregister(here)
        assert forwarded(worker, forward) == [2, 2]
        worker.unregister(inner[1])
        with pytest.raises(ec.TaskError, match="not registered here"):
            forwarded(worker, forward)
        register(worker)
        assert forwarded(worker, forward) == [2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_inner_registration_while_a_task_runs_takes_effect_after_it(kind: str, tmp_path: Path) -> None:
    """The level below is one thread: what it is asked meanwhile it does next."""
    go, begun = tmp_path / "go", tmp_path / "begun"
    with below(kind) as worker:
        wait = worker.register(target("orch_begin_and_wait"), workers=[0])
        forward = worker.register(target("orch_forward"), workers=[0])
        paths = [np.frombuffer(str(path).encode(), np.uint8) for path in (begun, go)]
        registered: list[ec.CallableHandle] = []

        def graph(orch: ec.Orchestrator, args: object, config: object) -> None:
            orch.submit_next_level(wait, ec.TaskArgs.of(*((path, INPUT) for path in paths)), worker=0)
            eventually(begun.exists, 60, what="the begin of the task")
            registering = threading.Thread(
                target=lambda: registered.append(worker.register(target("double"), workers=[0], inner=True))
            )
            registering.start()
            go.touch()
            registering.join(60)

        worker.run(graph)
        assert len(registered) == 1
        assert forwarded(worker, forward) == [2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_inner_callable_that_cannot_be_imported_is_nowhere(kind: str) -> None:
    with below(kind) as worker:
        with pytest.raises(ec.RegistrationError, match="no_such_function"):
            worker.register(target("no_such_function"), workers=[0], inner=True)
        forward = worker.register(target("orch_forward"), workers=[0])
        worker.register(target("double"), workers=[0], inner=True)
        assert forwarded(worker, forward) == [2, 2]


def test_r_024_a_callable_that_nobody_can_run_fails_init_before_there_is_a_process() -> None:
    with ec.LocalCluster(remote=1, sub_workers=0) as cluster:
        worker = cluster.worker
        worker.register(lambda args: None)
        worker.register(target("double"), workers=[0], inner=True)
        with pytest.raises(ec.RegistrationError, match=r"num_sub_workers.*inner=True, and worker 0"):
            worker.init()
        assert worker.workers() == []
    with pytest.raises(ec.RegistrationError, match="add_remote_worker"):
        worker = ec.Worker(num_sub_workers=1)
        worker.register(target("double"))
        worker.init()
