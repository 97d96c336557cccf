"""A v1 parent in a few hundred lines: written from the contract alone, independent of the code under test.

It speaks to a daemon and its session as a peer that knows only version 1 does. Every wait has a deadline: the
sockets carry `TIMEOUT_S`, and a session that does not answer in time fails the test.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HELLO, TASK, CONTROL, CONTROL_REPLY, COMPLETION, HEALTH, SHUTDOWN = range(1, 8)
FRAME_NAMES = {
    HELLO: "HELLO",
    TASK: "TASK",
    CONTROL: "CONTROL",
    CONTROL_REPLY: "CONTROL_REPLY",
    COMPLETION: "COMPLETION",
    HEALTH: "HEALTH",
    SHUTDOWN: "SHUTDOWN",
}
CONTROL_NAMES = {
    1: "UNREGISTER_CALLABLE",
    2: "PREPARE_REGISTER_CALLABLE",
    3: "COMMIT_REGISTER_CALLABLE",
    4: "ABORT_REGISTER_CALLABLE",
    5: "PREPARE_CALLABLE",
    6: "ALLOC_REMOTE_BUFFER",
    7: "FREE_REMOTE_BUFFER",
    8: "COPY_TO_REMOTE",
    9: "COPY_FROM_REMOTE",
    10: "EXPORT_BUFFER",
    11: "IMPORT_BUFFER",
    12: "RELEASE_IMPORT",
    13: "COMM_INIT",
    14: "ALLOC_DOMAIN",
    15: "RELEASE_DOMAIN",
}
CONTROL_NUMBERS = {name: number for number, name in CONTROL_NAMES.items()}

HEADER = struct.Struct("<4sIIQiQII")
MAGIC = b"SLR3"
FRAME_PAYLOAD_MAX = 16 * 1024 * 1024
TIMEOUT_S = 20.0
"""Longest wait for one read or write, in seconds."""

DISPATCHER, INNER = 1, 2
PYTHON_IMPORT = 3


class ProtocolError(AssertionError):
    """The peer sent what version 1 does not allow."""


def text(value: str) -> bytes:
    """`str` of the contract: u32 length, UTF-8 bytes."""
    return blob(value.encode())


def blob(value: bytes) -> bytes:
    """`blob` of the contract: u32 length, bytes."""
    return struct.pack("<I", len(value)) + value


def digest_of(target: str) -> bytes:
    """The 32 bytes that name the import target `module:qualname`."""
    module, qualname = target.split(":")
    return hashlib.sha256(struct.pack("<II", 1, PYTHON_IMPORT) + text(module) + text(qualname)).digest()


class Cursor:
    """Reads fields from the front; a field that is cut short and bytes left over are protocol errors."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ProtocolError(f"field of {count} bytes at {self._at} exceeds {len(self._data)} bytes")
        value = self._data[self._at : end]
        self._at = end
        return value

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def blob(self, limit: int) -> bytes:
        count = self.number("I")
        if count > limit:
            raise ProtocolError(f"field of {count} bytes, limit {limit}")
        return self.take(count)

    def text(self, limit: int = 1024) -> str:
        return self.blob(limit).decode("utf-8")

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise ProtocolError(f"{len(self._data) - self._at} bytes left over after the last field")


@dataclass(frozen=True)
class Frame:
    kind: int
    session_id: int
    worker_id: int
    sequence: int
    payload: bytes = b""

    @property
    def name(self) -> str:
        return FRAME_NAMES[self.kind]

    def encode(self) -> bytes:
        head = HEADER.pack(
            MAGIC, 1, self.kind, self.session_id, self.worker_id, self.sequence, len(self.payload), 0
        )
        return head + self.payload


