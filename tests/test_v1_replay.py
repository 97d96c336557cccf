"""A peer that knows only version 1 uses our daemon and session: recorded exchanges, replayed byte by byte.

The records tell what another implementation's session answered. Types, sequences, control names and versions,
error codes and results must be the same; addresses, segment names and the wording of errors are ours. What its
contract lists as faults not to copy has tests of its own at the end.
"""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Any

import pytest
from testbed import vectors, wire
from testbed.daemon import Daemon
from testbed.extensions import Parent, ended
from testbed.wire import V1Parent, v1_session

SESSION: dict[str, Any] | None = vectors.load("slr3_v1_session.json")
TRANSCRIPT: dict[str, Any] | None = vectors.load("slr3_v1_transcript.json")
CASES = SESSION["cases"] if SESSION else []

NOT_TO_COPY = {"task_error_nonascii_kills_session"}
"""Recorded faults: `test_an_error_in_another_alphabet_is_cut_and_the_session_lives` holds what is right."""

UNKNOWN = r"unknown|stale|no such|not (known|found|held|allocated|live)|does not (exist|name|hold)|names no"
REASONS = {
    "control_undecodable_empty": r"truncat|short|missing|at least|bytes|exceeds",
    "task_before_commit": r"no callable|not (registered|committed|live|installed)|unknown|unregistered",
    "commit_without_prepare": r"prepared",
    "commit_twice": r"prepared",
    "abort_then_commit": r"prepared",
    "prepare_serialized": r"serialized|kind",
    "prepare_dispatcher_chip": r"chip|kind|python_import",
    "prepare_missing_module": r"nope_mod",
    "commit_wrong_kind": r"mismatch|kind|prepared",
    "alloc_zero": r"zero|0",
    "alloc_7_bytes": r"nbytes|8|7|truncat|bytes",
    "alloc_9_bytes": r"nbytes|8|9|trailing|left|bytes",
    "alloc_huge": r"limit|large|exceed|memory|exhaust|quota|too",
    "free_wrong_worker": r"worker",
    "free_19_bytes": r"generation|19|20|truncat|bytes",
    "copy_from_past_end": r"range|exceed|past|beyond|outside",
    "copy_from_with_data": r"data|trailing|left",
    "copy_to_unknown_buffer": UNKNOWN,
    "copy_to_stale_generation": UNKNOWN,
    "copy_after_free": UNKNOWN + "|freed",
    "export_wrong_worker": r"worker",
    "export_unknown": UNKNOWN,
    "import_wrong_worker": r"worker",
    "import_bad_profile": r"profile",
    "release_unknown_import": UNKNOWN,
    "release_wrong_worker": r"worker",
    "task_nbytes_mismatch": r"nbytes|bytes|match|mismatch",
    "task_range": r"range|exceed|outside|beyond",
    "task_unknown_buffer": UNKNOWN,
    "task_stale_generation": UNKNOWN,
    "task_other_owner_device": r"worker|owner|import",
    "task_window_unknown": UNKNOWN + "|import",
    "task_error_ascii_9000_truncated": r"xxxx",
}
"""What our text for each recorded error must speak of, in any case of letters."""


@pytest.fixture
def address(shared_daemon: Daemon) -> tuple[str, int]:
    return (shared_daemon.host, shared_daemon.port)


def _recorded_manifest() -> dict[str, Any]:
    assert SESSION is not None
    return wire.manifest(**SESSION["manifest"])


# --- results, without what may differ ---------------------------------------------------------------------


def _normal_result(control: str, result: bytes) -> object:
    """The result with addresses taken out and a segment's name reduced to whether it is a legal one."""
    if control == "ALLOC_REMOTE_BUFFER":
        return result[:32] + result[40:]
    if control == "EXPORT_BUFFER":
        cursor = wire.Cursor(result)
        before, _, after = cursor.take(48), cursor.take(8), cursor.take(20)
        profile, name, reserved = cursor.text(128), cursor.text(4096), cursor.number("I")
        cursor.end()
        return (before, after, profile, bool(re.fullmatch(r"psm_[0-9A-Za-z_]+", name)), reserved)
    if control == "IMPORT_BUFFER":
        return result[:52] + result[60:]
    return result


def _check_reply(case: str, step: dict[str, Any], reply: wire.Reply) -> None:
    assert wire.FRAME_NAMES[reply.kind] == step["reply_type"]
    assert reply.sequence == step["reply_sequence"]
    assert reply.control == step.get("control", "")
    if reply.control:
        assert reply.control_version == step["control_version"]
    assert reply.error_code == step["error_code"], reply.error
    if step["error_code"] == 0:
        recorded = bytes.fromhex(step.get("result_hex", ""))
        assert _normal_result(reply.control, reply.result) == _normal_result(reply.control, recorded)
    elif step["error_prefix"] == step["error_last_line"]:
        # No traceback: the whole text belongs to the contract.
        assert reply.error == step["error_last_line"]
    else:
        assert reply.error.startswith(step["error_prefix"] + ": "), reply.error
        assert re.search(REASONS[case], reply.error.removeprefix(step["error_prefix"]), re.IGNORECASE), (
            reply.error
        )


