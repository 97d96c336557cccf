"""Imports across hosts (`peer_fetch`): bytes move between two sessions, and not through the parent.

There is one machine. A worker with `same_host=False` shares memory with no other; where the test runs as root, a daemon with
a `/dev/shm` of its own cannot open what sessions outside publish, which is what another host looks like.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import echelon as ec
import numpy as np
import pytest
from testbed import procfs, residual
from testbed.daemon import Daemon
from testbed.v1_session import V1Daemon
from testbed.wait import eventually

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT
EXISTING, NO_DEP = ec.TensorArgType.OUTPUT_EXISTING, ec.TensorArgType.NO_DEP
MIB = 1 << 20
ESTABLISHED, LISTEN = "01", "0A"

OTHER_SHM = [
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    *('mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"),
]


@dataclass
class Hosts:
    """A worker with two remote workers, which share no memory."""

    worker: ec.Worker
    owner: int
    importer: int
    daemons: dict[int, Daemon]
    pids: dict[int, int] = field(default_factory=dict)

    def start(self) -> None:
        """After the callables were registered."""
        self.worker.init()
        for worker_id, daemon in self.daemons.items():
            (self.pids[worker_id],) = sessions_of(daemon)

    def register(self, name: str, **options) -> ec.CallableHandle:
        return self.worker.register(ec.RemoteCallable(f"peer_tasks:{name}"), **options)

    def run(self, handle, *tensors, on: int | None = None, value: int = 0) -> ec.RunReport:
        target = self.importer if on is None else on
        args, config = ec.TaskArgs.of(*tensors), ec.CallConfig(block_dim=value)
        return self.worker.run(lambda orch, a, c: orch.submit_next_level(handle, args, config, worker=target))

    def buffer(self, nbytes: int) -> ec.RemoteBufferHandle:
        """On the owner; byte `n` is `n % 251`."""
        made = self.worker.remote_malloc(self.owner, nbytes)
        self.worker.remote_copy_to(made, pattern(nbytes))
        return made

    def window(self, buffer, offset: int = 0, nbytes: int | None = None, access: str = "readwrite"):
        export = self.worker.remote_export(buffer, offset=offset, nbytes=nbytes, access=access)
        assert export.transport_profile == "tcp"
        return self.worker.remote_import(export, worker=self.importer)

    def content(self, buffer) -> np.ndarray:
        got = np.zeros(buffer.nbytes, np.uint8)
        self.worker.remote_copy_from(buffer, got)
        return got


def pattern(nbytes: int) -> np.ndarray:
    return (np.arange(nbytes) % 251).astype(np.uint8)


def ref(buffer, nbytes: int | None = None, offset: int = 0) -> ec.RemoteTensorRef:
    count = buffer.nbytes - offset if nbytes is None else nbytes
    return ec.RemoteTensorRef(buffer, offset=offset, shape=(count,), dtype=ec.DataType.UINT8)


def sessions_of(daemon: Daemon) -> list[int]:
    return [p.pid for p in daemon.children() if p.ppid == daemon.pid]


@pytest.fixture(params=["declared", pytest.param("separate", marks=pytest.mark.needs_root)])
def hosts(request, tmp_path: Path, callables_path: Path) -> Iterator[Hosts]:
    """Two workers, each with its own daemon and one sub worker. Callables are registered before the first run."""
    separate = request.param == "separate"
    if separate:
        if shutil.which("unshare") is None:
            pytest.skip("no unshare: a private mount namespace cannot be made")
        tried = subprocess.run([*OTHER_SHM, "true"], capture_output=True, text=True, timeout=60)
        if tried.returncode != 0:
            pytest.skip(f"no private mount namespace here: {tried.stderr.strip()}")
    (tmp_path / "other").mkdir()
    one = Daemon(tmp_path, pythonpath=[callables_path])
    other = Daemon(tmp_path / "other", pythonpath=[callables_path], through=OTHER_SHM if separate else ())
    with one, other:
        worker = ec.Worker(level=4, num_sub_workers=0)
        owner = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=one.endpoint, num_sub_workers=1))
        spec = ec.RemoteWorkerSpec(endpoint=other.endpoint, num_sub_workers=1, same_host=separate)
        importer = worker.add_remote_worker(spec)
        try:
            yield Hosts(worker, owner, importer, {owner: one, importer: other})
        finally:
            worker.close()


def segments_of(pid: int) -> set[str]:
    """What a session has published; a name says whose it is."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_") and f"{pid:08x}" in name}


