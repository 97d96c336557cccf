"""The zero-residual check (R-129): after a test, nothing is there that was not there before.

It looks at child processes of any depth (zombies and orphans included), their process groups, names in
/dev/shm, descriptors and threads of this process, listening and connected TCP sockets of the whole tree, and
temporary files whose names begin with `echelon-`.

Orphans are seen because `become_subreaper` makes them come back to this process. Where a test kills a process
that has children of its own, those become ours by that and nobody is to blame: call `note_descendants` first
(`testbed.daemon` does), and the check reaps them once they have ended. It never forgives one that lives on.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import procfs
from .wait import eventually

GRACE_S = 5.0
"""How long what is on its way out may take, in seconds."""

SHM = Path("/dev/shm")
TEMP_PATTERN = "echelon-*"
PR_SET_CHILD_SUBREAPER = 36

_noted: set[tuple[int, int]] = set()


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process instead of init's, so that they are found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def note_descendants(root_pid: int | None = None) -> None:
    """Remembers the processes that are now *below a child* of ours (or below `root_pid`).

    Should they be orphaned, the check takes init's part and reaps them. Direct children are never noted: who
    started them must reap them.
    """
    me = os.getpid()
    for process in procfs.descendants(root_pid if root_pid is not None else me):
        if process.ppid != me:
            _noted.add(process.key)


def reap_adopted() -> None:
    """Reaps the noted processes that have ended and are ours by adoption."""
    me = os.getpid()
    for process in procfs.descendants(me):
        if process.ppid == me and process.is_zombie and process.key in _noted:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            _noted.discard(process.key)


@dataclass
class Snapshot:
    """Everything countable, each kind as identity → words for people."""

    processes: dict[tuple[int, int], str] = field(default_factory=dict)
    groups: dict[object, str] = field(default_factory=dict)
    shm_names: dict[object, str] = field(default_factory=dict)
    descriptors: dict[object, str] = field(default_factory=dict)
    sockets: dict[object, str] = field(default_factory=dict)
    threads: dict[object, str] = field(default_factory=dict)
    temp_files: dict[object, str] = field(default_factory=dict)

    def kinds(self) -> Iterator[tuple[str, dict[Any, str]]]:
        yield from vars(self).items()


def replaced_zygotes(tree: list[procfs.Process], before: Snapshot) -> set[int]:
    """Zygotes of processes that were there before, at most one of each; ours are not among them. A daemon whose zygote was
    lost, or was not up in time, starts another one for its next session."""
    owners = {pid for pid, _ in before.processes}
    mine = {process.ppid: process.pid for process in tree if process.is_zygote and not process.is_zombie}
    return {pid for owner, pid in mine.items() if owner in owners}


def take(before: Snapshot | None = None) -> Snapshot:
    """Looks at everything once, without what may be there now after `before`."""
    me = os.getpid()
    tree = procfs.descendants(me)
    if before is not None:
        fresh = replaced_zygotes(tree, before)
        tree = [process for process in tree if process.pid not in fresh]
    own_group = os.getpgrp()
    snapshot = Snapshot()
    snapshot.processes = {process.key: str(process) for process in tree}
    for process in tree:
        if process.pgid != own_group:
            snapshot.groups[process.pgid] = f"process group {process.pgid} of {process.pid}"
    with suppress(OSError):
        snapshot.shm_names = {name: f"shared memory {SHM / name}" for name in os.listdir(SHM)}
    snapshot.descriptors = {
        (number, target): f"descriptor {number} -> {target}"
        for number, target in procfs.descriptors(me).items()
    }
    snapshot.sockets = {
        inode: f"socket {words}"
        for inode, words in procfs.tcp_sockets([me, *(process.pid for process in tree)]).items()
    }
    snapshot.threads = {tid: f"thread {tid} named {name!r}" for tid, name in procfs.threads(me).items()}
    temp = Path(tempfile.gettempdir())
    snapshot.temp_files = {path: f"temporary file {path}" for path in temp.glob(TEMP_PATTERN)}
    return snapshot


def left_behind(before: Snapshot, after: Snapshot) -> list[str]:
    """What `after` has and `before` had not, in words."""
    old = dict(before.kinds())
    return [
        words
        for kind, found in after.kinds()
        for identity, words in found.items()
        if identity not in old[kind]
    ]


def check(before: Snapshot, grace_s: float = GRACE_S) -> list[str]:
    """Waits, at most `grace_s` seconds, until nothing is left behind; returns what still is."""
    found: list[str] = []

    def clean() -> bool:
        nonlocal found
        # What was orphaned while we looked was not started by us.
        note_descendants()
        reap_adopted()
        found = left_behind(before, take(before))
        return not found

    gc.collect()
    with suppress(AssertionError):
        eventually(clean, grace_s, what="a clean table")
    return found


def clear_away(before: Snapshot) -> None:
    """After a failed check: ends and reaps what was left running, so that the next test is judged alone."""
    me = os.getpid()

    def alone() -> bool:
        strangers = [p for p in procfs.descendants(me) if p.key not in before.processes]
        for process in strangers:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
            if process.ppid == me:
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        return not strangers

    with suppress(AssertionError):
        eventually(alone, GRACE_S)
