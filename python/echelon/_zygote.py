"""A process that forks ready children: no module of the user's, one thread, ends with its owner (decision 0023).

``_child`` and ``_session`` become one when their first argument is ``--zygote``. What they import before that, every
child has without a start of its own.
"""

from __future__ import annotations

import os
import sys

from . import _core

FLAG = "--zygote"
OWN_FLAG = "--own-zygote"


def serve(socket: int | None) -> None:
    """Returns in every forked child, as if it had been executed with the arguments that are in ``sys.argv`` then."""
    import gc

    # What exists now is not looked at again: a child that collects would copy the pages that it shares.
    gc.collect()
    gc.freeze()
    arguments = _core.zygote_serve(socket)
    if arguments is None:
        os._exit(0)
    sys.argv[1:] = arguments
    if not sys.flags.safe_path:
        try:  # noqa: SIM105  (every child would pay for the import of contextlib)
            # As ``-m`` does.
            sys.path[0] = os.getcwd()
        except OSError:
            pass


def fork_off() -> None:
    """Forks off a zygote for the children of this process, which has one thread and has run nothing of the user's.

    Returns in this process only.
    """
    if not _core.zygote_fork_off():
        return
    from ._callables import child_environment

    os.environ.update(child_environment())
    serve(None)
    # As ``python -m echelon._child`` would go on; -m has imported runpy, for this very function.
    import runpy

    sys.modules["__main__"] = type(sys)("__main__")
    runpy._run_module_as_main("echelon._child")  # type: ignore[attr-defined]
    os._exit(0)
