"""``python -m echelon._chip``: the process that owns a chip. Started by the runtime; it imports no user module."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Serves machine code until the parent ends it. Returns the exit status."""
    import signal

    # Ctrl-C is the parent's affair; this process is in a session of its own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from . import _core

    return _core.chip_main(sys.argv[1:])


if __name__ == "__main__":
    # At once: what a kernel left behind, threads or handlers, must not hold up the parent's close().
    os._exit(main())
