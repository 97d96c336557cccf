"""The zygote (decision 0023): what it forks is what would have been executed, and nobody needs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs
from testbed.daemon import Daemon
from testbed.failpoints import Failpoints
from testbed.startup import needs_failpoints, points_fixture  # noqa: F401
from testbed.wait import eventually

INPUT = ec.TensorArgType.INPUT
OUTPUT = ec.TensorArgType.OUTPUT
LIMIT_S = 60.0

sys.path.insert(0, str(Path(__file__).parent / "callables"))
try:
    import zygote_facts
finally:
    del sys.path[0]

pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture(params=["forked", "executed"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "executed":
        monkeypatch.setenv("ECHELON_ZYGOTE", "0")
    return str(request.param)


@pytest.fixture
def worker() -> Iterator[ec.Worker]:
    with ec.Worker(num_sub_workers=1, startup_timeout_s=LIMIT_S) as running:
        yield running


def zygotes() -> list[procfs.Process]:
    return procfs.zygotes_below(os.getpid())


def run(worker: ec.Worker, handle: ec.CallableHandle, *arguments: tuple[object, ec.TensorArgType]) -> None:
    def main(orch: ec.Orchestrator, args: object, config: object) -> None:
        packed = ec.TaskArgs()
        for tensor, tag in arguments:
            packed.add_tensor(tensor, tag)
        orch.submit_sub(handle, packed)

    worker.run(main)


def name_of(path: Path) -> np.ndarray:
    return np.frombuffer(os.fsencode(path).ljust(512, b"\0"), dtype=np.uint8)


def sub_pid(worker: ec.Worker) -> int:
    return int(worker.workers()[0]["pid"])


def replace_sub(worker: ec.Worker) -> int:
    """Kills the sub worker and waits for the one in its place; returns its process id."""
    before = sub_pid(worker)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: sub_pid(worker) != before, LIMIT_S, what="a fresh sub worker")
    works(worker)
    return sub_pid(worker)


def works(worker: ec.Worker) -> None:
    run(worker, worker.register(zygote_facts.noop))


# --- what is forked ---------------------------------------------------------------------------------------


def test_children_are_forked_and_are_ours_and_end_with_the_worker() -> None:
    with ec.Worker(num_sub_workers=3, startup_timeout_s=LIMIT_S) as worker:
        (zygote,) = zygotes()
        assert procfs.threads(zygote.pid).keys() == {zygote.pid}
        subs = [p for p in procfs.descendants(os.getpid()) if p.pid != zygote.pid]
        assert {p.pid for p in subs} >= {info["pid"] for info in worker.workers()}
        # Ours, and not the zygote's: we reap them, and they do not end with it.
        assert all(p.ppid == os.getpid() and p.pgid == p.pid for p in subs if p.name != "echelon-zygote")
    assert not zygotes()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHELON_ZYGOTE", "0")
    with ec.Worker(num_sub_workers=1, startup_timeout_s=LIMIT_S) as worker:
        works(worker)
        assert not zygotes()


def _comparable(path: Path, *not_said: str) -> dict[str, object]:
    seen: dict[str, object] = json.loads(path.read_text())
    for name in ("parent", *not_said):
        seen.pop(name)
    environment = seen["environment"]
    assert isinstance(environment, dict)
    for name in ("PYTEST_CURRENT_TEST", "ECHELON_ZYGOTE"):
        environment.pop(name, None)
    return seen


def test_a_forked_child_is_what_an_executed_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity, signals, descriptors, limits, paths, streams, modules: all that it could be told by."""
    seen = {}
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for mode in ("1", "0"):
        monkeypatch.setenv("ECHELON_ZYGOTE", mode)
        out = tmp_path / f"facts{mode}"
        with ec.Worker(num_sub_workers=1, startup_timeout_s=LIMIT_S) as worker:
            run(worker, worker.register(zygote_facts.write), (name_of(out), INPUT))
            assert bool(zygotes()) == (mode == "1")
        assert json.loads(out.read_text())["parent"] == os.getpid()
        seen[mode] = _comparable(out)
    assert seen["1"] == seen["0"]
    assert seen["1"]["death_signal"] == signal.SIGKILL


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_level_below_and_its_sub_worker_are_what_they_would_be(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callables_path: Path
) -> None:
    """The zygote of a session or of a local child is forked off it before it has threads."""
    seen: dict[str, list[dict[str, object]]] = {}
    for mode in ("1", "0"):
        monkeypatch.setenv("ECHELON_ZYGOTE", mode)
        out = tmp_path / f"facts{mode}"
        options = {"remote": 1} if where == "remote" else {"remote": 0}
        cluster = ec.LocalCluster(
            sub_workers=1, startup_timeout_s=LIMIT_S, pythonpath=str(callables_path), **options
        )
        with cluster:
            worker = cluster.worker
            if where == "local":
                worker.add_worker(ec.Worker(level=3, num_sub_workers=1))
            target = ec.RemoteCallable("zygote_facts:orch_write")
            handle = worker.register(target if where == "remote" else zygote_facts.orch_write, workers=[0])
            inner = ec.RemoteCallable("zygote_facts:write") if where == "remote" else zygote_facts.write
            worker.register(inner, inner=True, workers=[0])

            def main(orch: ec.Orchestrator, args: object, config: object, handle=handle, out=out) -> None:  # type: ignore[no-untyped-def]
                packed = ec.TaskArgs()
                packed.add_tensor(name_of(out), INPUT)
                orch.submit_next_level(handle, packed, worker=0)

            worker.run(main)
            found = procfs.zygotes_below(os.getpid())
            # This process's, that of the level below, and the daemon's.
            assert len(found) == (0 if mode == "0" else 3 if where == "remote" else 2), found
        # The level below holds a socket and a process more. What `ps` shows of its sub worker is its own program's name.
        seen[mode] = [_comparable(out, "descriptors"), _comparable(Path(f"{out}.sub"), "command")]
    assert seen["1"] == seen["0"]


