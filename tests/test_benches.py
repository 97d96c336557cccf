"""The tools of `make bench`: what they make of samples, targets and pages. What they measure is not judged anywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def benches(monkeypatch: pytest.MonkeyPatch):
    """The package is importable for one test, and forgotten after it."""
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for module in [name for name in sys.modules if name.partition(".")[0] == "benches"]:
        monkeypatch.delitem(sys.modules, module)


def test_a_figure_has_median_and_percentiles_of_its_samples():
    from benches.row import figure_of

    figure = figure_of("a.b", "a row", "µs", [float(n) for n in range(100, -1, -1)])
    assert (figure.median, figure.low, figure.high, figure.p99, figure.samples) == (50, 5, 95, 99, 101)


def test_the_first_round_warms_up_and_rows_take_turns():
    from benches.row import Row, measure

    turns: list[str] = []

    def row(name: str) -> Row:
        def samples() -> list[float]:
            turns.append(name)
            return [float(len(turns))]

        return Row(name, name, "µs", samples)

    figures = measure([row("a"), row("b")], 2)
    assert turns == ["a", "b"] * 3
    assert [(figure.low, figure.high, figure.samples) for figure in figures] == [(3, 5, 2), (4, 6, 2)]


def test_a_row_that_fails_says_why_and_the_others_go_on():
    from benches.report import table
    from benches.row import Row, measure

    def broken() -> list[float]:
        raise RuntimeError("no | such\nthing")

    figures = measure([Row("a", "broken row", "µs", broken), Row("b", "good row", "µs", lambda: [1.0])], 1)
    assert figures[0].error == "RuntimeError: no / such thing" and figures[0].median is None
    assert figures[1].median == 1
    text = "\n".join(table(figures))
    assert "no / such thing" in text and "good row | 1.00 µs" in text


@pytest.mark.parametrize(
    ("key", "unit", "median", "expected"),
    [
        ("local.w1.awake", "µs", 3.0, True),
        ("local.w1.awake", "µs", 3.1, False),
        ("local.w2", "tasks/s", 600_000, True),
        ("local.w2", "tasks/s", 599_999, False),
        ("local.w2", "tasks/s", None, None),
        ("child.w2", "tasks/s", 1.0, None),
    ],
)
def test_times_stay_below_their_target_and_rates_above(key, unit, median, expected):
    from benches.row import Figure
    from benches.targets import reached

    assert reached(Figure(key, key, unit, median)) is expected


def test_figures_survive_the_file(tmp_path):
    from benches import report
    from benches.row import Figure, figure_of

    figures = [figure_of("a", "A", "µs", [1.0, 2.0], "b"), Figure("b", "B", "ms", error="gone")]
    path = tmp_path / "results.json"
    section = {
        "machine": "m",
        "about": "",
        "command": "c",
        "figures": [figure.as_json() for figure in figures],
    }
    report.save("other", section, path)
    report.save("main", section, path)
    assert list(report.load(path)) == ["main", "other"]
    assert report.figures_of(report.load(path)["main"]) == figures


def test_a_table_replaces_what_stands_between_its_markers(tmp_path):
    from benches import report

    page = tmp_path / "page.md"
    page.write_text("above\n<!-- x -->\nold\n<!-- /x -->\nbelow\n")
    report.write(page, "x", "new")
    assert page.read_text() == "above\n<!-- x -->\nnew\n<!-- /x -->\nbelow\n"
    with pytest.raises(ValueError, match="needs the lines <!-- y -->"):
        report.write(page, "y", "new")


def test_the_page_is_what_its_results_make_of_it():
    from benches import report
    from benches.__main__ import text_of

    page = report.PAGE.read_text()
    for name, section in report.load().items():
        inside = page.partition(f"<!-- {name}-table -->\n")[2].partition(f"\n<!-- /{name}-table -->")[0]
        assert inside == text_of(name, section), f"{name}: run python -m benches render"


def test_the_table_of_peers_and_the_picture_have_who_answered_and_say_who_did_not():
    import xml.etree.ElementTree as xml

    from benches import peers_table, plot
    from benches.row import Figure

    figures = [
        Figure("peers.local.w1", "W1", "µs", 3.0),
        Figure("peers.local.w2", "W2", "tasks/s", 500_000.0),
        Figure("peers.dask.w1", "W1", "µs", 9_000.0),
        Figure("peers.dask.w2", "W2", "tasks/s", 200.0),
        Figure("peers.ray.w1", "W1", "µs", error="ModuleNotFoundError: no ray"),
        Figure("peers.ray.w2", "W2", "tasks/s", error="ModuleNotFoundError: no ray"),
    ]
    section = {"figures": [figure.as_json() for figure in figures]}
    text = "\n".join(peers_table.body(section))
    assert "| Dask | 9,000 | 200 |" in text and "| Ray actor | ModuleNotFoundError: no ray |" in text
    picture = plot.svg(section)
    xml.fromstring(picture)
    assert picture.count("<rect") == 4 and "Dask" in picture and "Ray" not in picture


def test_a_peer_answers_over_its_pipe_and_ends(monkeypatch):
    from benches import peers

    monkeypatch.setattr(peers, "interpreter", lambda: Path(sys.executable))
    peer = peers.Peer("executor", 0.002)
    try:
        assert all(sample > 0 for sample in peer.ask("w1") + peer.ask("w2"))
        with pytest.raises(RuntimeError, match="KeyError"):
            peer.ask("no such")
    finally:
        peer.close()


def test_a_peer_that_is_not_there_says_so(monkeypatch):
    from benches import peers

    monkeypatch.setattr(peers, "interpreter", lambda: Path(sys.executable))
    peer = peers.Peer("nobody")
    try:
        with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
            peer.ask("w1")
    finally:
        peer.close()


def test_smoke_names_what_did_not_run_and_what_is_not_positive():
    from benches.row import Figure
    from benches.smoke import problems

    figures = [
        Figure("a", "A", "µs", 1.0),
        Figure("b", "B", "µs", 0.0),
        Figure("c", "C", "µs", error="gone"),
        Figure("startup.idle", "idle", "ms", 0.0),
    ]
    assert problems("x", {"figures": [figure.as_json() for figure in figures]}) == ["b: 0.0 µs", "c: gone"]
    lines = ["| n | µs |", "|---:|---:|", "| 1,000 | 2.0 |", "| 2 | RuntimeError: no | – |"]
    assert problems("x", {"lines": lines[:3]}) == []
    assert problems("x", {"lines": lines}) == ["x: | 2 | RuntimeError: no | – |"]
    assert problems("x", {"lines": lines[:2]}) == ["x: no rows"]


def test_instructions_are_read_and_growth_over_ten_per_cent_is_named():
    from benches import instructions

    assert instructions.counted("version: 1\nsummary: 12345\nfn=x\n1 5\n") == 12345
    assert instructions.counted("fn=x\ntotals: 7\n") == 7
    with pytest.raises(ValueError, match="no line of totals"):
        instructions.counted("fn=x\n")
    before = {"a": 1_000, "b": 1_000, "c": 1_000}
    (text,) = instructions.grown(before, {"a": 1_100, "b": 1_101})
    assert text.startswith("b: 1,101 instructions a noop, +10% to the 1,000")


def test_instructions_of_another_toolchain_are_not_compared_and_that_is_said(monkeypatch, tmp_path, capsys):
    from benches import instructions

    other = {"rustc": "another"}
    monkeypatch.setattr(instructions, "toolchain", lambda: other)
    assert instructions.main([]) == 0
    assert "SKIPPED" in capsys.readouterr().out
    table = {
        "toolchain": other,
        "per_noop": {"engine": 100, "loose": 100},
        "spread": {"engine": 0, "loose": 0.5},
    }
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(table))
    monkeypatch.setattr(instructions, "COUNTS", path)
    for count, status in ((110, 0), (111, 1)):
        monkeypatch.setattr(instructions, "per_noop", lambda name, count=count: {"engine": count}[name])
        assert instructions.main([]) == status
    assert "GROWN: engine" in capsys.readouterr().out

    def broken(name):
        raise RuntimeError("the tool cannot run it")

    monkeypatch.setattr(instructions, "per_noop", broken)
    assert instructions.main([]) == 0
    assert "SKIPPED: engine is not counted: RuntimeError: the tool cannot run it" in capsys.readouterr().out
