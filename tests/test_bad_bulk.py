"""A session that names false ways to its buffers: bytes arrive right or the copy fails, and no other worker notices.

A proxy changes what a real session says of its exports (`same_host`, `data_lane`), and a server of the test takes the place
of its data lane.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import extensions, wire
from testbed.daemon import Daemon
from testbed.peer_lane import TcpDescriptor, describe
from testbed.proxy import ByFrame, DaemonProxy, SessionProxy, shut
from testbed.wire import Cursor

NBYTES = 1 << 20
EXPORT = wire.CONTROL_NUMBERS["EXPORT_BUFFER"]
BULK = ("pipelining", "timed_completion", "concurrent_control", "peer_fetch", "peer_fence")

Change = Callable[[TcpDescriptor], TcpDescriptor]


def pattern(first: int) -> np.ndarray:
    return ((np.arange(NBYTES) + first) % 251).astype(np.uint8)


def changed(change: Change) -> Callable[[int, bytes], list[bytes]]:
    """Each answer to EXPORT_BUFFER gets another descriptor."""

    def rule(number: int, frame: bytes) -> list[bytes]:
        head = list(wire.HEADER.unpack(frame[: wire.HEADER.size]))
        payload = frame[wire.HEADER.size :]
        if head[2] != wire.CONTROL_REPLY or struct.unpack_from("<I", payload, 8)[0] != EXPORT:
            return [frame]
        cursor = Cursor(payload)
        front, error, result = cursor.take(20), cursor.blob(4096), cursor.blob(1 << 20)
        new = change(describe(result))
        inner = struct.pack("<Q", new.session_id) + new.ticket + wire.text(new.host)
        inner += struct.pack("<I", new.port) + wire.text(new.segment) + struct.pack("<I", 0)
        # Everything up to the profile is as it was.
        result = result[:76] + wire.text("tcp") + wire.blob(inner) + struct.pack("<I", 0)
        payload = front + wire.blob(error) + wire.blob(result)
        head[6] = len(payload)
        return [wire.HEADER.pack(*head) + payload]

    return rule


@contextmanager
def site(daemon: Daemon, features: tuple[str, ...], change: Change) -> Iterator[tuple[ec.Worker, int, int]]:
    """A worker with a session that says false things and one that does not."""

    def prepare(session: SessionProxy, number: int) -> None:
        if session.worker_id == 0:
            session.command.to_client.transform = ByFrame(changed(change))

    with DaemonProxy((daemon.host, daemon.port), prepare, features=features) as proxy:
        worker = ec.Worker(level=4)
        bad, good = (worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=proxy.endpoint)) for _ in range(2))
        with worker:
            yield worker, bad, good


def there_and_back(worker: ec.Worker, remote: int, first: int = 0) -> None:
    buffer, back = worker.remote_malloc(remote, NBYTES), np.zeros(NBYTES, np.uint8)
    worker.remote_copy_to(buffer, pattern(first))
    worker.remote_copy_from(buffer, back)
    assert (back == pattern(first)).all()
    worker.remote_free(buffer)


@pytest.fixture
def strange_names() -> Iterator[list[str]]:
    """Names of segments that no session may make its parent open, and such as do not hold the buffer."""
    mine = f"psm_test{os.getpid()}"
    small, folder, pipe, link = (Path("/dev/shm") / f"{mine}_{kind}" for kind in ("s", "d", "p", "l"))
    small.write_bytes(b"unharmed")
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(small)
    other = small.with_name(f"{mine[4:]}_x")
    other.write_bytes(bytes(NBYTES))
    yield [
        "../../etc/passwd",
        "psm_/../../../etc/passwd",
        f"/dev/shm/{small.name}",
        "psm_..",
        "psm_" + "x" * 251,
        "psm_nobody",
        small.name,
        folder.name,
        pipe.name,
        link.name,
        other.name,
    ]
    assert small.read_bytes() == b"unharmed"
    assert other.read_bytes() == bytes(NBYTES), "a file that is no segment was written"
    for path in (small, pipe, link, other):
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("lanes", [(), ("data_lane",)], ids=["frames", "lanes"])
def test_a_segment_that_is_not_the_buffer_is_not_used(
    lanes: tuple[str, ...], shared_daemon: Daemon, strange_names: list[str]
) -> None:
    """The bytes go another way, and are right."""
    names = iter(strange_names)
    change: Change = lambda was: replace(was, segment=next(names))  # noqa: E731
    with site(shared_daemon, (*BULK, "same_host", *lanes), change) as (worker, bad, good):
        for first, _ in enumerate(strange_names):
            there_and_back(worker, bad, first)
        there_and_back(worker, good)


class Owner:
    """A data lane in the place of the session's: answers each request with what `answer` makes of its header."""

    def __init__(self, answer: Callable[[wire.Frame], bytes | None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.requests = 0
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, name="owner")]
        self._threads[0].start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._requests, args=(connection,), name="owner-lane")
                self._threads.append(thread)
                thread.start()

    def _requests(self, connection: socket.socket) -> None:
        kinds = (extensions.PEER_READ, extensions.PEER_WRITE)
        with connection, suppress(OSError, EOFError):
            while True:
                frame = wire.receive_frame(connection, kinds)
                self.requests += 1
                answer = self._answer(frame)
                if answer is None:
                    return
                connection.sendall(answer)

    def close(self) -> None:
        shut(self._listener)
        self._threads[0].join(10)
        for connection in self._connections:
            shut(connection)
        for thread in self._threads[1:]:
            thread.join(10)
        self._listener.close()


