"""What the demo shows after the run: tables, the picture of the timeline, and checks of the trace file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

# A kernel keeps its colour on every row. Factorisation in strong colours, the parent's local work in
# lighter ones, copies in grey.
COLOURS = {
    "cov": "#8fb8de",
    "copy": "#c9ccd1",
    "potrf": "#d1495b",
    "trsm": "#edae49",
    "syrk": "#3a9d8f",
    "gemm": "#2e5f8a",
    "solve": "#9b72b0",
    "update": "#cdb4db",
    "predict": "#6a994e",
}
OTHER_COLOUR = "#888888"
INK, FAINT_INK = "#22262b", "#5c636b"
GROUP_GAP = 0.35  # extra space between two groups of rows, in rows
RIM_SHARE_MIN = 0.004  # a bar shorter than this share of the total is drawn without a white rim
PICTURE_INCHES, PICTURE_DPI = (14.0, 6.0), 100


def kernel_name(name: str) -> str:
    """The short name of an event: ``demo.kernels:gemm`` → ``gemm``."""
    return name.rsplit(":", 1)[-1].rsplit(".", 1)[-1]


def worker_order(name: str) -> tuple[int, str]:
    """Sort key: the local workers, then what is no worker (copies), then each session and its sub workers."""
    return (0 if name.startswith("local") else 2 if name.startswith("remote") else 1, name)


def missing_workers(tasks_per_worker: dict[str, int], remote: int, sub_workers: int) -> list[str]:
    """The worker processes that ran nothing, by name; inner sub workers included."""
    expected = [f"local/sub{s}" for s in range(sub_workers)]
    for r in range(remote):
        expected += [f"remote{r}", *(f"remote{r}/sub{s}" for s in range(sub_workers))]
    return [name for name in expected if not tasks_per_worker.get(name)]


def tasks_table(tasks_per_worker: dict[str, int], timeline: list[dict]) -> str:
    """A line for each worker: tasks, busy time and what it ran."""
    ran: dict[str, Counter] = {}
    busy: Counter = Counter()
    for event in timeline:
        ran.setdefault(event["worker"], Counter())[kernel_name(event["name"])] += 1
        busy[event["worker"]] += event["end_ns"] - event["start_ns"]
    lines = [f"  {'worker':<14} {'tasks':>5} {'busy':>9}   what"]
    for name in sorted(tasks_per_worker, key=worker_order):
        what = ", ".join(f"{count} {kernel}" for kernel, count in ran.get(name, Counter()).most_common())
        lines.append(f"  {name:<14} {tasks_per_worker[name]:>5} {busy[name] / 1e6:>6.0f} ms   {what}")
    return "\n".join(lines)


def trace_problems(path: Path, workers: list[str]) -> list[str]:
    """What is wrong with the Chrome trace at ``path``: an empty list when it is whole.

    It must name a process for each worker, hold a complete event with a duration for each, and at least
    one dependency arrow, each with both its ends.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return [f"{path} cannot be read: {error}"]
    events = document["traceEvents"] if isinstance(document, dict) else document
    named = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    ran = {named.get(e["pid"]) for e in events if e["ph"] == "X" and e["dur"] >= 0}
    problems = [f"{path} has no event of worker {name}" for name in workers if name not in ran]
    starts = Counter(e["id"] for e in events if e["ph"] == "s")
    ends = Counter(e["id"] for e in events if e["ph"] == "f")
    if not starts:
        problems.append(f"{path} has no dependency arrow")
    if starts.keys() != ends.keys():
        problems.append(f"{path} has {len(starts.keys() ^ ends.keys())} dependency arrows with one end only")
    return problems


def draw_timeline(timeline: list[dict], path: Path, *, title: str, subtitle: str) -> None:
    """Draw a row for each worker and a bar for each event, coloured by kernel, as a PNG of 1400x600."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    origin_ns = min(event["start_ns"] for event in timeline)
    total_ms = (max(event["end_ns"] for event in timeline) - origin_ns) / 1e6
    rows = _row_positions(sorted({event["worker"] for event in timeline}, key=worker_order))
    figure, axes = plt.subplots(figsize=PICTURE_INCHES, dpi=PICTURE_DPI, facecolor="white")
    for worker, row in rows.items():
        _draw_row(axes, row, [e for e in timeline if e["worker"] == worker], origin_ns, total_ms)
    _dress(axes, rows, total_ms)
    _legend(axes, {kernel_name(event["name"]) for event in timeline})
    figure.text(0.012, 0.945, title, fontsize=16, fontweight="bold", color=INK)
    figure.text(0.012, 0.902, f"{subtitle} · {total_ms:,.0f} ms", fontsize=11.5, color=FAINT_INK)
    figure.subplots_adjust(left=0.118, right=0.985, top=0.815, bottom=0.095)
    figure.savefig(path, dpi=PICTURE_DPI)
    plt.close(figure)


def _row_positions(workers: list[str]) -> dict[str, float]:
    """The height of each worker's row: one below the other, with a gap between a group and the next."""
    rows: dict[str, float] = {}
    at, group = 0.0, None
    for worker in workers:
        if group is not None and worker.split("/")[0] != group:
            at += GROUP_GAP
        group = worker.split("/")[0]
        rows[worker] = at
        at += 1.0
    return rows


def _draw_row(axes, row: float, events: list[dict], origin_ns: int, total_ms: float) -> None:
    """The band and the bars of one worker. Sessions and copies, which wait for others, get thin bars."""
    axes.axhspan(row - 0.46, row + 0.46, color="#f4f5f7", zorder=0)
    height = 0.72 if "/" in events[0]["worker"] else 0.30
    by_kernel: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        start_ms, end_ms = ((event[key] - origin_ns) / 1e6 for key in ("start_ns", "end_ns"))
        by_kernel.setdefault(kernel_name(event["name"]), []).append((start_ms, end_ms - start_ms))
    for kernel, spans in by_kernel.items():
        colour = COLOURS.get(kernel, OTHER_COLOUR)
        axes.broken_barh(
            spans,
            (row - height / 2, height),
            facecolors=colour,
            # A white rim parts long neighbours; a short bar keeps its own colour, or it would vanish.
            edgecolors=["white" if width > total_ms * RIM_SHARE_MIN else colour for _, width in spans],
            linewidth=0.5,
            zorder=2,
        )


def _dress(axes, rows: dict[str, float], total_ms: float) -> None:
    """Axis labels and grid."""
    axes.set_yticks(list(rows.values()), list(rows), fontsize=11, family="monospace", color=INK)
    axes.set_ylim(max(rows.values()) + 0.55, -0.55)
    axes.set_xlim(-total_ms * 0.004, total_ms * 1.004)
    axes.set_xlabel("milliseconds since the first task", fontsize=11, color=FAINT_INK)
    axes.grid(axis="x", color="#dfe2e6", linewidth=0.8, zorder=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelcolor=FAINT_INK)
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(axes, kernels: set[str]) -> None:
    """One patch for each kernel that ran, in the order of the colour table, above the rows."""
    from matplotlib.patches import Patch

    names = [name for name in COLOURS if name in kernels] + sorted(kernels - COLOURS.keys())
    axes.legend(
        handles=[Patch(color=COLOURS.get(name, OTHER_COLOUR), label=name) for name in names],
        loc="lower left",
        bbox_to_anchor=(-0.008, 1.0),
        ncols=len(names),
        frameon=False,
        fontsize=11,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.4,
        labelcolor=INK,
    )
