"""Keeps the house: sizes, crate arrows, where `unsafe` may be, documents that follow the code.

Needs no build. Each rule says in its message what to do; each exception has its reason beside it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import rust_source

ROOT = Path(__file__).resolve().parents[1]

FILE_LINES_MAX = 800
FILE_LINES_TALK = 500
FUNCTION_LINES_MAX = 70

LARGE_FILES: dict[str, int] = {}
"""The ratchet: files over 500 lines with the size that they may not exceed. It only ever shrinks."""

MAY_HOLD_UNSAFE = {
    "runtime/src/memory/mapping.rs",
    "runtime/src/memory/host.rs",
    "runtime/src/mailbox/ring.rs",
    "runtime/src/mailbox/futex.rs",
    "runtime/src/process/spawn.rs",
    "runtime/src/process/fds.rs",
    "runtime/src/process/forked.rs",
    "runtime/src/process/zygote/server.rs",
    "runtime/tests/loom_ring.rs",  # loom's cells hand out raw pointers
    "session/src/chip/cpu.rs",  # loads and calls machine code
    "python/src/zygote.rs",
    "python/src/buffer.rs",
    "python/src/tensor.rs",
    "python/src/dlpack.rs",
}

CRATE_ARROWS = {
    "wire": set(),
    "runtime": {"echelon-wire"},
    "session": {"echelon-wire", "echelon-runtime"},
    "python": {"echelon-wire", "echelon-runtime", "echelon-session"},
    "benches/native": {"echelon-wire", "echelon-runtime", "echelon-session"},
}
"""Which of our crates each may use: wire -> runtime -> session -> python, an arrow means "is used by"."""

MAY_SLEEP = {
    "tests/callables/": "what a task does while it is judged, not how a test waits",
    "session/src/daemon/accept.rs": "backs off when descriptors run out, which no event announces the end of (R-049)",
}
"""Files, or folders, that may call a sleep, each with its reason."""

CONSOLE_SCRIPTS = {"echelon", "echelon-worker", "echelon-session"}

TEXT_SUFFIXES = {".rs", ".py", ".pyi", ".md", ".toml", ".txt", ".sh", ".json", ".yml", ".yaml", ""}


def _tracked() -> list[str]:
    """Every file that belongs to the project, those not yet committed too; by posix path from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def _texts(*suffixes: str) -> Iterator[tuple[str, str]]:
    for name in _tracked():
        if Path(name).suffix in suffixes:
            yield name, (ROOT / name).read_text(encoding="utf-8")


def _line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


# --- sizes ------------------------------------------------------------------------------------------------


def test_no_file_is_over_the_limit() -> None:
    sizes = {name: text.count("\n") for name, text in _texts(".rs", ".py")}
    over = {name: lines for name, lines in sizes.items() if lines > FILE_LINES_MAX}
    assert not over, f"over {FILE_LINES_MAX} lines: split by subject: {over}"


def test_large_files_are_listed_and_do_not_grow() -> None:
    sizes = {name: text.count("\n") for name, text in _texts(".rs", ".py")}
    large = {name: lines for name, lines in sizes.items() if lines > FILE_LINES_TALK}
    unlisted = {name: lines for name, lines in large.items() if name not in LARGE_FILES}
    assert not unlisted, (
        f"over {FILE_LINES_TALK} lines: split, or argue for a line in LARGE_FILES: {unlisted}"
    )
    grown = {name: lines for name, lines in large.items() if lines > LARGE_FILES[name]}
    assert not grown, f"grown past their line in LARGE_FILES: {grown}"
    shrunk = sorted(set(LARGE_FILES) - set(large))
    assert not shrunk, f"no longer large: take them out of LARGE_FILES: {shrunk}"


