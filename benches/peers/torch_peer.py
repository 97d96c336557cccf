"""torch RPC over TensorPipe: two ranks on loopback, arrays as tensors; W3 and W6 wait for results in the parent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import torch
from torch.distributed import rpc

from benches.peers import work

WORKER = "worker"


def _join(name: str, rank: int, port: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=4, init_method=f"tcp://127.0.0.1:{port}")
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


class Torch:
    """`rpc_async` for each task."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self._process = subprocess.Popen([sys.executable, "-m", "benches.peers.torch_peer", port])
        _join("parent", 0, port)

    def _all(self, arguments: Any) -> None:
        for future in [rpc.rpc_async(WORKER, work.noop, (argument,)) for argument in arguments]:
            future.wait()

    def one(self) -> None:
        rpc.rpc_sync(WORKER, work.noop)

    def many(self, count: int) -> None:
        self._all(range(count))

    def chain(self, count: int) -> None:
        value = None
        for _ in range(count):
            value = rpc.rpc_sync(WORKER, work.noop, (value,))

    def blocks(self, blocks: list[Any]) -> None:
        self._all([torch.from_numpy(block) for block in blocks])

    def put(self, array: Any) -> None:
        rpc.rpc_sync(WORKER, work.keep, (torch.from_numpy(array),))

    def get(self, nbytes: int) -> None:
        assert rpc.rpc_sync(WORKER, work.fetch).nbytes == nbytes

    def fan(self, count: int) -> None:
        value = rpc.rpc_sync(WORKER, work.noop)
        parts = [rpc.rpc_async(WORKER, work.noop, (value,)) for _ in range(count)]
        rpc.rpc_sync(WORKER, work.gather, tuple(part.wait() for part in parts))

    def close(self) -> None:
        rpc.shutdown()
        self._process.wait(30)


def start() -> Torch:
    """Starts it."""
    return Torch()


if __name__ == "__main__":
    _join(WORKER, 1, sys.argv[1])
    rpc.shutdown()
