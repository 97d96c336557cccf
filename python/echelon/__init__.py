"""Echelon: a hierarchical distributed task runtime.

A script is the parent. It submits small tasks with tensor arguments; Echelon infers their order from the tensors and
runs them on local worker processes and on remote sessions.

    import echelon as ec

    def double(args):
        args.tensor(0).numpy()[:] *= 2

    def main(orch, args, config):
        orch.submit_sub(handle, ec.TaskArgs.of((array, ec.TensorArgType.INOUT)))

    with ec.Worker(num_sub_workers=2) as w:
        handle = w.register(double)
        w.run(main)

Importing this package starts nothing and imports neither numpy nor cloudpickle.
"""

from . import (
    _build,  # noqa: F401  (first: it refuses a mix of two releases)
    errors,
    session,
)
from ._core import (
    CallableHandle,
    CallConfig,
    ChipCallable,
    Orchestrator,
    RemoteBufferExport,
    RemoteBufferHandle,
    RemoteCallable,
    RemoteCopy,
    RemoteTensorRef,
    RemoteWorkerSpec,
    RunReport,
    TaskArgs,
    TaskHandle,
    Tensor,
    Worker,
    __version__,
)
from ._enums import AccessFlags, AddressSpace, ChipArg, DataType, TensorArgType
from .errors import (
    CloseError,
    EchelonError,
    EchelonTimeout,
    EndpointLost,
    HandleError,
    LifecycleError,
    NotEligibleError,
    RegistrationError,
    RemoteError,
    ResourceExhausted,
    RunError,
    StartupError,
    TaskCancelled,
    TaskError,
    TaskFailure,
    TaskSkipped,
)
from .local_cluster import LocalCluster


def include_dir() -> str:
    """The folder of ``echelon_chip.h``, for ``cc -I``."""
    import os

    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")


__all__ = [
    "AccessFlags",
    "AddressSpace",
    "CallConfig",
    "CallableHandle",
    "ChipArg",
    "ChipCallable",
    "CloseError",
    "DataType",
    "EchelonError",
    "EchelonTimeout",
    "EndpointLost",
    "HandleError",
    "LifecycleError",
    "LocalCluster",
    "NotEligibleError",
    "Orchestrator",
    "RegistrationError",
    "RemoteBufferExport",
    "RemoteBufferHandle",
    "RemoteCallable",
    "RemoteCopy",
    "RemoteError",
    "RemoteTensorRef",
    "RemoteWorkerSpec",
    "ResourceExhausted",
    "RunError",
    "RunReport",
    "StartupError",
    "TaskArgs",
    "TaskCancelled",
    "TaskError",
    "TaskFailure",
    "TaskSkipped",
    "TaskHandle",
    "Tensor",
    "TensorArgType",
    "Worker",
    "__version__",
    "errors",
    "include_dir",
    "session",
]
