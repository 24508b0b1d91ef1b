"""Operands of a contraction, and the code that copies their blocks into packed panels.

A panel of A holds the rows of one register tile, k contiguous, `Tile.a_row` apart. A block of B
holds panels of `Tile.panel` columns, each [k][column], `round_up(kc, OVERSHOOT)` rows apart.
Packing may write (never read) up to OVERSHOOT - 1 elements of k past the block.

Strided operands are packed by functions that all contractions of a process share; only `Computed`
ones are packed by code of their own:

    void nnrt_pack_rows_<dtype>_<axis>(src, row_stride, col_stride, height, kc, panel)
    void nnrt_pack_panels_<dtype>_<axis>(src, row_stride, col_stride, kc, columns, to, gap)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.tiles import Tile, suffix

OVERSHOOT = 16  # at least the lanes of any target
_RUN = "8"  # successive k copied from one panel's columns before going to the next panel

Load = Callable[[Emitter, str, str], str]
VectorLoad = Callable[[Emitter, str, str, str | None], str]


@dataclass(frozen=True)
class Strided:
    """Element (row, col) is at ptr[row * row_stride + col * col_stride].

    Strides count elements: SSA names or constants, 0 allowed. A stride written "1" makes that axis
    the vector axis; one that only happens to be 1 at run time is right, but read by elements.
    """

    ptr: str
    row_stride: str
    col_stride: str


@dataclass(frozen=True)
class Computed:
    """Elements made by emitted code, such as an element-wise prologue or a window.

    load(em, row, col) gives a scalar; it is called within the matrix only. `vector`, if there is
    one, gives the vector of successive elements along `axis` (1: of a row, 0: of a column) that
    starts at (row, col); lanes that the mask excludes must not be read and may hold anything.
    Give `vector` along the axis that is contiguous in memory. Both may emit blocks.
    """

    load: Load
    vector: VectorLoad | None = None
    axis: int = 1


@dataclass(frozen=True)
class Packed:
    """A right operand that `contract.emit_prepack` wrote to ptr: panels over the whole of k, each
    of `round_up(k, OVERSHOOT)` rows."""

    ptr: str


Operand = Strided | Computed


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


def computed(t: Tile, operand: Operand) -> Computed:
    """Any operand as code for its elements."""
    if isinstance(operand, Computed):
        return operand
    ptr, rs, cs = operand.ptr, operand.row_stride, operand.col_stride

    def place(em: Emitter, row: str, col: str) -> str:
        at = flow.add(em, flow.mul(em, row, rs), flow.mul(em, col, cs))
        return flow.offset(em, ptr, at, t.type)

    def load(em: Emitter, row: str, col: str) -> str:
        return em.op(f"load {t.type}, ptr {place(em, row, col)}, align {t.size}", "x")

    def vector(em: Emitter, row: str, col: str, mask: str | None) -> str:
        return load_vector(em, t, place(em, row, col), mask)

    if cs == "1" or rs == "1":
        return Computed(load, vector, 1 if cs == "1" else 0)
    return Computed(load)


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


def _store(em: Emitter, t: Tile, value: str, base: str, at: str, type_: str) -> None:
    em.line(f"store {type_} {value}, ptr {flow.offset(em, base, at, t.type)}, align {t.size}")


def _axis(operand: Strided) -> str:
    """The vector axis as the shared functions' names have it."""
    if operand.col_stride == "1":
        return "1"
    return "0" if operand.row_stride == "1" else "none"


def _start(em: Emitter, t: Tile, x: Strided, row: str, col: str) -> str:
    """Arguments: the address of an element, and the strides."""
    at = flow.add(em, flow.mul(em, row, x.row_stride), flow.mul(em, col, x.col_stride))
    place = flow.offset(em, x.ptr, at, t.type)
    return f"ptr {place}, i64 {x.row_stride}, i64 {x.col_stride}"


def pack_rows(
    em: Emitter, t: Tile, a: Operand, i0: str, height: str, k0: str, kc: str, panel: str
) -> None:
    """Rows i0 .. i0 + height of A, k from k0 to k0 + kc, to a panel of A."""
    if isinstance(a, Computed):
        _rows(em, t, a, i0, height, k0, kc, panel)
        return
    name = f"@nnrt_pack_rows_{t.dtype}_{_axis(a)}"
    em.line(f"call void {name}({_start(em, t, a, i0, k0)}, i64 {height}, i64 {kc}, ptr {panel})")


