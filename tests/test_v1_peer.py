"""Our parent with a daemon and sessions that know only version 1 (the issue's item 6, the other way round).

The peer notes in `violations` whatever version 1 does not allow; every test ends by looking there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import echelon as ec
import pytest
from testbed import wire
from testbed.proxy import ByFrame, DaemonProxy, SessionProxy
from testbed.v1_session import Behaviour, V1Daemon
from testbed.wait import eventually

Graph = Callable[[ec.Orchestrator, object, object], None]


def double(tensors: list[memoryview], scalars: list[int]) -> None:
    for view in tensors:
        for at, byte in enumerate(view):
            view[at] = byte * 2 % 256


def fail(tensors: list[memoryview], scalars: list[int]) -> None:
    raise RuntimeError("on purpose")


BEHAVIOURS: dict[str, Behaviour] = {"m:double": double, "m:fail": fail}


@contextmanager
def v1_worker(
    daemon: V1Daemon, count: int = 1, endpoint: str | None = None, **settings: object
) -> Iterator[tuple[ec.Worker, list[int]]]:
    """A `Worker` with `count` remote workers behind the v1 daemon; afterwards nothing may have been violated."""
    worker = ec.Worker(level=4, num_sub_workers=0, **settings)
    spec = ec.RemoteWorkerSpec(endpoint=endpoint or daemon.endpoint, platform="a2a3sim")
    ids = [worker.add_remote_worker(spec) for _ in range(count)]
    try:
        yield worker, ids
    finally:
        worker.close()
    assert daemon.violations == []


def submit(handle: ec.CallableHandle, worker_id: int, *refs: ec.RemoteTensorRef, count: int = 1) -> Graph:
    def graph(orch: ec.Orchestrator, args: object, cfg: object) -> None:
        task = ec.TaskArgs()
        for ref in refs:
            task.add_tensor(ref, ec.TensorArgType.INOUT)
        for _ in range(count):
            orch.submit_next_level(handle, task, worker=worker_id)

    return graph


def byte_ref(buffer: ec.RemoteBufferHandle, nbytes: int, offset: int = 0) -> ec.RemoteTensorRef:
    return ec.RemoteTensorRef(buffer, offset=offset, shape=(nbytes,), dtype=ec.DataType.UINT8)


@pytest.fixture
def daemon() -> Iterator[V1Daemon]:
    with V1Daemon(BEHAVIOURS) as running:
        yield running


def test_tasks_run_one_at_a_time(daemon: V1Daemon) -> None:
    with v1_worker(daemon) as (worker, [remote]):
        handle = worker.register(ec.RemoteCallable("m:noop"), workers=[remote])
        worker.run(submit(handle, remote, count=50))
    assert daemon.sessions[0].tasks == ["m:noop"] * 50
    assert daemon.requests[0]["platform"] == "a2a3sim"


def test_a_failing_task_raises_with_the_remote_text_and_the_worker_goes_on(daemon: V1Daemon) -> None:
    with v1_worker(daemon) as (worker, [remote]):
        bad = worker.register(ec.RemoteCallable("m:fail"), workers=[remote])
        good = worker.register(ec.RemoteCallable("m:noop"), workers=[remote])
        with pytest.raises(ec.TaskError, match="on purpose"):
            worker.run(submit(bad, remote))
        worker.run(submit(good, remote))


def test_callables_registered_after_init_are_prepared_and_committed(daemon: V1Daemon) -> None:
    with v1_worker(daemon) as (worker, [remote]):
        worker.init()
        handle = worker.register(ec.RemoteCallable("m:noop"), workers=[remote])
        worker.run(submit(handle, remote))
        worker.unregister(handle)
        with pytest.raises(ec.RegistrationError):
            worker.register(ec.RemoteCallable("m:does_not_exist"), workers=[remote])
    controls = daemon.sessions[0].controls
    assert controls[:2] == ["PREPARE_REGISTER_CALLABLE", "COMMIT_REGISTER_CALLABLE"]
    assert "UNREGISTER_CALLABLE" in controls


def test_buffers_are_allocated_written_read_and_freed(daemon: V1Daemon) -> None:
    with v1_worker(daemon) as (worker, [remote]):
        handle = worker.register(ec.RemoteCallable("m:double"), workers=[remote])
        worker.init()
        buffer = worker.remote_malloc(worker=remote, nbytes=64)
        worker.remote_copy_to(buffer, bytes(range(64)))
        worker.run(submit(handle, remote, byte_ref(buffer, 16, offset=8)))
        back = bytearray(64)
        worker.remote_copy_from(buffer, back)
        assert back == bytes([*range(8), *(2 * n for n in range(8, 24)), *range(24, 64)])
        worker.remote_free(buffer)


def test_a_copy_above_the_frame_limit_is_split(daemon: V1Daemon) -> None:
    """The hard point 19: version 1 cannot carry more than 16 MiB in a command."""
    nbytes = 2 * wire.FRAME_PAYLOAD_MAX + 12345
    data = bytes(range(251)) * (nbytes // 251 + 1)
    with v1_worker(daemon) as (worker, [remote]):
        worker.init()
        buffer = worker.remote_malloc(worker=remote, nbytes=nbytes)
        worker.remote_copy_to(buffer, data[:nbytes])
        back = bytearray(nbytes)
        worker.remote_copy_from(buffer, back)
        assert back == data[:nbytes]
        worker.remote_free(buffer)
    assert daemon.sessions[0].controls.count("COPY_TO_REMOTE") == 3


def test_inline_bytes_reach_the_task() -> None:
    seen: list[bytes] = []
    with V1Daemon(
        {"m:look": lambda tensors, scalars: seen.extend(bytes(view) for view in tensors)}
    ) as looking:
        with v1_worker(looking) as (worker, [remote]):
            handle = worker.register(ec.RemoteCallable("m:look"), workers=[remote])

            def graph(orch: ec.Orchestrator, args: object, cfg: object) -> None:
                task = ec.TaskArgs()
                ref = ec.RemoteTensorRef.host_inline(b"abcd", shape=(4,), dtype=ec.DataType.UINT8)
                task.add_tensor(ref, ec.TensorArgType.INPUT)
                orch.submit_next_level(handle, task, worker=remote)

            worker.run(graph)
        assert seen == [b"abcd"]


def test_a_range_exported_by_one_session_is_used_by_another(daemon: V1Daemon) -> None:
    with v1_worker(daemon, count=2) as (worker, [owner, importer]):
        handle = worker.register(ec.RemoteCallable("m:double"), workers=[importer])
        worker.init()
        buffer = worker.remote_malloc(worker=owner, nbytes=64)
        worker.remote_copy_to(buffer, b"\x01" * 64)
        export = worker.remote_export(buffer, offset=16, nbytes=32, access="readwrite")
        window = worker.remote_import(export, worker=importer)
        worker.run(submit(handle, importer, byte_ref(window, 8, offset=4)))
        back = bytearray(64)
        worker.remote_copy_from(buffer, back)
        assert back == b"\x01" * 20 + b"\x02" * 8 + b"\x01" * 36
        worker.remote_release_import(window)
        worker.remote_free(buffer)


def test_a_release_that_was_carried_out_and_refused_ends_when_it_is_repeated_r112(daemon: V1Daemon) -> None:
    """Version 1 answers the repeated RELEASE_IMPORT with an error, and the owner's buffer is freed all the same."""
    with v1_worker(daemon, count=2) as (worker, [owner, importer]):
        worker.init()
        first, second = sorted(daemon.sessions, key=lambda session: session.worker_id)
        buffer = worker.remote_malloc(worker=owner, nbytes=64)
        window = worker.remote_import(worker.remote_export(buffer), worker=importer)
        second.spoils.append("RELEASE_IMPORT")
        with pytest.raises(ec.RemoteError, match="refused all the same"):
            worker.remote_release_import(window)
        worker.remote_free(buffer)
        assert "FREE_REMOTE_BUFFER" not in first.controls, "the window may be in use"
        for _ in range(3):
            # Each flushes what is owed; the second finds nothing.
            worker.remote_free(worker.remote_malloc(worker=importer, nbytes=8))
        assert second.controls.count("RELEASE_IMPORT") == 2
        eventually(lambda: "FREE_REMOTE_BUFFER" in first.controls, 30)


