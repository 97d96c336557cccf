"""Chains of dependent tasks on one worker, which are sent before their producers have ended (design §15.18)."""

from __future__ import annotations

import itertools
import subprocess
import sys

import echelon as ec
import numpy as np
import pytest

OUTPUT, INOUT = ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
NO_DEP = ec.TensorArgType.NO_DEP
I64 = ec.DataType.INT64
LENGTH = 1000
GOES_ON, RAISES, DIES, HANGS = 0, 1, 2, 3

pytestmark = pytest.mark.usefixtures("importable")


class Local:
    """Links as leaves of one sub worker."""

    name = "sub"
    _views = ()

    def __init__(self, request) -> None:
        import chain_tasks

        self.worker = ec.Worker(num_sub_workers=1, interrupt_grace_s=0.2)
        self._link = self.worker.register(chain_tasks.link)
        self._overwrite = self.worker.register(chain_tasks.overwrite)

    def memory(self, orch):
        tensors = orch.alloc((1,), I64), orch.alloc((1,), I64)
        for tensor in tensors:
            tensor.numpy()[0] = 0
        self._views = [tensor.numpy() for tensor in tensors]
        return tensors

    def values(self):
        return [int(view[0]) for view in self._views]

    def close(self):
        # What views a run's memory keeps it.
        self._views = ()

    def link(self, orch, chain, log, kind=GOES_ON):
        orch.submit_sub(self._link, ec.TaskArgs.of((chain, INOUT), (log, NO_DEP), scalars=(kind,)))

    def overwrite(self, orch, chain, value):
        orch.submit_sub(self._overwrite, ec.TaskArgs.of((chain, OUTPUT), scalars=(value,)))


class Child(Local):
    """Links in a local level 3 worker."""

    name = "child"

    def __init__(self, request) -> None:
        self.worker = ec.Worker(level=4, interrupt_grace_s=0.2)
        self._id = self.worker.add_worker(ec.Worker(level=3, num_sub_workers=0))
        name = "chain_tasks:orch_{}".format
        self._link = self.worker.register(ec.RemoteCallable(name("link")), workers=[self._id])
        self._overwrite = self.worker.register(ec.RemoteCallable(name("overwrite")), workers=[self._id])

    def link(self, orch, chain, log, kind=GOES_ON):
        args = ec.TaskArgs.of((chain, INOUT), (log, NO_DEP), scalars=(kind,))
        orch.submit_next_level(self._link, args, worker=self._id)

    def overwrite(self, orch, chain, value):
        args = ec.TaskArgs.of((chain, OUTPUT), scalars=(value,))
        orch.submit_next_level(self._overwrite, args, worker=self._id)


class Remote(Child):
    """Links in a remote session, over its buffers."""

    name = "session"

    def __init__(self, request) -> None:
        daemon = request.getfixturevalue("daemon")
        self.worker = ec.Worker(level=4, interrupt_grace_s=0.2)
        spec = ec.RemoteWorkerSpec(endpoint=daemon.endpoint, num_sub_workers=0)
        self._id = self.worker.add_remote_worker(spec)
        name = "chain_tasks:orch_{}".format
        self._link = self.worker.register(ec.RemoteCallable(name("link")), workers=[self._id])
        self._overwrite = self.worker.register(ec.RemoteCallable(name("overwrite")), workers=[self._id])

    def memory(self, orch):
        self._buffers = [self.worker.remote_malloc(self._id, 8) for _ in range(2)]
        for buffer in self._buffers:
            self.worker.remote_copy_to(buffer, np.zeros(1, np.int64))
        return [ec.RemoteTensorRef(buffer, shape=(1,), dtype=I64) for buffer in self._buffers]

    def values(self):
        read = np.zeros(1, np.int64)
        values = []
        for buffer in self._buffers:
            self.worker.remote_copy_from(buffer, read)
            values.append(int(read[0]))
        return values


@pytest.fixture(params=[Local, Child, Remote], ids=lambda kind: kind.name)
def bed(request):
    bed = request.param(request)
    with bed.worker:
        yield bed
    bed.close()