@pytest.mark.skipif(SESSION is None, reason=vectors.MISSING)
@pytest.mark.parametrize("case", [c for c in CASES if c["name"] not in NOT_TO_COPY], ids=lambda c: c["name"])
def test_recorded_case(case: dict[str, Any], address: tuple[str, int]) -> None:
    with v1_session(address, _recorded_manifest()) as parent:
        assert parent.hello_frame.encode() == bytes.fromhex(case["hello_hex"])
        for step in case["steps"]:
            parent.command.sendall(bytes.fromhex(step["request_hex"]))
            if "reply_type" in step:
                frame = wire.receive_frame(parent.command)
                assert (frame.session_id, frame.worker_id) == (parent.session_id, parent.worker_id)
                _check_reply(case["name"], step, parent.decode_reply(frame))
        if not case["loop_end"].startswith("EOFError"):
            # The session ends by itself: SHUTDOWN, or a frame that it cannot trust. It sends nothing more.
            assert wire.at_end(parent.command)
    ended(parent)


@pytest.mark.skipif(SESSION is None, reason=vectors.MISSING)
def test_every_recorded_case_ends_the_same_with_extensions(
    features: tuple[str, ...], address: tuple[str, int]
) -> None:
    """What version 1 refuses is refused with the same reason whatever was negotiated, and ends its session or does not."""
    assert SESSION is not None
    parents = []
    for case in CASES:
        if case["name"] in NOT_TO_COPY:
            continue
        request = wire.manifest(**{**SESSION["manifest"], "feature_flags": list(features)})
        with contextlib.closing(Parent(request, wire.bootstrap(address, request))) as parent:
            parents.append(parent)
            # With pipelining sequences count from 1, and some records begin later.
            for _ in range(wire.HEADER.unpack_from(bytes.fromhex(case["steps"][0]["request_hex"]))[5] - 1):
                assert parent.control("COMM_INIT").error_code == 1
            for step in case["steps"]:
                _send_adapted(parent, bytes.fromhex(step["request_hex"]))
                if "reply_type" in step:
                    _check_reply(case["name"], step, parent.reply())
            if not case["loop_end"].startswith("EOFError"):
                assert wire.at_end(parent.command), case["name"]
    for parent in parents:
        ended(parent)


def _send_adapted(parent: Parent, recorded: bytes) -> None:
    """A recorded frame with the payload that was negotiated; what is no frame goes as it is."""
    head = list(wire.HEADER.unpack(recorded[: wire.HEADER.size]))
    payload = parent.adapt(head[2], recorded[wire.HEADER.size :])
    head[6] = len(payload)
    parent.command.sendall(wire.HEADER.pack(*head) + payload)


def test_every_recorded_case_is_known() -> None:
    """A new record must get a line in REASONS; that the records are absent is counted as a skip."""
    if SESSION is None:
        pytest.skip(vectors.MISSING)
    failing = {
        case["name"]
        for case in CASES
        for step in case["steps"]
        if step.get("error_code") and step["error_prefix"] != step["error_last_line"]
    }
    assert failing - NOT_TO_COPY <= set(REASONS)


# --- the whole transcript ---------------------------------------------------------------------------------


