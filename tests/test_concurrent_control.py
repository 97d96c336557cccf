"""R-241: what a parent does with a worker's buffers does not wait for the task that runs there. Real daemon, real sessions.

No test looks at a clock: the tasks end when the test says so, and what has to come before that is simply asked for before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import echelon as ec
import pytest
from testbed.daemon import Daemon
from testbed.proxy import DaemonProxy

U8 = ec.DataType.UINT8
INOUT = ec.TensorArgType.INOUT


class Gate:
    """Two fifos: a task says that it runs, and the test lets it end."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        for suffix in (".started", ".go"):
            os.mkfifo(f"{self.path}{suffix}")
        self.config = ec.CallConfig(output_prefix=str(self.path))

    def wait(self) -> None:
        """Until the task runs."""
        with open(f"{self.path}.started", "rb") as started:
            assert started.read() == b"x"

    def open(self, value: int) -> None:
        with open(f"{self.path}.go", "wb") as go:
            go.write(bytes([value]))

    def let_go(self) -> None:
        """Lets the task end if it is still there."""
        with suppress(OSError):
            go = os.open(f"{self.path}.go", os.O_WRONLY | os.O_NONBLOCK)
            os.write(go, b"x")
            os.close(go)


def whole(buffer: ec.RemoteBufferHandle) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, offset=0, shape=(buffer.nbytes,), dtype=U8)


@contextmanager
def beside(work: Callable[[], object], *gates: Gate) -> Iterator[threading.Thread]:
    """Runs `work` in a thread; its exception comes out at the end. A body that fails lets the tasks of `gates` end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    except BaseException:
        for gate in gates:
            gate.let_go()
        raise
    finally:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture
def cluster(callables_path: Path) -> Iterator[ec.LocalCluster]:
    with ec.LocalCluster(remote=2, sub_workers=0, pythonpath=[str(callables_path)]) as running:
        yield running


def fill(worker: ec.Worker, handle: object, gate: Gate, buffer: ec.RemoteBufferHandle, remote: int) -> object:
    return worker.run(
        lambda orch, a, c: orch.submit_next_level(
            handle, ec.TaskArgs.of((whole(buffer), INOUT)), gate.config, worker=remote
        )
    )


def test_buffers_are_served_while_a_long_task_runs_r241(cluster: ec.LocalCluster, tmp_path: Path) -> None:
    worker, (remote, other) = cluster.worker, cluster.remote_ids
    handle = worker.register(ec.RemoteCallable("buffer_tasks:orch_wait_and_fill"))
    worker.init()
    used = worker.remote_malloc(remote, 8)
    gate = Gate(tmp_path, "long")
    with beside(lambda: fill(worker, handle, gate, used, remote), gate) as running:
        gate.wait()
        mine = worker.remote_malloc(remote, 1 << 20)
        worker.remote_copy_to(mine, bytes(range(256)) * 4096)
        got = bytearray(256)
        worker.remote_copy_from(mine, got, nbytes=256, offset=4096)
        assert bytes(got) == bytes(range(256))
        window = worker.remote_import(worker.remote_export(mine), worker=other)
        worker.remote_release_import(window)
        worker.remote_free(mine)
        assert mine.released and running.is_alive()
        gate.open(9)
    after = bytearray(8)
    worker.remote_copy_from(used, after)
    assert bytes(after) == bytes([9]) * 8


def test_a_copy_of_what_a_task_uses_comes_after_it_r241(cluster: ec.LocalCluster, tmp_path: Path) -> None:
    """Whenever it is asked for while the task runs, it sees what the task wrote."""
    worker, (remote, _) = cluster.worker, cluster.remote_ids
    handle = worker.register(ec.RemoteCallable("buffer_tasks:orch_wait_and_fill"))
    worker.init()
    used = worker.remote_malloc(remote, 8)
    gate, got = Gate(tmp_path, "long"), bytearray(8)
    with beside(lambda: fill(worker, handle, gate, used, remote), gate):
        gate.wait()
        with beside(lambda: worker.remote_copy_from(used, got)):
            # Asked for after the copy or before it; either way it is answered now.
            worker.remote_free(worker.remote_malloc(remote, 8))
            gate.open(5)
    assert bytes(got) == bytes([5]) * 8


def test_long_tasks_spread_over_the_workers_r241(cluster: ec.LocalCluster, tmp_path: Path) -> None:
    """Two that are free to run anywhere run at one time on two workers, and neither waits behind the other."""
    worker = cluster.worker
    handle = worker.register(ec.RemoteCallable("buffer_tasks:orch_wait_alone"))
    worker.init()
    gates = [Gate(tmp_path, name) for name in ("one", "two")]

    def graph(orch: ec.Orchestrator, args: object, config: object) -> None:
        for gate in gates:
            orch.submit_next_level(handle, ec.TaskArgs(), gate.config)

    with beside(lambda: worker.run(graph), *gates):
        for gate in gates:
            gate.wait()
        for gate in gates:
            gate.open(1)


def test_a_lost_session_ends_everything_in_flight_once_r084(daemon: Daemon, tmp_path: Path) -> None:
    """A task and a copy behind it are in flight when the session is cut off: each ends, as lost, and nothing hangs."""
    with DaemonProxy(("127.0.0.1", daemon.port)) as proxy:
        worker = ec.Worker(level=4, num_sub_workers=0)
        spec = ec.RemoteWorkerSpec(endpoint=proxy.endpoint, platform="cpu")
        remote = worker.add_remote_worker(spec)
        handle = worker.register(ec.RemoteCallable("buffer_tasks:orch_wait_and_fill"))
        worker.init()
        try:
            used = worker.remote_malloc(remote, 8)
            gate, outcomes = Gate(tmp_path, "lost"), []

            def task() -> None:
                with pytest.raises(ec.RunError) as caught:
                    fill(worker, handle, gate, used, remote)
                outcomes.append(caught.value.failures)

            def copy() -> None:
                with pytest.raises(ec.EndpointLost):
                    worker.remote_copy_from(used, bytearray(8))
                outcomes.append("copy")

            with beside(task):
                gate.wait()
                with beside(copy):
                    worker.remote_free(worker.remote_malloc(remote, 8))
                    proxy.sessions[0].command.cut()
                gate.let_go()
            assert len(outcomes) == 2
        finally:
            worker.close()
