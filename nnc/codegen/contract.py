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

Files: `contract_types` (what to contract, scratch), `contract_support` (the shared module),
`contract_right` (B), `contract_ahead` (what is fetched), `contract_tile` (kernels and epilogues);
here are the loops, what is decided before them, and all names for users of contractions.
"""

from __future__ import annotations

from nnc.codegen import flow, matrix, pack, pack_lists, tile_kernels
from nnc.codegen import row as single
from nnc.codegen.contract_right import NEAR, emit_prepack, packed_bytes
from nnc.codegen.contract_support import (
    LINES,
    declarations,
    support_kind,
    support_module,
    support_symbols,
)
from nnc.codegen.contract_tile import RowTiles
from nnc.codegen.contract_types import (
    KEPT,
    PARTIAL_ROWS,
    Columns,
    Contraction,
    Range,
    Ready,
    Store,
    StoreRow,
    Touch,
    block_columns,
    panels_bytes,
    scratch_bytes,
    strided_store,
    wide,
)
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import OVERSHOOT, Computed, Packed, Strided, Window

__all__ = [
    "LINES",
    "OVERSHOOT",
    "Columns",
    "Computed",
    "Contraction",
    "Packed",
    "Ready",
    "Store",
    "StoreRow",
    "Strided",
    "Touch",
    "declarations",
    "emit_contraction",
    "emit_prepack",
    "packed_bytes",
    "panels_bytes",
    "scratch_bytes",
    "strided_store",
    "support_kind",
    "support_module",
    "support_symbols",
]

_LOW = 8  # fewer rows read B from the cache as slowly as they are computed


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


class _Emission(RowTiles):
    """The loops around row tiles, and their sizes."""

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
        return flow.conjunction(em, alone, short)

    def row(self) -> None:
        em, c = self.em, self.c
        assert isinstance(c.b, Strided), c.b
        sizes, thread = (c.n, c.k, self.block_depth()), (wide(em, c.tid), wide(em, c.nt))
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
        self.copies, self.line_copies = self.copies_panels(rows), self.copies_lines(rows)
        self.in_place = self.reads_in_place(rows)
        self.far = self.is_far(rows)
        self.b_far = self.is_b_far()
        self.c_far = self.is_c_far()
        self.height = self.most_rows(rows)
        if t.fetches:
            pack_lists.list_nothing(em, t, self.a_panel)
        with matrix.used(em, t.dtype, t.vector_rows, self.state):
            self.emit_blocks(rows, columns)

    def emit_blocks(self, rows: Range, columns: Range) -> None:
        em, t = self.em, self.t
        for_columns = flow.ceil_div(em, columns.size, str(block_columns(t)))
        # Without partial sums in scratch there is no reason to cut the rows.
        row_blocks = "1"
        if not self.all_direct():
            row_blocks = flow.ceil_div(em, rows.size, str(PARTIAL_ROWS))
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
                follow = Range(after, flow.minimum(em, left, block.size))
                self.row_block(self.cut(rows, ib, row_blocks), block, follow)

    def keep(self, rows: Range, blocks: str) -> None:
        """Whether all panels of A are made with the first of `blocks` of columns, and kept."""
        em, t, self.kept = self.em, self.t, "false"
        plain = self.far == "false" and self.b_far == "false"
        if not isinstance(self.c.a, Computed) or not plain or blocks == "1":
            return
        count = flow.mul(em, flow.ceil_div(em, rows.size, self.height), self.blocks)
        fits = flow.compare(em, "sle", count, str(KEPT))
        many = flow.compare(em, "sgt", blocks, "1")
        self.kept = flow.conjunction(em, many, fits)
        if t.fetches:
            with flow.when(em, self.kept), flow.loop(em, "1", count) as slot:
                pack_lists.list_nothing(em, t, self.slot(slot))

    def parts(self) -> tuple[Range, Range]:
        """The rows and columns of this thread."""
        em, t, c = self.em, self.t, self.c
        if c.nt == "1":
            return Range("0", c.m), Range("0", c.n)
        tid, nt = wide(em, c.tid), wide(em, c.nt)
        # Panels that were packed before stay whole, and those whose epilogue takes them whole.
        kept = c.ready is not None or isinstance(c.b, Packed) or c.across > 1
        width = t.panel if kept else t.lanes
        strips, each = flow.ceil_div(em, c.n, str(width)), 8 * width // t.panel
        down, across = tile_kernels.grid(em, c.m, strips, nt, str(each), self.packing(nt, 6 * each))
        rows = self.cut(Range("0", c.m), flow.div(em, tid, across), down)
        mine = self.cut(Range("0", strips), flow.rem(em, tid, across), across)
        start = flow.mul(em, mine.start, str(width))
        end = flow.mul(em, flow.add(em, mine.start, mine.size), str(width))
        return rows, Range(start, flow.sub(em, flow.minimum(em, end, c.n), start))

    def packing(self, nt: str, cost: int) -> str:
        """What a strip of B costs each part: nothing where it was packed and is near. Rows are cut
        then, as those of what comes before and after are: each thread finds them in its cache."""
        em, c = self.em, self.c
        if c.ready is None:
            return str(cost)
        size = flow.mul(em, flow.mul(em, c.n, c.k), str(self.t.size))
        near = flow.compare(em, "sle", size, str(NEAR))
        high = flow.compare(em, "sge", c.m, flow.mul(em, nt, str(_LOW)))
        free = flow.conjunction(em, near, high)
        free = flow.conjunction(em, free, c.ready.when)
        return flow.select(em, free, "i64", "0", str(cost))

    def column_block(self, columns: Range, part: str, parts: str) -> Range:
        """Cuts at multiples of a panel."""
        em, panel = self.em, str(self.t.panel)
        if parts == "1":
            return columns
        panels = self.cut(Range("0", flow.ceil_div(em, columns.size, panel)), part, parts)
        start = flow.mul(em, panels.start, panel)
        end = flow.mul(em, flow.add(em, panels.start, panels.size), panel)
        end = flow.minimum(em, end, columns.size)
        return Range(flow.add(em, columns.start, start), flow.sub(em, end, start))

    def most_rows(self, rows: Range) -> str:
        """Rows of a tile. Low tiles are wider: where B is far and read in place, two of them find
        longer runs of it in memory than one."""
        em, t, b = self.em, self.t, self.c.b
        if self.b_far == "false" or self.in_place == "false" or not isinstance(b, Strided):
            return str(t.rows)
        low = max(h for h in range(1, t.rows + 1) if t.wide(h) > t.panel)
        few = flow.compare(em, "sle", rows.size, str(t.rows))
        few = flow.conjunction(em, self.b_far, few)
        few = flow.select(em, self.clashes(b), "i1", "false", few)
        return flow.select(em, few, "i64", str(low), str(t.rows))

    def tile_rows(self, rows: Range, tile: str, tiles_: str) -> Range:
        """Tiles are as high as each other, or nearly so; where the matrix unit is set up for a
        height, all but the last."""
        em = self.em
        if not self.t.vector_rows:
            return self.cut(rows, tile, tiles_)
        high = flow.ceil_div(em, rows.size, tiles_)
        start = flow.mul(em, tile, high)
        size = flow.minimum(em, high, flow.sub(em, rows.size, start))
        return Range(flow.add(em, rows.start, start), size)

    def row_block(self, rows: Range, columns: Range, follow: Range) -> None:
        """`follow`: the columns after these."""
        em, t = self.em, self.t
        with flow.loop(em, "0", self.blocks) as pc:
            k0 = flow.mul(em, pc, self.depth)
            kc = flow.minimum(em, self.depth, flow.sub(em, self.c.k, k0))
            panels = self.right(k0, kc, columns)
            tiles_ = flow.ceil_div(em, rows.size, self.height)
            with flow.loop(em, "0", tiles_) as it:
                part = self.tile_rows(rows, it, tiles_)
                window = Window(self.c.a, part.start, part.size, k0, kc)
                number = flow.add(em, flow.mul(em, pc, tiles_), it)
                self.a_panel = self.slot(flow.select(em, self.kept, "i64", number, "0"))
                with flow.when(em, self.packs):
                    pack.pack_rows(em, t, window, self.a_panel, self.stage)
                ahead = self.next_block(pc, columns, follow)
                self.tiles_ = tiles_
                self.row_tile(rows, part, columns, pc, Range(k0, kc), panels, (it, *ahead))
