"""Reads /proc: processes and their tree, threads, descriptors, sockets. Whatever vanishes meanwhile is skipped."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROC = Path("/proc")

TCP_STATES = {"01": "ESTABLISHED", "0A": "LISTEN"}
"""The kernel's numbers of the two socket states that count as left behind."""


@dataclass(frozen=True)
class Process:
    """One process as /proc/PID/stat tells it. `start` (clock ticks since boot) tells a reused pid from the old one."""

    pid: int
    ppid: int
    pgid: int
    state: str
    start: int
    name: str

    @property
    def key(self) -> tuple[int, int]:
        return (self.pid, self.start)

    @property
    def is_zombie(self) -> bool:
        return self.state == "Z"

    @property
    def is_zygote(self) -> bool:
        """It forks workers and is none. Until it has its name it is known by the argument that makes it one."""
        return self.name == "echelon-zygote" or " --zygote " in command_line(self)

    def __str__(self) -> str:
        kind = "zombie" if self.is_zombie else "process"
        return f"{kind} {self.pid} (parent {self.ppid}, group {self.pgid}): {command_line(self)}"


def command_line(process: Process) -> str:
    """The arguments of a process for people, or its short name when it has none (a zombie)."""
    try:
        raw = (PROC / str(process.pid) / "cmdline").read_bytes()
    except OSError:
        raw = b""
    words = [word.decode("utf-8", "replace") for word in raw.split(b"\0") if word]
    return " ".join(words)[:200] or f"[{process.name}]"


def read_process(pid: int) -> Process | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in brackets and may itself hold blanks and brackets.
    name_end = text.rindex(")")
    name = text[text.index("(") + 1 : name_end]
    rest = text[name_end + 2 :].split()
    return Process(pid, int(rest[1]), int(rest[2]), rest[0], int(rest[19]), name)


def all_processes() -> list[Process]:
    pids = [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]
    return [process for pid in pids if (process := read_process(pid)) is not None]


def descendants(root_pid: int) -> list[Process]:
    """Every process below `root_pid`, zombies included, parents before children."""
    children: dict[int, list[Process]] = {}
    for process in all_processes():
        children.setdefault(process.ppid, []).append(process)
    found: list[Process] = []
    queue = [root_pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found.extend(below)
        queue.extend(process.pid for process in below)
    return found


def workers_below(root_pid: int) -> list[Process]:
    """`descendants` without the zygotes: what runs work, or runs what does."""
    return [process for process in descendants(root_pid) if not process.is_zygote]


def zygotes_below(root_pid: int) -> list[Process]:
    """The zygotes among the `descendants`, zombies left out."""
    return [process for process in descendants(root_pid) if process.is_zygote and not process.is_zombie]


def format_tree(root_pid: int) -> str:
    """The tree below `root_pid`, one process a line, with each live process's kernel wait channel."""
    depth = {root_pid: 0}
    lines = [f"process tree of {root_pid}:"]
    for process in descendants(root_pid):
        depth[process.pid] = depth[process.ppid] + 1
        lines.append(f"{'  ' * depth[process.pid]}{process} state={process.state}")
    return "\n".join(lines)


def threads(pid: int) -> dict[int, str]:
    """Thread id to thread name."""
    found = {}
    try:
        tids = os.listdir(PROC / str(pid) / "task")
    except OSError:
        return {}
    for tid in tids:
        try:
            found[int(tid)] = (PROC / str(pid) / "task" / tid / "comm").read_text().strip()
        except OSError:
            continue
    return found


def descriptors(pid: int) -> dict[int, str]:
    """Descriptor number to what it points at (`socket:[123]`, `/memfd:name (deleted)`, a path)."""
    folder = PROC / str(pid) / "fd"
    found = {}
    try:
        numbers = os.listdir(folder)
    except OSError:
        return {}
    for number in numbers:
        try:
            found[int(number)] = os.readlink(folder / number)
        except OSError:
            # The descriptor that listed the folder is gone by now; so is whatever closed meanwhile.
            continue
    return found


def socket_of(pid: int) -> socket.socket:
    """A copy of the one socket that the process has open; skips the test where that is not allowed."""
    (number,) = (n for n, target in descriptors(pid).items() if target.startswith("socket:"))
    pidfd = os.pidfd_open(pid)
    try:
        pidfd_getfd = 438
        copy = ctypes.CDLL(None, use_errno=True).syscall(pidfd_getfd, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if copy < 0:
        pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return socket.socket(fileno=copy)


def _socket_table() -> Iterator[tuple[str, str]]:
    for name in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            state = TCP_STATES.get(fields[3])
            if state is not None:
                yield fields[9], f"{state} {_address(fields[1])} peer {_address(fields[2])}"


def _address(text: str) -> str:
    host, port = text.split(":")
    if len(host) == 8:
        host = ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
    return f"{host}:{int(port, 16)}"


def tcp_sockets(pids: Iterable[int]) -> dict[str, str]:
    """Inode to description of each listening or connected TCP socket that one of `pids` holds."""
    table = dict(_socket_table())
    found = {}
    for pid in pids:
        for target in descriptors(pid).values():
            inode = target.removeprefix("socket:[").removesuffix("]")
            if target.startswith("socket:[") and inode in table:
                found[inode] = f"pid {pid} {table[inode]}"
    return found


def resident_bytes(pid: int | str = "self") -> int:
    """Bytes of memory that the process has in RAM: pages of its own and of files."""
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def mappings(pid: int | str = "self") -> list[tuple[str, str]]:
    """Rights (`rw-s`) and file of each mapping that has one; a file without a name ends with `(deleted)`."""
    lines = (PROC / str(pid) / "maps").read_text().splitlines()
    fields = [line.split(maxsplit=5) for line in lines]
    return [(field[1], field[5]) for field in fields if len(field) == 6]


def mapped_segments(pid: int | str = "self") -> int:
    """How many mappings of shared memory the process has: memfds and segments of /dev/shm."""
    return sum(path.startswith(("/dev/shm/", "/memfd:echelon")) for _, path in mappings(pid))


def segments(pid: int | str = "self") -> set[str]:
    """Device and inode of each piece of shared memory that the process has mapped (memfds share one name)."""
    lines = (PROC / str(pid) / "maps").read_text().splitlines()
    fields = [line.split(maxsplit=5) for line in lines]
    shared = [
        field for field in fields if len(field) == 6 and field[5].startswith(("/dev/shm/", "/memfd:echelon"))
    ]
    return {f"{field[3]}:{field[4]}" for field in shared}
