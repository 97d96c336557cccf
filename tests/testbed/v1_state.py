"""What a session of version 1 holds, and what each control and task argument means to it."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from . import wire


@dataclass
class Segment:
    """A POSIX shared-memory segment, as version 1 exports them: by name."""

    name: str
    nbytes: int
    memory: mmap.mmap
    owned: bool

    @classmethod
    def create(cls, nbytes: int) -> Segment:
        return cls._map(f"psm_{secrets.token_hex(4)}", os.O_CREAT | os.O_EXCL, nbytes)

    @classmethod
    def open(cls, name: str, nbytes: int) -> Segment:
        return cls._map(name, 0, nbytes)

    @classmethod
    def _map(cls, name: str, flags: int, nbytes: int) -> Segment:
        if "/" in name or not name:
            raise ValueError(f"segment name {name!r}")
        descriptor = os.open(f"/dev/shm/{name}", os.O_RDWR | flags, 0o600)
        try:
            if flags:
                os.posix_fallocate(descriptor, 0, nbytes)
            return cls(name, nbytes, mmap.mmap(descriptor, os.fstat(descriptor).st_size), bool(flags))
        finally:
            os.close(descriptor)

    def release(self) -> None:
        if self.owned:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/dev/shm/{self.name}")
        self.memory.close()


@dataclass
class State:
    """What a session holds: callables by digest, buffers, imports."""

    worker_id: int
    live: dict[bytes, str] = field(default_factory=dict)
    prepared: dict[bytes, str] = field(default_factory=dict)
    buffers: dict[tuple[int, int], Segment] = field(default_factory=dict)
    imports: dict[tuple[int, int, int, int], tuple[Segment, int, int]] = field(default_factory=dict)
    next_buffer: int = 1
    next_export: int = 1
    next_import: int = 1

    def release(self) -> None:
        for segment in self.buffers.values():
            segment.release()
        for segment, _, _ in self.imports.values():
            segment.release()


ELEMENT_BYTES = (4, 2, 4, 2, 1, 1, 2, 8, 8, 2, 4)


def task_arguments(payload: bytes, state: State) -> tuple[list[memoryview], list[int]]:
    cursor = wire.Cursor(payload)
    cursor.take(32 + 28)
    cursor.text()
    tensor_count, scalar_count = cursor.number("I"), cursor.number("I")
    sizes = []
    for _ in range(tensor_count):
        record = struct.unpack("<Q5IIIB7s", cursor.take(44))
        dimensions, dtype = record[6], record[7]
        if not 1 <= dimensions <= 5 or dtype >= len(ELEMENT_BYTES):
            raise wire.ProtocolError(f"tensor of {dimensions} dimensions, dtype {dtype}")
        nbytes = ELEMENT_BYTES[dtype]
        for extent in record[1 : 1 + dimensions]:
            nbytes *= extent
        sizes.append(nbytes)
    descriptors = [
        struct.unpack("<Ii9Q", cursor.take(80)) if cursor.number("B") else None for _ in range(tensor_count)
    ]
    scalars = [cursor.number("Q") for _ in range(scalar_count)]
    inline = bytearray(cursor.blob(1 << 20))
    cursor.end()
    views = [_view(d, size, inline, state) for d, size in zip(descriptors, sizes, strict=True)]
    return views, scalars


def _view(descriptor: tuple[int, ...] | None, nbytes: int, inline: bytearray, state: State) -> memoryview:
    if descriptor is None:
        if nbytes:
            raise wire.ProtocolError(f"tensor of {nbytes} bytes without a descriptor")
        return memoryview(b"")
    space, owner, buffer_id, offset, size, _, rkey, generation, inline_at, inline_len, flags = descriptor
    if flags or size != nbytes:
        raise ValueError("remote TASK descriptor nbytes does not match tensor metadata")
    if space == 1:
        if owner or buffer_id or generation or rkey or inline_len != nbytes:
            raise wire.ProtocolError("inline tensor with fields of a buffer")
        return memoryview(bytearray(inline[inline_at : inline_at + inline_len]))
    if space == 2 and owner == state.worker_id:
        segment, start, length = state.buffers[(buffer_id, generation)], 0, None
    elif space in (3, 4):
        segment, start, length = state.imports[(owner, buffer_id, generation, rkey)]
    else:
        raise ValueError("remote TASK descriptor names a different worker without an imported buffer handle")
    end = start + (segment.nbytes if length is None else length)
    if offset < start or offset + nbytes > end:
        raise ValueError("remote TASK descriptor range exceeds buffer/import")
    return memoryview(segment.memory)[offset : offset + nbytes]


# --- controls: each takes the state and a cursor over its command bytes, and returns the result bytes -------


def _digest(cursor: wire.Cursor) -> tuple[int, int, bytes]:
    return cursor.number("I"), cursor.number("I"), cursor.take(32)


def _prepare_register(state: State, cursor: wire.Cursor) -> bytes:
    registry, kind, digest = _digest(cursor)
    version, target = cursor.number("I"), cursor.text(wire.FRAME_PAYLOAD_MAX)
    cursor.end()
    if (registry, kind, version) != (wire.DISPATCHER, wire.PYTHON_IMPORT, 1):
        raise ValueError("this session registers import targets for tasks only")
    if wire.digest_of(target) != digest:
        raise ValueError(f"digest does not name {target}")
    if target.endswith("does_not_exist"):
        raise AttributeError(f"no attribute in {target}")
    state.prepared[digest] = target
    return b""


def _commit_register(state: State, cursor: wire.Cursor) -> bytes:
    digest = _digest(cursor)[2]
    if digest not in state.prepared:
        raise KeyError("COMMIT_REGISTER_CALLABLE digest was not prepared")
    state.live[digest] = state.prepared.pop(digest)
    return b""


def _abort_register(state: State, cursor: wire.Cursor) -> bytes:
    state.prepared.pop(_digest(cursor)[2], None)
    return b""


def _unregister(state: State, cursor: wire.Cursor) -> bytes:
    digest = _digest(cursor)[2]
    state.prepared.pop(digest, None)
    state.live.pop(digest, None)
    return b""


def _prepare_callable(state: State, cursor: wire.Cursor) -> bytes:
    if _digest(cursor)[2] not in state.live:
        raise KeyError("PREPARE_CALLABLE digest is not registered")
    return b""


def _alloc(state: State, cursor: wire.Cursor) -> bytes:
    nbytes = cursor.number("Q")
    cursor.end()
    if nbytes == 0:
        raise ValueError("ALLOC_REMOTE_BUFFER nbytes must be non-zero")
    buffer_id = state.next_buffer
    state.buffers[(buffer_id, 1)] = Segment.create(nbytes)
    state.next_buffer += 1
    return struct.pack("<iQQiQQQQ", state.worker_id, buffer_id, 1, 2, nbytes, 0x1000 * buffer_id, 0, 0)


def _free(state: State, cursor: wire.Cursor) -> bytes:
    _own(state, cursor.number("i"), "FREE_REMOTE_BUFFER")
    segment = state.buffers.pop((cursor.number("Q"), cursor.number("Q")), None)
    cursor.end()
    if segment is not None:
        segment.release()
    return b""


def _own(state: State, worker_id: int, control: str) -> None:
    if worker_id != state.worker_id:
        raise ValueError(f"{control} worker mismatch")


def _copy_range(state: State, cursor: wire.Cursor, control: str) -> tuple[Segment, int, int]:
    _own(state, cursor.number("i"), control)
    segment = state.buffers.get((cursor.number("Q"), cursor.number("Q")))
    if segment is None:
        raise KeyError(f"{control} names unknown buffer")
    offset, size = cursor.number("Q"), cursor.number("Q")
    if offset + size > segment.nbytes:
        raise ValueError(f"{control} range exceeds buffer")
    return segment, offset, size


def _copy_to(state: State, cursor: wire.Cursor) -> bytes:
    segment, offset, size = _copy_range(state, cursor, "COPY_TO_REMOTE")
    data = cursor.rest()
    if len(data) != size:
        raise ValueError("COPY_TO_REMOTE data length does not match size")
    segment.memory[offset : offset + size] = data
    return b""


def _copy_from(state: State, cursor: wire.Cursor) -> bytes:
    segment, offset, size = _copy_range(state, cursor, "COPY_FROM_REMOTE")
    cursor.end()
    return segment.memory[offset : offset + size]


def _export(state: State, cursor: wire.Cursor) -> bytes:
    owner, buffer_id, generation = cursor.number("i"), cursor.number("Q"), cursor.number("Q")
    offset, nbytes, access, profile = (
        cursor.number("Q"),
        cursor.number("Q"),
        cursor.number("I"),
        cursor.text(128),
    )
    reserved = cursor.number("I")
    cursor.end()
    _own(state, owner, "EXPORT_BUFFER")
    segment = state.buffers.get((buffer_id, generation))
    if segment is None:
        raise KeyError("EXPORT_BUFFER names unknown buffer")
    if reserved or not 1 <= access <= 3 or profile not in ("", "sim") or offset + nbytes > segment.nbytes:
        raise ValueError("EXPORT_BUFFER fields are out of range")
    export_id = state.next_export
    state.next_export += 1
    head = struct.pack(
        "<iQQIQQQQQQI", owner, buffer_id, generation, 3, offset, nbytes, export_id, 0, export_id, 0, access
    )
    return head + wire.text("sim") + wire.text(segment.name) + struct.pack("<I", 0)


def _import(state: State, cursor: wire.Cursor) -> bytes:
    importer, access = cursor.number("i"), cursor.number("I")
    owner, buffer_id, generation = cursor.number("i"), cursor.number("Q"), cursor.number("Q")
    space, offset, nbytes = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    cursor.take(32)
    granted, profile, name = cursor.number("I"), cursor.text(128), cursor.text(4096)
    cursor.take(8)
    cursor.end()
    _own(state, importer, "IMPORT_BUFFER")
    if profile != "sim" or access & ~granted:
        raise ValueError("IMPORT_BUFFER transport_profile is not supported by sim")
    import_id = state.next_import
    state.next_import += 1
    state.imports[(owner, buffer_id, generation, import_id)] = (Segment.open(name, nbytes), offset, nbytes)
    ids = struct.pack("<iiQQQ", importer, owner, buffer_id, generation, import_id)
    place = struct.pack("<IQQQQQI", space, offset, nbytes, 0, import_id, 0, access)
    return ids + place + wire.text("sim") + wire.blob(b"") + struct.pack("<I", 0)


def _release_import(state: State, cursor: wire.Cursor) -> bytes:
    _own(state, cursor.number("i"), "RELEASE_IMPORT")
    key = (cursor.number("i"), cursor.number("Q"), cursor.number("Q"), cursor.number("Q"))
    if key not in state.imports:
        raise KeyError("RELEASE_IMPORT names unknown import")
    state.imports.pop(key)[0].release()
    return b""


def _reserved(state: State, cursor: wire.Cursor) -> bytes:
    raise ValueError("unsupported reserved remote domain control")


CONTROLS: dict[str, Callable[[State, wire.Cursor], bytes]] = {
    "UNREGISTER_CALLABLE": _unregister,
    "PREPARE_REGISTER_CALLABLE": _prepare_register,
    "COMMIT_REGISTER_CALLABLE": _commit_register,
    "ABORT_REGISTER_CALLABLE": _abort_register,
    "PREPARE_CALLABLE": _prepare_callable,
    "ALLOC_REMOTE_BUFFER": _alloc,
    "FREE_REMOTE_BUFFER": _free,
    "COPY_TO_REMOTE": _copy_to,
    "COPY_FROM_REMOTE": _copy_from,
    "EXPORT_BUFFER": _export,
    "IMPORT_BUFFER": _import,
    "RELEASE_IMPORT": _release_import,
    "COMM_INIT": _reserved,
    "ALLOC_DOMAIN": _reserved,
    "RELEASE_DOMAIN": _reserved,
}
