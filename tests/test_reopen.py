"""`worker.reopen(worker_id)`: a fresh session in the place of a lost one (design §6)."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs, residual
from testbed.daemon import Daemon
from testbed.proxy import DaemonProxy
from testbed.wait import eventually

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT
F64 = ec.DataType.FLOAT64
PATIENCE_S = 40.0


class Site:
    """A worker with two sessions; a proxy before the daemon of the first decides what a fresh session of it is to meet."""

    def __init__(self, daemon: Daemon, proxy: DaemonProxy, worker: ec.Worker) -> None:
        self.daemon, self.proxy, self.worker = daemon, proxy, worker
        self.lost, self.other = (
            worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=at, platform="cpu", num_sub_workers=1))
            for at in (proxy.endpoint, daemon.endpoint)
        )
        self.forward = worker.register(ec.RemoteCallable("py_tasks:orch_forward"))
        worker.register(ec.RemoteCallable("py_tasks:double"), inner=True)
        worker.init()

    def info(self, id_: int) -> dict[str, object]:
        return next(info for info in self.worker.workers() if info["name"] == f"remote{id_}")

    def kill(self) -> None:
        """The session dies, and that is known here."""
        pid = int(str(self.info(self.lost)["pid"]))
        below = procfs.descendants(pid)
        residual.note_descendants()
        os.kill(pid, signal.SIGKILL)

        def told() -> bool:
            try:
                self.worker.remote_malloc(self.lost, 8)
            except ec.EndpointLost:
                return True
            return False

        eventually(told, PATIENCE_S, what="the loss")
        alive = {process.key for process in below}
        eventually(
            lambda: not any(p.key in alive and not p.is_zombie for p in procfs.all_processes()),
            PATIENCE_S,
            what="the end of the old tree",
        )

    def buffer(self, id_: int, value: float) -> ec.RemoteBufferHandle:
        buffer = self.worker.remote_malloc(id_, 32)
        self.worker.remote_copy_to(buffer, np.full(4, value))
        return buffer

    def value(self, buffer: ec.RemoteBufferHandle) -> float:
        got = np.zeros(4)
        self.worker.remote_copy_from(buffer, got)
        return float(got[0])

    def double(self, buffer: ec.RemoteBufferHandle, worker: int = -1) -> ec.RunReport:
        """By the session's sub worker: dispatcher and inner callable are both needed."""
        args = ec.TaskArgs.of((vector(buffer), INOUT))
        return self.worker.run(lambda o, a, c: o.submit_next_level(self.forward, args, worker=worker))


def vector(buffer: ec.RemoteBufferHandle) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, shape=(4,), dtype=F64)


@pytest.fixture
def site(daemon: Daemon) -> Iterator[Site]:
    worker = ec.Worker(close_timeout_s=10, startup_timeout_s=60)
    with DaemonProxy((daemon.host, daemon.port)) as proxy, contextlib.closing(worker):
        yield Site(daemon, proxy, worker)


def test_a_lost_session_is_followed_by_a_fresh_one_with_its_callables(site):
    before = site.info(site.lost)
    for round_ in range(2):
        site.kill()
        site.worker.reopen(site.lost)
        after = site.info(site.lost)
        assert after["name"] == before["name"] and after["pid"] != before["pid"]
        buffer = site.buffer(site.lost, 3.0)
        report = site.double(buffer)
        assert site.value(buffer) == 6.0, round_
        assert report.tasks_per_worker == {"remote0": 1, "remote0/sub0": 1}
        site.worker.remote_free(buffer)


def test_handles_of_the_lost_session_are_refused_and_can_be_freed(site):
    """The fresh session counts its buffers from 1 again: an old handle must not reach a new buffer."""
    worker = site.worker
    old, elsewhere = site.buffer(site.lost, 1.0), site.buffer(site.other, 1.0)
    old_export = worker.remote_export(old, access="readwrite")
    seen_there = worker.remote_import(old_export, worker=site.other)
    seen_here = worker.remote_import(worker.remote_export(elsewhere, access="readwrite"), worker=site.lost)
    site.kill()
    with pytest.raises(ec.EndpointLost):
        worker.remote_copy_to(old, bytes(8))
    worker.reopen(site.lost)
    fresh = [site.buffer(site.lost, 5.0) for _ in range(2)]
    ended = rf"ended session of worker {site.lost}; allocate again"
    for attempt in (
        lambda: worker.remote_copy_to(old, bytes(8)),
        lambda: worker.remote_copy_from(old, bytearray(8)),
        lambda: worker.remote_export(old),
        lambda: worker.remote_import(old_export, worker=site.other),
        lambda: site.double(old, site.lost),
        lambda: site.double(seen_here, site.lost),
        lambda: site.double(seen_there, site.other),
        lambda: worker.run(lambda o, a, c: o.copy(vector(old), np.zeros(4))),
        lambda: worker.run(lambda o, a, c: o.copy(np.zeros(4), vector(seen_there))),
    ):
        with pytest.raises(ec.HandleError, match=ended):
            attempt()
    for import_ in (seen_here, seen_there):
        worker.remote_release_import(import_)
    worker.remote_free(old)
    assert [site.value(buffer) for buffer in fresh] == [5.0, 5.0], "freed by an old handle"
    assert old.released and seen_here.released
    for buffer in (*fresh, elsewhere):
        worker.remote_free(buffer)


