"""The right operand of a contraction: read in place, packed by the block, before, or in strips.

Full panels of columns are read where B lies if few rows need them (`reads_in_place`). With more
rows, kernels of the first row tile read B in place and write the panels for the other tiles
(`copies_panels`); where that is not possible, a block is packed before its row tiles (`right`).
`emit_prepack` packs a whole operand, once for many contractions.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnc.codegen import flow, pack, strips, tiles
from nnc.codegen.contract_types import Emission, Range, Ready, area_sizes, wide
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import OVERSHOOT, Operand, Packed, Strided, Window
from nnc.codegen.strips import Strips
from nnc.codegen.target import Target
from nnc.codegen.tiles import Tile

_IN_PLACE = 256  # rows up to which packing B costs more than reading it in place,
NEAR = 1 << 20  # if all of B has few enough bytes to be found in the cache
_ALIASING = 4096  # and its rows are no multiple of so many bytes apart: those share cache sets


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
    who, parts = wide(em, tid), wide(em, nt)
    panels = flow.ceil_div(em, n, panel)
    p0 = flow.share(em, panels, who, parts)
    p1 = flow.share(em, panels, flow.add(em, who, "1"), parts)
    gap = flow.mul(em, flow.round_up(em, k, str(OVERSHOOT)), panel)
    j0 = flow.mul(em, p0, panel)
    columns = flow.sub(em, flow.minimum(em, flow.mul(em, p1, panel), n), j0)
    to = flow.offset(em, to, flow.mul(em, p0, gap), t.type)
    window = Window(b, "0", k, j0, columns)
    pack.pack_panels(em, t, window, to, gap, scratch)


@dataclass(frozen=True)
class Panels:
    """Panels as the kernels address them: bytes between k, and between panels."""

    ptr: str
    b_k: str
    b_panel: str


@dataclass(frozen=True)
class Right:
    """The block of B: `whole` columns in full panels (perhaps in place), the rest packed."""

    first: Panels
    edge: Panels
    whole: str
    strips: str = "false"  # i1: whether it is in strips

    def at(self, em: Emitter, t: Tile, j: str) -> tuple[str, str, str]:
        """Pointer, b_k and b_panel for the kernel at column j, a multiple of a panel."""
        inside = flow.compare(em, "slt", j, self.whole)
        p = flow.div(em, j, str(t.panel))
        ptr = flow.select(em, inside, "ptr", self.first.ptr, self.edge.ptr)
        b_panel = flow.select(em, inside, "i64", self.first.b_panel, self.edge.b_panel)
        b_k = flow.select(em, inside, "i64", self.first.b_k, self.edge.b_k)
        return flow.offset(em, ptr, flow.mul(em, p, b_panel), "i8"), b_k, b_panel


@dataclass(frozen=True)
class Kernels:
    """Those for one number of rows: where they are in the tables, the three of them (ptr), and the
    columns of the widest."""

    index: str
    three: str
    wide: str


@dataclass(frozen=True)
class Read:
    """A kernel and its B: a pointer, bytes between k (or a table), bytes between panels (or to the
    copy)."""

    kernel: str
    b: str
    b_k: str
    b_panel: str


class RightOperand(Emission):
    """How the block of B is read, and what of it is packed."""

    def reads_in_place(self, rows: Range) -> str:
        em, b = self.em, self.c.b
        if not isinstance(b, Strided) or b.col_stride != "1" or b.stored:
            return "false"
        clash = self.clashes(b)
        elements = flow.mul(em, self.c.k, self.c.n)
        near = flow.compare(em, "sle", elements, str(NEAR // self.t.size))
        # One row tile reads B once: nothing is better than in place. For more, whole runs of a row,
        # as packing reads them, come in faster from memory than columns of a panel.
        most = flow.select(em, near, "i64", str(_IN_PLACE), str(self.t.rows))
        most = flow.select(em, clash, "i64", str(self.t.rows), most)
        here = flow.compare(em, "sle", rows.size, most)
        return flow.select(em, self.copies, "i1", "false", here)

    def copies_panels(self, rows: Range) -> str:
        """Whether the first row tile reads B in place and its kernels pack it for the others. A
        large B comes in faster by whole rows of a block, and where its rows share cache sets."""
        em, t, c = self.em, self.t, self.c
        if not t.copying or not isinstance(c.b, Strided) or c.b.col_stride != "1" or c.b.stored:
            return "false"
        near = flow.conjunction(em, self.one_block, flow.negate(em, self.clashes(c.b)))
        copies = flow.conjunction(em, self.many_high(rows), near)
        return copies if c.ready is None else flow.select(em, c.ready.when, "i1", "false", copies)

    def copies_lines(self, rows: Range) -> str:
        """Whether kernels of the first row tile pack panels in strips for the others."""
        return self.many_high(rows) if self.c.panels and self.t.copying else "false"

    def many_high(self, rows: Range) -> str:
        """Whether there are several row tiles, all as high as those of kernels that copy."""
        em, t = self.em, self.t
        more = flow.compare(em, "sgt", rows.size, str(t.rows))
        count = flow.maximum(em, flow.ceil_div(em, rows.size, str(t.rows)), "1")
        least = flow.div(em, rows.size, count)
        return flow.conjunction(em, more, flow.compare(em, "sge", least, str(t.copying.start)))

    def clashes(self, b: Strided) -> str:
        """Whether the rows of B share sets of the cache."""
        em = self.em
        apart = flow.rem(em, flow.mul(em, b.row_stride, str(self.t.size)), str(_ALIASING))
        return flow.compare(em, "eq", apart, "0")

    def right(self, k0: str, kc: str, columns: Range) -> Right:
        """Packs the block of B, or what of it is not read in place."""
        em, t, c = self.em, self.t, self.c
        panel = str(t.panel)
        whole = flow.mul(em, flow.div(em, columns.size, panel), panel)
        if isinstance(c.b, Packed):
            gap = flow.mul(em, flow.round_up(em, c.k, str(OVERSHOOT)), panel)
            at = flow.mul(em, flow.div(em, columns.start, panel), gap)
            at = flow.add(em, at, flow.mul(em, k0, panel))
            packed = self.panels_at(flow.offset(em, c.b.ptr, at, t.type), gap)
            return Right(packed, packed, whole)
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
        packed = self.panels_at(self.b_block, gap)
        here = Right(self.first(packed, k0, columns), packed, whole)
        return here if c.ready is None else self.or_ready(here, c.ready, k0, columns)

    def panels_at(self, ptr: str, gap: str) -> Panels:
        """Packed panels, so many elements apart."""
        t = self.t
        return Panels(ptr, str(t.panel * t.size), flow.mul(self.em, gap, str(t.size)))

    def reading(self, right: Right, kernels: Kernels, kind: str, tile: str, j: str) -> Read:
        """At column j of the block, by the kernel of a kind (0, 1, 2), in a row tile."""
        em, t = self.em, self.t
        b, b_k, b_panel = right.at(em, t, j)
        kernel = flow.offset(em, kernels.three, kind, "ptr")
        if self.c.strips is not None:
            b, b_k = strips.place_of(em, t, self.area, j)
            row = str(t.panel * t.size)
            b_panel = flow.select(em, right.strips, "i64", row, b_panel)
            table = f"[3 x ptr], ptr @nnrt_lines_{t.dtype}, i64 {kernels.index}, i64 {kind}"
            lines = em.op(f"getelementptr {table}", "lines")
            packed = flow.compare(em, "eq", b_k, row)
            kernel = flow.select(em, packed, "ptr", kernel, lines)
            if self.line_copies != "false":
                first = flow.conjunction(em, self.line_copies, flow.compare(em, "eq", tile, "0"))
                wide = flow.conjunction(em, first, flow.compare(em, "ne", kind, "0"))
                when = flow.conjunction(em, flow.negate(em, packed), wide)
                return self.copying_lines(when, Read(kernel, b, b_k, b_panel), right, kernels, j)
        return Read(em.op(f"load ptr, ptr {kernel}", "kernel"), b, b_k, b_panel)

    def copying_lines(self, when: str, read: Read, right: Right, kernels: Kernels, j: str) -> Read:
        """By a kernel that copies the panel in strips from column j, if `when`; the next row tiles
        read the copy. (`read.kernel` is a place of the table.)"""
        em, t = self.em, self.t
        at = flow.mul(em, flow.div(em, j, str(t.panel)), right.first.b_panel)
        to = flow.offset(em, self.c.panels, at, "i8")
        behind = flow.sub(em, *(em.op(f"ptrtoint ptr {p} to i64", "at") for p in (to, read.b)))
        table = f"[{t.rows} x ptr], ptr @nnrt_linecopies_{t.dtype}, i64 0, i64 {kernels.index}"
        copy = em.op(f"getelementptr {table}", "copy")
        kernel = flow.select(em, when, "ptr", copy, read.kernel)
        with flow.when(em, when):
            strips.put_place(em, t, self.area, j, to, str(t.panel * t.size))
        b_panel = flow.select(em, when, "i64", behind, read.b_panel)
        return Read(em.op(f"load ptr, ptr {kernel}", "kernel"), read.b, read.b_k, b_panel)

    def or_copying(
        self, read: Read, right: Right, kernels: Kernels, tile: str, j: str, at: tuple[str, str]
    ) -> Read:
        """Where copies are made, in the first row tile: by a kernel that reads B itself (from a k
        and a column on) and writes it to where it would have been read."""
        em, t = self.em, self.t
        if self.copies == "false":
            return read
        inside, first = flow.compare(em, "slt", j, right.whole), flow.compare(em, "eq", tile, "0")
        when = flow.conjunction(em, self.copies, flow.conjunction(em, first, inside))
        there, apart = self.source(*at)
        table = f"[{t.rows} x ptr], ptr @nnrt_copies_{t.dtype}, i64 0, i64 {kernels.index}"
        copy = em.op(f"load ptr, ptr {em.op(f'getelementptr {table}', 'copy')}", "copy")
        behind = flow.sub(em, *(em.op(f"ptrtoint ptr {p} to i64", "at") for p in (read.b, there)))
        return Read(
            flow.select(em, when, "ptr", copy, read.kernel),
            flow.select(em, when, "ptr", there, read.b),
            flow.select(em, when, "i64", apart, read.b_k),
            flow.select(em, when, "i64", behind, read.b_panel),
        )

    def source(self, k: str, column: str) -> tuple[str, str]:
        """Where B is, and bytes between its rows."""
        em, t, b = self.em, self.t, self.c.b
        assert isinstance(b, Strided)
        at = flow.add(em, flow.mul(em, k, b.row_stride), column)
        return flow.offset(em, b.ptr, at, t.type), flow.mul(em, b.row_stride, str(t.size))

    def in_strips(self, s: Strips, b: Window, gap: str) -> Right:
        """Strips of the block of B where that is decided, or it is packed."""
        em, t = self.em, self.t
        room = area_sizes(t)[2] // t.size
        block = strips.Block(b.row, b.rows, b.col, b.cols, self.b_block, room, self.area, gap)
        shape = strips.shape(em, t, s, block)
        with flow.when(em, shape.fits):
            strips.fill(em, t, s, block, shape, self.stage)
        with flow.when(em, flow.negate(em, shape.fits)):
            pack.pack_panels(em, t, b, self.b_block, gap, self.stage)
            strips.packed_places(em, t, block)
        panels = self.panels_at(self.b_block, gap)
        return Right(panels, panels, b.cols, shape.fits)

    def first(self, packed: Panels, k0: str, columns: Range) -> Panels:
        """The full panels: in place where that is decided."""
        em, t = self.em, self.t
        if self.in_place == "false":
            return packed
        there, apart = self.source(k0, columns.start)
        return Panels(
            flow.select(em, self.in_place, "ptr", there, packed.ptr),
            flow.select(em, self.in_place, "i64", apart, packed.b_k),
            flow.select(em, self.in_place, "i64", str(t.panel * t.size), packed.b_panel),
        )

    def or_ready(self, here: Right, ready: Ready, k0: str, columns: Range) -> Right:
        """The panels that were packed before, if they were."""
        em, t, (column, k) = self.em, self.t, self.c.begin
        panel = str(t.panel)
        gap = flow.mul(em, flow.round_up(em, ready.k, str(OVERSHOOT)), panel)
        number = flow.div(em, flow.add(em, columns.start, column), panel)
        at = flow.add(em, flow.mul(em, number, gap), flow.mul(em, flow.add(em, k0, k), panel))
        there = self.panels_at(flow.offset(em, ready.ptr, at, t.type), gap)

        def either(p: Panels) -> Panels:
            return Panels(
                flow.select(em, ready.when, "ptr", there.ptr, p.ptr),
                flow.select(em, ready.when, "i64", there.b_k, p.b_k),
                flow.select(em, ready.when, "i64", there.b_panel, p.b_panel),
            )

        whole = flow.select(em, ready.when, "i64", columns.size, here.whole)
        return Right(either(here.first), either(here.edge), whole)
