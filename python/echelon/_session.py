"""``python -m echelon._session``: a session runner that can call Python. Started by the daemon, not by hand."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Runs one session; returns the exit status."""
    from ._zygote import FLAG, OWN_FLAG, fork_off, serve

    if argv is None:
        if sys.argv[1:2] == [FLAG]:
            serve(int(sys.argv[2]))
            if not sys.flags.safe_path:
                try:  # noqa: SIM105  (every child would pay for the import of contextlib)
                    # As ``-m`` does, in the working directory that this process was forked with.
                    sys.path[0] = os.getcwd()
                except OSError:
                    pass
        if sys.argv[1:2] == [OWN_FLAG]:
            del sys.argv[1]
            fork_off()
        argv = sys.argv[1:]
    # What tasks print appears line by line, also when standard output is a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    import signal

    # The Rust side takes SIGINT and ends in order; Python's own handler would raise KeyboardInterrupt on top.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from . import _core

    return _core.session_main(argv)


if __name__ == "__main__":
    sys.exit(main())
