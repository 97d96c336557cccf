"""Runs on local sub workers: tensors in and out, failures, lives, with real child processes."""

from __future__ import annotations

import json

import echelon as ec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testbed.local import run_one

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
EXISTING, NO_DEP = ec.TensorArgType.OUTPUT_EXISTING, ec.TensorArgType.NO_DEP

pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def tasks(importable):
    import py_tasks

    return py_tasks


def test_a_numpy_array_goes_in_and_out(tasks):
    x = np.arange(6.0).reshape(2, 3)
    with ec.Worker(num_sub_workers=1) as worker:
        report = run_one(worker, worker.register(tasks.double), (x, INOUT))
    assert x.tolist() == [[0, 2, 4], [6, 8, 10]]
    assert report.counts == {"completed": 1, "failed": 0, "lost": 0, "skipped": 0, "cancelled": 0}
    assert report.tasks_per_worker == {"local/sub0": 1}


@pytest.mark.parametrize(
    "member", [m for m in ec.DataType if m.name not in ("BOOL", "BFLOAT16")], ids=lambda m: m.name
)
def test_every_element_type_keeps_its_type_and_shape(member, tasks):
    x, y = np.ones((2, 0 + 3), member.numpy), np.zeros((2, 3), member.numpy)
    with ec.Worker(num_sub_workers=1) as worker:
        run_one(worker, worker.register(tasks.copy_into), (x, INPUT), (y, OUTPUT))
    assert (y == 1).all()


def test_any_shape_and_element_type_travels_unchanged(tasks):
    """Random tensors through a child and back, bit for bit."""
    types = [m for m in ec.DataType if m.name not in ("BOOL", "BFLOAT16")]
    with ec.Worker(num_sub_workers=1) as worker:
        copy_into = worker.register(tasks.copy_into)

        @settings(max_examples=60, deadline=None, derandomize=True)
        @given(
            st.sampled_from(types), st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 2**32)
        )
        def check(member, shape, seed):
            bits = np.random.default_rng(seed).bytes(int(np.prod(shape)) * member.itemsize)
            source = np.frombuffer(bits, member.numpy).reshape(shape)
            target = np.zeros(shape, member.numpy)
            run_one(worker, copy_into, (source, INPUT), (target, OUTPUT))
            assert target.tobytes() == source.tobytes()

        check()


def test_memory_of_a_scope_is_shared_without_a_copy(tasks):
    with ec.Worker(num_sub_workers=2) as worker:
        double, add = worker.register(tasks.double), worker.register(tasks.add_scalar)

        def graph(orch, args, config):
            with orch.scope():
                t = orch.alloc((4, 4), ec.DataType.FLOAT64)
                assert (t.shape, t.dtype, t.nbytes, len(t), t.ndim) == (
                    (4, 4),
                    ec.DataType.FLOAT64,
                    128,
                    4,
                    2,
                )
                t.numpy()[...] = 3
                orch.submit_sub(double, ec.TaskArgs.of((t, INOUT)))
                orch.submit_sub(add, ec.TaskArgs.of((t, INOUT), scalars=(1,)))
                kept.append(t.numpy())

        kept: list[np.ndarray] = []
        worker.run(graph)
        assert (kept[0] == 7).all()
        kept.clear()


def test_the_order_follows_from_the_tensors(tasks):
    """Tasks on overlapping slices of one array run in submit order, whatever worker they are on."""
    x = np.zeros(64)
    with ec.Worker(num_sub_workers=2) as worker:
        double, add = worker.register(tasks.double), worker.register(tasks.add_scalar)

        def graph(orch, args, config):
            for step in range(20):
                part = x[:48] if step % 2 else x[16:]
                orch.submit_sub(add, ec.TaskArgs.of((part, INOUT), scalars=(1,)))
                orch.submit_sub(double, ec.TaskArgs.of((part, INOUT)))

        worker.run(graph)
    expected = np.zeros(64)
    for step in range(20):
        part = expected[:48] if step % 2 else expected[16:]
        part += 1
        part *= 2
    assert x.tolist() == expected.tolist()


