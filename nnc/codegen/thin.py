"""Contractions of few rows over windows, such as one filter for each channel: no packing.

What is packed elsewhere is used here once or a few times. So the operand by tables is read straight
into the sums: a vector of lanes (positions of a map) is worked out once for a group of batches
(channels), and each of them takes one masked load for each piece and line, and a multiply-add for
each row; a few batches go together, which share the masks. Where the lanes inside depend on the
batch (the phases of a transposed convolution), two vectors go together instead. The sums are the
chains that tiles compute.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from nnc.codegen import flow, pack_tables, tiles
from nnc.codegen.leaf import Leaves, uneven
from nnc.codegen.leaf_operands import groups_of, kind
from nnc.codegen.operands import Lanes, Tabled, computed
from nnc.codegen.scopes import Value
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import lane_mask
from nnc.codegen.windows import Group
from nnc.ir.expr import Expr, subst
from nnc.ir.graph import Axis
from nnc.ir.loop import Contract, Store
from nnc.lang.dims import ZERO, Dim, dim_prod

_ROWS = 6
_LINES, _LINES_OF_ONE = 128, 384  # of several rows, of one
_SUMS = 4
_VECTORS = 2
_BATCHES = 32  # that share the work of a vector: their maps stay in the cache


@dataclass(frozen=True)
class _Part:
    """The operands of one of the batches that go together, whose variables are `batch`."""

    t: Tile
    batch: tuple[Axis, ...]
    m: Group
    rows: int
    a: Expr
    b: Tabled


def is_thin(c: Contract) -> bool:
    """Whether contractions with these k, of however many rows, may be of this kind."""
    k = dim_prod(a.extent for a in c.k).const
    return k is None or k <= _LINES


class Thin(Leaves):
    """Leaves, and contractions of few rows."""

    def direct(self, c: Contract) -> bool:
        """Emits the contraction if it is of this kind."""
        m, k = (dim_prod(a.extent for a in axes).const for axes in (c.m, c.k))
        if m is None or m > _ROWS or k is None or c.fn != "mul":
            return False
        if k > min(_LINES if m > 1 else _LINES_OF_ONE, tiles.tile(kind(c), self.target).block):
            return False
        for first in range(len(c.n)):
            part = replace(c, batch=(*c.batch, *c.n[:first]), n=c.n[first:])
            if {a.var for a in part.batch} & {x for a in part.batch for x in a.extent.names}:
                return False
            groups = groups_of(part)
            with self.merged_axes(groups):
                self.ranges |= {a.var: (ZERO, a.extent - 1) for a in part.batch}
                if all(self.is_even(s, groups[1]) for s in c.epilogue if isinstance(s, Store)):
                    return self.thin(part, groups)
        return False

    def thin(self, c: Contract, groups: list[Group]) -> bool:
        m, n, k = groups
        t = tiles.tile(kind(c), self.target)
        lines, rows = str(k.extent.const), m.extent.const
        assert rows is not None
        if uneven(c):
            return self.one_by_one(c, m, n, k)
        some = max(1, _SUMS // rows)
        parts = []
        for q in range(some):
            batch = tuple(Axis(f"{a.var}.{q}", a.extent) for a in c.batch)
            self.ranges |= {a.var: (ZERO, a.extent - 1) for a in batch}
            env = {a.var: Dim.of(f"{a.var}.{q}") for a in c.batch}
            later = frozenset(a.var for a in batch)
            operand = self.window(subst(c.b, env), k, n, t, later)
            if operand is None:
                return self.one_by_one(c, m, n, k)
            parts.append(_Part(t, batch, m, rows, subst(c.a, env), operand))
        operands = [p.b for p in parts]
        self.contractions |= {kind(c)}
        em, stage = self.em, self.tile_scratch(kind(c))
        table = pack_tables.table_of(t, em, stage)
        slots, room = self.alloca(f"[{some * rows} x {t.vector}]"), f"[{rows} x {t.vector}]"
        size = self.uniform(n.extent).text
        (b0, b1), (v0, v1) = self.shares(c, flow.ceil_div(em, size, str(t.lanes)))
        with (
            self.scope(),
            pack_tables.lines_of(em, t, operands[0], table, "0", lines),
            self.counted(b0, b1, str(_BATCHES)) as start,
            self.counted(v0, v1) as v,
        ):
            end = flow.minimum(em, flow.add(em, start, str(_BATCHES)), b1)
            j = flow.mul(em, v, str(t.lanes))
            mask = lane_mask(em, t, flow.sub(em, size, j))
            lanes = operands[0].prepare(em, j, mask, table, lines, 0)
            with self.bound(n.var, j, n.extent), self.counted(start, end, str(some)) as first:
                few = flow.minimum(em, str(some), flow.sub(em, end, first))
                self.sums(parts, k, lanes, table, (slots, first, few))
                with self.counted("0", few) as one:
                    number = Value(flow.add(em, first, one), "i64", 1, self.depth)
                    with self.indices(number, c.batch), self.scope():
                        self.results(c, m, n, flow.offset(em, slots, one, room), mask)
        return True

    def shares(self, c: Contract, vectors: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """This thread's batches and vectors: threads split batches, or vectors if those are few."""
        em = self.em
        batches = self.uniform(dim_prod(a.extent for a in c.batch)).text
        many = flow.compare(em, "sge", batches, self.nt)

        def part(total: str, mine: str) -> tuple[str, str]:
            first, end = self.own(total)
            return (
                flow.select(em, mine, "i64", first, "0"),
                flow.select(em, mine, "i64", end, total),
            )

        return part(batches, many), part(vectors, flow.negate(em, many))

    def one_by_one(self, c: Contract, m: Group, n: Group, k: Group) -> bool:
        """With another operand for each batch, whose lanes inside may differ."""
        t = tiles.tile(kind(c), self.target)
        lines, rows = str(k.extent.const), m.extent.const
        assert rows is not None
        if not self.has_window(c.b, k, n, t):
            return False
        em, stage = self.em, self.tile_scratch(kind(c))
        self.contractions |= {kind(c)}
        table = pack_tables.table_of(t, em, stage)
        slots, room = self.alloca(f"[{_VECTORS * rows} x {t.vector}]"), f"[{rows} x {t.vector}]"
        even = not uneven(c)
        size = self.uniform(n.extent).text if even else "0"
        (b0, b1), (v0, v1) = self.shares(c, flow.ceil_div(em, size, str(t.lanes)))
        if not even:  # all threads share all batches
            b0, b1 = "0", self.uniform(dim_prod(a.extent for a in c.batch)).text
        with self.scope(), self.counted(b0, b1) as number:
            batch = Value(number, "i64", 1, self.depth)
            with self.indices(batch, c.batch), self.scope():
                if not even:
                    size = self.uniform(n.extent).text
                    v0, v1 = self.own(flow.ceil_div(em, size, str(t.lanes)))
                operand = self.window(c.b, k, n, t, frozenset())
                assert operand is not None, c
                part = _Part(t, (), m, rows, c.a, operand)
                with (
                    pack_tables.lines_of(em, t, operand, table, "0", lines),
                    self.counted(v0, v1, str(_VECTORS)) as v,
                ):
                    some = flow.minimum(em, str(_VECTORS), flow.sub(em, v1, v))
                    self.vectors(part, k, (v, some, size), table, (slots, lines))
                    with self.counted("0", some) as one:
                        j = flow.mul(em, flow.add(em, v, one), str(t.lanes))
                        mask = lane_mask(em, t, flow.sub(em, size, j))
                        with self.bound(n.var, j, n.extent), self.scope():
                            self.results(c, m, n, flow.offset(em, slots, one, room), mask)
        return True

    def vectors(
        self, part: _Part, k: Group, at: tuple[str, str, str], table: str, to: tuple[str, str]
    ) -> None:
        """The sums of a few vectors of one batch; `at`: the first, how many, lanes in all."""
        em, t, (first, some, size), (slots, lines) = self.em, part.t, at, to
        last = flow.sub(em, some, "1")
        lanes, most = [], "0"
        for q in range(_VECTORS):
            j = flow.mul(em, flow.add(em, first, flow.minimum(em, str(q), last)), str(t.lanes))
            mask = lane_mask(em, t, flow.sub(em, size, j))
            lanes.append(part.b.prepare(em, j, mask, table, lines, q))
            most = flow.maximum(em, most, lanes[-1].pieces)
        self.chains([part] * _VECTORS, lanes, most, k, table, slots)

    def own(self, total: str) -> tuple[str, str]:
        """This thread's share: from, to."""
        after = flow.add(self.em, self.tid, "1")
        first, end = (flow.share(self.em, total, x, self.nt) for x in (self.tid, after))
        return first, end

    def sums(
        self, parts: list[_Part], k: Group, lanes: Lanes, table: str, to: tuple[str, str, str]
    ) -> None:
        """The sums of a few batches at one vector, to `slots` (the first one, how many)."""
        em, (slots, first, few) = self.em, to
        last = flow.sub(em, few, "1")
        numbers = [flow.add(em, first, flow.minimum(em, str(q), last)) for q in range(len(parts))]
        with ExitStack() as stack:
            for part, number in zip(parts, numbers, strict=True):
                batch = Value(number, "i64", 1, self.depth)
                stack.enter_context(self.indices(batch, part.batch))
            stack.enter_context(self.scope())
            self.chains(parts, [lanes] * len(parts), lanes.pieces, k, table, slots)

    def chains(
        self, parts: list[_Part], lanes: list[Lanes], most: str, k: Group, table: str, slots: str
    ) -> None:
        """The sums of parts, each at a vector of `most` pieces or fewer, to `slots`."""
        em, t = self.em, parts[0].t
        left = [computed(t, self.operand(p.a, p.m, k)) for p in parts]

        def every(pieces: int) -> None:
            def line(i: str, sums: list[str]) -> list[str]:
                out = []
                for q, part in enumerate(parts):
                    y = part.b.fetch(em, lanes[q], i, table, i, pieces)
                    for r in range(part.rows):
                        x = Value(left[q].load(em, str(r), i), t.dtype, 1, self.depth)
                        s = sums[q * part.rows + r]
                        x_ = self.spread(x, t.lanes)
                        out.append(tiles.multiply_add(em, t, self.target, x_, y, s))
                return out

            count = len(parts) * parts[0].rows
            sums = self.accumulated(t, count, str(k.extent.const), line)
            for i, s in enumerate(sums):
                place = flow.offset(em, slots, str(i), t.vector)
                em.line(f"store {t.vector} {s}, ptr {place}, align 64")

        pack_tables.either(em, most, every)

    def results(self, c: Contract, m: Group, n: Group, slot: str, mask: str) -> None:
        """The epilogue of the rows of one batch."""
        t, rows = tiles.tile(kind(c), self.target), m.extent.const
        assert rows is not None
        for r in range(rows):
            place = flow.offset(self.em, slot, str(r), t.vector)
            value = self.em.op(f"load {t.vector}, ptr {place}, align 64", "sum")
            self.store_row(c, m, n, str(r), value, mask)

    def accumulated(
        self, t: Tile, rows: int, count: str, line: Callable[[str, list[str]], list[str]]
    ) -> list[str]:
        """`count` (1 or more) steps from zeros."""
        em = self.em
        with self.scope():
            pre, body, latch, done = (em.fresh(x) for x in ("pre", "body", "latch", "done"))
            index, follow = f"%{em.fresh('i')}", f"%{em.fresh('next')}"
            sums = [f"%{em.fresh('s')}" for _ in range(rows)]
            em.line(f"br label %{pre}")
            em.label(pre)
            em.line(f"br label %{body}")
            em.label(body)
            em.line(f"{index} = phi i64 [ 0, %{pre} ], [ {follow}, %{latch} ]")
            at = len(em.lines)
            with self.scope():
                new = line(index, sums)
            phis = [
                f"  {s} = phi {t.vector} [ zeroinitializer, %{pre} ], [ {x}, %{latch} ]"
                for s, x in zip(sums, new, strict=True)
            ]
            em.lines[at:at] = phis
            em.line(f"br label %{latch}")
            em.label(latch)
            em.line(f"{follow} = add nsw i64 {index}, 1")
            em.line(f"br i1 {flow.compare(em, 'slt', follow, count)}, label %{body}, label %{done}")
            em.label(done)
        return new
