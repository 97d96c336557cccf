"""Callables of tests/test_chains.py: links of a chain, as leaves and as orchestration functions."""

from __future__ import annotations

import os
import signal
import time

NEVER = 600


def link(args):
    """Adds 1 to tensor 0 (the chain) and to tensor 1 (the log), and does what scalar 0 says."""
    chain, log = args.tensor(0).numpy(), args.tensor(1).numpy()
    log[0] += 1
    kind = args.scalar(0)
    if kind == 1:
        raise ValueError("a broken link")
    if kind == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == 3:
        time.sleep(NEVER)
    chain[0] += 1


def overwrite(args):
    """Sets tensor 0 without reading it."""
    args.tensor(0).numpy()[0] = args.scalar(0)


def orch_link(orch, args, config):
    """A link in a level 3 worker."""
    link(args)


def orch_overwrite(orch, args, config):
    """As overwrite."""
    overwrite(args)


def add_one(args):
    """A link over one array."""
    args.tensor(0).numpy()[0] += 1


def nothing(args):
    pass
