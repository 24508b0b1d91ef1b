"""Operands of the contraction leaf of a Program, for the generator of register tiles.

A plain load with one stride for each group of axes is read by strides; any other operand is
computed where it is packed, the indices taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nnc.codegen import contract, flow, tiles
from nnc.codegen.emit import Emitter
from nnc.codegen.guards import ALWAYS, Guard
from nnc.codegen.memory import flat
from nnc.codegen.operands import Operand, Runs
from nnc.codegen.registers import computes_in
from nnc.codegen.scopes import Value
from nnc.codegen.shared import shared
from nnc.codegen.strips import Strips
from nnc.codegen.sweeps import Sweeps
from nnc.codegen.windows import Group, Windows, group, parted
from nnc.ir.expr import Expr, Idx, Load, Op, loads
from nnc.ir.loop import Buffer, Contract
from nnc.lang.dims import ONE, ZERO, Dim

_SHORT = 4  # words that are copied one by one otherwise
_LONG = 1024  # assumed for sizes known at run time only


def groups_of(c: Contract) -> list[Group]:
    """Of m, n and k."""
    return [group(x, axes) for x, axes in zip("mnk", (c.m, c.n, c.k), strict=True)]


def kind(c: Contract) -> str:
    """Which tiles: a dtype, or what multiplies its words."""
    return c.a.dtype if c.fn == "mul" else c.fn


class LeafOperands(Sweeps, Windows):
    """Sweeps, and operands by strides, tables, runs or code."""

    contractions: frozenset[str] = frozenset()  # kinds of support that were needed

    def operand(self, e: Expr, row: Group, col: Group) -> Operand:
        return self.strided(e, row, col) or self.computed(e, row, col)

    def strided(self, e: Expr, row: Group, col: Group) -> contract.Strided | None:
        stored = ""
        if isinstance(e, Op) and e.fn == "cast" and e.dtype == "f32":
            (e,), stored = e.args, "bf16"
        if not isinstance(e, Load) or e.dtype != (stored or computes_in(e.dtype)) or row.places:
            return None
        slopes = self.slopes(e, row, col)
        if slopes is None:
            return None
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        affine = self.collapsed(flat(buffer, e.index))
        pointer = self.pointer(buffer, affine.subst({row.var: ZERO, col.var: ZERO}), ())
        if stored:
            self.contractions |= {contract.support_kind(computes_in(stored), stored)}
        down, across = (self.uniform(s).text for s in slopes)
        return contract.Strided(pointer.text, down, across, stored)

    def slopes(self, e: Load, row: Group, col: Group) -> tuple[Dim, Dim] | None:
        """Elements between successive rows and columns, where that is so for all."""
        if e.other is not None or e.check is not None:
            return None
        if not all(isinstance(i, Idx) for i in e.index):
            return None
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        affine = self.collapsed(flat(buffer, e.index))
        forms = affine.linear_in(row.var), affine.linear_in(col.var)
        if forms[0] is None or forms[1] is None:
            return None
        slopes = forms[0][0], forms[1][0]
        rest = affine.subst({row.var: ZERO, col.var: ZERO})
        inner = {a.var for g in (row, col) for a in g.axes} | {row.var, col.var}
        return None if inner & (rest.names | slopes[0].names | slopes[1].names) else slopes

    def computed(self, e: Expr, row: Group, col: Group) -> contract.Computed:
        lanes = self.target.lanes(computes_in(e.dtype))
        axis = 0 if not row.places and self.run(e, row) > self.run(e, col) else 1

        def load(em: Emitter, i: str, j: str) -> str:
            with self.inside_tile(row, i), self.bound(col.var, j, col.extent):
                return self.spread(self.value(e), 1)

        def vector(em: Emitter, i: str, j: str, mask: str | None) -> str:
            along = (row, col)[axis]
            with (
                self.inside_tile(row, i),
                self.bound(col.var, j, col.extent),
                self.along(along, lanes, mask),
            ):
                return self.spread(self.value(e), lanes)

        line, across = (row, col) if axis else (col, row)
        if row.places:
            return contract.Computed(load, vector, axis)
        tile = tiles.tile(computes_in(e.dtype), self.target)
        table = self.window(e, line, across, tile)
        return contract.Computed(load, vector, axis, table, self.runs(e, row, col, lanes))

    def runs(self, e: Expr, row: Group, col: Group, lanes: int) -> Runs | None:
        """Words, of which runs along a row lie together in memory."""
        if not isinstance(e, Load) or e.dtype != "i32" or e.other is not None:
            return None
        if e.check is not None or not all(isinstance(i, Idx) for i in e.index) or not col.axes:
            return None
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        parts = parted(flat(buffer, e.index), row.names, col.names)
        length = 0 if parts is None else _together(parts[1], col)
        whole = length % lanes == 0
        block = tiles.tile("dot4", self.target).block
        short = length >= _SHORT and (col.extent.const or block + 1) <= block
        if parts is None or not length or not (whole or short):
            return None
        down, across, rest = (self.collapsed(d) for d in parts)

        def rows(em: Emitter, first: str, to: str) -> None:
            with self.inside_tile(row, first), self.along(row, lanes, None):
                offsets = self.spread(self.dim(down), lanes)
                em.line(f"store <{lanes} x i64> {offsets}, ptr {to}, align 8")

        def column(em: Emitter, first: str) -> str:
            with self.inside_tile(col, first):
                return self.uniform(self.merged(across)).text

        pointer = self.pointer(buffer, rest, ()).text
        return Runs(pointer, rows, column, lanes if whole else length)

    def run(self, e: Expr, g: Group) -> float:
        """About how many successive elements along a group lie together in memory."""
        most = max(loads(e), key=lambda load: len(load.index), default=None)
        if most is None or not g.axes or not isinstance(most.tensor, Buffer):
            return 0
        last = g.axes[-1]
        affine = self.collapsed(flat(most.tensor, most.index))
        merged = g.var != last.var and g.var in affine.names
        form = affine.linear_in(g.var if merged else last.var)
        if form is None or form[0] == ZERO:
            return 0
        length = (g.extent if merged else last.extent).const or _LONG
        return length if form[0] == ONE else length / 4

    @contextmanager
    def inside_tile(self, g: Group, index: str) -> Iterator[None]:
        if g.places:
            index = self.em.op(f"load i64, ptr {flow.offset(self.em, g.places, index, 'i64')}")
        with self.scope(), self.bound(g.var, index, g.extent):
            yield

    @contextmanager
    def along(self, g: Group, lanes: int, mask: str | None) -> Iterator[None]:
        """Code inside is for `lanes` successive values of a group's index, under a mask."""
        self.vector, self.lanes = g.var, lanes
        if mask is not None:
            self.guard = Guard(None, Value(mask, "bool", lanes, self.depth))
        yield
        self.vector, self.lanes, self.guard = None, 1, ALWAYS

    def strips_of(self, c: Contract, k: Group, n: Group) -> Strips | None:
        """How the right operand's lines share memory, if they do."""
        tile = tiles.tile(kind(c), self.target)
        if tile.dtype not in ("f32", "f64") or self.run(c.b, k) > self.run(c.b, n):
            return None
        found = shared(self, c.b, k, n, tile)
        if found is not None:
            self.contractions |= {contract.support_kind(tile.dtype, contract.LINES)}
        return found


def _together(d: Dim, col: Group) -> int:
    """How many successive columns an offset always finds one after the other."""
    length = 1
    for axis in reversed(col.axes):
        form, size = d.linear_in(axis.var), axis.extent.const
        if size != 1 and (form is None or form[0].const != length or size is None):
            break
        length *= size
    return length
