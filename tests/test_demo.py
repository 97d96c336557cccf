"""The demo judges a run: these tests judge the judge. They need neither the engine nor the drawing library."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from demo.progress import Progress
from demo.report import kernel_name, missing_workers, tasks_table, trace_problems

WORKERS = (
    "local/sub0",
    "local/sub1",
    "remote0",
    "remote0/sub0",
    "remote0/sub1",
    "remote1",
    "remote1/sub0",
    "remote1/sub1",
)


def trace(path: Path, *events: dict) -> Path:
    names = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
        for pid, name in enumerate(WORKERS)
    ]
    ran = [
        {"ph": "X", "name": "gemm", "pid": pid, "tid": 1, "ts": 0, "dur": 1} for pid in range(len(WORKERS))
    ]
    path.write_text(json.dumps({"traceEvents": [*names, *ran, *events]}))
    return path


def arrow(phase: str, name: str) -> dict:
    return {"ph": phase, "id": name, "pid": 1, "tid": 1, "ts": 0}


@pytest.mark.parametrize("absent", WORKERS)
def test_each_worker_that_ran_nothing_is_named(absent: str) -> None:
    counts = dict.fromkeys(WORKERS, 3)
    assert missing_workers(counts, remote=2, sub_workers=2) == []
    counts[absent] = 0
    assert missing_workers(counts, remote=2, sub_workers=2) == [absent]
    del counts[absent]
    assert missing_workers(counts, remote=2, sub_workers=2) == [absent]


def test_a_whole_trace_has_no_problem(tmp_path: Path) -> None:
    path = trace(tmp_path / "t.json", arrow("s", "1-2"), arrow("f", "1-2"))
    assert trace_problems(path, list(WORKERS)) == []


def test_a_trace_without_a_worker_or_with_broken_arrows_is_refused(tmp_path: Path) -> None:
    half = trace(tmp_path / "half.json", arrow("s", "1-2"))
    assert trace_problems(half, [*WORKERS, "remote2"]) == [
        f"{half} has no event of worker remote2",
        f"{half} has 1 dependency arrows with one end only",
    ]
    none = trace(tmp_path / "none.json")
    assert trace_problems(none, list(WORKERS)) == [f"{none} has no dependency arrow"]


@pytest.mark.parametrize("text", ["", "{", "\x00", "[1"])
def test_a_trace_that_is_no_json_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    (problem,) = trace_problems(path, [])
    assert "cannot be read" in problem


def test_a_trace_that_is_not_there_is_reported(tmp_path: Path) -> None:
    (problem,) = trace_problems(tmp_path / "absent.json", [])
    assert "cannot be read" in problem


def test_the_table_has_a_line_for_each_worker() -> None:
    event = {"name": "demo.kernels:gemm", "worker": "remote0/sub1", "start_ns": 0, "end_ns": 2_000_000}
    table = tasks_table({"remote0/sub1": 1, "local/sub0": 0}, [event]).splitlines()
    assert [line.split()[0] for line in table] == ["worker", "local/sub0", "remote0/sub1"]
    assert table[2].split() == ["remote0/sub1", "1", "2", "ms", "1", "gemm"]


@pytest.mark.parametrize("name", ["gemm", "demo.kernels:gemm", "demo.kernels.gemm"])
def test_an_event_is_shown_by_its_kernel(name: str) -> None:
    assert kernel_name(name) == "gemm"


def test_without_a_terminal_there_is_a_line_a_tenth_and_only_when_asked() -> None:
    quiet, asked = io.StringIO(), io.StringIO()
    with Progress(lambda: (10, 10), stream=quiet):
        pass
    with Progress(lambda: (10, 10), mode="on", stream=asked):
        pass
    assert quiet.getvalue() == ""
    (line,) = asked.getvalue().splitlines()
    assert "100 %" in line and "10 of   10" in line


def test_progress_of_nothing_and_beyond_the_total_is_shown_without_an_error() -> None:
    stream = io.StringIO()
    with Progress(lambda: (0, 0), mode="on", stream=stream):
        pass
    assert stream.getvalue() == ""
    with Progress(lambda: (12, 10), mode="on", stream=stream):
        pass
    assert "100 %" in stream.getvalue()
