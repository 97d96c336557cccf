"""``python -m echelon._child``: the process of a local worker. Started by the runtime, not by hand."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> int:
    """Takes over the parent's import paths and serves tasks until it ends the child. Returns the exit status."""
    from ._callables import adopt_paths
    from ._zygote import FLAG, OWN_FLAG, fork_off, serve

    adopt_paths()
    if sys.argv[1:2] == [FLAG]:
        serve(int(sys.argv[2]))
    if sys.argv[1:2] == [OWN_FLAG]:
        del sys.argv[1]
        fork_off()
    # What tasks print appears line by line, also when standard output is a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from . import _core

    return _core.child_main(sys.argv[1:])


def end(status: int) -> NoReturn:
    """Ends the process at once: a thread that a task left behind must not hold up the parent's ``close()``."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  (every child would pay for the import of contextlib)
            stream.flush()
        except (OSError, ValueError):
            pass  # a closed stream has nothing left to write
    os._exit(status)


if __name__ == "__main__":
    end(main())
