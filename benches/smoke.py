"""Everything small: it shows that everything runs and gives positive numbers. How fast is nobody's business here."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable

from benches.report import Section, figures_of

ZERO_IS_FINE = ("startup.idle", "startup.further", "stages.")
"""What may be too small to be seen."""


def problems(name: str, section: Section) -> list[str]:
    """What did not run, and what is not a number above zero."""
    if "figures" not in section:
        lines = [line for line in section["lines"] if line.startswith("| ")]
        rows = [line for line in lines if re.match(r"\| [\d,]+ \|", line)]
        return [f"{name}: {line}" for line in rows if "Error" in line] + [f"{name}: no rows"] * (not rows)
    found = []
    for figure in figures_of(section):
        if figure.error is not None and figure.key.startswith("peers."):
            print(
                f"  {figure.key}: not here: {figure.error}"
            )  # a peer is optional, and its row says why it has no numbers
        elif figure.error is not None:
            found.append(f"{figure.key}: {figure.error}")
        elif figure.median is None or (figure.median <= 0 and not figure.key.startswith(ZERO_IS_FINE)):
            found.append(f"{figure.key}: {figure.median} {figure.unit}")
    return found


def smoke(parts: dict[str, Callable[[argparse.Namespace], Section]]) -> int:
    """Runs all parts; the exit status is 1 when one of them has a problem, which is printed."""
    options = argparse.Namespace(rounds=1, small=True, only=None)
    status = 0
    for name, part in parts.items():
        start = time.monotonic()
        found = problems(name, part(options))
        print(f"{name}: {time.monotonic() - start:.0f} s, {len(found)} problems", flush=True)
        for problem in found:
            print(f"  {problem}")
            status = 1
    return status
