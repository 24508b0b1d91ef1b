"""Packing a window of B: panels of `Tile.panel` columns, each [k][column]."""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import Load, Tabled, VectorLoad, Window, computed
from nnc.codegen.pack_squares import lines_from, transposed
from nnc.codegen.pack_tables import Place, pack_tabled, transpose_tabled
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import lane_mask, put

_RUN = "8"  # successive k copied from one panel's columns before going to the next panel


def emit_panels(em: Emitter, t: Tile, b: Window, to: str, gap: str, stage: str) -> None:
    source = computed(t, b.of)
    if source.vector is None:
        _gather_panels(em, t, b, source.load, to, gap)
    elif source.table is not None:
        tabled = _tabled_panels if source.axis == 1 else _transpose_tabled_panels
        tabled(em, t, b, source.table, to, gap, stage)
    elif source.axis == 1:
        _copy_panels(em, t, b, source.vector, to, gap)
    else:
        _transpose_panels(em, t, b, to, gap, stage)


def _gather_panels(em: Emitter, t: Tile, b: Window, load: Load, to: str, gap: str) -> None:
    # Repeats the last column in the lanes past it: whatever was there could be slow to multiply.
    last = flow.sub(em, flow.add(em, b.col, b.cols), "1")
    panel = str(t.panel)
    with flow.loop(em, "0", flow.ceil_div(em, b.cols, panel)) as p:
        base = flow.offset(em, to, flow.mul(em, p, gap), t.type)
        left = flow.add(em, b.col, flow.mul(em, p, panel))
        with flow.loop(em, "0", b.rows) as k, flow.loop(em, "0", panel) as c:
            x = load(em, flow.add(em, b.row, k), flow.minimum(em, flow.add(em, left, c), last))
            put(em, t, x, base, flow.add(em, flow.mul(em, k, panel), c), t.type)


def _copy_panels(em: Emitter, t: Tile, b: Window, vector: VectorLoad, to: str, gap: str) -> None:
    panel = str(t.panel)
    whole = flow.div(em, b.cols, panel)
    rest = flow.rem(em, b.cols, panel)

    def copy(k: str, p: str, masks: list[str | None]) -> None:
        base = flow.offset(em, to, flow.mul(em, p, gap), t.type)
        left = flow.add(em, b.col, flow.mul(em, p, panel))
        for v, mask in enumerate(masks):
            col = flow.add(em, left, str(v * t.lanes))
            x = vector(em, flow.add(em, b.row, k), col, mask)
            at = flow.add(em, flow.mul(em, k, panel), str(v * t.lanes))
            put(em, t, x, base, at, t.vector)

    vectors = range(t.panel // t.lanes)
    with flow.loop(em, "0", b.rows, _RUN) as start:
        stop = flow.minimum(em, flow.add(em, start, _RUN), b.rows)
        with flow.loop(em, "0", whole) as p, flow.loop(em, start, stop) as k:
            copy(k, p, [None for _ in vectors])
    with flow.when(em, flow.compare(em, "ne", rest, "0")):
        masks = [lane_mask(em, t, flow.sub(em, rest, str(v * t.lanes))) for v in vectors]
        with flow.loop(em, "0", b.rows) as k:
            copy(k, whole, list(masks))


def _column(em: Emitter, t: Tile, j: str, gap: str) -> str:
    """Where the first row of column j goes."""
    panel = str(t.panel)
    return flow.add(em, flow.mul(em, flow.div(em, j, panel), gap), flow.rem(em, j, panel))


def _transpose_panels(em: Emitter, t: Tile, b: Window, to: str, gap: str, stage: str) -> None:
    lanes, panel = str(t.lanes), str(t.panel)
    with flow.loop(em, "0", b.cols, lanes) as j:
        base = _column(em, t, j, gap)
        lines = lines_from(em, t, b.of, b.col, j, b.cols)
        with flow.loop(em, "0", b.rows, lanes) as k:
            mask = lane_mask(em, t, flow.sub(em, b.rows, k))
            rows = transposed(em, t, lines, flow.add(em, b.row, k), mask, stage)
            for r, x in enumerate(rows):
                at = flow.mul(em, flow.add(em, k, str(r)), panel)
                put(em, t, x, to, flow.add(em, base, at), t.vector)


def _tabled_panels(
    em: Emitter, t: Tile, b: Window, x: Tabled, to: str, gap: str, stage: str
) -> None:
    panel = str(t.panel)

    def place(j: str) -> Place:
        base = _column(em, t, j, gap)
        return lambda k: flow.add(em, base, flow.mul(em, k, panel))

    pack_tabled(em, t, x, stage, (b.row, b.rows), (b.col, b.cols), t.panel // t.lanes, to, place)


def _transpose_tabled_panels(
    em: Emitter, t: Tile, b: Window, x: Tabled, to: str, gap: str, stage: str
) -> None:
    panel = str(t.panel)

    def place(row: str, col: str) -> str:
        base = _column(em, t, col, gap)
        return flow.add(em, base, flow.mul(em, row, panel))

    transpose_tabled(em, t, x, stage, (b.col, b.cols), (b.row, b.rows), to, place)
