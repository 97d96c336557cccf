"""``python -m echelon._child``: the process of a local worker. Started by the runtime, not by hand."""

from __future__ import annotations

import sys


def main() -> int:
    """Takes over the parent's import paths and serves tasks until it ends the child. Returns the exit status."""
    from ._callables import adopt_paths

    adopt_paths()
    # What tasks print appears line by line, also when standard output is a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from . import _core

    return _core.child_main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
