"""The command line: ``echelon``, and the console scripts ``echelon-worker`` and ``echelon-session``."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main", "session_main", "worker_main"]

_USAGE = """\
usage: echelon COMMAND [options]

commands:
  worker    run the worker daemon: the same as echelon-worker; "echelon worker --help" lists its options
  doctor    check that this machine can run Echelon, by running it
  version   print the version

exit status: 0 success, 1 a check failed, 2 wrong usage
"""


def main(argv: list[str] | None = None) -> int:
    """The ``echelon`` command; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    command = args[0] if args else ""
    if command in ("-h", "--help", "help"):
        sys.stdout.write(_USAGE)
        return 0
    if command == "worker":
        return worker_main(args[1:])
    if command in ("version", "--version", "-V") and len(args) == 1:
        from . import __version__

        sys.stdout.write(f"echelon {__version__}\n")
        return 0
    if command == "doctor" and len(args) == 1:
        return _doctor()
    what = f"unknown command or options: {' '.join(args)}\n\n" if args else ""
    sys.stderr.write(f"{what}{_USAGE}")
    return 2


def worker_main(argv: list[str] | None = None) -> int:
    """The ``echelon-worker`` command: the worker daemon."""
    from ._daemon import main as daemon

    return daemon(argv)


def session_main(argv: list[str] | None = None) -> int:
    """The ``echelon-session`` command: one session runner, as the daemon starts it."""
    from ._session import main as session

    return session(argv)


def _doctor() -> int:
    failed = False
    for name, ok, text in _checks():
        failed |= not ok
        sys.stdout.write(f"{'ok  ' if ok else 'FAIL'} {name:<16} {text}\n")
        sys.stdout.flush()
    return 1 if failed else 0


def _checks() -> Iterator[tuple[str, bool, str]]:
    import os
    import platform

    from . import __version__

    yield "version", True, __version__
    yield "python", sys.version_info >= (3, 11), f"{platform.python_version()} at {sys.executable}"
    yield "system", sys.platform == "linux", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "cores", True, str(len(os.sched_getaffinity(0)))
    for module, use in (("cloudpickle", "lambdas and functions of __main__"), ("numpy", "Tensor.numpy()")):
        try:
            found = __import__(module)
            yield module, True, getattr(found, "__version__", "installed")
        except ImportError:
            yield module, module == "numpy", f"not installed; needed for {use}"
    try:
        yield "local task", True, _round_trip(remote=0)
        yield "remote task", True, _round_trip(remote=1)
    except Exception as error:  # whatever it is, the doctor reports it
        yield "round trip", False, f"{type(error).__name__}: {error}"


def _round_trip(remote: int) -> str:
    import time

    from . import LocalCluster, RemoteCallable, TaskArgs

    with LocalCluster(remote=remote, sub_workers=0 if remote else 1) as cluster:
        worker = cluster.worker
        handle = worker.register(RemoteCallable("echelon._cli:_noop") if remote else _noop)
        worker.init()
        begun = time.perf_counter()
        if remote:
            worker.run(lambda orch, args, config: orch.submit_next_level(handle, TaskArgs()))
        else:
            worker.run(lambda orch, args, config: orch.submit_sub(handle))
        return f"{(time.perf_counter() - begun) * 1e6:.0f} us"


def _noop(*_: object) -> None:
    """What the doctor runs."""


if __name__ == "__main__":
    sys.exit(main())