def test_a_view_of_shared_memory_is_that_memory(tasks):
    """A numpy slice of an allocated tensor and a part by rows depend on the tensor itself."""
    with ec.Worker(num_sub_workers=2) as worker:
        double, add = worker.register(tasks.double), worker.register(tasks.add_scalar)

        def graph(orch, args, config):
            t = orch.alloc((4, 2), "float64")
            view = t.numpy()
            view[...] = 1
            orch.submit_sub(double, ec.TaskArgs.of((t, INOUT)))
            orch.submit_sub(add, ec.TaskArgs.of((view[1:3], INOUT), scalars=(5,)))
            orch.submit_sub(double, ec.TaskArgs.of((t.rows(2, 2), INOUT)))
            orch.wait_all()
            seen.append(view.copy())

        seen: list[np.ndarray] = []
        worker.run(graph)
    assert seen[0].tolist() == [[2, 2], [7, 7], [14, 14], [4, 4]]


def test_rows_outside_the_tensor_are_refused():
    with ec.Worker() as worker:

        def graph(orch, args, config):
            with pytest.raises(ValueError, match="rows"):
                orch.alloc((4, 2), "int8").rows(3, 2)

        worker.run(graph)


def test_a_view_kept_by_a_worker_keeps_its_memory(tasks):
    """R-5, design §15.6: the block is not reused while a child still looks at it."""
    x = np.full(4096, 7.0)
    with ec.Worker(num_sub_workers=1) as worker:
        keep, check = worker.register(tasks.keep_view), worker.register(tasks.check_kept)
        fill = worker.register(tasks.fill)
        run_one(worker, keep, (x, INPUT))
        for _ in range(5):
            run_one(worker, fill, (np.empty(4096), OUTPUT), scalars=(9,))
        run_one(worker, check, scalars=(7,))


def test_an_input_is_read_only_in_the_worker(tasks):
    x = np.zeros(3)
    with ec.Worker(num_sub_workers=1) as worker, pytest.raises(ec.TaskError, match="read-only"):
        run_one(worker, worker.register(tasks.write_input), (x, INPUT))
    assert x.tolist() == [0, 0, 0]


def test_a_failure_carries_everything_and_the_worker_goes_on(tasks):
    x = np.zeros(3)
    with ec.Worker(num_sub_workers=1) as worker:
        fail, double = worker.register(tasks.fail), worker.register(tasks.double)

        def graph(orch, args, config):
            orch.submit_sub(fail, ec.TaskArgs.of((x, OUTPUT)))
            orch.submit_sub(double, ec.TaskArgs.of((x, INOUT)))

        with pytest.raises(ec.TaskError) as caught:
            worker.run(graph)
        error = caught.value
        assert (error.callable, error.worker, error.sequence) == ("py_tasks:fail", "local/sub0", 1)
        assert (error.worker_id, error.host, error.skipped) == (None, None, 1)
        for text in (
            "Traceback",
            "ärger: the task is broken",
            "KeyError: 'inner cause'",
            "direct cause",
            "py_tasks.py",
        ):
            assert text in error.remote_traceback
            assert text in str(error)
        assert [f.outcome for f in error.failures] == ["failed"]
        assert error.hint
        assert x.tolist() == [0, 0, 0]
        run_one(worker, double, (x, INOUT))


def test_the_traceback_shows_where_it_was_raised(tasks):
    with ec.Worker(num_sub_workers=1) as worker, pytest.raises(ec.TaskError) as caught:
        run_one(worker, worker.register(tasks.fail_plainly))
    text = caught.value.remote_traceback
    assert text.startswith("Traceback (most recent call last):\n")
    assert 'raise LookupError("plain")' in text and "in fail_plainly" in text


def test_what_a_failed_task_wrote_is_not_copied_back(tasks):
    x = np.zeros(3)
    with ec.Worker(num_sub_workers=1) as worker, pytest.raises(ec.TaskError, match="after writing"):
        run_one(worker, worker.register(tasks.half_then_fail), (x, INOUT))
    assert x.tolist() == [0, 0, 0]


def test_a_child_that_dies_is_named_and_replaced(tasks):
    with ec.Worker(num_sub_workers=1) as worker:
        die, noop = worker.register(tasks.die), worker.register(tasks.noop)
        with pytest.raises(ec.EndpointLost, match="signal 9") as caught:
            run_one(worker, die)
        assert caught.value.failures[0].outcome == "endpoint_lost"
        assert caught.value.worker.startswith("local/sub")
        assert run_one(worker, noop).counts["completed"] == 1


