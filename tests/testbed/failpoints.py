"""Arms the named points of `runtime/src/failpoint.rs` in this process and in every process that it starts.

One file says what is armed; all processes that have the variable look into it whenever they come by a point.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .wait import eventually

VARIABLE = "ECHELON_FAILPOINTS"
SOURCES = ("runtime/src", "session/src")
POINT = re.compile(r'\b(?:hit|hit_at|hit_often|at|injected)\(\s*"([a-z]+\.[a-z_]+)"')


def listed(root: Path) -> list[str]:
    """Every point that there is in the source: a new one is tested as soon as it is written."""
    texts = (path.read_text() for folder in SOURCES for path in sorted((root / folder).rglob("*.rs")))
    return sorted({name for text in texts for name in POINT.findall(text)})


def are_built_in(extension: Path) -> bool:
    """True when the extension module has the points: a debug build, or one with the feature `failpoints`."""
    return VARIABLE.encode() in extension.read_bytes()


class Failpoints:
    """The file, and what was hit since the last time it was armed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "points"
        self._hits = folder / "points.hit"

    def environment(self) -> dict[str, str]:
        return {VARIABLE: os.fspath(self.path)}

    @contextmanager
    def armed(self, point: str, action: str = "fail") -> Iterator[None]:
        """Arms one point, for the time of the block."""
        self._hits.unlink(missing_ok=True)
        # In one step: nobody may read half a line.
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{point} {action}\n")
        fresh.replace(self.path)
        try:
            yield
        finally:
            self.disarm()

    def disarm(self) -> None:
        """Lets go on what hangs."""
        self.path.unlink(missing_ok=True)

    @property
    def hits(self) -> list[str]:
        return self._hits.read_text().split() if self._hits.exists() else []

    def wait_hit(self, timeout_s: float = 60.0) -> None:
        """Waits until somebody has come by."""
        eventually(lambda: self.hits, timeout_s, what="a process at the failpoint")
