"""The daemon as an operator meets it: start, refusal, bad neighbours, stop, sudden death."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed import procfs, residual, wire
from testbed.daemon import Daemon, clean_environment, worker_command
from testbed.wait import eventually
from testbed.wire import V1Parent, bootstrap, v1_session

CALLABLES = Path(__file__).parent / "callables"
END_S = 10.0
"""How long a session may take to end by itself once it has a reason, in seconds."""


def _address(daemon: Daemon) -> tuple[str, int]:
    return (daemon.host, daemon.port)


def _gone(pid: object, what: str = "the session process") -> None:
    assert isinstance(pid, int)
    eventually(lambda: procfs.read_process(pid) is None, END_S, what=f"the end of {what} {pid}")


def _serves(daemon: Daemon) -> None:
    """A new parent can start a session and run a task."""
    with v1_session(_address(daemon), wire.manifest(targets=["bench_callables:noop"])) as parent:
        assert parent.task(wire.task_payload("bench_callables:noop")).error_code == 0
    _gone(parent.pid)


def _run_to_its_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*worker_command(), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env=clean_environment(),
    )


# --- start and refusal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_a_bind_beyond_loopback_is_refused_with_status_2_r197(host: str) -> None:
    done = _run_to_its_end("--host", host, "--port", "0", "--insecure-loopback")
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert host in done.stderr
    assert "loopback" in done.stderr


def test_without_the_word_insecure_nothing_is_served_r197() -> None:
    done = _run_to_its_end("--host", "127.0.0.1", "--port", "0")
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "--insecure-loopback" in done.stderr


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "x"], ["--no-such-option"]])
def test_a_wrong_command_line_has_status_2(arguments: list[str]) -> None:
    done = _run_to_its_end("--insecure-loopback", *arguments)
    assert done.returncode == 2, done
    assert arguments[-1] in done.stderr


def test_a_port_in_use_is_named_r050() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        done = _run_to_its_end("--port", port, "--insecure-loopback")
    assert done.returncode not in (0, 2), done
    assert done.stdout == ""
    assert port in done.stderr
    assert "Traceback" not in done.stderr


def test_only_loopback_is_listened_on_r197(daemon: Daemon) -> None:
    with v1_session(_address(daemon), wire.manifest()) as parent:
        pids = [daemon.pid, *(process.pid for process in daemon.children())]
        listening = [line for line in procfs.tcp_sockets(pids).values() if "LISTEN" in line]
        assert listening
        assert all("LISTEN 127.0.0.1:" in line for line in listening), listening
    _gone(parent.pid)


# --- stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_the_daemon_and_its_sessions_with_status_0_r051(daemon: Daemon, number: int) -> None:
    address = _address(daemon)
    with (
        v1_session(address, wire.manifest(session_id=1)) as first,
        v1_session(address, wire.manifest(session_id=2, worker_id=1)) as second,
    ):
        os.kill(daemon.pid, number)
        assert daemon.process.wait(15.0) == 0, daemon.stderr
        assert wire.at_end(first.command)
        assert wire.at_end(second.command)
    _gone(first.pid)
    _gone(second.pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5.0)


def test_a_signal_while_a_connection_says_nothing_r036(daemon: Daemon) -> None:
    with socket.create_connection(_address(daemon), 10.0):
        daemon.stop()


def test_shutdown_is_a_clean_end_r240(daemon: Daemon) -> None:
    with v1_session(_address(daemon), wire.manifest()) as parent:
        parent.send(wire.SHUTDOWN)
        assert wire.at_end(parent.command)
        assert parent.health is not None
        parent.health.settimeout(END_S)
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                parent.read_health()
    _gone(parent.pid)


# --- bad neighbours -----------------------------------------------------------------------------------------

BAD_REQUESTS = {
    "nothing": b"",
    "half a length": b"\x10\x00",
    "half a document": struct.pack("<I", 64) + b'{"session_id": 1',
    "too long": struct.pack("<I", 16 * 1024 * 1024 + 1) + b"{}",
    "the longest length": b"\xff\xff\xff\xff",
    "not JSON": wire.blob(b"\x00\x01\x02"),
    "not an object": wire.text("[1, 2, 3]"),
    "not UTF-8": wire.blob(b'{"platform": "\xff\xfe"}'),
    "an empty object": wire.text("{}"),
    "deep nesting": wire.text("[" * 100_000),
    "something else entirely": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_harms_nobody_else_r034(name: str, daemon: Daemon) -> None:
    with socket.create_connection(_address(daemon), 20.0) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(BAD_REQUESTS[name])
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
        # An answer is optional; one that comes is a framed refusal of bounded length.
        if answer:
            assert struct.unpack_from("<I", answer)[0] == len(answer) - 4 <= 8192
            assert b'"ok":false' in answer.replace(b" ", b"")
    _serves(daemon)


def test_silent_connections_do_not_hold_up_a_parent_r035_r237(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(64):
            silent = stack.enter_context(socket.create_connection(_address(daemon), 10.0))
            silent.sendall(struct.pack("<I", 100)[: number % 4])
        _serves(daemon)


def test_a_parent_that_resets_its_connection_harms_nobody_r033_r237(daemon: Daemon) -> None:
    for cut in (4, None):
        request = wire.text('{"session_id": 1}') if cut else _encoded(wire.manifest(session_timeout_s=2.0))
        with socket.create_connection(_address(daemon), 10.0) as connection:
            connection.sendall(request[:cut])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _serves(daemon)
    # The session that was started for a parent that has gone ends by its own deadline.
    runners = _runner_pids(daemon)
    eventually(lambda: not (_runner_pids(daemon) & runners), END_S, what="the end of the unwanted session")


def _encoded(request: dict[str, Any]) -> bytes:
    return wire.text(json.dumps(request))


def _runner_pids(daemon: Daemon) -> set[int]:
    """Processes below the daemon that listen: those are session runners."""
    return {
        process.pid
        for process in daemon.children()
        if any("LISTEN" in line for line in procfs.tcp_sockets([process.pid]).values())
    }


def test_many_parents_at_once_each_get_a_session(daemon: Daemon) -> None:
    count = 6
    replies: list[dict[str, Any]] = [{} for _ in range(count)]

    def ask(number: int) -> None:
        replies[number] = bootstrap(
            _address(daemon), wire.manifest(session_id=100 + number, worker_id=number)
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(reply.get("ok") for reply in replies), replies
    assert len({reply["command_port"] for reply in replies}) == count
    parents = [
        V1Parent(wire.manifest(session_id=100 + number, worker_id=number), reply)
        for number, reply in enumerate(replies)
    ]
    for parent in parents:
        parent.close()
    for parent in parents:
        _gone(parent.pid)


# --- sessions that nobody wants -----------------------------------------------------------------------------


def test_a_session_without_a_parent_ends_by_its_own_deadline_r009(daemon: Daemon) -> None:
    reply = bootstrap(_address(daemon), wire.manifest(session_timeout_s=1.0))
    assert reply["ok"], reply
    _gone(reply["pid"])


def test_a_second_command_connection_is_not_served(daemon: Daemon) -> None:
    """Section 2: one command connection in a session's life."""
    request = wire.manifest(targets=["bench_callables:noop"])
    reply = bootstrap(_address(daemon), request)
    parent = V1Parent(request, reply)
    try:
        place = (reply["command_host"], reply["command_port"])
        with (
            contextlib.suppress(ConnectionRefusedError, ConnectionResetError, TimeoutError),
            socket.create_connection(place, 1.0) as second,
        ):
            assert second.recv(1) == b"", "a second parent was greeted"
        assert parent.task(wire.task_payload("bench_callables:noop")).error_code == 0
    finally:
        parent.close()
    _gone(parent.pid)


