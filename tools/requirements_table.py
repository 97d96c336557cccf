#!/usr/bin/env python3
"""Writes docs/requirements.md: which test proves which requirement, and which requirements no test names.

A test names a requirement in its own name or in its doc comment, as R-083, r_083 or r083. The requirements are listed in
tools/requirements.toml. With --check nothing is written; the exit status is 1 when the document is out of date. With --gate
it is 1 too when a P0 or P1 has neither a test nor a reason in the list. Only what the test programs run counts: no function
that is ignored or always skipped, and nothing in a file that no crate includes.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = Path("docs/requirements.md")
LIST = Path("tools/requirements.toml")
CRATES = ("wire", "runtime", "session", "python")

sys.path.insert(0, str(ROOT / "tests"))
from testbed import rust_source  # noqa: E402  (found beside this folder only)

REQUIREMENT = re.compile(r"(?<![A-Za-z0-9])[rR][-_]?(\d{3})(?![0-9])")
RUST_ATTRIBUTE = r"#\[(?:[^\[\]]|\[[^\]]*\])*\]"
RUST_TEST = re.compile(rf"(?P<attributes>(?:{RUST_ATTRIBUTE}\s*)+)(?:pub\s+)?(?:async\s+)?fn\s+(?P<name>\w+)")
TEST_MARK = re.compile(r"#\[\s*(?:\w+::)*test\b")
IGNORED = re.compile(r"#\[\s*ignore\b|#\[\s*cfg\s*\(\s*any\s*\(\s*\)\s*\)")
NEVER_RUN = {"skip", "xfail"}
REASON_CHARACTERS_MIN = 30
RUST_FUNCTION = re.compile(r"\bfn\s+(\w+)")
TABLE_ENTRY = re.compile(r'\(\s*"(\w+)",\s*(?:\w+::)*(\w+)\s*,?\s*\)')


class Test(NamedTuple):
    """One test: where it is, and the text that may name requirements."""

    path: str
    name: str
    text: str


class Requirement(NamedTuple):
    """One line of the list."""

    id: str
    priority: str
    phrase: str


class Section(NamedTuple):
    """A group of requirements under one heading."""

    title: str
    requirements: list[Requirement]


def listed(root: Path) -> list[Section]:
    """The sections of tools/requirements.toml, in its order."""
    table = tomllib.loads((root / LIST).read_text(encoding="utf-8"))
    return [
        Section(section["title"], [Requirement(name, *facts) for name, facts in section["ids"].items()])
        for section in table["section"]
    ]


def reasons(root: Path) -> dict[str, str]:
    """Requirement id to why no test of it can be asked for yet."""
    table = tomllib.loads((root / LIST).read_text(encoding="utf-8"))
    return dict(table.get("no_test", {}))


def _is_never_run(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """True for `@pytest.mark.skip`: a skip with a condition runs where the condition holds."""
    marks = (mark.func if isinstance(mark, ast.Call) else mark for mark in node.decorator_list)
    return any(isinstance(mark, ast.Attribute) and mark.attr in NEVER_RUN for mark in marks)


def python_tests(path: str, source: str) -> Iterator[Test]:
    """Every function of a module, or of a class of tests, that pytest calls: none that is skipped or inside another."""
    bodies = [ast.parse(source).body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test") and not _is_never_run(node):
                bodies.append(node.body)
            elif (
                isinstance(node, ast.FunctionDef)
                and node.name.startswith("test_")
                and not _is_never_run(node)
            ):
                yield Test(path, node.name, f"{node.name} {ast.get_docstring(node) or ''}")


def _doc_above(lines: list[str], line: int) -> str:
    """The doc comment that ends above `line` (counted from 0); attributes may stand in between."""
    found = []
    while line > 0:
        line -= 1
        text = lines[line].strip()
        if not text.startswith(("///", "#[")):
            break
        if text.startswith("///"):
            found.append(text)
    return "\n".join(reversed(found))


def _doc_of(source: str, function: re.Match[str]) -> str:
    return _doc_above(source.split("\n"), source.count("\n", 0, function.start()))


def rust_tests(path: str, source: str) -> Iterator[Test]:
    """Every function with a test attribute that is not ignored."""
    for function in RUST_TEST.finditer(rust_source.code_only(source)):
        attributes = function["attributes"]
        if TEST_MARK.search(attributes) and not IGNORED.search(attributes):
            # The doc comment may stand before or among the attributes, so it is looked for above the name.
            doc = _doc_above(source.split("\n"), source.count("\n", 0, function.start("name")))
            yield Test(path, function["name"], f"{function['name']} {doc}")


def table_tests(sources: dict[str, str]) -> Iterator[Test]:
    """The tests of a program without the usual harness, from its files: its tables have each one's name and function."""
    named = {function: name for source in sources.values() for name, function in TABLE_ENTRY.findall(source)}
    for path, source in sources.items():
        code = rust_source.code_only(source)
        for function in RUST_FUNCTION.finditer(code):
            if name := named.get(function[1]):
                yield Test(path, name, f"{name} {_doc_of(source, function)}")


def _without_harness(root: Path, crate: str) -> Iterator[dict[str, str]]:
    """The sources of each test program of `crate` that has a table of its own in place of the usual harness."""
    manifest = tomllib.loads((root / crate / "Cargo.toml").read_text(encoding="utf-8"))
    for test in manifest.get("test", []):
        if test.get("harness", True):
            continue
        folder = root / crate / "tests"
        main = root / crate / test["path"] if "path" in test else folder / f"{test['name']}.rs"
        if not main.is_file():
            main = folder / test["name"] / "main.rs"
        files = sorted(main.parent.rglob("*.rs")) if main.name == "main.rs" else [main]
        yield {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}


