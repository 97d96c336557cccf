"""Callables of tests/test_topologies.py: leaves, and orchestration functions of several levels."""

from __future__ import annotations

import os

import echelon as ec

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT


def add_pid(args):
    """Leaf: tensor 0 gets scalar 0 added, and its last element becomes the process id."""
    view = args.tensor(0).numpy().reshape(-1)
    view[:-1] += args.scalar(0)
    view[-1] = os.getpid()


def orch_own(orch, args, config):
    """Any level: does the leaf's work in its own process."""
    add_pid(args)


def orch_forward(orch, args, config):
    """Any level: hands everything on to a sub worker."""
    inner = ec.TaskArgs()
    inner.add_tensor(args.tensor(0), INOUT)
    inner.add_scalar(args.scalar(0))
    orch.submit_sub(ec.session.get_inner_handle("topology_tasks:add_pid"), inner)


def orch_fail(orch, args, config):
    """Raises, with the process in the text."""
    raise ValueError(f"trouble in {os.getpid()}")


def l4_spread(orch, args, config):
    """Level 4, in a child: row 0 to its sub worker, row 1 to its local level 3, row 2 to its remote level 3."""
    rows = args.tensor(0)
    forward = ec.session.get_inner_handle("topology_tasks:orch_forward")
    leaf = ec.session.get_inner_handle("topology_tasks:add_pid")
    for row, submit in (
        (0, lambda a: orch.submit_sub(leaf, a)),
        (1, lambda a: orch.submit_next_level(forward, a, worker=0)),
    ):
        submit(ec.TaskArgs.of((rows.rows(row, 1), INOUT), scalars=(10,)))
    count = rows.shape[1]
    buffer = orch.remote_malloc(1, count * 8)
    window = ec.RemoteTensorRef(buffer, shape=(1, count), dtype=ec.DataType.FLOAT64)
    third = rows.rows(2, 1)
    orch.copy(window, third)
    orch.submit_next_level(forward, ec.TaskArgs.of((window, INOUT), scalars=(10,)), worker=1)
    orch.copy(third, window)
    orch.remote_free(buffer)


def l4_remote_fails(orch, args, config):
    """Level 4, in a child: a task that raises on its remote level 3."""
    orch.submit_next_level(ec.session.get_inner_handle("topology_tasks:orch_fail"), ec.TaskArgs(), worker=1)


def l4_wait(orch, args, config):
    """Level 4, in a child: writes its process id to the file named by tensor 0, then runs a task on its remote for ever."""
    orch.submit_next_level(
        ec.session.get_inner_handle("topology_tasks:orch_for_ever"),
        ec.TaskArgs.of((args.tensor(0), INPUT)),
        worker=1,
    )


def orch_for_ever(orch, args, config):
    """Says by a file, named by the bytes of tensor 0, that it runs; ends only with its process."""
    import threading

    path = bytes(memoryview(args.tensor(0))).rstrip(b"\0").decode()
    with open(path, "w") as file:
        file.write(f"{os.getpid()} {os.getppid()}")
    threading.Event().wait(600)


def orch_count(orch, args, config):
    """Adds 1 to tensor 0, and a line with scalar 0 to the file named by tensor 1: one for each execution."""
    args.tensor(0).numpy()[0] += 1
    path = bytes(memoryview(args.tensor(1))).rstrip(b"\0").decode()
    with open(path, "a") as file:
        file.write(f"{args.scalar(0)}\n")


def stubborn(args):
    """Leaf: leaves a process behind that ignores SIGTERM and SIGHUP; appends its id to the file named by tensor 0."""
    import subprocess
    import sys

    path = bytes(memoryview(args.tensor(0))).rstrip(b"\0").decode()
    script = "import os, signal, sys, threading\n"
    script += "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script += f"with open({path!r}, 'a') as file: file.write(f'{{os.getpid()}}\\n')\n"
    script += "print('there', flush=True); threading.Event().wait(600)\n"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"


def orch_stubborn(orch, args, config):
    """Any level: one stubborn process below this one and one below its sub worker."""
    stubborn(args)
    inner = ec.TaskArgs()
    inner.add_tensor(args.tensor(0), INPUT)
    orch.submit_sub(ec.session.get_inner_handle("topology_tasks:stubborn"), inner)


def devour(args):
    """Leaf: takes memory, page by page, until there is none."""
    kept = []
    for _ in range(1024):
        kept.append(bytearray(os.urandom(1 << 20)))


def orch_devour(orch, args, config):
    """As `devour`, in a session."""
    devour(args)
