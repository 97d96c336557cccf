"""Chip callables byte by byte: what a session refuses before it keeps anything, and the controls of `staged_blobs`."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from testbed import chips, wire
from testbed.chips import (
    STAGE_APPEND,
    STAGE_BEGIN,
    STAGE_DROP,
    STAGE_SEAL,
    STAGED_BLOBS_BIT,
    StagingParent,
    append,
    descriptor,
    machine_code,
    needs_cc,
    payload,
    register_command,
)
from testbed.daemon import Daemon

pytestmark = needs_cc

SCALE = (1, 0, 2)
PREPARE, COMMIT, UNREGISTER = (
    "PREPARE_REGISTER_CALLABLE",
    "COMMIT_REGISTER_CALLABLE",
    "UNREGISTER_CALLABLE",
)


@contextmanager
def session(daemon: Daemon, *features: str, **changes: object) -> Iterator[StagingParent]:
    request = wire.manifest(
        **{"platform": "cpu", "device_ids": [0], "feature_flags": list(features), **changes}
    )
    parent = StagingParent(request, wire.bootstrap((daemon.host, daemon.port), request))
    try:
        yield parent
    finally:
        parent.close()


def good() -> tuple[bytes, bytes]:
    code = machine_code("scale")
    return descriptor(code, SCALE), code


def refused(parent: StagingParent, command: bytes, text: str) -> None:
    reply = parent.control(PREPARE, command)
    assert (reply.error_code, text in reply.error) == (1, True), (text, reply.error)


def test_a_v1_parent_registers_machine_code_by_control(daemon):
    described, code = good()
    with session(daemon) as parent:
        assert parent.hello.feature_flags == 0
        for name, command in [
            (PREPARE, register_command(described, payload(described, code))),
            (PREPARE, register_command(described, payload(described, code))),
            (COMMIT, chips.digest_command(described)),
            (UNREGISTER, chips.digest_command(described)),
            (UNREGISTER, chips.digest_command(described)),
        ]:
            reply = parent.control(name, command)
            assert reply.error_code == 0, reply.error
        again = parent.control(COMMIT, chips.digest_command(described))
        assert "not prepared" in again.error


def test_what_does_not_hold_together_is_refused_before_it_is_kept_r105(daemon):
    described, code = good()
    fits = payload(described, code)
    flipped = bytes([code[0]]) + code[1:-1] + bytes([code[-1] ^ 1])
    other = descriptor(code, (1, 2))
    of_a5 = descriptor(code, SCALE, platform="a5sim", arch="a5")
    cases: list[tuple[str, bytes]] = [
        (
            "SHA-256",
            register_command(described, payload(described, flipped, sha256=hashlib.sha256(code).digest())),
        ),
        ("SHA-256", register_command(described, payload(described, code, sha256=bytes(32)))),
        ("blob_size", register_command(described, payload(described, code, size=len(code) + 1))),
        ("blob_size", register_command(described, payload(described, code, size=0))),
        ("other machine code", register_command(described, payload(described, flipped))),
        ("does not match the descriptor", register_command(described, payload(other, code))),
        ("the hash of another", register_command(other, payload(other, code))),
        ("a5sim", register_command(of_a5, payload(of_a5, code))),
        ("payload_version", register_command(described, fits, version=2)),
        ("only accepts PYTHON_IMPORT", register_command(described, fits, registry=1)),
        ("STAGED", register_command(described, payload(described, code, token=b"token"))),
    ]
    for changed, text in [
        ({"arch": "a5"}, "architecture"),
        ({"platform": "abacus"}, "unknown"),
        ({"runtime": "another"}, "with runtime another"),
    ]:
        strange = descriptor(code, SCALE, **changed)
        cases.append((text, register_command(strange, payload(strange, code))))
    for kernel, text in [("noentry", "echelon_chip_entry"), ("badsignature", "no signature")]:
        bad = machine_code(kernel)
        strange = descriptor(bad, SCALE)
        cases.append((text, register_command(strange, payload(strange, bad))))
    cases.append(
        (
            "no ELF",
            register_command(
                descriptor(b"MZ" * 99, SCALE), payload(descriptor(b"MZ" * 99, SCALE), b"MZ" * 99)
            ),
        )
    )
    with session(daemon) as parent:
        for text, command in cases:
            refused(parent, command, text)
            digest = struct.pack("<II", 2, 1) + command[8:40]
            assert "not prepared" in parent.control(COMMIT, digest).error, text
        reply = parent.control(PREPARE, register_command(described, fits))
        assert reply.error_code == 0, reply.error


def test_every_cut_of_the_payload_is_refused_and_the_session_lives(daemon):
    described, code = good()
    whole = payload(described, code)
    with session(daemon) as parent:
        ends = [*range(0, len(described) + 60, 7), *range(len(whole) - 12, len(whole))]
        for end in ends:
            refused(parent, register_command(described, whole[:end]), "CHIP_CALLABLE")
        assert parent.control(PREPARE, register_command(described, whole)).error_code == 0


def test_a_manifest_is_held_to_the_same_r105(daemon):
    described, code = good()
    fits = chips.entry(described, payload(described, code))
    with session(daemon, inner_l3_worker=[fits]) as parent:
        assert parent.control(UNREGISTER, chips.digest_command(described)).error_code == 0
    address = (daemon.host, daemon.port)
    cases: list[tuple[dict[str, object], str]] = [
        ({**fits, "hashid": "0" * 64}, "does not match the descriptor"),
        ({**fits, "payload_hex": "0" + str(fits["payload_hex"])}, "hexadecimal"),
        ({**fits, "payload_hex": "+f" + str(fits["payload_hex"])[2:]}, "hexadecimal"),
        ({**fits, "payload_version": 2}, "payload_version"),
        ({k: v for k, v in fits.items() if k != "payload_hex"}, "payload_hex is missing"),
        (chips.entry(described, payload(described, code, sha256=bytes(32))), "SHA-256"),
        (chips.entry(described, payload(described, code, token=b"t")), "STAGED"),
    ]
    for entry, text in cases:
        request = wire.manifest(platform="cpu", device_ids=[0], inner_l3_worker=[entry])
        reply = wire.bootstrap(address, request)
        assert (reply["ok"], text in reply["error"]) == (False, True), reply
    twice = wire.bootstrap(
        address, wire.manifest(platform="cpu", device_ids=[0], inner_l3_worker=[fits, fits])
    )
    assert "listed twice" in twice["error"]
    without = wire.bootstrap(address, wire.manifest(platform="cpu", inner_l3_worker=[fits]))
    assert "no chip workers" in without["error"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device_ids": [5, 5]}, "device 5"),
        ({"device_ids": [-1]}, "device -1"),
        ({"device_ids": [1024]}, "device 1024"),
        ({"device_ids": [0], "platform": "a2a3sim"}, "a2a3sim"),
        ({"device_ids": list(range(300))}, "max-sub-workers"),
    ],
)
def test_devices_that_cannot_be_are_refused_by_name(daemon, changes, text):
    reply = wire.bootstrap((daemon.host, daemon.port), wire.manifest(**{"platform": "cpu", **changes}))
    assert (reply["ok"], text in reply["error"]) == (False, True), reply


# --- staged -----------------------------------------------------------------------------------------------


def test_without_the_extension_staging_is_refused_as_version_1_does(daemon):
    with session(daemon) as parent:
        for number in (STAGE_BEGIN, STAGE_APPEND, STAGE_SEAL, STAGE_DROP):
            error, result = parent.stage(number, b"")
            assert "control_name" in error and result == b""


def test_a_token_serves_one_registration(daemon):
    described, code = good()
    with session(daemon, "staged_blobs") as parent:
        assert parent.hello.feature_flags == STAGED_BLOBS_BIT
        token = parent.staged(code)
        named = register_command(described, payload(described, code, token=token))
        refused(parent, named, "not sealed")
        assert parent.stage(STAGE_SEAL, wire.blob(token))[0] == ""
        reply = parent.control(PREPARE, named)
        assert reply.error_code == 0, reply.error
        refused(parent, named, "no blob is staged")
        assert parent.control(COMMIT, chips.digest_command(described)).error_code == 0
        for error, _ in (
            parent.stage(STAGE_SEAL, wire.blob(token)),
            parent.stage(STAGE_APPEND, append(token, 0, b"x")),
        ):
            assert "no blob is staged" in error
        # Dropping what is not there succeeds.
        assert parent.stage(STAGE_DROP, wire.blob(token))[0] == ""


def test_what_was_staged_is_verified_r105(daemon):
    described, code = good()
    with session(daemon, "staged_blobs") as parent:
        token = parent.staged(code, sha256=bytes(32))
        error, _ = parent.stage(STAGE_SEAL, wire.blob(token))
        assert "SHA-256" in error and "dropped" in error
        refused(
            parent, register_command(described, payload(described, code, token=token)), "no blob is staged"
        )
        # A blob that is whole, under an announcement or a descriptor of another.
        for content, text in [
            (lambda token: payload(described, code, sha256=bytes(32), token=token), "SHA-256"),
            (lambda token: payload(described, code, size=len(code) - 1, token=token), "blob_size"),
            (lambda token: payload(described, code, size=1 << 40, token=token), "limit"),
        ]:
            token = parent.staged(code)
            assert parent.stage(STAGE_SEAL, wire.blob(token))[0] == ""
            refused(parent, register_command(described, content(token)), text)


def test_parts_out_of_place_and_beyond_the_limits_are_refused(daemon):
    _, code = good()
    sha256 = hashlib.sha256(code).digest()
    with session(daemon, "staged_blobs") as parent:
        for size in (0, (64 << 20) + 1, 2**64 - 1):
            error, _ = parent.stage(STAGE_BEGIN, struct.pack("<Q", size) + sha256)
            assert "blob_size" in error
        token = parent.staged(code)
        cases: list[tuple[int, bytes, str]] = [
            (STAGE_APPEND, append(token, 0, b"x"), "parts come in order"),
            (STAGE_APPEND, append(token, len(code), b"x"), "announced"),
            (STAGE_APPEND, append(token, len(code), b""), "not empty"),
            (STAGE_APPEND, append(b"nobody knows it", 0, b"x"), "no blob is staged"),
            (STAGE_SEAL, wire.blob(b"nobody knows it"), "no blob is staged"),
            (STAGE_SEAL, wire.blob(b""), "not empty"),
            (STAGE_SEAL, wire.blob(token) + b"\0", "StageToken"),
            (STAGE_BEGIN, sha256, "STAGE_BEGIN"),
        ]
        for number, command, text in cases:
            error, _ = parent.stage(number, command)
            assert text in error, (text, error)
        assert parent.stage(STAGE_SEAL, wire.blob(token))[0] == ""


def test_what_is_staged_is_bounded_in_count_and_bytes_and_a_drop_makes_room(daemon):
    with session(daemon, "staged_blobs") as parent:
        large, small = (struct.pack("<Q", size) + bytes(32) for size in (64 << 20, 1))
        tokens = [wire.Cursor(parent.stage(STAGE_BEGIN, large)[1]).blob(1024) for _ in range(2)]
        assert "RESOURCE_EXHAUSTED" in parent.stage(STAGE_BEGIN, small)[0]
        assert parent.stage(STAGE_DROP, wire.blob(tokens[0]))[0] == ""
        for _ in range(15):
            assert parent.stage(STAGE_BEGIN, small)[0] == ""
        assert "RESOURCE_EXHAUSTED" in parent.stage(STAGE_BEGIN, small)[0]


def test_a_session_without_devices_stages_nothing(daemon):
    with session(daemon, "staged_blobs", device_ids=[]) as parent:
        error, _ = parent.stage(STAGE_BEGIN, struct.pack("<Q", 1) + bytes(32))
        assert "no chip workers" in error