def decode_header(head: bytes, kinds: Collection[int] = FRAME_NAMES) -> tuple[Frame, int]:
    """A frame without its payload, and the payload's length in bytes."""
    magic, version, kind, session_id, worker_id, sequence, payload_bytes, flags = HEADER.unpack(head)
    if magic != MAGIC or version != 1 or kind not in kinds or flags != 0:
        raise ProtocolError(f"frame header {head.hex()} is not of version 1")
    if payload_bytes > FRAME_PAYLOAD_MAX:
        raise ProtocolError(f"frame payload of {payload_bytes} bytes, limit {FRAME_PAYLOAD_MAX}")
    return Frame(kind, session_id, worker_id, sequence), payload_bytes


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """`count` bytes, or EOFError when the peer ends before."""
    received = bytearray()
    while len(received) < count:
        piece = connection.recv(min(count - len(received), 1 << 20))
        if not piece:
            raise EOFError(f"the peer closed after {len(received)} of {count} bytes")
        received += piece
    return bytes(received)


def receive_frame(connection: socket.socket, kinds: Collection[int] = FRAME_NAMES) -> Frame:
    frame, payload_bytes = decode_header(receive_exactly(connection, HEADER.size), kinds)
    payload = receive_exactly(connection, payload_bytes)
    return Frame(frame.kind, frame.session_id, frame.worker_id, frame.sequence, payload)


def at_end(connection: socket.socket) -> bool:
    """True when the peer has closed (waits for it, at most `TIMEOUT_S`); False when it sent a byte instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


# --- payloads -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    session_id: int
    worker_id: int
    version: int
    profile: str
    feature_flags: int
    ready: bool


def decode_hello(payload: bytes) -> Hello:
    cursor = Cursor(payload)
    hello = Hello(
        cursor.number("Q"),
        cursor.number("i"),
        cursor.number("I"),
        cursor.text(),
        cursor.number("Q"),
        cursor.number("I") == 1,
    )
    cursor.end()
    return hello


@dataclass(frozen=True)
class Reply:
    """A CONTROL_REPLY or COMPLETION, whichever came; `control` is empty for the latter."""

    kind: int
    sequence: int
    control: str
    control_version: int
    error_code: int
    error_bytes: bytes
    result: bytes

    @property
    def error(self) -> str:
        return self.error_bytes.decode("utf-8")


def decode_reply(frame: Frame, controls: Mapping[int, str] = CONTROL_NAMES) -> Reply:
    """Decodes strictly: the sequence in the payload must repeat the header's."""
    cursor = Cursor(frame.payload)
    sequence = cursor.number("Q")
    control, version, result = "", 0, b""
    if frame.kind == CONTROL_REPLY:
        control, version = controls[cursor.number("I")], cursor.number("I")
    elif frame.kind != COMPLETION:
        raise ProtocolError(f"{frame.name} where a reply was due")
    code, error = cursor.number("i"), cursor.blob(4096)
    if frame.kind == CONTROL_REPLY:
        result = cursor.blob(FRAME_PAYLOAD_MAX)
    cursor.end()
    if sequence != frame.sequence:
        raise ProtocolError(f"payload of sequence {sequence} in a frame of sequence {frame.sequence}")
    return Reply(frame.kind, sequence, control, version, code, error, result)


def control_payload(name: str, command: bytes, version: int = 1) -> bytes:
    return struct.pack("<II", CONTROL_NUMBERS[name], version) + blob(command)


def register_command(target: str, registry: int = DISPATCHER) -> bytes:
    return (
        struct.pack("<II", registry, PYTHON_IMPORT) + digest_of(target) + struct.pack("<I", 1) + text(target)
    )


def digest_command(target: str, registry: int = DISPATCHER) -> bytes:
    return struct.pack("<II", registry, PYTHON_IMPORT) + digest_of(target)


CALL_CONFIG = struct.pack("<7i", 0, 3, 0, 0, 0, 0, 0) + text("")


def tensor(shape: Sequence[int], dtype: int) -> bytes:
    """The 44-byte tensor record."""
    words = list(shape) + [0] * (5 - len(shape))
    return struct.pack("<Q5III8x", 0, *words, len(shape), dtype)