def test_bool_is_refused_at_submit_towards_v1(daemon: V1Daemon) -> None:
    """The hard point 19: the other implementation's session cannot read BOOL."""
    with v1_worker(daemon) as (worker, [remote]):
        handle = worker.register(ec.RemoteCallable("m:noop"), workers=[remote])
        worker.init()
        buffer = worker.remote_malloc(worker=remote, nbytes=8)
        ref = ec.RemoteTensorRef(buffer, offset=0, shape=(8,), dtype=ec.DataType.BOOL)
        with pytest.raises((ec.EchelonError, TypeError, ValueError), match="BOOL"):
            worker.run(submit(handle, remote, ref))
        worker.remote_free(buffer)
    assert daemon.sessions[0].tasks == []


def test_a_task_may_take_longer_than_the_session_s_timeout() -> None:
    """Liveness belongs to the health lane alone."""

    def slow(tensors: list[memoryview], scalars: list[int]) -> None:
        # The time passes in the task, which is what is judged.
        threading.Event().wait(1.6)

    with (
        V1Daemon({"m:slow": slow}) as patient,
        v1_worker(patient, remote_session_timeout_s=0.8) as (worker, [remote]),
    ):
        handle = worker.register(ec.RemoteCallable("m:slow"), workers=[remote])
        worker.run(submit(handle, remote))


