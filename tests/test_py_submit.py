"""Submitting from Python: arguments in one call, snapshots, batches, and threads that do not stand in each other's way."""

from __future__ import annotations

import ctypes
import threading

import echelon as ec
import numpy as np
import pytest
from testbed.local import path_bytes
from testbed.wait import eventually

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT

pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def tasks(importable):
    import py_tasks

    return py_tasks


def added(pairs, scalars):
    args = ec.TaskArgs()
    for x, tag in pairs:
        args.add_tensor(x, tag)
    for scalar in scalars:
        args.add_scalar(scalar)
    return args


def at_once(pairs, scalars):
    return ec.TaskArgs.of(*pairs, scalars=scalars)


def frozen() -> np.ndarray:
    x = np.zeros(3)
    x.flags.writeable = False
    return x


INLINE = ec.RemoteTensorRef.host_inline(b"\1", shape=(1,), dtype="uint8")

REFUSED = {
    "no memory": ([(3, INPUT)], []),
    "no memory, second": ([(b"1", INPUT), (None, INPUT)], []),
    "strides": ([(np.zeros((3, 4))[:, ::2], INPUT)], []),
    "element type": ([(np.zeros(3, complex), INPUT)], []),
    "byte order": ([(np.zeros(3, ">f8"), INPUT)], []),
    "rank": ([(np.zeros((1,) * 6), INPUT)], []),
    "read-only": ([(b"abc", OUTPUT)], []),
    "read-only array": ([(frozen(), INOUT)], []),
    "inline written": ([(INLINE, INOUT)], []),
    "tag, number": ([(b"1", 7)], []),
    "tag, negative": ([(b"1", -1)], []),
    "tag, name": ([(b"1", "READ")], []),
    "tag, kind": ([(b"1", None)], []),
    "tag, bool": ([(b"1", True)], []),
    "scalar, kind": ([], [1.5]),
    "scalar, text": ([(b"1", INPUT)], ["3"]),
    "scalar, large": ([], [1, 2**64]),
    "scalar, small": ([], [-(2**63) - 1]),
    "too many tensors": ([(b"1", INPUT)] * 4097, []),
    "too many scalars": ([], [0] * 4097),
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_ways_to_make_arguments_refuse_the_same_with_the_same_words(case):
    pairs, scalars = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as one_by_one:
        added(pairs, scalars)
    with pytest.raises((TypeError, ValueError)) as together:
        at_once(pairs, scalars)
    assert (type(together.value), str(together.value)) == (type(one_by_one.value), str(one_by_one.value))


ACCEPTED = {
    "nothing": ([], []),
    "arrays": ([(np.zeros((2, 3), np.float32), INPUT), (np.zeros(()), OUTPUT)], [3, -1]),
    "empty": ([(np.zeros((0, 4)), INOUT)], []),
    "buffers": ([(bytearray(8), "input"), ((ctypes.c_int * 3)(), 2)], [np.int32(-2)]),
    "inline": ([(INLINE, INPUT)], [2**64 - 1]),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_both_ways_to_make_arguments_make_the_same(case):
    pairs, scalars = ACCEPTED[case]
    for args in (added(pairs, scalars), at_once(pairs, scalars)):
        assert all(got is given for got, (given, _) in zip(args.tensors, pairs, strict=True))
        assert args.scalars == tuple(int(scalar) % 2**64 for scalar in scalars)
        assert len(args) == len(pairs) + len(scalars)
    tags = [[args.tag(i) for i in range(len(pairs))] for args in (added(pairs, []), at_once(pairs, []))]
    assert tags[0] == tags[1]


@pytest.mark.parametrize("pair", [3, b"12", ("a",), (b"1", INPUT, 3), [b"1", INPUT]])
def test_an_argument_of_of_is_a_pair(pair):
    with pytest.raises(TypeError, match="argument 1 must be a pair"):
        ec.TaskArgs.of((b"1", INPUT), pair)


def test_scalars_are_a_sequence():
    with pytest.raises(TypeError, match="scalars must be a sequence of ints, not int"):
        ec.TaskArgs.of(scalars=3)


def test_what_of_refuses_is_pinned_no_longer():
    data = bytearray(8)
    with pytest.raises(TypeError, match="buffer protocol"):
        ec.TaskArgs.of((data, INPUT), (3, INPUT))
    data.append(1)  # a pinned bytearray could not be resized


def test_a_submit_takes_a_snapshot(tasks):
    """Section 15.15: what is added after a submit is in later submits only, and one object serves many."""
    x = np.zeros(4)
    with ec.Worker(num_sub_workers=1) as worker:
        add = worker.register(tasks.add_scalars)

        def graph(orch, a, c):
            args = ec.TaskArgs.of((x, INOUT), scalars=(1,))
            orch.submit_sub(add, args)
            args.add_scalar(10)
            orch.submit_sub(add, args)
            orch.submit_sub(add, args)
            args.add_tensor(np.zeros(1), INPUT)
            assert (args.num_tensors, args.scalars) == (2, (1, 10))

        assert worker.run(graph).counts["completed"] == 3
    assert x.tolist() == [1 + 11 + 11] * 4


def test_a_batch_is_so_many_single_submits(tasks):
    x, y = np.zeros(3), np.zeros(3)
    with ec.Worker(num_sub_workers=2) as worker:
        add = worker.register(tasks.add_scalar)

        def graph(orch, a, c):
            plus = [ec.TaskArgs.of((x if i % 2 else y, INOUT), scalars=(i,)) for i in range(200)]
            handles = orch.submit_sub_many(add, plus)
            assert [handle.sequence for handle in handles] == list(range(1, 201))
            same = ec.TaskArgs.of((x, INOUT), scalars=(1000,))
            orch.submit_sub_many(add, (same for _ in range(3)))
            assert orch.submit_sub_many(add, []) == []

        assert worker.run(graph).counts["completed"] == 203
    assert (x[0], y[0]) == (sum(range(1, 200, 2)) + 3000, sum(range(0, 200, 2)))


def test_a_batch_of_orchestration_tasks_goes_to_the_worker_that_is_named(tasks):
    worker = ec.Worker(level=4)
    first, second = (worker.add_worker(ec.Worker(level=3)) for _ in range(2))
    h = worker.register(tasks.nothing_below)
    with worker:
        report = worker.run(
            lambda orch, a, c: orch.submit_next_level_many(h, [ec.TaskArgs()] * 70, worker=second)
        )
    assert list(report.tasks_per_worker.values()) == [70], (first, report.tasks_per_worker)


def test_an_entry_that_is_no_arguments_is_refused_before_anything_is_submitted(tasks):
    with ec.Worker(num_sub_workers=1) as worker:
        noop = worker.register(tasks.noop)

        def graph(orch, a, c):
            with pytest.raises(TypeError, match="args_list must hold TaskArgs, not tuple"):
                orch.submit_sub_many(noop, [ec.TaskArgs(), ()])
            with pytest.raises(TypeError, match="args_list must be a sequence"):
                orch.submit_sub_many(noop, 3)
            with pytest.raises(ValueError, match="timeout_s"):
                orch.submit_sub_many(noop, [ec.TaskArgs()], timeout_s=0)

        assert worker.run(graph).counts["completed"] == 0


def test_an_error_in_the_middle_of_a_batch_has_its_index(tasks):
    """What stands before it stays submitted; its type is that of a single submit."""
    with ec.Worker(num_sub_workers=1) as worker:
        noop = worker.register(tasks.noop)

        def graph(orch, a, c):
            with orch.scope():
                ended = orch.alloc(3, "uint8")
            batch = [ec.TaskArgs()] * 100 + [ec.TaskArgs.of((ended, INPUT))] + [ec.TaskArgs()] * 100
            with pytest.raises(
                ec.HandleError, match=r"args_list\[100\]: .*scope has ended.*before it is submitted"
            ):
                orch.submit_sub_many(noop, batch)
            with pytest.raises(TypeError, match=r"args_list\[1\]: .*RemoteTensorRef"):
                orch.submit_sub_many(noop, [ec.TaskArgs(), ec.TaskArgs.of((INLINE, INPUT))])
            with pytest.raises(ValueError, match=r"args_list\[0\]: .*no worker 7"):
                orch.submit_next_level_many(noop, [ec.TaskArgs()], worker=7)

        assert worker.run(graph).counts["completed"] == 101


@pytest.mark.parametrize("many", [False, True])
def test_a_submit_that_waits_for_room_lets_other_threads_go_on(many, tasks, tmp_path):
    """P-1: the table is full until a file is there, and only this thread, which needs the GIL for it, makes the file."""
    flag = tmp_path / "flag"
    with ec.Worker(num_sub_workers=1, max_tasks=4) as worker:
        wait, noop = worker.register(tasks.wait_for_file), worker.register(tasks.noop)
        ended = threading.Event()

        def graph(orch, a, c):
            orch.submit_sub(wait, ec.TaskArgs.of((path_bytes(flag), INPUT)))
            if many:
                orch.submit_sub_many(noop, [ec.TaskArgs()] * 20)
            else:
                for _ in range(20):
                    orch.submit_sub(noop, ec.TaskArgs())
            ended.set()

        runs = threading.Thread(target=lambda: worker.run(graph))
        runs.start()
        eventually(lambda: worker.progress()["submitted"] == 4, 60, what="a full table")
        assert not ended.is_set()
        flag.touch()
        runs.join()
        assert worker.progress()["completed"] == 21


def test_a_thread_submits_while_another_waits_for_its_tasks(tasks, tmp_path):
    """P-1: the waiting thread drives the engine, and the submits of this one come through and run."""
    flag = tmp_path / "flag"
    with ec.Worker(num_sub_workers=2) as worker:
        wait, noop = worker.register(tasks.wait_for_file), worker.register(tasks.noop)

        def graph(orch, a, c):
            orch.submit_sub(wait, ec.TaskArgs.of((path_bytes(flag), INPUT)))
            waits = threading.Thread(target=orch.wait_all)
            waits.start()
            for _ in range(100):
                orch.submit_sub(noop, ec.TaskArgs())
            orch.submit_sub_many(noop, [ec.TaskArgs()] * 100)
            # At least the first of them goes to the worker that is free.
            eventually(lambda: worker.progress()["completed"] >= 1, 60, what="a task beside")
            assert waits.is_alive()
            flag.touch()
            waits.join()

        assert worker.run(graph).counts["completed"] == 201