class _Transcript:
    """Plays the parent's side of the recorded exchange; remembers what later requests must carry."""

    def __init__(self, parents: dict[str, V1Parent], events: list[dict[str, Any]]) -> None:
        self._parents = parents
        self._events = events
        self._export = b""

    def play(self) -> int:
        """Returns how many requests were replayed."""
        count = 0
        for at, event in enumerate(self._events):
            if event.get("dir") != "parent->session" or "hex" not in event:
                continue
            parent = self._parents[event["lane"].partition(".")[0]]
            parent.command.sendall(self._request(event))
            frame = wire.receive_frame(parent.command)
            self._check(event, self._answer_to(at), frame)
            count += 1
        return count

    def _request(self, event: dict[str, Any]) -> bytes:
        recorded = bytes.fromhex(event["hex"])
        if event.get("control") != "IMPORT_BUFFER":
            return recorded
        # An import repeats the export's result, in which address and segment name are ours.
        access = recorded[wire.HEADER.size + 12 :][:8]
        command = access + self._export + struct.pack("<I", 0)
        payload = wire.control_payload("IMPORT_BUFFER", command)
        kind, session, worker, sequence = (
            wire.CONTROL,
            event["session_id"],
            event["worker_id"],
            event["sequence"],
        )
        return wire.Frame(kind, session, worker, sequence, payload).encode()

    def _answer_to(self, at: int) -> wire.Frame | None:
        """The recorded answer; None when it was an error, whose text the record leaves out."""
        for event in self._events[at + 1 :]:
            if event.get("dir") == "parent->session":
                return None
            if event.get("lane") == self._events[at]["lane"] and "hex" in event:
                raw = bytes.fromhex(event["hex"])
                head, _ = wire.decode_header(raw[: wire.HEADER.size])
                payload = raw[wire.HEADER.size :]
                return wire.Frame(head.kind, head.session_id, head.worker_id, head.sequence, payload)
        return None

    def _check(self, event: dict[str, Any], recorded: wire.Frame | None, frame: wire.Frame) -> None:
        assert (frame.session_id, frame.worker_id) == (event["session_id"], event["worker_id"])
        assert frame.sequence == event["sequence"]
        reply = wire.decode_reply(frame)
        assert reply.control == event.get("control", "")
        if recorded is None:
            assert reply.error_code == 1
            return
        expected = wire.decode_reply(recorded)
        assert reply.error_code == expected.error_code, reply.error
        assert reply.kind == expected.kind
        assert _normal_result(reply.control, reply.result) == _normal_result(reply.control, expected.result)
        if reply.control == "EXPORT_BUFFER":
            self._export = reply.result


@pytest.mark.skipif(TRANSCRIPT is None, reason=vectors.MISSING)
def test_recorded_transcript(address: tuple[str, int]) -> None:
    assert TRANSCRIPT is not None
    requests = [entry["json"] for entry in TRANSCRIPT["bootstrap"] if entry["dir"] == "request"]
    events = TRANSCRIPT["events"]
    with v1_session(address, requests[0]) as w0, v1_session(address, requests[1]) as w1:
        parents = {"w0": w0, "w1": w1}
        for event in events:
            if event.get("frame_type") == "HELLO":
                parent = parents[event["lane"].partition(".")[0]]
                assert parent.hello_frame.encode() == bytes.fromhex(event["hex"])
        health = [e for e in events if e.get("frame_type") == "HEALTH" and e["lane"] == "w0.health"][:3]
        assert [w0.read_health().encode() for _ in health] == [bytes.fromhex(e["hex"]) for e in health]
        assert _Transcript(parents, events).play() >= 20
    ended(w0)
    ended(w1)


# --- what the contract says and no record shows -----------------------------------------------------------


def test_the_health_lane_goes_on_while_nothing_else_happens(address: tuple[str, int]) -> None:
    with v1_session(address, wire.manifest(worker_id=2)) as parent:
        frames = [parent.read_health() for _ in range(4)]
    assert [frame.sequence for frame in frames] == [1, 2, 3, 4]
    assert {(frame.kind, frame.worker_id, frame.payload) for frame in frames} == {(wire.HEALTH, 2, b"")}
    ended(parent)


def test_sequences_are_copied_and_not_checked(address: tuple[str, int]) -> None:
    with v1_session(address, wire.manifest(targets=["bench_callables:noop"])) as parent:
        for sequence in (9, 9, 2, 0, 2**64 - 1):
            assert parent.task(wire.task_payload("bench_callables:noop"), sequence).error_code == 0
    ended(parent)


def test_an_error_in_another_alphabet_is_cut_and_the_session_lives(address: tuple[str, int]) -> None:
    """Section 13.1: cut at a character's boundary, at most 4,096 bytes; the session must answer what follows."""
    with v1_session(address, wire.manifest(targets=["casemod:boom_unicode"])) as parent:
        reply = parent.task(wire.task_payload("casemod:boom_unicode"))
        assert reply.error_code == 1
        assert 4000 < len(reply.error_bytes) <= 4096
        assert "ä€𝄞" in reply.error_bytes.decode("utf-8")
        assert parent.control("ALLOC_REMOTE_BUFFER", struct.pack("<Q", 8)).error_code == 0
    ended(parent)


def test_a_target_that_is_not_callable_is_refused_at_prepare(address: tuple[str, int]) -> None:
    with v1_session(address, wire.manifest()) as parent:
        reply = parent.control("PREPARE_REGISTER_CALLABLE", wire.register_command("casemod:notcallable"))
        assert reply.error_code == 1
        assert "callable" in reply.error
        parent.register("bench_callables:noop")
        assert parent.task(wire.task_payload("bench_callables:noop")).error_code == 0
    ended(parent)


@pytest.mark.parametrize("bad", ["casemod:notcallable", "nope_mod:f", "bench_callables:does_not_exist"])
def test_a_manifest_with_a_bad_target_fails_the_start(bad: str, address: tuple[str, int]) -> None:
    reply = wire.bootstrap(address, wire.manifest(targets=[bad]))
    assert reply["ok"] is False
    assert re.search(bad.partition(":")[0] + "|callable", str(reply["error"])), reply
    with v1_session(address, wire.manifest()) as parent:
        assert parent.hello.ready
    ended(parent)


