"""What the tasks of the peers do: nothing. They import this module, so it imports nothing."""

from __future__ import annotations

from typing import Any

kept: list[Any] = []


def noop(value: Any = None) -> None:
    """A task."""


def gather(*values: Any) -> None:
    """A task that takes many results."""


def keep(value: Any) -> None:
    """Keeps an array in the worker."""
    kept[:] = [value]


def fetch() -> Any:
    """The array back."""
    return kept[0]
