"""Every control with every field wrong, against a real session: an error that says why, nothing changed, nobody concerned.

Written from the contract's layouts (slr3-v1 §5). Each command is a valid one with a few bytes replaced; that the
valid one works before and after is a part of the test (R-034, R-067, R-114). No extension changes any of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from testbed import extensions, wire
from testbed.daemon import Daemon
from testbed.extensions import Parent
from testbed.wire import DISPATCHER, INNER

TARGET, OTHER = "bench_callables:noop", "casemod:notcallable"
SIZE = 64
WORKER, OWNER = 1, 2
MAX32, MAX64 = 2**32 - 1, 2**64 - 1

Wrong = list[tuple[str, int, bytes]]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def i32(value: int) -> bytes:
    return struct.pack("<i", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def digest_fields(registry: int) -> Wrong:
    """What no DigestCommand may hold; `registry` is the legal number that does not fit the callable."""
    return [
        ("registry 0", 0, u32(0)),
        ("registry 3", 0, u32(3)),
        ("registry of another kind", 0, u32(registry)),
        ("kind 0", 4, u32(0)),
        ("kind 4", 4, u32(4)),
        ("kind CHIP_CALLABLE", 4, u32(1)),
        ("unknown digest", 8, bytes(32)),
    ]


KEY: Wrong = [
    ("worker 7", 0, i32(7)),
    ("worker -1", 0, i32(-1)),
    ("buffer 0", 4, u64(0)),
    ("unknown buffer", 4, u64(999)),
    ("generation 0", 12, u64(0)),
    ("stale generation", 12, u64(2)),
]
COPY: Wrong = [
    *KEY,
    ("past the end", 20, u64(SIZE - 3)),
    ("offset that wraps", 20, u64(MAX64)),
    ("another size", 28, u64(SIZE + 1)),
    ("size that wraps", 28, u64(MAX64)),
]
EXPORT: Wrong = [
    *KEY,
    ("past the end", 20, u64(SIZE + 1)),
    ("offset that wraps", 20, u64(MAX64)),
    ("0 bytes", 28, u64(0)),
    ("too many bytes", 28, u64(SIZE + 1)),
    ("bytes that wrap", 28, u64(MAX64)),
    ("access 0", 36, u32(0)),
    ("access 4", 36, u32(4)),
    ("profile too long", 40, u32(129)),
    ("profile of more bytes than there are", 40, u32(MAX32)),
    ("another profile", 44, b"rdm"),
    ("reserved word", 47, u32(1)),
]
IMPORT: Wrong = [
    ("worker 7", 0, i32(7)),
    ("worker -1", 0, i32(-1)),
    ("access 0", 4, u32(0)),
    ("more access than exported", 4, u32(3)),
    ("owner -1", 8, i32(-1)),
    ("buffer 0", 12, u64(0)),
    ("generation 0", 20, u64(0)),
    ("address space 2", 28, u32(2)),
    ("range that wraps", 32, u64(MAX64)),
    ("0 bytes", 40, u64(0)),
    ("more bytes than the segment", 40, u64(2**40)),
    ("export 0", 48, u64(0)),
    ("access 8 exported", 80, u32(8)),
    ("another profile", 88, b"rdm"),
    ("a path for a name", 95, b"/../"),
    ("reserved word", -4, u32(1)),
    ("reserved word of the export", -8, u32(1)),
]
RELEASE: Wrong = [
    ("worker 7", 0, i32(7)),
    ("worker -1", 0, i32(-1)),
    ("another owner", 4, i32(5)),
    ("another buffer", 8, u64(999)),
    ("another generation", 16, u64(9)),
    ("unknown import", 24, u64(999)),
    ("import 0", 24, u64(0)),
    ("reserved word", 32, u32(1)),
]
REGISTER: Wrong = [
    *[field for field in digest_fields(7) if field[0] != "kind CHIP_CALLABLE"],
    ("kind CHIP_CALLABLE", 4, u32(1)),
    ("kind PYTHON_SERIALIZED", 4, u32(2)),
    ("payload version 0", 40, u32(0)),
    ("payload version 2", 40, u32(2)),
    ("more payload than there is", 44, u32(MAX32)),
    ("another target", 48, b"x"),
]


@pytest.fixture
def witness(shared_daemon: Daemon, features: tuple[str, ...]) -> Iterator[Parent]:
    """Another session of the same daemon, the owner of what is imported; at the end it works as before."""
    address = (shared_daemon.host, shared_daemon.port)
    with extensions.session(address, features, session_id=12, worker_id=OWNER, targets=[TARGET]) as parent:
        yield parent
        assert parent.task(wire.task_payload(TARGET)).error_code == 0


@pytest.fixture
def session(shared_daemon: Daemon, features: tuple[str, ...]) -> Iterator[Parent]:
    """The session that is asked for what cannot be."""
    address = (shared_daemon.host, shared_daemon.port)
    with extensions.session(address, features, session_id=11, worker_id=WORKER) as parent:
        yield parent


def refused(parent: Parent, name: str, valid: bytes, fields: Wrong) -> None:
    """Each wrong field, each length that is too short and one that is too long: an error with a text, every time."""
    for what, at, wrong in fields:
        at %= len(valid)
        command = valid[:at] + wrong + valid[at + len(wrong) :]
        assert command != valid and len(command) == len(valid), what
        reply = parent.control(name, command)
        assert reply.error_code == 1 and reply.error, f"{name} with {what} was taken"
    for cut in range(len(valid)):
        assert parent.control(name, valid[:cut]).error_code == 1, f"{name} of {cut} bytes was taken"
    assert parent.control(name, valid + b"\0").error_code == 1, f"{name} with a byte more was taken"


def done(parent: Parent, name: str, command: bytes) -> bytes:
    reply = parent.control(name, command)
    assert reply.error_code == 0, f"{name}: {reply.error}"
    return reply.result


def export_command(worker: int, key: bytes, access: int) -> bytes:
    return i32(worker) + key + u64(8) + u64(16) + u32(access) + wire.text("sim") + u32(0)


def test_buffer_controls_with_a_wrong_field_are_refused_r114(session: Parent, witness: Parent) -> None:
    for nbytes in (0, 2**45, 2**63, MAX64):
        assert session.control("ALLOC_REMOTE_BUFFER", u64(nbytes)).error_code == 1, nbytes
    for cut in (0, 7, 9):
        assert session.control("ALLOC_REMOTE_BUFFER", bytes([1]) * cut).error_code == 1
    key, data = session.alloc(SIZE), bytes(range(SIZE))
    assert key[:8] == u64(1), "a refused allocation took an id"
    head = i32(WORKER) + key + u64(0) + u64(SIZE)
    done(session, "COPY_TO_REMOTE", head + data)
    refused(session, "COPY_TO_REMOTE", head + bytes(SIZE), COPY)
    refused(session, "COPY_FROM_REMOTE", head, COPY)
    refused(session, "EXPORT_BUFFER", export_command(WORKER, key, 3), EXPORT)
    # Freeing what is not there succeeds by the contract; freeing for another worker does not.
    refused(session, "FREE_REMOTE_BUFFER", i32(WORKER) + key, KEY[:2])
    assert done(session, "COPY_FROM_REMOTE", head) == data, "a refused control changed the buffer"
    done(session, "FREE_REMOTE_BUFFER", i32(WORKER) + key)


def test_controls_of_imports_with_a_wrong_field_are_refused_r114(session: Parent, witness: Parent) -> None:
    key = witness.alloc(SIZE)
    witness.copy_to(key, bytes(range(SIZE)))
    export = done(witness, "EXPORT_BUFFER", export_command(OWNER, key, 1))
    ask = i32(WORKER) + u32(1) + export + u32(0)
    refused(session, "IMPORT_BUFFER", ask, IMPORT)
    imported = done(session, "IMPORT_BUFFER", ask)
    assert imported[24:32] == u64(1), "a refused import took an id"
    release = imported[:32] + u32(0)
    refused(session, "RELEASE_IMPORT", release, RELEASE)
    done(session, "RELEASE_IMPORT", release)
    assert witness.copy_from(key, SIZE).result == bytes(range(SIZE))


def test_registrations_with_a_wrong_field_are_refused_r104(session: Parent, witness: Parent) -> None:
    refused(session, "PREPARE_REGISTER_CALLABLE", wire.register_command(TARGET), REGISTER)
    assert session.control("COMMIT_REGISTER_CALLABLE", wire.digest_command(TARGET)).error_code == 1, (
        "prepared all the same"
    )
    done(session, "PREPARE_REGISTER_CALLABLE", wire.register_command(TARGET))
    refused(session, "COMMIT_REGISTER_CALLABLE", wire.digest_command(TARGET), digest_fields(INNER))
    done(session, "COMMIT_REGISTER_CALLABLE", wire.digest_command(TARGET))
    refused(session, "PREPARE_CALLABLE", wire.digest_command(TARGET), digest_fields(INNER))
    # Undoing what is not there succeeds by the contract: only what cannot be read is wrong, nothing reaches the live one.
    unreadable = [
        field
        for field in digest_fields(INNER)
        if field[0] in ("registry 0", "registry 3", "kind 0", "kind 4")
    ]
    for name in ("ABORT_REGISTER_CALLABLE", "UNREGISTER_CALLABLE"):
        refused(session, name, wire.digest_command(TARGET), unreadable)
        done(session, name, wire.digest_command(OTHER, DISPATCHER))
    assert session.task(wire.task_payload(TARGET)).error_code == 0, "a refused control took the callable away"


def test_a_control_that_is_none_is_answered_as_the_contract_says_r067(
    session: Parent, witness: Parent
) -> None:
    known = {number for number, (name, _) in extensions.CONTROLS.items() if name in session.features}
    numbers = {0, 16, 63, *extensions.CONTROLS, 70, 80, MAX32} - known
    for number, version in (*((number, 1) for number in sorted(numbers)), (6, 0)):
        sent = session.send(wire.CONTROL, struct.pack("<II", number, version) + wire.blob(u64(8)))
        reply = session.reply()
        assert (reply.sequence, reply.control, reply.control_version) == (sent, "PREPARE_CALLABLE", 1), number
        assert reply.error_code == 1 and reply.error
    for name in ("COMM_INIT", "ALLOC_DOMAIN", "RELEASE_DOMAIN"):
        assert (
            session.control(name, b"anything").error == f"unsupported reserved remote domain control {name}"
        )
    # No control has run: the first buffer is number 1.
    assert session.alloc(8)[:8] == u64(1)
