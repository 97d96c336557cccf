"""What an orchestration callable may ask of the worker that it runs on."""

from __future__ import annotations

from . import _core

__all__ = ["get_inner_handle"]


def get_inner_handle(key: str) -> _core.CallableHandle:
    """The handle of a callable that the parent registered with ``inner=True``.

    Valid only while an orchestration callable runs on a session or on a local level-3 worker; the handle serves
    ``orch.submit_sub`` there.

    Args:
        key: ``handle.hashid`` of the registration, or its ``"module:qualname"``.

    Raises:
        LifecycleError: called anywhere else.
        HandleError: nothing of that name is registered for the sub workers; the message names what is.
    """
    return _core._inner_handle(key)
