"""The hard limit of every test (R-221): at the limit it prints all stacks and the process tree.

pytest-timeout then fails the test from its signal handler. Where the main thread sits in native code that never
returns to the interpreter, faulthandler's own thread ends this process a little later: its dump needs no lock.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from typing import TextIO

from . import procfs

LAST_RESORT_S = 20.0
"""How long after a test's limit the whole run is ended, in seconds."""


class Watchdog:
    """One thread for the whole run; `arm` and `disarm` around each test, `close` joins it."""

    def __init__(self, stream: TextIO | None = None, *, last_resort: bool = True) -> None:
        # pytest replaces descriptor 2 while a test runs; what we print must reach the terminal all the same.
        self._stream = stream if stream is not None else os.fdopen(os.dup(2), "w")
        self._owns_stream = stream is None
        # faulthandler has one timer for the whole process.
        self._last_resort = last_resort
        self._changed = threading.Condition()
        self._armed: tuple[str, float] | None = None
        self._closed = False
        self.fired_count = 0
        self._thread = threading.Thread(target=self._run, name="test-watchdog")
        self._thread.start()

    def arm(self, test: str, limit_s: float) -> None:
        with self._changed:
            self._armed = (test, limit_s)
            self._changed.notify()
        if self._last_resort:
            faulthandler.dump_traceback_later(limit_s + LAST_RESORT_S, exit=True, file=self._stream)

    def disarm(self) -> None:
        if self._last_resort:
            faulthandler.cancel_dump_traceback_later()
        with self._changed:
            self._armed = None
            self._changed.notify()

    def close(self) -> None:
        self.disarm()
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if self._owns_stream:
            self._stream.close()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                armed = self._armed
                if armed is None:
                    self._changed.wait()
                # Every arm, disarm and close notifies: only a limit that has passed returns False.
                elif not self._changed.wait(armed[1]):
                    self._armed = None
                    self._report(*armed)

    def _report(self, test: str, limit_s: float) -> None:
        print(f"\n{test} has run for {limit_s:g} s, its limit", file=self._stream)
        print(procfs.format_tree(os.getpid()), file=self._stream, flush=True)
        faulthandler.dump_traceback(file=self._stream, all_threads=True)
        self._stream.flush()
        # Last: whoever waits for the count may end what the report speaks of.
        self.fired_count += 1
