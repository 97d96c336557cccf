"""A small progress bar on stderr: a moving line on a terminal, one line for each tenth elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

REFRESH_S = 0.1
BAR_WIDTH = 32


class Progress:
    """Shows ``finished / total`` while the ``with`` block runs.

    ``poll`` returns (finished, total) and is called from a thread of this object. ``total`` may grow while
    the graph is still being submitted; the lines for tenths never go back. ``mode`` is "auto" (bar on a
    terminal, nothing elsewhere), "on" (bar, or lines where there is no terminal) or "off".
    """

    def __init__(
        self, poll: Callable[[], tuple[int, int]], *, mode: str = "auto", stream: TextIO | None = None
    ) -> None:
        self._poll = poll
        self._stream = sys.stderr if stream is None else stream
        self._bar = self._stream.isatty()
        self._enabled = mode == "on" or (mode == "auto" and self._bar)
        self._started = time.monotonic()
        self._tenths = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        if self._enabled:
            self._thread.join()
            if self._bar:
                self._stream.write("\n")

    def _watch(self) -> None:
        while not self._stop.wait(REFRESH_S):
            self._show(*self._poll())
        self._show(*self._poll())

    def _show(self, finished: int, total: int) -> None:
        share = min(finished / total, 1.0) if total else 0.0
        line = f"{finished:4d} of {total:4d} nodes  {time.monotonic() - self._started:5.1f} s"
        if self._bar:
            filled = int(share * BAR_WIDTH)
            bar = "━" * filled + "·" * (BAR_WIDTH - filled)
            self._stream.write(f"\r  {bar} {share:4.0%}  {line}")
        elif int(share * 10) > self._tenths:
            self._tenths = int(share * 10)
            self._stream.write(f"  {self._tenths * 10:3d} %  {line}\n")
        self._stream.flush()
