"""A TCP proxy between parent and session that records, holds, cuts, garbles and duplicates, by byte or by frame.

Everything happens on an event or at a byte position, never after a time, so that a test says exactly when.
All threads belong to the proxy and are joined by `close`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import struct
import threading
from collections.abc import Callable, Collection
from typing import Protocol

from .wire import HEADER, receive_exactly, text

JOIN_S = 10.0
"""How long a pump may take to notice that its sockets are shut, in seconds."""

CHUNK = 64 * 1024


class Transform(Protocol):
    """Changes a stream on its way. May keep bytes back until later ones come."""

    def feed(self, data: bytes) -> bytes: ...


class Garble:
    """Flips `mask` in the byte at `position` of the stream."""

    def __init__(self, position: int, mask: int = 0xFF) -> None:
        self._position, self._mask, self._seen = position, mask, 0

    def feed(self, data: bytes) -> bytes:
        at = self._position - self._seen
        self._seen += len(data)
        if 0 <= at < len(data):
            return data[:at] + bytes([data[at] ^ self._mask]) + data[at + 1 :]
        return data


class DuplicateBytes:
    """Sends the bytes `start..end` of the stream twice in a row."""

    def __init__(self, start: int, end: int) -> None:
        self._start, self._end, self._seen, self._copy = start, end, 0, b""

    def feed(self, data: bytes) -> bytes:
        base = self._seen
        self._seen += len(data)
        self._copy += data[max(0, self._start - base) : max(0, self._end - base)]
        if self._copy and base < self._end <= self._seen:
            cut = self._end - base
            return data[:cut] + self._copy + data[cut:]
        return data


class ByFrame:
    """Cuts the stream into frames and hands each to `rule`, which returns the frames to send instead.

    `rule(number, frame)` gets the frame's number on this stream, from 0, and its bytes: `[frame]` passes it on,
    `[]` loses it, `[frame, frame]` repeats it.
    """

    def __init__(self, rule: Callable[[int, bytes], list[bytes]]) -> None:
        self._rule, self._kept, self._number = rule, b"", 0

    def feed(self, data: bytes) -> bytes:
        self._kept += data
        out = []
        while len(self._kept) >= HEADER.size:
            size = HEADER.size + struct.unpack_from("<I", self._kept, 32)[0]
            if len(self._kept) < size:
                break
            out.extend(self._rule(self._number, self._kept[:size]))
            self._kept = self._kept[size:]
            self._number += 1
        return b"".join(out)


class Direction:
    """One way through the proxy. Set it up before traffic flows, or while it is held."""

    def __init__(self) -> None:
        self.recorded = bytearray()
        self.transform: Transform | None = None
        self.cut_after: int | None = None
        """Both ways are cut once so many bytes were sent on."""
        self._open = threading.Event()
        self._open.set()
        self._changed = threading.Condition()
        self._closed = False
        self._sent = 0
        self._sources: list[socket.socket] = []
        self._drops = False

    @property
    def drops(self) -> bool:
        return self._drops

    def drop(self) -> None:
        """From now on this way drops every packet: nothing arrives, and nothing is acknowledged or refused.

        It stays so for this proxy's connections, and their sender hears nothing of an end on the other side.
        """
        with self._changed:
            self._drops = True
            for source in self._sources:
                _deafen(source)

    def _take(self, source: socket.socket) -> None:
        with self._changed:
            self._sources.append(source)
            if self._drops:
                _deafen(source)

    def hold(self) -> None:
        """Keeps what arrives until `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def wait_for_bytes(self, count: int, timeout_s: float = 10.0) -> None:
        """Returns once `count` bytes of the sender have arrived here."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.recorded) >= count, timeout_s)
        assert arrived, f"{len(self.recorded)} of {count} bytes arrived within {timeout_s:g} s"

    def _arrived(self, data: bytes) -> None:
        with self._changed:
            self.recorded += data
            self._changed.notify_all()

    def _pass(self, data: bytes, target: socket.socket) -> bool:
        """Sends on what may go; False when the connection is to be cut now."""
        self._open.wait()
        if self._closed:
            return False
        if self._drops:
            return True
        if self.transform is not None:
            data = self.transform.feed(data)
        room = None if self.cut_after is None else self.cut_after - self._sent
        if room is not None and len(data) >= room:
            target.sendall(data[: max(0, room)])
            return False
        target.sendall(data)
        self._sent += len(data)
        return True

    def _close(self) -> None:
        self._closed = True
        self._open.set()


class Proxy:
    """Listens on a loopback port and connects each client to `upstream`.

    `to_upstream` and `to_client` are shared by all connections through this proxy.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self.to_upstream = Direction()
        self.to_client = Direction()
        self.connection_count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, name="proxy-accept")]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return self.address[1]

    def cut(self) -> None:
        """Ends every connection now, both ways. New ones are taken."""
        with self._lock:
            for connection in self._sockets:
                shut(connection)

    def close(self) -> None:
        """Cuts, stops listening, joins every thread."""
        with self._lock:
            self._closed = True
        shut(self._listener)
        self.to_upstream._close()
        self.to_client._close()
        self.cut()
        # The accept thread may still add pumps until it has ended.
        self._join(self._threads[0])
        self.cut()
        for thread in self._threads[1:]:
            self._join(thread)
        self._listener.close()
        for connection in self._sockets:
            connection.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _join(thread: threading.Thread) -> None:
        thread.join(JOIN_S)
        assert not thread.is_alive(), f"{thread.name} did not end within {JOIN_S:g} s"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream, JOIN_S)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets += [client, server]
                self.connection_count += 1
                if self._closed:
                    return
                pumps = [
                    threading.Thread(target=self._pump, args=way, name="proxy-pump")
                    for way in ((client, server, self.to_upstream), (server, client, self.to_client))
                ]
                self._threads += pumps
            for pump in pumps:
                pump.start()

    def _pump(self, source: socket.socket, target: socket.socket, way: Direction) -> None:
        way._take(source)
        try:
            while data := source.recv(CHUNK):
                way._arrived(data)
                if not way._pass(data, target):
                    shut(source)
                    break
        except OSError:
            # Either end was cut; the other pump hears of it by the shutdown below.
            shut(source)
        if way.drops:
            return
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


_DROP_EVERYTHING = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A packet filter of one instruction: return 0 bytes of it."""

_SO_ATTACH_FILTER = 26


def _deafen(connection: socket.socket) -> None:
    """The kernel drops what arrives for the socket before TCP sees it, so that nothing is acknowledged."""
    program = ctypes.create_string_buffer(_DROP_EVERYTHING)
    filter_ = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


def shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class SessionProxy:
    """The two lanes of one session, each through a proxy of its own."""

    def __init__(self, reply: dict[str, object], worker_id: int) -> None:
        self.worker_id = worker_id
        self.command = Proxy((str(reply["command_host"]), int(str(reply["command_port"]))))
        self.health = Proxy((str(reply["health_host"]), int(str(reply["health_port"]))))

    def close(self) -> None:
        self.command.close()
        self.health.close()


class DaemonProxy:
    """Stands before a daemon and puts a `SessionProxy` before each session that it starts.

    `prepare(session, number)` is called before the parent learns the ports, so that a test can hold or garble
    from the first byte. Of the extensions that the parent offers only `features` reach the daemon, when they are given.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        prepare: Callable[[SessionProxy, int], None] | None = None,
        *,
        features: Collection[str] | None = None,
    ) -> None:
        self._upstream = upstream
        self._prepare = prepare
        self._features = features
        self.sessions: list[SessionProxy] = []
        self.requests: list[dict[str, object]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._serve, name="proxy-daemon")
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    def close(self) -> None:
        shut(self._listener)
        self._thread.join(60.0)
        assert not self._thread.is_alive(), "the daemon did not answer a bootstrap within 60 s"
        self._listener.close()
        for session in self.sessions:
            session.close()

    def __enter__(self) -> DaemonProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError, EOFError):
                self._bootstrap(client)

    def _bootstrap(self, client: socket.socket) -> None:
        client.settimeout(30.0)
        request = receive_json(client)
        self.requests.append(request)
        if self._features is not None:
            offered = request["feature_flags"]
            assert isinstance(offered, list)
            request = {**request, "feature_flags": [name for name in offered if name in self._features]}
        with socket.create_connection(self._upstream, 30.0) as daemon:
            daemon.sendall(text(json.dumps(request)))
            reply = receive_json(daemon)
            if reply.get("ok"):
                session = SessionProxy(reply, int(str(request["worker_id"])))
                if self._prepare is not None:
                    self._prepare(session, len(self.sessions))
                self.sessions.append(session)
                reply["command_host"], reply["command_port"] = session.command.address
                reply["health_host"], reply["health_port"] = session.health.address
            client.sendall(text(json.dumps(reply)))
            # What the parent says when it has connected, or its end without that, which ends the session.
            while said := client.recv(CHUNK):
                daemon.sendall(said)


def receive_json(connection: socket.socket) -> dict[str, object]:
    count = struct.unpack("<I", receive_exactly(connection, 4))[0]
    value = json.loads(receive_exactly(connection, count))
    assert isinstance(value, dict)
    return value
