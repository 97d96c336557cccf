"""A parent that negotiates an extension and breaks its rules loses its own session, or gets an error; nobody else notices.

Written from docs/protocol.md. Every case is driven over the extension with what it needs, and over all. What a session does
wrong is in runtime/tests/remote_session/extensions.rs, and for bytes around the command lane in test_bad_bulk.py.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import echelon as ec
import pytest
from testbed import extensions, wire
from testbed.daemon import Daemon
from testbed.extensions import CONFIGURATIONS, EXTENSIONS, FAILED_TASK, SKIPPED, Parent
from testbed.peer_lane import Lane, TcpDescriptor, export
from testbed.proxy import DaemonProxy

NOOP, INCREMENT, FOR_EVER = (
    "bench_callables:noop",
    "tensor_callables:increment",
    "topology_tasks:orch_for_ever",
)
TARGETS = [NOOP, INCREMENT, FOR_EVER]
PROTOCOL = Path(__file__).parents[1] / "docs" / "protocol.md"
MAX64 = 2**64 - 1
FULL_FRAME = 16 << 20

Break = Callable[[Parent], object]


def over(name: str) -> list[str]:
    """The configurations with an extension: what it needs and itself, and all."""
    return [name, "all"]


@pytest.fixture
def address(shared_daemon: Daemon) -> tuple[str, int]:
    return (shared_daemon.host, shared_daemon.port)


@pytest.fixture
def witness(address: tuple[str, int]) -> Iterator[Parent]:
    """Another session of the same daemon, with every extension; at the end it works as before."""
    with extensions.session(address, CONFIGURATIONS["all"], session_id=12, targets=TARGETS) as parent:
        key = parent.alloc(8)
        yield parent
        assert parent.task(wire.task_payload(NOOP)).error_code == 0
        assert parent.copy_to(key, b"unharmed").error_code == 0
        assert parent.copy_from(key, 8).result == b"unharmed"


def noop() -> bytes:
    return wire.task_payload(NOOP)


def test_the_table_of_extensions_is_that_of_the_protocol_and_our_parent_offers_them(
    shared_daemon: Daemon,
) -> None:
    """So that an extension that is added is driven through every test that goes over all of them."""
    row = re.compile(r"^\| (\d+) \| `(\w+)` \|[^|]*\|([^|]*)\|[^|]*\|[^|]*\| (yes)? ?\|$", re.MULTILINE)
    done = {
        name: (int(bit), tuple(re.findall(r"`(\w+)`", needs)))
        for bit, name, needs, is_done in row.findall(PROTOCOL.read_text())
        if is_done
    }
    assert done == {name: (extension.bit, extension.needs) for name, extension in EXTENSIONS.items()}
    with DaemonProxy((shared_daemon.host, shared_daemon.port)) as proxy:
        worker = ec.Worker(level=4)
        worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=proxy.endpoint))
        with worker:
            assert set(map(str, proxy.requests[0]["feature_flags"])) == set(EXTENSIONS)  # type: ignore[call-overload]


# --- what ends the session ------------------------------------------------------------------------------------


def _sequence(change: Callable[[int], int]) -> Break:
    """One good task, then one whose sequence is not the next."""

    def act(parent: Parent) -> None:
        assert parent.task(noop()).error_code == 0
        parent.raw(wire.TASK, parent.adapt(wire.TASK, noop()), sequence=change(parent.sequence))

    return act


def _too_many_bytes(parent: Parent) -> None:
    """A task that never ends, then more payload for its buffer than the session gave credit for."""
    assert parent.credits is not None
    key = parent.alloc(FULL_FRAME)
    buffer, generation = struct.unpack("<QQ", key)
    path = wire.sidecar(address_space=1, nbytes=9, inline_len=9)
    held = wire.sidecar(
        address_space=2,
        owner_worker_id=parent.worker_id,
        buffer_id=buffer,
        generation=generation,
        nbytes=FULL_FRAME,
    )
    tensors = [(wire.tensor([9], 5), path), (wire.tensor([FULL_FRAME], 5), held)]
    parent.send(wire.TASK, wire.task_payload(FOR_EVER, tensors, (), b"/dev/null"))
    size = FULL_FRAME - 48
    header = struct.pack("<i", parent.worker_id) + key + struct.pack("<QQ", 0, size)
    copy = wire.control_payload("COPY_TO_REMOTE", header + bytes(size))
    # The last of them may find the lane closed.
    try:
        for _ in range(parent.credits.max_bytes // FULL_FRAME + 1):
            parent.send(wire.CONTROL, copy)
    except (BrokenPipeError, ConnectionResetError):
        pass


def _conditions(*named: int, before: int = 2) -> Break:
    """So many good tasks, then one with these conditions."""

    def act(parent: Parent) -> None:
        for _ in range(before):
            assert parent.task(noop()).error_code == 0
        assert parent.control("COMM_INIT").error_code == 1
        parent.conditions = named
        parent.send(wire.TASK, noop())

    return act


def _cut_conditions(parent: Parent) -> None:
    parent.raw(wire.TASK, struct.pack("<IQ", 2, 1))


def _health(kind: int = wire.HEALTH, ahead: int = 0, payload: bytes = b"", **changes: int) -> Break:
    """An answer on the health lane with something wrong."""

    def act(parent: Parent) -> None:
        assert parent.health is not None
        got = parent.read_health()
        fields = {"session_id": got.session_id, "worker_id": got.worker_id, "sequence": got.sequence + ahead}
        parent.health.sendall(wire.Frame(kind, **{**fields, **changes}, payload=payload).encode())

    return act


def _health_twice(parent: Parent) -> None:
    assert parent.health is not None
    frame = parent.read_health().encode()
    parent.health.sendall(frame + frame)


def _garbled_health(parent: Parent) -> None:
    assert parent.health is not None
    parent.health.sendall(b"X" * 40)


ENDING: list[tuple[str, str, Break]] = [
    ("pipelining", "repeated sequence", _sequence(lambda last: last)),
    ("pipelining", "sequence 0", _sequence(lambda last: 0)),
    ("pipelining", "sequence left out", _sequence(lambda last: last + 2)),
    ("pipelining", "last sequence", _sequence(lambda last: MAX64)),
    ("pipelining", "more bytes than credit", _too_many_bytes),
    ("conditions", "on no task", _conditions(0)),
    ("conditions", "on a control", _conditions(3)),
    ("conditions", "on itself", _conditions(4)),
    ("conditions", "on a later task", _conditions(5)),
    ("conditions", "on the last number", _conditions(MAX64)),
    ("conditions", "repeated", _conditions(1, 1)),
    ("conditions", "descending", _conditions(2, 1)),
    ("conditions", "too many", _conditions(*range(1, 18), before=17)),
    ("conditions", "too long ago", _conditions(1, before=257)),
    ("conditions", "cut", _cut_conditions),
    ("health_echo", "another session", _health(session_id=13)),
    ("health_echo", "another worker", _health(worker_id=9)),
    ("health_echo", "a frame that was not sent", _health(ahead=1000)),
    ("health_echo", "sequence 0", _health(sequence=0)),
    ("health_echo", "a payload", _health(payload=b"x")),
    ("health_echo", "another frame", _health(kind=wire.SHUTDOWN)),
    ("health_echo", "twice", _health_twice),
    ("health_echo", "garbage", _garbled_health),
]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in ENDING}))
def test_what_breaks_an_extension_ends_its_own_session(
    name: str, address: tuple[str, int], witness: Parent
) -> None:
    for configuration in over(name):
        for extension, what, act in ENDING:
            if extension != name:
                continue
            with extensions.session(address, CONFIGURATIONS[configuration], targets=TARGETS) as parent:
                act(parent)
                assert wire.at_end(parent.command), f"{name}, {what}: the session goes on"
            # Between two of them, not only at the end.
            assert witness.task(noop()).error_code == 0, what


# --- what is answered with an error ---------------------------------------------------------------------------


def _fence(
    worker: int = 0, buffer: int = 1, generation: int = 1, importer: int = 5, lasting: int = 1
) -> bytes:
    return struct.pack("<iQQQI", worker, buffer, generation, importer, lasting)


REFUSED: list[tuple[str, str, bytes]] = [
    ("timed_completion", "COLLECT_TRACE", b"\0"),
    ("timed_completion", "COLLECT_TRACE", b"{}"),
    ("peer_fence", "PEER_FENCE", _fence(worker=-1)),
    ("peer_fence", "PEER_FENCE", _fence(worker=7)),
    ("peer_fence", "PEER_FENCE", _fence(buffer=0)),
    ("peer_fence", "PEER_FENCE", _fence(generation=0)),
    ("peer_fence", "PEER_FENCE", _fence(importer=0)),
    ("peer_fence", "PEER_FENCE", _fence(lasting=2)),
    ("peer_fence", "PEER_FENCE", _fence(lasting=2**32 - 1)),
    *(("peer_fence", "PEER_FENCE", _fence()[:cut]) for cut in range(32)),
    ("peer_fence", "PEER_FENCE", _fence() + b"\0"),
    ("staged_blobs", "STAGE_BEGIN", bytes(40)),
    ("staged_blobs", "STAGE_BEGIN", struct.pack("<Q", MAX64) + bytes(32)),
    ("staged_blobs", "STAGE_BEGIN", struct.pack("<Q", 8) + bytes(31)),
    ("staged_blobs", "STAGE_APPEND", wire.blob(b"nobody's") + struct.pack("<Q", 0) + wire.blob(b"x")),
    ("staged_blobs", "STAGE_APPEND", wire.blob(b"nobody's")),
    ("staged_blobs", "STAGE_SEAL", wire.blob(b"nobody's")),
    ("staged_blobs", "STAGE_SEAL", wire.blob(b"")),
    ("staged_blobs", "STAGE_SEAL", wire.blob(b"x" * 1025)),
    ("staged_blobs", "STAGE_DROP", b"\xff\xff\xff\xff"),
    ("serialized_callables", "PREPARE_REGISTER_CALLABLE", b""),
    *(
        (
            "serialized_callables",
            "PREPARE_REGISTER_CALLABLE",
            struct.pack("<II", registry, 2) + bytes(32) + struct.pack("<I", 1) + wire.blob(envelope),
        )
        for registry in (1, 2)
        for envelope in (
            b"",
            b"SPYC",
            b"SPYC\1\1\0\0" + struct.pack("<Q", MAX64) + b"x",
            b"SPYC\2\1\0\0" + struct.pack("<Q", 1) + b"x",
            b"SPYC\1\1\1\0" + struct.pack("<Q", 1) + b"x",
            b"SPYC\1\1\0\0" + struct.pack("<Q", 1) + b".",
        )
    ),
]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in REFUSED}))
def test_a_control_of_an_extension_with_a_wrong_field_is_refused(
    name: str, address: tuple[str, int], witness: Parent
) -> None:
    for configuration in over(name):
        with extensions.session(address, CONFIGURATIONS[configuration], targets=TARGETS) as parent:
            for extension, control, command in REFUSED:
                if extension == name:
                    reply = parent.extended(control, command)
                    assert reply.error_code == 1 and reply.error, f"{control} {command.hex()} was taken"
            assert parent.task(noop()).error_code == 0


def on_buffer(parent: Parent, key: bytes, flags: int, dtype: int = 5, nbytes: int = 8) -> bytes:
    """A task that adds 1 to the buffer, with these flags in its descriptor."""
    buffer, generation = struct.unpack("<QQ", key)
    place = wire.sidecar(
        address_space=2,
        owner_worker_id=parent.worker_id,
        buffer_id=buffer,
        generation=generation,
        nbytes=nbytes,
    )
    payload = wire.task_payload(INCREMENT, [(wire.tensor([nbytes], dtype), place)], [1])
    return extensions.tagged(payload, flags)


def run_raw(parent: Parent, payload: bytes) -> wire.Reply:
    """A task whose tags are the test's own."""
    front = struct.pack("<I", 0) if "conditions" in parent.features else b""
    parent.raw(wire.TASK, front + payload)
    return parent.reply()


