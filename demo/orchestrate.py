"""The parent's part: buffers on the remote workers, and the whole job as one graph.

Tile column ``j`` of the lower triangle belongs to remote worker ``j mod 2`` (block-cyclic), which holds it in
remote buffers and runs every task that writes it. The columns to the right read it too; where they belong to
the other worker they read it through imported handles. Nothing below says what waits for what: the
dependencies follow from the tensors and their tags.
"""

from __future__ import annotations

from contextlib import ExitStack

import echelon as ec
import numpy as np

from demo import kernels
from demo.problem import CLASS_COUNT, Problem

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
FACTOR_KERNELS = ("potrf", "trsm", "syrk", "gemm")
LOCAL_KERNELS = (kernels.cov, kernels.solve, kernels.update, kernels.predict)
PREDICT_BLOCKS = 8  # the test images are predicted in this many tasks


class RemoteTiles:
    """The tiles of the lower triangle in buffers of the remote workers, with the imports that cross over.

    A context manager: it takes the buffers on entry and gives every one back on exit.
    """

    def __init__(self, worker: ec.Worker, remote_ids: list[int], rows: list[slice]) -> None:
        self._worker, self._remote_ids = worker, list(remote_ids)
        self._sizes = [r.stop - r.start for r in rows]
        self._handles: dict[tuple[int, int, int], ec.RemoteBufferHandle] = {}  # (i, j, worker id) → handle
        self._stack = ExitStack()

    def __enter__(self) -> RemoteTiles:
        with self._stack:
            for j in range(len(self._sizes)):
                for i in range(j, len(self._sizes)):
                    self._place(i, j)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc) -> None:
        self._stack.close()

    @property
    def import_count(self) -> int:
        """How many tiles a worker reads from the other one."""
        return sum(handle.is_imported for handle in self._handles.values())

    def owner(self, j: int) -> int:
        """The worker id that holds and writes tile column ``j``."""
        return self._remote_ids[j % len(self._remote_ids)]

    def whole(self, i: int, j: int, reader: int) -> ec.RemoteTensorRef:
        """Tile (i, j) as worker ``reader`` sees it."""
        return self._rows(i, j, reader, 0, self._sizes[i])

    def halves(self, i: int, j: int, reader: int) -> tuple[ec.RemoteTensorRef, ec.RemoteTensorRef]:
        """The upper and the lower rows of tile (i, j): two disjoint ranges of its buffer."""
        middle = self.middle(i)
        return self._rows(i, j, reader, 0, middle), self._rows(i, j, reader, middle, self._sizes[i])

    def middle(self, i: int) -> int:
        """The first row of the lower half of a tile in tile row ``i``."""
        return self._sizes[i] // 2

    def _rows(self, i: int, j: int, reader: int, start: int, stop: int) -> ec.RemoteTensorRef:
        width = self._sizes[j]
        return ec.RemoteTensorRef(
            self._handles[i, j, reader],
            offset=start * width * 8,
            shape=(stop - start, width),
            dtype=ec.DataType.FLOAT64,
        )

    def _place(self, i: int, j: int) -> None:
        """Take the buffer of tile (i, j) and import it where columns j+1…i belong to another worker."""
        worker, owner = self._worker, self.owner(j)
        buffer = worker.remote_malloc(worker=owner, nbytes=self._sizes[i] * self._sizes[j] * 8)
        self._stack.callback(worker.remote_free, buffer)
        self._handles[i, j, owner] = buffer
        for reader in {self.owner(column) for column in range(j + 1, i + 1)} - {owner}:
            imported = worker.remote_import(worker.remote_export(buffer, access="read"), worker=reader)
            self._stack.callback(worker.remote_release_import, imported)
            self._handles[i, j, reader] = imported


