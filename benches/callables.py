"""What the measured tasks do: nothing, so that only the runtime is measured."""

from __future__ import annotations

# Not imported by those who call them: starts are measured before a user's imports.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def leaf(args: Any) -> None:
    """A sub callable."""


def entry(orch: Any, args: Any, cfg: Any) -> None:
    """An orchestration callable of a local child or a session."""


def take(orch: Any, args: Any, cfg: Any) -> None:
    """Tensor 1 becomes tensor 0."""
    args.tensor(1).numpy()[...] = args.tensor(0).numpy()