def test_an_exception_of_the_function_passes_unchanged(tasks):
    class Mine(BaseException):
        pass

    raised = Mine()
    with ec.Worker(num_sub_workers=1) as worker:
        noop = worker.register(tasks.noop)

        def graph(orch, args, config):
            orch.submit_sub(noop)
            raise raised

        with pytest.raises(Mine) as caught:
            worker.run(graph)
        assert caught.value is raised
        assert run_one(worker, noop).counts["completed"] == 1


def test_run_hands_on_arguments_and_configuration(tasks):
    seen = []
    with ec.Worker(num_sub_workers=0) as worker:
        worker.run(
            lambda orch, args, config: seen.append((args, config)), {"a": 1}, ec.CallConfig(block_dim=3)
        )
        worker.run(lambda orch, args, config: seen.append((args, config)))
    assert seen == [({"a": 1}, ec.CallConfig(block_dim=3)), (None, ec.CallConfig())]
    with pytest.raises(TypeError, match="fn must be callable"):
        ec.Worker().run(3)


def test_an_orchestrator_ends_with_its_function(tasks):
    kept = []
    with ec.Worker(num_sub_workers=1) as worker:
        noop = worker.register(tasks.noop)
        worker.run(lambda orch, args, config: kept.append(orch))
        with pytest.raises(ec.LifecycleError, match="has returned"):
            kept[0].submit_sub(noop)


def test_groups_run_every_member(tasks):
    x = np.zeros(5)
    with ec.Worker(num_sub_workers=2) as worker:
        fill = worker.register(tasks.fill)

        def graph(orch, args, config):
            members = [ec.TaskArgs.of((x[i : i + 1], OUTPUT), scalars=(i,)) for i in range(5)]
            handle = orch.submit_sub_group(fill, members)
            assert handle.sequence == 1

        worker.run(graph)
        assert x.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="at least one"):
            worker.run(lambda orch, a, c: orch.submit_sub_group(fill, []))
        with pytest.raises(TypeError, match="must hold TaskArgs"):
            worker.run(lambda orch, a, c: orch.submit_sub_group(fill, [x]))


def test_a_submit_takes_a_snapshot(tasks):
    x = np.zeros(1)
    with ec.Worker(num_sub_workers=1) as worker:
        add = worker.register(tasks.add_scalar)

        def graph(orch, args, config):
            args = ec.TaskArgs.of((x, INOUT), scalars=(1,))
            orch.submit_sub(add, args)
            args.add_scalar(7)
            orch.submit_sub(add, args)

        worker.run(graph)
    assert x[0] == 2


def test_a_local_child_runs_orchestration_callables_with_workers_of_its_own(tasks):
    x, y = np.ones(4), np.zeros(4)
    with ec.Worker(level=4, num_sub_workers=0) as worker:
        pass
    worker = ec.Worker(level=4)
    child = worker.add_worker(ec.Worker(level=3, num_sub_workers=1))
    assert child == 0
    forward = worker.register(tasks.orch_forward)
    total = worker.register(tasks.orch_sum)
    worker.register(tasks.double, workers=[child], inner=True)
    with worker:

        def graph(orch, args, config):
            orch.submit_next_level(forward, ec.TaskArgs.of((x, INOUT)), worker=child)
            orch.submit_next_level(total, ec.TaskArgs.of((x, INPUT), (y, OUTPUT)), ec.CallConfig(block_dim=2))

        report = worker.run(graph)
    assert x.tolist() == [2] * 4
    assert y.tolist() == [10] * 4
    assert sum(report.tasks_per_worker.values()) == 3


def test_a_task_that_nobody_can_run_says_why(tasks):
    with ec.Worker(level=4) as worker:
        noop = worker.register(tasks.noop)
        with pytest.raises(ec.NotEligibleError, match="add one before init"):
            run_one(worker, noop)
        for unknown in (9, -2):
            with pytest.raises(ValueError, match=f"no worker {unknown}; known ids"):
                worker.run(
                    lambda orch, a, c, to=unknown: orch.submit_next_level(noop, ec.TaskArgs(), worker=to)
                )
        with pytest.raises(ValueError, match="known ids"):
            worker.register(tasks.noop, workers=[3])
        for wrong in ({}, np.zeros(1), "args"):
            with pytest.raises(TypeError, match="TaskArgs"):
                worker.run(lambda orch, a, c, args=wrong: orch.submit_sub(noop, args))
        assert repr(worker.run(lambda orch, a, c: None)) == "<RunReport no tasks on 0 workers>"