def answered(kind: int, payload: bytes = b"", **changes: int) -> Callable[[wire.Frame], bytes]:
    def answer(request: wire.Frame) -> bytes:
        ahead = changes.get("ahead", 0)
        fields = {"session_id": request.session_id, "worker_id": request.worker_id}
        fields |= {name: value for name, value in changes.items() if name in fields}
        return wire.Frame(kind, **fields, sequence=request.sequence + ahead, payload=payload).encode()

    return answer


DATA, DONE, REFUSED = extensions.PEER_DATA, extensions.PEER_DONE, extensions.PEER_REFUSED
LIES: dict[str, Callable[[wire.Frame], bytes | None]] = {
    "another session": answered(DATA, bytes(NBYTES), session_id=5),
    "another worker": answered(DONE, worker_id=9),
    "another sequence": answered(DONE, ahead=1),
    "too many bytes": answered(DATA, bytes(NBYTES + 1)),
    "too few bytes": answered(DATA, bytes(NBYTES - 1)),
    "data for nothing": answered(DONE, b"x"),
    "a request": answered(extensions.PEER_READ, bytes(64)),
    "a completion": answered(wire.COMPLETION, bytes(16)),
    "a refusal without a reason": answered(REFUSED, struct.pack("<I", 99) + wire.text("")),
    "a refusal that is cut": answered(REFUSED, b"\1"),
    "a refusal of 2 MiB": answered(REFUSED, struct.pack("<I", 1) + wire.text("x" * (2 << 20))),
    "a refusal": answered(REFUSED, struct.pack("<I", 1) + wire.text("\33[31munknown")),
    "garbage": lambda request: b"X" * 40,
    "the end": lambda request: None,
}


def test_a_data_lane_that_breaks_its_rules_fails_its_copies_alone(shared_daemon: Daemon) -> None:
    """A copy fails with an error or took another way; the session of that lane goes on, and so does the other one."""
    lie: list[Callable[[wire.Frame], bytes | None]] = [lambda request: None]
    with closing(Owner(lambda request: lie[0](request))) as owner:
        change: Change = lambda was: replace(was, port=owner.port)  # noqa: E731
        with site(shared_daemon, (*BULK, "data_lane"), change) as (worker, bad, good):
            for what, answer in LIES.items():
                lie[0] = answer
                asked = owner.requests
                buffer, back = worker.remote_malloc(bad, NBYTES), np.full(NBYTES, 9, np.uint8)
                try:
                    worker.remote_copy_to(buffer, pattern(1))
                    worker.remote_copy_from(buffer, back)
                    assert (back == pattern(1)).all(), f"{what}: wrong bytes were taken for right"
                except ec.RemoteError as error:
                    assert "\33" not in str(error)
                assert owner.requests > asked, what
                worker.remote_free(buffer)
                there_and_back(worker, good)


def test_tickets_that_are_another_s_fail_the_copy_alone(shared_daemon: Daemon) -> None:
    change: Change = lambda was: replace(was, ticket=bytes(32))  # noqa: E731
    with site(shared_daemon, (*BULK, "data_lane"), change) as (worker, bad, good):
        buffer = worker.remote_malloc(bad, NBYTES)
        with pytest.raises(ec.RemoteError):
            worker.remote_copy_to(buffer, pattern(0))
        worker.remote_free(buffer)
        there_and_back(worker, good)


@pytest.mark.parametrize("port", [1, 65535])
def test_a_lane_that_nobody_serves_is_done_without(port: int, shared_daemon: Daemon) -> None:
    change: Change = lambda was: replace(was, port=port)  # noqa: E731
    with site(shared_daemon, (*BULK, "data_lane"), change) as (worker, bad, good):
        there_and_back(worker, bad)
        there_and_back(worker, good)