def pack_panels(
    em: Emitter, t: Tile, b: Operand, k0: str, kc: str, j0: str, columns: str, to: str, gap: str
) -> None:
    """Columns j0 .. j0 + columns of B, k from k0 to k0 + kc, to panels `gap` elements apart."""
    if isinstance(b, Computed):
        _panels(em, t, b, k0, kc, j0, columns, to, gap)
        return
    name = f"@nnrt_pack_panels_{t.dtype}_{_axis(b)}"
    rest = f"i64 {kc}, i64 {columns}, ptr {to}, i64 {gap}"
    em.line(f"call void {name}({_start(em, t, b, k0, j0)}, {rest})")


_SIGNATURES = {"rows": "i64, i64, ptr", "panels": "i64, i64, ptr, i64"}
_AXES = {"1": ("%rs", "1"), "0": ("1", "%cs"), "none": ("%rs", "%cs")}


def shared_declarations(t: Tile) -> tuple[str, ...]:
    """Lines for a module that calls the shared functions."""
    return tuple(
        f"declare void @nnrt_pack_{what}_{t.dtype}_{axis}(ptr, i64, i64, {rest})"
        for what, rest in _SIGNATURES.items()
        for axis in _AXES
    )


def definitions(t: Tile) -> str:
    """The shared functions."""
    return "\n".join(
        _definition(t, what, axis, strides)
        for what in _SIGNATURES
        for axis, strides in _AXES.items()
    )


def _definition(t: Tile, what: str, axis: str, strides: tuple[str, str]) -> str:
    em = Emitter()
    em.label("entry")
    source = computed(t, Strided("%src", *strides))
    if what == "rows":
        _rows(em, t, source, "0", "%height", "0", "%kc", "%to")
        rest = "i64 %height, i64 %kc, ptr %to"
    else:
        _panels(em, t, source, "0", "%kc", "0", "%columns", "%to", "%gap")
        rest = "i64 %kc, i64 %columns, ptr %to, i64 %gap"
    em.line("ret void")
    head = f"define void @nnrt_pack_{what}_{t.dtype}_{axis}(ptr %src, i64 %rs, i64 %cs, {rest})"
    return f"{head} nounwind {{\n{em.text()}\n}}\n"


def _rows(
    em: Emitter, t: Tile, a: Computed, i0: str, height: str, k0: str, kc: str, panel: str
) -> None:
    if a.vector is None:
        with flow.loop(em, "0", height) as i, flow.loop(em, "0", kc) as k:
            x = a.load(em, flow.add(em, i0, i), flow.add(em, k0, k))
            _store(em, t, x, panel, flow.add(em, flow.mul(em, i, str(t.a_row)), k), t.type)
    elif a.axis == 1:
        _copy_rows(em, t, a.vector, i0, height, k0, kc, panel)
    else:
        _transpose_rows(em, t, a.vector, i0, height, k0, kc, panel)


def _copy_rows(
    em: Emitter, t: Tile, vector: VectorLoad, i0: str, height: str, k0: str, kc: str, panel: str
) -> None:
    rest = flow.rem(em, kc, str(t.lanes))
    whole = flow.sub(em, kc, rest)
    mask = lane_mask(em, t, rest)
    with flow.loop(em, "0", height) as i:
        row, to = flow.add(em, i0, i), flow.mul(em, i, str(t.a_row))
        with flow.loop(em, "0", whole, str(t.lanes)) as k:
            x = vector(em, row, flow.add(em, k0, k), None)
            _store(em, t, x, panel, flow.add(em, to, k), t.vector)
        with flow.when(em, flow.compare(em, "ne", rest, "0")):
            x = vector(em, row, flow.add(em, k0, whole), mask)
            _store(em, t, x, panel, flow.add(em, to, whole), t.vector)


def _transpose_rows(
    em: Emitter, t: Tile, vector: VectorLoad, i0: str, height: str, k0: str, kc: str, panel: str
) -> None:
    last = flow.sub(em, flow.add(em, k0, kc), "1")
    lanes = str(t.lanes)
    with flow.loop(em, "0", height, lanes) as i:
        row = flow.add(em, i0, i)
        mask = lane_mask(em, t, flow.sub(em, height, i))
        with flow.loop(em, "0", kc, lanes) as k:
            first = flow.add(em, k0, k)
            columns = [
                vector(em, row, flow.minimum(em, flow.add(em, first, str(o)), last), mask)
                for o in range(t.lanes)
            ]
            for r, x in enumerate(transpose(em, t, columns)):
                to = flow.mul(em, flow.add(em, i, str(r)), str(t.a_row))
                _store(em, t, x, panel, flow.add(em, to, k), t.vector)


