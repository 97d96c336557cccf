"""Trees of workers: several local and remote level 3 side by side, gangs over both, a level 5 over a level 4."""

from __future__ import annotations

import itertools
import os
import signal

import echelon as ec
import numpy as np
import pytest
from testbed import procfs, residual
from testbed.wait import eventually

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT
F64 = ec.DataType.FLOAT64
COUNT = 5

pytestmark = pytest.mark.usefixtures("importable")


def remote(daemon, **settings) -> ec.RemoteWorkerSpec:
    return ec.RemoteWorkerSpec(endpoint=daemon.endpoint, num_sub_workers=1, **settings)


def local() -> ec.Worker:
    return ec.Worker(level=3, num_sub_workers=1)


def callable_of(name: str) -> ec.RemoteCallable:
    return ec.RemoteCallable(f"topology_tasks:{name}")


def window(buffer) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, shape=(COUNT,), dtype=F64)


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("llrr"))), ids="".join)
def test_worker_ids_follow_the_order_of_the_adds_r026(order, daemon):
    """R-026: whatever is local or remote, and whichever starts first, an id names the worker that it was given for."""
    worker = ec.Worker(level=4)
    ids = [
        worker.add_worker(local()) if kind == "l" else worker.add_remote_worker(remote(daemon))
        for kind in order
    ]
    assert ids == [0, 1, 2, 3]
    own = worker.register(callable_of("orch_own"), workers=ids)
    with worker:
        pids = {info["name"]: info["pid"] for info in worker.workers()}
        names = [
            f"local/worker{id_}" if kind == "l" else f"remote{id_}"
            for id_, kind in zip(ids, order, strict=True)
        ]
        arrays = [np.zeros(COUNT) for _ in ids]
        buffers = {
            id_: worker.remote_malloc(id_, COUNT * 8)
            for id_, kind in zip(ids, order, strict=True)
            if kind == "r"
        }

        def graph(orch, args, config):
            for id_ in ids:
                data = window(buffers[id_]) if id_ in buffers else arrays[id_]
                orch.submit_next_level(own, ec.TaskArgs.of((data, INOUT), scalars=(id_,)), worker=id_)

        worker.run(graph)
        for id_, buffer in buffers.items():
            worker.remote_copy_from(buffer, arrays[id_])
        assert [array[0] for array in arrays] == ids
        ran_in = [int(array[-1]) for array in arrays]
        assert len(set(ran_in)) == 4
        assert ran_in == [pids[name] for name in names]


def test_a_gang_has_local_and_remote_members(daemon):
    worker = ec.Worker(level=4)
    ids = [worker.add_worker(local()), worker.add_remote_worker(remote(daemon)), worker.add_worker(local())]
    forward = worker.register(callable_of("orch_forward"), workers=ids)
    worker.register(callable_of("add_pid"), workers=ids, inner=True)
    with worker:
        first, third, buffer = np.zeros(COUNT), np.zeros(COUNT), worker.remote_malloc(ids[1], COUNT * 8)

        def graph(orch, args, config):
            members = [ec.TaskArgs.of((data, INOUT), scalars=(7,)) for data in (first, window(buffer), third)]
            orch.submit_next_level_group(forward, members, workers=ids)
            orch.copy(first[:2], window_of_two(buffer))

        def window_of_two(buffer):
            return ec.RemoteTensorRef(buffer, offset=8, shape=(2,), dtype=F64)

        worker.run(graph)
        second = np.zeros(COUNT)
        worker.remote_copy_from(buffer, second)
        for array in (first, second, third):
            assert array[:-1].tolist() == [7] * (COUNT - 1)
        assert len({array[-1] for array in (first, second, third)}) == 3


def test_a_failed_member_fails_a_mixed_gang_once(daemon):
    worker = ec.Worker(level=4)
    ids = [worker.add_worker(local()), worker.add_remote_worker(remote(daemon))]
    fail = worker.register(callable_of("orch_fail"), workers=ids)
    with worker:
        with pytest.raises(ec.TaskError, match="trouble in"):
            worker.run(
                lambda orch, a, c: orch.submit_next_level_group(
                    fail, [ec.TaskArgs(), ec.TaskArgs()], workers=ids
                )
            )
        with pytest.raises(ec.NotEligibleError):
            worker.run(
                lambda orch, a, c: orch.submit_next_level_group(fail, [ec.TaskArgs() for _ in range(3)])
            )