def parent_bytes() -> int:
    """Bytes that this process has sent and received over its TCP connections, by the kernel's count."""
    total = 0
    for number, target in procfs.descriptors(os.getpid()).items():
        if not target.startswith("socket:"):
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as twin:
            if twin.family == socket.AF_INET and twin.type == socket.SOCK_STREAM:
                info = twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += sum(struct.unpack_from("<QQ", info, 120))
    return total


def connections(pid: int) -> list[tuple[str, int, int, int, int]]:
    """State, local port, remote port, unread and unsent bytes of each TCP socket of a process."""
    inodes = {
        t.removeprefix("socket:[").removesuffix("]")
        for t in procfs.descriptors(pid).values()
        if t.startswith("socket:")
    }
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes:
            local, remote = (int(fields[at].split(":")[1], 16) for at in (1, 2))
            unsent, unread = (int(part, 16) for part in fields[4].split(":"))
            found.append((fields[3], local, remote, unread, unsent))
    return found


def peer_lane(hosts: Hosts) -> tuple[int, int]:
    """Ports of the one connection from importer to owner: the importer's and the owner's."""
    listening = {local for state, local, *_ in connections(hosts.pids[hosts.owner]) if state == LISTEN}
    lanes = [
        (local, remote)
        for state, local, remote, *_ in connections(hosts.pids[hosts.importer])
        if state == ESTABLISHED and remote in listening
    ]
    assert len(lanes) == 1, lanes
    return lanes[0]


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_r_234_a_window_at_an_offset_is_read_and_written_exactly(hosts: Hosts) -> None:
    add, copy = hosts.register("orch_add"), hosts.register("orch_copy")
    hosts.start()
    buffer = hosts.buffer(3 * MIB)
    expected = pattern(3 * MIB)
    window = hosts.window(buffer, offset=1001, nbytes=2 * MIB + 7)
    # A part of the window, then all of it.
    hosts.run(add, (ref(window, 1000, offset=5), INOUT), value=3)
    expected[1006:2006] += 3
    assert (hosts.content(buffer) == expected).all()
    hosts.run(add, (ref(window), INOUT), value=1)
    expected[1001 : 1001 + 2 * MIB + 7] += 1
    assert (hosts.content(buffer) == expected).all()
    # What is read is what is there now, whoever wrote it.
    hosts.worker.remote_copy_to(buffer, np.full(4, 77, np.uint8), offset=1001)
    seen = hosts.worker.remote_malloc(hosts.importer, 6)
    hosts.run(copy, (ref(window, 6), INPUT), (ref(seen), OUTPUT))
    assert hosts.content(seen).tolist() == [77] * 4 + expected[1005:1007].tolist()
    hosts.worker.remote_release_import(window)
    hosts.worker.remote_free(buffer)


def test_nothing_of_it_goes_through_the_parent(hosts: Hosts) -> None:
    add = hosts.register("orch_add")
    hosts.start()
    buffer = hosts.buffer(16 * MIB)
    for offset in range(0, 16 * MIB, 64 * 1024):  # small pieces go on the command lane
        hosts.worker.remote_copy_from(buffer, bytearray(64 * 1024), offset=offset)
    window = hosts.window(buffer)
    before = parent_bytes()
    assert before > 16 * MIB, "the count sees what did go through the parent"
    hosts.run(add, (ref(window), INOUT), value=1)
    assert parent_bytes() - before < MIB // 4
    assert (hosts.content(buffer) == pattern(16 * MIB) + 1).all()