def _panels(
    em: Emitter, t: Tile, b: Computed, k0: str, kc: str, j0: str, columns: str, to: str, gap: str
) -> None:
    if b.vector is None:
        _gather_panels(em, t, b.load, k0, kc, j0, columns, to, gap)
    elif b.axis == 1:
        _copy_panels(em, t, b.vector, k0, kc, j0, columns, to, gap)
    else:
        _transpose_panels(em, t, b.vector, k0, kc, j0, columns, to, gap)


def _gather_panels(
    em: Emitter, t: Tile, load: Load, k0: str, kc: str, j0: str, columns: str, to: str, gap: str
) -> None:
    # Repeats the last column in the lanes past it: whatever was there could be slow to multiply.
    last = flow.sub(em, flow.add(em, j0, columns), "1")
    panel = str(t.panel)
    with flow.loop(em, "0", flow.ceil_div(em, columns, panel)) as p:
        base = flow.offset(em, to, flow.mul(em, p, gap), t.type)
        left = flow.add(em, j0, flow.mul(em, p, panel))
        with flow.loop(em, "0", kc) as k, flow.loop(em, "0", panel) as c:
            x = load(em, flow.add(em, k0, k), flow.minimum(em, flow.add(em, left, c), last))
            _store(em, t, x, base, flow.add(em, flow.mul(em, k, panel), c), t.type)


def _copy_panels(
    em: Emitter,
    t: Tile,
    vector: VectorLoad,
    k0: str,
    kc: str,
    j0: str,
    columns: str,
    to: str,
    gap: str,
) -> None:
    panel = str(t.panel)
    whole = flow.div(em, columns, panel)
    rest = flow.rem(em, columns, panel)

    def copy(k: str, p: str, masks: list[str | None]) -> None:
        base = flow.offset(em, to, flow.mul(em, p, gap), t.type)
        left = flow.add(em, j0, flow.mul(em, p, panel))
        for v, mask in enumerate(masks):
            col = flow.add(em, left, str(v * t.lanes))
            x = vector(em, flow.add(em, k0, k), col, mask)
            at = flow.add(em, flow.mul(em, k, panel), str(v * t.lanes))
            _store(em, t, x, base, at, t.vector)

    vectors = range(t.panel // t.lanes)
    with flow.loop(em, "0", kc, _RUN) as start:
        stop = flow.minimum(em, flow.add(em, start, _RUN), kc)
        with flow.loop(em, "0", whole) as p, flow.loop(em, start, stop) as k:
            copy(k, p, [None for _ in vectors])
    with flow.when(em, flow.compare(em, "ne", rest, "0")):
        masks = [lane_mask(em, t, flow.sub(em, rest, str(v * t.lanes))) for v in vectors]
        with flow.loop(em, "0", kc) as k:
            copy(k, whole, list(masks))


def _transpose_panels(
    em: Emitter,
    t: Tile,
    vector: VectorLoad,
    k0: str,
    kc: str,
    j0: str,
    columns: str,
    to: str,
    gap: str,
) -> None:
    last = flow.sub(em, flow.add(em, j0, columns), "1")
    lanes, panel = str(t.lanes), str(t.panel)
    with flow.loop(em, "0", columns, lanes) as j:
        left = flow.add(em, j0, j)
        base = flow.add(em, flow.mul(em, flow.div(em, j, panel), gap), flow.rem(em, j, panel))
        with flow.loop(em, "0", kc, lanes) as k:
            mask = lane_mask(em, t, flow.sub(em, kc, k))
            rows = [
                vector(
                    em,
                    flow.add(em, k0, k),
                    flow.minimum(em, flow.add(em, left, str(o)), last),
                    mask,
                )
                for o in range(t.lanes)
            ]
            for r, x in enumerate(transpose(em, t, rows)):
                at = flow.mul(em, flow.add(em, k, str(r)), panel)
                _store(em, t, x, to, flow.add(em, base, at), t.vector)
