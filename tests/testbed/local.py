"""One task on local workers, and what it is handed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import echelon as ec
import numpy as np


def path_bytes(path: Path) -> np.ndarray:
    """A path as a tensor's bytes, for tasks that announce themselves by a file."""
    return np.frombuffer(str(path).encode(), np.uint8)


def run_one(worker: ec.Worker, handle: ec.CallableHandle, *tensors: Any, scalars: Any = ()) -> ec.RunReport:
    """A run of one sub task with these tensors and tags."""
    return worker.run(
        lambda orch, args, config: orch.submit_sub(handle, ec.TaskArgs.of(*tensors, scalars=scalars))
    )
