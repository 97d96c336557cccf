"""Chips of a local worker: machine code in processes that own a device each."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs
from testbed.chips import machine_code, needs_cc
from testbed.wait import eventually

ROOT = Path(__file__).resolve().parents[1]
INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
IN, OUT, SCALAR = ec.ChipArg.IN, ec.ChipArg.OUT, ec.ChipArg.SCALAR

pytestmark = needs_cc


def chip(kernel: str, **options) -> ec.ChipCallable:
    return ec.ChipCallable(machine_code(kernel), name=kernel, **options)


@pytest.fixture
def two() -> Iterator[ec.Worker]:
    """A worker with two devices, not inited yet."""
    with_devices = ec.Worker(level=3, device_ids=[0, 1], startup_timeout_s=100, close_timeout_s=20)
    yield with_devices
    with_devices.close()


def submit(worker: ec.Worker, handle, *tensors, scalars=(), to: int = -1, config=None) -> ec.RunReport:
    args = ec.TaskArgs.of(*tensors, scalars=scalars)
    return worker.run(lambda orch, a, c: orch.submit_next_level(handle, args, config, worker=to))


# --- what works -------------------------------------------------------------------------------------------


def test_two_devices_run_machine_code_side_by_side(two):
    scale = two.register(chip("scale"))
    two.init()
    x, y = np.arange(6), np.zeros(6, dtype=np.int64)

    def graph(orch, args, config):
        shared = orch.alloc((3,), "int64")
        for device, (a, b) in enumerate([(x[:3], y[:3]), (x[3:], y[3:])]):
            task = ec.TaskArgs.of((a, INPUT), (b, OUTPUT), scalars=[device + 5])
            orch.submit_next_level(scale, task, worker=device)
        # Reads what device 0 wrote, through memory that both devices share, wherever there is room.
        task = ec.TaskArgs.of((y[:3], INPUT), (shared, OUTPUT), scalars=[2])
        orch.submit_next_level(scale, task)
        task = ec.TaskArgs.of((shared, INPUT), (y[:3], OUTPUT), scalars=[1])
        orch.submit_next_level(scale, task, worker=1)

    report = two.run(graph)
    assert y.tolist() == [0, 10, 20, 18, 24, 30]
    assert report.counts["completed"] == 4
    assert {"local/chip0", "local/chip1"} == set(report.tasks_per_worker)
    assert {worker["name"] for worker in two.workers()} == {"local/chip0", "local/chip1"}


def test_an_entry_is_told_the_device_the_shape_and_the_config(two):
    report = two.register(chip("report"))
    two.init()
    told = np.zeros((2, 3, 2), dtype=np.int64)
    config = ec.CallConfig(block_dim=-4, output_prefix="ab\0c")
    submit(two, report, (told, OUTPUT), scalars=[2**63, 9], to=1, config=config)
    assert told.ravel().tolist() == [1, 3, 2, 3, 2, 7, -4, 3, 2, -(2**63), 9, 0]


def test_registered_after_init_and_unregistered_again(two):
    two.init()
    scale = two.register(chip("scale"))
    assert scale.kind == "CHIP_CALLABLE"
    assert scale.hashid == chip("scale").hashid
    x, y = np.arange(3), np.zeros(3, dtype=np.int64)
    submit(two, scale, (x, INPUT), (y, OUTPUT), scalars=[3])
    assert y.tolist() == [0, 3, 6]
    two.unregister(scale)
    with pytest.raises(ec.HandleError, match="unregistered"):
        submit(two, scale, (x, INPUT), (y, OUTPUT), scalars=[3])


def test_chips_come_before_the_children_that_were_added(importable):
    import chip_tasks

    parent = ec.Worker(level=4, device_ids=[4], startup_timeout_s=100)
    child = ec.Worker(level=3, device_ids=[7, 2])
    kernel = child.register(chip("scale"))
    assert parent.add_worker(child) == 1
    with parent:
        here = parent.register(chip("scale"))
        there = parent.register(chip_tasks.scale_on_each)
        below = parent.register(chip("report"), inner=True)
        x, y, z = np.arange(2), np.zeros(2, dtype=np.int64), np.zeros((2, 2, 12), dtype=np.int64)
        report = submit(parent, here, (x, INPUT), (y, OUTPUT), scalars=[9])
        assert (y.tolist(), report.tasks_per_worker) == ([0, 9], {"local/chip4": 1})
        config = ec.CallConfig(output_prefix=kernel.hashid)
        submit(parent, there, (x, INPUT), (y, OUTPUT), scalars=[4], to=1, config=config)
        assert y.tolist() == [0, 4]
        config = ec.CallConfig(output_prefix=below.hashid)
        submit(parent, parent.register(chip_tasks.report_of_each), (z, OUTPUT), to=1, config=config)
        assert z[:, 0, 0].tolist() == [7, 2]


def test_the_header_is_the_same_in_both_places():
    shipped = Path(ec.include_dir()) / "echelon_chip.h"
    assert shipped.read_bytes() == (ROOT / "session/include/echelon_chip.h").read_bytes()


def test_the_identity_is_that_of_the_contract():
    """slr3-v1 §7: an accelerator that is not here has one too, and its signature must be given."""
    there = ec.ChipCallable(b"blob-bytes", signature=["SCALAR", 1, ec.ChipArg.OUT], platform="a2a3sim")
    assert there.hashid == "sha256:82043010aec1126e79bca389cb85fd0ba5e4f2939858adbc3c1e1a0c281156ab"
    assert there.signature == (SCALAR, IN, OUT)
    with pytest.raises(ValueError, match="signature is needed"):
        ec.ChipCallable(b"blob-bytes", platform="a2a3sim")
    with pytest.raises(ValueError, match="abacus"):
        ec.ChipCallable(b"blob-bytes", signature=[], platform="abacus")


# --- refusals ---------------------------------------------------------------------------------------------


def changed(at: int, value: bytes) -> bytes:
    blob = bytearray(machine_code("scale"))
    blob[at : at + len(value)] = value
    return bytes(blob)


def test_machine_code_that_is_none_is_refused_before_it_is_loaded():
    cases = [
        (b"", "0 bytes"),
        (b"\x7fELF", "no ELF"),
        (b"not machine code at all", "no ELF"),
        (changed(4, b"\x01"), "64-bit"),
        (changed(5, b"\x02"), "byte order"),
        (changed(18, b"\xf3\x00"), "it is for riscv, and this machine is"),
        (changed(16, b"\x02\x00"), "no shared object"),
        (changed(40, b"\xff" * 8), "broken ELF"),
        (machine_code("scale")[:4096], "refused"),
        (machine_code("noentry"), "echelon_chip_entry"),
        (machine_code("nosignature"), "ECHELON_CHIP_SIGNATURE"),
        (machine_code("badsignature"), "no signature"),
    ]
    for blob, text in cases:
        with pytest.raises(ValueError, match=re.escape(text)):
            ec.ChipCallable(blob)


def test_every_cut_of_machine_code_is_refused_or_described():
    blob = machine_code("scale")
    for end in range(0, len(blob), 97):
        try:
            assert ec.ChipCallable(blob[:end]).signature == (IN, SCALAR, OUT)
        except ValueError as refusal:
            assert "refused" in str(refusal) or "outside" in str(refusal), end


def test_a_signature_that_the_code_does_not_declare_is_refused():
    with pytest.raises(
        ValueError, match=r"declares the signature \[IN, SCALAR, OUT\], and \[IN, OUT\] was given"
    ):
        chip("scale", signature=[IN, OUT])
    assert chip("scale", signature=[IN, SCALAR, OUT]).signature == (IN, SCALAR, OUT)


def test_what_the_loader_refuses_is_the_error_of_the_registration(two):
    two.init()
    with pytest.raises(ec.RegistrationError, match=r"cpu device 0: .*nowhere_to_be_found"):
        two.register(chip("unresolved"))
    scale = two.register(chip("scale"))
    x, y = np.arange(3), np.zeros(3, dtype=np.int64)
    submit(two, scale, (x, INPUT), (y, OUTPUT), scalars=[1])
    assert y.tolist() == [0, 1, 2]


def test_arguments_that_do_not_fit_the_signature_are_refused_by_name(two):
    scale = two.register(chip("scale"))
    two.init()
    x, y = np.arange(3), np.zeros(3, dtype=np.int64)
    cases = [
        ([(x, INPUT)], [1], "1 tensors were given for 2"),
        ([(x, INPUT), (y, OUTPUT)], [], "0 scalars were given for 1"),
        ([(x, INPUT), (y, INOUT)], [1], "tensor 1 is OUT there, which a tensor tagged INOUT is not"),
        ([(x, OUTPUT), (y, OUTPUT)], [1], "tensor 0 is IN there, which a tensor tagged OUTPUT is not"),
    ]
    for tensors, scalars, text in cases:
        with pytest.raises(TypeError, match=text) as refusal:
            submit(two, scale, *tensors, scalars=scalars)
        assert "scale takes [IN, SCALAR, OUT]" in str(refusal.value)
    assert y.tolist() == [0, 0, 0]


def test_devices_that_cannot_be_are_refused_before_anything_starts():
    for devices, text in [([0, 3, 3], "device 3"), ([-1], "device -1"), ([1024], "device 1024")]:
        with pytest.raises(ValueError, match=text):
            ec.Worker(level=3, device_ids=devices)
    with pytest.raises(ValueError, match="abacus"):
        ec.Worker(level=3, device_ids=[0], platform="abacus")


def test_callables_go_only_where_they_can_run(two):
    with pytest.raises(ValueError, match="worker 0 is a chip"):
        two.register(len, workers=[0])
    with pytest.raises(ValueError, match=r"is for platform cpu with runtime other"):
        two.register(chip("scale", runtime="other"))
    with pytest.raises(ValueError, match="no chips"), ec.Worker(num_sub_workers=1) as plain:
        plain.register(chip("scale"))
    scale = two.register(chip("scale"), workers=[1])
    two.init()
    x, y = np.arange(3), np.zeros(3, dtype=np.int64)
    with pytest.raises(ec.NotEligibleError, match="chip0"):
        submit(two, scale, (x, INPUT), (y, OUTPUT), scalars=[1], to=0)
    assert submit(two, scale, (x, INPUT), (y, OUTPUT), scalars=[1]).tasks_per_worker == {"local/chip1": 1}


# --- failures ---------------------------------------------------------------------------------------------


def test_another_number_than_zero_fails_the_task_with_number_and_text(two):
    fail = two.register(chip("fail"))
    two.init()
    with pytest.raises(ec.TaskError, match=r"device 1: the kernel returned 12: table 12 is empty, schön"):
        submit(two, fail, scalars=[12], to=1)
    submit(two, fail, scalars=[0], to=1)


@pytest.mark.parametrize(("how", "ending"), [(1, "signal 11"), (2, "signal 6"), (3, "status 7")])
def test_a_crash_in_a_kernel_ends_that_chip_and_no_other(two, how, ending):
    crash = two.register(chip("crash"))
    two.init()
    count = np.zeros((2, 2), dtype=np.int64)
    before = {worker["name"]: worker["pid"] for worker in two.workers()}

    def graph(orch, args, config):
        orch.submit_next_level(crash, ec.TaskArgs.of((count[0], INOUT), scalars=[how]), worker=0)
        orch.submit_next_level(crash, ec.TaskArgs.of((count[1], INOUT), scalars=[0]), worker=1)

    with pytest.raises(
        ec.EndpointLost, match=rf"(?s)local/chip0.*cpu device 0.*{ending}.*a fresh process takes its place"
    ):
        two.run(graph)
    assert count.tolist() == [[0, 0], [1, 0]]
    # The next run finds a fresh process that owns the device, with the same callables.
    for device in (0, 1):
        submit(two, crash, (count[device], INOUT), scalars=[0], to=device)
    assert count[:, 0].tolist() == [1, 2]
    after = {worker["name"]: worker["pid"] for worker in two.workers()}
    assert after["local/chip1"] == before["local/chip1"]
    assert after["local/chip0"] != before["local/chip0"]


def test_a_kernel_without_end_does_not_hold_up_close_r132(two):
    """A device that hangs, and takes no signal but SIGKILL, is ended within close_timeout_s."""
    hang = ec.Worker(level=3, device_ids=[0, 1], startup_timeout_s=100, close_timeout_s=2)
    crash = hang.register(chip("crash"))
    hang.init()
    pids = [worker["pid"] for worker in hang.workers()]

    def graph(orch, args, config):
        state = orch.alloc((2,), "int64")
        seen = state.numpy()
        seen[:] = 0
        orch.submit_next_level(crash, ec.TaskArgs.of((state, INOUT), scalars=[4]), worker=0)
        eventually(lambda: seen[0] == 1, 30, what="the kernel runs")
        hang.close()

    with pytest.raises(ec.EchelonError):
        hang.run(graph)
    assert hang.state == "closed"
    assert not [pid for pid in pids if procfs.read_process(pid)]


def test_a_device_process_that_is_killed_is_lost_by_name(two):
    crash = two.register(chip("crash"))
    two.init()
    pid = next(worker["pid"] for worker in two.workers() if worker["name"] == "local/chip1")
    os.kill(pid, 9)
    count = np.zeros(2, dtype=np.int64)
    eventually(lambda: not procfs.read_process(pid), 30, what="the end of the process")
    submit(two, crash, (count, INOUT), scalars=[0], to=0)
    submit(two, crash, (count, INOUT), scalars=[0], to=1)
    assert count.tolist() == [2, 0]


# --- the example ------------------------------------------------------------------------------------------


def test_the_example_builds_without_warnings(tmp_path):
    built = tmp_path / "chip.so"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        ec.include_dir(),
        "-o",
        str(built),
    ]
    subprocess.run([*command, str(ROOT / "examples/chip_saxpy.c")], check=True, timeout=60)
    assert ec.ChipCallable.from_file(built).name == "chip.so"
