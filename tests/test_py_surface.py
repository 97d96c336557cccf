"""The surface of the package: what it exports, what an import costs, what cannot be forged."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import echelon as ec
import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> str:
    """Runs code in a fresh interpreter; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60, check=True
    )
    return done.stdout.decode().strip()


def test_an_import_has_no_side_effects():
    """No numpy, no cloudpickle, no thread, no descriptor, no change of the environment or of signal handlers."""
    code = """
import os, signal, sys, threading
before = (dict(os.environ), sorted(os.listdir('/proc/self/fd')), signal.getsignal(signal.SIGINT))
import echelon
after = (dict(os.environ), sorted(os.listdir('/proc/self/fd')), signal.getsignal(signal.SIGINT))
names = ('numpy', 'cloudpickle', 'subprocess', 'argparse', 'socket', 'json', 'typing')
heavy = [name for name in names if name in sys.modules]
print(before == after, len(os.listdir('/proc/self/task')), heavy)
"""
    assert python(code) == "True 1 []"


def test_all_names_exist_and_all_public_names_are_listed():
    """R-225: nothing undocumented is exported."""
    for name in ec.__all__:
        thing = getattr(ec, name)
        assert name.startswith("__") or inspect.getdoc(thing), f"{name} has no docstring"
    public = {name for name in vars(ec) if not name.startswith("_")} - {"local_cluster"}
    assert public == {name for name in ec.__all__ if not name.startswith("_")}


@pytest.mark.parametrize(
    "cls", [ec.Worker, ec.Orchestrator, ec.TaskArgs, ec.Tensor, ec.RunReport, ec.CallConfig]
)
def test_every_public_method_has_a_docstring(cls):
    missing = [n for n, member in vars(cls).items() if not n.startswith("_") and not inspect.getdoc(member)]
    assert not missing


def test_errors_are_one_tree():
    for name in ec.errors.__all__:
        thing = getattr(ec.errors, name)
        assert getattr(ec, name) is thing
        if name != "TaskFailure":
            assert issubclass(thing, ec.EchelonError)
    assert issubclass(ec.EchelonError, RuntimeError)
    assert issubclass(ec.EchelonTimeout, TimeoutError)
    assert issubclass(ec.NotEligibleError, ValueError)
    assert not issubclass(ec.EndpointLost, ec.TaskError)


@pytest.mark.parametrize(
    "cls",
    [
        ec.RemoteBufferHandle,
        ec.RemoteBufferExport,
        ec.RemoteCopy,
        ec.CallableHandle,
        ec.Orchestrator,
        ec.Tensor,
        ec.TaskHandle,
        ec.RunReport,
    ],
)
def test_what_the_runtime_hands_out_cannot_be_made(cls):
    """R-110: no public constructor, neither by calling nor by the allocator, and no subclass."""
    # Not only for want of arguments: one that takes some would be refused here in other words.
    with pytest.raises(TypeError, match="cannot create"):
        cls()
    with pytest.raises(TypeError):
        object.__new__(cls)
    with pytest.raises(TypeError):
        type("Forged", (cls,), {})


def test_a_remote_callable_is_an_import_path():
    target = ec.RemoteCallable(" pkg.mod:Class.method\n")
    assert (target.target, target.module, target.qualname) == (
        "pkg.mod:Class.method",
        "pkg.mod",
        "Class.method",
    )
    assert target == ec.RemoteCallable("pkg.mod:Class.method") == pickle.loads(pickle.dumps(target))
    assert len({target, copy.copy(target)}) == 1


@pytest.mark.parametrize(
    "target", ["", "mod", "mod:", ":fn", ".mod:fn", "mod:a.<locals>.b", "mod:a:b", "mod:1x", "a b:c"]
)
def test_what_is_no_import_path_is_a_value_error(target):
    with pytest.raises(ValueError):
        ec.RemoteCallable(target)


def test_call_config_checks_its_rules():
    assert ec.CallConfig() == ec.CallConfig(aicpu_thread_num=3)
    assert ec.CallConfig(block_dim=2).block_dim == 2
    with pytest.raises(ValueError, match="output_prefix"):
        ec.CallConfig(enable_pmu=1)
    with pytest.raises(ValueError, match="1023"):
        ec.CallConfig(output_prefix="x" * 1024)
    with pytest.raises(TypeError):
        ec.CallConfig(block_dim="1")


@pytest.mark.parametrize(
    "arguments",
    [{"endpoint": "nohost"}, {"endpoint": "host:0"}, {"endpoint": "host:99999"}, {"endpoint": ""}],
)
def test_a_remote_specification_is_checked_when_it_is_made(arguments):
    with pytest.raises(ValueError):
        ec.RemoteWorkerSpec(platform="cpu", **arguments)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("level", 2),
        ("level", 256),
        ("num_sub_workers", -1),
        ("num_sub_workers", 1025),
        ("remote_session_timeout_s", 0),
        ("startup_timeout_s", -1.0),
        ("close_timeout_s", float("nan")),
        ("close_timeout_s", float("inf")),
        ("memory_limit", 5),
        ("memory_limit", -5),
        ("max_tasks", 0),
    ],
)
def test_settings_out_of_range_are_value_errors_that_name_them(keyword, value):
    """R-003"""
    with pytest.raises(ValueError, match=keyword):
        ec.Worker(**{keyword: value})


@pytest.mark.parametrize("value", [0.2, 0.05])
def test_a_health_timeout_not_above_its_period_names_both_r066(value):
    with pytest.raises(ValueError, match=rf"remote_session_timeout_s.* {value} s is not above 0\.2 s"):
        ec.Worker(remote_session_timeout_s=value)


@pytest.mark.parametrize(
    ("keyword", "value"), [("level", "4"), ("num_sub_workers", 1.0), ("close_timeout_s", "1")]
)
def test_settings_of_a_wrong_type_are_type_errors_that_name_them(keyword, value):
    with pytest.raises(TypeError, match=keyword):
        ec.Worker(**{keyword: value})


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(TypeError, match="no keyword num_subworkers; did you mean num_sub_workers"):
        ec.Worker(num_subworkers=1)
    with pytest.raises(TypeError, match="known are level"):
        ec.Worker(zzz=1)


def test_get_inner_handle_says_where_it_may_be_used():
    with pytest.raises(ec.LifecycleError, match="inside an orchestration callable"):
        ec.session.get_inner_handle("py_tasks:noop")


def test_the_command_line_says_what_it_has(capsys):
    from echelon import _cli

    assert _cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"echelon {ec.__version__}\n"
    assert _cli.main(["--help"]) == 0
    assert _cli.main([]) == 2
    assert _cli.main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_stub_is_true():
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "echelon._core", "--ignore-disjoint-bases"],
        cwd=ROOT / "python",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()


def test_a_compiled_part_of_another_release_is_refused_r025(monkeypatch):
    """The files and the extension name one release; a mix is refused at import, with both and the command that mends it."""
    from echelon import _build, _core

    assert ec.__version__ == _build.RELEASE
    monkeypatch.setattr(_core, "__version__", "0.0.9")
    with pytest.raises(ImportError, match=r"0\.0\.9.*pip install"):
        _build.check()
