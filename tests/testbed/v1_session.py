"""A daemon with sessions that know version 1 and nothing else, for our parent to be tested against.

`HELLO.feature_flags` is 0, there is one request in flight at a time, no extension exists. A second request sent
before the first was answered is noted in `violations`, and so is every byte that version 1 does not allow.
What a task does is given by the test: `behaviours` maps an import target to a function of its tensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

from . import wire
from .proxy import receive_json, shut
from .v1_state import CONTROLS, State, task_arguments

HEALTH_PERIOD_S = 0.2
JOIN_S = 10.0

Behaviour = Callable[[list[memoryview], list[int]], None]
"""Gets the bytes of each tensor (writable) and the scalars; raising makes the task fail."""


def noop(tensors: list[memoryview], scalars: list[int]) -> None:
    """The behaviour of a target that has no other."""


class V1Session:
    """One session: two listening ports, one thread each, ended by SHUTDOWN, by end of file or by `close`."""

    def __init__(
        self, request: dict[str, Any], behaviours: Mapping[str, Behaviour], violations: list[str]
    ) -> None:
        self.session_id = int(request["session_id"])
        self.worker_id = int(request["worker_id"])
        self.profile = str(request["transport"])
        self.tasks: list[str] = []
        self.controls: list[str] = []
        self.ended_by = ""
        self.spoils: list[str] = []
        """Controls whose next answer is an error although they are carried out."""
        self._behaviours = behaviours
        self._violations = violations
        self._state = State(self.worker_id)
        for entry in request.get("remote_task_dispatcher") or []:
            self._state.live[wire.digest_of(entry["target"])] = entry["target"]
        self._stop = threading.Event()
        self._command = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._health = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._sockets: list[socket.socket] = []
        self._threads = [
            threading.Thread(target=self._serve_commands, name="v1-command"),
            threading.Thread(target=self._serve_health, name="v1-health"),
        ]
        for thread in self._threads:
            thread.start()

    def reply(self) -> dict[str, object]:
        """The daemon's answer for this session."""
        return {
            "ok": True,
            "command_host": "127.0.0.1",
            "command_port": self._command.getsockname()[1],
            "health_host": "127.0.0.1",
            "health_port": self._health.getsockname()[1],
            "pid": os.getpid(),
        }

    def stop_health(self) -> None:
        """The health lane falls silent and closes; the command lane goes on."""
        self._stop.set()
        shut(self._health)

    def close(self) -> None:
        self._stop.set()
        shut(self._command)
        shut(self._health)
        for connection in list(self._sockets):
            shut(connection)
        for thread in self._threads:
            thread.join(JOIN_S)
            assert not thread.is_alive(), f"{thread.name} did not end within {JOIN_S:g} s"
        self._command.close()
        self._health.close()

    # --- lanes ------------------------------------------------------------------------------------------

    def _frame(self, kind: int, sequence: int, payload: bytes = b"") -> bytes:
        return wire.Frame(kind, self.session_id, self.worker_id, sequence, payload).encode()

    def _serve_health(self) -> None:
        sequence = 0
        while not self._stop.is_set():
            try:
                connection, _ = self._health.accept()
            except OSError:
                return
            self._sockets.append(connection)
            with connection, contextlib.suppress(OSError):
                while not self._stop.is_set():
                    sequence += 1
                    connection.sendall(self._frame(wire.HEALTH, sequence))
                    if self._readable_data(connection):
                        self._violations.append("the parent wrote to the health lane")
                    self._stop.wait(HEALTH_PERIOD_S)

    @staticmethod
    def _readable_data(connection: socket.socket) -> bool:
        if not select.select([connection], [], [], 0)[0]:
            return False
        return connection.recv(1, socket.MSG_PEEK) != b""

    def _serve_commands(self) -> None:
        try:
            connection, _ = self._command.accept()
        except OSError:
            self.ended_by = self.ended_by or "close"
            return
        self._sockets.append(connection)
        try:
            with connection:
                hello = struct.pack("<QiI", self.session_id, self.worker_id, 1)
                hello += wire.text(self.profile) + struct.pack("<QI", 0, 1)
                connection.sendall(self._frame(wire.HELLO, 0, hello))
                self._loop(connection)
        except (OSError, EOFError):
            self.ended_by = "end of file"
        except wire.ProtocolError as error:
            self.ended_by = "violation"
            self._violations.append(str(error))
        finally:
            self._stop.set()
            shut(self._health)
            self._state.release()

    def _loop(self, connection: socket.socket) -> None:
        while True:
            frame = wire.receive_frame(connection)
            if (frame.session_id, frame.worker_id) != (self.session_id, self.worker_id):
                raise wire.ProtocolError(f"frame of session {frame.session_id}, worker {frame.worker_id}")
            if frame.kind == wire.SHUTDOWN:
                self.ended_by = "SHUTDOWN"
                return
            if frame.kind == wire.TASK:
                answer = self._task(frame)
            elif frame.kind == wire.CONTROL:
                answer = self._control(frame)
            else:
                raise wire.ProtocolError(f"a parent that knows version 1 does not send {frame.name}")
            if self._readable_data(connection):
                self._violations.append(f"a request came before sequence {frame.sequence} was answered")
            connection.sendall(answer)

    # --- commands ---------------------------------------------------------------------------------------

    def _completion(self, sequence: int, error: str) -> bytes:
        payload = struct.pack("<Qi", sequence, 1 if error else 0) + wire.text(error)
        return self._frame(wire.COMPLETION, sequence, payload)

    def _task(self, frame: wire.Frame) -> bytes:
        digest = frame.payload[:32]
        target = self._state.live.get(digest)
        try:
            if target is None:
                raise KeyError(f"remote TASK dispatcher has no callable hashid {digest.hex()}")
            self.tasks.append(target)
            views, scalars = task_arguments(frame.payload, self._state)
            self._behaviours.get(target, noop)(views, scalars)
        except wire.ProtocolError:
            raise
        except Exception as error:
            prefix = f"remote worker_id={self.worker_id} hashid={digest.hex()} sequence={frame.sequence}: "
            return self._completion(frame.sequence, f"{prefix}{type(error).__name__}: {error}")
        return self._completion(frame.sequence, "")

    def _control(self, frame: wire.Frame) -> bytes:
        cursor = wire.Cursor(frame.payload)
        number, version = cursor.number("I"), cursor.number("I")
        command = cursor.blob(wire.FRAME_PAYLOAD_MAX)
        cursor.end()
        if number not in wire.CONTROL_NAMES:
            raise wire.ProtocolError(f"control {number} is not of version 1")
        name = wire.CONTROL_NAMES[number]
        self.controls.append(name)
        error, result = "", b""
        try:
            result = CONTROLS[name](self._state, wire.Cursor(command))
            if name in self.spoils:
                self.spoils.remove(name)
                raise RuntimeError("carried out, and refused all the same")
        except wire.ProtocolError:
            raise
        except Exception as failure:
            prefix = f"remote worker_id={self.worker_id} control sequence={frame.sequence}: "
            error = f"{prefix}{type(failure).__name__}: {failure}"
        payload = struct.pack("<QIIi", frame.sequence, number, version, 1 if error else 0)
        payload += wire.text(error) + wire.blob(result)
        return self._frame(wire.CONTROL_REPLY, frame.sequence, payload)


