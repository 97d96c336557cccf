"""``python -m echelon._daemon``: the worker daemon, as ``echelon-worker``.

One option of its own, for a daemon that belongs to a script: ``--exit-with-stdin`` ends it, as SIGTERM does, when its
standard input is closed, so that it never outlives the script, SIGKILL included.
"""

from __future__ import annotations

import sys

EXIT_WITH_STDIN = "--exit-with-stdin"


def main(argv: list[str] | None = None) -> int:
    """Runs the daemon until SIGTERM or SIGINT; returns the exit status."""
    import signal

    # The Rust side takes SIGINT and ends in order; Python's own handler would raise KeyboardInterrupt on top.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from . import _core

    args = list(sys.argv[1:] if argv is None else argv)
    if EXIT_WITH_STDIN in args:
        args.remove(EXIT_WITH_STDIN)
        _watch_stdin()
    return _core.daemon_main(args)


def _watch_stdin() -> None:
    import os
    import signal
    import threading

    # Sessions must not inherit the pipe: it would stay open after the script has gone.
    watched = os.dup(0)
    os.set_inheritable(watched, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def watch() -> None:
        while os.read(watched, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    # A daemon thread: it waits in read() when the process ends for another reason, and goes with it.
    threading.Thread(target=watch, name="watch-stdin", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