def _python_functions(text: str) -> Iterator[rust_source.Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield rust_source.Function(node.name, node.lineno, node.end_lineno - node.lineno + 1)


def test_no_function_is_over_the_limit() -> None:
    over = []
    for name, text in _texts(".rs", ".py"):
        found = rust_source.functions(text) if name.endswith(".rs") else _python_functions(text)
        over += [
            f"{name}:{function.first_line} {function.name}: {function.line_count} lines"
            for function in found
            if function.line_count > FUNCTION_LINES_MAX
        ]
    assert not over, f"functions over {FUNCTION_LINES_MAX} lines:\n" + "\n".join(over)


# --- structure --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crate", CRATE_ARROWS)
def test_crates_use_only_those_before_them(crate: str) -> None:
    manifest = tomllib.loads((ROOT / crate / "Cargo.toml").read_text())
    tables = [manifest, *manifest.get("target", {}).values()]
    used = {
        name
        for table in tables
        for kind in ("dependencies", "dev-dependencies", "build-dependencies")
        for name in table.get(kind, {})
        if name.startswith("echelon")
    }
    assert used <= CRATE_ARROWS[crate], f"{crate} must not use {used - CRATE_ARROWS[crate]}"


def test_every_crate_has_its_arrows_written_down() -> None:
    members = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
    assert set(members) == set(CRATE_ARROWS)


def test_unsafe_is_only_in_listed_files() -> None:
    found = []
    for name, text in _texts(".rs"):
        if name not in MAY_HOLD_UNSAFE:
            code = rust_source.code_only(text)
            found += [f"{name}:{_line_of(code, m.start())}" for m in re.finditer(r"\bunsafe\b", code)]
    assert not found, f"unsafe outside the listed files: {found}"


def test_the_wire_crate_forbids_unsafe() -> None:
    assert "#![forbid(unsafe_code)]" in rust_source.code_only((ROOT / "wire/src/lib.rs").read_text())


def test_every_crate_takes_the_lints_of_the_workspace() -> None:
    for crate in CRATE_ARROWS:
        manifest = tomllib.loads((ROOT / crate / "Cargo.toml").read_text())
        assert manifest.get("lints") == {"workspace": True}, crate


# --- documents --------------------------------------------------------------------------------------------


def test_decisions_are_numbered_without_gaps() -> None:
    names = [Path(name).name for name in _tracked() if name.startswith("docs/decisions/")]
    records = sorted(name for name in names if name != "README.md")
    odd = [name for name in records if not re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name)]
    assert not odd, f"a record is named NNNN-title.md: {odd}"
    numbers = [int(name[:4]) for name in records]
    assert numbers == list(range(1, len(numbers) + 1)), f"gaps or repeats in {numbers}"
    index = (ROOT / "docs/decisions/README.md").read_text()
    for name in records:
        assert f"| [{name[:4]}]({name}) |" in index, f"{name} is not in the index"
        text = (ROOT / "docs/decisions" / name).read_text()
        assert text.startswith(f"# {name[:4]}: "), f"{name} begins with another number"
        for heading in ("## Context", "## Decision", "## Consequences"):
            assert heading in text, f"{name} lacks {heading!r}"


