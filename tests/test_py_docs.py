"""What documents show runs: the examples of docs/python.md, that of the README, and `examples/` (R-225)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", ["python.md"])
def test_the_examples_run(page: str, tmp_path: Path) -> None:
    """One script of all blocks in order; a block that begins with `# name.py` is a module beside it."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    script = ""
    for block in blocks:
        module = re.match(r"# (\w+\.py)\n", block)
        if module is not None:
            (tmp_path / module[1]).write_text(block)
        else:
            script += block
    (tmp_path / "script.py").write_text(script)
    run(tmp_path / "script.py", tmp_path)


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    """Its first block, with the result that its last comment promises."""
    block = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    (tmp_path / "script.py").write_text(block[1])
    promised = block[1].rstrip().rpartition("# ")[2]
    assert run(tmp_path / "script.py", tmp_path).strip() == promised


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    assert run(ROOT / "examples" / name, tmp_path)


def run(script: Path, folder: Path) -> str:
    """Runs a script with this Python in `folder`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
