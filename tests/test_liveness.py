"""Who is alive: processes that are killed or stopped, and networks that drop every packet, in one direction or both."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import pytest
from testbed import procfs, residual
from testbed.daemon import Daemon
from testbed.local import path_bytes
from testbed.proxy import DaemonProxy, SessionProxy
from testbed.wait import eventually

INPUT = ec.TensorArgType.INPUT

TIMEOUT_S = 2.0
"""The session timeout of these tests, in seconds: nothing waits so long unless something is wrong."""

PATIENCE_S = 40.0
"""Bound of each wait, in seconds."""


class Site:
    """A daemon, and a worker with two sessions of it: `watched` through a proxy, `other` directly."""

    def __init__(self, daemon: Daemon, proxy: DaemonProxy, worker: ec.Worker) -> None:
        self.daemon, self.proxy, self.worker = daemon, proxy, worker
        self.watched, self.other = (
            worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=at, platform="cpu", num_sub_workers=1))
            for at in (proxy.endpoint, daemon.endpoint)
        )
        self.noop = worker.register(ec.RemoteCallable("py_tasks:orch_noop"))
        self.forever = worker.register(ec.RemoteCallable("py_tasks:orch_forever"))
        worker.register(ec.RemoteCallable("py_tasks:forever"), inner=True)
        worker.init()
        self.pids = {info["name"]: info["pid"] for info in worker.workers()}
        self.pid = self.pids[f"remote{self.watched}"]
        residual.note_descendants()

    @property
    def lanes(self) -> SessionProxy:
        return self.proxy.sessions[0]

    def tree(self) -> list[procfs.Process]:
        """The watched session and everything below it."""
        own = procfs.read_process(self.pid)
        assert own is not None
        return [own, *procfs.descendants(self.pid)]

    def run_noop(self, worker: int) -> dict[str, int]:
        return self.worker.run(
            lambda o, a, c: o.submit_next_level(self.noop, ec.TaskArgs(), worker=worker)
        ).counts


@pytest.fixture
def site(daemon: Daemon) -> Iterator[Site]:
    worker = ec.Worker(remote_session_timeout_s=TIMEOUT_S, close_timeout_s=10)
    with DaemonProxy((daemon.host, daemon.port)) as proxy, contextlib.closing(worker):
        yield Site(daemon, proxy, worker)


def ended(processes: list[procfs.Process]) -> None:
    """None of them runs any more; a zombie waits only for whoever adopted it."""

    def running() -> list[str]:
        now = [procfs.read_process(process.pid) for process in processes]
        old = {process.key for process in processes}
        return [str(process) for process in now if process and process.key in old and not process.is_zombie]

    eventually(lambda: not running(), PATIENCE_S, what="the end of the session's tree", explain=running)


class Running:
    """A run in a thread of its own: an endless task in the watched session, two behind it, and one in the other."""

    def __init__(self, site: Site, flag: Path) -> None:
        self.error: BaseException | None = None
        self._site, self._flag = site, flag
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        eventually(flag.exists, PATIENCE_S, what="the task's start")
        self.tree = site.tree()
        assert len(self.tree) > 1, "a sub worker should be there"

    def _run(self) -> None:
        def graph(orch, args, config):
            orch.submit_next_level(
                self._site.forever,
                ec.TaskArgs.of((path_bytes(self._flag), INPUT)),
                worker=self._site.watched,
            )
            for worker in (self._site.watched, self._site.watched, self._site.other):
                orch.submit_next_level(self._site.noop, ec.TaskArgs(), worker=worker)

        try:
            self._site.worker.run(graph)
        except BaseException as error:
            self.error = error

    def result(self) -> ec.EndpointLost:
        """The error of the run, in which each task of the watched session was lost once, and the other one's was not."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the run did not end"
        assert isinstance(self.error, ec.EndpointLost), self.error
        lost = [(failure.outcome, failure.sequence) for failure in self.error.failures]
        assert sorted(lost) == [("endpoint_lost", 1), ("endpoint_lost", 2), ("endpoint_lost", 3)]
        return self.error

    def check_the_rest(self) -> None:
        """The verdict stands, and the other session goes on."""
        site = self._site
        with pytest.raises((ec.EndpointLost, ec.NotEligibleError)):
            site.run_noop(site.watched)
        assert site.run_noop(site.other)["completed"] == 1


def test_a_killed_runner_loses_all_its_tasks_once_r054(site, tmp_path):
    running = Running(site, tmp_path / "begun")
    os.kill(site.pid, signal.SIGKILL)
    running.result()
    running.check_the_rest()
    ended(running.tree)


WAYS = {
    "everything": [
        ("command", "to_upstream"),
        ("command", "to_client"),
        ("health", "to_upstream"),
        ("health", "to_client"),
    ],
    "to the session": [("command", "to_upstream"), ("health", "to_upstream")],
    "to the parent": [("command", "to_client"), ("health", "to_client")],
    "health lane": [("health", "to_upstream"), ("health", "to_client")],
    "health lane to the session": [("health", "to_upstream")],
    "health lane to the parent": [("health", "to_client")],
}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_a_network_that_drops_everything_is_noticed_by_both_sides_r056_r057(ways, site, tmp_path):
    """During a task, without FIN or RST. One verdict on each side: the run fails once, the session's tree is gone."""
    running = Running(site, tmp_path / "begun")
    for lane, way in ways:
        getattr(getattr(site.lanes, lane), way).drop()
    running.result()
    ended(running.tree)
    running.check_the_rest()
    if ("health", "to_client") not in ways or ("command", "to_upstream") in ways:
        # The parent saw nothing of it, or could tell the session nothing.
        assert "the parent answered no HEALTH frame for 2s" in site.daemon.stderr


