"""Reads Rust source as far as house-keeping needs: what is code, and where each function begins and ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
      (?P<line_comment>//[^\n]*)
    | (?P<block_comment>/\*)
    | (?P<raw_string>\b(?:b|c)?r(?P<hashes>\#*)")
    | (?P<string>(?:\b[bc])?")
    | (?P<char>(?:\bb)?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.)|[^\\'\n])')
    """,
    re.VERBOSE,
)


def _blank(text: str) -> str:
    return "".join("\n" if letter == "\n" else " " for letter in text)


def _end_of_block_comment(source: str, at: int) -> int:
    """Rust's block comments nest."""
    depth = 1
    for mark in re.compile(r"/\*|\*/").finditer(source, at + 2):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(source)


def _end_of_string(source: str, at: int) -> int:
    """`at` is behind the opening quote."""
    match = re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL).match(source, at)
    return match.end() if match else len(source)


def code_only(source: str) -> str:
    """The source with comments, strings and character literals blanked out; every line keeps its number."""
    out, at = [], 0
    while match := _TOKEN.search(source, at):
        out.append(source[at : match.start()])
        if match["block_comment"]:
            end = _end_of_block_comment(source, match.start())
        elif match["raw_string"]:
            close = source.find('"' + match["hashes"], match.end())
            end = len(source) if close < 0 else close + 1 + len(match["hashes"])
        elif match["string"]:
            end = _end_of_string(source, match.end())
        else:
            end = match.end()
        out.append(_blank(source[match.start() : end]))
        at = end
    out.append(source[at:])
    return "".join(out)


_MODULE = re.compile(
    r"(?P<attributes>(?:#\[[^\]]*\]\s*)*)(?:pub\s*(?:\([^)]*\))?\s+)?\bmod\s+(?P<name>\w+)\s*;"
)
_PATH = re.compile(r'#\[\s*path\s*=\s*"([^"]+)"')


def modules(source: str) -> Iterator[tuple[str, str | None]]:
    """Each module that the file includes from another one: its name, and the file that a `path` attribute names."""
    for match in _MODULE.finditer(code_only(source)):
        path = _PATH.search(source, match.start(), match.end())
        yield match["name"], path[1] if path else None


@dataclass(frozen=True)
class Function:
    name: str
    first_line: int
    line_count: int


def functions(source: str) -> Iterator[Function]:
    """Every function with a body, methods and nested ones included."""
    code = code_only(source)
    for match in re.finditer(r"\bfn\s+(?:r#)?(\w+)", code):
        start = _body_start(code, match.end())
        if start is None:
            continue
        end = _body_end(code, start)
        first = code.count("\n", 0, match.start()) + 1
        yield Function(match[1], first, code.count("\n", match.start(), end) + 1)


def _body_start(code: str, at: int) -> int | None:
    """Where the body's brace is; None for a declaration, which ends with a semicolon."""
    depth = 0
    for position in range(at, len(code)):
        letter = code[position]
        if letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif depth == 0 and letter == "{":
            return position
        elif depth == 0 and letter == ";":
            return None
    return None


def _body_end(code: str, start: int) -> int:
    depth = 0
    for mark in re.compile(r"[{}]").finditer(code, start):
        depth += 1 if mark[0] == "{" else -1
        if depth == 0:
            return mark.end()
    return len(code)