def test_memory_of_an_ended_scope_is_refused(tasks):
    with ec.Worker(num_sub_workers=1) as worker:
        double = worker.register(tasks.double)

        def graph(orch, args, config):
            with orch.scope():
                t = orch.alloc(3, "int8")
            orch.submit_sub(double, ec.TaskArgs.of((t, INOUT)))

        with pytest.raises(ec.HandleError, match="scope has ended"):
            worker.run(graph)


def test_a_given_away_worker_is_used_no_more(tasks):
    """Design §15.22"""
    parent, child = ec.Worker(level=4), ec.Worker(level=3)
    parent.add_worker(child)
    assert child.state == "given"
    with pytest.raises(ec.LifecycleError, match="part of another worker"):
        child.init()
    with pytest.raises(ValueError, match="level"):
        parent.add_worker(ec.Worker(level=4))


def test_life_cycle(tasks):
    worker = ec.Worker(num_sub_workers=1)
    assert worker.state == "new"
    worker.close()
    with pytest.raises(ec.LifecycleError):
        worker.run(lambda orch, a, c: None)
    worker = ec.Worker(num_sub_workers=1)
    handle = worker.register(tasks.noop)
    run_one(worker, handle)  # the first run inits
    assert worker.state == "ready"
    with pytest.raises(ec.LifecycleError):
        worker.init()
    progress = worker.progress()
    assert (progress["submitted"], progress["finished"], progress["completed"]) == (1, 1, 1)
    assert [info["name"] for info in worker.workers()] == ["local/sub0"]
    worker.close()
    worker.close()
    assert worker.state == "closed"


def test_the_timeline_has_every_task_and_opens_as_json(tasks, tmp_path):
    x = np.zeros(2)
    with ec.Worker(num_sub_workers=1) as worker:
        double = worker.register(tasks.double)

        def graph(orch, args, config):
            for _ in range(3):
                orch.submit_sub(double, ec.TaskArgs.of((x, INOUT)))

        report = worker.run(graph)
    assert [event["task"] for event in report.timeline] == [1, 2, 3]
    for event in report.timeline:
        assert event["name"] == "py_tasks:double" and event["outcome"] == "completed"
        assert event["submit_ns"] <= event["ready_ns"] <= event["start_ns"] <= event["end_ns"]
    assert report.timeline[1]["deps"] == [1]
    report.write_timeline(tmp_path / "timeline.json")
    assert json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    with pytest.raises(OSError):
        report.write_timeline(tmp_path / "no" / "folder.json")


def test_memory_beyond_the_limit_is_an_error_and_not_a_crash(tasks):
    with ec.Worker(num_sub_workers=1, memory_limit=1 << 20) as worker:
        with pytest.raises(ec.ResourceExhausted, match="memory"):
            worker.run(lambda orch, a, c: orch.alloc((1 << 21,), "uint8"))
        worker.run(lambda orch, a, c: orch.alloc((1 << 10,), "uint8"))


def test_a_remote_reference_cannot_go_to_a_sub_worker(tasks):
    """R-088"""
    with ec.Worker(num_sub_workers=1) as worker:
        noop = worker.register(tasks.noop)
        ref = ec.RemoteTensorRef.host_inline(b"\x01", shape=(1,), dtype="uint8")
        with pytest.raises(TypeError):
            run_one(worker, noop, (ref, INPUT))


def test_arrays_may_be_freed_while_their_tasks_wait(tasks):
    """The pin holds the array, not the script."""
    y = np.zeros(1000)
    with ec.Worker(num_sub_workers=1) as worker:
        copy = worker.register(tasks.copy_into)

        def graph(orch, args, config):
            for value in range(20):
                orch.submit_sub(copy, ec.TaskArgs.of((np.full(1000, value, float), INPUT), (y, OUTPUT)))

        worker.run(graph)
    assert (y == 19).all()


def test_arrays_that_share_written_bytes_are_refused(tasks):
    """Each would be staged in memory of its own, and copying back the one would undo the other."""
    x = np.zeros(6)
    with ec.Worker(num_sub_workers=1) as worker:
        double = worker.register(tasks.double)
        for one, other in ((x, x), (x[:4], x[3:])):
            with pytest.raises(ValueError, match="arguments 0 and 1 are arrays that share bytes"):
                run_one(worker, double, (one, INOUT), (other, OUTPUT))
        for one, other, tag in ((x[:3], x[3:], INOUT), (x, x, INPUT)):
            assert run_one(worker, double, (one, INOUT), (other, tag)).counts["completed"] == 1
