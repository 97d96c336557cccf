"""A session runner in Rust, `examples/native_session.rs`, behind the usual daemon and below a Python parent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import examples
from testbed.daemon import Daemon

ROOT = Path(__file__).resolve().parents[1]
INOUT = ec.TensorArgType.INOUT

pytestmark = pytest.mark.hard_timeout(examples.BUILD_S + 60)


@pytest.fixture(scope="module")
def runner() -> Path:
    """The example's binary."""
    return examples.build("echelon-session", "native_session")


@pytest.fixture
def native(runner: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose sessions are the native runner."""
    arguments = ["--port", "0", "--insecure-loopback", "--session-command", str(runner)]
    with Daemon(tmp_path, arguments=arguments) as running:
        yield running


def parent(daemon: Daemon, **options: int) -> tuple[ec.Worker, int]:
    worker = ec.Worker(level=4)
    return worker, worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint, **options))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_python_parent_runs_a_native_function_in_place(native: Daemon, dtype: type) -> None:
    worker, there = parent(native)
    with worker:
        scale = worker.register(ec.RemoteCallable("native:scale"))
        sent = np.array([1.5, -2, 0], dtype)
        got = np.zeros_like(sent)
        buffer = worker.remote_malloc(there, sent.nbytes)
        worker.remote_copy_to(buffer, sent)
        name = "FLOAT32" if dtype is np.float32 else "FLOAT64"
        ref = ec.RemoteTensorRef(buffer, shape=(3,), dtype=getattr(ec.DataType, name))

        def graph(orch: ec.Orchestrator, args: object, config: object) -> None:
            # The second task waits for the first: both name the same bytes.
            for factor in (3, -2):
                orch.submit_next_level(scale, ec.TaskArgs.of((ref, INOUT), scalars=[factor]))

        report = worker.run(graph)
        assert report.tasks_per_worker == {"remote0": 2}
        worker.remote_copy_from(buffer, got)
        assert got.tolist() == [-9, 12, 0]
        worker.remote_free(buffer)


def test_the_error_of_a_native_function_reaches_the_parent(native: Daemon) -> None:
    worker, _ = parent(native)
    with worker:
        fail = worker.register(ec.RemoteCallable("native:fail"))
        args = ec.TaskArgs.of(scalars=[42])
        for _ in range(2):  # a failed task leaves the session as it was
            with pytest.raises(ec.TaskError, match=r"native:fail was called with \[42\]") as caught:
                worker.run(lambda orch, a, c: orch.submit_next_level(fail, args))
            error = caught.value
            assert (error.worker, error.host) == ("remote0", native.endpoint)
        assert worker.state == "ready"


def test_a_native_runner_says_what_it_serves(native: Daemon) -> None:
    served = r"\[native:fail, native:scale\]"
    worker, _ = parent(native)
    with worker:
        with pytest.raises(ec.RegistrationError, match=served):
            worker.register(ec.RemoteCallable("py_tasks:double"))
        worker.register(ec.RemoteCallable("native:scale"))
    early, _ = parent(native)
    early.register(ec.RemoteCallable("py_tasks:double"))
    with closing(early), pytest.raises(ec.StartupError, match=served):
        early.init()


def test_a_native_runner_has_no_sub_workers(native: Daemon) -> None:
    worker, _ = parent(native, num_sub_workers=2)
    with closing(worker), pytest.raises(ec.StartupError, match=r"num_sub_workers is 2.*no sub workers"):
        worker.init()
