"""The register-tiled contraction leaf: C[m, n] = epilogue(sum over k of A[m, k] * B[k, n]).

    em = Emitter()
    c = Contraction("f32", target, m="512", n="%n", k="%k",
                    a=Strided("%a", "%k", "1"), b=Strided("%b", "%n", "1"),
                    store=strided_store("f32", target, "%c", "%n"), scratch="%scratch")
    emit_contraction(em, c)

emits it into the function being built, for thread `tid` of `nt` (i32 operands, "%tid" and "%nt"
unless said otherwise; tid "0" and nt "1" for one thread). The module needs the lines of
`declarations`, and at link time the symbols of `support_module(dtype, target)`, which all
contractions of a process share (compile it once, keep its object, without LLVM's middle end).

* Every element is computed by one thread: sums over blocks of at most `Tile.block` k, each one a
  chain of fused multiply-adds from 0 in order of k, added up in order. The blocks depend on k only:
  the result does not depend on threads, on m, n or layouts, or on the position of an element.
* `store(em, row, col, value, mask)` emits the epilogue and the store of the vector of columns col,
  col + 1, ... of a row. It is called once for whole vectors and once for the masked edge, within
  loops, and its code runs exactly once for every element, after the sum is complete (zero for
  k = 0). It may emit blocks. Within a tile, rows vary fastest: `columns(em, col, count, mask,
  body)`, if there is one, calls `body` once for each version of the code for the vector of columns
  from col on (`count` of them are stored), with what stores a row of it.
* `scratch` points to `scratch_bytes(dtype, target)` bytes for this thread alone, aligned to 64.
* A and B are read where they lie (see `Strided`, `Computed`, `Packed`); they must not overlap what
  `store` writes. Weights used again and again are worth packing once, by `emit_prepack`. A computed
  element of A is computed once for every block of columns (2 KB of a row with AVX-512), of B once
  for all rows (where k is over a block: for every 512), and by each thread that needs it.
* One row is done by functions of its own (`row`), with the bits that tiles would give.
* Low m takes kernels of fewer rows and more columns, and reads B in place. There is no special case
  for n = 1 (it costs as much as n = lanes): with few columns and many rows, exchange the roles,
  C' = B' * A', which only exchanges strides. A vector times a matrix whose k is contiguous is
  slower than a reduction over vectors of k would be (which sums in another order).

Loops, outermost first: column blocks (B block in L2), row blocks (only where partial sums must wait
in scratch), k blocks (pack B), row tiles (pack the panel of A, L1), kernels over panels, and after
the last k block the epilogue over the finished tile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from nnc.codegen import flow, matrix, pack, points, strips, tiles, vectors
from nnc.codegen import row as single
from nnc.codegen.emit import Emitter
from nnc.codegen.pack import OVERSHOOT, Computed, Operand, Packed, Strided, Window
from nnc.codegen.strips import Strips
from nnc.codegen.target import Target
from nnc.codegen.tiles import Tile

__all__ = [
    "LINES",
    "OVERSHOOT",
    "Columns",
    "Computed",
    "Contraction",
    "Packed",
    "Ready",
    "StoreRow",
    "Strided",
    "declarations",
    "emit_contraction",
    "emit_prepack",
    "packed_bytes",
    "scratch_bytes",
    "strided_store",
    "support_kind",
    "support_module",
    "support_symbols",
]

_COLUMNS = {64: 2048, 32: 1024, 16: 512}  # bytes of a row of a B block, by vector bytes
_KEPT = 10  # panels of a computed A that are made once for all blocks of columns (in L2)
_PARTIAL_ROWS = 512  # rows of partial sums kept while B is packed once
_IN_PLACE = 256  # rows up to which packing B costs more than reading it in place,
_NEAR = 1 << 20  # if all of B has few enough bytes to be found in the cache
_FAR = 1 << 19  # bytes of A from which on its rows are fetched ahead,
_B_FAR = 1 << 21  # and of B
_LOW = 8  # fewer rows read B from the cache as slowly as they are computed
_ALIASING = 4096  # and its rows are no multiple of so many bytes apart: those share cache sets

LINES = "lines"  # in a support kind

Store = Callable[[Emitter, str, str, str, str | None], None]
StoreRow = Callable[[Emitter, str, str], None]  # (em, row, value)
Columns = Callable[[Emitter, str, str, str | None, Callable[[StoreRow], None]], None]


@dataclass(frozen=True)
class Contraction:
    """What to contract; see the head of this file."""

    dtype: str
    target: Target
    m: str
    n: str
    k: str
    a: Operand
    b: Operand | Packed
    store: Store
    scratch: str
    tid: str = "%tid"
    nt: str = "%nt"
    ready: Ready | None = None
    begin: tuple[str, str] = ("0", "0")  # column and k of `ready` that are 0 here
    columns: Columns | None = None
    batches: str = "1"  # so many, whose A lie one behind the other
    result: Strided | None = None  # where C lies, if the epilogue only stores there
    strips: Strips | None = None  # how lines of B share memory


@dataclass(frozen=True)
class Ready:
    """B, or a matrix that B is a part of, packed by `emit_prepack` to `ptr` if `when` (an i1)."""

    when: str
    ptr: str
    k: str  # of the whole matrix


def _columns(t: Tile) -> int:
    """Columns of a block of B."""
    return _COLUMNS[t.lanes * t.size] // t.size


def _areas(t: Tile) -> tuple[int, int, int, int, int]:
    """Bytes of scratch for transposing, panels of A, the block of B, the (partial) sums and what
    finds lines in strips."""
    depth = -(-t.block // OVERSHOOT) * OVERSHOOT
    a = _KEPT * pack.slot_bytes(t)
    b, c = depth * _columns(t), _PARTIAL_ROWS * _columns(t)
    return pack.stage_bytes(t), a, b * t.size, c * t.size, strips.AREA


def scratch_bytes(dtype: str, target: Target) -> int:
    """Bytes of scratch for each thread."""
    return sum(_areas(tiles.tile(dtype, target)))


def support_kind(dtype: str, stored: str) -> str:
    """Names the support module that operands of `dtype` need which are `stored` as another, or in
    strips ("lines")."""
    return f"{dtype} {stored}" if stored else dtype


def declarations(kind: str, target: Target) -> tuple[str, ...]:
    """Lines that the module must hold, each once. `kind`: a dtype, or a `support_kind`."""
    dtype, _, stored = kind.partition(" ")
    t = tiles.tile(dtype, target)
    if stored == LINES:
        return strips.declarations(t)
    if (m := points.side_of(kind)) is not None:
        return points.declarations(t, m)
    shared = (*pack.shared_declarations(t, stored), *single.declarations(t, stored))
    if stored:
        return (*vectors.stored_declarations(t), *shared)
    return (*tiles.declarations(t), *vectors.declarations(t), *shared)


def support_module(kind: str, target: Target) -> str:
    """The IR text of the micro-kernels and packing functions of a dtype.

    Of a `support_kind`, the packing functions and those for one row.
    """
    dtype, _, stored = kind.partition(" ")
    t = tiles.tile(dtype, target)
    if (m := points.side_of(kind)) is not None:
        return points.module(t, target, m)
    lines = (*tiles.kernel_declarations(t, target), *vectors.declarations(t))
    triple = f'target triple = "{target.triple}"'
    if stored == LINES:
        return "\n".join((triple, *lines, strips.definitions(t, target)))
    functions = (pack.definitions(t, stored), single.definitions(t, target, stored))
    if stored:
        return "\n".join((triple, *lines, *vectors.stored_declarations(t), *functions))
    return "\n".join((triple, *lines, *functions, tiles.definitions(t, target)))


def support_symbols(kind: str, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that `support_module` defines and contractions refer to: functions, and data."""
    declared = declarations(kind, target)
    names = [re.search(r"@(nnrt_\w+)", line) for line in declared]
    found = [(m[1], line.startswith("@")) for m, line in zip(names, declared, strict=True) if m]
    return tuple(n for n, data in found if not data), tuple(n for n, data in found if data)


