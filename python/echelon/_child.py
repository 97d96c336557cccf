"""``python -m echelon._child``: the process of a local worker. Started by the runtime, not by hand."""

from __future__ import annotations

import sys


def main() -> int:
    """Takes over the parent's ``sys.path`` and serves tasks until the parent ends it. Returns the exit status."""
    import os

    paths = os.environ.pop("ECHELON_SYS_PATH", None)
    if paths is not None:
        import json

        sys.path[:] = json.loads(paths)
    # What tasks print appears line by line, also when standard output is a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from echelon import _core

    return _core.child_main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