class Job:
    """The graph of one classification. ``run`` may be called once."""

    def __init__(self, worker: ec.Worker, remote_ids: list[int], problem: Problem) -> None:
        """Register the callables; ``worker`` must not be inited yet."""
        self.problem = problem
        self.predicted = np.full(len(problem.truth), -1, dtype=np.int64)
        self.import_count = 0
        self._worker, self._remote_ids = worker, remote_ids
        self._local = {fn.__name__: worker.register(fn) for fn in LOCAL_KERNELS}
        self._remote = {}
        for name in FACTOR_KERNELS:
            leaf = ec.RemoteCallable(f"demo.kernels:{name}")
            worker.register(leaf, workers=remote_ids, inner=True)
            self._remote[name] = worker.register(
                ec.RemoteCallable(f"demo.remote_tasks:{name}"), workers=remote_ids
            )
        self._factor: dict[tuple[int, int], np.ndarray] = {}  # (i, j) → view of the tile in shared memory

    @property
    def node_count(self) -> int:
        """Nodes that the parent submits: tasks and copies."""
        n, tiles = len(self.problem.rows), self.problem.tile_count
        below = tiles - n  # tiles below the diagonal
        factorisation = n + 2 * below + n * (n - 1) * (n - 2) // 6  # potrf, trsm and syrk, gemm
        substitution = 2 * (n + below)  # forward and back
        return 3 * tiles + factorisation + substitution + PREDICT_BLOCKS  # cov, copy there, copy back

    def run(self) -> ec.RunReport:
        """Run the graph to its end. Raises ``ec.TaskError`` or another ``ec.EchelonError``."""
        with RemoteTiles(self._worker, self._remote_ids, self.problem.rows) as remote:
            self.import_count = remote.import_count
            return self._worker.run(lambda orch, args, cfg: self._submit_all(orch, remote))

    def factor(self) -> np.ndarray:
        """The lower factor (n, n), put together from its tiles; for use before the worker is closed."""
        rows = self.problem.rows
        whole = np.zeros((rows[-1].stop, rows[-1].stop))
        for (i, j), tile in self._factor.items():
            whole[rows[i], rows[j]] = tile
        return whole

    def release(self) -> None:
        """Drop the views of the worker's shared memory."""
        self._factor.clear()

    def _submit_all(self, orch, remote: RemoteTiles) -> None:
        rows, hyper = self.problem.rows, self.problem.hyper
        tiles = self._covariance(orch, remote, hyper)
        weights = [orch.alloc((r.stop - r.start, CLASS_COUNT), ec.DataType.FLOAT64) for r in rows]
        for r, tensor in zip(rows, weights, strict=True):
            np.asarray(tensor)[...] = self.problem.targets[r]
        for k in range(len(rows)):
            self._factor_column(orch, remote, k)
            for i in range(k, len(rows)):
                self._copy(orch, tiles[i, k], remote.whole(i, k, remote.owner(k)))
            self._forward(orch, tiles, weights, k)
            self._update_trailing(orch, remote, k)
        self._backward(orch, tiles, weights)
        self._predict(orch, weights, hyper)
        self._factor = {at: np.asarray(tile) for at, tile in tiles.items()}

    def _covariance(self, orch, remote: RemoteTiles, hyper: np.ndarray) -> dict:
        """Local workers build each tile in shared memory; a copy takes it to its remote buffer."""
        rows, x = self.problem.rows, self.problem.x_train
        tiles = {}
        for j in range(len(rows)):
            for i in range(j, len(rows)):
                shape = (rows[i].stop - rows[i].start, rows[j].stop - rows[j].start)
                tile = tiles[i, j] = orch.alloc(shape, ec.DataType.FLOAT64)
                self._sub(orch, "cov", [x[rows[i]], x[rows[j]], hyper], [(tile, OUTPUT)], scalar=int(i == j))
                self._copy(orch, remote.whole(i, j, remote.owner(j)), tile)
        return tiles

    def _factor_column(self, orch, remote: RemoteTiles, k: int) -> None:
        """Factor the diagonal tile of column ``k`` and solve the tiles below it."""
        owner = remote.owner(k)
        self._next_level(orch, "potrf", owner, [], [remote.whole(k, k, owner)])
        for i in range(k + 1, len(self.problem.rows)):
            self._next_level(orch, "trsm", owner, [remote.whole(k, k, owner)], remote.halves(i, k, owner))

    def _update_trailing(self, orch, remote: RemoteTiles, k: int) -> None:
        """Take column ``k`` out of all columns to its right, each on the worker that owns it."""
        for j in range(k + 1, len(self.problem.rows)):
            owner = remote.owner(j)
            pivot = remote.whole(j, k, owner)
            read = [*remote.halves(j, k, owner), pivot]
            self._next_level(orch, "syrk", owner, read, remote.halves(j, j, owner), scalar=remote.middle(j))
            for i in range(j + 1, len(self.problem.rows)):
                read = [*remote.halves(i, k, owner), pivot]
                self._next_level(orch, "gemm", owner, read, remote.halves(i, j, owner))

    def _forward(self, orch, tiles: dict, weights: list, k: int) -> None:
        """Forward substitution with column ``k`` of the factor."""
        self._sub(orch, "solve", [tiles[k, k]], first=weights[k])
        for i in range(k + 1, len(weights)):
            self._sub(orch, "update", [tiles[i, k], weights[k]], first=weights[i])

    def _backward(self, orch, tiles: dict, weights: list) -> None:
        """Back substitution with the transposed factor: ``weights`` become alpha."""
        for k in reversed(range(len(weights))):
            self._sub(orch, "solve", [tiles[k, k]], first=weights[k], scalar=1)
            for i in range(k):
                self._sub(orch, "update", [tiles[k, i], weights[k]], first=weights[i], scalar=1)

    def _predict(self, orch, weights: list, hyper: np.ndarray) -> None:
        """Classify the test images; the answers land in the numpy array ``self.predicted``."""
        block = -(-len(self.predicted) // PREDICT_BLOCKS)
        for start in range(0, len(self.predicted), block):
            part = slice(start, start + block)
            read = [self.problem.x_test[part], self.problem.x_train, hyper]
            out = [(self.predicted[part], OUTPUT), *((w, INPUT) for w in weights)]
            self._sub(orch, "predict", read, out, scalar=len(weights))

    def _sub(self, orch, kernel: str, read: list, more=(), *, first=None, scalar: int = 0) -> None:
        """Submit a local task: ``first`` is updated, ``read`` is read, ``more`` are (tensor, tag) pairs."""
        args = ec.TaskArgs()
        if first is not None:
            args.add_tensor(first, INOUT)
        for tensor in read:
            args.add_tensor(tensor, INPUT)
        for tensor, tag in more:
            args.add_tensor(tensor, tag)
        args.add_scalar(scalar)
        orch.submit_sub(self._local[kernel], args)

    def _next_level(self, orch, kernel: str, worker: int, read, written, *, scalar: int = 0) -> None:
        """Submit a task to a remote worker: ``written`` tensors are updated and come first."""
        args = ec.TaskArgs()
        for ref in written:
            args.add_tensor(ref, INOUT)
        for ref in read:
            args.add_tensor(ref, INPUT)
        args.add_scalar(scalar)
        orch.submit_next_level(self._remote[kernel], args, worker=worker)

    def _copy(self, orch, dst, src) -> None:
        """A copy between local and remote memory, as a node of the graph."""
        orch.copy(dst, src)