SWALLOWED_S = 20.0
"""Ten session timeouts, and less than the 30 s that sent bytes may stay unacknowledged at most."""


@pytest.mark.parametrize(
    "ways",
    [["to_upstream", "to_client"], ["to_upstream"], ["to_client"]],
    ids=["command lane", "command lane to the session", "command lane to the parent"],
)
def test_a_network_that_swallows_the_command_lane_alone_is_noticed_r057(ways, site):
    """HEALTH and its answers go on, so only the bytes that nobody acknowledges tell: the task's, or its completion's."""
    assert site.run_noop(site.watched)["completed"] == 1
    tree = site.tree()
    for way in ways:
        getattr(site.lanes.command, way).drop()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            site.run_noop(site.watched)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SWALLOWED_S)
    noticed = not thread.is_alive()
    if not noticed:
        site.worker.close()
    thread.join(PATIENCE_S)
    assert noticed, "nobody noticed"
    assert [type(error) for error in raised] == [ec.EndpointLost], raised
    ended(tree)
    with pytest.raises((ec.EndpointLost, ec.NotEligibleError)):
        site.run_noop(site.watched)
    assert site.run_noop(site.other)["completed"] == 1


def test_two_stopped_runners_cost_a_close_no_more_than_one_r128(daemon, callables_path):
    """Nothing here can end them: each is given up at the end of `close_timeout_s`, all at the same end."""
    limit_s = 5.0
    worker = ec.Worker(remote_session_timeout_s=3600, close_timeout_s=limit_s)
    for _ in range(2):
        worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint, platform="cpu"))
    worker.init()
    pids = [info["pid"] for info in worker.workers()]
    trees = [process for process in map(procfs.read_process, pids) if process is not None]
    assert len(trees) == 2
    residual.note_descendants()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        worker.close()
        # Two limits would be 10 s.
        assert time.monotonic() - begun < 1.8 * limit_s
        assert worker.state == "closed"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    ended(trees)


PARENT = """
import sys
import echelon as ec
worker = ec.Worker(remote_session_timeout_s=2.0)
worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=sys.argv[1], platform="cpu", num_sub_workers=1))
noop = worker.register(ec.RemoteCallable("py_tasks:orch_noop"))
def once():
    return worker.run(lambda o, a, c: o.submit_next_level(noop, ec.TaskArgs())).counts["completed"]
print(once(), worker.workers()[0]["pid"], flush=True)
sys.stdin.readline()
try:
    once()
except ec.EchelonError as error:
    print(type(error).__name__, str(error).replace("\\n", " "), flush=True)
worker.close()
"""


def test_a_parent_that_stands_still_loses_its_session_and_is_told_why(daemon, callables_path):
    """`health_echo`: the tree of the session goes, and after SIGCONT the parent knows the reason."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, daemon.endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(callables_path)},
    )
    with parent:
        completed, pid = parent.stdout.readline().split()
        assert completed == "1"
        own = procfs.read_process(int(pid))
        assert own is not None
        tree = [own, *procfs.descendants(own.pid)]
        assert len(tree) > 1
        residual.note_descendants()
        parent.send_signal(signal.SIGSTOP)
        try:
            ended(tree)
        finally:
            parent.send_signal(signal.SIGCONT)
        parent.stdin.write("go on\n")
        parent.stdin.flush()
        said = parent.stdout.readline()
        assert said.startswith(("EndpointLost", "NotEligibleError")), said
        assert "this process did not run for" in said and "remote_session_timeout_s" in said
    assert parent.returncode == 0
    assert "the parent answered no HEALTH frame for 2s" in daemon.stderr


def test_a_stopped_runner_is_lost_and_ends_when_it_wakes_r046(site, tmp_path):
    """Late frames count for nothing: what it had computed was lost, and stays so."""
    running = Running(site, tmp_path / "begun")
    os.kill(site.pid, signal.SIGSTOP)
    try:
        running.result()
        running.check_the_rest()
    finally:
        os.kill(site.pid, signal.SIGCONT)
    ended(running.tree)
    running.check_the_rest()


def test_close_returns_when_nothing_is_left_below_the_session_r240(daemon):
    """A sub worker that is stopped keeps its session busy ending it; the parent waits for that."""
    with contextlib.closing(ec.Worker(close_timeout_s=60)) as worker:
        spec = ec.RemoteWorkerSpec(endpoint=daemon.endpoint, platform="cpu", num_sub_workers=1)
        worker.add_remote_worker(spec)
        worker.init()
        session = worker.workers()[0]["pid"]
        (sub,) = procfs.workers_below(session)
        os.kill(sub.pid, signal.SIGSTOP)
        worker.close()
        left = [process for process in procfs.all_processes() if process.key == sub.key]
    assert left == []


def test_an_idle_session_is_a_healthy_one_r010(site):
    """Three session timeouts without a command, counted in HEALTH frames that both sides exchanged."""
    assert site.run_noop(site.watched)["completed"] == 1
    answered = len(site.lanes.health.to_upstream.recorded)
    frames = round(3 * TIMEOUT_S / 0.2)
    site.lanes.health.to_upstream.wait_for_bytes(answered + frames * 40, PATIENCE_S)
    assert site.run_noop(site.watched)["completed"] == 1
