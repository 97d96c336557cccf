"""W5 between two sessions: a task of one reads, or writes, a buffer of the other. None of it goes through the parent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import echelon as ec
import numpy as np

from benches.lanes import ENTRY
from benches.row import Row, per_second
from benches.workloads import MB

INPUT, OUTPUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT


@contextmanager
def peer_copies(endpoint: str, nbytes: int, *, same_host: bool) -> Iterator[list[Row]]:
    """Rows of two sessions over TCP, or that map each other: there a task copies what it reads, or nothing would move."""
    worker = ec.Worker(level=4)
    spec = ec.RemoteWorkerSpec(endpoint=endpoint, same_host=same_host)
    owner, importer = worker.add_remote_worker(spec), worker.add_remote_worker(spec)
    noop = worker.register(ec.RemoteCallable(ENTRY), workers=[importer])
    take = worker.register(ec.RemoteCallable("benches.callables:take"), workers=[importer])
    with worker:

        def whole(buffer: ec.RemoteBufferHandle) -> ec.RemoteTensorRef:
            return ec.RemoteTensorRef(buffer, offset=0, shape=(nbytes,), dtype=ec.DataType.UINT8)

        buffer = worker.remote_malloc(worker=owner, nbytes=nbytes)
        worker.remote_copy_to(buffer, np.ones(nbytes, dtype=np.uint8))
        export = worker.remote_export(buffer, access="readwrite")
        window = whole(worker.remote_import(export, worker=importer))

        def row(key: str, name: str, limit: str, handle: ec.CallableHandle, args: ec.TaskArgs) -> Row:
            def graph(orch: ec.Orchestrator, _args: object, _config: object) -> None:
                orch.submit_next_level(handle, args, worker=importer)

            action: Callable[[], object] = lambda: worker.run(graph)  # noqa: E731
            return Row(key, name, "MB/s", lambda: per_second(nbytes / MB, action), limit)

        if same_host:
            own = whole(worker.remote_malloc(worker=importer, nbytes=nbytes))
            args = ec.TaskArgs.of((window, INPUT), (own, OUTPUT))
            name = "W5 between sessions, mapped, get, warm"
            yield [row("peers_mapped.w5.get.warm", name, "limit.memcpy", take, args)]
        else:
            tags = (("get", INPUT), ("put", OUTPUT))
            yield [
                row(
                    f"peers.w5.{what}.warm",
                    f"W5 between sessions, {what}, warm",
                    "limit.tcp.stream",
                    noop,
                    ec.TaskArgs.of((window, tag)),
                )
                for what, tag in tags
            ]
