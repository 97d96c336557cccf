"""The soak of `python -m benches soak`, small: that it runs, and that descriptors and threads stay as they were."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("case", "processes"), [("arguments", 2), ("tasks", 2), ("sessions", 2)])
def test_a_short_soak_leaves_descriptors_and_threads_as_they_were_r032_r096_r223(
    case, processes, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from benches import soak

    rows = soak.table([case], 0.01).splitlines()[2:]
    assert len(rows) == processes
    for row in rows:
        *_, descriptors, threads = [cell.strip() for cell in row.strip("|").split("|")]
        for counted in (descriptors, threads):
            before, _, end = counted.split(" / ")
            assert int(before) == int(end) > 0, row
    for module in [name for name in sys.modules if name.partition(".")[0] == "benches"]:
        monkeypatch.delitem(sys.modules, module)
