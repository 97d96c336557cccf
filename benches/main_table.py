"""The main table: every workload on every kind of worker, and the limits of the machine, interleaved in one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benches import lanes
from benches.limits import limit_rows
from benches.machine import machine
from benches.peer_copies import peer_copies
from benches.report import Section
from benches.row import Row, measure, note
from benches.workloads import SMALL, ArrayCopies, BufferCopies, Sizes, Workloads

SMALL_SHARE = 0.02


@contextmanager
def all_rows(sizes: Sizes) -> Iterator[list[Row]]:
    """Each lane has a `Worker` of its own with one worker, or with two that take turns; all live as long as the context."""
    with ExitStack() as stack:
        enter = stack.enter_context
        local, child, two_children = (
            enter(lanes.sub_worker()),
            enter(lanes.children()),
            enter(lanes.children(2)),
        )
        endpoint = enter(lanes.daemon())
        remote = enter(lanes.sessions(endpoint, cells=sizes.cells))
        mapped = enter(lanes.sessions(endpoint, cells=sizes.cells, same_host=True))
        two_sessions = enter(lanes.sessions(endpoint, 2, cells=sizes.cells, same_host=True))
        two_sessions.key, two_sessions.name = remote.key, remote.name
        with lanes.on_completion():
            local_unchained = enter(lanes.sub_worker())
            child_unchained = enter(lanes.children())
            remote_unchained = enter(lanes.sessions(endpoint, cells=sizes.cells))
        rows: list[Row] = []
        for lane, unchained, two in (
            (local, local_unchained, None),
            (child, child_unchained, two_children),
            (remote, remote_unchained, two_sessions),
        ):
            rows += Workloads(lane, sizes).rows()
            rows.append(Workloads(unchained, sizes).on_completion())
            if two is not None:
                rows.append(Workloads(two, sizes).alternating())
        rows += ArrayCopies(local, sizes.copy, lanes.sub_worker).rows()
        rows += ArrayCopies(child, sizes.copy, lanes.children).rows()
        for lane in (remote, mapped):
            rows += BufferCopies(lane, sizes.copy).rows()
        for same_host in (False, True):
            rows += enter(peer_copies(endpoint, sizes.copy, same_host=same_host))
        yield rows + enter(limit_rows(SMALL_SHARE if sizes is SMALL else 1.0))


def main_table(rounds: int, small: bool, only: str | None) -> Section:
    """Measures `rounds` rounds of the rows whose key begins with `only`; without it, of all."""
    measured_on = machine()  # what runs now is what is measured, whatever becomes of the files meanwhile
    with all_rows(SMALL if small else Sizes()) as rows:
        chosen = [row for row in rows if only is None or row.key.startswith(only)]
        figures = measure(chosen, rounds, note)
    return {
        "machine": measured_on,
        "about": f"{rounds} rounds, ",
        "command": "make bench",
        "figures": [figure.as_json() for figure in figures],
    }
