"""The first measured table: one task and wait, many tasks, one bulk copy; local and remote, in one run.

Run it with ``make bench``. Each figure is a median over interleaved rounds with its spread (10th to 90th percentile), so that a
noisy neighbour hits every row alike. The limits of the machine are measured in the same rounds by the standard library alone.
Prints Markdown rows; ``--write FILE`` puts them between the markers of that file.
"""

from __future__ import annotations

import argparse
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import echelon as ec

sys.path.insert(0, str(Path(__file__).parent))
import bench_tasks  # noqa: E402

MANY = 5_000
COPY_BYTES = 8 << 20


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class TcpEcho:
    """A loopback echo over one TCP connection: the floor of anything remote."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(listener.getsockname())
        self.server, _ = listener.accept()
        listener.close()
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(30)
        self.thread = threading.Thread(target=self._echo)
        self.thread.start()

    def _echo(self) -> None:
        while data := self.server.recv(64):
            self.server.sendall(data)

    def round_trip(self) -> None:
        self.client.sendall(b"x")
        self.client.recv(64)

    def close(self) -> None:
        self.client.shutdown(socket.SHUT_WR)
        self.thread.join(timeout=30)
        self.client.close()
        self.server.close()


class Rows:
    """What is measured, a function a row; each returns the figure in its unit."""

    def __init__(self, cluster: ec.LocalCluster) -> None:
        self.worker = cluster.worker
        self.remote = cluster.remote_ids[0]
        self.leaf = self.worker.register(bench_tasks.leaf)
        self.noop = self.worker.register(ec.RemoteCallable("bench_tasks:noop"), workers=[self.remote])
        self.worker.init()
        self.buffer = self.worker.remote_malloc(worker=self.remote, nbytes=COPY_BYTES)
        self.bytes = np.random.default_rng(1).integers(0, 255, COPY_BYTES, dtype=np.uint8)
        self.echo = TcpEcho()
        self.target = np.empty_like(self.bytes)

    def _one(self, submit: Callable[[ec.Orchestrator], object], rounds: int = 200) -> float:
        samples: list[float] = []

        def graph(orch: ec.Orchestrator, args: object, cfg: object) -> None:
            for _ in range(rounds):
                start = time.perf_counter()
                submit(orch)
                orch.wait_all()
                samples.append(time.perf_counter() - start)

        self.worker.run(graph)
        return statistics.median(samples) * 1e6

    def _many(self, submit: Callable[[ec.Orchestrator], object]) -> float:
        def graph(orch: ec.Orchestrator, args: object, cfg: object) -> None:
            for _ in range(MANY):
                submit(orch)

        return MANY / seconds(lambda: self.worker.run(graph))

    def _local(self, orch: ec.Orchestrator) -> None:
        orch.submit_sub(self.leaf, ec.TaskArgs())

    def _remote(self, orch: ec.Orchestrator) -> None:
        orch.submit_next_level(self.noop, ec.TaskArgs(), worker=self.remote)

    def all(self) -> dict[str, Callable[[], float]]:
        megabytes = COPY_BYTES / 1e6
        return {
            "one noop and wait, local (µs)": lambda: self._one(self._local),
            "one noop and wait, remote (µs)": lambda: self._one(self._remote),
            "limit: TCP loopback round trip from Python (µs)": lambda: seconds(self.echo.round_trip) * 1e6,
            f"{MANY} noops, local, one sub worker (tasks/s)": lambda: self._many(self._local),
            f"{MANY} noops, remote (tasks/s)": lambda: self._many(self._remote),
            "remote_copy_to 8 MiB (MB/s)": lambda: (
                megabytes / seconds(lambda: self.worker.remote_copy_to(self.buffer, self.bytes))
            ),
            "remote_copy_from 8 MiB (MB/s)": lambda: (
                megabytes / seconds(lambda: self.worker.remote_copy_from(self.buffer, self.target))
            ),
            "limit: memcpy 8 MiB, warm (MB/s)": lambda: megabytes / seconds(lambda: np.copyto(self.target, self.bytes)),
        }

    def close(self) -> None:
        self.echo.close()
        self.worker.remote_free(self.buffer)


def measure(rounds: int) -> dict[str, list[float]]:
    with ec.LocalCluster(remote=1, sub_workers=1, pythonpath=[str(Path(__file__).parent)]) as cluster:
        rows = Rows(cluster)
        try:
            actions = rows.all()
            samples: dict[str, list[float]] = {name: [] for name in actions}
            for round_number in range(rounds + 1):
                for name, action in actions.items():
                    value = action()
                    if round_number:  # the first round warms up
                        samples[name].append(value)
        finally:
            rows.close()
    return samples


def table(samples: dict[str, list[float]]) -> str:
    lines = ["| | median | 10 % – 90 % |", "|---|---:|---:|"]
    for name, values in samples.items():
        ordered = sorted(values)
        low, high = ordered[len(ordered) // 10], ordered[(len(ordered) * 9) // 10]
        lines.append(f"| {name} | {statistics.median(values):,.0f} | {low:,.0f} – {high:,.0f} |")
    return "\n".join(lines)


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write(path: Path, text: str) -> None:
    begin, end = "<!-- first-table -->", "<!-- /first-table -->"
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds, after one that warms up")
    parser.add_argument("--write", type=Path, help="Markdown file with the markers")
    options = parser.parse_args()
    text = table(measure(max(1, options.rounds)))
    header = (
        f"Commit `{commit()}`, `make bench`, {options.rounds} interleaved rounds; "
        f"Python {platform.python_version()}, {platform.machine()}, Linux {platform.release().split('-')[0]}.\n"
    )
    print(f"{header}\n{text}")
    if options.write:
        write(options.write, f"{header}\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
