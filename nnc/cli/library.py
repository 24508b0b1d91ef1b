"""`nnc show std.nn.Linear`: definitions as they stand in the library's files."""

from __future__ import annotations

import re
from pathlib import Path

from nnc.errors import ArgumentError, nearest

STD = Path(__file__).resolve().parent.parent / "std"
_HEAD = re.compile(
    r"(?:export\s+)?(?:module|def|const|adjoint)\s+(\w+)|extern\s+\"[^\"]*\"\s+def\s+(\w+)"
)


def shown(name: str) -> str:
    """The source of `std.nn.Linear` with its place; all of `std.nn`; a list of `std`."""
    parts = name.split(".")
    if parts[0] != "std":
        homes = [f"std.{s}.{name}" for s, p in _files().items() if name in _names(p)]
        like = f"did you mean {' or '.join(homes)}?" if homes else "like std.nn.Linear"
        raise ArgumentError(f"{name}: library names begin with std; {like}")
    files = _files()
    if len(parts) == 1:
        return "\n".join(f"std.{stem}: {', '.join(_names(p))}" for stem, p in files.items())
    if parts[1] not in files:
        raise ArgumentError(f"there is no std.{parts[1]}{nearest(parts[1], files)}")
    path = files[parts[1]]
    lines = path.read_text("utf-8").splitlines()
    if len(parts) == 2:
        return "\n".join(lines)
    if len(parts) == 3:
        blocks = definition(lines, parts[2])
        if blocks:
            return "\n\n".join(_block(path, lines, *b) for b in blocks)
    wanted = ".".join(parts[2:])
    raise ArgumentError(f"std.{parts[1]} has no {wanted}{nearest(wanted, _names(path))}")


def _files() -> dict[str, Path]:
    return {p.stem: p for p in sorted(STD.glob("*.nn"))}


def definition(lines: list[str], name: str) -> list[tuple[int, int]]:
    """First and last line (from 0) of every definition of `name`, with the comment above it."""
    return [(start, _end(lines, start)) for start, found in _heads(lines) if found == name]


def _heads(lines: list[str]) -> list[tuple[int, str]]:
    found = ((i, _HEAD.match(line)) for i, line in enumerate(lines))
    return [(i, m.group(1) or m.group(2)) for i, m in found if m]


def _end(lines: list[str], start: int) -> int:
    """The last line of the block: what is indented, or inside an open bracket."""
    last = start
    depth = _depth(lines[start])
    for i in range(start + 1, len(lines)):
        line = lines[i]
        if depth <= 0 and line.strip() and not line[0].isspace():
            break
        depth += _depth(line)
        last = i if line.strip() else last
    return last


def _depth(line: str) -> int:
    code = line.split("#")[0]
    return sum(code.count(c) for c in "([{") - sum(code.count(c) for c in ")]}")


def _block(path: Path, lines: list[str], start: int, end: int) -> str:
    first = start
    while first and lines[first - 1].startswith("#"):
        first -= 1
    if first == 1 or first == 0 < start:  # the comment at the top is about the file
        first = start
    return "\n".join([f"# std/{path.name}:{start + 1}", *lines[first : end + 1]])


def _names(path: Path) -> list[str]:
    return list(dict.fromkeys(n for _, n in _heads(path.read_text("utf-8").splitlines())))
