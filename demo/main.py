"""The main job: ``python -m demo`` classifies handwritten digits on 2 local and 2 remote workers.

The covariance matrix of a Gaussian process over the training images is built by local workers, factored by
a tiled Cholesky on two remote sessions that each have sub workers of their own, and used by local workers to
predict: one graph. Exit status 0 when the answer is right and every worker process took part, 1 when not, 2 for
sizes that make no sense.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# One BLAS thread in each process: the workers are the parallelism. Set before numpy is imported, here and
# (the environment is handed on) in every worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python demo/main.py` puts only the script's own folder there
    sys.path.insert(0, str(ROOT))

import echelon as ec  # noqa: E402
import numpy as np  # noqa: E402

from demo import report as show  # noqa: E402
from demo.orchestrate import Job  # noqa: E402
from demo.problem import Problem, load  # noqa: E402
from demo.progress import Progress  # noqa: E402

REMOTE_COUNT, SUB_WORKER_COUNT = 2, 2
TILE_COUNT_MIN = 36
FACTOR_DIFFERENCE_MAX = 1e-8  # relative to the largest entry of the factor
ACCURACY_MIN = 0.95


def main(argv: list[str] | None = None) -> int:
    """Run the job and its checks; returns the exit status."""
    options = parse(argv)
    try:
        problem = load(options.train, options.test, options.tile)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    n, m, tiles = len(problem.x_train), len(problem.x_test), problem.tile_count
    if tiles < TILE_COUNT_MIN:
        print(f"{tiles} tiles of {options.tile} rows, at least {TILE_COUNT_MIN} are wanted", file=sys.stderr)
        return 2
    print(f"{n} training and {m} test images, {tiles} tiles of {options.tile}x{options.tile}")
    try:
        failures = run(problem, options)
    except ec.EchelonError as error:
        failures = [f"{type(error).__name__}: {error}"]
    for failure in failures:
        print(f"FAILED  {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``--short`` only changes the defaults of the sizes."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer images, same checks")
    parser.add_argument("--train", type=int, metavar="N", help="training images (1437; short: 640)")
    parser.add_argument("--test", type=int, metavar="N", help="test images (360; short: 200)")
    parser.add_argument("--tile", type=int, metavar="ROWS", help="rows of a tile (160; short: 80)")
    parser.add_argument("--progress", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for timeline.json and .png")
    options = parser.parse_args(argv)
    defaults = (
        {"train": 640, "test": 200, "tile": 80}
        if options.short
        else {"train": 1437, "test": 360, "tile": 160}
    )
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def run(problem: Problem, options: argparse.Namespace) -> list[str]:
    """Run the graph on a cluster of this machine and print what came of it; returns what is wrong."""
    started = time.monotonic()
    with ec.LocalCluster(
        remote=REMOTE_COUNT, sub_workers=SUB_WORKER_COUNT, pythonpath=[str(ROOT)]
    ) as cluster:
        job = Job(cluster.worker, cluster.remote_ids, problem)
        cluster.worker.init()
        ready = time.monotonic()

        def poll() -> tuple[int, int]:
            return cluster.worker.progress()["finished"], job.node_count

        with Progress(poll, mode=options.progress):
            report = job.run()
        finished = time.monotonic()
        factor = job.factor()
        job.release()
    print(
        f"cluster up in {ready - started:.2f} s, graph done in {finished - ready:.2f} s, "
        f"{job.import_count} tiles read across sessions"
    )
    return check_answer(problem, factor, job.predicted) + check_workers(problem, report, options.out)


def check_answer(problem: Problem, factor: np.ndarray, predicted: np.ndarray) -> list[str]:
    """Compare with numpy's own factorisation and with the truth."""
    factor_numpy, predicted_numpy = problem.reference()
    difference = np.max(np.abs(factor - factor_numpy)) / np.max(np.abs(factor_numpy))
    accuracy = np.mean(predicted == problem.truth)
    unlike = int(np.sum(predicted != predicted_numpy))
    print(
        f"accuracy {accuracy:.4f}, factor differs from numpy's by {difference:.1e}, "
        f"{unlike} predictions differ from numpy's"
    )
    failures = []
    if not difference <= FACTOR_DIFFERENCE_MAX:  # a NaN fails too
        failures.append(
            f"the factor differs from numpy's by {difference:.1e}, limit {FACTOR_DIFFERENCE_MAX:.0e}"
        )
    if not accuracy >= ACCURACY_MIN:
        failures.append(f"accuracy is {accuracy:.4f}, at least {ACCURACY_MIN} is right")
    if unlike:
        failures.append(f"{unlike} of {len(predicted)} predictions differ from numpy's")
    return failures


def check_workers(problem: Problem, report: ec.RunReport, out: Path) -> list[str]:
    """Print the tasks of each worker, write the trace and the picture; every worker must have run some."""
    print(show.tasks_table(report.tasks_per_worker, report.timeline))
    print("  " + ", ".join(f"{count} {outcome}" for outcome, count in report.counts.items() if count))
    out.mkdir(parents=True, exist_ok=True)
    trace, picture = out / "timeline.json", out / "timeline.png"
    report.write_timeline(str(trace))
    n = len(problem.x_train)
    title = f"Gaussian-process classification: tiled Cholesky of a {n}×{n} covariance"
    subtitle = (
        f"one graph, {problem.tile_count} tiles · {SUB_WORKER_COUNT} local sub workers, {REMOTE_COUNT} remote "
        f"sessions with {SUB_WORKER_COUNT} sub workers each · {len(report.timeline)} tasks and copies"
    )
    show.draw_timeline(report.timeline, picture, title=title, subtitle=subtitle)
    print(f"wrote {trace} (open it in https://ui.perfetto.dev) and {picture}")
    missing = show.missing_workers(report.tasks_per_worker, REMOTE_COUNT, SUB_WORKER_COUNT)
    failures = [f"worker {name} ran no task" for name in missing]
    return failures + show.trace_problems(trace, [n for n in report.tasks_per_worker if n not in missing])


if __name__ == "__main__":
    sys.exit(main())
