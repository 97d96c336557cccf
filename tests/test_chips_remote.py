"""Chips of a remote session: a real daemon, a session with two devices, machine code from the parent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs, residual
from testbed.chips import machine_code, needs_cc
from testbed.wait import eventually

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
I64 = ec.DataType.INT64

pytestmark = needs_cc


def chip(kernel: str, *options: str) -> ec.ChipCallable:
    return ec.ChipCallable(machine_code(kernel, *options), name=kernel)


@pytest.fixture
def cluster(callables_path: Path) -> Iterator[ec.LocalCluster]:
    """One session with the devices 3 and 8, not inited yet."""
    with ec.LocalCluster(
        remote=1,
        sub_workers=0,
        device_ids=[3, 8],
        pythonpath=[str(callables_path)],
        startup_timeout_s=100,
        remote_session_timeout_s=60,
        close_timeout_s=30,
    ) as running:
        yield running


def orchestrate(cluster: ec.LocalCluster, name: str) -> ec.CallableHandle:
    return cluster.worker.register(ec.RemoteCallable(f"chip_tasks:{name}"), workers=cluster.remote_ids)


def inner(cluster: ec.LocalCluster, code: ec.ChipCallable) -> ec.CallableHandle:
    return cluster.worker.register(code, workers=cluster.remote_ids, inner=True)


def filled(cluster: ec.LocalCluster, array: np.ndarray) -> ec.RemoteBufferHandle:
    buffer = cluster.worker.remote_malloc(cluster.remote_ids[0], array.nbytes)
    cluster.worker.remote_copy_to(buffer, array)
    return buffer


def fetched(cluster: ec.LocalCluster, buffer: ec.RemoteBufferHandle, shape=(4, 2)) -> np.ndarray:
    array = np.zeros(shape, dtype=np.int64)
    cluster.worker.remote_copy_from(buffer, array)
    return array


def ref(buffer: ec.RemoteBufferHandle, shape=(4, 2)) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, shape=shape, dtype=I64)


def submit(cluster, function, kernel, *tensors, scalars=()) -> ec.RunReport:
    args = ec.TaskArgs.of(*tensors, scalars=scalars)
    config = ec.CallConfig(output_prefix=kernel.hashid)
    return cluster.worker.run(lambda orch, a, c: orch.submit_next_level(function, args, config))


def chips_of(cluster: ec.LocalCluster) -> dict[str, int]:
    """Process of each device of the session."""
    found = {}
    for process in procfs.descendants(cluster.daemon_pid):
        line = procfs.command_line(process)
        if "--device" in line:
            found[line.split("--device")[1].split()[0]] = process.pid
    return found


@pytest.mark.parametrize("when", ["manifest", "control"])
def test_the_session_runs_machine_code_on_its_devices(cluster, when):
    """In the manifest and by controls; on remote buffers, and on memory of the session's own."""
    if when == "control":
        cluster.worker.init()
    kernel = inner(cluster, chip("scale"))
    each, between = orchestrate(cluster, "scale_on_each"), orchestrate(cluster, "scale_in_arena")
    cluster.worker.init() if when == "manifest" else None
    x = np.arange(8, dtype=np.int64).reshape(4, 2)
    sent, result = filled(cluster, x), filled(cluster, np.zeros_like(x))
    submit(cluster, each, kernel, (ref(sent), INPUT), (ref(result), OUTPUT), scalars=[3])
    assert np.array_equal(fetched(cluster, result), 3 * x)
    submit(cluster, between, kernel, (ref(sent), INPUT), (ref(result), OUTPUT), scalars=[5])
    assert np.array_equal(fetched(cluster, result), 25 * x)
    assert set(chips_of(cluster)) == {"3", "8"}
    if when == "control":
        cluster.worker.unregister(kernel)
        with pytest.raises(ec.TaskError, match="not registered here"):
            submit(cluster, each, kernel, (ref(sent), INPUT), (ref(result), OUTPUT), scalars=[3])


def test_each_process_owns_the_device_that_it_was_given(cluster):
    kernel, reports = inner(cluster, chip("report")), orchestrate(cluster, "report_of_each")
    cluster.worker.init()
    told = filled(cluster, np.zeros((2, 12), dtype=np.int64))
    submit(cluster, reports, kernel, (ref(told, (2, 12)), OUTPUT))
    assert fetched(cluster, told, (2, 12))[:, 0].tolist() == [3, 8]


@pytest.mark.parametrize("when", ["before init", "after init"])
def test_machine_code_larger_than_a_control_is_staged(cluster, when):
    code = chip("large")
    assert code.nbytes > 16 << 20
    if when == "after init":
        cluster.worker.init()
    kernel, pick = inner(cluster, code), orchestrate(cluster, "pick")
    cluster.worker.init() if when == "before init" else None
    out = filled(cluster, np.zeros(1, dtype=np.int64))
    submit(cluster, pick, kernel, (ref(out, (1,)), OUTPUT), scalars=[2])
    assert fetched(cluster, out, (1,)).tolist() == [3]


