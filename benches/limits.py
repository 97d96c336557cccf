"""What the machine itself allows, measured with nothing but sockets, pipes and memory: the other half of each figure.

Each partner is a process of its own, as a worker is, so that no lock of the interpreter is shared with it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

TIMEOUT_S = 30.0

_ECHO = """
import os
while data := os.read(0, 64):
    os.write(1, data)
"""

_TCP = """
import socket, sys
end = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
buffer, expected = bytearray(1 << 20), int(sys.argv[2])
while got := end.recv_into(buffer):
    while 1 < got < expected:
        more = end.recv_into(buffer)
        if not more:
            sys.exit(1)
        got += more
    end.sendall(b"x")
"""


class PipeEcho:
    """A process that sends back what it reads: the floor for a task of a local worker that sleeps in the kernel."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._back = self._process.stdin.fileno(), self._process.stdout.fileno()

    def round_trip(self) -> None:
        """One byte there and back."""
        os.write(self._to, b"x")
        os.read(self._back, 64)

    def close(self) -> None:
        """Ends and reaps the process."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(TIMEOUT_S)


class TcpPeer:
    """A process at the other end of a loopback connection: one byte is echoed, a block is received and acknowledged."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(TIMEOUT_S)
            port = listener.getsockname()[1]
            self._process = subprocess.Popen([sys.executable, "-c", _TCP, str(port), str(len(block))])
            self._end, _ = listener.accept()
        self._end.settimeout(TIMEOUT_S)
        self._end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def round_trip(self) -> None:
        """One byte there and back."""
        self._end.sendall(b"x")
        self._end.recv(1)

    def send_block(self) -> None:
        """The whole block there, one byte back."""
        self._end.sendall(self._block)
        self._end.recv(1)

    def close(self) -> None:
        """Ends and reaps the process."""
        self._end.close()
        self._process.wait(TIMEOUT_S)
