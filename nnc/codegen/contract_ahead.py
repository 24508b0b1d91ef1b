"""What a contraction fetches ahead of its use, where the target's kernels do (`Tile.fetches`).

Kernels fetch the cache lines whose addresses are listed behind their panel of A (see
`tile_kernels`), so that memory works while they multiply. Before each call one list is made: of
rows of A that are packed next, of the block of B that comes next, or of panels that were packed
before. The lines that a tile's results go to are asked for before its last kernel.
"""

from __future__ import annotations

from nnc.codegen import flow, pack_lists, tiles
from nnc.codegen.contract_types import Emission, Range
from nnc.codegen.operands import Strided

_FAR = 1 << 19  # bytes of A from which on its rows are fetched ahead, or results' places,
_B_FAR = 1 << 21  # and of B


class Ahead(Emission):
    """Lists for the kernels."""

    def is_far(self, rows: Range) -> str:
        """Whether A comes from memory that is far, by whole runs of its rows."""
        em, a = self.em, self.c.a
        if not isinstance(a, Strided) or a.col_stride != "1" or a.stored or not self.t.fetches:
            return "false"
        size = flow.mul(em, flow.mul(em, rows.size, self.c.k), str(self.t.size))
        return flow.compare(em, "sge", flow.mul(em, size, self.c.batches), str(_FAR))

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
        return flow.conjunction(em, flow.negate(em, c.ready.when), far)

    def is_c_far(self) -> str:
        """Whether the results lie in memory that is far."""
        em, c = self.em, self.c
        if c.touch is None:
            return "false"
        size = flow.mul(em, flow.mul(em, c.m, c.n), flow.mul(em, c.batches, str(self.t.size)))
        return flow.compare(em, "sge", size, str(_FAR))

    def fetch_results(self, part: Range, column: str, last: str, direct: str) -> None:
        """Before the kernel that completes the sums: a store to a line that is not at hand waits in
        a queue, as do all behind it; when that is full the next kernel waits too. (Kernels that add
        to results, `direct`, have asked for them themselves.)"""
        if self.c_far == "false":
            return
        assert self.c.touch is not None
        em = self.em
        adds = flow.conjunction(em, direct, flow.negate(em, self.one_block))
        wanted = flow.conjunction(em, self.c_far, flow.negate(em, adds))
        with flow.when(em, flow.conjunction(em, wanted, last)):
            self.c.touch(em, part.start, column, part.size)

    def next_block(self, pc: str, columns: Range, follow: Range) -> tuple[Range, Range]:
        """The k and the columns of the block of B after this one (perhaps none)."""
        em = self.em
        next_ = flow.add(em, pc, "1")
        more = flow.compare(em, "slt", next_, self.blocks)
        k = flow.select(em, more, "i64", flow.mul(em, next_, self.depth), "0")
        kc = flow.minimum(em, self.depth, flow.sub(em, self.c.k, k))
        start = flow.select(em, more, "i64", columns.start, follow.start)
        size = flow.select(em, more, "i64", columns.size, follow.size)
        return Range(k, kc), Range(start, size)

    def fetch_block(self, ahead: tuple[str, Range, Range], turn: str, turns: str, k: str) -> None:
        """Lists a share of the block of B that comes next; `ahead`: the number of the row tile, and
        the block; `turn` of `turns` in this tile."""
        em, b, t = self.em, self.c.b, self.t
        if self.b_far == "false":
            return
        assert isinstance(b, Strided)
        tile, ks, columns = ahead
        skip = flow.select(em, self.far, "i64", "2", "0")  # those list rows of A
        mine = flow.sub(em, turn, skip)
        listing = flow.conjunction(em, self.b_far, flow.compare(em, "sge", mine, "0"))
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
                pack_lists.list_rows(em, t, source, start, count, run, self.a_panel)
            # Behind the last share nothing is listed once: the list stays as it is.
            after = flow.compare(em, "slt", flow.sub(em, first, room), runs)
            with flow.when(em, flow.conjunction(em, flow.negate(em, some), after)):
                pack_lists.list_nothing(em, t, self.a_panel)

    def fetch_ready(self, b: str, tile: str, kc: str) -> None:
        """Lists this row tile's share of what follows in a panel that was packed before."""
        em, c, t = self.em, self.c, self.t
        if c.ready is None or not t.fetches:
            return
        size = flow.mul(em, flow.mul(em, c.n, c.k), str(t.size))
        far = flow.compare(em, "sge", size, str(_B_FAR))
        free = flow.select(em, self.far, "i1", "false", c.ready.when)
        with flow.when(em, flow.conjunction(em, far, free)):
            block = flow.mul(em, kc, str(t.panel))
            share = flow.round_up(em, flow.ceil_div(em, block, self.tiles_), str(64 // t.size))
            room = flow.mul(em, flow.div(em, kc, str(tiles.UNROLL)), str(64 // t.size))
            at = flow.add(em, block, flow.mul(em, tile, share))
            source, some = Strided(b, "0", "1"), flow.minimum(em, share, room)
            pack_lists.list_rows(em, t, source, ("0", at), "1", some, self.a_panel)

    def fetch_next(self, rows: Range, part: Range, k: Range, turn: str) -> None:
        """Lists the rows of A that are packed next (the last time, the first ones of the next k, or
        of the next batch, behind this one): half of them in the first turn, the others in the
        second."""
        em, a, t = self.em, self.c.a, self.t
        if self.far == "false":
            return
        assert isinstance(a, Strided)
        listing = flow.conjunction(em, self.far, flow.compare(em, "slt", turn, "2"))
        with flow.when(em, listing):
            after = flow.sub(em, flow.add(em, part.start, part.size), rows.start)
            more = flow.compare(em, "slt", after, rows.size)
            more = more if self.c.batches == "1" else "true"
            half = flow.ceil_div(em, part.size, "2")
            row = flow.add(em, rows.start, flow.select(em, more, "i64", after, "0"))
            row = flow.add(em, row, flow.mul(em, half, turn))
            col = flow.select(em, more, "i64", k.start, flow.add(em, k.start, k.size))
            pack_lists.list_rows(em, t, a, (row, col), half, k.size, self.a_panel)
        done = flow.conjunction(em, self.far, flow.compare(em, "eq", turn, "2"))
        with flow.when(em, done):
            pack_lists.list_nothing(em, t, self.a_panel)
