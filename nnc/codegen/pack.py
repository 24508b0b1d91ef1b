"""The code that copies blocks of a contraction's operands into packed panels.

A panel of A holds the rows of one register tile, k contiguous, `Tile.a_row` apart. A block of B
holds panels of `Tile.panel` columns, each [k][column], `round_up(kc, OVERSHOOT)` rows apart.
Packing may write (never read) up to OVERSHOOT - 1 elements of k past the block.

Strided operands are packed by functions that all contractions of a process share; only `Computed`
ones are packed by code of their own:

    void nnrt_pack_rows_<dtype>_<axis>(src, row_stride, col_stride, height, kc, panel)
    void nnrt_pack_panels_<dtype>_<axis>(src, row_stride, col_stride, kc, columns, to, gap)

Files: `operands`; `pack_left` and `pack_right` (the two kinds of panels), `pack_squares` and
`pack_tables` (ways to fill both); `pack_lists` (panels of A and what is fetched ahead).
"""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import Computed, Strided, Window
from nnc.codegen.pack_left import emit_rows
from nnc.codegen.pack_lists import list_definition, list_name
from nnc.codegen.pack_right import emit_panels
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import stored_type


def pack_rows(em: Emitter, t: Tile, a: Window, panel: str, stage: str) -> None:
    """A window of A (at most `t.rows` rows, `t.block` columns) to a panel of A.

    `stage` is room for `stage_bytes`.
    """
    if isinstance(a.of, Computed):
        emit_rows(em, t, a, panel, stage)
        return
    start = _start(em, t, a.of, a)
    em.line(f"call void {_name(t, 'rows', a.of)}({start}, i64 {a.rows}, i64 {a.cols}, ptr {panel})")


def pack_panels(em: Emitter, t: Tile, b: Window, to: str, gap: str, stage: str) -> None:
    """A window of B to panels `gap` elements apart; `stage` as above."""
    if isinstance(b.of, Computed):
        emit_panels(em, t, b, to, gap, stage)
        return
    rest = f"i64 {b.rows}, i64 {b.cols}, ptr {to}, i64 {gap}"
    em.line(f"call void {_name(t, 'panels', b.of)}({_start(em, t, b.of, b)}, {rest})")


_SIGNATURES = {"rows": "i64, i64, ptr", "panels": "i64, i64, ptr, i64"}
_AXES = {"1": ("%rs", "1"), "0": ("1", "%cs"), "none": ("%rs", "%cs")}


def shared_declarations(t: Tile, stored: str = "") -> tuple[str, ...]:
    """Lines for a module that calls the shared functions."""
    lists = (f"declare void {list_name(t)}(ptr, i64, i64, i64, ptr)",)
    return (lists if t.fetches and not stored else ()) + tuple(
        f"declare void @nnrt_pack_{what}_{_kind(t, stored)}_{axis}(ptr, i64, i64, {rest})"
        for what, rest in _SIGNATURES.items()
        for axis in _AXES
    )


def definitions(t: Tile, stored: str = "") -> str:
    """The shared functions."""
    functions = [
        _definition(t, what, Strided("%src", *strides, stored))
        for what in _SIGNATURES
        for strides in _AXES.values()
    ]
    if t.fetches and not stored:
        functions.append(list_definition(t))
    return "\n".join(functions)


def _definition(t: Tile, what: str, source: Strided) -> str:
    em = Emitter()
    em.label("entry")
    window = Window(source, "0", "%rows", "0", "%cols")
    rest = "i64 %rows, i64 %cols, ptr %to"
    if what == "rows":
        emit_rows(em, t, window, "%to", "null")
    else:
        emit_panels(em, t, window, "%to", "%gap", "null")
        rest += ", i64 %gap"
    em.line("ret void")
    head = f"define void {_name(t, what, source)}(ptr %src, i64 %rs, i64 %cs, {rest})"
    return f"{head} nounwind {{\n{em.text()}\n}}\n"


def _name(t: Tile, what: str, x: Strided) -> str:
    """The shared function for a layout."""
    axis = "1" if x.col_stride == "1" else "0" if x.row_stride == "1" else "none"
    return f"@nnrt_pack_{what}_{_kind(t, x.stored)}_{axis}"


def _kind(t: Tile, stored: str) -> str:
    return f"{t.dtype}_{stored}" if stored else t.dtype


def _start(em: Emitter, t: Tile, x: Strided, w: Window) -> str:
    """Arguments: the address of the first element, and the strides."""
    at = flow.add(em, flow.mul(em, w.row, x.row_stride), flow.mul(em, w.col, x.col_stride))
    place = flow.offset(em, x.ptr, at, stored_type(t, x.stored))
    return f"ptr {place}, i64 {x.row_stride}, i64 {x.col_stride}"
