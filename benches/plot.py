"""The picture of the README: W1 and W2 of all systems on logarithmic scales, as SVG that follows the reader's theme."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from benches.machine import ROOT
from benches.peers import NAMES
from benches.report import Section, figures_of, short
from benches.row import Figure

PLOT = ROOT / "docs" / "img" / "benchmarks.svg"
LABELS = {"local": "Echelon, sub worker", "remote": "Echelon, session over TCP"} | NAMES
PANELS = {
    "w1": ("One task and wait, µs (less is better)", "µs"),
    "w2": ("Independent tasks a second (more is better)", ""),
}
WIDTH, NAME_WIDTH, NUMBER_WIDTH, BAR, GAP, HEAD = 760, 190, 80, 16, 8, 34
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.ours { fill: #0969da; }
.peer { fill: #8c959f; }
.grid { stroke: #d0d7de; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .ours { fill: #4493f8; }
  .peer { fill: #6e7681; }
  .grid { stroke: #30363d; }
}
"""


def svg(section: Section) -> str:
    """The picture of a section of peers."""
    figures = {figure.key: figure for figure in figures_of(section)}
    parts, y = [], 10
    for key, (title, _) in PANELS.items():
        bars = [
            (name, figures[f"peers.{name}.{key}"])
            for name in LABELS
            if f"peers.{name}.{key}" in figures and figures[f"peers.{name}.{key}"].median
        ]
        if bars:
            lines, y = _panel(title, bars, y)
            parts += lines
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img" '
        f'aria-label="Echelon beside other systems">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(title: str, bars: list[tuple[str, Figure]], top: int) -> tuple[list[str], int]:
    """The lines of one panel, and where the next begins."""
    medians = [figure.median or 1.0 for _, figure in bars]
    low, high = math.floor(math.log10(min(medians))), math.ceil(math.log10(max(medians)))
    high = max(high, low + 1)
    room = WIDTH - NAME_WIDTH - NUMBER_WIDTH
    bottom = top + HEAD + len(bars) * (BAR + GAP)

    def x(value: float) -> float:
        return NAME_WIDTH + max(2.0, (math.log10(value) - low) / (high - low) * room)

    lines = [f'<text class="title" x="{NAME_WIDTH}" y="{top + 14}">{escape(title)}</text>']
    for power in range(low, high + 1):
        at = NAME_WIDTH + (power - low) / (high - low) * room
        lines.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top + HEAD - 8}" y2="{bottom}"/>')
        lines.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**power:,g}</text>')
    for index, (name, figure) in enumerate(bars):
        y = top + HEAD + index * (BAR + GAP)
        end, kind = x(figure.median or 1.0), "peer" if name in NAMES else "ours"
        lines += [
            f'<text x="{NAME_WIDTH - 8}" y="{y + 13}" text-anchor="end">{escape(LABELS[name])}</text>',
            f'<rect class="{kind}" x="{NAME_WIDTH}" y="{y}" width="{end - NAME_WIDTH:.1f}" height="{BAR}"/>',
            f'<text x="{end + 6:.1f}" y="{y + 13}">{short(figure.median)}</text>',
        ]
    return lines, bottom + 34


def write(section: Section, path: Path = PLOT) -> None:
    """Puts the picture where the README shows it."""
    path.write_text(svg(section), encoding="utf-8")
