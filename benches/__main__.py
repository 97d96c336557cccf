"""Measures the tables of docs/benchmarks.md on this machine and prints them as they stand there: `make bench`.

The rows are measured in rounds, one after the other in each; the first round warms up and is not counted.
`python -m benches soak` (`make bench BENCH_ARGS=soak`) measures what many tasks, arguments and sessions leave behind.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from benches import soak
from benches.rows import ROOT, table

FIRST, SOAK = "first-table", "soak-table"
"""Each table stands in its page between `<!-- NAME -->` and `<!-- /NAME -->`."""


def machine() -> str:
    """What the numbers depend on, in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].partition(":")[2].strip() if names else platform.machine()
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return (
        f"{os.cpu_count()} × {model}, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, commit `{described.stdout.strip() or 'unknown'}`"
    )


def measure(round_count: int) -> str:
    """The table in Markdown, after `round_count` rounds (1 or more) and one that warms up."""
    with table() as rows:
        for round_number in range(round_count + 1):
            for row in rows:
                samples = row.measure()
                if round_number:
                    row.samples += samples
    lines = ["| | median | 5 % – 95 % | samples |", "|---|---:|---:|---:|"]
    return "\n".join([*lines, *(row.markdown() for row in rows)])


def write(page: Path, name: str, text: str) -> None:
    """Puts `text` between the markers of the table `name` in a Markdown page."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{page} needs the lines {first} and {last}, in this order")
    page.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds that count (15)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table into this Markdown page, too"
    )
    what = parser.add_subparsers(dest="what", metavar="soak")
    soak.options(what.add_parser("soak", help=soak.__doc__))
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, must be 1 or more")
    measured_on = machine()  # what runs now is what is measured, whatever becomes of the files meanwhile
    if options.what == "soak":
        name, command = SOAK, "make bench BENCH_ARGS=soak"
        measured = soak.table(options.case or list(soak.CASES), options.scale)
    else:
        name, command = FIRST, "make bench"
        measured = measure(options.rounds)
    rounds = "" if options.what else f" {options.rounds} rounds,"
    text = f"{measured_on};{rounds} `{command}`.\n\n{measured}"
    print(text)
    if options.write:
        write(options.write, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