def test_what_a_task_may_not_say_fails_it_alone(
    features: tuple[str, ...], address: tuple[str, int], witness: Parent
) -> None:
    """Tags and element types, negotiated or not: a failed completion, a buffer as it was, a session that goes on."""
    tags = "task_tags" in features
    good = extensions.TAGGED | extensions.INOUT if tags else 0
    with extensions.session(address, features, targets=TARGETS) as parent:
        key = parent.alloc(8)
        wrong = [0, 1, 5, 13, 15, 8 | 16, 8 | 1 << 63, MAX64] if tags else [1, 8, 10, 16, 1 << 63]
        for flags in wrong:
            assert run_raw(parent, on_buffer(parent, key, flags)).error_code == 1, flags
            assert parent.failure_kind in (0, FAILED_TASK)
        dtypes = [13, 255, 2**32 - 1] + ([] if "float64" in features else [12])
        for dtype in dtypes:
            assert run_raw(parent, on_buffer(parent, key, good, dtype)).error_code == 1, dtype
        if "float64" in features:
            # 8 elements of 8 bytes are not what the descriptor has.
            assert run_raw(parent, on_buffer(parent, key, good, 12)).error_code == 1
        assert parent.copy_from(key, 8).result == bytes(8), "a refused task ran"
        assert run_raw(parent, on_buffer(parent, key, good)).error_code == 0
        assert parent.copy_from(key, 8).result == b"\1" * 8


