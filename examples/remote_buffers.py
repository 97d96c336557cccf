"""Remote buffers: memory on a remote worker that tasks, copies and other workers use by handle.

One graph copies a local tensor to a buffer of the first remote worker, a task there updates it, a task on
the second remote worker reads it through an import and writes a buffer of its own, which is fetched at the end.
"""

from pathlib import Path

import echelon as ec
import numpy as np

COUNT = 1024
NBYTES = COUNT * 8


def square(orch, args, cfg):
    """Runs in a remote session. Tensors: x, updated in place."""
    x = np.asarray(args.tensor(0))
    x *= x


def cumulate(orch, args, cfg):
    """Runs in a remote session. Tensors: out, x. Scalar 0: what to start from."""
    np.asarray(args.tensor(0))[...] = args.scalar(0) + np.cumsum(np.asarray(args.tensor(1)))


def whole(buffer):
    """All of a buffer as a vector of float64."""
    return ec.RemoteTensorRef(buffer, shape=(COUNT,), dtype=ec.DataType.FLOAT64)


def main():
    with ec.LocalCluster(
        remote=2, sub_workers=1, pythonpath=[str(Path(__file__).resolve().parent)]
    ) as cluster:
        worker, (first, second) = cluster.worker, cluster.remote_ids
        square_handle = worker.register(ec.RemoteCallable("remote_buffers:square"), workers=[first])
        cumulate_handle = worker.register(ec.RemoteCallable("remote_buffers:cumulate"), workers=[second])
        worker.init()

        squares = worker.remote_malloc(worker=first, nbytes=NBYTES)
        sums = worker.remote_malloc(worker=second, nbytes=NBYTES)
        squares_there = worker.remote_import(worker.remote_export(squares, access="read"), worker=second)
        result = np.zeros(COUNT)

        def graph(orch, args, cfg):
            numbers = orch.alloc((COUNT,), ec.DataType.FLOAT64)
            np.asarray(numbers)[...] = np.arange(COUNT)
            orch.copy(whole(squares), numbers)

            task = ec.TaskArgs()
            task.add_tensor(whole(squares), ec.TensorArgType.INOUT)
            orch.submit_next_level(square_handle, task, worker=first)

            task = ec.TaskArgs()
            task.add_tensor(whole(sums), ec.TensorArgType.OUTPUT)
            task.add_tensor(whole(squares_there), ec.TensorArgType.INPUT)
            task.add_scalar(7)
            orch.submit_next_level(cumulate_handle, task, worker=second)

        worker.run(graph)
        worker.remote_copy_from(sums, result, nbytes=NBYTES)  # or orch.copy inside the graph
        assert np.array_equal(result, 7 + np.cumsum(np.arange(COUNT) ** 2))
        print("last sum:", result[-1], "in", sums)

        worker.remote_release_import(squares_there)
        worker.remote_free(squares)
        worker.remote_free(sums)


if __name__ == "__main__":
    main()