def test_what_is_not_lost_is_not_reopened(site):
    with pytest.raises(ec.LifecycleError, match=r"reopen .* up: worker 0"):
        site.worker.reopen(site.lost)
    for unknown in (2, -1, 77):
        with pytest.raises(ValueError, match="known ids"):
            site.worker.reopen(unknown)
    site.kill()
    site.worker.reopen(site.lost)
    with pytest.raises(ec.LifecycleError, match="up"):
        site.worker.reopen(site.lost)


def test_a_reopening_that_fails_may_be_tried_again(site):
    """Each way in which a fresh session does not come up; what is left is a lost worker, and no process."""
    site.kill()
    # A number would do as long as nothing of the killed session was still to be reaped.
    before = {process.key for process in site.daemon.children()}

    def garble(session, number):
        session.command.to_client.cut_after = 11

    site.proxy._prepare = garble
    for _ in range(2):
        with pytest.raises(ec.StartupError, match=r"HELLO|command lane"):
            site.worker.reopen(site.lost)
        with pytest.raises(ec.EndpointLost):
            site.worker.remote_malloc(site.lost, 8)
    eventually(
        lambda: {process.key for process in site.daemon.children()} <= before,
        PATIENCE_S,
        what="the end of what failed",
    )
    site.proxy._prepare = None
    site.worker.reopen(site.lost)
    buffer = site.buffer(site.lost, 2.0)
    site.double(buffer)
    assert site.value(buffer) == 4.0


def test_registrations_of_the_meantime_hold_in_the_fresh_session(site):
    worker = site.worker
    gone = worker.register(ec.RemoteCallable("py_tasks:orch_sum"))
    site.kill()
    worker.unregister(gone)
    noop = worker.register(ec.RemoteCallable("py_tasks:orch_noop"))
    worker.reopen(site.lost)
    report = worker.run(lambda o, a, c: o.submit_next_level(noop, ec.TaskArgs(), worker=site.lost))
    assert report.counts["completed"] == 1
    with pytest.raises(ec.HandleError, match="unregistered"):
        worker.run(lambda o, a, c: o.submit_next_level(gone, ec.TaskArgs(), worker=site.lost))


class Held:
    """A reopening that stands still, with the fresh session's HELLO held back by the proxy."""

    def __init__(self, site: Site) -> None:
        self.error: BaseException | None = None
        self.session = None
        self._site, self._at_hello = site, threading.Event()
        site.proxy._prepare = self._prepare
        self._thread = threading.Thread(target=self._reopen)
        self._thread.start()
        assert self._at_hello.wait(PATIENCE_S)
        self.session.command.to_client.wait_for_bytes(1, PATIENCE_S)

    def _prepare(self, session, number):
        session.command.to_client.hold()
        self.session = session
        self._at_hello.set()

    def _reopen(self) -> None:
        try:
            self._site.worker.reopen(self._site.lost)
        except BaseException as error:
            self.error = error

    def join(self) -> BaseException | None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.error


def test_one_thread_reopens_and_the_other_worker_goes_on(site):
    site.kill()
    held = Held(site)
    with pytest.raises(ec.LifecycleError, match="being reopened"):
        site.worker.reopen(site.lost)
    # Runs and registrations go on elsewhere; the lost worker takes nothing yet.
    buffer = site.buffer(site.other, 4.0)
    site.double(buffer, site.other)
    assert site.value(buffer) == 8.0
    noop = site.worker.register(ec.RemoteCallable("py_tasks:orch_noop"))
    with pytest.raises((ec.EndpointLost, ec.NotEligibleError)):
        site.worker.run(lambda o, a, c: o.submit_next_level(noop, ec.TaskArgs(), worker=site.lost))
    held.session.command.to_client.release()
    assert held.join() is None
    report = site.worker.run(lambda o, a, c: o.submit_next_level(noop, ec.TaskArgs(), worker=site.lost))
    assert report.counts["completed"] == 1


def test_reopening_within_a_run_in_which_others_work(site, tmp_path: Path):
    """While a task runs on the other worker; what is submitted later in the same run goes to the fresh session."""
    site.kill()
    forever = site.worker.register(ec.RemoteCallable("py_tasks:orch_wait_for_file"))
    flag = tmp_path / "go"
    name = np.frombuffer(str(flag).encode(), np.uint8)

    def graph(orch, args, config):
        orch.submit_next_level(forever, ec.TaskArgs.of((name, INPUT)), worker=site.other)
        site.worker.reopen(site.lost)
        buffer = site.buffer(site.lost, 1.0)
        orch.submit_next_level(site.forward, ec.TaskArgs.of((vector(buffer), INOUT)), worker=site.lost)
        flag.touch()
        return buffer

    report = site.worker.run(graph)
    assert report.counts["completed"] == 2


def test_close_calls_a_reopening_off(site):
    site.kill()
    held = Held(site)
    site.worker.close()
    assert isinstance(held.join(), ec.LifecycleError), held.error
    with pytest.raises(ec.LifecycleError):
        site.worker.reopen(site.lost)
    eventually(
        lambda: not site.daemon.children(),
        PATIENCE_S,
        what="the end of the sessions",
        explain=lambda: (site.daemon.stderr, site.daemon.children()),
    )