def run_chain(bed, kinds, last=None):
    def graph(orch, args, config):
        chain, log = bed.memory(orch)
        for kind in kinds:
            bed.link(orch, chain, log, kind)
        if last is not None:
            bed.overwrite(orch, chain, last)
            bed.link(orch, chain, log)

    return bed.worker.run(graph)


def test_r_227_a_long_chain_gives_what_its_links_give_one_by_one(bed):
    report = run_chain(bed, [GOES_ON] * LENGTH)
    assert report.counts["completed"] == LENGTH
    assert bed.values() == [LENGTH, LENGTH]


def test_r_082_a_failure_in_the_middle_of_a_chain_skips_the_rest_and_spares_who_overwrites(bed):
    """The links behind the broken one are never called; each names it. Who overwrites and who reads that run."""
    broken = LENGTH // 2
    kinds = [GOES_ON] * LENGTH
    kinds[broken - 1] = RAISES
    with pytest.raises(ec.TaskError, match="a broken link") as caught:
        run_chain(bed, kinds, last=7)
    error = caught.value
    assert [failure.sequence for failure in error.failures] == [broken]
    assert (error.skipped, error.cancelled) == (LENGTH - broken, 0)
    assert [task.sequence for task in error.affected] == list(range(broken + 1, broken + 101))
    for task in error.affected:
        assert f"it reads what task {broken} did not produce" in task.remote_traceback
    assert bed.values() == [8, broken + 1]


@pytest.fixture(params=[Local, Child], ids=lambda kind: kind.name)
def local_bed(request):
    bed = request.param(request)
    with bed.worker:
        yield bed
    bed.close()


def test_r_082_a_child_that_dies_in_the_middle_of_a_chain_loses_one_link(local_bed):
    bed, lost = local_bed, LENGTH // 2
    kinds = [GOES_ON] * LENGTH
    kinds[lost - 1] = DIES
    with pytest.raises(ec.EndpointLost) as caught:
        run_chain(bed, kinds)
    error = caught.value
    assert [failure.sequence for failure in error.failures] == [lost]
    assert (error.skipped, error.cancelled) == (LENGTH - lost, 0)
    assert bed.values() == [lost - 1, lost]


