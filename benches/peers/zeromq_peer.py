"""A farm made by hand over ZeroMQ: one worker process, a PAIR over ipc, pickled numbers, arrays as frames without a copy.

It has no dependencies, no errors and no placement: the least that one would write. W3 waits for each answer.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from typing import Any

import zmq

NOOP, KEEP, FETCH, END = b"n", b"k", b"f", b"e"
LINGER_MS = 1_000


def _worker(address: str) -> None:
    socket = zmq.Context().socket(zmq.PAIR)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.connect(address)
    kept: Any = b""
    while True:
        kind, *frames = socket.recv_multipart(copy=False)
        command = kind.bytes
        if command == END:
            socket.close(LINGER_MS)
            return
        if command == KEEP:
            kept = frames[0].bytes
        elif command == NOOP and frames and len(frames[0]) < 64:
            pickle.loads(frames[0].bytes)
        socket.send(kept if command == FETCH else b"", copy=command != FETCH)


class Farm:
    """The parent's side."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        address = "ipc://" + os.path.join(self._folder.name, "farm")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(address)
        self._process = subprocess.Popen([sys.executable, "-m", "benches.peers.zeromq_peer", address])

    def _call(self, *frames: Any) -> Any:
        self._socket.send_multipart(frames, copy=sum(map(len, frames)) < 65_536)
        return self._socket.recv(copy=False)

    def _all(self, payloads: list[Any]) -> None:
        for payload in payloads:
            self._socket.send_multipart([NOOP, payload])
        for _ in payloads:
            self._socket.recv()

    def one(self) -> None:
        self._call(NOOP)

    def many(self, count: int) -> None:
        for n in range(count):
            self._socket.send_multipart([NOOP, pickle.dumps(n)])
        for _ in range(count):
            self._socket.recv()

    def chain(self, count: int) -> None:
        for n in range(count):
            self._call(NOOP, pickle.dumps(n))

    def blocks(self, blocks: list[Any]) -> None:
        self._all([memoryview(block) for block in blocks])

    def put(self, array: Any) -> None:
        self._call(KEEP, memoryview(array))

    def get(self, nbytes: int) -> None:
        assert len(self._call(FETCH)) == nbytes

    def fan(self, count: int) -> None:
        self.one()
        self.many(count)
        self.one()

    def close(self) -> None:
        self._socket.send(END)
        self._process.wait(30)
        self._socket.close(LINGER_MS)
        self._context.term()
        self._folder.cleanup()


def start() -> Farm:
    """Starts it."""
    return Farm()


if __name__ == "__main__":
    _worker(sys.argv[1])
