"""Dependencies follow from the tensors: a chain, and what happens when a task in it fails.

No task names another one: tasks that write the same bytes run one after the other. When a task fails, those
that read its result are skipped, and everything else still runs.
"""

import echelon as ec
import numpy as np

CHAIN_LENGTH = 10


def add_one(args):
    np.asarray(args.tensor(0))[...] += 1


def fail(args):
    raise ValueError(f"cannot work on {np.asarray(args.tensor(0)).tolist()}")


def task(array, tag=ec.TensorArgType.INOUT):
    args = ec.TaskArgs()
    args.add_tensor(array, tag)
    return args


def main():
    with ec.Worker(level=4, num_sub_workers=2) as worker:
        add, bad = worker.register(add_one), worker.register(fail)

        # A chain: each task updates what the one before it left.
        chained = np.zeros(3)
        report = worker.run(
            lambda orch, args, cfg: [orch.submit_sub(add, task(chained)) for _ in range(CHAIN_LENGTH)]
        )
        print("chain of", CHAIN_LENGTH, "→", chained, report.counts)
        assert chained.tolist() == [CHAIN_LENGTH] * 3

        # A failure: `poisoned` is updated after the task that fails, `healthy` has nothing to do with it.
        poisoned, healthy = np.zeros(2), np.zeros(2)

        def graph(orch, args, cfg):
            orch.submit_sub(bad, task(poisoned))
            orch.submit_sub(add, task(poisoned))  # reads what the failed task should have left: skipped
            orch.submit_sub(add, task(healthy))  # independent: runs

        try:
            worker.run(graph)
        except ec.TaskError as error:
            print("the run raised", type(error).__name__, "with the traceback of the worker:\n")
            print(error)
        else:
            raise AssertionError("the run should have raised TaskError")
        assert poisoned.tolist() == [0, 0], "nothing is copied back from a task that failed or was skipped"
        assert healthy.tolist() == [1, 1]

        # The worker is as good as new.
        worker.run(lambda orch, args, cfg: orch.submit_sub(add, task(poisoned)))
        assert poisoned.tolist() == [1, 1]
        print("\nafter the failure:", poisoned, healthy)


if __name__ == "__main__":
    main()
