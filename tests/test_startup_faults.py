"""Starts that go wrong in their own ways: children that die or hang, deadlines, signals, calls from other threads."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing

import echelon as ec
import pytest
from testbed import procfs, residual
from testbed.daemon import Daemon
from testbed.failpoints import Failpoints
from testbed.startup import (
    ROOT,
    add_remote,
    failed_init,
    needs_failpoints,
    next_start_works,
    points_fixture,  # noqa: F401
    served_fixture,  # noqa: F401
)
from testbed.wait import eventually

pytestmark = needs_failpoints

SLOW_S = 4.0
"""A whole start that somebody hangs in, in seconds; an ordinary one takes a tenth of it."""


def sub_worker(worker: ec.Worker, daemon: Daemon) -> None:
    """Nothing more: the worker has a sub worker already."""


def local_child(worker: ec.Worker, daemon: Daemon) -> None:
    worker.add_worker(ec.Worker(level=3))


def session(worker: ec.Worker, daemon: Daemon) -> None:
    add_remote(worker, daemon)


@pytest.mark.parametrize("action", ["fail", "exit", "crash", "hang"])
@pytest.mark.parametrize(
    ("kind", "point"),
    [(sub_worker, "child.attach"), (local_child, "child.inner"), (session, "session.prepare")],
    ids=["sub-worker", "local-child", "session"],
)
@pytest.mark.parametrize("mode", ["forked", "executed"])
def test_a_child_that_fails_before_ready_is_the_cause_r018(
    kind: Callable[[ec.Worker, Daemon], None],
    point: str,
    action: str,
    mode: str,
    points: Failpoints,
    served: Daemon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode == "executed":
        if kind is session:
            pytest.skip("the daemon of this file has a zygote; test_zygote has one without")
        monkeypatch.setenv("ECHELON_ZYGOTE", "0")
    timeout = SLOW_S if action == "hang" else 60.0
    worker = ec.Worker(num_sub_workers=1, startup_timeout_s=timeout, close_timeout_s=20)
    kind(worker, served)
    with points.armed(point, action):
        text = failed_init(worker)
        assert point in points.hits, text
        # Whoever hangs was ended; it did not go on because it was let go.
        eventually(lambda: not served.children(), 30, what="the end of the session")
    cause = {
        "fail": "status 1|failpoint",
        "exit": "status 7",
        "crash": "signal 11|SIGSEGV",
        "hang": "startup_timeout_s|ready",
    }
    assert re.search(cause[action], text), text
    next_start_works(served)


def test_a_start_that_is_late_at_the_very_last_step_is_not_published_r006(
    points: Failpoints,
    served: Daemon,
) -> None:
    worker = ec.Worker(num_sub_workers=1, startup_timeout_s=SLOW_S, close_timeout_s=20)
    add_remote(worker, served)
    raised: list[BaseException] = []

    def start() -> None:
        try:
            worker.init()
        except BaseException as error:
            raised.append(error)

    # Of this worker alone: were the session's own one, of level 3, meant too, the start would be late before its last step.
    with points.armed("init.commit.4", "hang"):
        thread = threading.Thread(target=start)
        thread.start()
        points.wait_hit()
        # Everything is up; the thread that was to say READY does not run until the deadline has passed.
        assert worker.state == "starting"
        threading.Event().wait(SLOW_S)
    thread.join(60)
    assert [type(error) for error in raised] == [ec.StartupError]
    assert re.search(r"startup_timeout_s of \S+ has passed", str(raised[0])), raised
    assert worker.state == "failed"
    worker.close()
    next_start_works(served)


def test_many_sessions_that_hang_end_with_the_one_budget_r001_r002_r005(
    points: Failpoints,
    served: Daemon,
) -> None:
    """Their liveness bound is an hour: were it used for the start, or given anew to a hop, this would not end."""
    worker = ec.Worker(startup_timeout_s=SLOW_S, remote_session_timeout_s=3600)
    for _ in range(3):
        add_remote(worker, served)
    with points.armed("session.resolve", "hang"):
        text = failed_init(worker)
        assert points.hits.count("session.resolve") == 3, "they were not started side by side"
        eventually(lambda: not served.children(), 30, what="the end of the runners")
    assert "startup_timeout_s" in text
    next_start_works(served)


@pytest.mark.parametrize("point", ["remote.command.2", "remote.hello.2", "remote.watch.2"])
def test_the_second_remote_fails_and_takes_all_along_r016(
    point: str,
    points: Failpoints,
    served: Daemon,
) -> None:
    worker = ec.Worker(num_sub_workers=1, startup_timeout_s=60, close_timeout_s=20)
    worker.add_worker(ec.Worker(level=3, num_sub_workers=1))
    for _ in range(2):
        add_remote(worker, served)
    with points.armed(point):
        text = failed_init(worker)
    assert "worker 2 " in text and served.endpoint in text, text
    next_start_works(served)


def test_close_in_another_thread_calls_a_start_off_r020_r021(
    points: Failpoints,
    served: Daemon,
) -> None:
    worker = ec.Worker(num_sub_workers=1, startup_timeout_s=3600, close_timeout_s=30)
    add_remote(worker, served)
    raised: list[BaseException] = []

    def start() -> None:
        try:
            worker.init()
        except ec.EchelonError as error:
            raised.append(error)

    with points.armed("session.prepare", "hang"):
        thread = threading.Thread(target=start)
        thread.start()
        points.wait_hit()
        for call in (worker.init, lambda: worker.run(print), lambda: worker.remote_malloc(0, 1)):
            with pytest.raises(ec.LifecycleError, match="starting"):
                call()
        with pytest.raises(ec.LifecycleError, match="before init"):
            add_remote(worker, served)
        with pytest.raises(ec.LifecycleError):
            worker.register(ec.RemoteCallable("py_tasks:orch_sum"))
        worker.close()
        assert worker.state == "closed"
        thread.join(30)
    assert len(raised) == 1 and "close() was called" in str(raised[0])
    next_start_works(served)


class _Stop(BaseException):
    """What the signal handler raises, as KeyboardInterrupt would be."""


@pytest.mark.hard_timeout(400)
def test_a_signal_at_any_moment_of_a_start_rolls_back_r022(
    served: Daemon,
) -> None:
    """A hundred starts, a signal at a random moment of each. The fixture and the daemon would show what is left."""
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    during = 0

    def stop(number: int, frame: object) -> None:
        raise _Stop

    # As long as a start takes on this machine, so that most signals come during one.
    unhurried = ec.Worker(num_sub_workers=1, startup_timeout_s=60, close_timeout_s=20)
    add_remote(unhurried, served)
    begun = time.monotonic()
    with unhurried:
        takes = time.monotonic() - begun
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(100):
            worker = ec.Worker(num_sub_workers=1, startup_timeout_s=60, close_timeout_s=20)
            add_remote(worker, served)
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, max(0.002, takes)))
                    worker.init()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except _Stop:
                during += worker.state == "failed"
            finally:
                worker.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert during > 10, f"only {during} signals came during a start (seed {seed})"
    next_start_works(served)


def test_ids_never_shift_r026(served: Daemon) -> None:
    worker = ec.Worker(startup_timeout_s=60)
    with closing(worker):
        ids = [add_remote(worker, served), worker.add_worker(ec.Worker(level=3)), add_remote(worker, served)]
        with pytest.raises(ValueError):
            worker.add_worker(ec.Worker(level=4))
        ids.append(worker.add_worker(ec.Worker(level=3)))
        assert ids == [0, 1, 2, 3]
        worker.init()
        names = [info["name"] for info in worker.workers()]
        assert names == ["remote0", "local/worker1", "remote2", "local/worker3"]


def test_children_start_while_threads_are_busy_r014_r027() -> None:
    """Eight threads that allocate, open files and take locks; two hundred children are started, none hangs."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            with open("/proc/self/stat") as file:
                file.read().split()
            re.compile(f"a{random.random()}")

    threads = [threading.Thread(target=busy) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with ec.Worker(num_sub_workers=10, startup_timeout_s=100, close_timeout_s=30) as worker:
                assert len({info["pid"] for info in worker.workers()}) == 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_only_a_process_with_one_thread_forks_without_exec_r014_r027() -> None:
    """Two places start processes: one by fork and exec, and that of the zygote, which looks for threads before it forks."""
    rust = {
        path.name: path.read_text()
        for folder in ("runtime", "session", "python")
        for path in (ROOT / folder / "src").rglob("*.rs")
    }
    fork = re.compile(r"\b(libc|nix::unistd|unistd)::v?fork\(|\bSYS_clone3?\b")
    forks = [name for name, text in rust.items() if fork.search(text)]
    starts = [name for name, text in rust.items() if "pre_exec(" in text]
    assert (forks, starts) == (["server.rs"], ["spawn.rs"])
    server = rust["server.rs"]
    assert len(fork.findall(server)) == 2
    # Each is in a function that goes on only if there is one thread, or is called by one that does.
    for before in ("libc::fork()", "let forked = clone_as_sibling();"):
        function = server[: server.index(before)].rpartition("\nfn ")[2]
        function = max(
            function, server[: server.index(before)].rpartition("\npub fn ")[2], key=lambda t: -len(t)
        )
        assert "check_single()" in function, before
    package = [path.read_text() for path in (ROOT / "python" / "echelon").glob("*.py")]
    assert not any(re.search(r"\bos\.fork|\bmultiprocessing\b|\bforkpty\b", text) for text in package)


SCRIPT = """
import os, sys
import echelon as ec
worker = ec.Worker(num_sub_workers=2, startup_timeout_s=60)
worker.add_worker(ec.Worker(level=3, num_sub_workers=1))
worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=sys.argv[1], platform="cpu", num_sub_workers=1))
worker.init()
buffer = worker.remote_malloc(0 + 1, 4096)
export = worker.remote_export(buffer)
print("up", flush=True)
sys.stdin.readline()
os._exit(3)
"""


@pytest.mark.parametrize("how", ["_exit", "SIGKILL"])
def test_a_parent_that_just_vanishes_leaves_nothing_r134(how: str, served: Daemon) -> None:
    """Its children, its session with child and segment, its memory: all end by themselves."""
    segments = set(os.listdir("/dev/shm"))
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, served.endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with script:
        assert script.stdout is not None and script.stdin is not None
        assert script.stdout.readline() == b"up\n"
        children = procfs.descendants(script.pid)
        assert len([child for child in children if not child.is_zygote]) == 4 and served.children()
        residual.note_descendants()
        if how == "SIGKILL":
            script.kill()
        else:
            script.stdin.write(b"\n")
            script.stdin.flush()
        script.wait(30)

    def gone() -> bool:
        residual.reap_adopted()
        left = [procfs.read_process(child.pid) for child in children]
        return not any(left) and not served.children() and set(os.listdir("/dev/shm")) <= segments

    eventually(gone, 30, what="the end of everything")
    next_start_works(served)
