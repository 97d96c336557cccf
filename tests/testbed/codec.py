"""Every message of the wire as a table of fields: a second codec, written from docs/protocol.md alone, in another language.

`decode` and `encode` speak of fields as the vector files do: byte strings as hexadecimal under `NAME_hex`. Whoever adds a
field or a message to the protocol adds it here, too; tests/test_wire_codec.py holds both codecs to each other (R-073).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .wire import Cursor, ProtocolError, blob, text

Fields = dict[str, Any]

MIB = 1 << 20
ELEMENT_BYTES = (4, 2, 4, 2, 1, 1, 2, 8, 8, 2, 4, 1, 8)
"""Bytes of an element by the code of its type."""


@dataclass(frozen=True)
class Number:
    """A number as `struct` packs it."""

    name: str
    form: str

    def read(self, cursor: Cursor, into: Fields) -> None:
        into[self.name] = cursor.number(self.form)

    def write(self, fields: Fields) -> bytes:
        return struct.pack("<" + self.form, fields[self.name])


@dataclass(frozen=True)
class Fixed:
    """Bytes that are always the same: reserved words, magic, versions that are no field."""

    name: str
    value: bytes
    shown: int | None = None

    def read(self, cursor: Cursor, into: Fields) -> None:
        got = cursor.take(len(self.value))
        if got != self.value:
            raise ProtocolError(f"{self.name} is {got.hex()}, not {self.value.hex()}")
        if self.shown is not None:
            into[self.name] = self.shown

    def write(self, _fields: Fields) -> bytes:
        return self.value


@dataclass(frozen=True)
class Text:
    """u32 length and UTF-8."""

    name: str
    limit: int

    def read(self, cursor: Cursor, into: Fields) -> None:
        into[self.name] = cursor.text(self.limit)

    def write(self, fields: Fields) -> bytes:
        return text(fields[self.name])


@dataclass(frozen=True)
class Blob:
    """u32 length and bytes; with `size` just so many bytes, with `rest` all that are left."""

    name: str
    limit: int = 0
    size: int = 0
    rest: bool = False

    def read(self, cursor: Cursor, into: Fields) -> None:
        if self.rest:
            value = cursor.rest()
        elif self.size:
            value = cursor.take(self.size)
        else:
            value = cursor.blob(self.limit)
        into[f"{self.name}_hex"] = value.hex()

    def write(self, fields: Fields) -> bytes:
        value = bytes.fromhex(fields[f"{self.name}_hex"])
        return value if self.size or self.rest else blob(value)


@dataclass(frozen=True)
class Sized:
    """Bytes to the end, with their number somewhere in front of them as a field of its own, or as none."""

    name: str
    form: str
    shown: str | None
    between: bytes = b""

    def read(self, cursor: Cursor, into: Fields) -> None:
        count = cursor.number(self.form)
        Fixed(f"before {self.name}", self.between).read(cursor, into)
        value = cursor.rest()
        if len(value) != count:
            raise ProtocolError(f"{self.name} has {len(value)} bytes, {count} were announced")
        if self.shown:
            into[self.shown] = count
        into[f"{self.name}_hex"] = value.hex()

    def write(self, fields: Fields) -> bytes:
        value = bytes.fromhex(fields[f"{self.name}_hex"])
        return struct.pack("<" + self.form, len(value)) + self.between + value


@dataclass(frozen=True)
class Part:
    """A message within a message."""

    name: str
    kind: str

    def read(self, cursor: Cursor, into: Fields) -> None:
        into[self.name] = _read(self.kind, cursor)

    def write(self, fields: Fields) -> bytes:
        return encode(self.kind, fields[self.name])


@dataclass(frozen=True)
class Counted:
    """Bytes to the end, as many as a number in the part before them says."""

    name: str
    part: str
    count: str

    def read(self, cursor: Cursor, into: Fields) -> None:
        into[f"{self.name}_hex"] = cursor.take(into[self.part][self.count]).hex()

    def write(self, fields: Fields) -> bytes:
        return bytes.fromhex(fields[f"{self.name}_hex"])


class Tensor:
    """44 bytes; words beyond the rank are ignored."""

    def read(self, cursor: Cursor, into: Fields) -> None:
        data, *words = struct.unpack("<Q5III", cursor.take(36))
        shape, (ndims, dtype) = words[:5], words[5:]
        child_memory, reserved = cursor.number("B"), cursor.take(7)
        if data or any(reserved) or not 1 <= ndims <= 5 or child_memory > 1:
            raise ProtocolError(f"tensor {data} {words} {child_memory} {reserved.hex()}")
        if dtype >= len(ELEMENT_BYTES):
            raise ProtocolError(f"dtype {dtype}")
        nbytes = ELEMENT_BYTES[dtype]
        for extent in shape[:ndims]:
            nbytes *= extent
        into.update(shape=shape[:ndims], ndims=ndims, dtype=dtype, child_memory=child_memory)
        into["nbytes"] = nbytes if nbytes < 1 << 64 else None

    def write(self, fields: Fields) -> bytes:
        words = fields["shape"] + [0] * (5 - len(fields["shape"]))
        return struct.pack("<Q5IIIB7x", 0, *words, fields["ndims"], fields["dtype"], fields["child_memory"])


class Arguments:
    """Counts, tensors, a sidecar or none for each, scalars, the inline arena."""

    def read(self, cursor: Cursor, into: Fields) -> None:
        tensors, scalars = cursor.number("I"), cursor.number("I")
        if max(tensors, scalars) > 4096:
            raise ProtocolError(f"{tensors} tensors and {scalars} scalars")
        into["tensors"] = [_read("tensor", cursor) for _ in range(tensors)]
        into["sidecars"] = []
        for _ in range(tensors):
            present = cursor.number("B")
            if present > 1:
                raise ProtocolError(f"presence {present}")
            into["sidecars"].append(_read("remote_tensor_desc", cursor) if present else None)
        into["scalars"] = [cursor.number("Q") for _ in range(scalars)]
        into["inline_payload_hex"] = cursor.blob(MIB).hex()

    def write(self, fields: Fields) -> bytes:
        sidecars = (
            b"\0" if one is None else b"\1" + encode("remote_tensor_desc", one) for one in fields["sidecars"]
        )
        return (
            struct.pack("<II", len(fields["tensors"]), len(fields["scalars"]))
            + b"".join(encode("tensor", one) for one in fields["tensors"])
            + b"".join(sidecars)
            + struct.pack(f"<{len(fields['scalars'])}Q", *fields["scalars"])
            + blob(bytes.fromhex(fields["inline_payload_hex"]))
        )


def _numbers(**forms: str) -> list[Any]:
    return [Number(name, form) for name, form in forms.items()]


RESERVED = Fixed("reserved", bytes(4))
BUFFER = _numbers(worker_id="i", buffer_id="Q", generation="Q")
OWNER = _numbers(owner_worker_id="i", buffer_id="Q", generation="Q")
WINDOW = _numbers(remote_addr="Q", rkey_or_token="Q", ub_ldst_va="Q", access_flags="I")
REGISTRY = [*_numbers(target_registry="I", callable_kind="I"), Blob("digest", size=32)]
PROFILE = Text("transport_profile", 128)

TABLE: dict[str, list[Any]] = {
    "hello": [
        *_numbers(session_id="Q", worker_id="i"),
        Fixed("protocol_version", struct.pack("<I", 1), 1),
        Text("comm_profile", 1024),
        *_numbers(feature_flags="Q", ready_state="I"),
    ],
    "call_config": [
        *_numbers(block_dim="i", aicpu_thread_num="i", enable_l2_swimlane="i", enable_dump_tensor="i"),
        *_numbers(enable_pmu="i", enable_dep_gen="i", enable_scope_stats="i"),
        Text("output_prefix", 1023),
    ],
    "tensor": [Tensor()],
    "remote_tensor_desc": [
        *_numbers(
            address_space="I", owner_worker_id="i", buffer_id="Q", offset="Q", nbytes="Q", remote_addr="Q"
        ),
        *_numbers(
            rkey_or_token="Q", generation="Q", inline_payload_offset="Q", inline_payload_len="Q", flags="Q"
        ),
    ],
    "remote_task_args": [Arguments()],
    "task": [
        Blob("callable_digest", size=32),
        Part("config", "call_config"),
        Part("args", "remote_task_args"),
    ],
    "completion": [*_numbers(sequence="Q", error_code="i"), Text("error_message", 4096)],
    "control": [*_numbers(control_name="I", control_version="I"), Blob("command_bytes", 16 * MIB)],
    "control_reply": [
        *_numbers(sequence="Q", control_name="I", control_version="I", error_code="i"),
        Text("error_message", 4096),
        Blob("result_bytes", 16 * MIB),
    ],
    "register_callable": [*REGISTRY, Number("payload_version", "I"), Blob("payload", 16 * MIB)],
    "digest_callable": REGISTRY,
    "chip_callable_payload": [
        Blob("descriptor_bytes", 4096),
        *_numbers(blob_location="I", blob_size="Q"),
        Blob("blob_sha256", size=32),
        Blob("inline_blob", 16 * MIB),
        Blob("staged_blob_token", 1024),
        RESERVED,
    ],
    "export_request": [*OWNER, *_numbers(offset="Q", nbytes="Q", access_flags="I"), PROFILE, RESERVED],
    "export_result": [
        *OWNER,
        *_numbers(address_space="I", offset="Q", nbytes="Q", export_id="Q"),
        *WINDOW,
        PROFILE,
        Blob("transport_descriptor", 4096),
        RESERVED,
    ],
    "import_request": [
        *_numbers(importer_worker_id="i", requested_access_flags="I"),
        Part("export_desc", "export_result"),
        RESERVED,
    ],
    "import_result": [
        *_numbers(importer_worker_id="i"),
        *OWNER,
        *_numbers(import_id="Q", address_space="I", offset="Q", nbytes="Q"),
        *WINDOW,
        PROFILE,
        Blob("import_descriptor", 4096),
        RESERVED,
    ],
    "release_import": [*_numbers(importer_worker_id="i"), *OWNER, Number("import_id", "Q"), RESERVED],
    "alloc_command": _numbers(nbytes="Q"),
    "alloc_result": [
        *BUFFER,
        Fixed("address_space", struct.pack("<i", 2)),
        *_numbers(nbytes="Q", remote_addr="Q", rkey_or_token="Q", ub_ldst_va="Q"),
    ],
    "free_command": BUFFER,
    "copy_from": [*BUFFER, *_numbers(offset="Q", size="Q")],
    "copy_to": [Part("header", "copy_from"), Blob("data", rest=True)],
    "timed_completion": [
        *_numbers(sequence="Q", error_code="i", failure_kind="I", start_ns="Q", end_ns="Q"),
        Text("error_message", 4096),
        Blob("result", MIB),
    ],
    "peer_range": [
        Blob("ticket", size=32),
        *_numbers(buffer_id="Q", generation="Q", offset="Q", nbytes="I"),
        RESERVED,
    ],
    "peer_write": [Part("range", "peer_range"), Counted("data", "range", "nbytes")],
    "peer_refused": [Number("reason", "I"), Text("message", 1024)],
    "tcp_descriptor": [
        Number("session_id", "Q"),
        Blob("ticket", size=32),
        Text("host", 255),
        Number("port", "I"),
        Text("segment", 255),
        RESERVED,
    ],
    "peer_fence": [*BUFFER, *_numbers(importer_session_id="Q", lasting="I")],
    "stage_begin": [Number("blob_size", "Q"), Blob("blob_sha256", size=32)],
    "stage_token": [Blob("token", 1024)],
    "stage_append": [Blob("token", 1024), Number("offset", "Q"), Blob("part", 16 * MIB - 4096)],
    "serialized": [Fixed("head", b"SPYC\1\1\0\0"), Sized("payload", "Q", None)],
    "frame": [
        Fixed("magic", b"SLR3\1\0\0\0"),
        *_numbers(frame_type="I", session_id="Q", worker_id="i", sequence="Q"),
        Sized("payload", "I", "payload_bytes", between=bytes(4)),
    ],
}

TABLE["hello_pipelined"] = TABLE["hello"] + _numbers(max_commands="I", max_bytes="Q", max_frame_bytes="I")
for _kind in ("task", "remote_task_args"):
    TABLE |= {f"{_kind}_{carrier}": TABLE[_kind] for carrier in ("extended", "tagged", "mailbox")}
for _kind in ("control", "control_reply", "frame"):
    TABLE[f"{_kind}_extended"] = TABLE[_kind]

EXTRA: dict[str, Callable[[Fields], Fields]] = {
    "frame": lambda fields: {**fields, "flags": 0},
    "frame_extended": lambda fields: {**fields, "flags": 0},
}
"""What a field list has besides what the table reads."""


def _read(kind: str, cursor: Cursor) -> Fields:
    fields: Fields = {}
    for field in TABLE[kind]:
        field.read(cursor, fields)
    return EXTRA.get(kind, lambda same: same)(fields)


def decode(kind: str, data: bytes) -> Fields:
    """The fields of a message; ProtocolError when it is too short, too long, or has an impossible length or fixed word."""
    cursor = Cursor(data)
    fields = _read(kind, cursor)
    cursor.end()
    return fields


def encode(kind: str, fields: Fields) -> bytes:
    """The bytes of a message."""
    return b"".join(field.write(fields) for field in TABLE[kind])
