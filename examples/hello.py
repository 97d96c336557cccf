"""The smallest program: one graph of two tasks on local sub workers, a numpy array in and out."""

import echelon as ec
import numpy as np


def double(args):
    np.asarray(args.tensor(0))[...] *= 2


def graph(orch, args, cfg):
    for half in (numbers[:4], numbers[4:]):  # two tasks on disjoint halves: they may run at the same time
        task = ec.TaskArgs()
        task.add_tensor(half, ec.TensorArgType.INOUT)
        orch.submit_sub(double_handle, task)


numbers = np.arange(8.0)
with ec.Worker(level=4, num_sub_workers=2) as worker:
    double_handle = worker.register(double)
    report = worker.run(graph)
print(numbers, report.counts)
assert numbers.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
