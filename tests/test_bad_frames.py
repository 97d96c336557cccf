"""Frames that a peer must not send, made by a proxy out of those of a real parent and a real session.

Whatever happens to a lane: no task runs twice, a result is right or an error, every wait ends, and the other sessions of the
parent and of the daemon do not notice (R-068, R-070, R-071, R-083).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed.daemon import Daemon
from testbed.proxy import ByFrame, DaemonProxy, SessionProxy

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT
F64 = ec.DataType.FLOAT64
TASKS = 6
CONTROL, CONTROL_REPLY = 3, 4

Rule = Callable[[int, bytes], list[bytes]]


def frame_type(frame: bytes) -> int:
    return struct.unpack_from("<I", frame, 8)[0]


def duplicate(at: int) -> Rule:
    """Frame `at` comes twice in a row."""
    return lambda number, frame: [frame, frame] if number == at else [frame]


def replay(at: int) -> Rule:
    """Frame `at` comes once more, three frames later."""
    kept: list[bytes] = []

    def rule(number: int, frame: bytes) -> list[bytes]:
        if number == at:
            kept.append(frame)
        return [frame, *kept] if number == at + 3 else [frame]

    return rule


def swap(at: int) -> Rule:
    """Frames `at` and `at + 1` change places; when the second waits for the first, only the first is kept back for good."""
    kept: list[bytes] = []

    def rule(number: int, frame: bytes) -> list[bytes]:
        if number == at and frame_type(frame) in (CONTROL, CONTROL_REPLY):
            kept.append(frame)
            return []
        out = [frame, *kept]
        kept.clear()
        return out

    return rule


def lose_control(at: int) -> Rule:
    """The first CONTROL or CONTROL_REPLY from frame `at` on is lost."""
    lost = False

    def rule(number: int, frame: bytes) -> list[bytes]:
        nonlocal lost
        if number >= at and not lost and frame_type(frame) in (CONTROL, CONTROL_REPLY):
            lost = True
            return []
        return [frame]

    return rule


def garble(at: int, position: int, mask: int) -> Rule:
    """Byte `position` of the header of frame `at` is another one."""

    def rule(number: int, frame: bytes) -> list[bytes]:
        if number != at:
            return [frame]
        return [frame[:position] + bytes([frame[position] ^ mask]) + frame[position + 1 :]]

    return rule


HEADER_BYTES = {
    "magic": 0,
    "version": 4,
    "type": 8,
    "session": 12,
    "worker": 20,
    "sequence": 24,
    "length": 34,
    "flags": 36,
}


def rules(kind: str) -> list[tuple[str, Rule]]:
    """Fresh ones for each test: a rule remembers what it has done."""
    match kind:
        case "duplicated":
            return [(f"frame {at}", duplicate(at)) for at in (1, 2, 4, 6)]
        case "late":
            return [(f"frame {at}", replay(at)) for at in (1, 3)]
        case "swapped":
            return [(f"frame {at}", swap(at)) for at in (1, 2)]
        case "lost":
            return [(f"from frame {at}", lose_control(at)) for at in (1, 4)]
        case _:
            return [(name, garble(2, position, 0x40)) for name, position in HEADER_BYTES.items()]


def work(
    worker: ec.Worker, count: ec.CallableHandle, remote: int, log: Path, dtype: ec.DataType = F64
) -> None:
    """Six tasks that add up in one buffer, six that are independent, and the controls around them; checks every result."""
    name = np.frombuffer(str(log).encode(), dtype=np.uint8)
    summed, apart = worker.remote_malloc(remote, 8), worker.remote_malloc(remote, 8 * TASKS)
    number = np.dtype(dtype.name.lower())
    worker.remote_copy_to(summed, np.array([100], number))

    def graph(orch, args, config):
        for index in range(TASKS):
            for task, data in (
                (index, ec.RemoteTensorRef(summed, shape=(1,), dtype=dtype)),
                (TASKS + index, ec.RemoteTensorRef(apart, offset=8 * index, shape=(1,), dtype=dtype)),
            ):
                orch.submit_next_level(
                    count, ec.TaskArgs.of((data, INOUT), (name, INPUT), scalars=(task,)), worker=remote
                )

    worker.run(graph)
    got, each = np.zeros(1, number), np.zeros(TASKS, number)
    worker.remote_copy_from(summed, got)
    worker.remote_copy_from(apart, each)
    assert got[0] == 100 + TASKS and (each == 1).all(), (got, each)
    worker.remote_free(summed)
    worker.remote_free(apart)


def executions(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize("way", ["to_upstream", "to_client"])
@pytest.mark.parametrize("kind", ["duplicated", "late", "swapped", "lost", "garbled"])
def test_a_lane_with_frames_that_are_wrong_harms_nobody_else_r071_r083(
    kind: str, way: str, daemon: Daemon, tmp_path: Path
) -> None:
    """R-068, R-070, R-071, R-083: each rule on the lane of session 0; session 1 of the same daemon does the same work."""
    ended = []
    for case, (what, rule) in enumerate(rules(kind)):

        def prepare(session: SessionProxy, number: int, rule: Rule = rule) -> None:
            getattr(session.command, way).transform = ByFrame(rule)

        logs = [tmp_path / f"{case}-{number}" for number in range(2)]
        with DaemonProxy((daemon.host, daemon.port), prepare) as proxy:
            worker = ec.Worker(level=4, remote_session_timeout_s=3, startup_timeout_s=60)
            spoiled = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=proxy.endpoint))
            healthy = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint))
            count = worker.register(
                ec.RemoteCallable("topology_tasks:orch_count"), workers=[spoiled, healthy]
            )
            with worker:
                try:
                    work(worker, count, spoiled, logs[0])
                    ended.append(f"{what}: right")
                except (ec.EndpointLost, ec.NotEligibleError, ec.RemoteError) as error:
                    ended.append(f"{what}: {type(error).__name__}")
                    assert str(spoiled) in str(error) or "remote0" in str(error), error
                work(worker, count, healthy, logs[1])
        for log in logs:
            ran = executions(log)
            assert len(ran) == len(set(ran)), f"{kind} {what}: executed twice: {ran}"
        assert len(executions(logs[1])) == 2 * TASKS
    assert [text for text in ended if text.endswith("right")] == [], "a spoiled lane went unnoticed"


def spoiled_ways() -> list[tuple[str, str, Rule]]:
    """What ends a lane at once, in both directions: no test waits here for bytes that never come."""
    positions = {**HEADER_BYTES, "length": 35}
    garbled = [(name, garble(2, position, 0x40)) for name, position in positions.items()]
    ways = [("to_client", "an answer twice", duplicate(2))]
    return [*ways, *((way, what, rule) for way in ("to_client", "to_upstream") for what, rule in garbled)]


def test_a_spoiled_lane_harms_nobody_else_with_every_extension_r071(
    features: tuple[str, ...], shared_daemon: Daemon, tmp_path: Path
) -> None:
    """Every way has a session of its own, all of one parent and one daemon; one more is healthy throughout."""
    rules = spoiled_ways()

    def prepare(session: SessionProxy, number: int) -> None:
        if session.worker_id < len(rules):
            way, _, rule = rules[session.worker_id]
            getattr(session.command, way).transform = ByFrame(rule)

    with DaemonProxy((shared_daemon.host, shared_daemon.port), prepare, features=features) as proxy:
        worker = ec.Worker(level=4, startup_timeout_s=60)
        remotes = [
            worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=proxy.endpoint))
            for _ in range(len(rules) + 1)
        ]
        assert remotes == list(range(len(rules) + 1))
        healthy = remotes[-1]
        count = worker.register(ec.RemoteCallable("topology_tasks:orch_count"), workers=remotes)
        with worker:
            for remote, (way, what, _) in enumerate(rules):
                log = tmp_path / f"{remote}"
                with pytest.raises((ec.EndpointLost, ec.NotEligibleError, ec.RemoteError)):
                    work(worker, count, remote, log, ec.DataType.INT64)
                ran = executions(log)
                assert len(ran) == len(set(ran)), f"{what} {way}: executed twice: {ran}"
            work(worker, count, healthy, tmp_path / "healthy", ec.DataType.INT64)
    assert len(executions(tmp_path / "healthy")) == 2 * TASKS
