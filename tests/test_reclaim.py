"""A session that its daemon cannot watch is ended there and then, and the daemon goes on (R-037)."""

from __future__ import annotations

from contextlib import closing

import echelon as ec
import pytest
from testbed.daemon import Daemon
from testbed.failpoints import Failpoints
from testbed.startup import add_remote, needs_failpoints, next_start_works

pytestmark = needs_failpoints


def test_a_session_that_cannot_be_watched_is_reclaimed_r037(callables_path, tmp_path):
    """The daemon gets no descriptor for the process that it has just started, as when it has too many."""
    points = Failpoints(tmp_path)
    with Daemon(tmp_path, pythonpath=[callables_path], env=points.environment()) as daemon:
        for _ in range(5):
            with points.armed("keeper.pidfd"), closing(ec.Worker(startup_timeout_s=60)) as worker:
                add_remote(worker, daemon)
                with pytest.raises(ec.StartupError, match="pidfd_open"):
                    worker.init()
            assert points.hits == ["keeper.pidfd"]
            assert daemon.children() == [], "it was reaped before the refusal was sent"
        next_start_works(daemon)
