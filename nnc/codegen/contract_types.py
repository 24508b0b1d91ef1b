"""What a contraction is, its room in scratch, and what the parts of its emission share.

`contract` explains a contraction and emits it; the parts are `contract_right` (B), `contract_ahead`
(what is fetched) and `contract_tile` (kernels and epilogues of a row tile).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from nnc.codegen import flow, pack_lists, pack_tables, strips, tiles, vectors
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import OVERSHOOT, Operand, Packed, Strided
from nnc.codegen.strips import Strips
from nnc.codegen.target import Target
from nnc.codegen.tiles import Tile

_COLUMNS = {64: 2048, 32: 1024, 16: 512}  # bytes of a row of a B block, by vector bytes
KEPT = 10  # panels of a computed A that are made once for all blocks of columns (in L2)
PARTIAL_ROWS = 512  # rows of partial sums kept while B is packed once

Store = Callable[[Emitter, str, str, str, str | None], None]
StoreRow = Callable[[Emitter, str, str], None]  # (em, row, value)
Touch = Callable[[Emitter, str, str, str], None]  # (em, row, col, rows)
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
    touch: Touch | None = None  # fetches the places of so many results of a panel's columns
    strips: Strips | None = None  # how lines of B share memory,
    panels: str = ""  # and room for a block of B's panels then (`panels_bytes`)
    across: int = 1  # vectors that `columns` takes at a time


@dataclass(frozen=True)
class Ready:
    """B, or a matrix that B is a part of, packed by `emit_prepack` to `ptr` if `when` (an i1)."""

    when: str
    ptr: str
    k: str  # of the whole matrix


@dataclass(frozen=True)
class Range:
    start: str
    size: str


def block_columns(t: Tile) -> int:
    """Columns of a block of B."""
    return _COLUMNS[t.lanes * t.size] // t.size


def area_sizes(t: Tile) -> tuple[int, int, int, int, int, int]:
    """Bytes of scratch for transposing, panels of A, the block of B, the (partial) sums, what finds
    lines in strips and what the matrix unit is set up for."""
    depth = -(-t.block // OVERSHOOT) * OVERSHOOT
    a = KEPT * pack_lists.slot_bytes(t)
    b, c = depth * block_columns(t), PARTIAL_ROWS * block_columns(t)
    return pack_tables.stage_bytes(t), a, b * t.size, c * t.size, strips.AREA, 64


def panels_bytes(dtype: str, target: Target) -> int:
    """Bytes of a block of B's panels."""
    return area_sizes(tiles.tile(dtype, target))[2]


def scratch_bytes(dtype: str, target: Target) -> int:
    """Bytes of scratch for each thread."""
    return sum(area_sizes(tiles.tile(dtype, target)))


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


def wide(em: Emitter, x: str) -> str:
    return em.op(f"zext i32 {x} to i64", "wide") if flow.const(x) is None else x


class Emission:
    """What all parts of the emission know; `contract` decides all that is only declared here."""

    depth: str  # k in a block
    blocks: str  # of k
    one_block: str  # i1: whether that is all
    height: str  # rows of a tile
    tiles_: str  # row tiles of the block of rows
    copies: str  # i1: whether kernels pack B for the row tiles after the first,
    line_copies: str  # or the panels that lie in strips
    in_place: str  # i1: whether full panels of B are read where they lie
    far: str  # i1: whether rows of A,
    b_far: str  # and B, are fetched ahead,
    c_far: str  # and where results go
    kept: str  # i1: whether panels of A are kept for the next block of columns
    packs: str  # i1: whether they must be packed for this one

    def __init__(self, em: Emitter, c: Contraction) -> None:
        self.em, self.c = em, c
        self.t = tiles.tile(c.dtype, c.target)
        starts = accumulate(area_sizes(self.t), initial=0)
        areas = [flow.offset(em, c.scratch, str(at), "i8") for at in starts]
        self.stage, self.panels, self.b_block, self.sums, self.area, self.state, _ = areas
        self.a_panel = self.panels

    def slot(self, number: str) -> str:
        """The room of one panel of A."""
        at = flow.mul(self.em, number, str(pack_lists.slot_bytes(self.t)))
        return flow.offset(self.em, self.panels, at, "i8")

    def cut(self, whole: Range, part: str, parts: str) -> Range:
        em = self.em
        if parts == "1":
            return whole
        start = flow.share(em, whole.size, part, parts)
        end = flow.share(em, whole.size, flow.add(em, part, "1"), parts)
        return Range(flow.add(em, whole.start, start), flow.sub(em, end, start))
