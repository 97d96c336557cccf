"""Callables that misbehave, for tests of bad input."""

from __future__ import annotations

import os
import time


def noop(args):
    """Does nothing."""


def double(args):
    """Doubles tensor 0."""
    args.tensor(0).numpy()[...] *= 2


def raise_long(args):
    """Raises with a text of five million characters."""
    raise ValueError("x" * 5_000_000)


def raise_surrogate(args):
    """Raises with a text that UTF-8 cannot hold."""
    raise ValueError("ä€𝄞 \udc80 end")


def fork_and_return(args):
    """Forks, and returns in both processes."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)


def fork_and_raise(args):
    """Forks; the fork raises, the worker returns."""
    pid = os.fork()
    if not pid:
        raise ValueError("in the fork")
    os.waitpid(pid, 0)


def die(args):
    """Ends the process."""
    os._exit(3)


def sleep(args):
    """Sleeps scalar 0 milliseconds."""
    time.sleep(args.scalar(0) / 1000)


def orch_noop(orch, args, config):
    """Orchestration callable that does nothing."""


def leaves_a_thread(args):
    """Starts a thread that is no daemon and outlives the task by far."""
    import threading

    threading.Thread(target=threading.Event().wait, args=(600.0,)).start()
