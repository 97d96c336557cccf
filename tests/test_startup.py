"""`init()` as a transaction: whatever fails, nothing is left and the daemon serves the next one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import echelon as ec
import pytest
from testbed import failpoints
from testbed.daemon import Daemon
from testbed.failpoints import Failpoints
from testbed.wait import eventually

ROOT = Path(__file__).resolve().parents[1]
CALLABLES = Path(__file__).parent / "callables"
POINTS = failpoints.listed(ROOT)

ELSEWHERE = {"init.thread": "worker threads exist in native programs only: runtime/tests/failpoints.rs"}
"""Points that no Python program comes by, each with where it is tested."""

SILENT = {
    "keeper.pidfd",
    "daemon.reply",
    "session.accept",
    "session.reader",
    "session.hello",
    "session.watchdog",
}
"""Points after which the other side only sees a connection that ends, so its error cannot name them."""

pytestmark = pytest.mark.skipif(
    not failpoints.are_built_in(Path(str(ec._core.__file__))),
    reason="the extension was built in release mode without --features failpoints",
)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failpoints]:
    """Failpoints of this process and all below it."""
    points = Failpoints(tmp_path_factory.mktemp("failpoints"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in points.environment().items():
            patch.setenv(name, value)
        yield points


@pytest.fixture(scope="module")
def served(points: Failpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of this file: each leaves it as it was."""
    arguments = ["--host", "127.0.0.1", "--port", "0", "--insecure-loopback"]
    arguments += ["--pass-env", failpoints.VARIABLE]
    with Daemon(tmp_path_factory.mktemp("daemon"), pythonpath=[CALLABLES], arguments=arguments) as running:
        yield running


def add_remote(worker: ec.Worker, daemon: Daemon) -> int:
    return worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint, platform="cpu"))


def whole(daemon: Daemon, **options: float) -> ec.Worker:
    """One of everything that a start can start, with callables for each."""
    worker = ec.Worker(num_sub_workers=1, **{"startup_timeout_s": 60, "close_timeout_s": 20, **options})
    worker.add_worker(ec.Worker(level=3))
    add_remote(worker, daemon)
    worker.register(ec.RemoteCallable("py_tasks:orch_sum"))
    worker.register(_noop)
    return worker


def _noop(args: object) -> None:
    """A sub callable."""


def next_start_works(daemon: Daemon) -> None:
    """The daemon has nothing left of what failed, and serves another parent."""
    eventually(
        lambda: not daemon.children(), 30, what="the end of the failed session", explain=daemon.children
    )
    with closing(ec.Worker(startup_timeout_s=60)) as worker:
        add_remote(worker, daemon)
        worker.init()
        assert [info["name"] for info in worker.workers()] == ["remote0"]


def failed_init(worker: ec.Worker) -> str:
    """`init()` must raise one of our errors; closed any number of times, from two threads (R-017)."""
    with pytest.raises(ec.EchelonError) as caught:
        worker.init()
    text = str(caught.value)
    assert worker.state == "failed"
    worker.close()
    worker.close()
    other = threading.Thread(target=worker.close)
    other.start()
    other.join(60)
    assert not other.is_alive()
    # The first cause is kept, whatever was closed since.
    with pytest.raises(ec.LifecycleError, match="failed") as later:
        worker.run(lambda orch, a, c: None)
    assert text.splitlines()[0][:60] in str(later.value)
    return text


def test_every_point_is_listed() -> None:
    """The steps of a start are points: each family is there, and none was renamed without its test."""
    assert {name.split(".")[0] for name in POINTS} == {
        "init",
        "local",
        "keeper",
        "child",
        "remote",
        "session",
        "daemon",
    }
    assert len(POINTS) >= 35
    assert set(ELSEWHERE) | SILENT <= set(POINTS)


@pytest.mark.parametrize("point", [name for name in POINTS if name not in ELSEWHERE])
def test_init_fails_at_every_step_and_leaves_nothing_r015_r016_r017(
    point: str, points: Failpoints, served: Daemon
) -> None:
    with points.armed(point):
        worker = whole(served)
        text = failed_init(worker)
        assert point in points.hits, f"{point} was not come by: {text}"
    if not point.startswith("child.") and point not in SILENT:
        assert point in text, text
    next_start_works(served)