def strided_store(
    dtype: str, target: Target, ptr: str, row_stride: str, col_stride: str = "1"
) -> Store:
    """A `store` without epilogue, to ptr[row * row_stride + col * col_stride]."""
    t = tiles.tile(dtype, target)

    def store(em: Emitter, row: str, col: str, value: str, mask: str | None) -> None:
        at = flow.add(em, flow.mul(em, row, row_stride), flow.mul(em, col, col_stride))
        place = flow.offset(em, ptr, at, t.type)
        if col_stride == "1":
            vectors.store_vector(em, t, value, place, mask)
        else:
            vectors.scatter_vector(em, t, value, place, col_stride, mask)

    return store


def packed_bytes(dtype: str, target: Target, n: int, k: int) -> int:
    """Bytes of a `Packed` right operand of k rows and n columns."""
    t = tiles.tile(dtype, target)
    return -(-n // t.panel) * t.panel * -(-k // OVERSHOOT) * OVERSHOOT * t.size


def emit_prepack(
    em: Emitter, dtype: str, target: Target, b: Operand, n: str, k: str, to: str,
    scratch: str = "%scratch", tid: str = "%tid", nt: str = "%nt",
) -> None:  # fmt: skip
    """Packs a k x n right operand to `to` (`packed_bytes`, aligned to 64); threads split panels.

    `scratch` as for a contraction.
    """
    t = tiles.tile(dtype, target)
    panel = str(t.panel)
    who, parts = _wide(em, tid), _wide(em, nt)
    panels = flow.ceil_div(em, n, panel)
    p0 = flow.share(em, panels, who, parts)
    p1 = flow.share(em, panels, flow.add(em, who, "1"), parts)
    gap = flow.mul(em, flow.round_up(em, k, str(OVERSHOOT)), panel)
    j0 = flow.mul(em, p0, panel)
    columns = flow.sub(em, flow.minimum(em, flow.mul(em, p1, panel), n), j0)
    to = flow.offset(em, to, flow.mul(em, p0, gap), t.type)
    window = Window(b, "0", k, j0, columns)
    pack.pack_panels(em, t, window, to, gap, scratch)


def _wide(em: Emitter, x: str) -> str:
    return em.op(f"zext i32 {x} to i64", "wide") if flow.const(x) is None else x


@dataclass(frozen=True)
class _Range:
    start: str
    size: str


def emit_contraction(em: Emitter, c: Contraction) -> None:
    """Emits this thread's part of the contraction, ending in an open block."""
    emission = _Emission(em, c)
    one_row = emission.is_one_row()
    if one_row != "true":
        with flow.when(em, flow.negate(em, one_row)):
            emission.emit()
    if one_row != "false":
        with flow.when(em, one_row):
            emission.row()


class _Emission:
    def __init__(self, em: Emitter, c: Contraction) -> None:
        self.em, self.c = em, c
        self.t = tiles.tile(c.dtype, c.target)
        starts = accumulate(_areas(self.t), initial=0)
        areas = [flow.offset(em, c.scratch, str(at), "i8") for at in starts]
        self.stage, self.panels, self.b_block, self.sums, self.area, _ = areas
        self.a_panel = self.panels

    def is_one_row(self) -> str:
        """Whether there is one row and B is best read where it lies."""
        em, c = self.em, self.c
        if c.ready is not None and c.ready.when == "true":  # nothing is faster than packed panels
            return "false"
        if isinstance(c.b, Packed) or not single.fits(c.b) or flow.const(c.m) not in (None, 1):
            return "false"
        longest = str(single.LONGEST // self.t.size)
        short = flow.compare(em, "sle", c.k, longest)
        alone = flow.compare(em, "eq", c.m, "1")
        return alone if short == "true" else flow.select(em, alone, "i1", short, "false")

    def row(self) -> None:
        em, c = self.em, self.c
        assert isinstance(c.b, Strided), c.b
        sizes, thread = (c.n, c.k, self.block_depth()), (_wide(em, c.tid), _wide(em, c.nt))
        single.emit_row(em, self.t, c.a, c.b, sizes, c.store, c.scratch, thread)

    def block_depth(self) -> str:
        """k in a block: as even as fours allow (words: as whole steps of the matrix unit do)."""
        em, c = self.em, self.c
        step = str(OVERSHOOT) if self.t.type == "i32" else "4"
        blocks = flow.maximum(em, flow.ceil_div(em, c.k, str(self.t.block)), "1")
        return flow.maximum(em, flow.round_up(em, flow.ceil_div(em, c.k, blocks), step), step)

    def emit(self) -> None:
        em, t, c = self.em, self.t, self.c
        rows, columns = self.parts()
        self.depth = self.block_depth()
        self.blocks = flow.maximum(em, flow.ceil_div(em, c.k, self.depth), "1")
        self.one_block = flow.compare(em, "eq", self.blocks, "1")
        self.copies = self.copies_panels(rows)
        self.in_place = self.reads_in_place(rows)
        self.far = self.is_far(rows)
        self.b_far = self.is_b_far()
        self.height = self.most_rows(rows)
        if t.fetches:
            pack.list_nothing(em, t, self.a_panel)
        for_columns = flow.ceil_div(em, columns.size, str(_columns(t)))
        # Without partial sums in scratch there is no reason to cut the rows.
        row_blocks = "1"
        if not self.all_direct():
            row_blocks = flow.ceil_div(em, rows.size, str(_PARTIAL_ROWS))
            row_blocks = flow.select(em, self.one_block, "i64", "1", row_blocks)
        self.keep(rows, for_columns)
        with flow.loop(em, "0", for_columns) as jb:
            first = flow.compare(em, "eq", jb, "0")
            self.packs = flow.select(em, self.kept, "i1", first, "true")
            block = self.column_block(columns, jb, for_columns)
            with flow.loop(em, "0", row_blocks) as ib:
                more = flow.compare(em, "slt", flow.add(em, ib, "1"), row_blocks)
                after = flow.add(em, block.start, block.size)
                after = flow.select(em, more, "i64", block.start, after)
                left = flow.sub(em, flow.add(em, columns.start, columns.size), after)
                follow = _Range(after, flow.minimum(em, left, block.size))
                self.row_block(self.cut(rows, ib, row_blocks), block, follow)

    def keep(self, rows: _Range, blocks: str) -> None:
        """Whether all panels of A are made with the first of `blocks` of columns, and kept."""
        em, t, self.kept = self.em, self.t, "false"
        plain = self.far == "false" and self.b_far == "false"
        if not isinstance(self.c.a, Computed) or not plain or blocks == "1":
            return
        count = flow.mul(em, flow.ceil_div(em, rows.size, self.height), self.blocks)
        fits = flow.compare(em, "sle", count, str(_KEPT))
        many = flow.compare(em, "sgt", blocks, "1")
        self.kept = fits if many == "true" else flow.select(em, many, "i1", fits, "false")
        if t.fetches:
            with flow.when(em, self.kept), flow.loop(em, "1", count) as slot:
                pack.list_nothing(em, t, self.slot(slot))

    def slot(self, number: str) -> str:
        return flow.offset(
            self.em, self.panels, flow.mul(self.em, number, str(pack.slot_bytes(self.t))), "i8"
        )

    def parts(self) -> tuple[_Range, _Range]:
        """The rows and columns of this thread."""
        em, t, c = self.em, self.t, self.c
        if c.nt == "1":
            return _Range("0", c.m), _Range("0", c.n)
        tid, nt = _wide(em, c.tid), _wide(em, c.nt)
        # Panels that were packed before stay whole.
        width = t.panel if c.ready is not None or isinstance(c.b, Packed) else t.lanes
        strips, each = flow.ceil_div(em, c.n, str(width)), 8 * width // t.panel
        costs = f"i64 {each}, i64 {self.packing(nt, 6 * each)}"
        grid = f"call {{ i64, i64 }} @nnrt_grid(i64 {c.m}, i64 {strips}, i64 {nt}, {costs})"
        grid = em.op(grid, "grid")
        down = em.op(f"extractvalue {{ i64, i64 }} {grid}, 0", "down")
        across = em.op(f"extractvalue {{ i64, i64 }} {grid}, 1", "across")
        rows = self.cut(_Range("0", c.m), flow.div(em, tid, across), down)
        mine = self.cut(_Range("0", strips), flow.rem(em, tid, across), across)
        start = flow.mul(em, mine.start, str(width))
        end = flow.mul(em, flow.add(em, mine.start, mine.size), str(width))
        return rows, _Range(start, flow.sub(em, flow.minimum(em, end, c.n), start))

    def packing(self, nt: str, cost: int) -> str:
        """What a strip of B costs each part: nothing where it was packed and is near. Rows are cut
        then, as those of what comes before and after are: each thread finds them in its cache."""
        em, c = self.em, self.c
        if c.ready is None:
            return str(cost)
        size = flow.mul(em, flow.mul(em, c.n, c.k), str(self.t.size))
        near = flow.compare(em, "sle", size, str(_NEAR))
        high = flow.compare(em, "sge", c.m, flow.mul(em, nt, str(_LOW)))
        free = flow.select(em, near, "i1", high, "false")
        free = flow.select(em, free, "i1", c.ready.when, "false")
        return flow.select(em, free, "i64", "0", str(cost))

    def cut(self, whole: _Range, part: str, parts: str) -> _Range:
        em = self.em
        if parts == "1":
            return whole
        start = flow.share(em, whole.size, part, parts)
        end = flow.share(em, whole.size, flow.add(em, part, "1"), parts)
        return _Range(flow.add(em, whole.start, start), flow.sub(em, end, start))

    def column_block(self, columns: _Range, part: str, parts: str) -> _Range:
        """Cuts at multiples of a panel."""
        em, panel = self.em, str(self.t.panel)
        if parts == "1":
            return columns
        panels = self.cut(_Range("0", flow.ceil_div(em, columns.size, panel)), part, parts)
        start = flow.mul(em, panels.start, panel)
        end = flow.mul(em, flow.add(em, panels.start, panels.size), panel)
        end = flow.minimum(em, end, columns.size)
        return _Range(flow.add(em, columns.start, start), flow.sub(em, end, start))

    def reads_in_place(self, rows: _Range) -> str:
        em, b = self.em, self.c.b
        if not isinstance(b, Strided) or b.col_stride != "1" or b.stored:
            return "false"
        clash = self.clashes(b)
        elements = flow.mul(em, self.c.k, self.c.n)
        near = flow.compare(em, "sle", elements, str(_NEAR // self.t.size))
        # One row tile reads B once: nothing is better than in place. For more, whole runs of a row,
        # as packing reads them, come in faster from memory than columns of a panel.
        most = flow.select(em, near, "i64", str(_IN_PLACE), str(self.t.rows))
        most = flow.select(em, clash, "i64", str(self.t.rows), most)
        here = flow.compare(em, "sle", rows.size, most)
        return flow.select(em, self.copies, "i1", "false", here)

    def copies_panels(self, rows: _Range) -> str:
        """Whether the first row tile reads B in place and its kernels pack it for the others."""
        em, t, c = self.em, self.t, self.c
        if not t.copying or not isinstance(c.b, Strided) or c.b.col_stride != "1" or c.b.stored:
            return "false"
        more = flow.compare(em, "sgt", rows.size, str(t.rows))
        count = flow.maximum(em, flow.ceil_div(em, rows.size, str(t.rows)), "1")
        first = flow.div(em, rows.size, count)
        high = flow.compare(em, "sge", first, str(t.copying.start))
        copies = flow.select(em, more, "i1", high, "false")
        return copies if c.ready is None else flow.select(em, c.ready.when, "i1", "false", copies)

    def clashes(self, b: Strided) -> str:
        """Whether the rows of B share sets of the cache."""
        em = self.em
        apart = flow.rem(em, flow.mul(em, b.row_stride, str(self.t.size)), str(_ALIASING))
        return flow.compare(em, "eq", apart, "0")

    def most_rows(self, rows: _Range) -> str:
        """Rows of a tile. Low tiles are wider: where B is far and read in place, two of them find
        longer runs of it in memory than one."""
        em, t, b = self.em, self.t, self.c.b
        if self.b_far == "false" or self.in_place == "false" or not isinstance(b, Strided):
            return str(t.rows)
        low = max(h for h in range(1, t.rows + 1) if t.wide(h) > t.panel)
        few = flow.compare(em, "sle", rows.size, str(t.rows))
        few = flow.select(em, self.b_far, "i1", few, "false")
        few = flow.select(em, self.clashes(b), "i1", "false", few)
        return flow.select(em, few, "i64", str(low), str(t.rows))

    def row_block(self, rows: _Range, columns: _Range, follow: _Range) -> None:
        """`follow`: the columns after these."""
        em, t = self.em, self.t
        with flow.loop(em, "0", self.blocks) as pc:
            k0 = flow.mul(em, pc, self.depth)
            kc = flow.minimum(em, self.depth, flow.sub(em, self.c.k, k0))
            panels = self.right(k0, kc, columns)
            tiles_ = flow.ceil_div(em, rows.size, self.height)
            with flow.loop(em, "0", tiles_) as it:
                part = self.cut(rows, it, tiles_)
                window = Window(self.c.a, part.start, part.size, k0, kc)
                number = flow.add(em, flow.mul(em, pc, tiles_), it)
                self.a_panel = self.slot(flow.select(em, self.kept, "i64", number, "0"))
                with flow.when(em, self.packs):
                    pack.pack_rows(em, t, window, self.a_panel, self.stage)
                ahead = self.next_block(pc, columns, follow)
                self.tiles_ = tiles_
                self.row_tile(rows, part, columns, pc, _Range(k0, kc), panels, (it, *ahead))

    def is_b_far(self) -> str:
        """Whether B comes from memory that is far, by whole runs, and is not packed yet."""
        em, c = self.em, self.c
        if not isinstance(c.b, Strided) or c.b.stored or not self.t.fetches:
            return "false"
        if "1" not in (c.b.row_stride, c.b.col_stride):
            return "false"
        size = flow.mul(em, flow.mul(em, c.n, c.k), str(self.t.size))
        far = flow.compare(em, "sge", size, str(_B_FAR))
        if c.ready is None or far == "false":
            return far
        return flow.select(em, flow.negate(em, c.ready.when), "i1", far, "false")

    def next_block(self, pc: str, columns: _Range, follow: _Range) -> tuple[_Range, _Range]:
        """The k and the columns of the block of B after this one (perhaps none)."""
        em = self.em
        next_ = flow.add(em, pc, "1")
        more = flow.compare(em, "slt", next_, self.blocks)
        k = flow.select(em, more, "i64", flow.mul(em, next_, self.depth), "0")
        kc = flow.minimum(em, self.depth, flow.sub(em, self.c.k, k))
        start = flow.select(em, more, "i64", columns.start, follow.start)
        size = flow.select(em, more, "i64", columns.size, follow.size)
        return _Range(k, kc), _Range(start, size)

    def fetch_block(self, ahead: tuple[str, _Range, _Range], turn: str, turns: str, k: str) -> None:
        """Lists a share of the block of B that comes next; `ahead`: the number of the row tile, and
        the block; `turn` of `turns` in this tile."""
        em, b, t = self.em, self.c.b, self.t
        if self.b_far == "false":
            return
        assert isinstance(b, Strided)
        tile, ks, columns = ahead
        skip = flow.select(em, self.far, "i64", "2", "0")  # those list rows of A
        mine = flow.sub(em, turn, skip)
        listing = flow.select(em, self.b_far, "i1", flow.compare(em, "sge", mine, "0"), "false")
        with flow.when(em, listing):
            each = flow.maximum(em, flow.sub(em, turns, skip), "0")
            number = flow.add(em, flow.mul(em, tile, each), mine)
            along = b.col_stride == "1"
            run, runs = (columns.size, ks.size) if along else (ks.size, columns.size)
            line = str(64 // t.size)
            lines = flow.maximum(em, flow.ceil_div(em, run, line), "1")
            room = flow.div(em, flow.div(em, k, str(tiles.UNROLL)), lines)
            first = flow.mul(em, number, room)
            some = flow.compare(em, "slt", first, runs)
            with flow.when(em, some):
                count = flow.minimum(em, room, flow.sub(em, runs, first))
                source = b if along else Strided(b.ptr, b.col_stride, "1")
                row, col = (ks.start, columns.start) if along else (columns.start, ks.start)
                start = flow.add(em, row, first), col
                pack.list_rows(em, t, source, start, count, run, self.a_panel)
            with flow.when(em, flow.negate(em, some)):
                pack.list_nothing(em, t, self.a_panel)

    def is_far(self, rows: _Range) -> str:
        """Whether A comes from memory that is far, by whole runs of its rows."""
        em, a = self.em, self.c.a
        if not isinstance(a, Strided) or a.col_stride != "1" or a.stored or not self.t.fetches:
            return "false"
        size = flow.mul(em, flow.mul(em, rows.size, self.c.k), str(self.t.size))
        return flow.compare(em, "sge", flow.mul(em, size, self.c.batches), str(_FAR))

    def fetch_ready(self, b: str, tile: str, kc: str) -> None:
        """Lists this row tile's share of what follows in a panel that was packed before."""
        em, c, t = self.em, self.c, self.t
        if c.ready is None or not t.fetches:
            return
        size = flow.mul(em, flow.mul(em, c.n, c.k), str(t.size))
        far = flow.compare(em, "sge", size, str(_B_FAR))
        free = flow.select(em, self.far, "i1", "false", c.ready.when)
        with flow.when(em, flow.select(em, far, "i1", free, "false")):
            block = flow.mul(em, kc, str(t.panel))
            share = flow.round_up(em, flow.ceil_div(em, block, self.tiles_), str(64 // t.size))
            room = flow.mul(em, flow.div(em, kc, str(tiles.UNROLL)), str(64 // t.size))
            at = flow.add(em, block, flow.mul(em, tile, share))
            source, some = Strided(b, "0", "1"), flow.minimum(em, share, room)
            pack.list_rows(em, t, source, ("0", at), "1", some, self.a_panel)

    def fetch_next(self, rows: _Range, part: _Range, k: _Range, turn: str) -> None:
        """Lists the rows of A that are packed next (the last time, the first ones of the next k, or
        of the next batch, behind this one): half of them in the first turn, the others in the
        second."""
        em, a, t = self.em, self.c.a, self.t
        if self.far == "false":
            return
        assert isinstance(a, Strided)
        listing = flow.select(em, self.far, "i1", flow.compare(em, "slt", turn, "2"), "false")
        with flow.when(em, listing):
            after = flow.sub(em, flow.add(em, part.start, part.size), rows.start)
            more = flow.compare(em, "slt", after, rows.size)
            more = more if self.c.batches == "1" else "true"
            half = flow.ceil_div(em, part.size, "2")
            row = flow.add(em, rows.start, flow.select(em, more, "i64", after, "0"))
            row = flow.add(em, row, flow.mul(em, half, turn))
            col = flow.select(em, more, "i64", k.start, flow.add(em, k.start, k.size))
            pack.list_rows(em, t, a, (row, col), half, k.size, self.a_panel)
        done = flow.select(em, self.far, "i1", flow.compare(em, "eq", turn, "2"), "false")
        with flow.when(em, done):
            pack.list_nothing(em, t, self.a_panel)

    def right(self, k0: str, kc: str, columns: _Range) -> _Right:
        """Packs the block of B, or what of it is not read in place."""
        em, t, c = self.em, self.t, self.c
        row, panel = str(t.panel * t.size), str(t.panel)
        whole = flow.mul(em, flow.div(em, columns.size, panel), panel)
        if isinstance(c.b, Packed):
            gap = flow.mul(em, flow.round_up(em, c.k, str(OVERSHOOT)), panel)
            at = flow.mul(em, flow.div(em, columns.start, panel), gap)
            at = flow.add(em, at, flow.mul(em, k0, panel))
            packed = _Panels(flow.offset(em, c.b.ptr, at, t.type), row, gap)
            return _Right(packed, packed, whole)
        gap = flow.mul(em, flow.round_up(em, kc, str(OVERSHOOT)), panel)
        skips = flow.select(em, self.copies, "i1", "true", self.in_place)
        skip = flow.select(em, skips, "i64", whole, "0")
        start, size = flow.add(em, columns.start, skip), flow.sub(em, columns.size, skip)
        to = flow.mul(em, flow.div(em, skip, panel), gap)
        to = flow.offset(em, self.b_block, to, t.type)
        window = Window(c.b, k0, kc, start, size)
        if c.strips is not None:
            return self.in_strips(c.strips, window, gap)
        needed = "true" if c.ready is None else flow.negate(em, c.ready.when)
        with flow.when(em, needed):
            pack.pack_panels(em, t, window, to, gap, self.stage)
        packed = _Panels(self.b_block, row, gap)
        here = _Right(self.first(packed, k0, columns), packed, whole)
        return here if c.ready is None else self.or_ready(here, c.ready, k0, columns)

    def copies_now(self, tile: str, whole: str) -> str:
        em = self.em
        first = flow.select(em, flow.compare(em, "eq", tile, "0"), "i1", whole, "false")
        return flow.select(em, self.copies, "i1", first, "false")

    def copying(
        self, when: str, at: tuple[str, str], index: str, b: str, b_k: str, gap: str, kernel: str
    ) -> tuple[str, str, str, str]:
        """B, bytes between its rows and to its copy (which is `b`), and the kernel, if `when`."""
        em, t = self.em, self.t
        there, apart = self.source(*at)
        table = f"[{t.rows} x ptr], ptr @nnrt_copies_{t.dtype}, i64 0, i64 {index}"
        copy = em.op(f"load ptr, ptr {em.op(f'getelementptr {table}', 'copy')}", "copy")
        behind = flow.sub(em, *(em.op(f"ptrtoint ptr {p} to i64", "at") for p in (b, there)))
        return (
            flow.select(em, when, "ptr", there, b),
            flow.select(em, when, "i64", apart, b_k),
            flow.select(em, when, "i64", behind, gap),
            flow.select(em, when, "ptr", copy, kernel),
        )

    def source(self, k: str, column: str) -> tuple[str, str]:
        """Where B is, and bytes between its rows."""
        em, t, b = self.em, self.t, self.c.b
        assert isinstance(b, Strided)
        at = flow.add(em, flow.mul(em, k, b.row_stride), column)
        return flow.offset(em, b.ptr, at, t.type), flow.mul(em, b.row_stride, str(t.size))

    def in_strips(self, s: Strips, b: Window, gap: str) -> _Right:
        """Strips of the block of B where that is decided, or it is packed."""
        em, t = self.em, self.t
        room = _areas(t)[2] // t.size
        block = strips.Block(b.row, b.rows, b.col, b.cols, self.b_block, room, self.area, gap)
        shape = strips.shape(em, t, s, block)
        with flow.when(em, shape.fits):
            strips.fill(em, t, s, block, shape, self.stage)
        with flow.when(em, flow.negate(em, shape.fits)):
            pack.pack_panels(em, t, b, self.b_block, gap, self.stage)
            strips.packed_places(em, t, block)
        panels = _Panels(self.b_block, "0", gap)
        return _Right(panels, panels, b.cols, shape.fits)

    def first(self, packed: _Panels, k0: str, columns: _Range) -> _Panels:
        """The full panels: in place where that is decided."""
        em, t = self.em, self.t
        if self.in_place == "false":
            return packed
        there, apart = self.source(k0, columns.start)
        return _Panels(
            flow.select(em, self.in_place, "ptr", there, packed.ptr),
            flow.select(em, self.in_place, "i64", apart, packed.row_bytes),
            flow.select(em, self.in_place, "i64", str(t.panel), packed.gap),
        )

    def or_ready(self, here: _Right, ready: Ready, k0: str, columns: _Range) -> _Right:
        """The panels that were packed before, if they were."""
        em, t, (column, k) = self.em, self.t, self.c.begin
        panel = str(t.panel)
        gap = flow.mul(em, flow.round_up(em, ready.k, str(OVERSHOOT)), panel)
        number = flow.div(em, flow.add(em, columns.start, column), panel)
        at = flow.add(em, flow.mul(em, number, gap), flow.mul(em, flow.add(em, k0, k), panel))
        there = flow.offset(em, ready.ptr, at, t.type)

        def either(p: _Panels) -> _Panels:
            return _Panels(
                flow.select(em, ready.when, "ptr", there, p.ptr),
                flow.select(em, ready.when, "i64", str(t.panel * t.size), p.row_bytes),
                flow.select(em, ready.when, "i64", gap, p.gap),
            )

        whole = flow.select(em, ready.when, "i64", columns.size, here.whole)
        return _Right(either(here.first), either(here.edge), whole)

    def row_tile(
        self,
        rows: _Range,
        part: _Range,
        columns: _Range,
        pc: str,
        k: _Range,
        right: _Right,
        ahead: tuple[str, _Range, _Range],
    ) -> None:
        """The kernels of one row tile over the panels, each followed by its epilogue."""
        em, t = self.em, self.t
        panel, lanes = str(t.panel), str(t.lanes)
        index = flow.sub(em, part.size, "1")
        kernels = em.op(
            f"getelementptr [3 x ptr], ptr @nnrt_tiles_{t.dtype}, i64 {index}", "kernels"
        )
        wides = em.op(f"getelementptr i64, ptr @nnrt_wide_{t.dtype}, i64 {index}", "wides")
        wide = em.op(f"load i64, ptr {wides}", "wide")
        turns = flow.ceil_div(em, columns.size, wide)
        first = flow.compare(em, "eq", pc, "0")
        again = em.op(f"select i1 {first}, i32 0, i32 1", "again")
        last = flow.compare(em, "eq", flow.add(em, pc, "1"), self.blocks)
        strip = flow.mul(
            em, flow.sub(em, part.start, rows.start), flow.round_up(em, columns.size, panel)
        )
        with (
            matrix.ready(em, t.dtype, part.size, t.vector_rows),
            flow.stepping(em, "0", columns.size) as step,
        ):
            j = step.index
            left = flow.sub(em, columns.size, j)
            is_wide = flow.compare(em, "sge", left, wide)
            is_wide = self.in_one_picture(right, flow.add(em, columns.start, j), wide, is_wide)
            is_panel = flow.compare(em, "sgt", left, lanes)
            narrow = flow.select(em, is_panel, "i64", panel, lanes)
            width = flow.select(em, is_wide, "i64", wide, narrow)
            kind = em.op(f"select i1 {is_panel}, i64 1, i64 0", "kind")
            kind = em.op(f"select i1 {is_wide}, i64 2, i64 {kind}", "kind")
            kernel = em.op(f"getelementptr ptr, ptr {kernels}, i64 {kind}", "kernel")
            kernel = em.op(f"load ptr, ptr {kernel}", "kernel")
            turn = flow.div(em, j, wide)
            self.fetch_next(rows, part, k, turn)
            self.fetch_block(ahead, turn, turns, k.size)
            b, b_k, b_panel = right.at(em, t, j)
            if self.c.strips is not None:
                b, b_k = strips.place_of(em, t, self.area, j)
                b_panel = flow.select(em, right.strips, "i64", str(t.panel * t.size), b_panel)
                is_tile = flow.compare(em, "eq", b_k, str(t.panel * t.size))
                tiles_of = flow.offset(em, kernels, kind, "ptr")
                lines_of = em.op(
                    f"getelementptr [3 x ptr], ptr @nnrt_lines_{t.dtype}, i64 {index}, i64 {kind}"
                )
                kernel = flow.select(em, is_tile, "ptr", tiles_of, lines_of)
                kernel = em.op(f"load ptr, ptr {kernel}", "kernel")
            self.fetch_ready(b, ahead[0], k.size)
            if self.copies != "false":
                inside = flow.compare(em, "slt", j, right.whole)
                column = flow.add(em, columns.start, j)
                b, b_k, b_panel, kernel = self.copying(
                    self.copies_now(ahead[0], inside),
                    (k.start, column),
                    index,
                    b,
                    b_k,
                    b_panel,
                    kernel,
                )
            here = flow.mul(em, j, part.size)
            at = flow.add(em, strip, here)
            at = flow.select(em, self.one_block, "i64", here if t.vector_rows else "0", at)
            sums = flow.offset(em, self.sums, at, t.type)
            valid = flow.minimum(em, width, left)
            col = flow.add(em, columns.start, j)
            to, apart, whole = self.direct(part.start, col, valid, width, sums)
            em.line(
                f"call void {kernel}(ptr {self.a_panel}, ptr {b}, i64 {b_k}, i64 {b_panel}, "
                f"i64 {k.size}, ptr {to}, i32 {again}{apart})"
            )
            if not t.vector_rows:
                with flow.when(em, flow.select(em, whole, "i1", "false", last)):
                    self.epilogue(part, col, valid, width, sums)
            step.step = width
        if t.vector_rows:
            with flow.when(em, last):
                self.epilogues(part, columns, wide, strip)

    def epilogues(self, part: _Range, columns: _Range, wide: str, strip: str) -> None:
        """Those of a row tile. The matrix unit sleeps when it has nothing to do for 0.3 us, and
        wakes as slowly: it does all products of the tile before."""
        em, t = self.em, self.t
        with flow.stepping(em, "0", columns.size) as step:
            j = step.index
            left = flow.sub(em, columns.size, j)
            width = self.width(left, wide)
            here = flow.mul(em, j, part.size)
            at = flow.select(em, self.one_block, "i64", here, flow.add(em, strip, here))
            sums = flow.offset(em, self.sums, at, t.type)
            valid = flow.minimum(em, width, left)
            self.epilogue(part, flow.add(em, columns.start, j), valid, width, sums)
            step.step = width

    def width(self, left: str, wide: str) -> str:
        """Columns of the next kernel: as many as the widest, of a panel, of a vector."""
        em, t = self.em, self.t
        is_panel = flow.compare(em, "sgt", left, str(t.lanes))
        narrow = flow.select(em, is_panel, "i64", str(t.panel), str(t.lanes))
        return flow.select(em, flow.compare(em, "sge", left, wide), "i64", wide, narrow)

    def all_direct(self) -> bool:
        """Whether all tiles have whole panels of columns, and go to the result."""
        n = flow.const(self.c.n)
        whole = n is not None and n % self.t.panel == 0
        return whole and self.c.result is not None and self.t.fetches

    def direct(self, row: str, col: str, valid: str, width: str, sums: str) -> tuple[str, str, str]:
        """Where the kernel puts its sums, the argument that says how far rows are apart, and
        whether (an i1) that is the result: where all columns are, and nothing is left to do."""
        em, t, to = self.em, self.t, self.c.result
        if not t.fetches:
            return sums, "", "false"
        apart = flow.mul(em, width, str(t.size))
        if to is None:
            return sums, f", i64 {apart}", "false"
        whole = flow.compare(em, "eq", valid, width)
        at = flow.add(em, flow.mul(em, row, to.row_stride), col)
        place = flow.select(em, whole, "ptr", flow.offset(em, to.ptr, at, t.type), sums)
        apart = flow.select(em, whole, "i64", flow.mul(em, to.row_stride, str(t.size)), apart)
        return place, f", i64 {apart}", whole

    def in_one_picture(self, right: _Right, column: str, wide: str, is_wide: str) -> str:
        """Whether also panels in strips follow each other that far."""
        em, s = self.em, self.c.strips
        if s is None:
            return is_wide
        last = flow.sub(em, flow.add(em, column, wide), "1")
        ends = flow.div(em, column, s.period), flow.div(em, last, s.period)
        one = flow.compare(em, "eq", *ends)
        one = flow.select(em, right.strips, "i1", one, "true")
        return flow.select(em, is_wide, "i1", one, "false")

    def epilogue(self, part: _Range, j0: str, valid: str, width: str, sums: str) -> None:
        """Calls `store` for the valid columns of a finished tile."""
        em, t = self.em, self.t
        lanes = str(t.lanes)

        def columns(at: str, count: str, mask: str | None) -> None:
            col = flow.add(em, j0, at)

            def rows(store: StoreRow) -> None:
                with flow.loop(em, "0", part.size) as i:
                    place = flow.offset(em, sums, flow.add(em, flow.mul(em, i, width), at), t.type)
                    value = em.op(f"load {t.vector}, ptr {place}", "sum")
                    store(em, flow.add(em, part.start, i), value)

            if self.c.columns is None:
                rows(lambda em, row, value: self.c.store(em, row, col, value, mask))
            else:
                self.c.columns(em, col, count, mask, rows)

        whole = flow.div(em, valid, lanes)
        with flow.loop(em, "0", whole) as v:
            columns(flow.mul(em, v, lanes), lanes, None)
        n = flow.const(self.c.n)
        if n is not None and n % t.lanes == 0:
            return
        rest = flow.rem(em, valid, lanes)
        with flow.when(em, flow.compare(em, "ne", rest, "0")):
            columns(flow.mul(em, whole, lanes), rest, vectors.lane_mask(em, t, rest))


@dataclass(frozen=True)
class _Panels:
    """Panels as the kernels address them: bytes between k, elements between panels."""

    ptr: str
    row_bytes: str
    gap: str


@dataclass(frozen=True)
class _Right:
    """The block of B: `whole` columns in full panels (perhaps in place), the rest packed."""

    first: _Panels
    edge: _Panels
    whole: str
    strips: str = "false"  # i1: whether it is in strips

    def at(self, em: Emitter, t: Tile, j: str) -> tuple[str, str, str]:
        """Pointer, b_k and b_panel (bytes) for the kernel at column j, a multiple of a panel."""
        inside = flow.compare(em, "slt", j, self.whole)
        p = flow.div(em, j, str(t.panel))
        ptr = flow.select(em, inside, "ptr", self.first.ptr, self.edge.ptr)
        gap = flow.select(em, inside, "i64", self.first.gap, self.edge.gap)
        row = flow.select(em, inside, "i64", self.first.row_bytes, self.edge.row_bytes)
        place = flow.offset(em, ptr, flow.mul(em, p, gap), t.type)
        return place, row, flow.mul(em, gap, str(t.size))
