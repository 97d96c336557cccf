#!/usr/bin/env python3
"""Prints the hash of the protocol's source, and with --update writes it into docs/protocol.md.

A test fails while the two differ. Update the hash only after reading the document against the change.
The hash is SHA-256 over each `wire/src/**/*.rs`, in the order of their paths: path, newline, bytes, newline.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "protocol.md"
MARK = re.compile(r"<!-- protocol-source-sha256: ([0-9a-f]{64}) -->")


def source_sha256(root: Path) -> str:
    """The hash of the protocol's source below `root`, in hexadecimal."""
    sources = {path.relative_to(root).as_posix(): path for path in (root / "wire" / "src").rglob("*.rs")}
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\n" + sources[name].read_bytes() + b"\n")
    return digest.hexdigest()


def main() -> int:
    """Runs the command line; the exit status is 1 when the document has another hash and was not updated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write the hash into docs/protocol.md")
    update = parser.parse_args().update

    expected = source_sha256(ROOT)
    print(expected)
    text = DOCUMENT.read_text(encoding="utf-8")
    marks = MARK.findall(text)
    if len(marks) != 1:
        print(f"{DOCUMENT.name} has {len(marks)} lines with a hash, expected 1", file=sys.stderr)
        return 1
    if marks[0] == expected:
        return 0
    if not update:
        print(f"{DOCUMENT.name} has {marks[0]}; read it against the change, then --update", file=sys.stderr)
        return 1
    DOCUMENT.write_text(MARK.sub(f"<!-- protocol-source-sha256: {expected} -->", text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