def sidecar(
    *,
    address_space: int,
    nbytes: int,
    owner_worker_id: int = 0,
    buffer_id: int = 0,
    offset: int = 0,
    remote_addr: int = 0,
    rkey: int = 0,
    generation: int = 0,
    inline_offset: int = 0,
    inline_len: int = 0,
) -> bytes:
    """The present byte and the 80-byte descriptor."""
    return b"\x01" + struct.pack(
        "<Ii9Q",
        address_space,
        owner_worker_id,
        buffer_id,
        offset,
        nbytes,
        remote_addr,
        rkey,
        generation,
        inline_offset,
        inline_len,
        0,
    )


def task_payload(
    target: str,
    tensors: Sequence[tuple[bytes, bytes]] = (),
    scalars: Sequence[int] = (),
    inline: bytes = b"",
    config: bytes = CALL_CONFIG,
) -> bytes:
    """`tensors` are pairs of a record and its sidecar."""
    return (
        digest_of(target)
        + config
        + struct.pack("<II", len(tensors), len(scalars))
        + b"".join(record for record, _ in tensors)
        + b"".join(descriptor for _, descriptor in tensors)
        + b"".join(struct.pack("<Q", scalar) for scalar in scalars)
        + blob(inline)
    )


# --- the parent's side ----------------------------------------------------------------------------------


def manifest(
    *,
    session_id: int = 0x1122334455667788,
    worker_id: int = 0,
    targets: Sequence[str] = (),
    **changes: Any,
) -> dict[str, Any]:
    """A bootstrap request as a v1 parent writes it; `targets` go to the task dispatcher; `changes` replace keys."""
    request: dict[str, Any] = {
        "session_id": session_id,
        "worker_id": worker_id,
        "parent_worker_level": 4,
        "remote_worker_level": 3,
        "platform": "a2a3sim",
        "transport": "sim",
        "runtime": "tensormap_and_ringbuffer",
        "device_ids": [],
        "num_sub_workers": 0,
        "heap_ring_size": None,
        "session_timeout_s": 20.0,
        "listen_host": "127.0.0.1",
        "connect_host": "127.0.0.1",
        "remote_task_dispatcher": [
            {
                "hashid": digest_of(target).hex(),
                "kind": "PYTHON_IMPORT",
                "target_registry": "REMOTE_TASK_DISPATCHER",
                "target": target,
            }
            for target in targets
        ],
        "inner_l3_worker": [],
        "feature_flags": [],
    }
    request.update(changes)
    return request