def test_owner_and_importer_take_turns_in_one_graph(hosts: Hosts) -> None:
    """Dependencies cross the two views of one range: a chain over both hosts gives what one after the other gives."""
    add = hosts.register("orch_add")
    hosts.start()
    buffer = hosts.buffer(64 * 1024)
    window = hosts.window(buffer, offset=100, nbytes=50_000)
    rounds = 10

    def chain(orch, args, config):
        for _ in range(rounds):
            here = ec.TaskArgs.of((ref(buffer), INOUT))
            there = ec.TaskArgs.of((ref(window), INOUT))
            orch.submit_next_level(add, here, ec.CallConfig(block_dim=1), worker=hosts.owner)
            orch.submit_next_level(add, there, ec.CallConfig(block_dim=2), worker=hosts.importer)

    hosts.worker.run(chain)
    expected = pattern(64 * 1024) + rounds
    expected[100:50_100] += 2 * rounds
    assert (hosts.content(buffer) == expected).all()


def test_a_sub_worker_that_started_earlier_sees_what_was_fetched(hosts: Hosts) -> None:
    forward = hosts.register("orch_to_sub")
    hosts.register("add_one", inner=True)
    hosts.start()
    buffer = hosts.buffer(5000)
    for times in (1, 2):
        window = hosts.window(buffer, offset=8, nbytes=4000)
        hosts.run(forward, (ref(window), INOUT))
        expected = pattern(5000)
        expected[8:4008] += times
        assert (hosts.content(buffer) == expected).all()
        hosts.worker.remote_release_import(window)


def test_tags_decide_what_is_moved(hosts: Hosts) -> None:
    fill, part, spoil = (hosts.register(f"orch_{name}") for name in ("fill", "fill_part", "spoil"))
    hosts.start()
    buffer = hosts.buffer(1000)
    window = hosts.window(buffer, offset=10, nbytes=100)
    writes = hosts.window(buffer, offset=10, nbytes=100, access="write")
    expected = pattern(1000)
    hosts.run(fill, (ref(writes), OUTPUT), value=9)
    expected[10:110] = 9
    assert (hosts.content(buffer) == expected).all()
    # What the task leaves as it is, is left as it is.
    hosts.run(part, (ref(window), EXISTING), value=4)
    expected[10:60] = 4
    assert (hosts.content(buffer) == expected).all()
    with pytest.raises(ec.TaskError, match="after writing"):
        hosts.run(spoil, (ref(window), INOUT))
    assert (hosts.content(buffer) == expected).all(), "a task that failed writes nothing back"


def test_what_a_write_back_cannot_do_is_refused_at_submit(hosts: Hosts) -> None:
    """Design §15.5."""
    hosts.start()
    buffer = hosts.buffer(100)
    window, writes = hosts.window(buffer), hosts.window(buffer, access="write")
    with pytest.raises(ec.HandleError, match="lose what others write"):
        ec.TaskArgs().add_tensor(ref(window), NO_DEP)
    with pytest.raises(ec.HandleError, match="needs read access too"):
        ec.TaskArgs().add_tensor(ref(writes), EXISTING)
    # Where it is, it is as good as ever.
    ec.TaskArgs().add_tensor(ref(buffer), NO_DEP)


def test_a_thousand_fetches_leave_descriptors_flat(hosts: Hosts) -> None:
    add = hosts.register("orch_add")
    hosts.start()
    buffer = hosts.buffer(100)
    window = hosts.window(buffer, offset=1, nbytes=50)

    def many(count: int) -> None:
        args = ec.TaskArgs.of((ref(window), INOUT))

        def graph(orch, a, c):
            for _ in range(count):
                orch.submit_next_level(add, args, ec.CallConfig(block_dim=1), worker=hosts.importer)

        hosts.worker.run(graph)

    def counts() -> dict[int, int]:
        return {pid: len(procfs.descriptors(pid)) for pid in hosts.pids.values()}

    many(10)
    before = counts()
    many(1000)
    assert counts() == before
    expected = pattern(100)
    expected[1:51] += 1010 % 256
    assert (hosts.content(buffer) == expected).all()
    hosts.worker.remote_release_import(window)
    # The lane goes with the import, on both sides.
    eventually(lambda: counts()[hosts.pids[hosts.importer]] < before[hosts.pids[hosts.importer]], 20)


# --- who dies -------------------------------------------------------------------------------------------------------