def level_five(daemon) -> tuple[ec.Worker, int]:
    """A level 5 over a level 4 with a sub worker, a local level 3 and a remote level 3."""
    four = ec.Worker(level=4, num_sub_workers=1, remote_session_timeout_s=5)
    assert four.add_worker(local()) == 0
    assert four.add_remote_worker(remote(daemon)) == 1
    four.register(callable_of("add_pid"), workers=[0, 1], inner=True)
    four.register(callable_of("orch_forward"), workers=[0, 1])
    four.register(callable_of("orch_fail"), workers=[1])
    four.register(callable_of("orch_for_ever"), workers=[1])
    five = ec.Worker(level=5)
    return five, five.add_worker(four)


def test_a_level_five_drives_a_level_four_with_remotes_of_its_own(daemon):
    five, child = level_five(daemon)
    spread = five.register(callable_of("l4_spread"), workers=[child])
    five.register(callable_of("add_pid"), workers=[child], inner=True)
    with five:
        rows = np.arange(3.0 * COUNT).reshape(3, COUNT)
        before = rows.copy()
        for turn in (1, 2):
            five.run(lambda orch, a, c: orch.submit_next_level(spread, ec.TaskArgs.of((rows, INOUT))))
            assert (rows[:, :-1] == before[:, :-1] + 10 * turn).all()
        pids = set(rows[:, -1].astype(int).tolist())
        assert len(pids) == 3 and os.getpid() not in pids


def test_a_failure_two_levels_down_is_told_at_the_top(daemon):
    five, child = level_five(daemon)
    fails = five.register(callable_of("l4_remote_fails"), workers=[child])
    with five:
        for _ in range(2):
            with pytest.raises(ec.TaskError, match=r"ValueError: trouble in \d+") as caught:
                five.run(lambda orch, a, c: orch.submit_next_level(fails, ec.TaskArgs()))
            assert "remote1" in str(caught.value)


def test_the_death_of_a_level_four_ends_all_below_it_r038(daemon, tmp_path):
    """R-038, R-134: its local children and its remote sessions end although a task runs there."""
    five, child = level_five(daemon)
    wait = five.register(callable_of("l4_wait"), workers=[child])
    says = tmp_path / "runs"
    name = np.frombuffer(str(says).encode(), dtype=np.uint8)
    with five:
        pid = next(info["pid"] for info in five.workers() if info["name"] == f"local/worker{child}")

        def kill_when_it_runs(orch, args, config):
            orch.submit_next_level(wait, ec.TaskArgs.of((name, INPUT)))
            eventually(lambda: says.exists() and says.read_text(), 60, what="the task two levels down")
            residual.note_descendants()
            os.kill(pid, signal.SIGKILL)

        # reopen() is for sessions.
        with pytest.raises(ec.EndpointLost, match="it stays lost: look at its log"):
            five.run(kill_when_it_runs)
        with pytest.raises(ec.EndpointLost, match="it stays lost; use other workers"):
            five.run(lambda orch, args, config: orch.submit_next_level(wait, ec.TaskArgs.of((name, INPUT))))
        session = int(says.read_text().split()[0])
        eventually(
            lambda: not procfs.read_process(session),
            30,
            what="the end of the session below the killed level 4",
        )


def close_the_worker(worker: ec.Worker, daemon) -> None:
    worker.close()


def kill_the_session(worker: ec.Worker, daemon) -> None:
    pid = next(info["pid"] for info in worker.workers() if info["name"] == "remote0")
    os.kill(pid, signal.SIGKILL)


def end_the_daemon(worker: ec.Worker, daemon) -> None:
    daemon.process.terminate()


@pytest.mark.parametrize(
    "end", [close_the_worker, kill_the_session, end_the_daemon], ids=lambda end: end.__name__
)
def test_the_end_of_a_session_is_the_end_of_all_below_it_r038(end, daemon, tmp_path):
    """R-038: processes that tasks left behind and that ignore SIGTERM go with their session, however it ends."""
    says = tmp_path / "stubborn"
    name = np.frombuffer(str(says).encode(), dtype=np.uint8)
    worker = ec.Worker(level=4, remote_session_timeout_s=5)
    worker.add_remote_worker(remote(daemon))
    leave = worker.register(callable_of("orch_stubborn"), workers=[0])
    worker.register(callable_of("stubborn"), workers=[0], inner=True)
    with worker:
        worker.run(lambda orch, a, c: orch.submit_next_level(leave, ec.TaskArgs.of((name, INPUT))))
        left = [int(pid) for pid in says.read_text().split()]
        assert len(left) == 2 and all(procfs.read_process(pid) for pid in left)
        residual.note_descendants()
        end(worker, daemon)

        def gone() -> bool:
            residual.reap_adopted()
            return not any(procfs.read_process(pid) for pid in left)

        eventually(
            gone,
            10,
            what="the end of what the tasks left behind",
            explain=lambda: [procfs.read_process(p) for p in left],
        )