def test_r_084_a_session_that_dies_in_the_middle_of_a_chain_loses_what_it_had_begun(request):
    """Which links had ended is known by their answers; the first without one is lost, and all behind it are skipped."""
    bed = Remote(request)
    kinds = [GOES_ON] * LENGTH
    kinds[LENGTH // 2 - 1] = DIES
    with bed.worker:
        with pytest.raises(ec.EndpointLost) as caught:
            run_chain(bed, kinds)
        error = caught.value
        (lost,) = [failure.sequence for failure in error.failures]
        assert lost <= LENGTH // 2
        assert (error.skipped, error.cancelled) == (LENGTH - lost, 0)


INTERRUPTED = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import chain_tasks
import echelon as ec

INOUT, NO_DEP, I64 = ec.TensorArgType.INOUT, ec.TensorArgType.NO_DEP, ec.DataType.INT64
with ec.Worker(num_sub_workers=1, interrupt_grace_s=0.2) as w:
    link = w.register(chain_tasks.link)

    def graph(orch, args, config):
        chain, log = orch.alloc((1,), I64), orch.alloc((1,), I64)
        chain.numpy()[0] = log.numpy()[0] = 0
        for at in range(40):
            kind = 3 if at == 20 else 0
            orch.submit_sub(link, ec.TaskArgs.of((chain, INOUT), (log, NO_DEP), scalars=(kind,)))
        views.extend((chain.numpy(), log.numpy()))
        while views[1][0] < 21:
            pass
        os.kill(os.getpid(), signal.SIGINT)
        orch.wait_all()

    views = []
    try:
        w.run(graph)
    except KeyboardInterrupt:
        print("interrupted", [int(view[0]) for view in views])
    report = w.run(lambda orch, args, config: orch.submit_sub(link, ec.TaskArgs.of(
        (orch.alloc((1,), I64), INOUT), (orch.alloc((1,), I64), NO_DEP), scalars=(0,))))
    print(report.counts["completed"])
"""


def test_an_interrupt_in_the_middle_of_a_chain_begins_no_further_link(callables_path):
    """Design §15.15: what hangs is ended after the grace, what was sent behind it is cancelled, the Worker stays usable."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(callables_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    assert (done.returncode, done.stdout.decode()) == (0, "interrupted [20, 21]\n1\n")


def test_a_time_limit_in_the_middle_of_a_chain_ends_one_link():
    """A link's time begins when it is first on its worker, not when it was sent."""
    import chain_tasks

    with ec.Worker(num_sub_workers=1) as worker:
        link = worker.register(chain_tasks.link)
        views = []

        def graph(orch, args, config):
            chain, log = orch.alloc((1,), I64), orch.alloc((1,), I64)
            views.extend((chain.numpy(), log.numpy()))
            for view in views:
                view[0] = 0
            for at in range(1, 31):
                kind = HANGS if at == 20 else GOES_ON
                args_ = ec.TaskArgs.of((chain, INOUT), (log, NO_DEP), scalars=(kind,))
                limit = 0.3 if kind == HANGS else 60
                orch.submit_sub(link, args_, timeout_s=limit)

        with pytest.raises(ec.EndpointLost, match="timeout_s") as caught:
            worker.run(graph)
        assert [failure.sequence for failure in caught.value.failures] == [20]
        assert caught.value.skipped == 10
        assert [int(view[0]) for view in views] == [19, 20]


def test_r_227_a_task_that_reads_from_two_follows_them_in_whatever_order_they_were_sent():
    """The first of the producers waits for a copy back, so the second one is sent before it."""
    import chain_tasks

    rounds = 300

    def graph(orch, args, config):
        plain = np.zeros(1)
        made, written = orch.alloc((1,), "float64"), orch.alloc((1,), "float64")
        of = ec.TaskArgs.of
        for _ in range(rounds):
            batch = [
                of((plain, OUTPUT)),
                of((plain, ec.TensorArgType.INPUT), (made, OUTPUT)),
                of((written, OUTPUT)),
                of((made, ec.TensorArgType.INPUT), (written, ec.TensorArgType.INPUT)),
            ]
            orch.submit_sub_many(nothing, batch)

    with ec.Worker(num_sub_workers=1) as worker:
        nothing = worker.register(chain_tasks.nothing)
        assert worker.run(graph).counts["completed"] == 4 * rounds


def test_links_are_sent_before_their_producers_have_ended(bed):
    report = run_chain(bed, [GOES_ON] * LENGTH)
    links = sorted(report.timeline, key=lambda event: event["start_ns"])
    assert len(links) == LENGTH
    assert any(link["ready_ns"] < before["end_ns"] for before, link in itertools.pairwise(links))


def test_r_227_a_chain_over_a_plain_array_sees_each_copy_back():
    """Decision 0004: a link over an array waits until its producer's results are in the caller's array."""
    import chain_tasks

    values = np.zeros(4)
    with ec.Worker(num_sub_workers=1) as worker:
        add = worker.register(chain_tasks.add_one)
        worker.run(
            lambda orch, args, config: (
                [orch.submit_sub(add, ec.TaskArgs.of((values, INOUT))) for _ in range(200)] and None
            )
        )
    assert values.tolist() == [200, 0, 0, 0]


def test_r_227_a_chain_that_alternates_between_two_workers_keeps_its_order():
    """Nothing is chained across lanes; the result is that of one by one."""
    worker = ec.Worker(level=4)
    ids = [worker.add_worker(ec.Worker(level=3, num_sub_workers=0)) for _ in range(2)]
    link = worker.register(ec.RemoteCallable("chain_tasks:orch_link"), workers=ids)
    views = []

    def graph(orch, args, config):
        chain, log = orch.alloc((1,), I64), orch.alloc((1,), I64)
        views.extend((chain.numpy(), log.numpy()))
        for view in views:
            view[0] = 0
        for at in range(300):
            args_ = ec.TaskArgs.of((chain, INOUT), (log, NO_DEP), scalars=(GOES_ON,))
            orch.submit_next_level(link, args_, worker=ids[at % 2])

    with worker:
        worker.run(graph)
    assert [int(view[0]) for view in views] == [300, 300]
