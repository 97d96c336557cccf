"""Two codecs in two languages read and write the same bytes: a field that one of them lacks fails here (R-073)."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed import codec, examples, vectors
from testbed.wire import ProtocolError

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 3000
"""Random messages that are compared, over all kinds."""

OWN = json.loads((ROOT / "wire/tests/vectors/valid.json").read_text(encoding="utf-8"))["vectors"]
OWN_INVALID = json.loads((ROOT / "wire/tests/vectors/invalid.json").read_text(encoding="utf-8"))["vectors"]


def own_bytes(vector: dict[str, Any]) -> bytes:
    return b"".join(bytes.fromhex(part[0]) for part in vector["parts"])


def recorded() -> Iterator[dict[str, Any]]:
    """The vectors of another implementation that have their bytes in one piece; none where they are not installed."""
    yield from (vector for vector in vectors.load("slr3_v1.json") or [] if vector["hex"])


def comparable(fields: Any, expected: Any) -> Any:
    """`fields` without what vectors of others do not list."""
    if isinstance(fields, dict) and isinstance(expected, dict):
        return {name: comparable(fields[name], value) for name, value in expected.items()}
    if isinstance(fields, list) and isinstance(expected, list) and len(fields) == len(expected):
        return [comparable(*pair) for pair in zip(fields, expected, strict=True)]
    return fields


@pytest.mark.parametrize("vector", OWN, ids=lambda vector: vector["name"])
def test_the_python_codec_reads_and_writes_our_vectors_r073(vector):
    assert vector["kind"] in codec.TABLE, f"tests/testbed/codec.py has no table for {vector['kind']}"
    data = own_bytes(vector)
    fields = codec.decode(vector["kind"], data)
    assert fields == vector["fields"]
    assert codec.encode(vector["kind"], vector["fields"]) == data


def test_the_python_codec_reads_and_writes_recorded_vectors_r073():
    compared = 0
    for vector in recorded():
        data = bytes.fromhex(vector["hex"])
        fields = codec.decode(vector["kind"], data)
        if not any(name.endswith(("_len", "_sha256")) for name in vector["fields"]):
            assert comparable(fields, vector["fields"]) == vector["fields"], vector["name"]
        assert codec.encode(vector["kind"], fields) == data, vector["name"]
        compared += 1
    if not compared:
        pytest.skip("the recorded vectors are not installed")
    assert compared > 90


def test_lengths_and_fixed_words_are_refused_by_both_r073():
    """Values that only our codec judges are not counted; what is cut or does not add up, both refuse."""
    judged = 0
    for vector in OWN_INVALID:
        try:
            codec.decode(vector["kind"], bytes.fromhex(vector["hex"]))
        except (ProtocolError, UnicodeDecodeError):
            judged += 1
    assert judged >= 10, judged
    for vector in OWN:
        data = own_bytes(vector)
        for cut in range(36 if vector["kind"] == "copy_to" else len(data)):
            with pytest.raises(ProtocolError):
                codec.decode(vector["kind"], data[:cut])


@pytest.fixture(scope="module")
def program() -> Path:
    """Our codec behind a pipe, `wire/examples/recode.rs`."""
    return examples.build("echelon-wire", "recode")


def ask(program: Path, lines: list[str]) -> list[dict[str, Any]]:
    ended = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, encoding="utf-8", timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    # Texts may hold characters that `splitlines` takes for line ends.
    return [json.loads(line) for line in ended.stdout.split("\n") if line]


@pytest.mark.hard_timeout(examples.BUILD_S + 60)
def test_both_codecs_agree_on_random_messages_of_every_kind_r073(program):
    samples = ask(program, [f"samples {SAMPLES}"])
    assert len(samples) == SAMPLES
    assert {sample["kind"] for sample in samples} == set(codec.TABLE)
    for sample in samples:
        kind, data = sample["kind"], bytes.fromhex(sample["hex"])
        assert codec.decode(kind, data) == sample["fields"], kind
        assert codec.encode(kind, sample["fields"]) == data, kind


@pytest.mark.hard_timeout(examples.BUILD_S + 60)
def test_what_ours_accepts_means_the_same_to_both_r073(program):
    """One byte is changed: ours may refuse it, but what it accepts has to be what the other codec reads there."""
    chance = random.Random(73)
    changed = []
    for sample in ask(program, [f"samples {SAMPLES}"]):
        data = bytearray.fromhex(sample["hex"])
        data[chance.randrange(len(data))] = chance.randrange(256)
        changed.append((sample["kind"], bytes(data)))
    answers = ask(program, [f"{kind} {data.hex()}" for kind, data in changed])
    accepted = 0
    for (kind, data), answer in zip(changed, answers, strict=True):
        if "fields" in answer:
            accepted += 1
            fields = codec.decode(kind, data)
            assert fields == answer["fields"], (kind, data.hex())
            assert codec.encode(kind, fields) == bytes.fromhex(answer["hex"]), (kind, data.hex())
    assert SAMPLES // 10 < accepted < SAMPLES, f"{accepted} of {SAMPLES} were accepted"
