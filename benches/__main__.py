"""Measures the tables of docs/benchmarks.md on this machine and prints them as they stand there: `make bench`.

Without a word it measures the main table. The other words (`make bench BENCH_ARGS=scale`) are tables of their own. With
`--write`, before the word, the numbers go to docs/benchmarks.json and the tables to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from benches import busy, instructions, lanes, peers_table, plot, report, scale, soak, stages, startup
from benches.machine import machine
from benches.main_table import main_table
from benches.report import Section
from benches.row import Figure, measure, note
from benches.smoke import smoke
from benches.workloads import SMALL, Sizes


@dataclass(frozen=True)
class Part:
    """One table: how it is measured and how it is drawn from what was measured."""

    help: str
    measure: Callable[[argparse.Namespace], Section]
    body: Callable[[Section], list[str]]
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None


def _figures(section: Section) -> list[str]:
    return report.table(report.figures_of(section))


def _lines(section: Section) -> list[str]:
    return list(section["lines"])


def _soak(options: argparse.Namespace) -> Section:
    measured_on = machine()
    lines = soak.table(options.case or list(soak.CASES), options.scale).splitlines()
    return {"machine": measured_on, "about": "", "command": "make bench BENCH_ARGS=soak", "lines": lines}


def _startup(options: argparse.Namespace) -> Section:
    measured_on, small = machine(), options.small
    rounds = min(options.rounds, 1 if small else 10)
    with lanes.daemon() as endpoint:
        figures = measure(startup.rows(endpoint), rounds, note)
    figures += [row.figure() for row in startup.held(0.5 if small else startup.IDLE_S)]
    return _of_figures(measured_on, f"{rounds} rounds, ", "startup", figures)


def _stages(options: argparse.Namespace) -> Section:
    measured_on, small = machine(), options.small
    rounds = min(options.rounds, 1 if small else 5)
    figures = stages.figures(rounds, SMALL if small else Sizes())
    return _of_figures(measured_on, f"{rounds} rounds, ", "stages", figures)


def _scale(options: argparse.Namespace) -> Section:
    measured_on, found = machine(), []
    for line in scale.lines(options.small):
        print(line, file=sys.stderr, flush=True)
        found.append(line)
    return {"machine": measured_on, "about": "", "command": "make bench BENCH_ARGS=scale", "lines": found}


def _busy(options: argparse.Namespace) -> Section:
    measured_on, rounds = machine(), min(options.rounds, 1 if options.small else 15)
    with busy.rows(options.small) as rows:
        figures = measure(rows, rounds, note)
    return _of_figures(measured_on, f"{rounds} rounds, ", "busy", figures)


def _of_figures(measured_on: str, about: str, word: str, figures: list[Figure]) -> Section:
    return {
        "machine": measured_on,
        "about": about,
        "command": f"make bench BENCH_ARGS={word}",
        "figures": [figure.as_json() for figure in figures],
    }


PARTS: dict[str, Part] = {
    "main": Part(
        "every workload and every limit",
        lambda options: main_table(options.rounds, options.small, options.only),
        _figures,
    ),
    "peers": Part(
        "other systems beside ours",
        lambda options: peers_table.peers_table(min(options.rounds, 5), options.small),
        peers_table.body,
    ),
    "stages": Part("where the time of a noop goes", _stages, _figures),
    "startup": Part("starts, memory and idle time of workers", _startup, _figures),
    "busy": Part("single tasks while other programs keep cores busy", _busy, _figures),
    "scale": Part("cost per task as graphs and clusters grow", _scale, _lines),
    "instructions": Part(
        "what make bench-instructions has counted", lambda _: instructions.section(), _lines
    ),
    "soak": Part("what many tasks, arguments and sessions leave", _soak, _lines, soak.options),
}


def text_of(name: str, section: Section) -> str:
    """The table of a section with its machine, commit and command."""
    return report.section_text(section, PARTS[name].body)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds that count (15)")
    parser.add_argument("--small", action="store_true", help="little of everything, to see that it runs")
    parser.add_argument("--only", metavar="KEY", help="only the rows whose key begins so: local.w1")
    parser.add_argument("--write", action="store_true", help="put the result into docs/, too")
    words = parser.add_subparsers(dest="part", metavar="|".join([*PARTS, "smoke", "render"]))
    for name, part in PARTS.items():
        part.options(words.add_parser(name, help=part.help))
    words.add_parser("smoke", help="all of them small: only whether they run")
    words.add_parser("render", help="make the pages again from docs/benchmarks.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, must be 1 or more")
    if options.part == "render":
        render()
        return 0
    if options.part == "smoke":
        return smoke(
            {name: PARTS[name].measure for name in ("main", "peers", "stages", "startup", "busy", "scale")}
        )
    name = options.part or "main"
    section = PARTS[name].measure(options)
    section["load"] = round(os.getloadavg()[1], 1)
    print(text_of(name, section))
    if options.write:
        report.save(name, section)
        render()
    return 0


def render() -> None:
    """Makes the tables of the page, and the picture, from the JSON file."""
    if "peers" in report.load():
        plot.write(report.load()["peers"])
    for name, section in report.load().items():
        report.write(report.PAGE, f"{name}-table", text_of(name, section))


if __name__ == "__main__":
    sys.exit(main())
