"""Measures the rows of docs/benchmarks.md on this machine and prints them as they stand there.

`--quick` repeats less, `--only TEXT` takes the rows whose name holds TEXT, `--json FILE` writes the numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import echelon as ec

from benches import callables
from benches.measure import Result, repeat

ROOT = Path(__file__).resolve().parents[1]
MANY = 5000
COPY_BYTES = 8 * 1024 * 1024

Row = tuple[str, Callable[[str], Result]]


def rows(worker: ec.Worker, remote_id: int, quick: bool) -> Iterator[Row]:
    """Each row's name and what measures it."""
    leaf = worker.register(callables.leaf)
    entry = worker.register(ec.RemoteCallable("benches.callables:entry"), workers=[remote_id])
    few = 5 if quick else 30
    many = 200 if quick else 2000

    def submit(count: int, remote: bool) -> Callable[[], object]:
        def graph(orch: ec.Orchestrator, args: object, cfg: object) -> None:
            task = ec.TaskArgs()
            for _ in range(count):
                if remote:
                    orch.submit_next_level(entry, task, worker=remote_id)
                else:
                    orch.submit_sub(leaf, task)

        return lambda: worker.run(graph)

    for place, remote in (("local", False), ("remote", True)):
        one, lots = submit(1, remote), submit(MANY, remote)
        yield f"noop, {place}", lambda name, one=one: repeat(name, one, many)
        yield f"5,000 noops, {place}, each", lambda name, lots=lots: repeat(name, lots, few, units=MANY)
    yield "copy to, 8 MiB", lambda name: _copies(name, worker, remote_id, few * 4)


def _copies(name: str, worker: ec.Worker, remote_id: int, repeat_count: int) -> Result:
    buffer = worker.remote_malloc(worker=remote_id, nbytes=COPY_BYTES)
    data = bytes(COPY_BYTES)
    try:
        return repeat(name, lambda: worker.remote_copy_to(buffer, data), repeat_count, nbytes=COPY_BYTES)
    finally:
        worker.remote_free(buffer)


def machine() -> str:
    """What the numbers depend on, in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].partition(":")[2].strip() if names else platform.machine()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"commit {commit or 'unknown'}"
    )


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    options = parser.parse_args(argv)
    results = []
    print(machine(), "\n", sep="")
    print("| row | median | 5 % | 95 % | repetitions | rate |\n|---|---:|---:|---:|---:|---:|")
    with ec.LocalCluster(remote=1, sub_workers=1, pythonpath=[str(ROOT)]) as cluster:
        for name, measure in rows(cluster.worker, cluster.remote_ids[0], options.quick):
            if options.only in name:
                results.append(measure(name))
                print(results[-1].row(), flush=True)
    if options.json:
        numbers = [dataclasses.asdict(result) for result in results]
        options.json.write_text(json.dumps({"machine": machine(), "results": numbers}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
