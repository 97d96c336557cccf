"""What the tests of starts share: a daemon and failpoints in every process, and what must hold after a failed start.

Import the fixtures `points_fixture` and `served_fixture` where `points` and `served` are used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import echelon as ec
import pytest

from . import failpoints
from .daemon import Daemon
from .failpoints import Failpoints
from .wait import eventually

ROOT = Path(__file__).resolve().parents[2]
CALLABLES = Path(__file__).resolve().parents[1] / "callables"

needs_failpoints = pytest.mark.skipif(
    not failpoints.are_built_in(Path(str(ec._core.__file__))),
    reason="the extension was built in release mode without --features failpoints",
)


@pytest.fixture(name="points", scope="module")
def points_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failpoints]:
    """Failpoints of this process and all below it."""
    points = Failpoints(tmp_path_factory.mktemp("failpoints"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in points.environment().items():
            patch.setenv(name, value)
        yield points


@pytest.fixture(name="served", scope="module")
def served_fixture(points: Failpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of this file: each leaves it as it was."""
    arguments = ["--host", "127.0.0.1", "--port", "0", "--insecure-loopback"]
    arguments += ["--pass-env", failpoints.VARIABLE]
    with Daemon(tmp_path_factory.mktemp("daemon"), pythonpath=[CALLABLES], arguments=arguments) as running:
        yield running


def add_remote(worker: ec.Worker, daemon: Daemon) -> int:
    return worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint, platform="cpu"))


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
