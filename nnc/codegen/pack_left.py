"""Packing a window of A: rows of one register tile, k contiguous, `Tile.a_row` apart."""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import Runs, Tabled, VectorLoad, Window, computed
from nnc.codegen.pack_squares import lines_from, transposed
from nnc.codegen.pack_tables import Place, pack_tabled, table_of, transpose_tabled, words_of
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import lane_mask, load_vector, put


def emit_rows(em: Emitter, t: Tile, a: Window, panel: str, stage: str) -> None:
    source = computed(t, a.of)
    if source.runs is not None:
        _copy_runs(em, t, a, source.runs, panel, stage)
    elif source.vector is None:
        with flow.loop(em, "0", a.rows) as i, flow.loop(em, "0", a.cols) as k:
            x = source.load(em, flow.add(em, a.row, i), flow.add(em, a.col, k))
            put(em, t, x, panel, flow.add(em, flow.mul(em, i, str(t.a_row)), k), t.type)
    elif source.axis == 1 and source.table is not None:
        _tabled_rows(em, t, a, source.table, panel, stage)
    elif source.axis == 1:
        _copy_rows(em, t, a, source.vector, panel)
    elif source.table is not None:
        _transpose_tabled_rows(em, t, a, source.table, panel, stage)
    else:
        _transpose_rows(em, t, a, panel, stage)


def _copy_rows(em: Emitter, t: Tile, a: Window, vector: VectorLoad, panel: str) -> None:
    rest = flow.rem(em, a.cols, str(t.lanes))
    whole = flow.sub(em, a.cols, rest)
    mask = lane_mask(em, t, rest)
    with flow.loop(em, "0", a.rows) as i:
        row, to = flow.add(em, a.row, i), flow.mul(em, i, str(t.a_row))
        with flow.loop(em, "0", whole, str(t.lanes)) as k:
            x = vector(em, row, flow.add(em, a.col, k), None)
            put(em, t, x, panel, flow.add(em, to, k), t.vector)
        with flow.when(em, flow.compare(em, "ne", rest, "0")):
            x = vector(em, row, flow.add(em, a.col, whole), mask)
            put(em, t, x, panel, flow.add(em, to, whole), t.vector)


def _copy_runs(em: Emitter, t: Tile, a: Window, x: Runs, panel: str, stage: str) -> None:
    """By whole vectors: what is past a run is written over by the next one, or past the row."""
    table, lanes, length = table_of(t, em, stage), str(t.lanes), str(x.length)
    downs, acrosses = words_of(em, table, 0), words_of(em, table, 1)
    with flow.loop(em, "0", a.rows, lanes) as i:
        x.rows(em, flow.add(em, a.row, i), flow.offset(em, downs, i, "i64"))
    count = flow.div(em, a.cols, length)
    with flow.loop(em, "0", count) as r:
        place = flow.offset(em, acrosses, r, "i64")
        k = flow.add(em, a.col, flow.mul(em, r, length))
        em.line(f"store i64 {x.across(em, k)}, ptr {place}, align 8")
    rest = x.length % t.lanes
    mask = lane_mask(em, t, str(rest)) if rest else None
    with flow.loop(em, "0", a.rows) as i:
        down = em.op(f"load i64, ptr {flow.offset(em, downs, i, 'i64')}, align 8", "down")
        row = flow.offset(em, x.ptr, down, t.type)
        to = flow.offset(em, panel, flow.mul(em, i, str(t.a_row)), t.type)
        with flow.loop(em, "0", count) as r:
            at = em.op(f"load i64, ptr {flow.offset(em, acrosses, r, 'i64')}, align 8", "across")
            run, k = flow.offset(em, row, at, t.type), flow.mul(em, r, length)
            for v in range(0, x.length, t.lanes):
                some = mask if v + t.lanes > x.length else None
                value = load_vector(em, t, flow.offset(em, run, str(v), t.type), some)
                put(em, t, value, to, flow.add(em, k, str(v)), t.vector)


def _transpose_rows(em: Emitter, t: Tile, a: Window, panel: str, stage: str) -> None:
    lanes = str(t.lanes)
    with flow.loop(em, "0", a.rows, lanes) as i:
        row = flow.add(em, a.row, i)
        mask = lane_mask(em, t, flow.sub(em, a.rows, i))
        with flow.loop(em, "0", a.cols, lanes) as k:
            lines = lines_from(em, t, a.of, a.col, k, a.cols)
            for r, x in enumerate(transposed(em, t, lines, row, mask, stage)):
                to = flow.mul(em, flow.add(em, i, str(r)), str(t.a_row))
                put(em, t, x, panel, flow.add(em, to, k), t.vector)


def _tabled_rows(em: Emitter, t: Tile, a: Window, x: Tabled, panel: str, stage: str) -> None:
    def place(k: str) -> Place:
        return lambda row: flow.add(em, flow.mul(em, row, str(t.a_row)), k)

    pack_tabled(em, t, x, stage, (a.row, a.rows), (a.col, a.cols), 1, panel, place)


def _transpose_tabled_rows(
    em: Emitter, t: Tile, a: Window, x: Tabled, panel: str, stage: str
) -> None:
    def place(row: str, col: str) -> str:
        return flow.add(em, flow.mul(em, row, str(t.a_row)), col)

    transpose_tabled(em, t, x, stage, (a.col, a.cols), (a.row, a.rows), panel, place)