def test_a_lost_health_connection_is_replaced_and_goes_on_counting(daemon: Daemon) -> None:
    """Section 9: the sequence continues across reconnects."""
    request = wire.manifest()
    reply = bootstrap(_address(daemon), request)
    parent = V1Parent(request, reply)
    try:
        before = [parent.read_health().sequence for _ in range(2)][-1]
        assert parent.health is not None
        parent.health.close()
        parent.health = socket.create_connection((reply["health_host"], reply["health_port"]), 10.0)
        assert parent.read_health().sequence > before
    finally:
        parent.close()
    _gone(parent.pid)


# --- sudden death -------------------------------------------------------------------------------------------


def _ended(processes: list[procfs.Process], timeout_s: float) -> None:
    """None of them runs any more; a zombie waits only for whoever adopted it."""

    def running() -> list[str]:
        now = [procfs.read_process(process.pid) for process in processes]
        old = {process.key for process in processes}
        return [str(process) for process in now if process and process.key in old and not process.is_zombie]

    eventually(lambda: not running(), timeout_s, what="the end of the subtree", explain=running)


@pytest.fixture
def session_with_sub_workers(daemon: Daemon) -> Iterator[tuple[Daemon, V1Parent]]:
    request = wire.manifest(num_sub_workers=2, targets=["bench_callables:noop"])
    with v1_session(_address(daemon), request) as parent:
        yield daemon, parent


def test_a_killed_runner_is_reaped_with_its_sub_workers_r032_r039(
    session_with_sub_workers: tuple[Daemon, V1Parent],
) -> None:
    daemon, parent = session_with_sub_workers
    assert isinstance(parent.pid, int)
    below = procfs.descendants(parent.pid)
    residual.note_descendants(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    assert wire.at_end(parent.command)
    _gone(parent.pid)
    _ended(below, 2.0)
    _serves(daemon)


def test_a_killed_daemon_leaves_no_session_behind_r039_r040(
    session_with_sub_workers: tuple[Daemon, V1Parent],
) -> None:
    daemon, parent = session_with_sub_workers
    below = daemon.children()
    assert below
    daemon.kill()
    parent.close()
    _ended(below, END_S)


def test_a_stopped_daemon_does_not_hold_a_session_up(daemon: Daemon) -> None:
    """Lanes go to the session itself: a daemon that stands still is not in their way."""
    with v1_session(_address(daemon), wire.manifest(targets=["bench_callables:noop"])) as parent:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            assert parent.task(wire.task_payload("bench_callables:noop")).error_code == 0
            assert parent.read_health().kind == wire.HEALTH
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
    _gone(parent.pid)
