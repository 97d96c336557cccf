"""Callables that touch their tensors, for a v1 parent's tasks."""


def increment(orch, args, cfg):
    """Adds scalar 0 to each byte of tensor 0 (modulo 256)."""
    view = memoryview(args.tensor(0)).cast("B")
    step = args.scalar(0)
    for at in range(len(view)):
        view[at] = (view[at] + step) % 256