def test_a_task_that_names_a_failed_one_is_skipped_and_so_is_what_names_it(
    address: tuple[str, int], witness: Parent
) -> None:
    for configuration in over("conditions"):
        with extensions.session(address, CONFIGURATIONS[configuration], targets=TARGETS) as parent:
            assert parent.task(b"no task").error_code == 1
            for named in (1, 2, 3):
                parent.conditions = (named,)
                assert parent.task(noop()).error_code == 1
                assert parent.failure_kind == SKIPPED
            parent.conditions = ()
            assert parent.task(noop()).error_code == 0


def test_frames_that_no_parent_sends_are_refused_or_end_their_session(
    features: tuple[str, ...], address: tuple[str, int], witness: Parent
) -> None:
    """Also those of an extension that was negotiated, on the lane where they do not belong."""
    for kind in (extensions.TIMED_COMPLETION, *range(65, 72), 0, 8, 63, 2**32 - 1, wire.COMPLETION):
        with extensions.session(address, features, targets=TARGETS) as parent:
            parent.raw(kind, bytes(12))
            try:
                assert parent.reply().error_code == 1, kind
            except (EOFError, ConnectionResetError):
                continue
            assert parent.task(noop()).error_code == 0


# --- lanes to importers ---------------------------------------------------------------------------------------


