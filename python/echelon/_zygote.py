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
    # What folders held when this process started is nothing that a child should believe.
    for path, finder in list(sys.path_importer_cache.items()):
        forget = getattr(finder, "invalidate_caches", None)
        if forget is None:
            del sys.path_importer_cache[path]
        else:
            forget()
    arguments = _core.zygote_serve(socket)
    if arguments is None:
        os._exit(0)
    sys.argv[1:] = arguments


def fork_off() -> None:
    """Forks off a zygote for the children of this process, which has one thread and has run nothing of the user's.

    Returns in this process only.
    """
    if not _core.zygote_fork_off():
        return
    # -m has imported runpy, for the very function that is called below. The paths of a child are those of this process.
    import runpy

    from . import _callables  # noqa: F401  (every child needs it)

    serve(None)
    # As ``python -m echelon._child`` would go on.
    sys.modules["__main__"] = type(sys)("__main__")
    runpy._run_module_as_main("echelon._child")  # type: ignore[attr-defined]
    os._exit(0)
