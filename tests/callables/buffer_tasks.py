"""Callables of the tests about remote buffers and their lives; importable by sessions and their sub workers."""

from __future__ import annotations

import ctypes

import echelon as ec

kept: list = []


def noop(args):
    """Does nothing; the child that runs it has mapped its tensors."""


def keep(args):
    """Keeps a view of tensor 0 beyond the task."""
    kept.append(args.tensor(0).numpy())


def write_past_the_view(args):
    """Writes the first byte of tensor 0 by its address, whatever the view allows."""
    ctypes.memset(args.tensor(0).numpy().ctypes.data, 1, 1)


def orch_count(orch, args, config):
    """Orchestration callable: fails unless it got block_dim tensors and no scalar."""
    got = (args.num_tensors, args.num_scalars)
    if got != (config.block_dim, 0):
        raise ValueError(f"got {got[0]} tensors and {got[1]} scalars, expected {config.block_dim} and 0")


def orch_write_past_the_view(orch, args, config):
    """Orchestration callable: as `write_past_the_view`, in the session's own process."""
    write_past_the_view(args)


def orch_to_sub(orch, args, config):
    """Orchestration callable: hands every tensor to a sub worker, for reading."""
    inner = ec.TaskArgs()
    for index in range(args.num_tensors):
        inner.add_tensor(args.tensor(index), ec.TensorArgType.INPUT)
    orch.submit_sub(ec.session.get_inner_handle("buffer_tasks:noop"), inner)


def orch_add(orch, args, config):
    """Orchestration callable: adds block_dim to each byte of every tensor, modulo 256."""
    for index in range(args.num_tensors):
        view = args.tensor(index).numpy()
        view += config.block_dim


def orch_fail(orch, args, config):
    """Orchestration callable that raises before it touched anything."""
    raise ValueError("as asked")


def orch_wait_and_fill(orch, args, config):
    """Orchestration callable: says in the fifo `output_prefix`.started that it runs; fills tensor 0 with a byte of `.go`."""
    with open(config.output_prefix + ".started", "wb") as started:
        started.write(b"x")
    with open(config.output_prefix + ".go", "rb") as go:
        args.tensor(0).numpy()[:] = go.read(1)[0]


def orch_wait_alone(orch, args, config):
    """Orchestration callable: as `orch_wait_and_fill`, without a tensor."""
    with open(config.output_prefix + ".started", "wb") as started:
        started.write(b"x")
    with open(config.output_prefix + ".go", "rb") as go:
        go.read(1)