def test_an_owner_that_is_killed_during_a_fetch_fails_the_task_alone(hosts: Hosts) -> None:
    """R-085: and as infrastructure: the callable did nothing wrong, and was not even called."""
    add, copy, spoil = (hosts.register(f"orch_{name}") for name in ("add", "copy", "spoil"))
    hosts.start()
    buffer, own = hosts.buffer(MIB), hosts.worker.remote_malloc(hosts.importer, 16)
    window = hosts.window(buffer)
    hosts.run(add, (ref(window), INOUT), value=1)
    _, owner_port = peer_lane(hosts)
    owner = hosts.pids[hosts.owner]
    os.kill(owner, signal.SIGSTOP)
    failures: list[BaseException] = []

    def runs() -> None:
        try:
            hosts.run(add, (ref(window), INOUT), value=1)
        except ec.EchelonError as error:
            failures.append(error)

    thread = threading.Thread(target=runs)
    thread.start()
    try:
        # The importer has asked, and the owner cannot answer.
        eventually(
            lambda: any(local == owner_port and unread for _, local, _, unread, _ in connections(owner)), 60
        )
    finally:
        residual.note_descendants()
        os.kill(owner, signal.SIGKILL)
        thread.join(60)
    (error,) = failures
    text = str(error)
    assert "worker 0" in text and "buffer 1" in text and "import" in text, text
    assert type(error) is ec.EndpointLost, error
    (failure,) = error.failures
    assert (failure.outcome, failure.worker_id) == ("endpoint_lost", hosts.importer)
    # It is tried again where that does no harm, a few times.
    with pytest.raises(ec.EndpointLost, match="buffer 1") as caught:
        args = ec.TaskArgs.of((ref(window, 16), INPUT), (ref(own), OUTPUT))
        hosts.worker.run(
            lambda orch, a, c: orch.submit_next_level(copy, args, worker=hosts.importer, idempotent=True)
        )
    assert caught.value.failures[0].attempts > 1
    # What user code raises there is still user code's.
    with pytest.raises(ec.TaskError, match="after writing"):
        hosts.run(spoil, (ref(own), INOUT))
    hosts.run(add, (ref(own), INOUT), value=5)
    assert hosts.content(own).tolist() == [(255 + 5) % 256] * 16


def test_r_085_the_loss_of_a_process_below_a_session_is_not_user_code_s(hosts: Hosts) -> None:
    kill, spoil = hosts.register("orch_dying_sub"), hosts.register("orch_spoil")
    hosts.register("die", inner=True)
    hosts.start()
    own = hosts.worker.remote_malloc(hosts.importer, 16)
    with pytest.raises(ec.EndpointLost, match="signal 9") as caught:
        hosts.run(kill)
    assert [failure.outcome for failure in caught.value.failures] == ["endpoint_lost"]
    with pytest.raises(ec.TaskError, match="after writing"):
        hosts.run(spoil, (ref(own), INOUT))


def test_r_239_an_importer_that_is_killed_during_a_write_back_harms_nobody(
    hosts: Hosts, tmp_path: Path
) -> None:
    hold, add = hosts.register("orch_hold"), hosts.register("orch_add")
    hosts.start()
    nbytes = 16 * MIB
    buffer = hosts.buffer(nbytes)
    window = hosts.window(buffer)
    hosts.run(add, (ref(window, 1), INOUT), value=0)
    _, owner_port = peer_lane(hosts)
    owner, importer = hosts.pids[hosts.owner], hosts.pids[hosts.importer]
    segments = segments_of(owner)
    assert len(segments) == 1
    path = np.frombuffer(str(tmp_path / "task").encode(), np.uint8)
    failures: list[BaseException] = []

    def runs() -> None:
        try:
            hosts.run(hold, (ref(window), INOUT), (path, INPUT), value=200)
        except ec.EchelonError as error:
            failures.append(error)

    thread = threading.Thread(target=runs)
    thread.start()
    try:
        eventually((tmp_path / "task.began").exists, 60)
        os.kill(owner, signal.SIGSTOP)
        (tmp_path / "task.go").touch()
        # More is on its way than the owner's sockets take.
        eventually(
            lambda: any(r == owner_port and unsent for _, _, r, _, unsent in connections(importer)), 60
        )
        residual.note_descendants()
        os.kill(importer, signal.SIGKILL)
    finally:
        os.kill(owner, signal.SIGCONT)
        thread.join(60)
    assert [type(error) for error in failures] != [], "the task ended"
    assert segments_of(owner) == segments
    # The owner goes on; what is there is old or new, byte for byte, and nothing comes later (`peer_fence`).
    got, old = hosts.content(buffer), pattern(nbytes)
    assert ((got == old) | (got == 200)).all()
    assert not any(local == owner_port and state == ESTABLISHED for state, local, *_ in connections(owner))
    hosts.run(add, (ref(buffer), INOUT), value=1, on=hosts.owner)
    assert (hosts.content(buffer) == got + 1).all()


