"""From figures to JSON and Markdown. The pages are made from the JSON file alone, so they can be made again at any time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from benches.machine import ROOT
from benches.row import Figure
from benches.targets import P99_TARGETS, TARGETS, at_most, p99_reached, reached

RESULTS = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"

YES_NO = {True: "yes", False: "**no**", None: "–"}

Section = dict[str, Any]
"""What one command measured: `command`, `machine`, and `figures` or `lines`."""


def load(path: Path = RESULTS) -> dict[str, Section]:
    """All sections by name; nothing where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(name: str, section: Section, path: Path = RESULTS) -> None:
    """Replaces one section."""
    sections = load(path) | {name: section}
    text = json.dumps(dict(sorted(sections.items())), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def figures_of(section: Section) -> list[Figure]:
    """What `Figure.as_json` made."""
    names = {one.name for one in fields(Figure)}
    return [Figure(**{k: v for k, v in entry.items() if k in names}) for entry in section["figures"]]


def short(value: float | None) -> str:
    """A number with about three digits."""
    if value is None:
        return "–"
    if abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def verdict(figure: Figure) -> str:
    """The target, and whether it is reached."""
    target = TARGETS.get(figure.key)
    if target is None:
        return "| "
    return f"{'≤' if at_most(figure) else '≥'} {target:,g} | {YES_NO[reached(figure)]}"


def tail(figure: Figure) -> str:
    """The 99th percentile where there are samples for it, and its target."""
    if figure.samples < 200:
        return ""
    target, reached = P99_TARGETS.get(figure.key), p99_reached(figure)
    return short(figure.p99) + (f" (≤ {target:g}: {YES_NO[reached]})" if target is not None else "")


def ratio(figure: Figure, by_key: dict[str, Figure]) -> str:
    """How many times the limit a figure takes, or what share of the limit it reaches."""
    limit = by_key.get(figure.limit or "")
    if limit is None or not limit.median or figure.median is None or limit.unit != figure.unit:
        return ""
    return f"{short(figure.median / limit.median)} × {limit.key.partition('.')[2]}"


def table(figures: list[Figure]) -> list[str]:
    """One line for each figure: median and spread, the ratio to its limit, its target."""
    by_key = {figure.key: figure for figure in figures}
    lines = [
        "| | median | 5 % – 95 % | p99 | ratio to limit | target | reached |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for figure in figures:
        if figure.median is None:
            lines.append(f"| {figure.name} | – | {figure.error} | | | {verdict(figure)} |")
            continue
        spread = f"{short(figure.low)} – {short(figure.high)}"
        lines.append(
            f"| {figure.name} | {short(figure.median)} {figure.unit} | {spread} | {tail(figure)} "
            f"| {ratio(figure, by_key)} | {verdict(figure)} |"
        )
    return lines


def section_text(section: Section, body: Callable[[Section], Iterable[str]]) -> str:
    """Machine, commit, command and how busy the machine was, above the table."""
    load = f"; load average {section['load']:g}" if "load" in section else ""
    head = f"{section['machine']}; {section['about']}`{section['command']}`{load}."
    return "\n".join([head, "", *body(section)])


def write(page: Path, name: str, text: str) -> None:
    """Puts `text` between the markers of the table `name` in a Markdown page."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{page} needs the lines {first} and {last}, in this order")
    page.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")
