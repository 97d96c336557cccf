"""The test bed judged by itself: each kind of leak is named, the proxy does what it says, limits fire."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from testbed import procfs, residual, wire
from testbed.proxy import ByFrame, DaemonProxy, DuplicateBytes, Garble, Proxy
from testbed.v1_session import V1Daemon
from testbed.wait import eventually
from testbed.watchdog import Watchdog

BRIEF_S = 0.3
"""Grace of a check that is meant to find something, in seconds."""

IDLE = "import sys; sys.stdin.read()"


@contextmanager
def leaked_child() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", IDLE], stdin=subprocess.PIPE) as child:
        yield f"process {child.pid} "


@contextmanager
def leaked_group() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", IDLE], stdin=subprocess.PIPE, start_new_session=True
    ) as child:
        yield f"process group {child.pid} of {child.pid}"


@contextmanager
def leaked_zombie() -> Iterator[str]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    eventually(lambda: (found := procfs.read_process(child.pid)) and found.is_zombie, what="the zombie")
    yield f"zombie {child.pid} "
    child.wait()


@contextmanager
def leaked_orphan() -> Iterator[str]:
    """A grandchild whose parent has ended: it comes back to us because we are its subreaper."""
    program = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {IDLE!r}], stdin=0, stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
    )
    reader, writer = os.pipe()
    parent = subprocess.run(
        [sys.executable, "-c", program], stdin=reader, stdout=subprocess.PIPE, check=True, timeout=30
    )
    orphan = int(parent.stdout)
    os.close(reader)
    yield f"process {orphan} (parent {os.getpid()}, "
    os.close(writer)
    os.waitpid(orphan, 0)


@contextmanager
def leaked_shm_name() -> Iterator[str]:
    path = residual.SHM / f"house-test-{os.getpid()}"
    path.write_bytes(b"x")
    yield f"shared memory {path}"
    path.unlink()


@contextmanager
def leaked_descriptor() -> Iterator[str]:
    descriptor = os.memfd_create("house-test")
    yield f"descriptor {descriptor} -> /memfd:house-test"
    os.close(descriptor)


@contextmanager
def leaked_listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"socket pid {os.getpid()} LISTEN 127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def leaked_connection() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client, listener.accept()[0]:
            yield f"ESTABLISHED 127.0.0.1:{client.getsockname()[1]} peer 127.0.0.1:{address[1]}"


@contextmanager
def leaked_thread() -> Iterator[str]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield f"thread {thread.native_id} named "
    end.set()
    thread.join()


@contextmanager
def leaked_temp_file() -> Iterator[str]:
    with tempfile.NamedTemporaryFile(prefix="echelon-house-test-") as file:
        yield f"temporary file {file.name}"


LEAKS = [
    leaked_child,
    leaked_group,
    leaked_zombie,
    leaked_orphan,
    leaked_shm_name,
    leaked_descriptor,
    leaked_listener,
    leaked_connection,
    leaked_thread,
    leaked_temp_file,
]


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.__name__)
def test_every_kind_of_leak_is_named_r129(leak: Callable[[], ExitStack]) -> None:
    before = residual.take()
    with leak() as words:
        found = residual.check(before, BRIEF_S)
        assert any(words in line for line in found), f"{words!r} is not in {found}"
    assert residual.check(before) == []


def test_what_ends_within_the_grace_is_forgiven_r129() -> None:
    before = residual.take()
    with subprocess.Popen([sys.executable, "-c", IDLE], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        waiter = threading.Thread(target=child.wait)
        waiter.start()
        child.stdin.close()
        assert residual.check(before) == []
        waiter.join()


def test_an_orphan_noted_before_its_parent_was_killed_is_reaped_r129() -> None:
    before = residual.take()
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {IDLE!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as parent:
        eventually(lambda: procfs.descendants(parent.pid), what="the grandchild")
        residual.note_descendants(parent.pid)
        parent.kill()
        parent.wait()
        found = residual.check(before, BRIEF_S)
        assert any(line.startswith("process ") for line in found), (
            "a noted orphan that lives on is not forgiven"
        )
    assert residual.check(before) == []


def test_one_zygote_of_a_daemon_that_was_there_before_is_no_leak_r129() -> None:
    zygote = f"subprocess.Popen([sys.executable, '-c', {IDLE!r}, '--zygote', 'x'], stdin=subprocess.PIPE)"
    program = f"import subprocess, sys\nzygotes = []\nfor _ in sys.stdin: zygotes.append({zygote})"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as daemon:
        before = residual.take()
        assert daemon.stdin is not None
        for count, leaks in [(1, 0), (2, 1)]:
            daemon.stdin.write(b"\n")
            daemon.stdin.flush()
            eventually(lambda count=count: len(procfs.zygotes_below(daemon.pid)) == count, what="a zygote")
            found = residual.check(before, BRIEF_S)
            assert sum(line.startswith("process ") for line in found) == leaks, found
        residual.note_descendants(daemon.pid)
        daemon.kill()
        daemon.stdin.close()
    residual.clear_away(before)


def test_clear_away_ends_and_reaps_r129() -> None:
    before = residual.take()
    child = subprocess.Popen([sys.executable, "-c", IDLE], stdin=subprocess.PIPE)
    residual.clear_away(before)
    assert procfs.read_process(child.pid) is None
    child.communicate()


def test_watchdog_prints_stacks_and_the_process_tree_r221(tmp_path: Path) -> None:
    before = threading.active_count()
    with (tmp_path / "report").open("w+") as stream:
        watchdog = Watchdog(stream, last_resort=False)
        with subprocess.Popen([sys.executable, "-c", IDLE], stdin=subprocess.PIPE) as child:
            watchdog.arm("a test that hangs", 0.05)
            eventually(lambda: watchdog.fired_count == 1, what="the report")
        watchdog.disarm()
        watchdog.close()
        stream.seek(0)
        report = stream.read()
    assert "a test that hangs has run for 0.05 s" in report
    assert f"process {child.pid} " in report
    assert "test_watchdog_prints_stacks" in report
    assert threading.active_count() == before


def test_a_hanging_test_fails_and_the_run_goes_on_r221(tmp_path: Path) -> None:
    suite = tmp_path / "test_hang.py"
    suite.write_text(
        "import threading, pytest\n"
        "@pytest.mark.hard_timeout(0.2)\n"
        "def test_hangs():\n    threading.Event().wait()\n"
        "def test_follows():\n    pass\n"
    )
    root = Path(__file__).parent
    (tmp_path / "conftest.py").write_text((root / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", root.parent / "pyproject.toml"]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, suite],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    output = done.stdout + done.stderr
    assert "1 failed, 1 passed" in output, output
    assert "has run for 0.2 s, its limit" in output, output
    assert "process tree of" in output, output


def test_eventually_names_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match=r"the moon did not come true within 0\.05 s: it is new"):
        eventually(lambda: False, 0.05, what="the moon", explain=lambda: "it is new")


# --- the proxy ------------------------------------------------------------------------------------------


@contextmanager
def echo_through_proxy() -> Iterator[tuple[Proxy, socket.socket]]:
    """A client whose bytes come back from an echo server, both ways through a proxy."""

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            while data := connection.recv(4096):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        with Proxy(listener.getsockname()) as proxy, socket.create_connection(proxy.address, 10.0) as client:
            yield proxy, client
        server.join()


def test_proxy_records_both_ways() -> None:
    with echo_through_proxy() as (proxy, client):
        client.sendall(b"hello")
        assert wire.receive_exactly(client, 5) == b"hello"
        assert bytes(proxy.to_upstream.recorded) == bytes(proxy.to_client.recorded) == b"hello"


def test_proxy_holds_until_released() -> None:
    with echo_through_proxy() as (proxy, client):
        proxy.to_upstream.hold()
        client.sendall(b"late")
        proxy.to_upstream.wait_for_bytes(4)
        assert not proxy.to_client.recorded
        proxy.to_upstream.release()
        assert wire.receive_exactly(client, 4) == b"late"


def test_proxy_garbles_one_byte() -> None:
    with echo_through_proxy() as (proxy, client):
        proxy.to_client.transform = Garble(2, mask=0x01)
        client.sendall(b"abcd")
        assert wire.receive_exactly(client, 4) == b"abbd"


def test_proxy_duplicates_bytes() -> None:
    with echo_through_proxy() as (proxy, client):
        proxy.to_upstream.transform = DuplicateBytes(1, 3)
        client.sendall(b"abcd")
        assert wire.receive_exactly(client, 6) == b"abcbcd"


def test_proxy_cuts_at_a_byte() -> None:
    with echo_through_proxy() as (proxy, client):
        proxy.to_client.cut_after = 3
        client.sendall(b"abcdef")
        assert wire.receive_exactly(client, 3) == b"abc"
        assert wire.at_end(client)


def test_proxy_cuts_on_demand() -> None:
    with echo_through_proxy() as (proxy, client):
        client.sendall(b"x")
        assert wire.receive_exactly(client, 1) == b"x"
        proxy.cut()
        assert wire.at_end(client)


def test_proxy_repeats_and_loses_whole_frames() -> None:
    frames = [wire.Frame(wire.HEALTH, 7, 0, n, b"p" * n).encode() for n in range(1, 4)]
    rule = ByFrame(lambda number, frame: [[frame, frame], [], [frame]][number])
    stream = b"".join(frames)
    out = b"".join(rule.feed(stream[at : at + 7]) for at in range(0, len(stream), 7))
    assert out == frames[0] * 2 + frames[2]


# --- the v1 peers, against each other ----------------------------------------------------------------------


def test_v1_parent_and_v1_session_understand_each_other() -> None:
    def double(tensors: list[memoryview], scalars: list[int]) -> None:
        for view in tensors:
            for at, byte in enumerate(view):
                view[at] = byte * scalars[0] % 256

    def fail(tensors: list[memoryview], scalars: list[int]) -> None:
        raise RuntimeError("on purpose")

    with V1Daemon({"m:double": double, "m:fail": fail}) as daemon:
        request = wire.manifest(worker_id=3, targets=["m:double"])
        with wire.v1_session(daemon.address, request) as parent:
            assert parent.hello == wire.Hello(request["session_id"], 3, 1, "sim", 0, True)
            assert [parent.read_health().sequence for _ in range(2)] == [1, 2]
            key = parent.alloc(8)
            assert parent.copy_to(key, b"abcd", offset=4).error_code == 0
            buffer_id, generation = struct.unpack("<QQ", key)
            descriptor = wire.sidecar(
                address_space=2,
                owner_worker_id=3,
                buffer_id=buffer_id,
                generation=generation,
                offset=4,
                nbytes=4,
            )
            assert (
                parent.task(wire.task_payload("m:double", [(wire.tensor([4], 5), descriptor)], [2])).error
                == ""
            )
            assert parent.copy_from(key, 4, offset=4).result == bytes(2 * byte % 256 for byte in b"abcd")
            parent.register("m:fail")
            assert "on purpose" in parent.task(wire.task_payload("m:fail")).error
            assert parent.free(key).error_code == 0
            assert "unknown buffer" in parent.copy_from(key, 1).error
            parent.send(wire.SHUTDOWN)
            assert wire.at_end(parent.command)
        assert daemon.violations == []
        assert daemon.sessions[0].ended_by == "SHUTDOWN"


def test_v1_session_notes_a_second_request_in_flight() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(tensors: list[memoryview], scalars: list[int]) -> None:
        begun.set()
        assert go_on.wait(10)

    with V1Daemon({"m:wait": wait}) as daemon:
        with wire.v1_session(daemon.address, wire.manifest(targets=["m:wait"]), health=False) as parent:
            parent.send(wire.TASK, wire.task_payload("m:wait"))
            assert begun.wait(10)
            parent.send(wire.CONTROL, wire.control_payload("COMM_INIT", b""))
            go_on.set()
            assert [parent.reply().sequence, parent.reply().sequence] == [1, 2]
        assert daemon.violations == ["a request came before sequence 1 was answered"]


def test_exports_and_imports_between_v1_sessions_share_memory() -> None:
    with ExitStack() as stack:
        daemon = stack.enter_context(V1Daemon())
        owner = stack.enter_context(
            wire.v1_session(daemon.address, wire.manifest(session_id=1), health=False)
        )
        other = stack.enter_context(
            wire.v1_session(daemon.address, wire.manifest(session_id=2, worker_id=1), health=False)
        )
        key = owner.alloc(64)
        ask = (
            struct.pack("<i", 0)
            + key
            + struct.pack("<QQI", 8, 16, 1)
            + wire.text("sim")
            + struct.pack("<I", 0)
        )
        export = owner.control("EXPORT_BUFFER", ask)
        assert export.error == ""
        ask = struct.pack("<iI", 1, 1) + export.result + struct.pack("<I", 0)
        imported = other.control("IMPORT_BUFFER", ask)
        assert imported.error == ""
        release = imported.result[:8] + imported.result[8:32] + struct.pack("<I", 0)
        assert other.control("RELEASE_IMPORT", release).error == ""
        assert "unknown import" in other.control("RELEASE_IMPORT", release).error


def test_daemon_proxy_puts_a_proxy_on_each_lane() -> None:
    with V1Daemon() as daemon, DaemonProxy(daemon.address) as proxy:
        with wire.v1_session(proxy.address, wire.manifest()) as parent:
            parent.alloc(16)
            assert parent.read_health().kind == wire.HEALTH
            session = proxy.sessions[0]
            assert session.command.to_client.recorded[:4] == wire.MAGIC
            assert session.health.to_client.recorded[:4] == wire.MAGIC
            session.health.cut()
            assert parent.health is not None
            with pytest.raises((EOFError, OSError)):
                while True:
                    parent.read_health()
        assert proxy.requests[0]["transport"] == "sim"


def test_manifest_that_is_not_of_version_1_is_refused() -> None:
    with V1Daemon() as daemon:
        reply = wire.bootstrap(daemon.address, wire.manifest(transport="tcp"))
        assert reply["ok"] is False
        with pytest.raises(wire.ProtocolError, match="did not start"):
            wire.V1Parent(wire.manifest(), reply)


def test_a_dump_of_the_tree_survives_vanishing_processes() -> None:
    stream = io.StringIO()
    with subprocess.Popen([sys.executable, "-c", IDLE], stdin=subprocess.PIPE) as child:
        child.send_signal(signal.SIGSTOP)
        eventually(lambda: (found := procfs.read_process(child.pid)) and found.state == "T", what="the stop")
        stream.write(procfs.format_tree(os.getpid()))
        child.send_signal(signal.SIGCONT)
    assert f"{child.pid}" in stream.getvalue()
    assert "state=T" in stream.getvalue()
