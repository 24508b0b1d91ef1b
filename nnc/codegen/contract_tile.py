"""One row tile of a contraction: kernels over the panels of B, and epilogues over finished sums.

A kernel takes as many columns as its number of rows allows, a panel, or a vector. Its sums go to
scratch, from where the epilogue stores them, or, where nothing is left to do, to the result.
"""

from __future__ import annotations

from nnc.codegen import flow, matrix, strips, vectors
from nnc.codegen.contract_ahead import Ahead
from nnc.codegen.contract_right import Right, RightOperand
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

    def epilogues(self, part: Range, columns: Range, wide: str, strip: str) -> None:
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

    def in_one_picture(self, right: Right, column: str, wide: str, is_wide: str) -> str:
        """Whether also panels in strips follow each other that far."""
        em, s = self.em, self.c.strips
        if s is None:
            return is_wide
        last = flow.sub(em, flow.add(em, column, wide), "1")
        ends = flow.div(em, column, s.period), flow.div(em, last, s.period)
        one = flow.compare(em, "eq", *ends)
        one = flow.select(em, right.strips, "i1", one, "true")
        return flow.select(em, is_wide, "i1", one, "false")

    def epilogue(self, part: Range, j0: str, valid: str, width: str, sums: str) -> None:
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
