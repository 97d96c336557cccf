"""`init()` as a transaction: whatever fails, nothing is left and the daemon serves the next one."""

from __future__ import annotations

import echelon as ec
import pytest
from testbed import failpoints
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

NOT_OF_STARTS = ("engine.", "submit.", "zygote.")
"""Points of a worker that runs, whose tests are the engine's, and of a zygote, without which a start goes on:
tests/test_zygote.py."""

POINTS = [name for name in failpoints.listed(ROOT) if not name.startswith(NOT_OF_STARTS)]

ELSEWHERE = {"init.thread": "worker threads exist in native programs only: runtime/tests/failpoints.rs"}
"""Points that no Python program comes by, each with where it is tested."""

ALL_UP = ["init.driver.4", "init.register.1", "init.confirm.4", "init.commit.4"]
"""Steps of the outer worker, all children up. Without the level their own workers, of level 3, come by first."""

SILENT = {
    "keeper.pidfd",
    "daemon.reply",
    "session.accept",
    "session.reader",
    "session.hello",
    "session.watchdog",
}
"""Points after which the other side only sees a connection that ends, so its error cannot name them."""

pytestmark = needs_failpoints


def whole(daemon: Daemon, **options: float) -> ec.Worker:
    """One of everything that a start can start, with callables for each."""
    worker = ec.Worker(
        num_sub_workers=1, device_ids=[0], **{"startup_timeout_s": 60, "close_timeout_s": 20, **options}
    )
    worker.add_worker(ec.Worker(level=3))
    add_remote(worker, daemon)
    worker.register(ec.RemoteCallable("py_tasks:orch_sum"))
    worker.register(_noop)
    return worker


def _noop(args: object) -> None:
    """A sub callable."""


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


@pytest.mark.parametrize("point", [name for name in POINTS + ALL_UP if name not in ELSEWHERE])
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


@pytest.mark.parametrize("point", ["daemon.watch", "keeper.pidfd"])
def test_a_runner_that_cannot_be_watched_is_reclaimed_r037(
    point: str, points: Failpoints, served: Daemon
) -> None:
    """The daemon has started the process and gets nothing to watch it by: it is ended and reaped, and the reply says why."""
    # No child of the parent's own: the point is the daemon's.
    worker = ec.Worker(startup_timeout_s=60)
    add_remote(worker, served)
    with points.armed(point):
        text = failed_init(worker)
        assert points.hits == [point]
    assert "the daemon could not start the session" in text, text
    next_start_works(served)