def test_r_239_an_importer_that_closes_leaves_the_owner_s_segment(
    tmp_path: Path, callables_path: Path
) -> None:
    """Both on one host, where the importer has the owner's segment mapped."""
    with Daemon(tmp_path, pythonpath=[callables_path]) as daemon:
        worker = ec.Worker(level=4, num_sub_workers=0)
        ids = [worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint)) for _ in range(2)]
        try:
            worker.init()
            buffer = worker.remote_malloc(ids[0], 4096)
            before = sessions_of(daemon)
            worker.remote_import(worker.remote_export(buffer), worker=ids[1])
            (name,) = [name for pid in before for name in segments_of(pid)]
            (importer,) = [pid for pid in before if not segments_of(pid)]
            assert any(name in path for _, path in procfs.mappings(importer)), "it has it mapped"
            residual.note_descendants()
            os.kill(importer, signal.SIGKILL)
            eventually(lambda: importer not in sessions_of(daemon), 30)
            assert name in os.listdir("/dev/shm")
            worker.remote_copy_to(buffer, b"still here")
        finally:
            worker.close()


# --- who takes part -------------------------------------------------------------------------------------------------


def test_r_116_an_import_that_fails_leaves_none_of_those_before_it(hosts: Hosts) -> None:
    """Imports on several workers are calls of the user: what was made is released, and the owner is free at once."""
    hosts.start()
    buffer = hosts.buffer(4096)
    export = hosts.worker.remote_export(buffer, access="read")
    made: list[ec.RemoteBufferHandle] = []
    with pytest.raises(ec.HandleError, match="readwrite access asked for"):
        for access in ("read", "read", "readwrite"):
            made.append(hosts.worker.remote_import(export, worker=hosts.importer, access=access))
    assert len(made) == 2

    def held() -> int:
        return len(procfs.descriptors(hosts.pids[hosts.importer]))

    before = held()
    for window in made:
        hosts.worker.remote_release_import(window)
    assert held() < before, "the importer holds nothing of them"
    hosts.worker.remote_free(buffer)
    assert buffer.released
    with pytest.raises(ec.EchelonError):
        hosts.worker.remote_import(export, worker=hosts.importer)


def test_an_importer_that_knows_version_1_gets_the_segment(daemon: Daemon) -> None:
    """An export is made once, for whoever comes."""
    with V1Daemon({}) as old:
        worker = ec.Worker(level=4, num_sub_workers=0)
        owner = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint))
        importer = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=old.endpoint))
        away = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=old.endpoint, same_host=False))
        try:
            worker.init()
            buffer = worker.remote_malloc(owner, 64)
            export = worker.remote_export(buffer, offset=8, nbytes=16, access="readwrite")
            window = worker.remote_import(export, worker=importer)
            assert window.nbytes == 16
            with pytest.raises(ec.EchelonError, match=r"orch\.copy"):
                worker.remote_import(export, worker=away)
            worker.remote_release_import(window)
            worker.remote_free(buffer)
        finally:
            worker.close()
        assert old.violations == []


def test_a_worker_elsewhere_cannot_import_from_version_1(daemon: Daemon) -> None:
    with V1Daemon({}) as old:
        worker = ec.Worker(level=4, num_sub_workers=0)
        owner = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=old.endpoint))
        away = worker.add_remote_worker(ec.RemoteWorkerSpec(endpoint=daemon.endpoint, same_host=False))
        try:
            worker.init()
            buffer = worker.remote_malloc(owner, 64)
            export = worker.remote_export(buffer)
            assert export.transport_profile == "sim"
            with pytest.raises(ec.EchelonError, match=r"same_host=False.*orch\.copy"):
                worker.remote_import(export, worker=away)
            worker.remote_free(buffer)
        finally:
            worker.close()
        assert old.violations == []
