"""Machine code for chips, built with `cc`, and the bytes in which a chip callable travels."""

from __future__ import annotations

import functools
import hashlib
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from . import wire

SOURCE = Path(__file__).resolve().parents[1] / "callables" / "chip_kernels.c"

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler, cc, on the PATH")


@functools.cache
def machine_code(kernel: str, *options: str) -> bytes:
    """The shared object of a kernel of `chip_kernels.c`."""
    import echelon as ec

    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "chip.so"
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-DKERNEL_{kernel}", *options]
        subprocess.run([*command, "-I", ec.include_dir(), "-o", built, SOURCE], check=True, timeout=60)
        return built.read_bytes()


# --- the bytes of a chip callable, from the contract alone ------------------------------------------------

INNER, CHIP = 2, 1
STAGE_BEGIN, STAGE_APPEND, STAGE_SEAL, STAGE_DROP = 75, 76, 77, 78
STAGED_BLOBS_BIT = 1 << 16
RUNTIME = "tensormap_and_ringbuffer"


def schema(*directions: int) -> bytes:
    """slr3-v1 §7."""
    return struct.pack(f"<II{len(directions)}I", 1, len(directions), *directions)


def descriptor(
    code: bytes, directions: tuple[int, ...], *, platform: str = "cpu", runtime: str = RUNTIME, arch: str = ""
) -> bytes:
    """slr3-v1 §7."""
    names = wire.text(arch or platform) + wire.text(platform) + wire.text(runtime)
    hashes = (hashlib.sha256(part).digest() for part in (code, schema(*directions)))
    return struct.pack("<II", 1, CHIP) + names + b"".join(wire.blob(digest) for digest in hashes)


def payload(
    described: bytes, code: bytes, *, size: int | None = None, sha256: bytes | None = None, token: bytes = b""
) -> bytes:
    """slr3-v1 §5: inline, or staged when there is a token."""
    return (
        wire.blob(described)
        + struct.pack("<IQ", 2 if token else 1, len(code) if size is None else size)
        + (sha256 or hashlib.sha256(code).digest())
        + wire.blob(b"" if token else code)
        + wire.blob(token)
        + struct.pack("<I", 0)
    )


def register_command(described: bytes, content: bytes, *, registry: int = INNER, version: int = 1) -> bytes:
    """PREPARE_REGISTER of a chip callable whose identity is that of `described`."""
    digest = hashlib.sha256(described).digest()
    return struct.pack("<II", registry, CHIP) + digest + struct.pack("<I", version) + wire.blob(content)


def digest_command(described: bytes) -> bytes:
    """COMMIT, ABORT or UNREGISTER of it."""
    return struct.pack("<II", INNER, CHIP) + hashlib.sha256(described).digest()


def entry(described: bytes, content: bytes) -> dict[str, object]:
    """The manifest's entry, slr3-v1 §8."""
    return {
        "hashid": hashlib.sha256(described).hexdigest(),
        "kind": "CHIP_CALLABLE",
        "target_registry": "INNER_L3_WORKER",
        "payload_hex": content.hex(),
    }


class StagingParent(wire.V1Parent):
    """A parent that knows the controls of `staged_blobs` besides those of version 1."""

    def stage(self, number: int, command: bytes) -> tuple[str, bytes]:
        """Sends one of them; returns the error's text, empty for success, and the result."""
        sent = self.send(wire.CONTROL, struct.pack("<II", number, 1) + wire.blob(command))
        frame = wire.receive_frame(self.command)
        cursor = wire.Cursor(frame.payload)
        head = (frame.kind, cursor.number("Q"), cursor.number("I"), cursor.number("I"))
        code, error, result = cursor.number("i"), cursor.text(4096), cursor.blob(wire.FRAME_PAYLOAD_MAX)
        cursor.end()
        if code == 0:
            assert head == (wire.CONTROL_REPLY, sent, number, 1), head
        return error, result

    def staged(self, code: bytes, sha256: bytes | None = None) -> bytes:
        """Stages `code` in two parts; returns the token."""
        begin = struct.pack("<Q", len(code)) + (sha256 or hashlib.sha256(code).digest())
        error, result = self.stage(STAGE_BEGIN, begin)
        assert error == "", error
        cursor = wire.Cursor(result)
        token = cursor.blob(1024)
        cursor.end()
        for start, end in ((0, len(code) // 2), (len(code) // 2, len(code))):
            error, _ = self.stage(STAGE_APPEND, append(token, start, code[start:end]))
            assert error == "", error
        return token


def append(token: bytes, offset: int, part: bytes) -> bytes:
    """The command of STAGE_APPEND."""
    return wire.blob(token) + struct.pack("<Q", offset) + wire.blob(part)
