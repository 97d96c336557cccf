"""The exception tree.

Everything that Echelon itself reports is an :class:`EchelonError`. Plain wrong arguments (a float where a shape is
expected, an unknown keyword) raise :class:`TypeError` or :class:`ValueError`, as in any Python library.

::

    EchelonError(RuntimeError)
    ├── RunError              a run did not complete; carries every root failure
    │   ├── TaskError         user code raised
    │   ├── EndpointLost      a worker process or a session was lost
    │   ├── TaskSkipped       nothing failed here, but tasks read what another run left undefined
    │   └── TaskCancelled     nothing failed, but the run was ended before all tasks were begun
    ├── NotEligibleError      no worker may run the task (also a ValueError)
    ├── ResourceExhausted     a limit was reached: memory, task slots, handles
    ├── HandleError           a handle is released, foreign, stale, or does not allow the access
    ├── RegistrationError     a callable could not be registered
    ├── StartupError          a worker, daemon or session did not start
    ├── RemoteError           a session refused a request
    ├── LifecycleError        the worker is in a state where this cannot be done
    ├── CloseError            close() could not end everything in time
    └── EchelonTimeout        a deadline passed (also a TimeoutError)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CloseError",
    "EchelonError",
    "EchelonTimeout",
    "EndpointLost",
    "HandleError",
    "LifecycleError",
    "NotEligibleError",
    "RegistrationError",
    "RemoteError",
    "ResourceExhausted",
    "RunError",
    "StartupError",
    "TaskCancelled",
    "TaskError",
    "TaskFailure",
    "TaskSkipped",
]


class EchelonError(RuntimeError):
    """Base of all errors that Echelon reports."""


class TaskFailure:
    """One task that did not complete.

    Attributes:
        outcome: ``"failed"`` (user code raised), ``"endpoint_lost"``, ``"skipped"`` or ``"cancelled"``.
        callable: name of the callable, ``module:qualname`` where it has one.
        worker_id: id of the worker that ran it, ``None`` when it never reached one.
        worker: name of that worker, for example ``local/sub0`` or ``remote1``.
        host: host of a remote worker, ``None`` for local ones.
        sequence: number of the task in its run, from 1 in submit order.
        remote_traceback: what the worker reported, with the traceback of the code that raised.
        hint: what to do next.
        cause: number of the task that made this one be skipped, ``None`` otherwise and when it belongs to another run.
        attempts: times that it was begun; more than one only for an idempotent task whose worker was lost.
        steps: what happened to it, as ``(state, nanoseconds on the monotonic clock, detail)`` in order.
    """

    __slots__ = (
        "outcome",
        "callable",
        "worker_id",
        "worker",
        "host",
        "sequence",
        "remote_traceback",
        "hint",
        "cause",
        "attempts",
        "steps",
        "_story",
    )

    def __init__(
        self,
        outcome: str,
        callable: str,
        worker_id: int | None,
        worker: str,
        host: str | None,
        sequence: int,
        remote_traceback: str,
        hint: str,
        *,
        cause: int | None = None,
        attempts: int = 0,
        steps: Sequence[tuple[str, int, str]] = (),
        story: str = "",
    ) -> None:
        self.outcome = outcome
        self.callable = callable
        self.worker_id = worker_id
        self.worker = worker
        self.host = host
        self.sequence = sequence
        self.remote_traceback = remote_traceback
        self.hint = hint
        self.cause = cause
        self.attempts = attempts
        self.steps: list[tuple[str, int, str]] = list(steps)
        self._story = story

    def story(self) -> str:
        """The life of the task as text: one line a step, with its time since the submit in milliseconds."""
        return self._story

    def __repr__(self) -> str:
        return f"<TaskFailure {self.outcome}: task {self.sequence} {self.callable} on {self.worker or 'no worker'}>"


class RunError(EchelonError):
    """A run did not complete. The attributes describe the first root failure; :attr:`failures` holds them all.

    Attributes:
        worker_id, worker, host, callable, sequence, remote_traceback, hint: as in :class:`TaskFailure`.
        failures: the tasks that failed or were lost, the first one first; at most 100.
        failures_dropped: number of such tasks beyond those in ``failures``.
        affected: tasks that were skipped or cancelled, in submit order; at most 100.
        skipped: number of tasks that were not run because a producer of theirs did not complete.
        cancelled: number of tasks that were not run because the run was ending.
        undefined_ranges: descriptions of memory whose contents the failures left undefined.
    """

    def __init__(
        self,
        message: str = "",
        *,
        failures: Sequence[TaskFailure] = (),
        failures_dropped: int = 0,
        affected: Sequence[TaskFailure] = (),
        skipped: int = 0,
        cancelled: int = 0,
        undefined_ranges: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        told = failures or affected
        root = told[0] if told else TaskFailure("", "", None, "", None, 0, "", "")
        self.failures: list[TaskFailure] = list(failures)
        self.failures_dropped: int = failures_dropped
        self.affected: list[TaskFailure] = list(affected)
        self.callable: str = root.callable
        self.worker_id: int | None = root.worker_id
        self.worker: str = root.worker
        self.host: str | None = root.host
        self.sequence: int = root.sequence
        self.remote_traceback: str = root.remote_traceback
        self.hint: str = root.hint
        self.skipped: int = skipped
        self.cancelled: int = cancelled
        self.undefined_ranges: list[str] = list(undefined_ranges)


class TaskError(RunError):
    """User code raised in a worker. :attr:`remote_traceback` is the text of its traceback."""


class EndpointLost(RunError):
    """A worker process or a session was lost: killed, crashed, unreachable; or what a task needed was out of its
    worker's reach, e.g. a window on a buffer whose owner is gone. It was not user code that raised.

    Raised by a run with :attr:`failures`, and by calls on a worker that is gone, without them.
    """


class TaskSkipped(RunError):
    """Nothing of the run failed, but tasks of it read what a task of another run did not produce."""


class TaskCancelled(RunError):
    """Nothing of the run failed, but it was ended before all its tasks were begun: the worker was closed meanwhile."""


class NotEligibleError(EchelonError, ValueError):
    """No worker may run the task; the message says for each worker what is missing."""


class ResourceExhausted(EchelonError):
    """A limit was reached; the message names what was asked for and the limit."""


class HandleError(EchelonError):
    """A remote buffer handle or export cannot be used: released, of another worker or session, or without the access."""


class RegistrationError(EchelonError):
    """A callable could not be registered; nothing of the attempt is left on any worker."""


class StartupError(EchelonError):
    """A worker process, a daemon or a session did not start; whatever had started was ended."""


class RemoteError(EchelonError):
    """A session refused or failed a request that is not a task."""


class LifecycleError(EchelonError):
    """The worker is in a state in which this cannot be done, or the call is not valid in this place."""


class CloseError(EchelonError):
    """``close()`` could not end everything in time; the message names what survived."""


class EchelonTimeout(EchelonError, TimeoutError):
    """A deadline passed; the message names what was waited for and the limit."""
