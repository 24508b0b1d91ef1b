"""The contraction leaf of a Program, given to the generator of register tiles.

Groups of several axes become one index each. `leaf_operands` and `leaf_results` say where operands
are and results go; here is which contractions, of which axes, by which threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nnc.codegen import contract, flow, kept, tiles
from nnc.codegen.leaf_operands import groups_of, kind
from nnc.codegen.leaf_results import LeafResults
from nnc.codegen.memory import flat
from nnc.codegen.scopes import Value
from nnc.codegen.windows import Group
from nnc.ir.expr import Load
from nnc.ir.graph import Axis
from nnc.ir.loop import FEW, REVERSED, SLAB, Buffer, Contract, For, Reduce, Stmt
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod
from nnc.lang.types import DType

_PICTURE = 256  # columns that are a batch of their own if they are whole panels, else twice so many
_TINY = 1 << 12  # multiplications: fewer are done by plain loops


class Leaves(LeafResults):
    """Operands and results, and the contraction leaf."""

    def start(self) -> None:
        super().start()
        self.rooms: dict[str, str] = {}
        self.sure = False  # that the call has the copies

    def contraction(self, c: Contract) -> None:
        """The whole body of a kernel."""
        if c.points is not None:
            with self.scope():
                self.by_points(c, c.points)
            return
        if not c.n:
            c = replace(c, m=c.n, n=c.m, a=c.b, b=c.a, fn=REVERSED[c.fn])
        for tiny in flow.ways(self.em, self.tiny(c)):
            only = flow.compare(self.em, "eq", self.tid, "0") if tiny else "true"
            with flow.when(self.em, only), self.scope():
                if tiny:
                    self.block((self.plain(c),))
                else:
                    self.tiled(c)

    def tiny(self, c: Contract) -> str:
        """Whether (an i1) plain loops are faster than tiles."""
        constant = dim_prod(d for a in (*c.n, *c.k) if (d := a.extent).const is not None)
        if (constant.const or 0) > _TINY or not self.one_chain(c) or uneven(c):
            return "false"
        size = self.uniform(dim_prod(a.extent for a in (*c.batch, *c.m, *c.n, *c.k))).text
        return flow.compare(self.em, "sle", size, str(_TINY))

    def one_chain(self, c: Contract) -> bool:
        """Whether the tiles sum over k in one block, so that plain loops give the same bits."""
        k = dim_prod(a.extent for a in c.k).const
        return k is not None and k <= tiles.tile(kind(c), self.target).block

    def plain(self, c: Contract) -> Stmt:
        """Loops without tiles or packing, for sizes at which those cost more than they save."""
        sum_ = Reduce(c.name, "dot" if c.fn == "mul" else "sum", c.k, c.product, None)
        body: tuple[Stmt, ...] = (sum_, *c.epilogue)
        axes = (*c.batch, *c.m, *c.n)
        for axis in reversed(axes):
            body = (For(axis, "vector" if axis is axes[-1] else "serial", body),)
        return body[0] if axes else For(Axis("$.one", ONE), "serial", body)

    def tiled(self, c: Contract) -> None:
        """By register tiles, in one of the ways there are."""
        if self.direct(c):
            return
        if c.turned is not None:
            self.either_way(c)
            return
        if c.part is None and not uneven(c) and self.by_pictures(c):
            return
        self.every(c)

    def every(self, c: Contract) -> None:
        """Batches outside, each one contraction."""
        groups = groups_of(c)
        with self.merged_axes(groups):
            if not c.batch:
                with self.scope():
                    self.one(c, groups, "%tid", "%nt", self.packed(c))
                return
            self.batches(c, groups)

    def by_pictures(self, c: Contract) -> bool:
        """Emits a contraction with an operand that is a matrix only for each picture (the first
        axes of n, or of m: `x[b, c, i, j]` over (b, i, j) and c): with batches where there is one
        picture, or where that leaves few lanes idle."""
        for side, axes in (("n", c.n), ("m", c.m)):
            if self.is_matrix(c, side):
                continue
            for first in range(1, len(axes)):
                pictures, rest = axes[:first], axes[first:]
                part = replace(c, batch=(*c.batch, *pictures))
                part = replace(part, n=rest) if side == "n" else replace(part, m=rest)
                if uneven(part) or not self.is_matrix(part, side):
                    continue
                for alone in flow.ways(self.em, self.few_idle(pictures, rest, side)):
                    with self.scope():
                        self.every(part if alone else c)
                return True
        return False

    def is_matrix(self, c: Contract, side: str) -> bool:
        """Whether the operand with those axes has runs along them, at a stride for k."""
        groups = groups_of(c)
        with self.merged_axes(groups):
            m, n, k = groups
            e, mine = (c.b, n) if side == "n" else (c.a, m)
            if not isinstance(e, Load) or e.dtype != kind(c):
                return False
            slopes = self.slopes(e, k, mine)
            return slopes is not None and slopes[1] == ONE

    def few_idle(self, pictures: tuple[Axis, ...], axes: tuple[Axis, ...], side: str) -> str:
        em = self.em
        count, size = (
            self.uniform(dim_prod(a.extent for a in part)).text for part in (pictures, axes)
        )
        one = flow.compare(em, "eq", count, "1")
        if side == "m" or one == "true":
            return one
        whole = flow.compare(em, "eq", flow.rem(em, size, str(SLAB)), "0")
        least = flow.select(em, whole, "i64", str(_PICTURE), str(2 * _PICTURE))
        large = flow.compare(em, "sge", size, least)
        return flow.select(em, one, "i1", "true", large)

    @contextmanager
    def merged_axes(self, groups: list[Group]) -> Iterator[None]:
        outer = self.groups, self.split, dict(self.ranges)
        self.merge(groups)
        yield
        self.groups, self.split, self.ranges = outer

    def batches(self, c: Contract, groups: list[Group]) -> None:
        """Each thread takes as many whole batches as the others; all share those that are left.

        All share all batches that differ in size.
        """
        em = self.em
        total = self.uniform(dim_prod(a.extent for a in c.batch)).text
        each = "0" if uneven(c) else flow.div(em, total, self.nt)
        first = flow.mul(em, each, self.tid)
        left = flow.sub(em, total, flow.mul(em, each, self.nt))
        shift = flow.mul(em, each, flow.sub(em, self.nt, "1"))
        with self.counted("0", flow.add(em, each, left)) as turn:
            alone = flow.compare(em, "slt", turn, each)
            start = flow.select(em, alone, "i64", first, shift)
            batch = Value(flow.add(em, turn, start), "i64", 1, self.depth)
            tid = em.op(f"select i1 {alone}, i32 0, i32 %tid", "tid")
            nt = em.op(f"select i1 {alone}, i32 1, i32 %nt", "nt")
            with self.indices(batch, c.batch), self.scope():
                self.one(c, groups, tid, nt, self.packed(c))

    def packed(self, c: Contract) -> contract.Ready | None:
        """The right operand as it was packed before the loop around, if it fits the tiles."""
        if c.panels is None or tiles.tile(kind(c), self.target).panel != SLAB:
            return None
        assert isinstance(c.panels.tensor, Buffer), c
        k = self.uniform(dim_prod(a.extent for a in c.k)).text
        there = "true"
        if c.copied and not self.sure:  # one row is multiplied by what it is a copy of
            rows = self.uniform(dim_prod(a.extent for a in c.m)).text
            many = flow.compare(self.em, "sgt", rows, "1")
            there = flow.select(self.em, many, "i1", self.has_copies(), "false")
        return contract.Ready(there, self.pointer(c.panels.tensor, ZERO, ()).text, k)

    def has_copies(self) -> str:
        """Whether this call has the kept copies (an i1)."""
        with self.in_prologue():
            return kept.state(self.em, self.frame_field("ctx")).copies

    def one(
        self,
        c: Contract,
        groups: list[Group],
        tid: str,
        nt: str,
        ready: contract.Ready | None = None,
    ) -> None:
        m, n, k = groups
        dtype = kind(c)
        self.contractions |= {dtype}
        b = self.operand(c.b, k, n)
        in_place = isinstance(b, contract.Strided)
        strips = None if in_place or ready is not None else self.strips_of(c, k, n)
        done = contract.Contraction(
            dtype,
            self.target,
            self.uniform(m.extent).text,
            self.uniform(n.extent).text,
            self.uniform(k.extent).text,
            self.operand(c.a, m, k),
            b,
            self.epilogue(c, m, n),
            self.tile_scratch(dtype),
            tid,
            nt,
            ready,
            ("0", "0") if c.part is None else self.starts(c),
            self.columns(c, m, n),
            self.follow(c),
            self.result(c, m, n),
            self.touch(c, m, n),
            strips,
            "" if strips is None else self.panels_room(dtype),
            self.across(c),
        )
        contract.emit_contraction(self.em, done)

    def follow(self, c: Contract) -> str:
        """How many batches there are whose left operands lie one behind the other; else 1."""
        if not c.batch or not isinstance(c.a, Load) or not isinstance(c.a.tensor, Buffer):
            return "1"
        form = flat(c.a.tensor, c.a.index).linear_in(c.batch[-1].var)
        if form is None or form[0] != dim_prod(a.extent for a in (*c.m, *c.k)):
            return "1"
        return self.uniform(dim_prod(a.extent for a in c.batch)).text

    def either_way(self, c: Contract) -> None:
        """With few columns the roles are exchanged, where there are copies for that."""
        other = replace(c, m=c.n, n=c.m, a=c.b, b=c.a, panels=c.turned, turned=None)
        columns = self.uniform(dim_prod(a.extent for a in c.n)).text
        few = flow.compare(self.em, "sle", columns, str(FEW))
        few = flow.conjunction(self.em, few, self.has_copies())
        for exchanged in flow.ways(self.em, few):
            with self.scope():
                self.sure = exchanged
                self.tiled(other if exchanged else replace(c, turned=None))
        self.sure = False

    def by_points(self, c: Contract, weights: Load) -> None:
        raise NotImplementedError

    def direct(self, c: Contract) -> bool:
        raise NotImplementedError

    def starts(self, c: Contract) -> tuple[str, str]:
        raise NotImplementedError

    def tile_scratch(self, dtype: DType) -> str:
        """Room for the tiles: all contractions of a kernel use the same."""
        if dtype not in self.rooms:
            self.rooms[dtype] = self.scratch(Dim.of(contract.scratch_bytes(dtype, self.target)))
        return self.rooms[dtype]

    def panels_room(self, dtype: DType) -> str:
        """Room for a block of panels: as above."""
        key = f"{dtype} panels"
        if key not in self.rooms:
            self.rooms[key] = self.scratch(Dim.of(contract.panels_bytes(dtype, self.target)))
        return self.rooms[key]

    def scratch(self, size: Dim) -> str:
        raise NotImplementedError


def uneven(c: Contract) -> bool:
    """Whether the sizes of batches differ."""
    batch = {a.var for a in c.batch}
    return any(batch & a.extent.names for a in (*c.m, *c.n, *c.k))
