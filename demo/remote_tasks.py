"""Orchestration functions that run in the remote sessions.

The parent submits one of these for each tile operation. It runs in the session's own runtime and hands the
arithmetic to the session's sub workers. Where rows of a tile are independent of each other, the parent
passes the tile as an upper and a lower half (disjoint byte ranges of one buffer), so that two sub workers
write it at the same time and the graph sees no conflict.
"""

from __future__ import annotations

import echelon as ec

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT


def _submit(orch, kernel: str, written, *read, scalar: int = 0) -> None:
    """Queue ``demo.kernels:<kernel>`` on a sub worker: the first tensor is updated, the others are read."""
    inner = ec.TaskArgs()
    inner.add_tensor(written, INOUT)
    for tensor in read:
        inner.add_tensor(tensor, INPUT)
    inner.add_scalar(scalar)
    orch.submit_sub(ec.session.get_inner_handle(f"demo.kernels:{kernel}"), inner)


def potrf(orch, args, cfg) -> None:
    """Factor a diagonal tile. Tensors: a."""
    _submit(orch, "potrf", args.tensor(0))


def trsm(orch, args, cfg) -> None:
    """A tile below the diagonal. Tensors: x upper, x lower half, l."""
    upper, lower, factor = (args.tensor(i) for i in range(3))
    _submit(orch, "trsm", upper, factor)
    _submit(orch, "trsm", lower, factor)


def syrk(orch, args, cfg) -> None:
    """Update a diagonal tile. Tensors: c upper, c lower, a upper, a lower, a. Scalar 0: rows in the upper half."""
    c_upper, c_lower, a_upper, a_lower, a = (args.tensor(i) for i in range(5))
    _submit(orch, "syrk", c_upper, a_upper, a)
    _submit(orch, "syrk", c_lower, a_lower, a, scalar=args.scalar(0))


def gemm(orch, args, cfg) -> None:
    """Update any other tile. Tensors: c upper, c lower, a upper, a lower, b."""
    c_upper, c_lower, a_upper, a_lower, b = (args.tensor(i) for i in range(5))
    _submit(orch, "gemm", c_upper, a_upper, b)
    _submit(orch, "gemm", c_lower, a_lower, b)
