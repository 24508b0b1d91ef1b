"""Vectors in IR: masks, element-aligned memory, transposition in registers."""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.tiles import Tile, suffix


def lane_mask(em: Emitter, t: Tile, count: str) -> str:
    """A mask of the lanes below `count` (an i64; it may exceed the lanes)."""
    narrow = em.op(f"trunc i64 {count} to i32", "count")
    one = em.op(f"insertelement <{t.lanes} x i32> poison, i32 {narrow}, i64 0", "count")
    zero = f"<{t.lanes} x i32> zeroinitializer"
    all_ = em.op(
        f"shufflevector <{t.lanes} x i32> {one}, <{t.lanes} x i32> poison, {zero}", "count"
    )
    lanes = ", ".join(f"i32 {i}" for i in range(t.lanes))
    return em.op(f"icmp slt <{t.lanes} x i32> <{lanes}>, {all_}", "mask")


def load_vector(em: Emitter, t: Tile, pointer: str, mask: str | None) -> str:
    """A vector from element-aligned memory; excluded lanes are 0 and are not touched."""
    if mask is None:
        return em.op(f"load {t.vector}, ptr {pointer}, align {t.size}", "x")
    return em.op(
        f"call {t.vector} @llvm.masked.load.{suffix(t)}.p0(ptr align {t.size} {pointer}, "
        f"<{t.lanes} x i1> {mask}, {t.vector} zeroinitializer)",
        "x",
    )


def load_more(em: Emitter, t: Tile, pointer: str, mask: str | None, rest: str) -> str:
    """As `load_vector`, with the lanes of `rest` where the mask excludes them."""
    if mask is None:
        return load_vector(em, t, pointer, None)
    return em.op(
        f"call {t.vector} @llvm.masked.load.{suffix(t)}.p0(ptr align {t.size} {pointer}, "
        f"<{t.lanes} x i1> {mask}, {t.vector} {rest})",
        "x",
    )


def load_stored(em: Emitter, t: Tile, stored: str, pointer: str, mask: str | None) -> str:
    """As `load_vector`, from memory that holds `stored` ("bf16", or "": the tile's dtype)."""
    if not stored:
        return load_vector(em, t, pointer, mask)
    halves = f"<{t.lanes} x i16>"
    if mask is None:
        x = em.op(f"load {halves}, ptr {pointer}, align 2", "half")
    else:
        x = em.op(
            f"call {halves} @llvm.masked.load.v{t.lanes}i16.p0(ptr align 2 {pointer}, "
            f"<{t.lanes} x i1> {mask}, {halves} zeroinitializer)",
            "half",
        )
    words = f"<{t.lanes} x i32>"
    x = em.op(f"zext {halves} {x} to {words}", "word")
    x = em.op(f"shl {words} {x}, splat (i32 16)", "word")
    return em.op(f"bitcast {words} {x} to {t.vector}", "x")


def load_element(em: Emitter, t: Tile, stored: str, pointer: str) -> str:
    """One element of such memory."""
    if not stored:
        return em.op(f"load {t.type}, ptr {pointer}, align {t.size}", "x")
    x = em.op(f"load i16, ptr {pointer}, align 2", "half")
    x = em.op(f"shl i32 {em.op(f'zext i16 {x} to i32', 'word')}, 16", "word")
    return em.op(f"bitcast i32 {x} to {t.type}", "x")


def stored_type(t: Tile, stored: str) -> str:
    """The type of an element in memory."""
    return "i16" if stored else t.type


def store_vector(em: Emitter, t: Tile, value: str, pointer: str, mask: str | None) -> None:
    """A vector to element-aligned memory; excluded lanes are not touched."""
    if mask is None:
        em.line(f"store {t.vector} {value}, ptr {pointer}, align {t.size}")
        return
    em.line(
        f"call void @llvm.masked.store.{suffix(t)}.p0({t.vector} {value}, "
        f"ptr align {t.size} {pointer}, <{t.lanes} x i1> {mask})"
    )


def scatter_vector(
    em: Emitter, t: Tile, value: str, pointer: str, stride: str, mask: str | None
) -> None:
    """The lanes of a vector to pointer[lane * stride]; excluded lanes are not touched."""
    lanes = t.lanes
    whole = "<" + ", ".join(["i1 true"] * lanes) + ">"
    steps = "<" + ", ".join(f"i64 {i}" for i in range(lanes)) + ">"
    one = em.op(f"insertelement <{lanes} x i64> poison, i64 {stride}, i64 0", "stride")
    zero = f"<{lanes} x i32> zeroinitializer"
    all_ = em.op(f"shufflevector <{lanes} x i64> {one}, <{lanes} x i64> poison, {zero}", "stride")
    offsets = em.op(f"mul <{lanes} x i64> {all_}, {steps}", "offsets")
    places = em.op(f"getelementptr {t.type}, ptr {pointer}, <{lanes} x i64> {offsets}", "places")
    em.line(
        f"call void @llvm.masked.scatter.{suffix(t)}.v{lanes}p0({t.vector} {value}, "
        f"<{lanes} x ptr> align {t.size} {places}, <{lanes} x i1> {mask or whole})"
    )


def declarations(t: Tile) -> tuple[str, ...]:
    """Lines for a module that uses this file."""
    v, m = t.vector, f"<{t.lanes} x i1>"
    return (
        *flow.DECLARATIONS,
        f"declare {v} @llvm.masked.load.{suffix(t)}.p0(ptr, {m}, {v})",
        f"declare void @llvm.masked.store.{suffix(t)}.p0({v}, ptr, {m})",
        f"declare void @llvm.masked.scatter.{suffix(t)}.v{t.lanes}p0({v}, <{t.lanes} x ptr>, {m})",
    )


def stored_declarations(t: Tile) -> tuple[str, ...]:
    """Further lines for a module that uses `load_stored` of narrower elements."""
    halves, mask = f"<{t.lanes} x i16>", f"<{t.lanes} x i1>"
    return (f"declare {halves} @llvm.masked.load.v{t.lanes}i16.p0(ptr, {mask}, {halves})",)


def transpose(em: Emitter, t: Tile, rows: list[str]) -> list[str]:
    """The columns of a lanes x lanes matrix in registers: log2(lanes) rounds of exchanges."""
    assert len(rows) == t.lanes, rows
    lanes, rows, s = range(t.lanes), list(rows), 1
    while s < t.lanes:
        low = [c if not c & s else t.lanes + c - s for c in lanes]
        high = [c + s if not c & s else t.lanes + c for c in lanes]
        for i in (i for i in lanes if not i & s):
            x, y = rows[i], rows[i + s]
            rows[i], rows[i + s] = _shuffle(em, t, x, y, low), _shuffle(em, t, x, y, high)
        s *= 2
    return rows


def _shuffle(em: Emitter, t: Tile, x: str, y: str, order: list[int]) -> str:
    mask = f"<{t.lanes} x i32> <" + ", ".join(f"i32 {i}" for i in order) + ">"
    return em.op(f"shufflevector {t.vector} {x}, {t.vector} {y}, {mask}", "t")


def put(em: Emitter, t: Tile, value: str, base: str, at: str, type_: str) -> None:
    """A vector or scalar to base[at]."""
    em.line(f"store {type_} {value}, ptr {flow.offset(em, base, at, t.type)}, align {t.size}")