def _included(root: Path, crate: str) -> Iterator[Path]:
    """The Rust files of `crate` that a compiler sees: its roots, and what they include as modules."""
    folder = root / crate
    roots = [folder / "src/lib.rs", folder / "src/main.rs", *folder.glob("src/bin/*.rs")]
    roots += [*folder.glob("tests/*.rs"), *folder.glob("tests/*/main.rs")]
    ways = [(path, path.parent) for path in roots if path.is_file()]
    seen = set()
    while ways:
        path, below = ways.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        source = path.read_text(encoding="utf-8")
        for name, elsewhere in rust_source.modules(source):
            if elsewhere:
                ways.append(((path.parent / elsewhere).resolve(), (path.parent / elsewhere).resolve().parent))
            elif (below / f"{name}.rs").is_file():
                ways.append((below / f"{name}.rs", below / name))
            else:
                ways.append((below / name / "mod.rs", below / name))


def all_tests(root: Path) -> list[Test]:
    """Every test below `root`, sorted by path and name."""
    found: list[Test] = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        found += python_tests(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
    for crate in CRATES:
        for sources in _without_harness(root, crate):
            found += table_tests(sources)
        for path in _included(root, crate):
            found += rust_tests(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
    return sorted(set(found))


def proofs(tests: list[Test]) -> dict[str, list[str]]:
    """Requirement id to the tests that name it, as `path::name`."""
    named: dict[str, set[str]] = defaultdict(set)
    for test in tests:
        for number in REQUIREMENT.findall(test.text):
            named[f"R-{number}"].add(f"{test.path}::{test.name}")
    return {name: sorted(places) for name, places in named.items()}


HEAD = """\
# Requirements and their tests

Written by `tools/requirements_table.py` from the tests and from `tools/requirements.toml`; a test fails while this page is
out of date. A test proves a requirement when it names it, in its name or in its doc comment. That a requirement has a row
says that something of it is tested, not that every case of it is. Whether the tests notice when what they protect is gone
was tried for a sample of P0s: `docs/guards.md`.
"""

UNTESTED = """\

## No test yet

No test names these. Some hold all the same, by construction or unnoticed; some do not hold yet, or are about parts that do
not exist yet. Until a test says otherwise, do not rely on them.
"""


EXCUSED = """\

## No test possible yet

"""


def gaps(sections: list[Section], proven: dict[str, list[str]], excused: dict[str, str]) -> list[str]:
    """What keeps the gate shut: a P0 or P1 without test and reason, and a reason that says nothing or is not needed."""
    every = {row.id: row for section in sections for row in section.requirements}
    needed = [row for row in every.values() if row.priority in ("P0", "P1")]
    found = [
        f"{row.id} ({row.priority}) has no test: {row.phrase}"
        for row in needed
        if row.id not in proven and row.id not in excused
    ]
    for name, reason in excused.items():
        if name not in every:
            found.append(f"{name} has a reason and is not in the list of requirements")
        elif name in proven:
            found.append(f"{name} has a test now: take its reason out ({proven[name][0]})")
        elif len(reason) < REASON_CHARACTERS_MIN:
            found.append(f"{name}: {reason!r} is no reason; say why no test can be written here")
    return found


def document(sections: list[Section], proven: dict[str, list[str]], excused: dict[str, str]) -> str:
    """The whole page."""
    every = [requirement for section in sections for requirement in section.requirements]
    parts = [HEAD, "\n| priority | requirements | with a test |\n|---|---|---|\n"]
    for priority in ("P0", "P1", "P2"):
        ids = [requirement.id for requirement in every if requirement.priority == priority]
        parts.append(f"| {priority} | {len(ids)} | {sum(name in proven for name in ids)} |\n")
    for section in sections:
        rows = [requirement for requirement in section.requirements if requirement.id in proven]
        if rows:
            parts.append(
                f"\n## {section.title}\n\n| id | priority | what holds | tests |\n|---|---|---|---|\n"
            )
        for row in rows:
            tests = "<br>".join(f"`{test}`" for test in proven[row.id])
            parts.append(f"| {row.id} | {row.priority} | {row.phrase} | {tests} |\n")
    parts.append(UNTESTED)
    for priority in ("P0", "P1"):
        bare = [
            row
            for row in every
            if row.priority == priority and row.id not in proven and row.id not in excused
        ]
        parts.append(f"\n### {priority}\n\n")
        parts += [f"- {row.id}: {row.phrase}\n" for row in bare] or ["None.\n"]
    if excused:
        phrases = {row.id: row.phrase for row in every}
        parts.append(EXCUSED)
        parts += [f"- {name}: {phrases[name]}. {reason}\n" for name, reason in sorted(excused.items())]
    return "".join(parts)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when it is out of date")
    parser.add_argument(
        "--gate", action="store_true", help="exit 1 when a P0 or P1 has no test and no reason"
    )
    options = parser.parse_args()
    proven = proofs(all_tests(ROOT))
    found = gaps(listed(ROOT), proven, reasons(ROOT)) if options.gate else []
    for line in found:
        print(line, file=sys.stderr)
    path, text = ROOT / DOCUMENT, document(listed(ROOT), proven, reasons(ROOT))
    current = path.read_text(encoding="utf-8") if path.is_file() else ""
    if current == text:
        return 1 if found else 0
    if options.check:
        print(f"{DOCUMENT} is out of date: run tools/requirements_table.py", file=sys.stderr)
        return 1
    path.write_text(text, encoding="utf-8")
    print(f"{DOCUMENT} written")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
