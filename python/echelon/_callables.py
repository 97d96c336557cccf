"""How a Python function is named towards the process that will run it."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["CHILD_PATHS", "adopt_paths", "child_environment", "describe", "import_path"]

CHILD_PATHS = "ECHELON_CHILD_PATHS"
"""Environment variable that takes import paths to a child; the child reads and removes it."""


def import_path(function: Callable[..., Any]) -> str | None:
    """``module:qualname`` when importing that gives the very same object in another process, else ``None``.

    Functions of ``__main__``, lambdas, closures and everything that is not found under its own name have none.
    """
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return None
    if module in ("__main__", "__mp_main__", "builtins") or "<" in qualname:
        return None
    found: Any = sys.modules.get(module)
    if found is None or getattr(found, "__spec__", None) is None:
        return None
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError:
        return None
    return f"{module}:{qualname}" if found is function else None


def describe(function: Callable[..., Any]) -> tuple[str, bytes | None]:
    """``(import path, None)``, or ``(name, cloudpickle bytes)`` for a function that has no import path.

    Raises:
        TypeError: it is not callable, or it cannot be pickled; the message names what cannot.
    """
    if not callable(function):
        raise TypeError(
            f"register() takes a function or an ec.RemoteCallable('module:qualname'), not {type(function).__name__}"
        )
    path = import_path(function)
    if path is not None:
        return path, None
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None) or "?"
    try:
        import cloudpickle
    except ImportError as error:
        raise TypeError(
            f"{module}:{name} has no import path and cloudpickle is not installed; "
            "put the function into a module, or pip install cloudpickle"
        ) from error
    try:
        return f"{module}:{name}", cloudpickle.dumps(function)
    except Exception as error:
        raise TypeError(
            f"{module}:{name} has no import path and cannot be serialized: {error}; "
            "put it into a module, or pass what it captures as arguments"
        ) from error


def child_environment() -> list[tuple[str, str]]:
    """What a child process needs in its environment to import what this one can, this package included."""
    import os

    before = os.environ.get("PYTHONPATH")
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = ["-" if before is None else "+" + before, *(p for p in sys.path if isinstance(p, str))]
    return [
        # Each with its length: whatever a path holds, nothing has to be escaped, and a child imports nothing to read it.
        (CHILD_PATHS, "".join(f"{len(path)}:{path}" for path in paths)),
        ("PYTHONPATH", home + os.pathsep + before if before else home),
    ]


def adopt_paths() -> None:
    """In a child: takes over the parent's ``sys.path``, and leaves no trace in the environment."""
    import os

    text = os.environ.pop(CHILD_PATHS, None)
    if text is None:
        return
    paths = []
    while text:
        length, _, text = text.partition(":")
        paths.append(text[: int(length)])
        text = text[int(length) :]
    sys.path[:] = paths[1:]
    if paths[0] == "-":
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = paths[0][1:]
