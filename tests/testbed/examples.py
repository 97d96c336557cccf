"""Examples of the crates, as programs that tests run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BUILD_S = 400.0
"""How long cargo may take when nothing is built yet, in seconds."""


def build(package: str, name: str) -> Path:
    """The program of an example, in cargo's usual target folder; built when it is not there or not up to date.

    Without cargo on the PATH the test is skipped.
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip(f"no cargo on the PATH: the example {name} cannot be built")
    command = [cargo, "build", "--locked", "-p", package, "--example", name]
    built = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
    )
    assert built.returncode == 0, built.stderr
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    programs = [
        message["executable"]
        for message in messages
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == name
    ]
    return Path(programs[-1])
