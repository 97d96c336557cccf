"""What the measured tasks do: nothing, so that only the runtime is measured."""

from typing import Any


def leaf(args: Any) -> None:
    """A sub callable."""


def entry(orch: Any, args: Any, cfg: Any) -> None:
    """An orchestration callable of a local child or a session."""
