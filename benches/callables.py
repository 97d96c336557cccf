"""What the measured tasks do: nothing, so that only the runtime is measured."""


def leaf(args):
    """A sub callable."""


def entry(orch, args, cfg):
    """An orchestration callable of a session."""
