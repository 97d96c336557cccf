"""``python -m echelon._session``: a session runner that can call Python. Started by the daemon, not by hand."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs one session; returns the exit status."""
    # What tasks print appears line by line, also when standard output is a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from . import _core

    return _core.session_main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
