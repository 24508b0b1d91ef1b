"""`nnc fmt`: indentation of 4 per block, no trailing spaces, at most one blank row in a block.

Words and the spaces between them stay as they were written, so columns that were aligned by hand
stay aligned; comments move with the line below them or with the block they stand in.
"""

from __future__ import annotations

from collections.abc import Iterator

from nnc.diagnostics import Diagnostics, Source
from nnc.lang.layout import logical_lines
from nnc.lang.syntax import parse


def format_source(source: Source, diagnostics: Diagnostics) -> str | None:
    """The formatted text, or None with an error in `diagnostics` if the text does not parse."""
    if parse(source, diagnostics) is None:
        return None
    rows = [row.rstrip().expandtabs(4) for row in source.text.removeprefix("\ufeff").splitlines()]
    return "\n".join(_spaced(_indented(source, rows))) + "\n"


def _indented(source: Source, rows: list[str]) -> Iterator[str]:
    """The rows with the indentation of their logical lines."""
    done = 0
    depths: list[int] = []  # the old indentation of each open block
    for line in logical_lines(source, Diagnostics()):
        first, last = line.tokens[0].line - 1, line.tokens[-1].line - 1
        old = _width(rows[first])
        for row in rows[done:first]:  # comments and blank rows above the line
            yield _comment(row, depths, line.level)
        depths[line.level :] = [old]
        for row in rows[first : last + 1]:  # rows of one statement keep their relative places
            yield " " * max(0, 4 * line.level + _width(row) - old) + row.lstrip() if row else ""
        done = last + 1
    for row in rows[done:]:
        yield _comment(row, depths, max(len(depths) - 1, 0))


def _comment(row: str, depths: list[int], otherwise: int) -> str:
    """A comment goes to the open block that begins where it does, else to level `otherwise`."""
    if not row:
        return ""
    width = _width(row)
    level = depths.index(width) if width in depths else otherwise
    return " " * 4 * level + row.lstrip()


def _spaced(rows: Iterator[str]) -> list[str]:
    """No blank rows at the ends; between rows at most two, before an indented row at most one."""
    out: list[str] = []
    blank = 0
    for row in rows:
        if not row:
            blank += 1
            continue
        if out:
            out += [""] * min(blank, 1 if row.startswith(" ") else 2)
        out.append(row)
        blank = 0
    return out


def _width(row: str) -> int:
    return len(row) - len(row.lstrip(" "))
