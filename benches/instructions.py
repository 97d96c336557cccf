"""Instructions that a noop takes on each side, counted by valgrind's callgrind: they do not depend on what else runs.

The harness is `benches/native/src/noops.rs`: Rust callables, a run of few noops and one of many; what the second takes more,
divided by how many more they are. Only the side that is counted runs under the tool, a hundred times slower than the other,
so that it never waits. How many messages it finds together still varies a little, so the least of several runs counts.
`--update` writes benches/instructions.json; without it the counts are compared with that file, and one that has grown by
more than 10 % is a failure. A side that the tool cannot run (valgrind before 3.21 does not know pidfd_open) is in the file
with the reason, and not compared; nor is one whose runs differed by more than that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benches.limits import program
from benches.machine import ROOT, machine
from benches.report import Section
from benches.row import reason

COUNTS = ROOT / "benches" / "instructions.json"
FEW, MANY = 1_000, 20_000
"""Noops of two runs: the start of the processes is in both, and what varies in it is small beside the difference."""

GROWTH_MAX = 0.10
SPREAD_MAX = GROWTH_MAX
RUNS = 5
"""For an update; a check makes another run only while the last one was over the bound."""
TIMEOUT_S = 120.0

Command = list[str]


class Skip(Exception):
    """Nothing can be counted, or compared, here; the text says why."""


def toolchain() -> dict[str, str]:
    """What the counts depend on besides our code."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Skip("valgrind is not installed")
    rustc = _output(["rustc", "--version"])
    return {
        "rustc": rustc,
        "valgrind": _output([valgrind, "--version"]),
        "arch": platform.machine(),
        "profile": _profile(),
    }


def _output(command: Command) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    ).stdout.strip()


def _profile() -> str:
    settings = tomllib.loads((ROOT / "Cargo.toml").read_text())["profile"]["release"]

    def of(name: str) -> str:
        variable = "CARGO_PROFILE_RELEASE_" + name.upper().replace("-", "_")
        return str(os.environ.get(variable, settings.get(name)))

    return f"lto={of('lto')} codegen-units={of('codegen-units')}"


def _callgrind(out: Path) -> Command:
    return ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]


def counted(text: str) -> int:
    """The instructions that a callgrind file says were executed."""
    found = re.search(r"^(?:totals|summary): (\d+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError("the file of callgrind has no line of totals")
    return int(found[1])


def _run(command: Command) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        unknown = re.search(r"unhandled \S+ syscall: (\d+)", done.stderr)
        if unknown is not None:
            raise RuntimeError(f"this valgrind does not know the system call {unknown[1]}")
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr[-600:]}")


@contextmanager
def _daemon(session: Command) -> Iterator[str]:
    command = [str(program("echelon-worker")), "--host", "127.0.0.1", "--port", "0", "--insecure-loopback"]
    daemon = subprocess.Popen(
        [*command, "--session-command", *session],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"ECHELON_LOG": "error"},
    )
    try:
        assert daemon.stdout is not None
        yield daemon.stdout.readline().removeprefix("listening on ").strip()
    finally:
        daemon.terminate()
        daemon.communicate(timeout=TIMEOUT_S)


