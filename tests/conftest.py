"""What holds for every whole-system test: a clean table afterwards, a hard time limit, callables on the path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# One thread per math library: helper threads that start on first use would be taken for leaks, and every
# child of a test would start its own on a machine of two cores.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest
from testbed import extensions, residual
from testbed.daemon import Daemon
from testbed.watchdog import Watchdog

with suppress(ImportError):
    import numpy  # noqa: F401  (what it opens on import belongs to the baseline)

TESTS = Path(__file__).parent
CALLABLES = TESTS / "callables"
DEFAULT_LIMIT_S = 120.0

_watchdog = pytest.StashKey[Watchdog]()


def pytest_configure(config: pytest.Config) -> None:
    residual.become_subreaper()
    config.stash[_watchdog] = Watchdog()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _watchdog in config.stash:
        config.stash[_watchdog].close()


def _limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("hard_timeout")
    return float(marker.args[0]) if marker is not None else DEFAULT_LIMIT_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        limit = _limit_s(item)
        if item.get_closest_marker("timeout") is None:
            # A breath later than the watchdog, whose report then names what still runs.
            item.add_marker(pytest.mark.timeout(limit + 1))
        if item.get_closest_marker("needs_root") is not None and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    watchdog = item.config.stash[_watchdog]
    watchdog.arm(item.nodeid, _limit_s(item))
    try:
        return (yield)
    finally:
        watchdog.disarm()


@pytest.fixture(autouse=True)
def zero_residual(request: pytest.FixtureRequest) -> Iterator[None]:
    """R-129: fails the test that leaves a process, name, descriptor, socket, thread or temporary file behind."""
    exempt = request.node.get_closest_marker("residual_exempt")
    before = residual.take()
    yield
    if exempt is not None:
        return
    found = residual.check(before)
    if found:
        residual.clear_away(before)
        pytest.fail("left behind (R-129):\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def callables_path() -> Path:
    """The folder with the modules that tests name in import paths; put it on PYTHONPATH."""
    return CALLABLES


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, callables_path: Path) -> None:
    """This process, and those that it starts, can import the modules of tests/callables."""
    monkeypatch.syspath_prepend(str(callables_path))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A real `echelon-worker` on a loopback port, with tests/callables on its PYTHONPATH."""
    with Daemon(tmp_path, pythonpath=[CALLABLES]) as running:
        yield running


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for a module, whose sessions accept every extension: each case gets a session process of its own."""
    folder = tmp_path_factory.mktemp("daemon")
    with Daemon(folder, pythonpath=[CALLABLES], arguments=extensions.ARGUMENTS) as running:
        # Helpers that the daemon starts with its first session belong to every test's baseline.
        with extensions.session((running.host, running.port)):
            pass
        yield running


@pytest.fixture(params=extensions.CONFIGURATIONS)
def features(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What a test that must hold with every extension on and off is driven over: none, each with what it needs, all."""
    return extensions.CONFIGURATIONS[request.param]
