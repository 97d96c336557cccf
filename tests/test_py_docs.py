"""The examples of docs/python.md, as a reader would type them (R-225)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


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
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
