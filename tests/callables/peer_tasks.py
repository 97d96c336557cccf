"""Callables of the tests of imports across hosts. Tensors are bytes."""

from __future__ import annotations

import os
import signal
import time

WAIT_S = 100.0
"""How long a task waits for a file of the test, in seconds; a test that fails ends its sessions anyway."""


def orch_add(orch, args, config):
    """Adds block_dim to tensor 0."""
    args.tensor(0).numpy()[...] += config.block_dim


def orch_fill(orch, args, config):
    """Fills tensor 0 with block_dim, without having looked at it."""
    args.tensor(0).numpy()[...] = config.block_dim


def orch_fill_part(orch, args, config):
    """Fills the first half of tensor 0 with block_dim."""
    view = args.tensor(0).numpy()
    view[: len(view) // 2] = config.block_dim


def orch_copy(orch, args, config):
    """Tensor 1 becomes tensor 0."""
    args.tensor(1).numpy()[...] = args.tensor(0).numpy()


def orch_spoil(orch, args, config):
    """Overwrites tensor 0 and fails."""
    args.tensor(0).numpy()[...] = 255
    raise RuntimeError("after writing")


def orch_hold(orch, args, config):
    """Says in the file PATH.began that it runs, waits for PATH.go, then fills tensor 0 with block_dim. Tensor 1 is PATH."""
    path = bytes(args.tensor(1).numpy()).rstrip(b"\0").decode()
    with open(path + ".began", "w") as file:
        file.write(str(os.getpid()))
    deadline = time.monotonic() + WAIT_S
    while not os.path.exists(path + ".go"):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.002)
    args.tensor(0).numpy()[...] = config.block_dim


def orch_to_sub(orch, args, config):
    """Hands tensor 0 on to a sub worker that started earlier."""
    import echelon as ec

    inner = ec.TaskArgs()
    inner.add_tensor(args.tensor(0), ec.TensorArgType.INOUT)
    orch.submit_sub(ec.session.get_inner_handle("peer_tasks:add_one"), inner)


def orch_dying_sub(orch, args, config):
    """Has a sub worker end in the middle of its task."""
    import echelon as ec

    orch.submit_sub(ec.session.get_inner_handle("peer_tasks:die"), ec.TaskArgs())


def die(args):
    """Leaf: ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)


def add_one(args):
    """Leaf: adds 1 to tensor 0."""
    args.tensor(0).numpy()[...] += 1
