"""One row tile of a contraction: kernels over the panels of B, and epilogues over finished sums.

A kernel takes as many columns as its number of rows allows, a panel, or a vector. Its sums go to
scratch, from where the epilogue stores them, or, where nothing is left to do, to the result.
"""

from __future__ import annotations

from nnc.codegen import flow, matrix, vectors
from nnc.codegen.contract_ahead import Ahead
from nnc.codegen.contract_right import Kernels, Right, RightOperand
from nnc.codegen.contract_types import Range, StoreRow


class RowTiles(Ahead, RightOperand):
    """Row tiles, when `contract` has packed their panel of A."""

    def row_tile(
        self,
        rows: Range,
        part: Range,
        columns: Range,
        pc: str,
        k: Range,
        right: Right,
        ahead: tuple[str, Range, Range],
    ) -> None:
        """The kernels of one row tile over the panels, each followed by its epilogue."""
        em, t = self.em, self.t
        kernels = self.kernels(part)
        turns = flow.ceil_div(em, columns.size, kernels.wide)
        first = flow.compare(em, "eq", pc, "0")
        again = em.op(f"select i1 {first}, i32 0, i32 1", "again")
        last = flow.compare(em, "eq", flow.add(em, pc, "1"), self.blocks)
        across = flow.round_up(em, columns.size, str(t.panel))
        strip = flow.mul(em, flow.sub(em, part.start, rows.start), across)
        matrix.set_up(em, t.dtype, part.size, t.vector_rows, self.state)
        with flow.stepping(em, "0", columns.size) as step:
            j = step.index
            left, col = flow.sub(em, columns.size, j), flow.add(em, columns.start, j)
            kind, width = self.kind(left, kernels.wide, self.in_one_picture(right, col, kernels))
            turn = flow.div(em, j, kernels.wide)
            self.fetch_next(rows, part, k, turn)
            self.fetch_block(ahead, turn, turns, k.size)
            read = self.reading(right, kernels, kind, ahead[0], j)
            self.fetch_ready(read.b, ahead[0], k.size)
            read = self.or_copying(read, right, kernels, ahead[0], j, (k.start, col))
            sums, valid = self.sums_of(part, strip, j), flow.minimum(em, width, left)
            to, apart, whole = self.direct(part.start, col, valid, width, sums)
            self.fetch_results(part, col, last, whole)
            em.line(
                f"call void {read.kernel}(ptr {self.a_panel}, ptr {read.b}, i64 {read.b_k}, "
                f"i64 {read.b_panel}, i64 {k.size}, ptr {to}, i32 {again}{apart})"
            )
            with flow.when(em, flow.select(em, whole, "i1", "false", last)):
                self.epilogue(part, col, valid, width, sums)
            step.step = width

    def kernels(self, part: Range) -> Kernels:
        """For as many rows as a part has."""
        em, t = self.em, self.t
        index = flow.sub(em, part.size, "1")
        three = em.op(f"getelementptr [3 x ptr], ptr @nnrt_tiles_{t.dtype}, i64 {index}", "kernels")
        wide = em.op(f"getelementptr i64, ptr @nnrt_wide_{t.dtype}, i64 {index}", "wides")
        return Kernels(index, three, em.op(f"load i64, ptr {wide}", "wide"))

    def kind(self, left: str, wide: str, may_be_wide: str) -> tuple[str, str]:
        """Which of the three kernels is next, and its columns: a vector, a panel, the most."""
        em, t = self.em, self.t
        is_wide = flow.compare(em, "sge", left, wide)
        is_wide = flow.conjunction(em, may_be_wide, is_wide)
        is_panel = flow.compare(em, "sgt", left, str(t.lanes))
        narrow = flow.select(em, is_panel, "i64", str(t.panel), str(t.lanes))
        kind = flow.select(em, is_wide, "i64", "2", flow.select(em, is_panel, "i64", "1", "0"))
        return kind, flow.select(em, is_wide, "i64", wide, narrow)

    def sums_of(self, part: Range, strip: str, j: str) -> str:
        """Where the sums of the kernel at column j go. Those of one block need no place of their
        own."""
        em, t = self.em, self.t
        here = flow.mul(em, j, part.size)
        at = flow.select(em, self.one_block, "i64", "0", flow.add(em, strip, here))
        return flow.offset(em, self.sums, at, t.type)

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

    def in_one_picture(self, right: Right, column: str, kernels: Kernels) -> str:
        """Whether the panels of the widest kernel follow each other; those in strips may not."""
        em, s = self.em, self.c.strips
        if s is None:
            return "true"
        last = flow.sub(em, flow.add(em, column, kernels.wide), "1")
        ends = flow.div(em, column, s.period), flow.div(em, last, s.period)
        return flow.select(em, right.strips, "i1", flow.compare(em, "eq", *ends), "true")

    def epilogue(self, part: Range, j0: str, valid: str, width: str, sums: str) -> None:
        """Calls `store` for the valid columns of a finished tile."""
        em, t = self.em, self.t
        lanes = str(t.lanes * self.c.across)
        vector = f"<{lanes} x {t.type}>"

        def columns(at: str, count: str, mask: str | None) -> None:
            col = flow.add(em, j0, at)

            def rows(store: StoreRow) -> None:
                with flow.loop(em, "0", part.size) as i:
                    place = flow.offset(em, sums, flow.add(em, flow.mul(em, i, width), at), t.type)
                    value = em.op(f"load {vector}, ptr {place}, align {t.size * t.lanes}", "sum")
                    store(em, flow.add(em, part.start, i), value)

            if self.c.columns is None:
                rows(lambda em, row, value: self.c.store(em, row, col, value, mask))
            else:
                self.c.columns(em, col, count, mask, rows)

        whole = flow.div(em, valid, lanes)
        with flow.loop(em, "0", whole) as v:
            columns(flow.mul(em, v, lanes), lanes, None)
        n = flow.const(self.c.n)
        if n is not None and n % int(lanes) == 0:
            return
        rest = flow.rem(em, valid, lanes)
        with flow.when(em, flow.compare(em, "ne", rest, "0")):
            columns(flow.mul(em, whole, lanes), rest, vectors.lane_mask(em, t, rest))