class V1Daemon:
    """Answers bootstrap requests as version 1 does, each with a new session in this process."""

    def __init__(self, behaviours: Mapping[str, Behaviour] | None = None, *, refusal: str = "") -> None:
        """A non-empty `refusal` is the error with which every request is answered."""
        self._refusal = refusal
        self._behaviours = dict(behaviours or {})
        self.sessions: list[V1Session] = []
        self.requests: list[dict[str, Any]] = []
        self.violations: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._serve, name="v1-daemon")
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    def close(self) -> None:
        """Ends daemon and sessions. What the parent did against version 1 is in `violations` afterwards."""
        shut(self._listener)
        self._thread.join(JOIN_S)
        assert not self._thread.is_alive(), f"the v1 daemon did not end within {JOIN_S:g} s"
        self._listener.close()
        for session in self.sessions:
            session.close()

    def __enter__(self) -> V1Daemon:
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
                client.settimeout(JOIN_S)
                client.sendall(wire.text(json.dumps(self._answer(client))))

    def _answer(self, client: socket.socket) -> dict[str, object]:
        request: dict[str, Any] = receive_json(client)
        self.requests.append(request)
        if self._refusal:
            return {"ok": False, "error": self._refusal}
        missing = REQUIRED - set(request)
        if missing:
            return {"ok": False, "error": f"ValueError: manifest lacks {sorted(missing)}"}
        if request["transport"] != "sim" or request["remote_worker_level"] != 3:
            return {"ok": False, "error": "ValueError: manifest is not of version 1"}
        session = V1Session(request, self._behaviours, self.violations)
        self.sessions.append(session)
        return session.reply()


REQUIRED = {
    "session_id",
    "worker_id",
    "parent_worker_level",
    "remote_worker_level",
    "platform",
    "transport",
}