# --- what breaks --------------------------------------------------------------------------------------------


def test_a_daemon_that_refuses_fails_init_with_its_words() -> None:
    with (
        V1Daemon(refusal="ValueError: no room in here") as full,
        v1_worker(full) as (worker, _),
        pytest.raises(ec.EchelonError, match="no room in here"),
    ):
        worker.init()


@contextmanager
def waiting_task(
    **settings: object,
) -> Iterator[tuple[V1Daemon, DaemonProxy, Callable[[Callable[[], None]], None]]]:
    """Yields a daemon, a proxy before it, and `lose`: runs a task that waits, and calls its argument meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(tensors: list[memoryview], scalars: list[int]) -> None:
        begun.set()
        go_on.wait(60)

    with ExitStack() as stack:
        daemon = stack.enter_context(V1Daemon({"m:wait": wait}))
        proxy = stack.enter_context(DaemonProxy(daemon.address))
        worker, [remote] = stack.enter_context(v1_worker(daemon, endpoint=proxy.endpoint, **settings))
        stack.callback(go_on.set)
        handle = worker.register(ec.RemoteCallable("m:wait"), workers=[remote])

        def lose(harm: Callable[[], None]) -> None:
            watcher = threading.Thread(target=lambda: begun.wait(30) and harm())
            watcher.start()
            with pytest.raises(ec.EndpointLost):
                worker.run(submit(handle, remote))
            watcher.join()
            # It stays lost: what is submitted to it later says so too.
            with pytest.raises(ec.EchelonError):
                worker.run(submit(handle, remote))

        yield daemon, proxy, lose


def test_silence_on_the_health_lane_wakes_a_waiting_task_r054() -> None:
    with waiting_task(remote_session_timeout_s=2.0) as (_, proxy, lose):
        lose(lambda: proxy.sessions[0].health.to_client.hold())


def test_the_end_of_the_health_lane_wakes_a_waiting_task_r054() -> None:
    with waiting_task() as (daemon, _, lose):
        lose(lambda: daemon.sessions[0].stop_health())


def test_a_lane_that_is_cut_fails_what_is_in_flight_and_close_is_clean() -> None:
    with waiting_task() as (_, proxy, lose):
        lose(lambda: proxy.sessions[0].command.cut())


def broken_reply(number: int, frame: bytes) -> list[bytes]:
    """HELLO passes; the first answer gets another magic."""
    return [frame if number == 0 else b"XLR3" + frame[4:]]


def repeated_reply(number: int, frame: bytes) -> list[bytes]:
    """The second answer is the first once more."""
    return [frame] if number != 1 else [frame, frame]


@pytest.mark.parametrize("rule", [broken_reply, repeated_reply], ids=lambda rule: rule.__name__)
def test_a_reply_that_breaks_the_protocol_ends_the_endpoint(
    daemon: V1Daemon, rule: Callable[[int, bytes], list[bytes]]
) -> None:
    def prepare(session: SessionProxy, number: int) -> None:
        session.command.to_client.transform = ByFrame(rule)

    with (
        DaemonProxy(daemon.address, prepare) as proxy,
        v1_worker(daemon, endpoint=proxy.endpoint) as (worker, [remote]),
    ):
        handle = worker.register(ec.RemoteCallable("m:noop"), workers=[remote])
        with pytest.raises(ec.EndpointLost):
            for _ in range(3):
                worker.run(submit(handle, remote))
