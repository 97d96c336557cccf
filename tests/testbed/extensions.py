"""What is negotiated beyond version 1, and a parent that negotiates any of it: written from docs/protocol.md alone.

`CONFIGURATIONS` are the sets of extensions over which a negative test is driven: none, each with what it needs, all.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import procfs, wire
from .wait import eventually
from .wire import Cursor, Frame, Hello, ProtocolError, Reply, V1Parent


@dataclass(frozen=True)
class Extension:
    bit: int
    needs: tuple[str, ...] = ()


EXTENSIONS = {
    "pipelining": Extension(0),
    "task_tags": Extension(1),
    "conditions": Extension(2, ("pipelining", "timed_completion")),
    "timed_completion": Extension(3),
    "concurrent_control": Extension(5, ("pipelining",)),
    "data_lane": Extension(6, ("peer_fetch",)),
    "same_host": Extension(7, ("peer_fetch",)),
    "peer_fetch": Extension(8),
    "serialized_callables": Extension(13),
    "health_echo": Extension(14),
    "float64": Extension(15),
    "staged_blobs": Extension(16),
    "peer_fence": Extension(17, ("peer_fetch",)),
}
"""Those that are done, by the table of docs/protocol.md, which test_bad_extensions.py compares."""

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "v1": (),
    **{name: (*extension.needs, name) for name, extension in EXTENSIONS.items()},
    "all": tuple(EXTENSIONS),
}

ARGUMENTS = ("--host", "127.0.0.1", "--port", "0", "--insecure-loopback", "--allow-serialized")
"""Of a daemon whose sessions accept every one of them."""

TIMED_COMPLETION = 64
PEER_READ, PEER_WRITE, PEER_DATA, PEER_DONE, PEER_REFUSED = range(65, 70)
KINDS = (*wire.FRAME_NAMES, TIMED_COMPLETION)
CONTROLS = {
    64: ("timed_completion", "COLLECT_TRACE"),
    75: ("staged_blobs", "STAGE_BEGIN"),
    76: ("staged_blobs", "STAGE_APPEND"),
    77: ("staged_blobs", "STAGE_SEAL"),
    78: ("staged_blobs", "STAGE_DROP"),
    79: ("peer_fence", "PEER_FENCE"),
}
"""Controls of extensions: the extension and the name of each number."""

NAMES = wire.CONTROL_NAMES | {number: name for number, (_, name) in CONTROLS.items()}
NUMBERS = {name: number for number, name in NAMES.items()}

FAILED_TASK, FAILED_ENDPOINT, SKIPPED = 1, 2, 3
HOST_INLINE = 1
TAGGED, INPUT, INOUT = 8, 0, 2


def bits(features: Sequence[str]) -> int:
    return sum(1 << EXTENSIONS[name].bit for name in features)


@dataclass(frozen=True)
class Credits:
    max_commands: int
    max_bytes: int
    max_frame_bytes: int


class Parent(V1Parent):
    """A parent that has offered `feature_flags` and uses what it has got; the session must accept all of it."""

    def __init__(self, request: dict[str, Any], reply: dict[str, Any], *, health: bool = True) -> None:
        self.features = tuple(request["feature_flags"])
        self.credits: Credits | None = None
        self.failure_kind = 0
        """That of the last completion, with `timed_completion`."""
        self.conditions: tuple[int, ...] = ()
        """What the next tasks name, with `conditions`."""
        super().__init__(request, reply, health=health)
        assert self.hello.feature_flags == bits(self.features), self.hello

    def decode_hello(self, payload: bytes) -> Hello:
        if "pipelining" not in self.features:
            return wire.decode_hello(payload)
        self.credits = Credits(*struct.unpack("<IQI", payload[-16:]))
        return wire.decode_hello(payload[:-16])

    def receive(self) -> Frame:
        return wire.receive_frame(self.command, KINDS)

    def decode_reply(self, frame: Frame) -> Reply:
        if (frame.kind == TIMED_COMPLETION) != (
            "timed_completion" in self.features and frame.kind != wire.CONTROL_REPLY
        ):
            raise ProtocolError(f"frame {frame.kind} where another kind of completion was negotiated")
        if frame.kind != TIMED_COMPLETION:
            return wire.decode_reply(frame, NAMES)
        cursor = Cursor(frame.payload)
        sequence, code, self.failure_kind = cursor.number("Q"), cursor.number("i"), cursor.number("I")
        start, end = cursor.number("Q"), cursor.number("Q")
        error, result = cursor.blob(4096), cursor.blob(1 << 20)
        cursor.end()
        if sequence != frame.sequence or end < start or (code == 0) != (self.failure_kind == 0):
            raise ProtocolError(f"a TIMED_COMPLETION that contradicts itself: {frame.payload.hex()}")
        return Reply(wire.COMPLETION, sequence, "", 0, code, error, result)

    def adapt(self, kind: int, payload: bytes) -> bytes:
        """What version 1 knows as `payload`, as it is sent now: conditions in front, tags in the descriptors."""
        if kind != wire.TASK:
            return payload
        if "task_tags" in self.features:
            payload = tagged(payload)
        if "conditions" in self.features:
            payload = (
                struct.pack(f"<I{len(self.conditions)}Q", len(self.conditions), *self.conditions) + payload
            )
        return payload

    def send(self, kind: int, payload: bytes = b"", sequence: int | None = None) -> int:
        return super().send(kind, self.adapt(kind, payload), sequence)

    def raw(self, kind: int, payload: bytes = b"", **changes: Any) -> None:
        """Sends a frame as it is; `changes` replace fields of its header."""
        self.sequence += 1
        fields = {"session_id": self.session_id, "worker_id": self.worker_id, "sequence": self.sequence}
        self.command.sendall(Frame(kind, **{**fields, **changes}, payload=payload).encode())

    def extended(self, name: str, command: bytes = b"", version: int = 1) -> Reply:
        """A control of an extension, and its answer."""
        sent = self.send(wire.CONTROL, struct.pack("<II", NUMBERS[name], version) + wire.blob(command))
        reply = self.reply()
        assert (reply.kind, reply.sequence) == (wire.CONTROL_REPLY, sent), reply
        return reply


def tagged(payload: bytes, flags: int | None = None) -> bytes:
    """A TASK of version 1 with a legal tag in each descriptor (or `flags`), unchanged when it cannot be read."""
    out = bytearray(payload)
    try:
        at = 60 + 4 + struct.unpack_from("<I", out, 60)[0]
        tensors = struct.unpack_from("<I", out, at)[0]
        at += 8 + 44 * tensors
        for _ in range(tensors):
            present = out[at]
            at += 1
            if not present:
                continue
            place = struct.unpack_from("<I", out, at)[0]
            tag = TAGGED | (INPUT if place == HOST_INLINE else INOUT)
            struct.pack_into("<Q", out, at + 72, tag if flags is None else flags)
            at += 80
    except (struct.error, IndexError):
        return payload
    return bytes(out)


@contextlib.contextmanager
def session(address: tuple[str, int], features: Sequence[str] = (), **changes: Any) -> Iterator[Parent]:
    """A session with exactly these extensions; it has to end when both lanes are closed. `changes` are the manifest's."""
    request = wire.manifest(
        # A parent here does not answer HEALTH: its session has to be patient.
        **{"feature_flags": list(features), "session_timeout_s": 300.0, **changes}
    )
    parent = Parent(request, wire.bootstrap(address, request))
    try:
        yield parent
    finally:
        parent.close()
        ended(parent)


def ended(parent: V1Parent) -> None:
    """Waits for the end of the session process, which its daemon has to reap."""
    pid = parent.pid
    assert isinstance(pid, int)
    eventually(lambda: procfs.read_process(pid) is None, 20.0, what=f"the end of session process {pid}")
