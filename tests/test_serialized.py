"""Callables that travel as pickles: off unless the worker allows them and both sides agreed; registering the others."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import echelon as ec
import numpy as np
import pytest
from testbed import wire
from testbed.daemon import Daemon
from testbed.wire import V1Parent, v1_session

CALLABLES = Path(__file__).parent / "callables"
LISTEN = ("--host", "127.0.0.1", "--port", "0", "--insecure-loopback")
SERIALIZED, FEATURE = 2, 1 << 13
OFFER = {"feature_flags": ["serialized_callables"]}
INOUT = ec.TensorArgType.INOUT


@pytest.fixture
def allowing(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that takes pickles."""
    with Daemon(tmp_path, pythonpath=[CALLABLES], arguments=(*LISTEN, "--allow-serialized")) as running:
        yield running


def digest_of(pickled: bytes) -> bytes:
    head = struct.pack("<IIII", 1, SERIALIZED, 1, 1)
    return hashlib.sha256(head + wire.blob(hashlib.sha256(pickled).digest())).digest()


def envelope(pickled: bytes) -> bytes:
    return b"SPYC" + struct.pack("<BBHQ", 1, 1, 0, len(pickled)) + pickled


def prepare(
    parent: V1Parent, pickled: bytes, *, digest: bytes | None = None, payload: bytes | None = None
) -> wire.Reply:
    head = struct.pack("<II", wire.DISPATCHER, SERIALIZED) + (digest or digest_of(pickled))
    body = struct.pack("<I", 1) + wire.blob(envelope(pickled) if payload is None else payload)
    return parent.control("PREPARE_REGISTER_CALLABLE", head + body)


def named(parent: V1Parent, control: str, pickled: bytes) -> wire.Reply:
    return parent.control(control, struct.pack("<II", wire.DISPATCHER, SERIALIZED) + digest_of(pickled))


def task(parent: V1Parent, digest: bytes) -> wire.Reply:
    return parent.task(digest + wire.task_payload("m:f")[32:])


def still_serves(parent: V1Parent) -> None:
    parent.register("py_tasks:orch_noop")
    assert parent.task(wire.task_payload("py_tasks:orch_noop")).error_code == 0


class Touches:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


