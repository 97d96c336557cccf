"""``python -m echelon._child``: the process of a local worker. Started by the runtime, not by hand."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def main() -> int:
    """Takes over the parent's import paths and serves tasks until it ends the child. Returns the exit status."""
    from ._callables import adopt_paths

    adopt_paths()
    # What tasks print appears line by line, also when standard output is a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from . import _core

    return _core.child_main(sys.argv[1:])


def _end(status: int) -> NoReturn:
    """Ends the process at once: a thread that a task left behind must not hold up the parent's ``close()``."""
    for stream in (sys.stdout, sys.stderr):
        # A closed stream has nothing left to write.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(main())
