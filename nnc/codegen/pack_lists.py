"""Panels of A in memory, and the lists behind them of cache lines to fetch (see `tile_kernels`)."""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import Strided
from nnc.codegen.registers import splat
from nnc.codegen.tiles import UNROLL, Tile

_LINE = 64  # bytes
_AT_ONCE = 8  # addresses
LIST_ROOM = _AT_ONCE * 16  # bytes that may be written behind a list


def slot_bytes(t: Tile) -> int:
    """Bytes of a panel of A and what stands behind it."""
    return -(-(t.panel_bytes + t.list_bytes + LIST_ROOM) // 64) * 64


def list_name(t: Tile) -> str:
    return f"@nnrt_list_{t.dtype}"


def list_rows(
    em: Emitter, t: Tile, a: Strided, start: tuple[str, str], rows: str, cols: str, panel: str
) -> None:
    """Lists a window of A whose rows are contiguous, as far as there is room."""
    (row, col), bytes_ = start, flow.mul(em, cols, str(t.size))
    apart = flow.mul(em, a.row_stride, str(t.size))
    at = flow.add(em, flow.mul(em, row, a.row_stride), col)
    place = flow.offset(em, a.ptr, at, t.type)
    to = flow.offset(em, panel, str(t.panel_bytes), "i8")
    em.line(
        f"call void {list_name(t)}(ptr {place}, i64 {apart}, i64 {rows}, i64 {bytes_}, ptr {to})"
    )


def list_nothing(em: Emitter, t: Tile, panel: str) -> None:
    """Lists what is at hand."""
    to = flow.offset(em, panel, str(t.panel_bytes), "i8")
    room = t.list_bytes // (UNROLL * t.size) * _LINE
    em.line(f"call void {list_name(t)}(ptr {panel}, i64 0, i64 1, i64 {room}, ptr {to})")


def list_definition(t: Tile) -> str:
    """Addresses of all cache lines of `rows` runs of `bytes`, `apart` bytes from each other. Each
    run writes some addresses too many, which the next overwrites."""
    em, step = Emitter(), UNROLL * t.size
    em.label("entry")
    ramp = "<" + ", ".join(f"i64 {i * _LINE}" for i in range(_AT_ONCE)) + ">"
    end = str(t.list_bytes // step)
    lines = flow.ceil_div(em, "%bytes", str(_LINE))
    with flow.loop(em, "0", "%rows") as i:
        row = em.op(
            f"ptrtoint ptr {flow.offset(em, '%src', flow.mul(em, i, '%apart'), 'i8')} to i64"
        )
        with flow.loop(em, "0", lines, str(_AT_ONCE)) as j:
            at = flow.add(em, flow.mul(em, i, lines), j)
            at = flow.minimum(em, at, end)
            first = flow.add(em, row, flow.mul(em, j, str(_LINE)))
            there = em.op(f"add <{_AT_ONCE} x i64> {splat(em, 'i64', first, _AT_ONCE)}, {ramp}")
            if step == 8:
                to = flow.offset(em, "%to", at, "i64")
                em.line(f"store <{_AT_ONCE} x i64> {there}, ptr {to}, align 8")
            else:
                for q in range(_AT_ONCE):
                    one = em.op(f"extractelement <{_AT_ONCE} x i64> {there}, i64 {q}")
                    to = flow.offset(
                        em, "%to", flow.mul(em, flow.add(em, at, str(q)), str(step)), "i8"
                    )
                    em.line(f"store i64 {one}, ptr {to}, align 8")
    em.line("ret void")
    head = f"define void {list_name(t)}(ptr %src, i64 %apart, i64 %rows, i64 %bytes, ptr %to)"
    return f"{head} nounwind {{\n{em.text()}\n}}\n"