@contextmanager
def _bootstrap(session: Command) -> Iterator[str]:
    """The part of a daemon for one session, which has no parent to watch then: old tools do not know the call for that."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve_one, args=(listener, session), name="bootstrap")
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT_S)
        listener.close()


def _serve_one(listener: socket.socket, session: Command) -> None:
    with suppress(OSError), listener.accept()[0] as parent, tempfile.TemporaryFile() as manifest:
        reader = parent.makefile("rb")
        manifest.write(reader.read(int.from_bytes(reader.read(4), "little")))
        manifest.seek(0)
        ready, told = os.pipe()
        fds = ["--manifest-fd", str(manifest.fileno()), "--ready-fd", str(told)]
        with subprocess.Popen(
            [*session, *fds], pass_fds=(manifest.fileno(), told), stderr=subprocess.DEVNULL
        ) as process:
            os.close(told)
            with open(ready, "rb") as line:
                answer = json.loads(line.readline() or b'{"ok": false, "error": "the session ended"}')
            reply = json.dumps({"pid": process.pid, **answer}).encode()
            parent.sendall(len(reply).to_bytes(4, "little") + reply)


def _engine(count: int, noops: str, tool: Command) -> None:
    _run([*tool, noops, "engine", str(count)])


def _chain(count: int, noops: str, tool: Command) -> None:
    _run([*tool, noops, "chain", str(count)])


def _local_parent(count: int, noops: str, tool: Command) -> None:
    _run([*tool, noops, "local", str(count), noops, "child"])


def _local_child(count: int, noops: str, tool: Command) -> None:
    valgrind = str(shutil.which("valgrind"))
    _run([noops, "local", str(count), valgrind, *tool[1:], noops, "child"])


def _remote_parent(count: int, noops: str, tool: Command) -> None:
    with _daemon([noops, "session"]) as endpoint:
        _run([*tool, noops, "remote", str(count), endpoint])


def _remote_session(count: int, noops: str, tool: Command) -> None:
    valgrind = str(shutil.which("valgrind"))
    with _bootstrap([valgrind, *tool[1:], noops, "session"]) as endpoint:
        _run([noops, "remote", str(count), endpoint])


HARNESSES: dict[str, tuple[str, Callable[[int, str, Command], None]]] = {
    "engine": ("parent, from submit to end, over an endpoint that does nothing", _engine),
    "chain": ("the same, each writing what the one before wrote", _chain),
    "local.parent": ("parent, child behind a mailbox", _local_parent),
    "local.child": ("child behind a mailbox", _local_child),
    "remote.parent": ("parent, over TCP", _remote_parent),
    "remote.session": ("session", _remote_session),
}


def per_noop(name: str) -> float:
    """Instructions a noop in one harness."""
    noops = str(program("noops"))

    def total(count: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "callgrind.out"
            HARNESSES[name][1](count, noops, _callgrind(out))
            return counted(out.read_text())

    return (total(MANY) - total(FEW)) / (MANY - FEW)


def grown(before: dict[str, int], now: dict[str, int]) -> list[str]:
    """What has grown too much, in words."""
    return [
        f"{name}: {now[name]:,} instructions a noop, {now[name] / count - 1:+.0%} to the {count:,} of {COUNTS.name}"
        for name, count in before.items()
        if name in now and now[name] > count * (1 + GROWTH_MAX)
    ]


def update() -> None:
    """Counts everything several times and replaces the file."""
    counts: dict[str, int] = {}
    spread: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in HARNESSES:
        try:
            runs = [per_noop(name) for _ in range(RUNS)]
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
            missing[name] = reason(error)
            print(f"{name}: {missing[name]}", flush=True)
            continue
        counts[name] = round(min(runs))
        spread[name] = round((max(runs) - min(runs)) / counts[name], 4)
        print(f"{name}: {counts[name]:,}, spread {spread[name]:.2%}", flush=True)
    table = {
        "toolchain": toolchain(),
        "machine": machine(),
        "per_noop": counts,
        "spread": spread,
        "missing": missing,
    }
    COUNTS.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _least(name: str, count: int) -> int:
    """The first run within the bound, or the least of several."""
    least = round(per_noop(name))
    for _ in range(RUNS - 1):
        if least <= count * (1 + GROWTH_MAX):
            break
        least = min(least, round(per_noop(name)))
    return least


def check() -> list[str]:
    """What has grown too much since the file was made.

    Raises:
        Skip: the toolchain is another, so the counts cannot be compared.
    """
    here, table = toolchain(), json.loads(COUNTS.read_text(encoding="utf-8"))
    if here != table["toolchain"]:
        raise Skip(f"the counts are of {table['toolchain']}, here is {here}")
    steady = {name: n for name, n in table["per_noop"].items() if table["spread"][name] <= SPREAD_MAX}
    now: dict[str, int] = {}
    for name, before in steady.items():
        try:
            now[name] = _least(name, before)
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
            print(f"SKIPPED: {name} is not counted: {reason(error)}", flush=True)
            continue
        print(f"{name}: {now[name]:,} instructions a noop ({now[name] / before - 1:+.1%})", flush=True)
    return grown(steady, now)


def section() -> Section:
    """The file as a table."""
    table = json.loads(COUNTS.read_text(encoding="utf-8"))
    lines = ["| side | instructions a noop | spread of the runs |", "|---|---:|---:|"]
    for name, count in table["per_noop"].items():
        lines.append(f"| {HARNESSES[name][0]} | {count:,} | {table['spread'][name]:.1%} |")
    for name, why in table["missing"].items():
        lines.append(f"| {HARNESSES[name][0]} | not counted: {why} | |")
    tools = table["toolchain"]
    about = f"{tools['rustc']}, {tools['profile']}, {tools['valgrind']}; "
    command = "make bench-instructions INSTRUCTIONS_ARGS=--update"
    return {"machine": table["machine"], "about": about, "command": command, "lines": lines}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 when something has grown, 0 also when nothing can be compared here, which is said."""
    parser = argparse.ArgumentParser(prog="python -m benches.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="count, and replace the file")
    options = parser.parse_args(argv)
    try:
        if options.update:
            update()
            return 0
        problems = check()
    except Skip as why:
        print(f"SKIPPED: instructions are not counted: {why}")
        return 0
    for problem in problems:
        print(f"GROWN: {problem}")
    if problems:
        print(
            "bring it down, or say in the commit why it is worth it: make bench-instructions INSTRUCTIONS_ARGS=--update"
        )
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