def bootstrap(address: tuple[str, int], request: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
    """One connection to the daemon: request, reply, close."""
    with socket.create_connection(address, timeout_s) as connection:
        connection.sendall(text(json.dumps(request, sort_keys=True)))
        count = struct.unpack("<I", receive_exactly(connection, 4))[0]
        if count > FRAME_PAYLOAD_MAX:
            raise ProtocolError(f"bootstrap reply of {count} bytes, limit {FRAME_PAYLOAD_MAX}")
        reply = json.loads(receive_exactly(connection, count))
        if not isinstance(reply, dict):
            raise ProtocolError(f"bootstrap reply is {type(reply).__name__}, not an object")
        return reply


class V1Parent:
    """Both lanes of one session: HELLO is read and checked, then one request at a time."""

    def __init__(self, request: dict[str, Any], reply: dict[str, Any], *, health: bool = True) -> None:
        if not reply.get("ok"):
            raise ProtocolError(f"the session did not start: {reply.get('error')}")
        self.session_id = int(request["session_id"])
        self.worker_id = int(request["worker_id"])
        self.sequence = 0
        self.pid = reply.get("pid")
        self.health: socket.socket | None = None
        self.command = socket.create_connection((reply["command_host"], reply["command_port"]), TIMEOUT_S)
        try:
            self.hello_frame = receive_frame(self.command)
            if self.hello_frame.kind != HELLO:
                raise ProtocolError(f"{self.hello_frame.name} where HELLO was due")
            self.hello = self.decode_hello(self.hello_frame.payload)
            if health:
                self.health = socket.create_connection(
                    (reply["health_host"], reply["health_port"]), TIMEOUT_S
                )
        except BaseException:
            self.close()
            raise

    # What a parent that knows more than version 1 does otherwise.

    def decode_hello(self, payload: bytes) -> Hello:
        return decode_hello(payload)

    def decode_reply(self, frame: Frame) -> Reply:
        return decode_reply(frame)

    def receive(self) -> Frame:
        return receive_frame(self.command)

    def send(self, kind: int, payload: bytes = b"", sequence: int | None = None) -> int:
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        self.command.sendall(Frame(kind, self.session_id, self.worker_id, sequence, payload).encode())
        return sequence

    def reply(self) -> Reply:
        frame = self.receive()
        if (frame.session_id, frame.worker_id) != (self.session_id, self.worker_id):
            raise ProtocolError(f"reply of session {frame.session_id}, worker {frame.worker_id}")
        return self.decode_reply(frame)

    def control(self, name: str, command: bytes = b"", sequence: int | None = None) -> Reply:
        sent = self.send(CONTROL, control_payload(name, command), sequence)
        reply = self.reply()
        if (reply.kind, reply.sequence, reply.control) != (CONTROL_REPLY, sent, name):
            raise ProtocolError(f"{reply} answers {name} of sequence {sent}")
        return reply

    def task(self, payload: bytes, sequence: int | None = None) -> Reply:
        sent = self.send(TASK, payload, sequence)
        reply = self.reply()
        if (reply.kind, reply.sequence) != (COMPLETION, sent):
            raise ProtocolError(f"{reply} answers the task of sequence {sent}")
        return reply

    def register(self, target: str) -> None:
        for name, command in (
            ("PREPARE_REGISTER_CALLABLE", register_command(target)),
            ("COMMIT_REGISTER_CALLABLE", digest_command(target)),
        ):
            reply = self.control(name, command)
            assert reply.error_code == 0, reply.error

    def alloc(self, nbytes: int) -> bytes:
        """Allocates and returns the key of the buffer: buffer id and generation, 16 bytes."""
        reply = self.control("ALLOC_REMOTE_BUFFER", struct.pack("<Q", nbytes))
        assert reply.error_code == 0, reply.error
        assert len(reply.result) == 56, reply.result.hex()
        return reply.result[4:20]

    def _copy_header(self, key: bytes, offset: int, size: int) -> bytes:
        return struct.pack("<i", self.worker_id) + key + struct.pack("<QQ", offset, size)

    def copy_to(self, key: bytes, data: bytes, offset: int = 0) -> Reply:
        return self.control("COPY_TO_REMOTE", self._copy_header(key, offset, len(data)) + data)

    def copy_from(self, key: bytes, size: int, offset: int = 0) -> Reply:
        return self.control("COPY_FROM_REMOTE", self._copy_header(key, offset, size))

    def free(self, key: bytes) -> Reply:
        return self.control("FREE_REMOTE_BUFFER", struct.pack("<i", self.worker_id) + key)

    def read_health(self) -> Frame:
        assert self.health is not None, "the health lane was not opened"
        return receive_frame(self.health)

    def close(self) -> None:
        self.command.close()
        if self.health is not None:
            self.health.close()


@contextlib.contextmanager
def v1_session(
    address: tuple[str, int], request: dict[str, Any], *, health: bool = True
) -> Iterator[V1Parent]:
    """Starts a session through the daemon at `address` and closes both lanes at the end."""
    parent = V1Parent(request, bootstrap(address, request), health=health)
    try:
        yield parent
    finally:
        parent.close()
