"""What the benchmarks call: nothing."""


def leaf(args):
    """A sub callable that does nothing."""


def noop(orch, args, cfg):
    """An orchestration function that does nothing."""
