"""Loops of a group that works in bands (`nnc.passes.bands`).

for b parallel                        outer axes
  for io parallel                     blocks of the readers' rows
    contract m=[o] n=[i, j]           the rows that a block needs, into the band
    for o, i, j                       rows of the band beside the tensor, where they are read
    for o, i ... serial               the readers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnc.ir.expr import Const, Expr, Idx, Load
from nnc.ir.graph import Axis, Node
from nnc.ir.loop import Contract, For, Stmt, Store
from nnc.ir.statements import Stmts
from nnc.lang.dims import ZERO, Dim, dim_max, dim_min
from nnc.passes.lower_regions import RegionLoops
from nnc.passes.schedule.merge import Views
from nnc.passes.schedule.nest import nest


class BandLoops(RegionLoops):
    """The part of lowering that knows bands."""

    views: Views

    def product(self, nodes: Sequence[Node]) -> Contract:
        raise NotImplementedError

    def tiled(self, c: Contract, stores: tuple[Store, ...]) -> Contract:
        raise NotImplementedError

    def each_row(self, nodes: Sequence[Node], head: Sequence[Dim]) -> Stmts:
        raise NotImplementedError

    def banded(self) -> Stmts:
        band, spaces = self.group.band, self.fused.spaces
        assert band is not None, self.group
        made, readers = self.group.nodes[: band.count], self.group.nodes[band.count :]
        first = spaces[made[0]]
        self.rename(made[0], (*first.axes, *first.raxes))
        own = {v: str(d.name) for v, d in self.group.maps[band.node].items()}
        head = spaces[readers[0]].axes[: self.group.rows]
        taken = {band.places[v]: Dim.of(own[v]) for v in band.outer}
        length = head[band.position].extent
        block, local = self.free(head[band.position].var + "o"), self.free(head[band.position].var)
        start = Dim.of(block) * band.size
        whole = length.const is not None and length.const % band.size == 0
        count = Dim.of(band.size) if whole else dim_min(Dim.of(band.size), length - start)
        self.band_start = start * band.step + band.low
        contract, beside = self.make_band(own)
        index: list[Dim] = []
        inner: list[Axis] = []
        for p, a in enumerate(head):
            if p in taken:
                index.append(taken[p])
                continue
            axis = Axis(local, count) if p == band.position else Axis(self.free(a.var), a.extent)
            inner.append(axis)
            index.append(Dim.of(axis.var) + (start if p == band.position else ZERO))
        rows = nest(
            inner, self.each_row(readers, index), self.views, parallel=False, taken=self.taken
        )
        blocks = Axis(block, (length + (band.size - 1)) // band.size)
        out: Stmts = (For(blocks, "parallel", (contract, *beside, *rows)),)
        for a in reversed([a for a in spaces[band.node].axes if a.var in band.outer]):
            out = (For(Axis(own[a.var], a.extent), "parallel", out),)
        return out

    def make_band(self, own: dict[str, str]) -> tuple[Contract, list[Stmt]]:
        """The contraction, and what fills the rows that lie beside the tensor; `own`: the
        contraction's variables for those of the tensor in bands."""
        band = self.group.band
        assert band is not None, self.group
        space, made = self.fused.spaces[band.node], self.group.nodes[: band.count]
        whole = next(a.extent for a in space.axes if a.var == band.row)
        low, high = self.band_start, self.band_start + band.rows
        if band.low < 0:
            low = dim_max(ZERO, low)
        high = dim_min(whole, high)
        row, outer = own[band.row], {own[v] for v in band.outer}
        self.env[made[0]][row] = low + Dim.of(row)
        c = self.product(made)
        m, n = (
            tuple(Axis(row, high - low) if a.var == row else a for a in axes if a.var not in outer)
            for axes in (c.m, c.n)
        )
        buffer, env = self.storage.strips[band.node], self.env[band.node]
        kept = [a for a in space.axes if a.var not in band.outer]
        index = tuple(
            Idx(env[a.var] - self.band_start if a.var == band.row else env[a.var]) for a in kept
        )
        store = Store(buffer, index, self.values[band.node])
        for node in made:
            del self.values[node]
        contract = self.tiled(replace(c, batch=(), m=m, n=n), (store,))
        beside: list[Stmt] = []
        if band.other is not None:
            before, after = low - self.band_start, high - self.band_start
            ends = ((ZERO, before), (after, Dim.of(band.rows) - after))
            beside = [self.fill(kept, *e, band.other) for e in ends if e[1] != ZERO]
        return contract, beside

    def fill(self, kept: Sequence[Axis], start: Dim, count: Dim, value: Const) -> Stmt:
        """Rows of the band from `start` on."""
        band = self.group.band
        assert band is not None, self.group
        buffer = self.storage.strips[band.node]
        axes = [Axis(self.free(a.var), count if a.var == band.row else a.extent) for a in kept]
        moved = [start if a.var == band.row else ZERO for a in kept]
        index = tuple(Idx(Dim.of(a.var) + d) for a, d in zip(axes, moved, strict=True))
        out: Stmt = Store(buffer, index, value)
        for a in reversed(axes):
            out = For(a, "vector" if a is axes[-1] else "serial", (out,))
        return out

    def from_band(self, e: Load) -> Expr:
        """A read of the band, whose index is in the kernel's variables already."""
        band = self.group.band
        assert band is not None, self.group
        space = self.fused.spaces[band.node]
        homes = space.homes()
        index: list[Expr] = []
        for a in space.axes:
            if a.var in band.outer:
                continue
            i = e.index[homes[a.var]]
            assert isinstance(i, Idx), e
            index.append(Idx(i.dim - self.band_start, i.dtype) if a.var == band.row else i)
        return replace(e, tensor=self.storage.strips[band.node], index=tuple(index))