def _dial(descriptor: TcpDescriptor) -> Lane:
    return Lane(socket.create_connection((descriptor.host, descriptor.port), wire.TIMEOUT_S), descriptor)


@pytest.mark.parametrize("name", ["peer_fetch", "data_lane", "same_host", "peer_fence"])
def test_a_lane_to_importers_that_breaks_its_rules_ends_alone(
    name: str, address: tuple[str, int], witness: Parent
) -> None:
    """Wrong tickets, beyond the range, another identity, what is no request, a fenced importer, an end amid bytes."""
    for configuration in over(name):
        with extensions.session(
            address, CONFIGURATIONS[configuration], session_id=0x51234, targets=TARGETS
        ) as parent:
            key = parent.alloc(64)
            parent.copy_to(key, bytes(range(64)))
            reads, both = export(parent, key, 8, 16, 1), export(parent, key, 8, 16, 3)
            with _dial(reads) as lane:
                for change, reason in (
                    ({"ticket": bytes(32)}, 1),
                    ({"ticket": reads.ticket[:31] + bytes([reads.ticket[31] ^ 1])}, 1),
                    ({"buffer": 99}, 2),
                    ({"generation": 9}, 2),
                    ({"offset": 7}, 3),
                    ({"offset": 0, "nbytes": 64}, 3),
                    ({"offset": 23, "nbytes": 2}, 3),
                    ({"offset": MAX64 - 9, "nbytes": 9}, 3),
                ):
                    assert lane.read(**change) == reason, change  # type: ignore[arg-type]
                    assert lane.write(b"x" * change.get("nbytes", 1), **change) == reason, change  # type: ignore[arg-type, operator]
                assert lane.write(b"x") == 4, "reading only"
                assert lane.read(nbytes=16) == bytes(range(8, 24))
            for spoil in (
                lambda lane: lane.read(session_id=77),
                lambda lane: lane.read(worker_id=9),
            ):
                with _dial(both) as lane:
                    assert spoil(lane) == 5 and lane.ended()
            for raw in (
                b"GET / HTTP/1.1\r\n\r\n" + bytes(40),
                both.frame(extensions.PEER_READ, bytes(63)),
                both.frame(extensions.PEER_READ, both.range(nbytes=0)),
                both.frame(extensions.PEER_READ, both.range(nbytes=2**20 + 1)),
                both.frame(extensions.PEER_READ, both.range() + b"\0"),
                both.frame(extensions.PEER_WRITE, both.range(nbytes=4) + b"abc"),
                both.frame(extensions.PEER_WRITE, both.range(nbytes=4) + b"abcde"),
                both.frame(extensions.PEER_DATA, both.range()),
                both.frame(wire.TASK, noop()),
            ):
                with _dial(both) as lane:
                    lane.connection.sendall(raw)
                    assert lane.ended(), raw
            with _dial(both) as lane:
                # It ends within its data: what is not whole is not in the buffer, whatever of it has arrived.
                lane.connection.sendall(
                    both.frame(extensions.PEER_WRITE, both.range(nbytes=16) + b"x" * 16)[:-9]
                )
                lane.connection.shutdown(socket.SHUT_WR)
                assert lane.ended()
            if "peer_fence" in parent.features:
                with _dial(both) as fenced, _dial(both) as other:
                    assert fenced.read(mark=0x77) == other.read(mark=0x88)
                    command = struct.pack("<i", parent.worker_id) + key + struct.pack("<QI", 0x77, 1)
                    assert parent.extended("PEER_FENCE", command).error_code == 0
                    assert fenced.ended(), "a fenced importer is served"
                    assert isinstance(other.read(mark=0x88), bytes)
                with _dial(both) as again:
                    assert not isinstance(again.write(b"x", mark=0x77), bytes)
            kept = parent.copy_from(key, 64).result
            assert kept[:8] + kept[24:] == bytes([*range(8), *range(24, 64)]), (
                "bytes beyond the export changed"
            )
            assert parent.task(noop()).error_code == 0