def test_arguments_that_do_not_fit_are_refused_in_the_session(cluster):
    kernel, wrong = inner(cluster, chip("scale")), orchestrate(cluster, "wrong_arguments")
    cluster.worker.init()
    x = filled(cluster, np.zeros((4, 2), dtype=np.int64))
    with pytest.raises(ec.TaskError, match=r"takes \[IN, SCALAR, OUT\], and 1 tensors were given for 2"):
        submit(cluster, wrong, kernel, (ref(x), INOUT))


def test_a_crash_ends_one_device_and_neither_its_sibling_nor_the_session(cluster):
    kernel, crash = inner(cluster, chip("crash")), orchestrate(cluster, "crash")
    cluster.worker.init()
    count = filled(cluster, np.zeros(2, dtype=np.int64))
    before = chips_of(cluster)
    with pytest.raises(ec.EndpointLost, match=r"(?s)chip3.*cpu device 3.*signal 11"):
        submit(cluster, crash, kernel, (ref(count, (2,)), INOUT), scalars=[1, 0])
    for device in (1, 0, 1):
        submit(cluster, crash, kernel, (ref(count, (2,)), INOUT), scalars=[0, device])
    assert fetched(cluster, count, (2,)).tolist() == [3, 0]
    after = chips_of(cluster)
    assert after["8"] == before["8"]
    assert after["3"] != before["3"]


def test_a_kernel_without_end_does_not_hold_up_the_parents_close_r132(cluster):
    kernel, crash = inner(cluster, chip("crash")), orchestrate(cluster, "crash")
    cluster.worker.init()
    count = filled(cluster, np.zeros(2, dtype=np.int64))
    pids = set(chips_of(cluster).values())
    # The session is ended by force, and its devices are adopted: here by this process.
    residual.note_descendants(cluster.daemon_pid)

    def graph(orch, args, config):
        task = ec.TaskArgs.of((ref(count, (2,)), INOUT), scalars=[4, 0])
        orch.submit_next_level(crash, task, ec.CallConfig(output_prefix=kernel.hashid))
        busy = lambda: any(cpu_ticks(pid) > 20 for pid in pids)  # noqa: E731
        eventually(busy, 60, what="a kernel that computes")
        cluster.worker.close()

    with pytest.raises(ec.EchelonError):
        cluster.worker.run(graph)
    eventually(lambda: not any(map(runs, pids)), 60, what="the end of the devices")


def runs(pid: int) -> bool:
    """False for a zombie too, which waits only for whoever adopted it."""
    process = procfs.read_process(pid)
    return process is not None and not process.is_zombie


def cpu_ticks(pid: int) -> int:
    """User time of a process, in ticks of 10 ms."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[11])
    except FileNotFoundError:
        return 0


def test_devices_that_cannot_be_stop_the_start_by_name(daemon):
    for devices, platform, text in [([1024], "cpu", "device 1024"), ([0], "a2a3sim", "a2a3sim")]:
        with ec.Worker(startup_timeout_s=60) as _:
            pass
        worker = ec.Worker(startup_timeout_s=60)
        worker.add_remote_worker(ec.RemoteWorkerSpec(daemon.endpoint, platform, device_ids=devices))
        with pytest.raises(ec.StartupError, match=text):
            worker.init()
        worker.close()
    for devices, text in [([2, 2], "device 2"), ([-3], "device -3")]:
        with pytest.raises(ValueError, match=text):
            ec.RemoteWorkerSpec(daemon.endpoint, device_ids=devices)


def test_a_session_without_devices_takes_no_machine_code(daemon):
    worker = ec.Worker(startup_timeout_s=60)
    remote = worker.add_remote_worker(ec.RemoteWorkerSpec(daemon.endpoint))
    with worker, pytest.raises(ec.RegistrationError, match="no chip workers"):
        worker.register(chip("scale"), workers=[remote], inner=True)


def test_what_the_loader_refuses_there_is_the_parents_error(cluster):
    cluster.worker.init()
    with pytest.raises(ec.RegistrationError, match="nowhere_to_be_found"):
        inner(cluster, chip("unresolved"))
    kernel, each = inner(cluster, chip("scale")), orchestrate(cluster, "scale_on_each")
    x = np.ones((4, 2), dtype=np.int64)
    sent, result = filled(cluster, x), filled(cluster, np.zeros_like(x))
    submit(cluster, each, kernel, (ref(sent), INPUT), (ref(result), OUTPUT), scalars=[3])
    assert np.array_equal(fetched(cluster, result), 3 * x)


def test_a_killed_session_takes_its_devices_along(cluster):
    cluster.worker.init()
    devices = chips_of(cluster)
    assert len(devices) == 2
    session = next(
        p for p in procfs.workers_below(cluster.daemon_pid) if "_session" in procfs.command_line(p)
    )
    residual.note_descendants(cluster.daemon_pid)
    os.kill(session.pid, 9)
    eventually(lambda: not any(map(runs, devices.values())), 60, what="the end of the devices")