def protocol_source_sha256() -> str:
    """Over each file of the wire crate's source in the order of their paths: path, newline, bytes, newline."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "wire/src").rglob("*.rs"), key=lambda path: path.relative_to(ROOT).as_posix()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\n" + path.read_bytes() + b"\n")
    return digest.hexdigest()


def test_the_protocol_document_follows_its_source() -> None:
    text = (ROOT / "docs/protocol.md").read_text()
    marks = re.findall(r"<!-- protocol-source-sha256: ([0-9a-f]{64}) -->", text)
    assert len(marks) == 1, "docs/protocol.md needs one line <!-- protocol-source-sha256: HEX -->"
    assert marks[0] == protocol_source_sha256(), (
        "wire/src changed and docs/protocol.md did not: read it against the change, then put in "
        f"{protocol_source_sha256()} (tools/protocol_hash.py prints it)"
    )


def test_the_table_of_requirements_follows_the_tests() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "tools/requirements_table.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_console_scripts_name_functions_that_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == CONSOLE_SCRIPTS
    for script, target in scripts.items():
        module, function = target.split(":")
        tree = ast.parse((ROOT / "python" / (module.replace(".", "/") + ".py")).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in defined, f"{script} names {target}, which is not there"


def test_the_map_names_only_what_is_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(
        re.findall(r"`((?:wire|runtime|session|python|tests|docs|demo|examples|benches)/[\w./-]*)`", text)
    )
    assert named, "the map names no path"
    gone = sorted(path for path in named if not (ROOT / path).exists())
    assert not gone, f"docs/architecture.md names what is not there: {gone}"


@pytest.mark.parametrize("crate", ["wire", "runtime", "session"])
def test_the_map_has_each_module_of_a_crate(crate: str) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.partition(f"### `{crate}/`")[2].partition("\n### ")[0]
    first_cells = "".join(re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE))
    source = ROOT / crate / "src"
    there = {path.name + "/" * path.is_dir() for path in source.iterdir() if path.name != "lib.rs"}
    assert set(re.findall(r"`([\w.]+/?)`", first_cells)) == there


def test_the_map_knows_which_invariants_there_are() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| ([A-Z])-1 to \1-(\d+) \| `([\w./]+)` \|", text, re.MULTILINE)
    assert len(rows) >= 5
    for letter, last, source in rows:
        ids = re.findall(rf"^//! \* (?:\*\*)?{letter}-(\d+)\b", (ROOT / source).read_text(), re.MULTILINE)
        assert [int(number) for number in ids] == list(range(1, int(last) + 1)), source


# --- text -------------------------------------------------------------------------------------------------

LEFT_FOR_LATER = re.compile(
    r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|\b(?:to" + r"do|unimple" + r"mented)!\s*\("
)
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me)/[\w.]")


def _all_texts() -> Iterator[tuple[str, str]]:
    for name in _tracked():
        if Path(name).suffix in TEXT_SUFFIXES and name != "Cargo.lock":
            yield name, (ROOT / name).read_text(encoding="utf-8")


def _places(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{_line_of(text, match.start())}: {match[0]}"
        for name, text in _all_texts()
        for match in pattern.finditer(text)
    ]


def test_nothing_is_left_for_later() -> None:
    assert not _places(LEFT_FOR_LATER), "finish it or file an issue"


def test_no_path_of_one_machine() -> None:
    assert not _places(MACHINE_PATH)


RUST_SLEEP = r"\b(?:thread|time)::(?:\{[^}]*\b)?sleep(?:_ms|_until)?\b"


def test_nothing_sleeps_to_wait_for_an_event() -> None:
    """R-222: a test waits for an event, or polls a condition with `testbed.wait.eventually`."""
    found = []
    for name, text in _texts(".rs", ".py"):
        if any(name.startswith(place) for place in MAY_SLEEP):
            continue
        if name.endswith(".rs"):
            code = rust_source.code_only(text)
            lines = [_line_of(code, match.start()) for match in re.finditer(RUST_SLEEP, code)]
        else:
            lines = [
                node.lineno
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Call) and _called_name(node) == "sleep"
            ]
        found += [f"{name}:{line}" for line in lines]
    assert not found, f"wait on what happens, with a deadline: {found}"


WALL_CLOCK = r"\b(?:SystemTime|UNIX_EPOCH|CLOCK_REALTIME|ClockId::Realtime)\b"
WALL_CLOCK_CALLS = {"time", "time_ns", "now", "utcnow", "today"}


def test_nothing_reads_the_wall_clock_r064() -> None:
    """What has no wall clock cannot be misled by one that jumps: deadlines and timelines are of the monotonic clock."""
    found = []
    for name, text in _texts(".rs", ".py"):
        if not re.match(r"(wire|runtime|session|python)/(src|echelon)/", name):
            continue
        if name.endswith(".rs"):
            code = rust_source.code_only(text)
            lines = [_line_of(code, match.start()) for match in re.finditer(WALL_CLOCK, code)]
        else:
            calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
            lines = [
                call.lineno
                for call in calls
                if _called_name(call) in WALL_CLOCK_CALLS
                and ast.unparse(call.func).startswith(("time.", "datetime.", "date."))
            ]
        found += [f"{name}:{line}" for line in lines]
    assert not found, f"deadlines are of the monotonic clock: {found}"


def _called_name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


# --- the scanner itself -----------------------------------------------------------------------------------


def test_the_scanner_sees_code_and_nothing_else() -> None:
    source = (
        "// unsafe { in a comment\n"
        "/* unsafe /* nested */ } */\n"
        'const A: &str = "unsafe { \\" }";\n'
        'const B: &str = r#"unsafe " { "#;\n'
        "const C: char = '{'; const D: char = '\\'';\n"
        "fn life<'a>(x: &'a str) -> [u8; 4] { match x { _ => [b'}'; 4] } }\n"
        "unsafe fn real() {}\n"
    )
    code = rust_source.code_only(source)
    assert code.count("unsafe") == 1
    assert code.count("\n") == source.count("\n")
    assert [(f.name, f.first_line, f.line_count) for f in rust_source.functions(source)] == [
        ("life", 6, 1),
        ("real", 7, 1),
    ]


def test_the_scanner_measures_bodies_and_skips_declarations() -> None:
    source = (
        "trait T {\n    fn declared(&self, n: [u8; 3]);\n    fn given(&self)\n    where\n        Self: Sized,\n"
        "    {\n        if true {\n        }\n    }\n}\n"
    )
    assert list(rust_source.functions(source)) == [rust_source.Function("given", 3, 7)]


def test_the_table_finds_requirements_in_names_and_doc_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    table = importlib.import_module("requirements_table")
    rust = (
        "/// R-001: said above.\n#[tokio::test]\nasync fn one() {}\n"
        "#[test]\n/// Of R-002.\nfn r_003_and_r004() { // R-005\n}\n"
        "/// R-006\nfn helper_r_007() {}\n"
    )
    listing = '("named_r_008", case),\n/// R-012\nfn case() {}\n/// R-013\nfn helper() {}\n'
    python = 'def test_a_r009():\n    """R-010"""\n    # R-011\ndef helper_r014():\n    pass\n'
    tests = [
        *table.rust_tests("a.rs", rust),
        *table.table_tests({"c.rs": listing}),
        *table.python_tests("test_b.py", python),
    ]
    proven = table.proofs(tests)
    assert sorted(proven) == [f"R-{number:03}" for number in (1, 2, 3, 4, 8, 9, 10, 12)]
    assert proven["R-001"] == ["a.rs::one"]


def test_the_table_counts_only_tests_that_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    table = importlib.import_module("requirements_table")
    rust = (
        '#[test]\n#[ignore = "slow"]\nfn r_001() {}\n#[cfg(any())]\n#[test]\nfn r_002() {}\n'
        "#[test]\n#[should_panic]\nfn r_003() {}\nmacro_rules! m { () => { #[test] fn $name() {} } }\nfn r_004() {}\n"
    )
    python = (
        "def helper():\n    def test_r005():\n        pass\n"
        "@pytest.mark.skip(reason='x')\ndef test_r006(): pass\n@pytest.mark.needs_root\ndef test_r007(): pass\n"
        "class Helper:\n    def test_r008(self): pass\nclass TestIt:\n    def test_r009(self): pass\n"
    )
    crate = tmp_path / "wire"
    for name, text in {
        "src/lib.rs": "mod a;\n// mod gone;\n",
        "src/a.rs": 'pub(crate) mod b;\n#[cfg(test)]\n#[path = "far.rs"]\nmod c;\n',
        "src/a/b/mod.rs": "",
        "src/far.rs": "",
        "src/gone.rs": "",
        "tests/whole/main.rs": "mod part;\n",
        "tests/whole/part.rs": "",
        "tests/common/mod.rs": "",
    }.items():
        (crate / name).parent.mkdir(parents=True, exist_ok=True)
        (crate / name).write_text(text)
    counted = table.proofs([*table.rust_tests("a.rs", rust), *table.python_tests("test_b.py", python)])
    assert sorted(counted) == ["R-003", "R-007", "R-009"]
    seen = {path.relative_to(crate).as_posix() for path in table._included(tmp_path, "wire")}
    assert seen == {
        "src/lib.rs",
        "src/a.rs",
        "src/a/b/mod.rs",
        "src/far.rs",
        "tests/whole/main.rs",
        "tests/whole/part.rs",
    }


def test_the_gate_asks_for_a_test_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    table = importlib.import_module("requirements_table")
    rows = [
        table.Requirement(f"R-00{n}", priority, "phrase") for n, priority in enumerate(("P0", "P1", "P2"))
    ]
    sections = [table.Section("A", rows)]
    reason = "waits for a part that does not exist yet"
    gaps = [
        table.gaps(sections, {}, {}),
        table.gaps(sections, {"R-000": ["a::b"]}, {"R-001": reason}),
        table.gaps(sections, {"R-000": ["a::b"], "R-001": ["a::c"]}, {"R-000": reason}),
        table.gaps(sections, {"R-000": ["a::b"]}, {"R-001": "hard", "R-900": reason}),
    ]
    assert [len(found) for found in gaps] == [2, 0, 1, 2], gaps