@pytest.mark.parametrize(
    "changes", [{"session_id": 0}, {"worker_id": -1}, {"transport": "tcp"}, {"platform": ""}]
)
def test_a_manifest_against_the_contract_is_refused(
    changes: dict[str, Any], address: tuple[str, int]
) -> None:
    reply = wire.bootstrap(address, wire.manifest(**changes))
    assert reply["ok"] is False
    assert next(iter(changes)) in str(reply["error"])


def test_shutdown_as_the_very_first_frame_ends_the_session(address: tuple[str, int]) -> None:
    """Section 10: what a v1 parent sends while it cleans up, without reading HELLO."""
    with v1_session(address, wire.manifest(), health=False) as parent:
        parent.send(wire.SHUTDOWN, sequence=0)
        assert wire.at_end(parent.command)
    ended(parent)


def test_end_of_file_ends_the_session_and_frees_its_buffers(address: tuple[str, int]) -> None:
    with v1_session(address, wire.manifest()) as parent:
        parent.alloc(1 << 20)
    ended(parent)


def test_a_task_writes_a_buffer_and_sees_inline_bytes(address: tuple[str, int]) -> None:
    with v1_session(address, wire.manifest(worker_id=1, targets=["tensor_callables:increment"])) as parent:
        key = parent.alloc(16)
        parent.copy_to(key, bytes(range(16)))
        buffer_id, generation = struct.unpack("<QQ", key)
        place = wire.sidecar(
            address_space=2, owner_worker_id=1, buffer_id=buffer_id, generation=generation, offset=4, nbytes=8
        )
        reply = parent.task(
            wire.task_payload("tensor_callables:increment", [(wire.tensor([8], 5), place)], [100])
        )
        assert reply.error_code == 0, reply.error
        inline = wire.sidecar(address_space=1, nbytes=4, inline_len=4)
        reply = parent.task(
            wire.task_payload("tensor_callables:increment", [(wire.tensor([4], 5), inline)], [1], b"abcd")
        )
        assert reply.error_code == 0, reply.error
        changed = [*range(4), *range(104, 112), *range(12, 16)]
        assert parent.copy_from(key, 16).result == bytes(changed)
        assert parent.free(key).error_code == 0
    ended(parent)


def test_shape_words_beyond_the_dimensions_are_ignored(address: tuple[str, int]) -> None:
    """Section 13.3: another implementation's parent sends whatever was in memory there."""
    record = struct.pack("<Q5III8x", 0, 4, 0xDEAD, 0xBEEF, 7, 9, 1, 5)
    inline = wire.sidecar(address_space=1, nbytes=4, inline_len=4)
    with v1_session(address, wire.manifest(targets=["bench_callables:noop"])) as parent:
        reply = parent.task(wire.task_payload("bench_callables:noop", [(record, inline)], (), b"abcd"))
        assert reply.error_code == 0, reply.error
    ended(parent)


def test_an_imported_window_begins_at_the_export_s_offset(address: tuple[str, int]) -> None:
    """Section 13.2: the descriptor's offset is absolute in the owner's buffer."""
    target = "tensor_callables:increment"
    owner_request = wire.manifest(session_id=11, worker_id=0)
    with (
        v1_session(address, owner_request) as owner,
        v1_session(address, wire.manifest(session_id=12, worker_id=1, targets=[target])) as importer,
    ):
        key = owner.alloc(32)
        ask = (
            struct.pack("<i", 0)
            + key
            + struct.pack("<QQI", 8, 16, 3)
            + wire.text("sim")
            + struct.pack("<I", 0)
        )
        export = owner.control("EXPORT_BUFFER", ask)
        assert export.error_code == 0, export.error
        ask = struct.pack("<iI", 1, 3) + export.result + struct.pack("<I", 0)
        imported = importer.control("IMPORT_BUFFER", ask)
        assert imported.error_code == 0, imported.error
        buffer_id, generation, import_id = struct.unpack("<QQQ", imported.result[8:32])
        window = wire.sidecar(
            address_space=3,
            owner_worker_id=0,
            buffer_id=buffer_id,
            generation=generation,
            offset=12,
            nbytes=4,
            rkey=import_id,
        )
        reply = importer.task(wire.task_payload(target, [(wire.tensor([4], 5), window)], [7]))
        assert reply.error_code == 0, reply.error
        assert owner.copy_from(key, 32).result == bytes(12) + b"\x07" * 4 + bytes(16)
        release = imported.result[:32] + struct.pack("<I", 0)
        assert importer.control("RELEASE_IMPORT", release).error_code == 0
    ended(owner)
    ended(importer)
