"""The lane on which importers reach a session's buffers (`peer_fetch`), from the importer's side, as it should be or not."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from . import wire
from .extensions import KINDS, PEER_DATA, PEER_DONE, PEER_READ, PEER_REFUSED, PEER_WRITE, Parent
from .wire import Cursor


@dataclass(frozen=True)
class TcpDescriptor:
    """What an export with profile `tcp` says, and the range of the buffer that it is of."""

    session_id: int
    worker_id: int
    ticket: bytes
    host: str
    port: int
    segment: str
    buffer: int
    generation: int
    offset: int

    def range(self, **changes: Any) -> bytes:
        """A PeerRange of the first byte, with these fields changed."""
        fields = {
            "ticket": self.ticket,
            "buffer": self.buffer,
            "generation": self.generation,
            "offset": self.offset,
            "nbytes": 1,
            **changes,
        }
        return fields["ticket"] + struct.pack(
            "<QQQII", *(fields[name] for name in ("buffer", "generation", "offset", "nbytes")), 0
        )

    def frame(self, kind: int, payload: bytes, sequence: int = 1, **changes: int) -> bytes:
        fields = {"session_id": self.session_id, "worker_id": self.worker_id, **changes}
        return wire.Frame(kind, **fields, sequence=sequence, payload=payload).encode()


def export(parent: Parent, key: bytes, offset: int, nbytes: int, access: int) -> TcpDescriptor:
    """Asks for an export with profile `tcp`."""
    ask = struct.pack("<i", parent.worker_id) + key + struct.pack("<QQI", offset, nbytes, access)
    reply = parent.control("EXPORT_BUFFER", ask + wire.text("tcp") + struct.pack("<I", 0))
    assert reply.error_code == 0, reply.error
    return describe(reply.result)


def describe(result: bytes) -> TcpDescriptor:
    """Reads an ExportResult with profile `tcp`."""
    cursor = Cursor(result)
    worker, buffer, generation = cursor.number("i"), cursor.number("Q"), cursor.number("Q")
    cursor.take(4)
    offset = cursor.number("Q")
    cursor.take(8 + 4 * 8 + 4)
    assert cursor.text(128) == "tcp"
    inner = Cursor(cursor.blob(4096))
    cursor.take(4)
    cursor.end()
    session, ticket = inner.number("Q"), inner.take(32)
    host, port, segment = inner.text(255), inner.number("I"), inner.text(255)
    inner.take(4)
    inner.end()
    return TcpDescriptor(session, worker, ticket, host, port, segment, buffer, generation, offset)


class Lane:
    """A connection to the owner's port."""

    def __init__(self, connection: socket.socket, descriptor: TcpDescriptor) -> None:
        self.connection = connection
        self._descriptor = descriptor
        self._count = 0

    def __enter__(self) -> Lane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.connection.close()

    def read(self, **changes: Any) -> bytes | int:
        """The bytes, or the reason of a refusal, or 0 when the lane ended instead."""
        return self._ask(PEER_READ, b"", changes)

    def write(self, data: bytes, **changes: Any) -> bytes | int:
        """Empty bytes when they are in the buffer; else as `read`."""
        return self._ask(PEER_WRITE, data, {"nbytes": len(data), **changes})

    def _ask(self, kind: int, data: bytes, changes: dict[str, Any]) -> bytes | int:
        self._count += 1
        sequence = changes.pop("mark", 0x55) << 32 | self._count
        identity = {name: changes.pop(name) for name in ("session_id", "worker_id") if name in changes}
        payload = self._descriptor.range(**changes) + data
        try:
            self.connection.sendall(self._descriptor.frame(kind, payload, sequence, **identity))
            answer = wire.receive_frame(self.connection, (*KINDS, PEER_DATA, PEER_DONE, PEER_REFUSED))
        except (EOFError, ConnectionError):
            return 0
        assert answer.sequence == sequence, answer
        if answer.kind == PEER_REFUSED:
            return int(struct.unpack_from("<I", answer.payload)[0])
        assert answer.kind == (PEER_DATA if kind == PEER_READ else PEER_DONE), answer
        return answer.payload

    def ended(self) -> bool:
        """True when the owner closes the lane, without another byte."""
        return wire.at_end(self.connection)
