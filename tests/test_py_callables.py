"""Callables: how functions reach the processes that run them, and what those processes are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import echelon as ec
import numpy as np
import pytest
from testbed.local import path_bytes, run_one

INPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.INOUT

pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def tasks(importable):
    import py_tasks

    return py_tasks


def test_lambdas_closures_and_nested_functions_are_serialized():
    offset = 5

    def add_offset(args):
        args.tensor(0).numpy()[...] += offset

    x = np.zeros(2)
    with ec.Worker(num_sub_workers=1) as worker:
        first = worker.register(add_offset)
        second = worker.register(lambda args: args.tensor(0).numpy().__imul__(2))
        assert (first.kind, second.kind) == ("PYTHON_SERIALIZED", "PYTHON_SERIALIZED")
        assert first.hashid != second.hashid
        run_one(worker, first, (x, INOUT))
        run_one(worker, second, (x, INOUT))
    assert x.tolist() == [10, 10]


def test_module_functions_go_by_import_path(tasks):
    with ec.Worker(num_sub_workers=1) as worker:
        handle = worker.register(tasks.Group.double)
        assert (handle.kind, handle.name) == ("PYTHON_IMPORT", "py_tasks:Group.double")
        assert handle.hashid == "sha256:" + handle.digest.hex()
        x = np.ones(1)
        run_one(worker, handle, (x, INOUT))
        assert x[0] == 2


def test_what_cannot_be_serialized_is_a_type_error_that_says_what():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot be serialized.*lock"):
        ec.Worker().register(lambda args: lock)
    with pytest.raises(TypeError, match="takes a function"):
        ec.Worker().register(3)


def test_a_callable_that_a_child_cannot_import_fails_the_registration(tasks):
    """All or nothing, with the child's traceback; the worker stays usable."""
    tasks.only_here = lambda args: None
    tasks.only_here.__module__, tasks.only_here.__qualname__ = "py_tasks", "only_here"
    try:
        with ec.Worker(num_sub_workers=2) as worker:
            with pytest.raises(ec.RegistrationError, match="only_here") as caught:
                worker.register(tasks.only_here)
            assert "AttributeError" in str(caught.value)
            run_one(worker, worker.register(tasks.noop))
    finally:
        del tasks.only_here


def test_unregistered_and_foreign_handles_are_refused(tasks):
    with ec.Worker(num_sub_workers=1) as worker, ec.Worker(num_sub_workers=1) as other:
        handle = worker.register(tasks.noop)
        worker.unregister(handle)
        with pytest.raises(ec.HandleError, match="unregistered"):
            run_one(worker, handle)
        with pytest.raises(ec.HandleError, match="already"):
            worker.unregister(handle)
        with pytest.raises(ec.HandleError, match="another Worker"):
            run_one(worker, other.register(tasks.noop))


@pytest.mark.parametrize("mode", ["1", "0"])
def test_children_get_path_and_folder_and_never_run_main(mode, tasks, tmp_path, monkeypatch):
    """Design §15.10; forked and executed."""
    monkeypatch.setenv("ECHELON_ZYGOTE", mode)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "somewhere"))
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # what is no string is no path
    out = tmp_path / "seen.json"
    with ec.Worker(num_sub_workers=1) as worker:
        run_one(worker, worker.register(tasks.report_process), (path_bytes(out), INPUT))
    seen = json.loads(out.read_text())
    assert seen["cwd"] == str(tmp_path)
    assert seen["path"] == sys.path[:-1]
    assert seen["pid"] != os.getpid()
    assert seen["marker"] is None
    assert seen["environment"] == [None, os.environ.get("PYTHONPATH")]
    assert seen["stdin"] == "/dev/null"


SCRIPT = """
import numpy as np
import echelon as ec
MARKER = 1
FACTOR = 3
def scale(args):
    args.tensor(0).numpy()[...] *= FACTOR
x = np.ones(2)
with ec.Worker(num_sub_workers=1) as w:
    h = w.register(scale)
    w.run(lambda orch, a, c: orch.submit_sub(h, ec.TaskArgs.of((x, ec.TensorArgType.INOUT))))
print(h.kind, x.tolist())
"""


@pytest.mark.parametrize("how", ["stdin", "file", "-c"])
def test_scripts_need_no_main_guard(how, tmp_path):
    """Functions of `__main__` work from a file, from standard input (as in a notebook) and from -c."""
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"stdin": ["-"], "file": [str(tmp_path / "script.py")], "-c": ["-c", SCRIPT]}[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=SCRIPT.encode() if how == "stdin" else b"",
        stdout=subprocess.PIPE,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.decode() == "PYTHON_SERIALIZED [3.0, 3.0]\n"