class Raises:
    """Unpickled, it raises."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"raise {self.expression}",)


@pytest.mark.parametrize(("offered", "allowed"), [(True, False), (False, True), (False, False)])
def test_r_104_without_agreement_a_pickle_is_refused_and_nothing_of_it_is_kept(
    offered: bool, allowed: bool, tmp_path: Path
) -> None:
    arguments = (*LISTEN, "--allow-serialized") if allowed else LISTEN
    marker = tmp_path / "loaded"
    pickled = pickle.dumps(Touches(marker))
    request = wire.manifest(**(OFFER if offered else {}))
    with (
        Daemon(tmp_path, pythonpath=[CALLABLES], arguments=arguments) as daemon,
        v1_session((daemon.host, daemon.port), request) as parent,
    ):
        assert parent.hello.feature_flags & FEATURE == 0
        reply = prepare(parent, pickled)
        assert reply.error_code == 1
        assert reply.error.endswith("PYTHON_SERIALIZED is not negotiated for remote protocol v1")
        assert named(parent, "COMMIT_REGISTER_CALLABLE", pickled).error_code == 1
        assert named(parent, "PREPARE_CALLABLE", pickled).error_code == 1
        assert "no callable" in task(parent, digest_of(pickled)).error
        still_serves(parent)
    assert not marker.exists()


def test_r_104_a_manifest_with_a_pickle_needs_agreement_too(daemon: Daemon, tmp_path: Path) -> None:
    pickled = pickle.dumps(Touches(tmp_path / "loaded"))
    entry = {
        "hashid": digest_of(pickled).hex(),
        "kind": "PYTHON_SERIALIZED",
        "target_registry": "REMOTE_TASK_DISPATCHER",
        "payload_hex": envelope(pickled).hex(),
    }
    reply = wire.bootstrap((daemon.host, daemon.port), wire.manifest(remote_task_dispatcher=[entry], **OFFER))
    assert not reply["ok"] and "not negotiated" in reply["error"]
    assert not (tmp_path / "loaded").exists()


def test_r_104_a_task_finds_only_what_the_dispatcher_has(allowing: Daemon) -> None:
    with v1_session((allowing.host, allowing.port), wire.manifest()) as parent:
        for control, command in (
            ("PREPARE_REGISTER_CALLABLE", wire.register_command("py_tasks:noop", wire.INNER)),
            ("COMMIT_REGISTER_CALLABLE", wire.digest_command("py_tasks:noop", wire.INNER)),
        ):
            assert parent.control(control, command).error_code == 0
        assert "no callable" in parent.task(wire.task_payload("py_tasks:noop")).error
        for control in ("COMM_INIT", "ALLOC_DOMAIN", "RELEASE_DOMAIN"):
            reply = parent.control(control, b"anything")
            assert reply.error == f"unsupported reserved remote domain control {control}"
        still_serves(parent)


def test_r_105_a_pickle_whose_digest_differs_is_never_loaded(allowing: Daemon, tmp_path: Path) -> None:
    marker = tmp_path / "loaded"
    pickled = pickle.dumps(Touches(marker))
    good = envelope(pickled)
    with v1_session((allowing.host, allowing.port), wire.manifest(**OFFER)) as parent:
        assert parent.hello.feature_flags & FEATURE
        assert "does not match" in prepare(parent, pickled, digest=bytes(32)).error
        for at in range(16):
            spoiled = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
            assert prepare(parent, pickled, payload=spoiled).error_code == 1, at
        for payload in (b"", good[:15], good[:-1], good + b"\0"):
            assert prepare(parent, pickled, payload=payload).error_code == 1
        # One bit of the pickle itself: another digest.
        assert "does not match" in prepare(parent, pickled, payload=good[:-2] + b"\xff.").error
        assert not marker.exists()
        still_serves(parent)
    entry = {
        "hashid": "0" * 64,
        "kind": "PYTHON_SERIALIZED",
        "target_registry": "INNER_L3_WORKER",
        "payload_hex": good.hex(),
    }
    for change, reason in (
        ({}, "does not match"),
        ({"payload_hex": "0g"}, "hexadecimal"),
        ({"payload_hex": good.hex()[:-1]}, "hexadecimal"),
    ):
        request = wire.manifest(inner_l3_worker=[{**entry, **change}], **OFFER)
        reply = wire.bootstrap((allowing.host, allowing.port), request)
        assert not reply["ok"] and reason in reply["error"], reply
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"no pickle", "Error"),
        (b"", "EOFError"),
        (pickle.dumps(7), "not callable"),
        (b"cno_such_module\nf\n.", "no_such_module"),
        (pickle.dumps(Raises("ValueError('on purpose')")), "on purpose"),
        (pickle.dumps(Raises("SystemExit(3)")), "SystemExit"),
        (pickle.dumps(Raises("KeyboardInterrupt()")), "KeyboardInterrupt"),
        (b"\x8e" + b"\xff" * 8, "Error"),
        (b"(" * 100_000 + b".", "Error"),
    ],
)
def test_a_pickle_that_cannot_be_loaded_is_an_error_and_the_session_goes_on(
    pickled: bytes, reason: str, allowing: Daemon
) -> None:
    with v1_session((allowing.host, allowing.port), wire.manifest(**OFFER)) as parent:
        reply = prepare(parent, pickled)
        assert reply.error_code == 1 and reason in reply.error, reply.error
        assert "not prepared" in named(parent, "COMMIT_REGISTER_CALLABLE", pickled).error
        still_serves(parent)


def test_pickles_by_control_and_by_manifest(allowing: Daemon) -> None:
    def orchestrate(orch: ec.Orchestrator, args: ec.TaskArgs, config: object) -> None:
        if not isinstance(orch, ec.Orchestrator):
            raise TypeError(type(orch))

    pickled = cloudpickle.dumps(orchestrate)
    entry = {
        "hashid": digest_of(pickled).hex(),
        "kind": "PYTHON_SERIALIZED",
        "target_registry": "REMOTE_TASK_DISPATCHER",
        "payload_hex": envelope(pickled).hex(),
    }
    for entries in ([], [entry]):
        request = wire.manifest(remote_task_dispatcher=entries, **OFFER)
        with v1_session((allowing.host, allowing.port), request) as parent:
            if not entries:
                assert prepare(parent, pickled).error_code == 0
                # Another kind under the same digest is not what was prepared.
                other = struct.pack("<II", wire.DISPATCHER, wire.PYTHON_IMPORT) + digest_of(pickled)
                assert "mismatch" in parent.control("COMMIT_REGISTER_CALLABLE", other).error
                assert named(parent, "COMMIT_REGISTER_CALLABLE", pickled).error_code == 0
            assert named(parent, "PREPARE_CALLABLE", pickled).error_code == 0
            assert task(parent, digest_of(pickled)).error_code == 0
            assert named(parent, "UNREGISTER_CALLABLE", pickled).error_code == 0
            assert "no callable" in task(parent, digest_of(pickled)).error


BAD_TARGETS = [
    ".rel:f",
    "..:f",
    "m:",
    ":f",
    "m",
    "m:f:g",
    "m..n:f",
    "m:f..g",
    "m:f.<locals>.g",
    "m:1f",
    "m n:f",
    "m/n:f",
    "m:f\0",
    "m:f\u200b",
    "m:f\u200d",
    "m:" + "f" * 5000,
]


def test_r_103_bad_targets_are_refused_on_both_sides(daemon: Daemon) -> None:
    with v1_session((daemon.host, daemon.port), wire.manifest()) as parent:
        for target in BAD_TARGETS:
            with pytest.raises(ValueError):
                ec.RemoteCallable(target)
            head = struct.pack("<II", wire.DISPATCHER, wire.PYTHON_IMPORT)
            # With the digest that fits, where one can be made: it is the target that is refused.
            digest = wire.digest_of(target) if target.count(":") == 1 else bytes(32)
            command = head + digest + struct.pack("<I", 1) + wire.text(target)
            reply = parent.control("PREPARE_REGISTER_CALLABLE", command)
            assert reply.error_code == 1 and "import target" in reply.error, (target, reply.error)
        still_serves(parent)


# --- from Python ------------------------------------------------------------------------------------------


def double_there(cluster: ec.LocalCluster, handle: ec.CallableHandle, **where: int) -> list[float]:
    """What an INOUT buffer of ones becomes."""
    worker, first = cluster.worker, cluster.remote_ids[0]
    buffer = worker.remote_malloc(first, 16)
    worker.remote_copy_to(buffer, np.ones(2))
    ref = ec.RemoteTensorRef(buffer, shape=(2,), dtype=ec.DataType.FLOAT64)
    worker.run(lambda orch, a, c: orch.submit_next_level(handle, ec.TaskArgs.of((ref, INOUT)), worker=first))
    got = np.zeros(2)
    worker.remote_copy_from(buffer, got)
    worker.remote_free(buffer)
    return list(got)


@pytest.mark.parametrize("when", ["before init", "after init"])
def test_a_lambda_runs_on_a_session_that_allows_it(when: str) -> None:
    factor = 3.0

    def leaf(args: ec.TaskArgs) -> None:
        args.tensor(0).numpy()[...] += 1

    with ec.LocalCluster(remote=1, sub_workers=1, allow_serialized=True) as cluster:
        worker, ids = cluster.worker, cluster.remote_ids
        if when == "after init":
            worker.init()
        inner = worker.register(leaf, workers=ids, inner=True)
        key = inner.hashid

        def orchestrate(orch: ec.Orchestrator, args: ec.TaskArgs, config: object) -> None:
            tensor = args.tensor(0)
            tensor.numpy()[...] *= factor
            orch.submit_sub(ec.session.get_inner_handle(key), ec.TaskArgs.of((tensor, INOUT)))

        handle = worker.register(orchestrate, workers=ids)
        assert (handle.kind, inner.kind) == ("PYTHON_SERIALIZED", "PYTHON_SERIALIZED")
        worker.init() if when == "before init" else None
        assert double_there(cluster, handle) == [4.0, 4.0]
        worker.unregister(inner)
        with pytest.raises(ec.TaskError, match="not registered here"):
            double_there(cluster, handle)
        worker.unregister(handle)
        assert double_there(cluster, worker.register(lambda orch, a, c: None, workers=ids)) == [1.0, 1.0]


@pytest.mark.parametrize("when", ["before init", "after init"])
def test_without_permission_the_error_names_the_worker_and_what_to_do(when: str) -> None:
    with ec.LocalCluster(remote=1, sub_workers=0) as cluster:
        worker, ids = cluster.worker, cluster.remote_ids
        if when == "after init":
            worker.init()
        with pytest.raises(ec.RegistrationError, match=r"remote0.*--allow-serialized.*RemoteCallable"):
            worker.register(lambda orch, args, config: None, workers=ids)
            worker.init()
        if when == "after init":
            worker.register(ec.RemoteCallable("os:getcwd"), workers=ids)
