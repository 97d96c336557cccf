"""A zygote that is there before `init()`, started by the first registration; owned and ended like any other (0029)."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs, residual
from testbed.procfs import socket_of
from testbed.wait import eventually

LIMIT_S = 60.0

sys.path.insert(0, str(Path(__file__).parent / "callables"))
try:
    import zygote_facts
finally:
    del sys.path[0]

pytestmark = pytest.mark.usefixtures("importable")


def zygotes() -> list[int]:
    return [process.pid for process in procfs.zygotes_below(os.getpid())]


def started(count: int = 1, root: int | None = None) -> list[int]:
    """Waits until there are so many: the keeper starts one behind our back."""

    def found() -> list[int]:
        seen = [process.pid for process in procfs.zygotes_below(root or os.getpid())]
        return seen if len(seen) == count else []

    return eventually(found, LIMIT_S, what=f"{count} zygotes", explain=zygotes)


def new_worker(count: int = 1) -> ec.Worker:
    return ec.Worker(num_sub_workers=count, startup_timeout_s=LIMIT_S)


@pytest.fixture
def worker() -> Iterator[ec.Worker]:
    """Not inited; something is registered."""
    worker = new_worker()
    worker.register(zygote_facts.noop)
    yield worker
    worker.close()


def up(pid: int) -> None:
    """Waits until the zygote serves."""

    def named() -> bool:
        found = procfs.read_process(pid)
        return found is not None and found.name == "echelon-zygote"

    eventually(named, LIMIT_S, what="a zygote that is up")


def run(worker: ec.Worker, handle: ec.CallableHandle, path: Path | None = None) -> None:
    def main(orch: ec.Orchestrator, args: object, config: object) -> None:
        packed = ec.TaskArgs()
        if path is not None:
            name = np.frombuffer(os.fsencode(path).ljust(512, b"\0"), dtype=np.uint8)
            packed.add_tensor(name, ec.TensorArgType.INPUT)
        orch.submit_sub(handle, packed)

    worker.run(main)


def test_the_first_registration_starts_it_and_init_uses_it() -> None:
    worker = new_worker(2)
    assert not zygotes(), "a Worker that nobody prepares starts nothing"
    handle = worker.register(zygote_facts.noop)
    (before,) = started()
    worker.register(zygote_facts.seed)
    worker.init()
    assert zygotes() == [before]
    run(worker, handle)
    worker.close()
    assert not zygotes()


@pytest.mark.parametrize("how", ["close", "forget", "give away"])
def test_it_ends_with_a_worker_that_is_never_inited(how: str) -> None:
    worker = new_worker()
    worker.register(zygote_facts.noop)
    started()
    if how == "close":
        worker.close()
    elif how == "give away":
        above = ec.Worker()
        above.add_worker(ec.Worker(level=3))
        child = ec.Worker(level=3, num_sub_workers=1)
        child.register(zygote_facts.noop)
        started(2)
        above.add_worker(child)
        assert len(zygotes()) == 1, "the child's would have no use"
        worker.close()
    else:
        del worker
        gc.collect()
    assert not zygotes()


def test_a_start_that_is_refused_ends_it() -> None:
    worker = new_worker()
    worker.register(zygote_facts.noop)
    started()
    worker.register(ec.RemoteCallable("zygote_facts:noop"))
    with pytest.raises(ec.RegistrationError):
        worker.init()
    assert not zygotes()
    worker.close()


def test_it_is_not_needed(worker: ec.Worker) -> None:
    (zygote,) = started()
    os.kill(zygote, signal.SIGKILL)
    worker.init()
    run(worker, worker.register(zygote_facts.noop))


@pytest.mark.parametrize("mode", ["1", "0"])
def test_children_have_what_holds_when_they_are_started(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment, folder, import paths, umask, limits: changed between registration and `init()`, with the zygote up."""
    monkeypatch.setenv("ECHELON_ZYGOTE", mode)
    worker = new_worker(2)
    handle = worker.register(zygote_facts.write)
    if mode == "1":
        up(*started())
    assert len(zygotes()) == int(mode)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    monkeypatch.setenv("ECHELON_TEST_LATER", "yes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "later"))
    umask = os.umask(0o027)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        worker.init()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
        os.umask(umask)
    out = tmp_path / "facts"
    run(worker, handle, out)
    assert len(zygotes()) == int(mode)
    worker.close()
    seen = json.loads(out.read_text())
    assert seen["environment"]["ECHELON_TEST_LATER"] == "yes"
    assert seen["cwd"] == str(tmp_path)
    assert seen["path"] == sys.path
    assert seen["status"]["Umask"] == "0027"
    (core,) = [line for line in seen["limits"].splitlines() if line.startswith("Max core")]
    assert core.split()[4] == "0", core


SCRIPT = """
import sys
import echelon as ec
from zygote_facts import noop
worker = ec.Worker(num_sub_workers=1)
worker.register(noop)
print("registered", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "exit"])
def test_it_ends_with_its_process(how: str, callables_path: Path) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(callables_path)},
    )
    with script:
        assert script.stdout is not None and script.stdin is not None
        assert script.stdout.readline() == b"registered\n"
        (zygote,) = started(root=script.pid)
        residual.note_descendants()
        if how == "SIGKILL":
            script.kill()
        else:
            script.stdin.close()
        assert script.wait(LIMIT_S) == (-signal.SIGKILL if how == "SIGKILL" else 0)

    def gone() -> bool:
        residual.reap_adopted()
        return procfs.read_process(zygote) is None

    eventually(gone, LIMIT_S, what="the end of the zygote")


def test_other_ends_are_noticed_while_a_zygote_does_not_answer() -> None:
    """A stopped zygote is given up after some seconds; the keeper is not deaf until then."""
    with new_worker(2) as worker:
        (zygote,) = started()
        first, second = (int(info["pid"]) for info in worker.workers())
        with socket_of(zygote) as asked:
            os.kill(zygote, signal.SIGSTOP)
            begun = time.monotonic()
            os.kill(first, signal.SIGKILL)
            # The question for the successor lies in the zygote's socket.
            assert select.select([asked], [], [], LIMIT_S)[0]
            os.kill(second, signal.SIGKILL)
            # On a machine that stood still meanwhile it was given up before, and there is nothing to see.
            is_in_time = time.monotonic() - begun < 2

            def first_gone() -> int | None:
                return next((pid for pid in (second, zygote) if procfs.read_process(pid) is None), None)

            gone = eventually(first_gone, LIMIT_S, what="an end")
            assert gone == second or not is_in_time, "its end was noticed only after the zygote's"
        if gone == second:
            os.kill(zygote, signal.SIGKILL)
        eventually(
            lambda: {first, second}.isdisjoint(info["pid"] for info in worker.workers()),
            LIMIT_S,
            what="fresh sub workers",
        )
        run(worker, worker.register(zygote_facts.noop))


def test_the_socket_of_a_zygote_is_one() -> None:
    """What the test above looks at."""
    with new_worker():
        (zygote,) = zygotes()
        with socket_of(zygote) as asked:
            assert asked.family == socket.AF_UNIX and not select.select([asked], [], [], 0)[0]