def test_every_child_has_random_numbers_of_its_own() -> None:
    seen = set()
    with ec.Worker(num_sub_workers=1, startup_timeout_s=LIMIT_S) as worker:
        handle = worker.register(zygote_facts.seed)
        for _ in range(3):
            out = np.zeros(1, dtype=np.uint64)
            run(worker, handle, (out, OUTPUT))
            seen.add(int(out[0]))
            replace_sub(worker)
    assert len(seen) == 3


# --- what changes after its start ---------------------------------------------------------------------------


def test_a_replaced_child_gets_what_holds_now(
    worker: ec.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Working directory and environment, as an executed child would; and the next one is forked again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECHELON_TEST_LATER", "yes")
    handle = worker.register(zygote_facts.write)
    for turn in range(2):
        replace_sub(worker)
        out = tmp_path / f"facts{turn}"
        run(worker, handle, (name_of(out), INPUT))
        seen = json.loads(out.read_text())
        assert seen["cwd"] == str(tmp_path)
        assert seen["environment"]["ECHELON_TEST_LATER"] == "yes"


def test_a_zygote_with_threads_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-014: what starts threads when an interpreter starts makes forking unsafe, so children are executed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ec.Worker(num_sub_workers=2, startup_timeout_s=LIMIT_S) as worker:
        works(worker)
        assert not zygotes()


# --- a zygote that fails ------------------------------------------------------------------------------------


def test_a_killed_zygote_is_missed_by_nobody(worker: ec.Worker) -> None:
    """Its children go on; the next start is by exec or by a fresh zygote, whichever comes first."""
    for _ in range(3):
        before = sub_pid(worker)
        for zygote in zygotes():
            os.kill(zygote.pid, signal.SIGKILL)
        eventually(lambda: not zygotes(), LIMIT_S, what="the end of the zygote")
        works(worker)
        assert sub_pid(worker) == before
        replace_sub(worker)
    assert not [p for p in procfs.descendants(os.getpid()) if p.is_zombie]


def test_a_stopped_zygote_is_given_up_after_its_bound(worker: ec.Worker) -> None:
    (zygote,) = zygotes()
    os.kill(zygote.pid, signal.SIGSTOP)
    replace_sub(worker)
    assert zygote.pid not in [p.pid for p in zygotes()]


def test_close_ends_a_stopped_zygote() -> None:
    with ec.Worker(num_sub_workers=1, startup_timeout_s=LIMIT_S):
        (zygote,) = zygotes()
        os.kill(zygote.pid, signal.SIGSTOP)
    assert not zygotes()


@needs_failpoints
@pytest.mark.parametrize(
    ("point", "action"),
    [
        *[("zygote.serve", action) for action in ("fail", "exit", "crash", "hang")],
        *[("zygote.fork", action) for action in ("fail", "exit", "crash", "hang")],
        *[("zygote.forked", action) for action in ("exit", "crash", "hang")],
        *[("zygote.child", action) for action in ("fail", "exit", "crash", "hang")],
    ],
)
def test_a_start_does_not_need_the_zygote(point: str, action: str, points: Failpoints) -> None:
    """It fails before it is up, before, while and after it forks, and in the child: every start comes to its end."""
    with points.armed(point, action), ec.Worker(num_sub_workers=2, startup_timeout_s=LIMIT_S) as worker:
        works(worker)
        assert point in points.hits
        assert len({info["pid"] for info in worker.workers()}) == 2
        points.disarm()
        # What is known of a process is its own: nothing strange was taken over, nothing is left of what failed.
        subs = {info["pid"] for info in worker.workers()}
        left = [p for p in procfs.workers_below(os.getpid()) if p.pid not in subs]
        assert not left


def test_a_zygote_refuses_garbage_and_ends_with_its_owner() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "echelon._child", "--zygote", str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as zygote, ours:
            theirs.close()
            ours.settimeout(LIMIT_S)
            assert ours.recv(100) == f"zygote ready {ec.__version__}".encode()
            for garbage in (b"\0", b"\xff" * 60, os.urandom(1000), b"x" * 100_000):
                ours.send(garbage)
                pid, error = np.frombuffer(ours.recv(100), dtype="<i4")
                assert pid == 0 and error != 0
            # More descriptors than it was told of are closed.
            before = len(procfs.descriptors(zygote.pid))
            socket.send_fds(ours, [b"\1"], [0, 1, 2])
            ours.recv(100)
            assert len(procfs.descriptors(zygote.pid)) == before
            ours.close()
            assert zygote.wait(LIMIT_S) == 0


def test_a_zygote_that_answers_garbage_is_given_up(worker: ec.Worker) -> None:
    """Whatever it says: no process that is not a fresh child of ours is taken for one."""
    for answer in (b"garbage", np.array([os.getpid(), 0], dtype="<i4").tobytes(), b"\0" * 8):
        for _ in range(10):
            if zygotes():
                break
            replace_sub(worker)  # the first one after a loss may be executed
        zygote = zygotes()[0]
        _speak_as(zygote, answer)
        replace_sub(worker)
        assert zygote.pid not in [p.pid for p in zygotes()]


def _speak_as(zygote: procfs.Process, message: bytes) -> None:
    """Sends something to the zygote's owner over the zygote's own socket."""
    with procfs.socket_of(zygote.pid) as spoken:
        spoken.send(message)


# --- the daemon's -------------------------------------------------------------------------------------------


def test_a_daemon_forks_its_sessions_and_survives_its_zygote(daemon: Daemon) -> None:
    def start() -> int:
        worker = ec.Worker(startup_timeout_s=LIMIT_S)
        worker.add_remote_worker(
            ec.RemoteWorkerSpec(endpoint=daemon.endpoint, platform="cpu", num_sub_workers=1)
        )
        with worker:
            return len([p for p in procfs.zygotes_below(daemon.pid) if p.ppid == daemon.pid])

    assert start() == 1
    for signal_number in (signal.SIGKILL, signal.SIGSTOP):
        for zygote in procfs.zygotes_below(daemon.pid):
            os.kill(zygote.pid, signal_number)
        start()
        start()
        eventually(lambda: not daemon.children(), LIMIT_S, what="the end of the sessions")


@pytest.mark.parametrize("how", ["--no-zygote", "ECHELON_ZYGOTE"])
def test_a_daemon_without_a_zygote(how: str, tmp_path: Path, callables_path: Path) -> None:
    arguments = ["--host", "127.0.0.1", "--port", "0", "--insecure-loopback"]
    env = {}
    if how == "--no-zygote":
        arguments.append(how)
    else:
        env[how] = "0"
    with Daemon(tmp_path, pythonpath=[callables_path], arguments=arguments, env=env) as daemon:
        worker = ec.Worker(startup_timeout_s=LIMIT_S)
        worker.add_remote_worker(
            ec.RemoteWorkerSpec(endpoint=daemon.endpoint, platform="cpu", num_sub_workers=1)
        )
        with worker:
            assert not procfs.zygotes_below(daemon.pid)
            assert len(daemon.children()) == 2
