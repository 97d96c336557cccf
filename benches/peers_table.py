"""Echelon beside other systems: `make bench BENCH_ARGS=peers`.

Each peer lives only while it is measured, since an idle one is not always idle. In its rounds Echelon is measured too, so
that both have the same neighbours.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from benches import lanes
from benches.machine import machine
from benches.peers import NAMES, WORKLOADS, Peer
from benches.report import Section, figures_of, short
from benches.row import Figure, Row, measure, note
from benches.workloads import SMALL, ArrayCopies, BufferCopies, Sizes, Workloads

SMALL_SHARE = 0.01
OURS = {"local": "**Echelon**, sub worker", "remote": "**Echelon**, session over TCP"}
SAME = {
    "w1": "w1.awake",
    "w2": "w2",
    "w3": "w3",
    "w4": "w4",
    "w5.put": "w5.put.warm",
    "w5.get": "w5.get.warm",
    "w6": "w6",
}
"""Our rows that do what the peers' workloads do."""


def _our_rows(stack: ExitStack, sizes: Sizes) -> list[Row]:
    local = stack.enter_context(lanes.sub_worker())
    endpoint = stack.enter_context(lanes.daemon())
    remote = stack.enter_context(lanes.sessions(endpoint, cells=sizes.cells))
    rows = Workloads(local, sizes).rows() + ArrayCopies(local, sizes.copy, lanes.sub_worker).rows()
    rows += Workloads(remote, sizes).rows() + BufferCopies(remote, sizes.copy).rows()
    wanted = {f"{lane}.{key}" for lane in OURS for key in SAME.values()}
    chosen = [row for row in rows if row.key in wanted]
    for row in chosen:
        lane, _, key = row.key.partition(".")
        (short_key,) = [one for one, same in SAME.items() if same == key]
        row.key = f"peers.{lane}.{short_key}"
    return chosen


def peers_table(rounds: int, small: bool) -> Section:
    """Measures all peers, one after the other."""
    measured_on = machine()
    sizes = SMALL if small else replace(Sizes(), singles=100)
    figures: list[Figure] = []
    with ExitStack() as stack:
        ours = _our_rows(stack, sizes)
        for name in NAMES:
            note(f"peer {name}")
            peer = Peer(name, SMALL_SHARE if small else 1.0)
            try:
                figures += measure(peer.rows() + ours, rounds, note)[: len(WORKLOADS)]
            finally:
                peer.close()
        figures = [row.figure() for row in ours] + figures
    return {
        "machine": measured_on,
        "about": f"{rounds} rounds for each peer, ",
        "command": "make bench-peers",
        "figures": [figure.as_json() for figure in figures],
    }


def body(section: Section) -> list[str]:
    """One line for each system, one column for each workload: the median."""
    by_key = {figure.key: figure for figure in figures_of(section)}
    titles = [f"{title} {unit}" for title, unit in WORKLOADS.values()]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for name, title in (OURS | NAMES).items():
        cells = [by_key[f"peers.{name}.{key}"] for key in WORKLOADS if f"peers.{name}.{key}" in by_key]
        if not cells:
            continue
        if all(cell.median is None for cell in cells):
            lines.append(f"| {title} | {cells[0].error} |" + " |" * (len(titles) - 1))
        else:
            lines.append(f"| {title} | " + " | ".join(short(cell.median) for cell in cells) + " |")
    return lines
