"""Packing of tabled operands (`operands.Tabled`): what is known of a line is worked out once.

The `stage` of packing holds a square to transpose, a table of at most LINES lines with a column for
each of their words, and masks of the vectors at hand, one for each line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import OVERSHOOT, Lanes, Tabled
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import lane_mask, load_vector, put, transpose

LINES = 512  # of a table
LINE_WORDS = 12
PIECES = 4  # of a vector that is not gathered
_ROOM = (LINES + OVERSHOOT) * 8  # bytes of a word's column of the table

Place = Callable[[str], str]


def stage_bytes(t: Tile) -> int:
    """Bytes of the `stage` of packing: a square to transpose, a table of lines, and masks."""
    return t.lanes**2 * t.size + LINE_WORDS * (_ROOM + 2 * LINES * 4)


def table_of(t: Tile, em: Emitter, stage: str) -> str:
    """Room for a table of lines."""
    return flow.offset(em, stage, str(t.lanes**2 * t.size), "i8")


def words_of(em: Emitter, table: str, word: int) -> str:
    """The column of a table that holds one word of all lines."""
    return flow.offset(em, table, str(word * _ROOM), "i8")


def masks_of(em: Emitter, table: str, word: int, slot: int) -> str:
    """Room for LINES masks of one vector, as i32; two vectors can be at hand."""
    at = LINE_WORDS * _ROOM + (2 * word + slot) * LINES * 4
    return flow.offset(em, table, str(at), "i8")


@contextmanager
def lines_of(
    em: Emitter, t: Tile, x: Tabled, table: str, start: str, count: str
) -> Iterator[tuple[str, str]]:
    """Tables of at most LINES lines of start .. start + count: the first (from start), how many."""
    with flow.loop(em, "0", count, str(LINES)) as first:
        some = flow.minimum(em, str(LINES), flow.sub(em, count, first))
        with flow.loop(em, "0", some, str(t.lanes)) as i:
            x.tabulate(em, flow.add(em, start, flow.add(em, first, i)), table, i)
        yield first, some


def either(em: Emitter, most: str, body: Callable[[int], None]) -> None:
    """`body` for vectors of at most one piece, of two, of `PIECES`, of any number."""
    below = "0"
    for pieces in (1, 2, PIECES):
        more = flow.compare(em, "sgt", most, below)
        fits = flow.compare(em, "sle", most, str(pieces))
        with flow.when(em, flow.conjunction(em, fits, more)):
            body(pieces)
        below = str(pieces)
    with flow.when(em, flow.compare(em, "sgt", most, below)):
        body(0)


def pack_tabled(
    em: Emitter, t: Tile, x: Tabled, stage: str,
    lines: tuple[str, str], lanes: tuple[str, str], together: int,
    to: str, place: Callable[[str], Place],
) -> None:  # fmt: skip
    """Vectors at each line; `lines`, `lanes`: the first one and how many. place(lane)(line), both
    from the first: where `together` vectors go, the last of which may be past all lanes."""
    table = table_of(t, em, stage)

    def vectors(at: str, first: str, some: str) -> None:
        prepared, most = [], "0"
        for v in range(together):
            here = flow.add(em, at, str(v * t.lanes))
            mask = lane_mask(em, t, flow.sub(em, lanes[1], here))
            p = x.prepare(em, flow.add(em, lanes[0], here), mask, table, some, v)
            prepared.append(p)
            most = flow.maximum(em, most, p.pieces)
        where = place(at)

        def each(pieces: int) -> None:
            with flow.loop(em, "0", some) as i:
                line = flow.add(em, first, i)
                of = flow.add(em, lines[0], line)
                values = [x.fetch(em, p, of, table, i, pieces) for p in prepared]
                there = where(line)
                for v, value in enumerate(values):
                    put(em, t, value, to, flow.add(em, there, str(v * t.lanes)), t.vector)

        either(em, most, each)

    with (
        lines_of(em, t, x, table, *lines) as (first, some),
        flow.loop(em, "0", lanes[1], str(together * t.lanes)) as at,
    ):
        vectors(at, first, some)


def transpose_tabled(
    em: Emitter, t: Tile, x: Tabled, stage: str,
    lines: tuple[str, str], lanes: tuple[str, str], to: str, place: Callable[[str, str], str],
) -> None:  # fmt: skip
    """As `pack_tabled`, with vectors along the lines: place(lane, line) is where one goes."""
    table, width = table_of(t, em, stage), str(t.lanes)

    def square(prepared: Lanes, k: str, first: str, some: str, j: str) -> None:
        last = flow.sub(em, some, "1")
        with flow.loop(em, "0", width) as o:
            i = flow.minimum(em, flow.add(em, j, o), last)  # lines past the end repeat the last
            line = flow.add(em, lines[0], flow.add(em, first, i))

            def one(pieces: int) -> None:
                value = x.fetch(em, prepared, line, table, i, pieces)
                put(em, t, value, stage, flow.mul(em, o, width), t.vector)

            either(em, prepared.pieces, one)
        places = [flow.offset(em, stage, str(o * t.lanes), t.type) for o in range(t.lanes)]
        rows = transpose(em, t, [load_vector(em, t, p, None) for p in places])
        for r, value in enumerate(rows):
            at = place(flow.add(em, k, str(r)), flow.add(em, first, j))
            put(em, t, value, to, at, t.vector)

    with (
        lines_of(em, t, x, table, *lines) as (first, some),
        flow.loop(em, "0", lanes[1], width) as k,
    ):
        mask = lane_mask(em, t, flow.sub(em, lanes[1], k))
        prepared = x.prepare(em, flow.add(em, lanes[0], k), mask, table, some, 0)
        with flow.loop(em, "0", some, width) as j:
            square(prepared, k, first, some, j)
